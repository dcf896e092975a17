package memkernel_test

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/memkernel"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/sysctl"
	"github.com/muslin-cni/muslin/internal/xtables"
)

// subject is a kernel under the suite: a host with an uplink, eth0, that holds 172.30.0.1/24.
type subject struct {
	reconcile.Tables
	add    func(name string) // a device that is up
	remove func(name string)
	host   func() kernel.Host
	rules  nft.Rules
	empty  func(set string) // of the table rulesTable, behind the back of whoever keeps it
}

// each runs a test of the suite on the kernel in memory and on a real one.
func each(t *testing.T, test func(*testing.T, subject)) {
	t.Run("memory", func(t *testing.T) { test(t, inMemory()) })
	t.Run("kernel", func(t *testing.T) {
		nettest.Need(t, "vxlan", "set", "iptables-nft", "ipset")
		ns := nettest.New(t)
		ns.Do(func() { test(t, actual(t, ns)) })
	})
}

func inMemory() subject {
	k := memkernel.New()
	k.AddDevice("eth0", 1500, "")
	k.AddAddr("eth0", netip.MustParsePrefix("172.30.0.1/24"))
	return subject{
		Tables: k.Tables(), remove: k.RemoveDevice,
		add:   func(name string) { k.AddDevice(name, 1500, "veth") },
		host:  func() kernel.Host { h, _ := k.Host(); return h },
		rules: k.Rules(), empty: func(set string) { k.MeddleRules(rulesTable, set) },
	}
}

func actual(t *testing.T, ns *nettest.NS) subject {
	add := func(name string) {
		ns.Exec("ip", "link", "add", name, "type", "veth", "peer", "name", "p"+name)
		ns.Exec("ip", "link", "set", "p"+name, "up")
		ns.Exec("ip", "link", "set", name, "up")
	}
	add("eth0")
	ns.Exec("ip", "addr", "add", "172.30.0.1/24", "dev", "eth0")
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := rtnl.Open()
	must(err)
	t.Cleanup(conn.Close)
	sets, err := xtables.OpenSets()
	must(err)
	t.Cleanup(sets.Close)
	chains, err := xtables.OpenChains(t.Context(), xtables.NFT)
	must(err)
	rules, err := nft.Open()
	must(err)
	t.Cleanup(func() { _ = rules.Close() })
	settings, err := sysctl.Open(sysctl.Root)
	must(err)
	t.Cleanup(func() { _ = settings.Close() })
	return subject{
		Tables: reconcile.Tables{
			Sysctls: settings, Links: conn.Links(), Addrs: conn.Addrs(), Neighs: conn.Neighs(), FDB: conn.FDB(), Sets: sets, Routes: conn.Routes(), Chains: chains,
		},
		add: add, remove: func(name string) { ns.Exec("ip", "link", "del", name) },
		host: func() kernel.Host {
			m, err := rtnl.NewMonitor(t.Context(), conn, slog.New(slog.DiscardHandler))
			must(err)
			return m.Host()
		},
		rules: rules, empty: func(set string) { // past whoever keeps the table, which belongs to the connection
			have, _, err := rules.List(t.Context(), rulesTable)
			must(err)
			d := nftable.Delta{Elems: []nftable.ElemDelta{{Set: have.Sets[set], Del: have.Sets[set].Sorted()}}}
			must(rules.Commit(t.Context(), rulesTable, d, 0))
		},
	}
}

// dev is a device that must be there and up.
func (s subject) dev(t *testing.T, name string) kernel.Dev {
	t.Helper()
	d, up := s.host().Dev(name)
	if !up {
		t.Fatalf("no device %s", name)
	}
	return d
}

// put makes one change and returns its error.
func put[K, V comparable](t *testing.T, table reconcile.Table[K, V], key K, v V) error {
	t.Helper()
	return table.Apply(t.Context(), []kernel.Change[K, V]{{Key: key, New: &v}})
}

