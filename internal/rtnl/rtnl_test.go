package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// host is a namespace with an uplink eth0 that has an address and a workload's device, as a node has them.
type host struct {
	*nettest.NS
	*Conn
}

func newHost(t *testing.T) host {
	t.Helper()
	h := host{NS: nettest.New(t)}
	peer := nettest.New(t)
	nettest.Pair(h.NS, "eth0", peer, "eth0")
	nettest.Pair(h.NS, "cali0", peer, "pod0")
	h.NS.Exec("ip", "addr", "add", "172.30.0.1/24", "dev", "eth0")
	h.NS.Do(func() {
		c, err := Open()
		if err != nil {
			t.Error(err)
			return
		}
		h.Conn = c
	})
	if h.Conn == nil {
		t.FailNow()
	}
	t.Cleanup(h.Conn.Close)
	return h
}

func (h host) dev(name string) kernel.Dev { return kernel.Dev{Name: name, Index: h.Index(name)} }

func (h host) tunnel() kernel.Link {
	return kernel.Link{
		Type: kernel.VXLAN, VNI: 4096, Port: 4789, Local: netip.MustParseAddr("172.30.0.1"), Parent: h.dev("eth0"),
		MAC: kernel.MAC{0x66, 1, 2, 3, 4, 5}, MTU: 1450,
	}
}

// table is what every table of this package is.
type table[K, V comparable] interface {
	List(context.Context) (map[K]V, error)
	Apply(context.Context, []kernel.Change[K, V]) error
}

var addrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, kernel.Route{}, kernel.RouteKey{})

func mustList[K, V comparable](t *testing.T, x table[K, V]) map[K]V {
	t.Helper()
	got, err := x.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// mustBecome applies the difference to want and checks that the kernel then holds exactly it.
func mustBecome[K, V comparable](t *testing.T, x table[K, V], want map[K]V) {
	t.Helper()
	if err := x.Apply(t.Context(), kernel.Diff(mustList(t, x), want)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, mustList(t, x), addrs); diff != "" {
		t.Fatalf("want (-) and listed (+) differ:\n%s", diff)
	}
}

func routeKey(dst string, metric int) kernel.RouteKey {
	return kernel.RouteKey{Dst: netip.MustParsePrefix(dst), Metric: metric}
}

func TestLinksAreMadeAsAsked(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	out := h.Exec("ip", "-d", "link", "show", kernel.VXLANDevice)
	for _, want := range []string{
		"UP,LOWER_UP", "mtu 1450", "link/ether 66:01:02:03:04:05",
		"vxlan id 4096 local 172.30.0.1 dev eth0 srcport 0 0 dstport 4789 nolearning", "ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("ip -d link lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "gbp") {
		t.Errorf("group policy extension is on:\n%s", out)
	}
}

func TestLinksAreRemadeOnlyWhereTheKernelCannotChangeThem(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	want := h.tunnel()
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: want})
	first := h.Index(kernel.VXLANDevice)
	want.MTU = 1400
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: want})
	if got := h.Index(kernel.VXLANDevice); got != first {
		t.Errorf("a changed MTU made a new device: %d, was %d", got, first)
	}
	for name, change := range map[string]func(*kernel.Link){
		"VNI":    func(l *kernel.Link) { l.VNI = 4097 },
		"port":   func(l *kernel.Link) { l.Port = 8472 },
		"local":  func(l *kernel.Link) { l.Local = netip.MustParseAddr("172.30.0.2") },
		"parent": func(l *kernel.Link) { l.Parent = h.dev("cali0") },
		"MAC":    func(l *kernel.Link) { l.MAC[5]++ },
	} {
		before := h.Index(kernel.VXLANDevice)
		change(&want)
		mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: want})
		if h.Index(kernel.VXLANDevice) == before {
			t.Errorf("a changed %s left the old device", name)
		}
	}
	mustBecome(t, h.Links(), map[string]kernel.Link{})
}

