package rtnl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// watch starts a monitor of the host, ends it with the test, and discards what it reports at the start.
func watch(t *testing.T, h host) *Monitor {
	t.Helper()
	var m *Monitor
	var err error
	h.NS.Do(func() { m, err = NewMonitor(t.Context(), h.Conn, slog.New(slog.DiscardHandler)) })
	if err != nil {
		t.Fatal(err)
	}
	run(t, m)
	if !m.Events().Lost {
		t.Error("a new monitor does not say that everything must be listed")
	}
	return m
}

func TestHostFollowsTheKernel(t *testing.T) {
	h := newHost(t)
	m := watch(t, h)
	first := m.Host()
	eth0 := first.Links["eth0"]
	if !eth0.Up || eth0.Kind != "veth" || eth0.MTU != 1500 || eth0.Index != h.Index("eth0") || eth0.MAC == (kernel.MAC{}) {
		t.Fatalf("eth0: %+v", eth0)
	}
	if !slices.Contains(first.Addrs, kernel.HostAddr{Dev: "eth0", Addr: netip.MustParsePrefix("172.30.0.1/24")}) {
		t.Fatalf("addresses: %v", first.Addrs)
	}
	h.Exec("ip", "link", "set", "eth0", "mtu", "1400")
	h.Exec("ip", "addr", "add", "172.31.0.1/16", "dev", "eth0")
	h.Exec("ip", "link", "add", "d0", "type", "bridge")
	nettest.Eventually(t, func() error {
		now := m.Host()
		_, isNew := now.Links["d0"]
		_, held := now.Holder(netip.MustParseAddr("172.31.0.1"))
		if now.Links["eth0"].MTU != 1400 || !isNew || !held {
			return fmt.Errorf("got %+v", now)
		}
		return nil
	})
	if _, ok := first.Links["d0"]; ok || first.Links["eth0"].MTU != 1500 {
		t.Error("an old snapshot has changed")
	}
	h.Exec("ip", "link", "set", "d0", "name", "d1")
	h.Exec("ip", "addr", "del", "172.31.0.1/16", "dev", "eth0")
	nettest.Eventually(t, func() error {
		now := m.Host()
		_, old := now.Links["d0"]
		_, renamed := now.Links["d1"]
		if _, held := now.Holder(netip.MustParseAddr("172.31.0.1")); held || old || !renamed {
			return fmt.Errorf("got %+v", now)
		}
		return nil
	})
	h.Exec("ip", "link", "del", "d1")
	nettest.Eventually(t, func() error {
		if _, ok := m.Host().Links["d1"]; ok {
			return errors.New("d1 is still there")
		}
		return nil
	})
}

func TestTemporaryAddressesAreKnownAsSuch(t *testing.T) {
	h := newHost(t)
	m := watch(t, h)
	h.Exec("sh", "-c", "echo 2 >/proc/sys/net/ipv6/conf/eth0/use_tempaddr")
	h.Exec("ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad", "mngtmpaddr")
	nettest.Eventually(t, func() error {
		kinds := map[bool]int{}
		for _, a := range m.Host().Addrs {
			if netip.MustParsePrefix("2001:db8::/64").Contains(a.Addr.Addr()) {
				kinds[a.Temporary]++
			}
		}
		if kinds[true] != 1 || kinds[false] != 1 {
			return fmt.Errorf("addresses: %+v", m.Host().Addrs)
		}
		return nil
	})
}

func TestDeviceWithoutCarrierIsUpAndNotLive(t *testing.T) {
	h, peer := newHost(t), nettest.New(t)
	nettest.Pair(h.NS, "eth1", peer, "eth1")
	m := watch(t, h)
	peer.Exec("ip", "link", "set", "eth1", "down")
	nettest.Eventually(t, func() error {
		if l := m.Host().Links["eth1"]; l.Live || !l.Up {
			return fmt.Errorf("eth1, whose peer is down: %+v; want it up and not live", l)
		}
		return nil
	})
	if !m.Host().Links["lo"].Live {
		t.Error("lo, whose carrier is unknown, is not live")
	}
}

func TestChangedWakesOnceForManyChanges(t *testing.T) {
	m := &Monitor{changed: make(chan struct{}, 1)}
	m.wake()
	m.wake() // must not block
	if got := len(m.Changed()); got != 1 {
		t.Errorf("%d values wait, want 1", got)
	}
}

// seen polls until the events, collected over several calls, satisfy ok.
func seen(t *testing.T, m *Monitor, what string, ok func(kernel.Events) bool) {
	t.Helper()
	nettest.Eventually(t, func() error {
		if e := m.Events(); !ok(e) {
			return fmt.Errorf("no event of %s; the latest: %+v", what, e)
		}
		return nil
	})
}