func mustPut[K, V comparable](t *testing.T, table reconcile.Table[K, V], key K, v V) {
	t.Helper()
	if err := put(t, table, key, v); err != nil {
		t.Fatal(err)
	}
}

func mustDrop[K, V comparable](t *testing.T, table reconcile.Table[K, V], key K, old V) {
	t.Helper()
	if err := table.Apply(t.Context(), []kernel.Change[K, V]{{Key: key, Old: &old}}); err != nil {
		t.Fatal(err)
	}
}

// holds fails the test unless a table lists just this, in its own words.
func holds[K, V comparable](t *testing.T, table reconcile.Table[K, V], want map[K]V) {
	t.Helper()
	have, err := table.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same := func(_ K, a, b V) bool { return a == b }
	if s, ok := table.(interface{ Same(K, V, V) bool }); ok {
		same = s.Same
	}
	for _, c := range kernel.DiffFunc(have, want, same) {
		t.Errorf("%v is %v, want %v", c.Key, c.Old, c.New)
	}
}

// lives goes through the life of one object: made, made again, replaced, removed, removed again.
func lives[K, V comparable](t *testing.T, table reconcile.Table[K, V], key K, first, second V) {
	t.Helper()
	before, err := table.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	with := func(v V) map[K]V {
		out := map[K]V{key: v}
		for k, old := range before {
			if k != key {
				out[k] = old
			}
		}
		return out
	}
	mustPut(t, table, key, first)
	mustPut(t, table, key, first)
	holds(t, table, with(first))
	if err := table.Apply(t.Context(), []kernel.Change[K, V]{{Key: key, Old: &first, New: &second}}); err != nil {
		t.Fatal(err)
	}
	holds(t, table, with(second))
	mustDrop(t, table, key, second)
	mustDrop(t, table, key, second)
	holds(t, table, before)
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

var blackhole = kernel.Route{Type: kernel.Blackhole, Protocol: kernel.RouteProtocol}

// vxlan is the device that these tests make, over eth0.
func (s subject) vxlan(t *testing.T, mtu int) kernel.Link {
	return kernel.Link{Type: kernel.VXLAN, VNI: 4096, Port: 4789, Local: addr("172.30.0.1"), Parent: s.dev(t, "eth0"), MAC: kernel.MAC{0x66, 1}, MTU: mtu}
}

// tunnel makes the device and gives it an address.
func (s subject) tunnel(t *testing.T) kernel.Dev {
	t.Helper()
	mustPut(t, s.Links, kernel.VXLANDevice, s.vxlan(t, 1450))
	mustPut(t, s.Addrs, kernel.AddrKey{Link: kernel.VXLANDevice, Addr: prefix("10.244.0.0/32")}, struct{}{})
	return s.dev(t, kernel.VXLANDevice)
}

func TestObjectIsMadeReplacedAndRemovedAsOftenAsAsked(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		vx := s.tunnel(t)
		eth0 := s.dev(t, "eth0")
		lives(t, s.Routes, kernel.RouteKey{Dst: prefix("10.244.1.0/26")}, blackhole,
			kernel.Route{Dev: eth0, Gateway: addr("172.30.0.2"), Onlink: true, Protocol: kernel.RouteProtocol})
		lives(t, s.Neighs, kernel.NeighKey{Dev: vx, Addr: addr("10.244.1.0")}, kernel.MAC{0x66, 2}, kernel.MAC{0x66, 3})
		lives(t, s.FDB, kernel.FDBKey{Dev: vx, MAC: kernel.MAC{0x66, 2}}, addr("172.30.0.2"), addr("172.30.0.3"))
		lives(t, s.Addrs, kernel.AddrKey{Link: kernel.VXLANDevice, Addr: prefix("10.244.9.9/32")}, struct{}{}, struct{}{})
		lives(t, s.Sets, "cali40pools", kernel.Set{Members: "10.244.0.0/16"}, kernel.Set{Members: "10.244.0.0/16,10.245.0.0/16"})
		lives(t, s.Chains, kernel.ChainKey{Table: "filter", Chain: "cali-FORWARD"}, kernel.Chain{Rules: "-m mark --mark 0x1/0x1 -j ACCEPT"}, kernel.Chain{Rules: "-j DROP"})
		mustDrop(t, s.Addrs, kernel.AddrKey{Link: kernel.VXLANDevice, Addr: prefix("10.244.0.0/32")}, struct{}{})
		mustDrop(t, s.Links, kernel.VXLANDevice, s.vxlan(t, 1450))
		lives(t, s.Links, kernel.VXLANDevice, s.vxlan(t, 1450), s.vxlan(t, 1400))
	})
}