func TestLinksThatSomebodyHasSpoiledAreRepaired(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	want := map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()}
	mustBecome(t, h.Links(), want)
	for _, spoil := range [][]string{
		{"ip", "link", "set", kernel.VXLANDevice, "down"},
		{"ip", "link", "set", kernel.VXLANDevice, "mtu", "1300"},
		{"ip", "link", "set", kernel.VXLANDevice, "address", "66:00:00:00:00:99"},
		{"ip", "link", "set", kernel.VXLANDevice, "type", "vxlan", "learning"},
		{"ip", "link", "del", kernel.VXLANDevice},
		{"ip", "link", "add", "unused", "type", "vxlan", "id", "7", "dstport", "4789"},
	} {
		h.Exec(spoil...)
		if spoil[3] != "unused" && cmp.Equal(want, mustList(t, h.Links()), addrs) {
			t.Errorf("%s: the list does not show it", strings.Join(spoil, " "))
		}
		mustBecome(t, h.Links(), want)
	}
	if !strings.Contains(h.Exec("ip", "link"), "unused") {
		t.Error("a foreign device is gone")
	}
	// What is repaired may be asked for again as if it had never been there.
	l := h.tunnel()
	if err := h.Links().Apply(t.Context(), []kernel.Change[string, kernel.Link]{{Key: kernel.VXLANDevice, New: &l}}); err != nil {
		t.Error(err)
	}
}

func TestLinkOfOursThatSomebodyHasRenamedGetsItsNameBack(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	want := map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()}
	mustBecome(t, h.Links(), want)
	index := h.Index(kernel.VXLANDevice)
	h.Exec("ip", "link", "set", kernel.VXLANDevice, "down")
	h.Exec("ip", "link", "set", kernel.VXLANDevice, "name", "vx0")
	mustBecome(t, h.Links(), want)
	if now := h.Index(kernel.VXLANDevice); now != index {
		t.Errorf("%s is another device: index %d, was %d", kernel.VXLANDevice, now, index)
	}
}

func TestLinksSayWhoIsInTheWay(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	h.Exec("ip", "link", "add", "flannel.1", "type", "vxlan", "id", "4096", "dstport", "4789", "dev", "eth0")
	l := h.tunnel()
	err := h.Links().Apply(t.Context(), []kernel.Change[string, kernel.Link]{{Key: kernel.VXLANDevice, New: &l}})
	if err == nil || !strings.Contains(err.Error(), "device flannel.1 has VNI 4096") || !strings.Contains(err.Error(), kernel.VXLANDevice) {
		t.Fatalf("got %v", err)
	}
}

func TestAddrsRoundTrip(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	key := func(a string) kernel.AddrKey {
		return kernel.AddrKey{Link: kernel.VXLANDevice, Addr: netip.MustParsePrefix(a)}
	}
	h.Exec("ip", "addr", "add", "10.244.0.9/32", "dev", kernel.VXLANDevice)
	mustBecome(t, h.Addrs(), map[kernel.AddrKey]struct{}{key("10.244.0.0/32"): {}, key("fd00::1/128"): {}})
	out := h.Exec("ip", "addr", "show", kernel.VXLANDevice)
	if !strings.Contains(out, "inet 10.244.0.0/32 scope global vxlan.calico") || strings.Contains(out, "10.244.0.9") || !strings.Contains(out, "fe80::") {
		t.Errorf("unexpected addresses:\n%s", out)
	}
	if !strings.Contains(h.Exec("ip", "addr", "show", "eth0"), "172.30.0.1/24") {
		t.Error("a foreign address is gone")
	}
	have := struct{}{}
	again := []kernel.Change[kernel.AddrKey, struct{}]{{Key: key("10.244.0.0/32"), New: &have}, {Key: key("10.9.9.9/32"), Old: &have}}
	if err := h.Addrs().Apply(t.Context(), again); err != nil {
		t.Errorf("what is right already is an error: %v", err)
	}
	mustBecome(t, h.Addrs(), map[kernel.AddrKey]struct{}{})
}

