package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// guard keeps the node's policy in force: it takes in what the feed says, and makes the kernel's table of policy hold what follows.
//
//  1. All that one snapshot changes takes effect at once, in one transaction, before anything else is written by that snapshot.
//  2. Policy before route: a workload whose policy has not been committed gets no route (admit). One that had its route before keeps it,
//     and the policy that is in force.
//  3. Policy that can be read no longer stays in force as it was last read (kept.go).
//  4. A restart opens and closes nothing. The table outlives the agent, the first transaction turns what is found into what is wanted,
//     and nothing is taken from it until the feed has caught up with etcd.
//
// It belongs to the loop, but for numbers and disturbed, which anybody may call, and watch.
type guard struct {
	node string
	log  *slog.Logger

	lending  sync.Mutex // of the engine, to model
	engine   *policy.Engine
	snap     feed.Snapshot // that the engine has taken in
	kept     kept
	problems map[string]struct{}
	policies map[policy.PolicyID]*policy.Policy // that are in the model, and profiles
	tally    *tally
	// directions counts how many halves of a policy are in the model: a policy of both is one.
	directions map[policyName]int
	sets       int

	services located

	settings ruleset.Settings
	heeded   uint32          // the mask of marks by which iptables goes; 0: not known
	facts    uint64          // that the layout has taken in
	layout   *ruleset.Layout // nil before the first round

	noteMask  func(uint32) error           // remembers heeded beyond the process
	open      func() (policyKeeper, error) // the kernel's table
	table     policyKeeper                 // nil until it could be opened
	unable    string                       // why it could not
	syslog    bool                         // the kernel writes about packets to its log
	uncounted bool                         // it cannot count connections
	caughtUp  bool                         // what is in the table and not in the feed is old
	look      bool                         // see whether others have changed the table
	settled   bool                         // what is found to differ, others have done

	inForce  map[pass]struct{}     // workloads whose policy is committed
	awaiting map[doorstep]struct{} // where workloads wait for that
	withheld bool                  // the last state lacked routes to these
	moved    bool                  // workloads may have changed since inForce was made
	released func([]netip.Addr)    // told of the addresses of workloads that are gone
	inherits func(netip.Addr) bool // tells whether what was allowed to an address's last owner still is
	changed  changedPolicy         // since the last commit
	cut      func(changedPolicy)   // told of what was changed, once it is in force; nil: nobody cares

	counts    atomic.Pointer[enforced]
	touched   chan struct{}     // others have changed the table
	monitored chan *nft.Monitor // once it is open
}

// policyKeeper is nft.Keeper, or a test's.
type policyKeeper interface {
	Apply(ctx context.Context, want *nftable.Table, d nftable.Delta, keep bool) (nft.Done, error)
	Check(ctx context.Context, want *nftable.Table) (nft.Done, error)
	Doubt()
}

// pass is a workload as its policy was made for: another container under the same name is another workload.
type pass struct {
	doorstep
	container string
}

// doorstep is where a workload's packets end.
type doorstep struct {
	dev  string
	addr netip.Addr
}

// enforced counts what is enforced.
type enforced struct {
	policies, selectors int
	staged              int // of the policies
}

// add counts so many more policies that are as p.
func (e *enforced) add(p *policy.Policy, by int) {
	if p.Kind == "Profile" {
		return
	}
	e.policies += by
	if p.Staged {
		e.staged += by
	}
}

// policyName is a policy, of whichever direction.
type policyName struct{ kind, namespace, name string }

func newGuard(node string, log *slog.Logger) *guard {
	g := &guard{
		node: node, log: log, engine: policy.New(node), kept: kept{}, policies: map[policy.PolicyID]*policy.Policy{}, tally: newTally(), directions: map[policyName]int{}, moved: true, released: func([]netip.Addr) {}, inherits: func(netip.Addr) bool { return false }, changed: newChangedPolicy(),
		touched: make(chan struct{}, 1), monitored: make(chan *nft.Monitor, 1),
	}
	g.open, g.noteMask = g.openKernel, writeMask
	return g
}

// enforce makes the kernel hold the policy of a snapshot. After an error the kernel holds what it held, or what it should, and admit tells
// who has to wait.
func (g *guard) enforce(ctx context.Context, snap feed.Snapshot, s ruleset.Settings, host kernel.Host, facts uint64) (reconcile.Result, error) {
	unready := g.ready() // what the kernel can do decides on the layout
	s = g.marks(s)
	s.Syslog, s.Uncounted = s.Syslog && g.syslog, g.uncounted
	if g.layout == nil {
		g.layout, g.settings = ruleset.New(s), s
	}
	if !reflect.DeepEqual(s, g.settings) {
		g.settings = s
		g.layout.SetSettings(s)
	}
	if facts != g.facts {
		g.facts = facts
		g.layout.SetDevices(addressed(host, s.Prefixes))
	}
	g.take(snap)
	var done reconcile.Result
	err := errors.Join(unready, g.locate())
	if err == nil {
		done, err = g.commit(ctx)
	}
	if err != nil {
		g.settled = false
		g.bar()
		return done, fmt.Errorf("enforce policy: %w", err)
	}
	g.pass()
	if g.cut != nil {
		g.changed.host = ownAddrs(host)
		g.cut(g.changed)
		g.changed = newChangedPolicy()
	}
	return done, nil
}

