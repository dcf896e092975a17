package rtnl

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func via(dev kernel.Dev, gateways ...string) kernel.Route {
	var hops []kernel.Hop
	for _, g := range gateways {
		hops = append(hops, kernel.Hop{Gateway: netip.MustParseAddr(g), Dev: dev})
	}
	return kernel.Route{Protocol: 80}.Via(hops...)
}

func TestRoutesShareTheirTraffic(t *testing.T) {
	h := newHost(t)
	h.Exec("ip", "addr", "add", "fd00:1::1/64", "dev", "eth0", "nodad")
	eth0 := h.dev("eth0")
	four, six := routeKey("10.244.1.0/26", 1024), routeKey("fd00:9::40/122", 1024)
	for _, want := range []map[kernel.RouteKey]kernel.Route{
		{four: via(eth0, "172.30.0.3", "172.30.0.2"), six: via(eth0, "fd00:1::3", "fd00:1::2")},
		{four: via(eth0, "172.30.0.2", "172.30.0.4", "172.30.0.5"), six: via(eth0, "fd00:1::2", "fd00:1::4", "fd00:1::5")},
		{four: via(eth0, "172.30.0.2"), six: via(eth0, "fd00:1::2")},
		{four: via(eth0, "172.30.0.2", "172.30.0.3"), six: via(eth0, "fd00:1::2", "fd00:1::3")},
		{four: {Type: kernel.Blackhole, Protocol: 80}, six: {Type: kernel.Blackhole, Protocol: 80}},
		{four: via(eth0, "172.30.0.2", "172.30.0.3"), six: via(eth0, "fd00:1::2", "fd00:1::3")},
	} {
		mustBecome(t, h.Routes(), want)
	}
	out := strings.Join(strings.Fields(h.Exec("ip", "route", "show", "10.244.1.0/26")), " ")
	want := "10.244.1.0/26 proto 80 metric 1024 nexthop via 172.30.0.2 dev eth0 weight 1 nexthop via 172.30.0.3 dev eth0 weight 1"
	if out != want {
		t.Errorf("`ip route` says %q", out)
	}
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{})
	if out := h.Exec("ip", "-6", "route", "show", "fd00:9::/64"); out != "" {
		t.Errorf("left: %q", out)
	}
}

func TestRoutesShareOnlinkGatewaysOfATunnel(t *testing.T) {
	h := newHost(t)
	dev := h.dev("cali0")
	hop := func(a string) kernel.Hop {
		return kernel.Hop{Gateway: netip.MustParseAddr(a), Dev: dev, Onlink: true}
	}
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{
		routeKey("10.244.1.0/26", 1024): kernel.Route{Protocol: 80}.Via(hop("10.9.0.1"), hop("10.9.0.2")),
	})
}

func TestMonitorTellsOfSharedRoutesAsListDoes(t *testing.T) {
	h := newHost(t)
	m := watch(t, h)
	key := routeKey("10.244.1.0/26", 0)
	h.Exec("ip", "route", "add", "10.244.1.0/26", "proto", "80", "nexthop", "via", "172.30.0.2", "nexthop", "via", "172.30.0.3")
	listed := mustList(t, h.Routes())
	nettest.Eventually(t, func() error {
		if told := m.Events().Routes[key]; told == nil || *told != listed[key] {
			return fmt.Errorf("the event says %v, the list %v", told, listed[key])
		}
		return nil
	})
}

func TestWaysAreTheKernels(t *testing.T) {
	h := newHost(t)
	h.Exec("ip", "route", "add", "172.31.0.0/24", "via", "172.30.0.9")
	h.Exec("ip", "route", "add", "10.8.0.1/32", "dev", "cali0")
	h.Exec("ip", "route", "add", "unreachable", "10.9.0.0/24")
	h.Exec("ip", "addr", "add", "fd00:1::1/64", "dev", "eth0", "nodad")
	h.Exec("ip", "route", "add", "fd00:2::/64", "via", "fd00:1::9")
	var ask []netip.Addr
	for _, a := range []string{"172.31.0.7", "10.8.0.1", "fd00:2::7", "10.9.0.1", "192.0.2.1", "2001:db8::1"} {
		ask = append(ask, netip.MustParseAddr(a))
	}
	got, err := h.Ways(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]kernel.Hop{
		ask[0]: {Gateway: netip.MustParseAddr("172.30.0.9"), Dev: h.dev("eth0")},
		ask[1]: {Gateway: ask[1], Dev: h.dev("cali0"), Onlink: true},
		ask[2]: {Gateway: netip.MustParseAddr("fd00:1::9"), Dev: h.dev("eth0")},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("ways differ (-want +got):\n%s", d)
	}
}