func TestNeighsRoundTrip(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	h.Exec("ip", "neigh", "add", "172.30.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent")
	h.Exec("ip", "neigh", "add", "10.244.0.77", "lladdr", "02:00:00:00:00:77", "dev", "cali0", "nud", "permanent")
	want := map[kernel.NeighKey]kernel.MAC{
		{Dev: h.dev(kernel.VXLANDevice), Addr: netip.MustParseAddr("10.244.1.0")}: {0x66, 1},
		{Dev: h.dev("cali0"), Addr: netip.MustParseAddr("10.244.0.1")}:            {2, 1},
		{Dev: h.dev("cali0"), Addr: netip.MustParseAddr("fd00::2")}:               {2, 2},
	}
	mustBecome(t, h.Neighs(), want)
	if out := h.Exec("ip", "neigh", "show", "dev", kernel.VXLANDevice); out != "10.244.1.0 lladdr 66:01:00:00:00:00 PERMANENT \n" {
		t.Errorf("got %q", out)
	}
	h.Exec("ip", "neigh", "replace", "10.244.0.1", "lladdr", "02:99:00:00:00:00", "dev", "cali0", "nud", "permanent")
	h.Exec("ip", "neigh", "del", "10.244.1.0", "dev", kernel.VXLANDevice)
	mustBecome(t, h.Neighs(), want)
	mustBecome(t, h.Neighs(), map[kernel.NeighKey]kernel.MAC{})
	if !strings.Contains(h.Exec("ip", "neigh", "show", "dev", "eth0"), "172.30.0.9") {
		t.Error("a foreign neighbour is gone")
	}
}

func TestFDBRoundTrip(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	dev := h.dev(kernel.VXLANDevice)
	want := map[kernel.FDBKey]netip.Addr{
		{Dev: dev, MAC: kernel.MAC{0x66, 1}}: netip.MustParseAddr("172.30.0.2"),
		{Dev: dev, MAC: kernel.MAC{0x66, 2}}: netip.MustParseAddr("172.30.0.3"),
	}
	mustBecome(t, h.FDB(), want)
	out := h.Exec("bridge", "fdb", "show", "dev", kernel.VXLANDevice)
	if !strings.Contains(out, "66:01:00:00:00:00 dst 172.30.0.2 self permanent") {
		t.Errorf("got %q", out)
	}
	want[kernel.FDBKey{Dev: dev, MAC: kernel.MAC{0x66, 1}}] = netip.MustParseAddr("172.30.0.4")
	mustBecome(t, h.FDB(), want)
	mustBecome(t, h.FDB(), map[kernel.FDBKey]netip.Addr{})
}

func TestRoutesReadAsCalicosDo(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	mustBecome(t, h.Addrs(), map[kernel.AddrKey]struct{}{{Link: kernel.VXLANDevice, Addr: netip.MustParsePrefix("10.244.0.0/32")}: {}})
	want := map[kernel.RouteKey]kernel.Route{
		routeKey("10.244.0.0/26", 0):       {Type: kernel.Blackhole, Protocol: 80},
		routeKey("10.244.62.193/32", 1024): {Scope: kernel.LinkScope, Dev: h.dev("cali0"), Protocol: 80},
		routeKey("10.244.1.0/26", 0):       {Dev: h.dev(kernel.VXLANDevice), Gateway: netip.MustParseAddr("10.244.1.0"), Onlink: true, Protocol: 80},
		routeKey("10.244.2.0/26", 0):       {Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("172.30.0.2"), Onlink: true, Protocol: 80},
		routeKey("10.244.3.7/32", 0):       {Scope: kernel.LinkScope, Dev: h.dev(kernel.VXLANDevice), Protocol: 80},
		routeKey("10.244.4.0/26", 0):       {Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("172.30.0.2"), Src: netip.MustParseAddr("172.30.0.1"), Protocol: 80},
		routeKey("fd00:1::/64", 1024):      {Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("fd00::9"), Onlink: true, Protocol: 80},
		routeKey("fd00:2::1/128", 1024):    {Scope: kernel.LinkScope, Dev: h.dev("cali0"), Protocol: 80},
		routeKey("fd00:3::/64", 1024):      {Type: kernel.Blackhole, Protocol: 80},
	}
	mustBecome(t, h.Routes(), want)
	text := strings.Split(h.Exec("ip", "route"), "\n")
	got := map[string]bool{}
	for _, line := range text {
		got[strings.TrimSpace(line)] = true
	}
	for k, r := range want {
		if k.Dst.Addr().Is4() && !got[kernel.RouteText(k, r)] {
			t.Errorf("`ip route` lacks %q:\n%s", kernel.RouteText(k, r), strings.Join(text, "\n"))
		}
	}
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{})
	if out := h.Exec("ip", "route"); out != "172.30.0.0/24 dev eth0 proto kernel scope link src 172.30.0.1 \n" {
		t.Errorf("left: %q", out)
	}
}

