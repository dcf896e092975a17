// Package reconcile makes a node's kernel equal a desired state.
//
// What it promises, and how:
//
//  1. Applying the same state twice writes nothing the second time: the desired state is compared with the confirmed one, which is
//     what the last list of a table returned together with what has been written since.
//  2. Only our objects are touched, also by an agent without memory: a list returns only what carries our mark, and a table that
//     has never been listed removes nothing.
//  3. What others do to our objects is repaired, and told: events that contradict the confirmed state make the table be listed again. Events of
//     our own writes agree with it and cost nothing. A change that makes an object what it was before is a Repair; what the wanted
//     state itself asks for is none.
//  4. What fails does not stop the rest: every table makes what it can, and is listed again before it is trusted.
//  5. Nothing hangs on what is not there: changes are made in the order of dependency, removals in the opposite order after them.
//  6. What is to go by a routing table of its own never goes by the main one for a moment: the rule that leads there stands before any route of the main
//     table is added, and where that rule cannot be made, no such route is. Within the routes the main table's come last, and go first.
package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/xtables"
)

// Table is one kind of kernel object. A table may also have two more methods:
//
//	Same(key K, have, want V) bool
//
// tells whether two values mean the same, for kinds that the kernel gives back in other words;
//
//	Read(ctx context.Context, keys []K) (map[K]V, error)
//
// returns those of the objects that exist, for kinds that carry no mark, so that List cannot find them. Of such a table
// nothing is ever removed.
type Table[K, V comparable] interface {
	// List returns every object of ours.
	List(context.Context) (map[K]V, error)
	// Apply makes changes. It is idempotent and goes on past failures; it returns them joined, as *kernel.Failure[K].
	Apply(context.Context, []kernel.Change[K, V]) error
}

// Tables are a node's tables. One that is nil is left out.
type Tables struct {
	Sysctls Table[kernel.SysctlKey, string]
	Links   Table[string, kernel.Link]
	WGs     Table[kernel.Dev, kernel.WireGuard]
	Peers   Table[kernel.PeerKey, kernel.Peer]
	Addrs   Table[kernel.AddrKey, struct{}]
	Neighs  Table[kernel.NeighKey, kernel.MAC]
	FDB     Table[kernel.FDBKey, netip.Addr]
	Sets    Table[kernel.SetKey, kernel.Set]
	Routes  Table[kernel.RouteKey, kernel.Route]
	Rules   Table[kernel.Rule, struct{}]
	Chains  Table[kernel.ChainKey, kernel.Chain] // of IPv4
	Chains6 Table[kernel.ChainKey, kernel.Chain] // of IPv6
}

// Name names a table.
type Name string

// The tables.
const (
	Sysctls Name = "sysctls"
	Links   Name = "links"
	WGs     Name = "WireGuard devices"
	Peers   Name = "WireGuard peers"
	Addrs   Name = "addresses"
	Neighs  Name = "neighbours"
	FDB     Name = "forwarding entries"
	Sets    Name = "sets"
	Routes  Name = "routes"
	Rules   Name = "rules"
	Chains  Name = "chains"
	Chains6 Name = "IPv6 chains"
)

// Result says what an Apply has done.
type Result struct {
	Changed  int          // objects that were added, replaced or removed
	Tables   map[Name]int // the same by table; tables without change are left out
	Repaired int          // how many of them others had changed
	Repairs  []Repair     // of these the first of each table, ten at most
}

// Reconciler holds the confirmed state of every table. It is for one goroutine.
type Reconciler struct {
	log     *slog.Logger
	sysctls table[kernel.SysctlKey, string]
	links   table[string, kernel.Link]
	wgs     table[kernel.Dev, kernel.WireGuard]
	peers   table[kernel.PeerKey, kernel.Peer]
	addrs   table[kernel.AddrKey, struct{}]
	neighs  table[kernel.NeighKey, kernel.MAC]
	fdb     table[kernel.FDBKey, netip.Addr]
	sets    table[kernel.SetKey, kernel.Set]
	routes  table[kernel.RouteKey, kernel.Route]
	rules   table[kernel.Rule, struct{}]
	chains  table[kernel.ChainKey, kernel.Chain]
	chains6 table[kernel.ChainKey, kernel.Chain]

	settled bool
	unruled [2]bool         // rules of IPv4 and of IPv6 are missing, since the kernel did not take them
	remade  map[string]bool // devices that we took away or made anew ourselves: events say so only later
	emptied bool            // the last removals took with them what hangs on a device with IPv4
}

