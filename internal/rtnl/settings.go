package rtnl

import (
	"context"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Settings sets settings of devices by messages. The kernel has a file for each of them too, below /proc/sys, but to open five of those costs more than all else that the
// host's side of a pod needs.
type Settings struct{ c *Conn }

// Settings returns what sets settings of devices.
func (c *Conn) Settings() Settings { return Settings{c} }

// Apply makes those of the changes that there are messages for, many with one system call, and returns the others, for their files. With these are the ones that the
// kernel has refused, since a file says better why. To set what a device that is gone had is no error. Settings of the whole host reset those of devices: where there are
// some, all are for files, in order.
func (s Settings) Apply(ctx context.Context, changes []kernel.Change[kernel.SysctlKey, string]) (others []kernel.Change[kernel.SysctlKey, string]) {
	if slices.ContainsFunc(changes, func(c kernel.Change[kernel.SysctlKey, string]) bool { return c.Key.Index == 0 }) {
		return changes
	}
	conf := map[int]*inetConf{}
	var all []setting
	for _, c := range changes {
		group, name, n := told(c)
		switch {
		case group == inetConfGroup && inetConfKind(name) != 0:
			if conf[c.Key.Index] == nil {
				conf[c.Key.Index] = &inetConf{index: c.Key.Index}
				all = append(all, conf[c.Key.Index])
			}
			conf[c.Key.Index].add(c, inetConfKind(name), n)
		case group == arpCacheGroup && name == "proxy_delay":
			all = append(all, proxyDelay{c, n})
		default:
			others = append(others, c)
		}
	}
	for batch := range slices.Chunk(all, batchSize) {
		others = append(others, s.send(ctx, batch)...)
	}
	return others
}

// send makes settings with one system call, and returns what was not set.
func (s Settings) send(ctx context.Context, batch []setting) (refused []kernel.Change[kernel.SysctlKey, string]) {
	for i, err := range s.c.sender.ask(ctx, len(batch), func(m *messages, i int) { batch[i].append(m) }) {
		if err != nil && !is(err, unix.ENODEV, unix.ENOENT) {
			refused = append(refused, batch[i].changes()...)
		}
	}
	return refused
}

// setting is what one message sets.
type setting interface {
	append(m *messages)
	changes() []kernel.Change[kernel.SysctlKey, string]
}

// The folders of settings that there are messages for; a device's name comes next.
const (
	inetConfGroup = "net/ipv4/conf/"
	arpCacheGroup = "net/ipv4/neigh/"
)

// told takes a change apart. What is no number, or nothing that is to be set, is in no group.
func told(c kernel.Change[kernel.SysctlKey, string]) (group, name string, n int) {
	if c.New == nil {
		return "", "", 0
	}
	n, err := strconv.Atoi(*c.New)
	if err != nil || n < 0 {
		return "", "", 0
	}
	for _, g := range [...]string{inetConfGroup, arpCacheGroup} {
		if rest, ok := strings.CutPrefix(c.Key.Path, g); ok {
			_, name, _ = strings.Cut(rest, "/")
			return g, name, n
		}
	}
	return "", "", 0
}

// inetConfKind is the number of a device's setting of IPv4 (enum IPV4_DEVCONF_* in linux/ip.h); 0 for one that we do not set.
func inetConfKind(name string) uint16 {
	switch name {
	case "forwarding":
		return 1
	case "proxy_arp":
		return 3
	case "rp_filter":
		return 8
	case "route_localnet":
		return 26
	}
	return 0
}

// inetConf is a device's settings of IPv4 (IFLA_INET_CONF in linux/if_link.h).
type inetConf struct {
	index  int
	from   []kernel.Change[kernel.SysctlKey, string]
	values []inetConfValue
}

type inetConfValue struct {
	kind uint16
	n    int
}

func (x *inetConf) add(c kernel.Change[kernel.SysctlKey, string], kind uint16, n int) {
	x.from, x.values = append(x.from, c), append(x.values, inetConfValue{kind, n})
}

func (x *inetConf) changes() []kernel.Change[kernel.SysctlKey, string] { return x.from }

func (x *inetConf) append(m *messages) {
	m.begin(unix.RTM_SETLINK, 0, ifInfo(x.index, 0)...)
	families := m.nest(unix.IFLA_AF_SPEC)
	inet := m.nest(unix.AF_INET)
	conf := m.nest(inetConfs4)
	for _, v := range x.values {
		m.attr(v.kind, binary.NativeEndian.AppendUint32(nil, uint32(v.n)))
	}
	m.end(conf)
	m.end(inet)
	m.end(families)
}

const inetConfs4 = 1 // IFLA_INET_CONF

// proxyDelay is how long a device waits before it answers for others in ARP (struct ndtmsg and NDTPA_* in linux/neighbour.h).
type proxyDelay struct {
	from  kernel.Change[kernel.SysctlKey, string]
	ticks int // of the hundredth of a second, as in the file
}

func (x proxyDelay) changes() []kernel.Change[kernel.SysctlKey, string] {
	return []kernel.Change[kernel.SysctlKey, string]{x.from}
}

func (x proxyDelay) append(m *messages) {
	const name, parms, index, delay, tick = 1, 6, 1, 13, 10 // NDTA_NAME, NDTA_PARMS, NDTPA_IFINDEX, NDTPA_PROXY_DELAY, milliseconds
	m.begin(unix.RTM_SETNEIGHTBL, 0, unix.AF_INET, 0, 0, 0)
	m.attr(name, []byte("arp_cache\x00"))
	of := m.nest(parms)
	m.uint32(index, x.from.Key.Index)
	m.attr(delay, binary.NativeEndian.AppendUint64(nil, uint64(x.ticks*tick)))
	m.end(of)
}