func TestRoutesListOnlyOurs(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	h.Exec("ip", "addr", "add", "10.8.0.1/24", "dev", kernel.VXLANDevice) // its kernel route is the address's
	foreign := [][]string{
		{"10.1.0.0/16", "via", "172.30.0.5", "proto", "bird"},
		{"10.2.0.0/16", "dev", "cali0", "proto", "static"},
		{"10.3.0.0/16", "dev", "eth0"},
		{"10.4.0.0/16", "dev", "eth0", "proto", "static", "table", "77"},
		{"blackhole", "10.5.0.0/16"},
	}
	ours := [][]string{
		{"10.244.0.1", "dev", "cali0"},
		{"10.244.1.0/24", "dev", kernel.VXLANDevice, "proto", "static"},
		{"unreachable", "10.244.2.0/24", "proto", "80"},
		{"10.244.3.0/24", "via", "172.30.0.5", "proto", "80"},
		{"10.244.4.0/24", "proto", "80", "nexthop", "via", "172.30.0.5", "nexthop", "via", "172.30.0.6"},
	}
	for _, r := range append(foreign, ours...) {
		h.Exec(append([]string{"ip", "route", "add"}, r...)...)
	}
	list := mustList(t, h.Routes())
	if len(list) != len(ours) {
		t.Errorf("listed %v", list)
	}
	if list[routeKey("10.244.0.1/32", 0)].Protocol != 3 {
		t.Errorf("the plugin's route is not in the list: %v", list)
	}
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{})
	main := h.Exec("ip", "route")
	for _, r := range []string{"10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.5.0.0/16", "10.8.0.0/24"} {
		if !strings.Contains(main, r) {
			t.Errorf("foreign route %s is gone:\n%s", r, main)
		}
	}
	if h.Exec("ip", "route", "show", "table", "77") == "" {
		t.Error("the route of another table is gone")
	}
}

func TestSettingsSayWhoseRoutesAre(t *testing.T) {
	for _, c := range []struct {
		name string
		own  kernel.Ownership
		want []string
	}{
		{"usual", kernel.Ownership{}, []string{"10.0.0.1/32", "10.0.0.80/32"}},
		{"all on workloads' devices", kernel.Ownership{External: true}, []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.80/32"}},
		{"a protocol of their own", kernel.Ownership{Protocol: 90}, []string{"10.0.0.80/32", "10.0.0.90/32"}},
		{"a former protocol", kernel.Ownership{Former: []int{90}}, []string{"10.0.0.1/32", "10.0.0.80/32", "10.0.0.90/32"}},
		{"other prefixes", kernel.Ownership{External: true, Prefixes: []string{"tap", "eth"}}, []string{"10.0.0.3/32", "10.0.0.80/32", "10.0.0.90/32"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			for _, r := range []string{"10.0.0.1 dev cali0", "10.0.0.2 dev cali0 proto static", "10.0.0.3 dev eth0 proto static", "10.0.0.80 dev cali0 proto 80", "10.0.0.90 dev eth0 proto 90"} {
				h.Exec(append([]string{"ip", "route", "add"}, strings.Fields(r)...)...)
			}
			h.Own(c.own)
			var got []string
			for k := range mustList(t, h.Routes()) {
				got = append(got, k.Dst.String())
			}
			slices.Sort(got)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("ours (-want +got):\n%s", d)
			}
		})
	}
}

func TestRoutesAdoptThePluginsRoute(t *testing.T) {
	h := newHost(t)
	h.Exec("ip", "route", "add", "10.244.0.1", "dev", "cali0")
	want := map[kernel.RouteKey]kernel.Route{
		routeKey("10.244.0.1/32", 1024): {Scope: kernel.LinkScope, Dev: h.dev("cali0"), Protocol: 80},
	}
	mustBecome(t, h.Routes(), want)
	if out := h.Exec("ip", "route", "show", "10.244.0.1"); out != "10.244.0.1 dev cali0 proto 80 scope link metric 1024 \n" {
		t.Errorf("got %q", out)
	}
}