func TestFailureIsNamedAndStopsNothingElse(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		nowhere := kernel.RouteKey{Dst: prefix("10.244.1.0/26")}
		fine := kernel.RouteKey{Dst: prefix("10.244.2.0/26")}
		err := s.Routes.Apply(t.Context(), []kernel.Change[kernel.RouteKey, kernel.Route]{
			{Key: nowhere, New: &kernel.Route{Dev: kernel.Dev{Name: "cali0", Index: 9999}, Scope: kernel.LinkScope, Protocol: kernel.RouteProtocol}}, {Key: fine, New: &blackhole},
		})
		failed, all := kernel.Failed[kernel.RouteKey](err)
		if !all || !cmp.Equal([]kernel.RouteKey{nowhere}, failed, cmp.Comparer(func(a, b kernel.RouteKey) bool { return a == b })) {
			t.Errorf("failed %v (%t): %v", failed, all, err)
		}
		holds(t, s.Routes, map[kernel.RouteKey]kernel.Route{fine: blackhole})
		if err := put(t, s.Neighs, kernel.NeighKey{Dev: kernel.Dev{Name: "cali0", Index: 9999}, Addr: addr("10.244.0.5")}, kernel.MAC{2, 5}); err == nil {
			t.Error("a neighbour stands on a device that does not exist")
		}
		if err := put(t, s.Addrs, kernel.AddrKey{Link: kernel.VXLANDevice, Addr: prefix("10.244.0.0/32")}, struct{}{}); err == nil {
			t.Error("an address stands on a device that does not exist")
		}
	})
}

func TestDeviceTakesWithItWhatHangsOnIt(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		s.add("cali0")
		vx, pod := s.tunnel(t), s.dev(t, "cali0")
		local, remote, stays := kernel.RouteKey{Dst: prefix("10.244.0.5/32"), Metric: 1024}, kernel.RouteKey{Dst: prefix("10.244.1.0/26")}, kernel.RouteKey{Dst: prefix("10.244.0.0/26")}
		mustPut(t, s.Routes, stays, blackhole)
		mustPut(t, s.Routes, local, kernel.Route{Scope: kernel.LinkScope, Dev: pod, Protocol: kernel.RouteProtocol})
		mustPut(t, s.Routes, remote, kernel.Route{Dev: vx, Gateway: addr("10.244.1.0"), Onlink: true, Protocol: kernel.RouteProtocol})
		mustPut(t, s.Neighs, kernel.NeighKey{Dev: pod, Addr: addr("10.244.0.5")}, kernel.MAC{2, 5})
		mustPut(t, s.Neighs, kernel.NeighKey{Dev: vx, Addr: addr("10.244.1.0")}, kernel.MAC{0x66, 2})
		mustPut(t, s.FDB, kernel.FDBKey{Dev: vx, MAC: kernel.MAC{0x66, 2}}, addr("172.30.0.2"))
		s.remove("cali0")
		mustDrop(t, s.Links, kernel.VXLANDevice, s.vxlan(t, 1450))
		holds(t, s.Routes, map[kernel.RouteKey]kernel.Route{stays: blackhole})
		holds(t, s.Neighs, nil)
		holds(t, s.FDB, nil)
		holds(t, s.Addrs, nil)
		s.add("cali0")
		if again := s.dev(t, "cali0"); again.Index == pod.Index {
			t.Errorf("a device that was made anew has the old one's index, %d", pod.Index)
		}
	})
}