// New returns a reconciler that knows nothing yet.
func New(t Tables, log *slog.Logger) *Reconciler {
	r := &Reconciler{
		log: log, remade: map[string]bool{},
		sysctls: newTable(Sysctls, t.Sysctls, func(s kernel.State) map[kernel.SysctlKey]string { return s.Sysctls },
			sysctlWords(), points{put: fault.ApplySysctlsPut}),
		links: newTable(Links, t.Links, func(s kernel.State) map[string]kernel.Link { return s.Links },
			linkWords(), points{put: fault.ApplyLinksPut, removed: fault.ApplyLinksRemoved}),
		wgs: newTable(WGs, t.WGs, func(s kernel.State) map[kernel.Dev]kernel.WireGuard { return s.WireGuard },
			wireGuardWords(), points{put: fault.ApplyWireGuardPut}),
		peers: newTable(Peers, t.Peers, func(s kernel.State) map[kernel.PeerKey]kernel.Peer { return s.Peers },
			peerWords(), points{put: fault.ApplyPeersPut, removed: fault.ApplyPeersRemoved}),
		addrs: newTable(Addrs, t.Addrs, func(s kernel.State) map[kernel.AddrKey]struct{} { return s.Addrs },
			addrWords(), points{put: fault.ApplyAddrsPut, removed: fault.ApplyAddrsRemoved}),
		neighs: newTable(Neighs, t.Neighs, func(s kernel.State) map[kernel.NeighKey]kernel.MAC { return s.Neighs },
			neighWords(), points{put: fault.ApplyNeighsPut, removed: fault.ApplyNeighsRemoved}),
		fdb: newTable(FDB, t.FDB, func(s kernel.State) map[kernel.FDBKey]netip.Addr { return s.FDB },
			fdbWords(), points{put: fault.ApplyFDBPut, removed: fault.ApplyFDBRemoved}),
		sets: newTable(Sets, t.Sets, func(s kernel.State) map[kernel.SetKey]kernel.Set { return s.Sets },
			setWords(), points{put: fault.ApplySetsPut, removed: fault.ApplySetsRemoved}),
		routes: newTable(Routes, t.Routes, func(s kernel.State) map[kernel.RouteKey]kernel.Route { return s.Routes },
			routeWords(), points{put: fault.ApplyRoutesPut, removed: fault.ApplyRoutesRemoved}),
		rules: newTable(Rules, t.Rules, func(s kernel.State) map[kernel.Rule]struct{} { return s.Rules },
			ruleWords(), points{put: fault.ApplyRulesPut, removed: fault.ApplyRulesRemoved}),
		chains: newTable(Chains, t.Chains, func(s kernel.State) map[kernel.ChainKey]kernel.Chain { return s.Chains },
			chainWords(xtables.Marks), points{put: fault.ApplyChainsPut, removed: fault.ApplyChainsRemoved}),
		chains6: newTable(Chains6, t.Chains6, func(s kernel.State) map[kernel.ChainKey]kernel.Chain { return s.Chains6 },
			chainWords(xtables.Marks), points{put: fault.ApplyChains6Put, removed: fault.ApplyChains6Removed}),
	}
	// A route that could not be added may be the successor of one that is to go: that one still carries the traffic.
	r.routes.group = func(k kernel.RouteKey) any { return kernel.RouteKey{Dst: k.Dst, Table: k.Table} }
	r.rules.missed = r.unrule
	r.routes.waits = func(k kernel.RouteKey) bool { return k.Table == 0 && r.unruled[familyOf(k.Dst.Addr().Is6())] }
	r.links.noted = r.remake
	r.addrs.noted = r.empty
	r.routes.held = func(s kernel.State) map[kernel.RouteKey]kernel.Route { return s.Held }
	return r
}

// part is a table of any kind.
type part interface {
	id() Name
	absent() bool
	refresh(context.Context) (listed bool, err error)
	put(context.Context, kernel.State) (outcome, error)
	remove(context.Context) (outcome, error)
	markDirty()
	doubted() bool
}

// parts lists the tables in order of dependency: what is in one needs nothing of a later one. Routes are late: a packet is sent into a
// tunnel only when what comes back through it is let in, and by the time that the tunnel closes nothing leads there. Rules come before them: one that leads to
// a table without routes changes nothing, and on a host that has just booted a route of the main table without the rule would send in clear what is to be encrypted.
func (r *Reconciler) parts() []part {
	all := []part{&r.sysctls, &r.links, &r.wgs, &r.peers, &r.addrs, &r.neighs, &r.fdb, &r.sets, &r.chains, &r.chains6, &r.rules, &r.routes}
	return slices.DeleteFunc(all, part.absent)
}