func TestRoutesRefuseToOverwriteAForeignRoute(t *testing.T) {
	h := newHost(t)
	h.Exec("ip", "route", "add", "10.244.1.0/26", "via", "172.30.0.7", "proto", "static")
	r := kernel.Route{Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("172.30.0.2"), Onlink: true, Protocol: 80}
	err := h.Routes().Apply(t.Context(), kernel.Diff(nil, map[kernel.RouteKey]kernel.Route{
		routeKey("10.244.1.0/26", 0): r, routeKey("10.244.2.0/26", 0): r,
	}))
	if err == nil || !strings.Contains(err.Error(), "172.30.0.7") {
		t.Errorf("got %v", err)
	}
	keys, all := kernel.Failed[kernel.RouteKey](err)
	if !all || len(keys) != 1 || keys[0] != routeKey("10.244.1.0/26", 0) {
		t.Errorf("failed %v, all %v", keys, all)
	}
	if len(mustList(t, h.Routes())) != 1 {
		t.Error("the other route was not added")
	}
	// One of ours that nobody told us of is no obstacle.
	err = h.Routes().Apply(t.Context(), kernel.Diff(nil, map[kernel.RouteKey]kernel.Route{routeKey("10.244.2.0/26", 0): r}))
	if err != nil {
		t.Error(err)
	}
}

func TestRoutesReplaceInPlace(t *testing.T) {
	h := newHost(t)
	a := kernel.Route{Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("172.30.0.2"), Onlink: true, Protocol: 80}
	b := kernel.Route{Type: kernel.Blackhole, Protocol: 80}
	for _, r := range []kernel.Route{a, b, a} {
		mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{routeKey("10.244.1.0/26", 0): r})
	}
	h.Exec("ip", "route", "replace", "10.244.1.0/26", "via", "172.30.0.9", "proto", "80")
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{routeKey("10.244.1.0/26", 0): a})
	if err := h.Routes().Apply(t.Context(), []kernel.Change[kernel.RouteKey, kernel.Route]{{Key: routeKey("10.250.0.0/26", 0), Old: &a}}); err != nil {
		t.Errorf("to remove what is gone is an error: %v", err)
	}
}

// The tunnel's address of another node is in the block that was routed to the node without a tunnel.
func TestIPv6RouteMovesIntoTheTunnelAndBack(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	h.Exec("ip", "addr", "add", "fd00:1::1/64", "dev", "eth0", "nodad")
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	block := routeKey("fd00:9::40/122", 1024)
	plain := kernel.Route{Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("fd00:1::2"), Onlink: true, Protocol: 80}
	tunnelled := kernel.Route{Dev: h.dev(kernel.VXLANDevice), Gateway: netip.MustParseAddr("fd00:9::41"), Onlink: true, Protocol: 80}
	borrowed := routeKey("fd00:9::83/128", 1024)
	for range 2 {
		mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{block: plain})
		mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{block: plain, borrowed: tunnelled})
		mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{block: tunnelled})
	}
}

func TestThousandsOfRoutesRoundTrip(t *testing.T) {
	h := newHost(t)
	r := kernel.Route{Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("172.30.0.2"), Onlink: true, Protocol: 80}
	want := map[kernel.RouteKey]kernel.Route{}
	for i := range 3000 {
		want[routeKey(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250), 0)] = r
	}
	mustBecome(t, h.Routes(), want)
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{})
}

func TestCanceledWorkStops(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Routes().List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("list: got %v", err)
	}
	err := h.Routes().Apply(ctx, kernel.Diff(nil, map[kernel.RouteKey]kernel.Route{routeKey("10.1.0.0/24", 0): {Type: kernel.Blackhole, Protocol: 80}}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("apply: got %v", err)
	}
	if len(mustList(t, h.Routes())) != 0 {
		t.Error("a route was added")
	}
}