// model is a copy of what the engine has made of the snapshot. Anybody may call it; the loop waits meanwhile.
func (g *guard) model() policy.Model {
	g.lending.Lock()
	defer g.lending.Unlock()
	return g.engine.Model()
}

func ownAddrs(h kernel.Host) (out []netip.Addr) {
	for _, a := range h.Addrs {
		out = append(out, a.Addr.Addr())
	}
	return out
}

// addressed are the addresses of the host's devices, but for workloads'.
func addressed(h kernel.Host, workloads []string) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, a := range h.Addrs {
		if !slices.ContainsFunc(workloads, func(p string) bool { return strings.HasPrefix(a.Dev, p) }) {
			out[a.Dev] = append(out[a.Dev], a.Addr.Addr())
		}
	}
	return out
}

// take hands the engine what is new in a snapshot, and the layout what follows.
func (g *guard) take(snap feed.Snapshot) {
	changed := snap.Since(g.snap)
	old := g.snap
	g.snap = snap
	if !changed.Kinds.Has(feed.ForPolicy) {
		return
	}
	g.moved = g.moved || changed.Kinds.Has(feed.Endpoints)
	g.relocate()
	g.compute(g.delta(old, changed))
}

// compute has the engine work out what follows from a change, and the layout.
func (g *guard) compute(d policy.Delta) {
	g.lending.Lock()
	u := g.engine.Apply(d)
	g.lending.Unlock()
	if g.cut != nil {
		g.changed.note(u)
	}
	g.layout.Update(u)
	g.count(u)
}

// delta is what the engine has to be told of the snapshot, which came after old.
func (g *guard) delta(old feed.Snapshot, changed feed.Delta) (d policy.Delta) {
	take := func(key string, o api.Object) {
		if g.kept.take(key, old, g.snap, g.log) {
			return
		}
		d.Objects = append(d.Objects, policy.Change{Key: key, Object: o})
	}
	for _, key := range changed.Keys {
		take(key, g.snap.Object(key))
	}
	if !changed.All {
		return d
	}
	for key, o := range g.snap.Objects(feed.ForPolicy) {
		take(key, o)
	}
	gone := maps.Clone(g.kept)
	for _, b := range g.snap.Bad() {
		gone[b.Key] = false
	}
	for key := range old.Objects(feed.ForPolicy) {
		gone[key] = false
	}
	for key := range gone {
		if g.snap.Object(key) == nil {
			take(key, nil)
		}
	}
	return d
}

// count notes what the update means for those who ask for numbers and problems.
func (g *guard) count(u policy.Update) {
	if u.Problems != nil || u.Solved {
		g.problems = map[string]struct{}{}
		for _, p := range u.Problems {
			g.problems[p.String()] = struct{}{}
		}
	}
	for _, c := range u.Sets {
		switch {
		case c.Gone:
			g.sets--
		case c.Set != nil:
			g.sets++
		}
	}
	now := g.numbers()
	now.selectors = g.sets
	if len(u.Policies) > 0 {
		g.countPolicies(u.Policies, &now)
	}
	g.counts.Store(&now)
}

// countPolicies notes which policies have come and gone, and counts those that are there.
func (g *guard) countPolicies(changed map[policy.PolicyID]*policy.Policy, now *enforced) {
	var came, went []*policy.Policy
	for id, p := range changed {
		if old := g.policies[id]; old != nil {
			went = append(went, old)
			delete(g.policies, id)
		}
		if p != nil {
			came = append(came, p)
			g.policies[id] = p
		}
	}
	g.tally.note(came, went)
	for _, p := range came {
		if g.halves(p, 1) == 1 {
			now.add(p, 1)
		}
	}
	for _, p := range went {
		if g.halves(p, -1) == 0 {
			now.add(p, -1)
		}
	}
}

// halves counts so many more directions of a policy, and returns how many there are.
func (g *guard) halves(p *policy.Policy, by int) int {
	name := policyName{p.Kind, p.Namespace, p.Name}
	g.directions[name] += by
	n := g.directions[name]
	if n == 0 {
		delete(g.directions, name)
	}
	return n
}

// numbers are how many policies apply to workloads and devices of this node, and how many selectors these refer to.
func (g *guard) numbers() enforced {
	if c := g.counts.Load(); c != nil {
		return *c
	}
	return enforced{}
}