func TestEventsReportOurObjectsAlone(t *testing.T) {
	h := newHost(t)
	m := watch(t, h)
	h.Exec("ip", "route", "add", "10.1.0.0/16", "via", "172.30.0.5")
	h.Exec("ip", "neigh", "add", "172.30.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent")
	h.Exec("ip", "route", "add", "10.244.1.0/24", "via", "172.30.0.5", "proto", "80")
	key := routeKey("10.244.1.0/24", 0)
	want := kernel.Route{Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("172.30.0.5"), Protocol: 80}
	seen(t, m, "our new route", func(e kernel.Events) bool {
		if len(e.Neighs) > 0 || e.Routes[routeKey("10.1.0.0/16", 0)] != nil {
			t.Fatalf("a foreign object is reported: %+v", e)
		}
		return e.Routes[key] != nil && *e.Routes[key] == want
	})
	h.Exec("ip", "route", "replace", "10.244.1.0/24", "via", "172.30.0.6", "proto", "static")
	seen(t, m, "a foreign route in our route's place", func(e kernel.Events) bool {
		r, reported := e.Routes[key]
		return reported && r == nil
	})
	h.Exec("ip", "route", "add", "10.244.2.0/24", "via", "172.30.0.5", "proto", "80")
	h.Exec("ip", "route", "del", "10.244.2.0/24")
	seen(t, m, "our removed route", func(e kernel.Events) bool {
		r, reported := e.Routes[routeKey("10.244.2.0/24", 0)]
		return reported && r == nil
	})
}

func TestEventsReportNeighboursForwardingAndAddresses(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	m := watch(t, h)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	seen(t, m, "the new device", func(e kernel.Events) bool {
		l := e.Links[kernel.VXLANDevice]
		return l != nil && *l == h.tunnel()
	})
	dev := h.dev(kernel.VXLANDevice)
	neigh := kernel.NeighKey{Dev: dev, Addr: netip.MustParseAddr("10.244.1.0")}
	fdb := kernel.FDBKey{Dev: dev, MAC: kernel.MAC{0x66, 1}}
	addr := kernel.AddrKey{Link: dev.Name, Addr: netip.MustParsePrefix("10.244.0.0/32")}
	mustBecome(t, h.Neighs(), map[kernel.NeighKey]kernel.MAC{neigh: {0x66, 1}})
	seen(t, m, "the new neighbour", func(e kernel.Events) bool { return e.Neighs[neigh] != nil })
	mustBecome(t, h.FDB(), map[kernel.FDBKey]netip.Addr{fdb: netip.MustParseAddr("172.30.0.2")})
	seen(t, m, "the new forwarding entry", func(e kernel.Events) bool { return e.FDB[fdb] != nil })
	mustBecome(t, h.Addrs(), map[kernel.AddrKey]struct{}{addr: {}})
	seen(t, m, "the new address", func(e kernel.Events) bool { return e.Addrs[addr] != nil })

	h.Exec("ip", "neigh", "del", "10.244.1.0", "dev", dev.Name)
	seen(t, m, "the removed neighbour", func(e kernel.Events) bool { x, ok := e.Neighs[neigh]; return ok && x == nil })
	h.Exec("ip", "neigh", "add", "10.244.9.9", "lladdr", "66:09:00:00:00:00", "dev", dev.Name, "nud", "reachable")
	h.Exec("ip", "neigh", "add", "10.244.9.8", "lladdr", "66:09:00:00:00:00", "dev", dev.Name, "nud", "permanent")
	seen(t, m, "the last neighbour", func(e kernel.Events) bool {
		if _, reported := e.Neighs[kernel.NeighKey{Dev: dev, Addr: netip.MustParseAddr("10.244.9.9")}]; reported {
			t.Error("a neighbour that is not permanent is reported")
		}
		return e.Neighs[kernel.NeighKey{Dev: dev, Addr: netip.MustParseAddr("10.244.9.8")}] != nil
	})
	h.Exec("bridge", "fdb", "del", "66:01:00:00:00:00", "dev", dev.Name, "dst", "172.30.0.2")
	seen(t, m, "the removed forwarding entry", func(e kernel.Events) bool { x, ok := e.FDB[fdb]; return ok && x == nil })
	h.Exec("ip", "addr", "del", "10.244.0.0/32", "dev", dev.Name)
	seen(t, m, "the removed address", func(e kernel.Events) bool { x, ok := e.Addrs[addr]; return ok && x == nil && e.RoutesLost })
}

func TestEventsReportSettings(t *testing.T) {
	h := newHost(t)
	m := watch(t, h)
	write := func(path, value string) { h.Exec("sh", "-c", "echo "+value+" >/proc/sys/"+path) }
	write("net/ipv4/conf/eth0/proxy_arp", "1") // not ours
	cali0 := h.Index("cali0")
	for path, index := range map[string]int{
		"net/ipv4/conf/cali0/proxy_arp": cali0, "net/ipv4/conf/cali0/rp_filter": cali0, "net/ipv4/conf/cali0/forwarding": cali0,
		"net/ipv6/conf/cali0/proxy_ndp": cali0, "net/ipv6/conf/cali0/forwarding": cali0,
		"net/ipv4/ip_forward": 0, "net/ipv6/conf/all/forwarding": 0,
	} {
		key := kernel.SysctlKey{Path: path, Index: index}
		for _, value := range []string{"1", "0"} {
			write(path, "1")
			write(path, value)
			seen(t, m, path+" = "+value, func(e kernel.Events) bool {
				for k := range e.Sysctls {
					if k.Index != cali0 && k.Index != 0 {
						t.Errorf("%+v is reported", k)
					}
				}
				return e.Sysctls[key] == value
			})
		}
		write(path, "0")
	}
}

