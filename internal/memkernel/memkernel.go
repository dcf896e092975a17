// Package memkernel is a host's kernel in memory, as far as an agent writes it, for tests that need thousands of them.
//
// The goals, and how each is met:
//
//  1. It is the kernel to whoever works on reconcile's tables: the package's tests hold it and a real network namespace to one suite. What hangs on a
//     device needs the device and goes with it; what is made under an old name is another device; the last IPv4 address takes routes along.
//  2. It is deterministic: it has no clock, starts no goroutine, and nothing in it depends on the order of a map.
//  3. It can be made to fail: one object at a time (Refuse), and others may write what they like past the tables (Meddle).
//
// It knows the devices of VXLAN and IP-in-IP, tables of nftables by what is read back of them, and what is there when a host starts. It has no second routing table and no packets.
package memkernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

// Kernel is one host's. All methods may be called concurrently.
type Kernel struct {
	mu     sync.Mutex
	host   kernel.Host
	facts  uint64
	last   int // index of a device
	events kernel.Events
	refuse func(table reconcile.Name, object string) error
	writes int

	sysctls map[string]string // by path
	links   map[string]kernel.Link
	addrs   map[kernel.AddrKey]struct{}
	neighs  map[kernel.NeighKey]kernel.MAC
	fdb     map[kernel.FDBKey]netip.Addr
	sets    map[kernel.SetKey]kernel.Set
	routes  map[kernel.RouteKey]kernel.Route
	chains  map[kernel.ChainKey]kernel.Chain
	chains6 map[kernel.ChainKey]kernel.Chain

	rules      map[string]nftable.Listing // of nftables, by table
	generation uint32                     // of these
}

// New is the kernel of a host that has just started: nothing in it but the loopback device.
func New() *Kernel {
	k := &Kernel{
		host: kernel.Host{Links: map[string]kernel.HostLink{}}, events: kernel.NewEvents(),
		sysctls: map[string]string{}, links: map[string]kernel.Link{}, addrs: map[kernel.AddrKey]struct{}{}, neighs: map[kernel.NeighKey]kernel.MAC{},
		fdb: map[kernel.FDBKey]netip.Addr{}, sets: map[kernel.SetKey]kernel.Set{}, routes: map[kernel.RouteKey]kernel.Route{},
		chains: map[kernel.ChainKey]kernel.Chain{}, chains6: map[kernel.ChainKey]kernel.Chain{},
		rules: map[string]nftable.Listing{}, generation: 1,
	}
	k.AddDevice("lo", 65536, "")
	return k
}

// AddDevice makes a device that is up, of a kind as kernel.HostLink names it. One that exists stays as it is.
func (k *Kernel) AddDevice(name string, mtu int, kind string) kernel.Dev {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l, ok := k.host.Links[name]; ok {
		return kernel.Dev{Name: name, Index: l.Index}
	}
	return k.appear(name, mtu, kernel.MAC{}, kind)
}

// AddAddr gives a device an address that is not the agent's.
func (k *Kernel) AddAddr(dev string, addr netip.Prefix) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.host.Addrs = append(slices.Clone(k.host.Addrs), kernel.HostAddr{Dev: dev, Addr: addr})
	k.facts++
}

// RemoveDevice takes a device away, and with it what hangs on it. It does nothing if there is none.
func (k *Kernel) RemoveDevice(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.vanish(name)
}

// Names are the names of all devices.
func (k *Kernel) Names() map[string]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]bool{}
	for name := range k.host.Links {
		out[name] = true
	}
	return out
}

// Host is what the kernel says about itself, and a number that is another one when that has changed. Do not modify it.
func (k *Kernel) Host() (kernel.Host, uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.host, k.facts
}

// Events are what has happened since the last call.
func (k *Kernel) Events() kernel.Events {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.events
	k.events = kernel.NewEvents()
	return e
}

// Writes counts the objects that tables were asked to write.
func (k *Kernel) Writes() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.writes
}

// Refuse lets why decide of each object that a table is to write: an error is the table's failure to write it. nil: nothing is refused.
func (k *Kernel) Refuse(why func(table reconcile.Name, object string) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse = why
}

