package rtnl

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestFlowsArePickedByAnyOfTheirAddresses(t *testing.T) {
	ip := net.ParseIP
	f := flowsOf{netip.MustParseAddr("10.0.0.1"): {}, netip.MustParseAddr("fd00::1"): {}}
	for _, c := range []struct {
		forward, reverse netlink.IPTuple
		want             bool
	}{
		{netlink.IPTuple{SrcIP: ip("10.0.0.1"), DstIP: ip("192.0.2.1")}, netlink.IPTuple{SrcIP: ip("192.0.2.1"), DstIP: ip("172.30.0.1")}, true},
		{netlink.IPTuple{SrcIP: ip("192.0.2.1"), DstIP: ip("10.96.0.1")}, netlink.IPTuple{SrcIP: ip("10.0.0.1"), DstIP: ip("192.0.2.1")}, true},
		{netlink.IPTuple{SrcIP: ip("fd00::2"), DstIP: ip("fd00::1")}, netlink.IPTuple{SrcIP: ip("fd00::1"), DstIP: ip("fd00::2")}, true},
		{netlink.IPTuple{SrcIP: ip("10.0.0.11"), DstIP: ip("192.0.2.1")}, netlink.IPTuple{SrcIP: ip("192.0.2.1"), DstIP: ip("10.0.0.11")}, false},
	} {
		if got := f.MatchConntrackFlow(&netlink.ConntrackFlow{Forward: c.forward, Reverse: c.reverse}); got != c.want {
			t.Errorf("%v, back %v: %t, want %t", c.forward, c.reverse, got, c.want)
		}
	}
}