func TestFactsHaveANumberThatMovesWithThem(t *testing.T) {
	h := newHost(t)
	m := watch(t, h)
	var first uint64
	routes := 0
	nettest.Eventually(t, func() error { // a new device's carrier and link-local address are facts that come when they come
		_, first = m.Facts()
		routes++
		h.Exec("ip", "route", "add", fmt.Sprintf("10.244.%d.0/24", routes), "via", "172.30.0.5", "proto", "80")
		seen(t, m, "a route", func(e kernel.Events) bool { return len(e.Routes) > 0 })
		if _, now := m.Facts(); now != first {
			return fmt.Errorf("the number moved from %d to %d with a route, which is no fact", first, now)
		}
		return nil
	})
	h.Exec("ip", "link", "set", "eth0", "mtu", "1400")
	nettest.Eventually(t, func() error {
		if facts, now := m.Facts(); now == first || facts.Links["eth0"].MTU != 1400 {
			return fmt.Errorf("number %d", now)
		}
		return nil
	})
}

func TestEventsReportDevicesThatTakeThingsWithThem(t *testing.T) {
	h := newHost(t)
	cali0 := h.dev("cali0")
	m := watch(t, h)
	h.Exec("ip", "link", "set", "cali0", "down")
	seen(t, m, "the device that was set down", func(e kernel.Events) bool { return slices.Contains(e.Down, cali0) })
	h.Exec("ip", "link", "del", "cali0")
	seen(t, m, "the removed device", func(e kernel.Events) bool { return slices.Contains(e.Gone, cali0) })
}

// overflown is a monitor that does not run yet and whose socket has lost events of addresses: it holds 172.31.0.1 to 172.31.0.50.
func overflown(t *testing.T, h host) *Monitor {
	t.Helper()
	var m *Monitor
	var err error
	h.NS.Do(func() { m, err = NewMonitor(t.Context(), h.Conn, slog.New(slog.DiscardHandler)) })
	if err != nil {
		t.Fatal(err)
	}
	m.Events()
	if err := m.s.resize(1); err != nil { // the kernel's minimum: a handful of events
		t.Fatal(err)
	}
	for i := range 50 {
		h.Exec("ip", "addr", "add", fmt.Sprintf("172.31.0.%d/32", i+1), "dev", "eth0")
	}
	return m
}

// run runs a monitor until the test ends.
func run(t *testing.T, m *Monitor) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("monitor ended: %v", err)
		}
	})
}

// knows waits until the monitor knows an address.
func knows(t *testing.T, m *Monitor, addr string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		if _, ok := m.Host().Holder(netip.MustParseAddr(addr)); !ok {
			return fmt.Errorf("%s is unknown", addr)
		}
		return nil
	})
}

func TestLostEventsAreMadeUpFor(t *testing.T) {
	h := newHost(t)
	m := overflown(t, h)
	run(t, m)
	knows(t, m, "172.31.0.50")
	if !m.Events().Lost {
		t.Error("lost events are not reported")
	}
}

// The kernel drops every further event until the socket has been read empty, and does not say so again.
func TestWhatHappensRightAfterALossIsSeen(t *testing.T) {
	h := newHost(t)
	m := overflown(t, h)
	if _, err := m.s.receive(); !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("the socket says %v, want that events were lost", err)
	}
	if err := m.startOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Exec("ip", "addr", "add", "172.31.1.1/32", "dev", "eth0")
	run(t, m)
	knows(t, m, "172.31.1.1")
}

func TestDeviceThatIsRenamedAwayIsGone(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	mustBecome(t, h.Links(), map[string]kernel.Link{kernel.VXLANDevice: h.tunnel()})
	m := watch(t, h)
	h.Exec("ip", "link", "set", kernel.VXLANDevice, "name", "stolen")
	seen(t, m, "the device that lost its name", func(e kernel.Events) bool {
		l, reported := e.Links[kernel.VXLANDevice]
		return reported && l == nil && e.Lost // its addresses and entries have another device now
	})
}

func TestEventsThatNobodyFetchesAreBounded(t *testing.T) {
	m := &Monitor{changed: make(chan struct{}, 1), devices: map[int]device{}, events: kernel.NewEvents()}
	for i := range 3 * maxEvents {
		m.devices[i] = device{name: "d", host: kernel.HostLink{Index: i}}
		m.linkGone(m.devices[i])
		m.bound()
	}
	if e := m.Events(); !e.Lost || len(e.Gone) > maxEvents {
		t.Errorf("lost %v, %d devices gone; want a loss and at most %d", e.Lost, len(e.Gone), maxEvents)
	}
}