// State is a copy of all that the tables hold, settings left out that nobody has written.
func (k *Kernel) State() kernel.State {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := kernel.State{
		Sysctls: map[kernel.SysctlKey]string{}, Links: maps.Clone(k.links), Addrs: maps.Clone(k.addrs), Neighs: maps.Clone(k.neighs), FDB: maps.Clone(k.fdb),
		Routes: maps.Clone(k.routes), Sets: maps.Clone(k.sets), Chains: maps.Clone(k.chains), Chains6: maps.Clone(k.chains6),
	}
	for path, v := range k.sysctls {
		s.Sysctls[kernel.SysctlKey{Path: path, Index: k.host.Links[deviceOf(path)].Index}] = v
	}
	return s
}

// Routes is how many routes there are, and those of the main table.
func (k *Kernel) Routes() map[kernel.RouteKey]kernel.Route {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.routes)
}

// MeddleRoute writes or, with nil, removes a route as another program would that uses our marks. The kernel reports it.
func (k *Kernel) MeddleRoute(key kernel.RouteKey, to *kernel.Route) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if to == nil {
		delete(k.routes, key)
	} else {
		k.routes[key] = *to
	}
	k.events.Routes[key] = to
}

// MeddleNeigh is MeddleRoute for a neighbour's entry.
func (k *Kernel) MeddleNeigh(key kernel.NeighKey, to *kernel.MAC) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if to == nil {
		delete(k.neighs, key)
	} else {
		k.neighs[key] = *to
	}
	k.events.Neighs[key] = to
}

// MeddleSet changes a set behind everybody's back: no event tells of it.
func (k *Kernel) MeddleSet(key kernel.SetKey, to kernel.Set) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sets[key] = to
}

// appear makes a device.
func (k *Kernel) appear(name string, mtu int, mac kernel.MAC, kind string) kernel.Dev {
	k.last++
	k.host.Links = maps.Clone(k.host.Links)
	k.host.Links[name] = kernel.HostLink{Index: k.last, MTU: mtu, MAC: mac, Kind: kind, Up: true, Live: true}
	k.facts++
	return kernel.Dev{Name: name, Index: k.last}
}

// vanish takes a device with all that hangs on it.
func (k *Kernel) vanish(name string) {
	l, ok := k.host.Links[name]
	if !ok {
		return
	}
	k.host.Links = maps.Clone(k.host.Links)
	delete(k.host.Links, name)
	k.host.Addrs = slices.DeleteFunc(slices.Clone(k.host.Addrs), func(a kernel.HostAddr) bool { return a.Dev == name })
	k.facts++
	maps.DeleteFunc(k.routes, func(_ kernel.RouteKey, r kernel.Route) bool { return r.On(l.Index) })
	maps.DeleteFunc(k.neighs, func(n kernel.NeighKey, _ kernel.MAC) bool { return n.Dev.Index == l.Index })
	maps.DeleteFunc(k.fdb, func(f kernel.FDBKey, _ netip.Addr) bool { return f.Dev.Index == l.Index })
	maps.DeleteFunc(k.addrs, func(a kernel.AddrKey, _ struct{}) bool { return a.Link == name })
	maps.DeleteFunc(k.sysctls, func(path, _ string) bool { return deviceOf(path) == name })
	if _, ours := k.links[name]; ours {
		delete(k.links, name)
		k.events.Links[name] = nil
	}
	k.events.Gone = append(k.events.Gone, kernel.Dev{Name: name, Index: l.Index})
	for n := range k.links { // VXLAN goes with the device below it
		if k.links[n].Parent.Index == l.Index {
			k.vanish(n)
		}
	}
}

// there says what is missing where an object is to hang on a device.
func (k *Kernel) there(d kernel.Dev) error {
	if l, ok := k.host.Links[d.Name]; !ok || l.Index != d.Index {
		return fmt.Errorf("device %s (%d): no such device", d.Name, d.Index)
	}
	return nil
}

// deviceOf is the device that a setting is of; "" if it is the whole host's.
func deviceOf(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[3] == "all" || parts[3] == "default" {
		return ""
	}
	return parts[3]
}