// Refresh lists every table that is dirty or was never listed, and tells whether there was one. A table whose list fails stays
// as it was, and the others are listed all the same; the error is the failures joined.
func (r *Reconciler) Refresh(ctx context.Context) (listed bool, err error) {
	var errs []error
	for _, p := range r.parts() {
		did, err := p.refresh(ctx)
		listed = listed || did
		r.settled = r.settled && !did && err == nil
		if err != nil {
			errs = append(errs, err)
		}
	}
	return listed, errors.Join(errs...)
}

// Apply makes the kernel match want, by the changes that separate it from the confirmed state. It removes only what a list has
// returned or Apply has written, and from a table that was never listed nothing. The error is every failure joined; a table with a failure is
// dirty afterwards. want is not modified.
func (r *Reconciler) Apply(ctx context.Context, want kernel.State) (Result, error) {
	return r.apply(ctx, want, true)
}

// Repair is Apply without its removals, for a want that may be behind what the kernel holds.
func (r *Reconciler) Repair(ctx context.Context, want kernel.State) (Result, error) {
	return r.apply(ctx, want, false)
}

func (r *Reconciler) apply(ctx context.Context, want kernel.State, removing bool) (Result, error) {
	r.settled = false
	res := Result{Tables: map[Name]int{}}
	var errs []error
	add := func(p part, o outcome, err error) {
		if o.changed > 0 {
			res.Changed += o.changed
			res.Tables[p.id()] += o.changed
		}
		res.Repaired += o.repaired
		res.Repairs = append(res.Repairs, o.repairs...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	parts := r.parts()
	for _, p := range parts {
		o, err := p.put(ctx, want)
		add(p, o, err)
	}
	if !removing {
		return res, errors.Join(errs...)
	}
	for i := range parts {
		p := parts[len(parts)-1-i]
		o, err := p.remove(ctx)
		add(p, o, err)
	}
	if r.emptied {
		r.emptied = false
		for _, p := range []part{&r.neighs, &r.routes} {
			o, err := p.put(ctx, want)
			add(p, o, err)
		}
	}
	err := errors.Join(errs...)
	r.settled = err == nil
	return res, err
}

// Settled tells whether another Apply of the state that was applied last would find nothing to do: all of it was made, and nothing has
// cast doubt on it since.
func (r *Reconciler) Settled() bool {
	return r.settled && !slices.ContainsFunc(r.parts(), part.doubted)
}

// MarkDirty makes the next Refresh list tables again, all if none is named.
func (r *Reconciler) MarkDirty(names ...Name) {
	for _, p := range r.parts() {
		if len(names) == 0 {
			p.markDirty()
		}
		for _, n := range names {
			if p.id() == n {
				p.markDirty()
			}
		}
	}
}

// Observe compares events with the confirmed state. What the kernel is certain to have dropped is confirmed no longer, so that
// the next Apply writes it again where it is wanted, and so are settings that were changed; where another event contradicts the confirmed
// state, the table becomes dirty. It tells whether a table did.
func (r *Reconciler) Observe(e kernel.Events) (dirty bool) {
	for _, d := range e.Down {
		r.flushed(d)
	}
	for _, d := range e.Gone {
		r.gone(d)
	}
	if r.sysctls.reread(e.Sysctls) {
		r.settled = false
	}
	if e.Lost {
		r.MarkDirty(Sysctls, Links, WGs, Peers, Addrs, Neighs, FDB, Routes, Rules)
	}
	if e.RoutesLost {
		r.MarkDirty(Routes)
	}
	r.links.observe(e.Links)
	r.addrs.observe(e.Addrs)
	r.neighs.observe(e.Neighs)
	r.fdb.observe(e.FDB)
	r.routes.observe(e.Routes)
	r.rules.observe(e.Rules)
	observed := []part{&r.sysctls, &r.links, &r.addrs, &r.neighs, &r.fdb, &r.routes, &r.rules}
	return slices.ContainsFunc(observed, part.doubted)
}

// Glance looks at WireGuard's devices and peers, of which no event tells, and makes dirty what is not as it is confirmed to be. Where a peer sends from is no reason:
// a device takes that over by itself, and would do so again.
func (r *Reconciler) Glance(ctx context.Context) {
	r.wgs.glance(ctx, func(have, confirmed kernel.WireGuard) bool { return have == confirmed })
	r.peers.glance(ctx, func(have, confirmed kernel.Peer) bool {
		have.Endpoint = confirmed.Endpoint
		return have == confirmed
	})
}

// flushed drops what the kernel drops when a device is set down.
func (r *Reconciler) flushed(d kernel.Dev) {
	neighs := r.neighs.forget(func(k kernel.NeighKey, _ kernel.MAC) bool { return k.Dev.Index == d.Index })
	routes := r.routes.forget(func(_ kernel.RouteKey, v kernel.Route) bool { return v.On(d.Index) })
	r.settled = r.settled && !neighs && !routes
}

// unrule notes of which families rules are missing.
func (r *Reconciler) unrule(failed []kernel.Rule) {
	r.unruled = [2]bool{}
	for _, k := range failed {
		r.unruled[familyOf(k.V6)] = true
	}
}

func familyOf(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// empty drops what the kernel drops of IPv4 when we take the last such address from a device: routes, and neighbours, permanent ones too.
func (r *Reconciler) empty(changes []kernel.Change[kernel.AddrKey, struct{}]) {
	for _, c := range changes {
		if c.New != nil || c.Key.Addr.Addr().Is6() || r.hasIPv4(c.Key.Link) {
			continue
		}
		r.emptied = true
		r.routes.drop(func(k kernel.RouteKey, v kernel.Route) bool { return v.Dev.Name == c.Key.Link && k.Dst.Addr().Is4() })
		r.neighs.drop(func(k kernel.NeighKey, _ kernel.MAC) bool { return k.Dev.Name == c.Key.Link && k.Addr.Is4() })
	}
}

func (r *Reconciler) hasIPv4(link string) bool {
	for k := range r.addrs.confirmed {
		if k.Link == link && k.Addr.Addr().Is4() {
			return true
		}
	}
	return false
}

// remake notes which devices go by our own doing. One that was only changed keeps what hangs on it.
func (r *Reconciler) remake(changes []kernel.Change[string, kernel.Link]) {
	for _, c := range changes {
		if c.Old == nil {
			continue
		}
		if c.New != nil {
			same := *c.Old
			same.MTU = c.New.MTU
			if same == *c.New {
				continue
			}
		}
		r.remade[c.Key] = true
	}
}

// gone drops what the kernel drops with a device. That a workload's device goes is how workloads end, and others we make anew ourselves:
// what went with them nobody has taken away.
func (r *Reconciler) gone(d kernel.Dev) {
	r.flushed(d)
	fdb := r.fdb.forget(func(k kernel.FDBKey, _ netip.Addr) bool { return k.Dev == d })
	addrs := r.addrs.forget(func(k kernel.AddrKey, _ struct{}) bool { return k.Link == d.Name })
	sysctls := r.sysctls.forget(func(k kernel.SysctlKey, _ string) bool { return k.Index == d.Index })
	wgs := r.wgs.forget(func(k kernel.Dev, _ kernel.WireGuard) bool { return k == d })
	peers := r.peers.forget(func(k kernel.PeerKey, _ kernel.Peer) bool { return k.Dev == d })
	r.settled = r.settled && !fdb && !addrs && !sysctls && !wgs && !peers
	if strings.HasPrefix(d.Name, kernel.WorkloadPrefix) || r.remade[d.Name] {
		delete(r.remade, d.Name)
		r.neighs.pardon(func(k kernel.NeighKey, _ kernel.MAC) bool { return k.Dev.Name == d.Name })
		r.routes.pardon(func(_ kernel.RouteKey, v kernel.Route) bool { return v.Dev.Name == d.Name })
		r.wgs.pardon(func(k kernel.Dev, _ kernel.WireGuard) bool { return k.Name == d.Name })
		r.peers.pardon(func(k kernel.PeerKey, _ kernel.Peer) bool { return k.Dev.Name == d.Name })
		r.fdb.pardon(func(k kernel.FDBKey, _ netip.Addr) bool { return k.Dev.Name == d.Name })
		r.addrs.pardon(func(k kernel.AddrKey, _ struct{}) bool { return k.Link == d.Name })
		r.sysctls.pardon(func(k kernel.SysctlKey, _ string) bool { return k.Index == d.Index })
	}
}
