package rtnl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetFlows deletes the connections that the kernel tracks from or to any of some addresses, translated or not, in the namespace that
// the calling thread is in, and returns how many. It reads the whole table of each family that occurs, so it takes longer the more connections there
// are: gather addresses.
func ForgetFlows(addrs map[netip.Addr]struct{}) (int, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(socketTimeout); err != nil {
		return 0, fmt.Errorf("set netlink timeout: %w", err)
	}
	var is4, is6 bool
	for a := range addrs {
		is4, is6 = is4 || a.Is4(), is6 || a.Is6()
	}
	forget := func(wanted bool, family netlink.InetFamily) (int, error) {
		if !wanted {
			return 0, nil
		}
		n, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowsOf(addrs))
		if err != nil {
			return int(n), fmt.Errorf("delete tracked connections: %w", err)
		}
		return int(n), nil
	}
	n4, err4 := forget(is4, unix.AF_INET)
	n6, err6 := forget(is6, unix.AF_INET6)
	return n4 + n6, errors.Join(err4, err6)
}

// flowsOf picks connections by the addresses of either direction.
type flowsOf map[netip.Addr]struct{}

// MatchConntrackFlow tells whether a connection is one of these.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		a, _ := netip.AddrFromSlice(ip)
		if _, ok := f[a.Unmap()]; ok {
			return true
		}
	}
	return false
}

// Tracked is a connection that the kernel tracks, as policy sees its first packet: from where it comes before the source is translated, and to where
// it goes after the destination is.
type Tracked struct {
	Source, Destination         netip.Addr
	Protocol                    uint8
	SourcePort, DestinationPort uint16 // 0 of protocols without ports
}

// CutFlows deletes the connections that the kernel tracks and that cut picks, in the namespace that the calling thread is in, and returns how many. It
// asks about every connection of both families, one after the other.
func CutFlows(cut func(Tracked) bool) (int, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(socketTimeout); err != nil {
		return 0, fmt.Errorf("set netlink timeout: %w", err)
	}
	n4, err4 := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, picked(cut))
	n6, err6 := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET6, picked(cut))
	if err := errors.Join(err4, err6); err != nil {
		return int(n4 + n6), fmt.Errorf("delete tracked connections: %w", err)
	}
	return int(n4 + n6), nil
}

// picked picks connections by what they are for policy.
type picked func(Tracked) bool

// MatchConntrackFlow tells whether a connection is picked.
func (p picked) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	to, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return p(Tracked{
		Source: from.Unmap(), Destination: to.Unmap(), Protocol: flow.Forward.Protocol,
		SourcePort: flow.Forward.SrcPort, DestinationPort: flow.Reverse.SrcPort,
	})
}
