package memkernel

import (
	"context"
	"fmt"
	"maps"
	"net/netip"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

// Tables are the kernel's tables.
func (k *Kernel) Tables() reconcile.Tables {
	return reconcile.Tables{
		Sysctls: settings{k},
		Links:   links{k},
		Addrs:   table[kernel.AddrKey, struct{}]{k: k, name: reconcile.Addrs, held: func() map[kernel.AddrKey]struct{} { return k.addrs }, put: k.putAddr, drop: k.dropAddr},
		Neighs: table[kernel.NeighKey, kernel.MAC]{
			k: k, name: reconcile.Neighs, held: func() map[kernel.NeighKey]kernel.MAC { return k.neighs },
			put:  func(n kernel.NeighKey, _ kernel.MAC) error { return k.there(n.Dev) },
			told: func(n kernel.NeighKey, m *kernel.MAC) { k.events.Neighs[n] = m },
		},
		FDB: table[kernel.FDBKey, netip.Addr]{
			k: k, name: reconcile.FDB, held: func() map[kernel.FDBKey]netip.Addr { return k.fdb },
			put:  func(f kernel.FDBKey, _ netip.Addr) error { return k.there(f.Dev) },
			told: func(f kernel.FDBKey, a *netip.Addr) { k.events.FDB[f] = a },
		},
		Sets: table[kernel.SetKey, kernel.Set]{k: k, name: reconcile.Sets, held: func() map[kernel.SetKey]kernel.Set { return k.sets }},
		Routes: table[kernel.RouteKey, kernel.Route]{
			k: k, name: reconcile.Routes, held: func() map[kernel.RouteKey]kernel.Route { return k.routes }, put: k.putRoute,
			told: func(key kernel.RouteKey, r *kernel.Route) { k.events.Routes[key] = r },
		},
		Chains:  table[kernel.ChainKey, kernel.Chain]{k: k, name: reconcile.Chains, held: func() map[kernel.ChainKey]kernel.Chain { return k.chains }},
		Chains6: table[kernel.ChainKey, kernel.Chain]{k: k, name: reconcile.Chains6, held: func() map[kernel.ChainKey]kernel.Chain { return k.chains6 }},
	}
}

// table is a reconcile.Table of objects that are kept as they are written. Its functions are called with the kernel locked; nil ones do nothing.
type table[K, V comparable] struct {
	k    *Kernel
	name reconcile.Name
	held func() map[K]V
	put  func(K, V) error // whether the object may be, before it is
	drop func(K)          // what goes with one that is removed, after it is
	told func(K, *V)      // an event
}

// List implements reconcile.Table.
func (t table[K, V]) List(context.Context) (map[K]V, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return maps.Clone(t.held()), nil
}

// Apply implements reconcile.Table.
func (t table[K, V]) Apply(_ context.Context, changes []kernel.Change[K, V]) error {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return kernel.Each(changes, func(c kernel.Change[K, V]) error {
		if err := t.k.may(t.name, c.Key); err != nil {
			return err
		}
		if c.New == nil {
			if _, there := t.held()[c.Key]; !there {
				return nil
			}
			delete(t.held(), c.Key)
			if t.drop != nil {
				t.drop(c.Key)
			}
			t.tell(c.Key, nil)
			return nil
		}
		if t.put != nil {
			if err := t.put(c.Key, *c.New); err != nil {
				return fmt.Errorf("write %v: %w", c.Key, err)
			}
		}
		t.held()[c.Key] = *c.New
		t.tell(c.Key, c.New)
		return nil
	})
}

func (t table[K, V]) tell(key K, v *V) {
	if t.told != nil {
		t.told(key, v)
	}
}

// may counts a write and asks whether it is refused.
func (k *Kernel) may(name reconcile.Name, key any) error {
	k.writes++
	if k.refuse == nil {
		return nil
	}
	return k.refuse(name, fmt.Sprint(key))
}

func (k *Kernel) putRoute(_ kernel.RouteKey, r kernel.Route) error {
	if r.Type == kernel.Blackhole {
		return nil
	}
	return k.there(r.Dev)
}

func (k *Kernel) putAddr(a kernel.AddrKey, _ struct{}) error {
	if _, ok := k.host.Links[a.Link]; !ok {
		return fmt.Errorf("device %s: no such device", a.Link)
	}
	k.events.Addrs[a] = &struct{}{}
	if _, has := k.addrs[a]; !has {
		k.host.Addrs = append(k.host.Addrs[:len(k.host.Addrs):len(k.host.Addrs)], kernel.HostAddr{Dev: a.Link, Addr: a.Addr})
		k.facts++
	}
	return nil
}

// dropAddr takes along what the kernel takes with a device's last IPv4 address: routes, and neighbours, permanent ones too.
func (k *Kernel) dropAddr(a kernel.AddrKey) {
	k.events.Addrs[a] = nil
	var rest []kernel.HostAddr
	left := 0
	for _, h := range k.host.Addrs {
		if h.Dev == a.Link && h.Addr == a.Addr {
			continue
		}
		rest = append(rest, h)
		if h.Dev == a.Link && h.Addr.Addr().Is4() {
			left++
		}
	}
	k.host.Addrs = rest
	k.facts++
	if left > 0 || a.Addr.Addr().Is6() {
		return
	}
	maps.DeleteFunc(k.routes, func(key kernel.RouteKey, r kernel.Route) bool { return r.Dev.Name == a.Link && key.Dst.Addr().Is4() })
	maps.DeleteFunc(k.neighs, func(key kernel.NeighKey, _ kernel.MAC) bool { return key.Dev.Name == a.Link && key.Addr.Is4() })
	k.events.RoutesLost = true
}

// links is the table of the devices of VXLAN and IP-in-IP.
type links struct{ k *Kernel }

// List implements reconcile.Table.
func (t links) List(context.Context) (map[string]kernel.Link, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return maps.Clone(t.k.links), nil
}

// Apply implements reconcile.Table. A device of which anything but the MTU changes is made anew.
func (t links) Apply(_ context.Context, changes []kernel.Change[string, kernel.Link]) error {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return kernel.Each(changes, func(c kernel.Change[string, kernel.Link]) error {
		if err := t.k.may(reconcile.Links, c.Key); err != nil {
			return err
		}
		switch {
		case c.New == nil && c.Key == kernel.IPIPDevice:
			t.k.down(c.Key)
		case c.New == nil:
			t.k.vanish(c.Key)
		case c.Key == kernel.IPIPDevice:
			return t.k.putIPIP(*c.New)
		default:
			return t.k.putLink(c.Key, *c.New)
		}
		return nil
	})
}

func (k *Kernel) putLink(name string, l kernel.Link) error {
	if l.Type != kernel.VXLAN {
		return fmt.Errorf("make device %s: only VXLAN and IP-in-IP are known here", name)
	}
	if err := k.there(l.Parent); err != nil {
		return fmt.Errorf("make device %s: %w", name, err)
	}
	same := k.links[name]
	same.MTU = l.MTU
	if same != l {
		k.vanish(name)
		k.appear(name, l.MTU, l.MAC, "vxlan")
	}
	k.links[name] = l
	k.events.Links[name] = &l
	if h := k.host.Links[name]; h.MTU != l.MTU {
		h.MTU = l.MTU
		k.setHostLink(name, h)
	}
	return nil
}

func (k *Kernel) setHostLink(name string, h kernel.HostLink) {
	k.host.Links = maps.Clone(k.host.Links)
	k.host.Links[name] = h
	k.facts++
}

// putIPIP sets the IP-in-IP device up. The kernel makes it when it is first asked for.
func (k *Kernel) putIPIP(l kernel.Link) error {
	if l.Type != kernel.IPIP {
		return fmt.Errorf("set up device %s: it is of IP-in-IP alone", kernel.IPIPDevice)
	}
	if _, there := k.host.Links[kernel.IPIPDevice]; !there {
		k.appear(kernel.IPIPDevice, l.MTU, kernel.MAC{}, "ipip")
	}
	k.links[kernel.IPIPDevice] = l
	k.events.Links[kernel.IPIPDevice] = &l
	if h := k.host.Links[kernel.IPIPDevice]; h.MTU != l.MTU || !h.Up {
		h.MTU, h.Up, h.Live = l.MTU, true, true
		k.setHostLink(kernel.IPIPDevice, h)
	}
	return nil
}

// down sets a device down that nobody removes: its routes go, its addresses stay.
func (k *Kernel) down(name string) {
	h, there := k.host.Links[name]
	if !there || !h.Up {
		return
	}
	h.Up, h.Live = false, false
	k.setHostLink(name, h)
	delete(k.links, name)
	maps.DeleteFunc(k.routes, func(_ kernel.RouteKey, r kernel.Route) bool { return r.On(h.Index) })
	k.events.Links[name] = nil
	k.events.Gone = append(k.events.Gone, kernel.Dev{Name: name, Index: h.Index})
}

// settings is the table of settings, which carry no mark.
type settings struct{ k *Kernel }

// List implements reconcile.Table: nothing can be found.
func (settings) List(context.Context) (map[kernel.SysctlKey]string, error) { return nil, nil }

// Read returns those settings that there are. One that nobody has written is 0.
func (t settings) Read(_ context.Context, keys []kernel.SysctlKey) (map[kernel.SysctlKey]string, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	out := map[kernel.SysctlKey]string{}
	for _, key := range keys {
		if t.k.setting(key) {
			out[key] = "0"
			if v, ok := t.k.sysctls[key.Path]; ok {
				out[key] = v
			}
		}
	}
	return out, nil
}

// Apply implements reconcile.Table. A setting of a device that is gone is no error.
func (t settings) Apply(_ context.Context, changes []kernel.Change[kernel.SysctlKey, string]) error {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return kernel.Each(changes, func(c kernel.Change[kernel.SysctlKey, string]) error {
		if err := t.k.may(reconcile.Sysctls, c.Key.Path); err != nil || c.New == nil || !t.k.setting(c.Key) {
			return err
		}
		t.k.sysctls[c.Key.Path] = *c.New
		return nil
	})
}

// setting says whether there is such a setting.
func (k *Kernel) setting(key kernel.SysctlKey) bool {
	dev := deviceOf(key.Path)
	_, there := k.host.Links[dev]
	return dev == "" || there
}