func TestChangedDeviceIsAnotherOneUnlessOnlyItsMTUIs(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		before := s.tunnel(t)
		mustPut(t, s.Links, kernel.VXLANDevice, s.vxlan(t, 1400))
		if now := s.dev(t, kernel.VXLANDevice); now != before || s.host().Links[kernel.VXLANDevice].MTU != 1400 {
			t.Errorf("with another MTU: %+v was %+v; %+v", now, before, s.host().Links[kernel.VXLANDevice])
		}
		other := s.vxlan(t, 1400)
		other.VNI = 4097
		mustPut(t, s.Links, kernel.VXLANDevice, other)
		holds(t, s.Links, map[string]kernel.Link{kernel.VXLANDevice: other})
		if now := s.dev(t, kernel.VXLANDevice); now == before {
			t.Error("with another network identifier it is still the same device")
		}
		holds(t, s.Addrs, nil)
	})
}

func TestLastAddressTakesRoutesAndNeighboursAlong(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		vx := s.tunnel(t)
		first, second := kernel.AddrKey{Link: kernel.VXLANDevice, Addr: prefix("10.244.0.0/32")}, kernel.AddrKey{Link: kernel.VXLANDevice, Addr: prefix("10.244.0.9/32")}
		route := kernel.Route{Dev: vx, Gateway: addr("10.244.1.0"), Onlink: true, Protocol: kernel.RouteProtocol}
		neigh := kernel.NeighKey{Dev: vx, Addr: addr("10.244.1.0")}
		mustPut(t, s.Addrs, second, struct{}{})
		mustPut(t, s.Neighs, neigh, kernel.MAC{0x66, 2})
		mustPut(t, s.Routes, kernel.RouteKey{Dst: prefix("10.244.1.0/26")}, route)
		mustDrop(t, s.Addrs, first, struct{}{})
		holds(t, s.Routes, map[kernel.RouteKey]kernel.Route{{Dst: prefix("10.244.1.0/26")}: route})
		holds(t, s.Neighs, map[kernel.NeighKey]kernel.MAC{neigh: {0x66, 2}})
		mustDrop(t, s.Addrs, second, struct{}{})
		holds(t, s.Routes, nil)
		holds(t, s.Neighs, nil)
	})
}

func TestSettingsOfADeviceGoWithIt(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		s.add("cali0")
		read := s.Sysctls.(interface {
			Read(ctx context.Context, keys []kernel.SysctlKey) (map[kernel.SysctlKey]string, error)
		})
		expect := func(want map[kernel.SysctlKey]string, keys ...kernel.SysctlKey) {
			t.Helper()
			have, err := read.Read(t.Context(), keys)
			if err != nil || !maps.Equal(have, want) {
				t.Errorf("read %v (%v), want %v", have, err, want)
			}
		}
		here := kernel.SysctlKey{Path: "net/ipv4/conf/cali0/proxy_arp", Index: s.dev(t, "cali0").Index}
		nowhere := kernel.SysctlKey{Path: "net/ipv4/conf/cali9/proxy_arp", Index: 9999}
		expect(map[kernel.SysctlKey]string{here: "0"}, here, nowhere)
		mustPut(t, s.Sysctls, here, "1")
		mustPut(t, s.Sysctls, nowhere, "1")
		expect(map[kernel.SysctlKey]string{here: "1"}, here, nowhere)
		s.remove("cali0")
		expect(map[kernel.SysctlKey]string{}, here)
		s.add("cali0")
		expect(map[kernel.SysctlKey]string{here: "0"}, here)
	})
}
