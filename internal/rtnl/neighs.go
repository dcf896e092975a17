package rtnl

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Neighs is the table of the permanent neighbour entries on our VXLAN devices and on the host's side of workloads. Their
// mark is the device.
type Neighs struct{ c *Conn }

// Neighs returns the table of permanent neighbours.
func (c *Conn) Neighs() Neighs { return Neighs{c} }

// List returns the permanent neighbour entries on our devices. What the kernel has learned is not among them.
func (t Neighs) List(ctx context.Context) (map[kernel.NeighKey]kernel.MAC, error) {
	out := map[kernel.NeighKey]kernel.MAC{}
	err := t.c.neighbours(ctx, unix.AF_UNSPEC, func(d device, n neighbour) {
		if t.c.ourNeigh(d.name, n) {
			out[kernel.NeighKey{Dev: d.dev(), Addr: n.addr}] = n.mac
		}
	})
	return out, err
}

func (c *Conn) ourNeigh(dev string, n neighbour) bool {
	return !n.bridge && n.permanent && c.ourDevice(dev)
}

// neighbours calls f for every entry of a family's tables.
func (c *Conn) neighbours(ctx context.Context, family uint8, f func(device, neighbour)) error {
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	msgs, err := c.dump(ctx, unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: family}, 0)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, m := range msgs {
		n, err := decodeNeigh(m)
		if err != nil {
			return err
		}
		f(devices[n.index], n)
	}
	return nil
}

// Apply sets and removes neighbour entries.
func (t Neighs) Apply(ctx context.Context, changes []kernel.Change[kernel.NeighKey, kernel.MAC]) error {
	return each(ctx, t.c.sender, changes, way[kernel.NeighKey, kernel.MAC]{
		encode: func(m *messages, c kernel.Change[kernel.NeighKey, kernel.MAC]) {
			n := neighbour{index: c.Key.Dev.Index, addr: c.Key.Addr}
			if c.New != nil {
				n.mac = *c.New
			}
			appendEntry(m, c.New != nil, n)
		},
		refused: func(c kernel.Change[kernel.NeighKey, kernel.MAC], err error) error {
			switch {
			case c.New != nil:
				return fmt.Errorf("set neighbour %v on %v: %w", c.Key.Addr, c.Key.Dev, err)
			case gone(err):
				return nil
			}
			return fmt.Errorf("remove neighbour %v on %v: %w", c.Key.Addr, c.Key.Dev, err)
		},
	})
}

// appendEntry adds the message that sets a permanent entry of the neighbour or forwarding table, or removes it: struct ndmsg and attributes. A
// zero MAC is left out.
func appendEntry(m *messages, set bool, n neighbour) {
	kind, flags := uint16(unix.RTM_DELNEIGH), uint16(0)
	if set {
		kind, flags = unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE
	}
	of, own := family(n.addr), byte(0)
	if n.bridge {
		of, own = unix.AF_BRIDGE, netlink.NTF_SELF
	}
	fixed := binary.NativeEndian.AppendUint32([]byte{of, 0, 0, 0}, uint32(n.index))
	fixed = binary.NativeEndian.AppendUint16(fixed, netlink.NUD_PERMANENT)
	m.begin(kind, flags, append(fixed, own, unix.RTN_UNICAST)...)
	m.addr(netlink.NDA_DST, n.addr)
	if n.mac != (kernel.MAC{}) {
		m.attr(netlink.NDA_LLADDR, n.mac[:])
	}
}

// FDB is the table of the permanent forwarding entries of our VXLAN devices. Their mark is the device.
type FDB struct{ c *Conn }

// FDB returns the table of forwarding entries.
func (c *Conn) FDB() FDB { return FDB{c} }

// List returns the permanent forwarding entries that name another node's address.
func (t FDB) List(ctx context.Context) (map[kernel.FDBKey]netip.Addr, error) {
	out := map[kernel.FDBKey]netip.Addr{}
	err := t.c.neighbours(ctx, unix.AF_BRIDGE, func(d device, n neighbour) {
		if ourFDB(d.name, n) {
			out[kernel.FDBKey{Dev: d.dev(), MAC: n.mac}] = n.addr
		}
	})
	return out, err
}

func ourFDB(dev string, n neighbour) bool {
	return n.bridge && n.permanent && n.self && n.addr.IsValid() && ourTunnel(dev)
}

// Apply sets and removes forwarding entries.
func (t FDB) Apply(ctx context.Context, changes []kernel.Change[kernel.FDBKey, netip.Addr]) error {
	return each(ctx, t.c.sender, changes, way[kernel.FDBKey, netip.Addr]{
		encode: func(m *messages, c kernel.Change[kernel.FDBKey, netip.Addr]) {
			to := c.New
			if to == nil {
				to = c.Old
			}
			appendEntry(m, c.New != nil, neighbour{bridge: true, index: c.Key.Dev.Index, mac: c.Key.MAC, addr: *to})
		},
		refused: func(c kernel.Change[kernel.FDBKey, netip.Addr], err error) error {
			switch {
			case c.New != nil:
				return fmt.Errorf("set forwarding entry %v dst %v of %v: %w", c.Key.MAC, *c.New, c.Key.Dev, err)
			case gone(err):
				return nil
			}
			return fmt.Errorf("remove forwarding entry %v of %v: %w", c.Key.MAC, c.Key.Dev, err)
		},
	})
}
