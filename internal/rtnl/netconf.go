package rtnl

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Attributes of RTM_NEWNETCONF and the device that stands for all (linux/netconf.h).
const (
	netconfIndex      = 1
	netconfForwarding = 2
	netconfRPFilter   = 3
	netconfProxyNeigh = 5

	netconfHeader = 4  // struct netconfmsg, the family alone, padded
	allDevices    = -1 // NETCONFA_IFINDEX_ALL
)

// netconf is what the kernel reports of a device's settings, or of the host's. It reports forwarding, the reverse path filter and the proxying
// of ARP and neighbour discovery, and of all other settings nothing.
type netconf struct {
	v6     bool
	index  int
	values map[uint16]int32
}

// decodeNetconf reads an RTM_NEWNETCONF message.
func decodeNetconf(m []byte) (netconf, error) {
	if len(m) < netconfHeader {
		return netconf{}, fmt.Errorf("decode settings: message of %d bytes", len(m))
	}
	n := netconf{v6: m[0] == unix.AF_INET6, values: map[uint16]int32{}}
	if !n.v6 && m[0] != unix.AF_INET {
		return n, nil
	}
	for a, err := range attributes(m[netconfHeader:]) {
		if err != nil {
			return netconf{}, fmt.Errorf("decode settings: %w", err)
		}
		v := int32(number(a.Value))
		if a.Attr.Type == netconfIndex {
			n.index = int(v)
			continue
		}
		n.values[a.Attr.Type] = v
	}
	return n, nil
}

// settings names the settings that are reported. d is the device of n's index, if it is one device's.
func (n netconf) settings(d device) map[kernel.SysctlKey]string {
	names := map[uint16]string{netconfForwarding: "forwarding", netconfRPFilter: "rp_filter", netconfProxyNeigh: "proxy_arp"}
	family := "net/ipv4/"
	if n.v6 {
		names = map[uint16]string{netconfForwarding: "forwarding", netconfProxyNeigh: "proxy_ndp"}
		family = "net/ipv6/"
	}
	dev := d.dev()
	if n.index == allDevices {
		dev = kernel.Dev{Name: "all"}
	}
	out := map[kernel.SysctlKey]string{}
	for attr, v := range n.values {
		if name := names[attr]; name != "" {
			out[kernel.SysctlKey{Path: family + "conf/" + dev.Name + "/" + name, Index: dev.Index}] = strconv.Itoa(int(v))
		}
	}
	if v, ok := n.values[netconfForwarding]; ok && n.index == allDevices && !n.v6 {
		out[kernel.SysctlKey{Path: family + "ip_forward"}] = strconv.Itoa(int(v))
	}
	return out
}