// troubles are what the log should name: input that cannot be used as it stands, and a kernel that cannot enforce policy.
func (g *guard) troubles() []string {
	out := slices.Concat(slices.Sorted(maps.Keys(g.problems)), g.kept.troubles(), g.services.troubles())
	if g.unable != "" {
		out = append(out, "this host cannot enforce policy, so no pod is added to it: "+g.unable)
	}
	if g.layout != nil && g.layout.Unmet() {
		out = append(out, "this kernel cannot count connections (it lacks nft_connlimit or nft_hash), so limits of pods' connections are not enforced")
	}
	return out
}

// commit makes the kernel's table what the layout says, and, when it is time, looks whether others have changed it.
func (g *guard) commit(ctx context.Context) (reconcile.Result, error) {
	res, err := g.apply(ctx)
	if err == nil && g.look {
		var found nft.Done
		found, err = g.table.Check(ctx, g.layout.Table())
		res = sum(res, resultOf(found, nftable.Delta{}, g.settled))
	}
	if err == nil {
		g.look = false
	}
	g.settled = err == nil && g.caughtUp
	return res, err
}

func (g *guard) apply(ctx context.Context) (res reconcile.Result, err error) {
	d := g.layout.Take()
	if !d.Empty() {
		if err := fault.At(fault.ApplyPolicyBegun); err != nil {
			g.table.Doubt() // what was taken is not committed
			return res, err
		}
	}
	done, err := g.table.Apply(ctx, g.layout.Table(), d, !g.caughtUp)
	if err != nil {
		return res, err
	}
	if res = resultOf(done, d, g.settled); res.Changed > 0 {
		err = fault.At(fault.ApplyPolicyPut)
	}
	return res, err
}

// ready opens the kernel's table if it is not open.
func (g *guard) ready() (err error) {
	if g.table == nil {
		g.table, err = g.open()
	}
	g.unable = ""
	if err != nil {
		g.unable = err.Error()
	}
	return err
}

// believe says that the feed has seen all that etcd held when the kernel was listed.
func (g *guard) believe() { g.caughtUp = true }

// check says whether it is time to look whether others have changed the table.
func (g *guard) check(now bool) { g.look = g.look || now }

// holds tells whether the kernel holds policy of this agent and nothing else.
func (g *guard) holds() bool { return g.settled }

// pass notes that all workloads' policies are in force.
func (g *guard) pass() {
	g.awaiting = nil
	if !g.moved {
		return
	}
	g.moved = false
	before := g.inForce
	g.inForce = g.passes()
	var gone []netip.Addr
	for p := range before {
		if _, stays := g.inForce[p]; !stays {
			gone = append(gone, p.addr)
		}
	}
	if len(gone) > 0 {
		g.released(gone)
	}
}

// bar notes which workloads have to wait.
func (g *guard) bar() {
	g.moved = true
	g.awaiting = map[doorstep]struct{}{}
	for p := range g.passes() {
		if _, ok := g.inForce[p]; !ok {
			g.awaiting[p.doorstep] = struct{}{}
		}
	}
}

func (g *guard) passes() map[pass]struct{} {
	out := map[pass]struct{}{}
	for _, e := range g.snap.EndpointsOn(g.node) {
		for _, n := range e.Value.Spec.IPNetworks {
			out[pass{doorstep{e.Value.Spec.InterfaceName, n.Addr()}, e.Value.Spec.ContainerID}] = struct{}{}
		}
	}
	return out
}

// admit leaves out of a state the routes to workloads whose policy is not in force, and to those whose address has connections of another one. What
// the kernel holds in their place stays: it is from when policy was, perhaps by an earlier agent.
func (g *guard) admit(s kernel.State) kernel.State {
	waiting := g.waiting()
	if g.withheld = len(waiting) > 0; !g.withheld {
		return s
	}
	s.Routes, s.Held = maps.Clone(s.Routes), maps.Clone(s.Held)
	for k, r := range s.Routes {
		if _, waits := waiting[doorstep{r.Dev.Name, k.Dst.Addr()}]; waits && k.Dst.IsSingleIP() {
			delete(s.Routes, k)
			s.Held[k] = kernel.Route{}
		}
	}
	return s
}

// waiting are the doorsteps that no route leads to yet.
func (g *guard) waiting() map[doorstep]struct{} {
	out := maps.Clone(g.awaiting)
	for p := range g.inForce {
		if !g.inherits(p.addr) {
			continue
		}
		if out == nil {
			out = map[doorstep]struct{}{}
		}
		out[p.doorstep] = struct{}{}
	}
	return out
}

// owes tells whether routes were left out of the last state that need not be any more.
func (g *guard) owes() bool { return g.withheld && len(g.waiting()) == 0 }

// disturbed receives when others have changed the table. The loop then calls doubt.
func (g *guard) disturbed() <-chan struct{} { return g.touched }

// doubt has the next round list the table.
func (g *guard) doubt() {
	if g.table != nil {
		g.table.Doubt()
	}
}
