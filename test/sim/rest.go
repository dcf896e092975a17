package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/ipamtest"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	maxSettle = 4000 // steps until everybody has done what he was at
	maxRounds = 12   // of a node, until its kernel is as it should be
)

// rest mends everything, lets everybody do what is left to do, and looks at all there is: then nothing is to be wrong any more.
func (w *World) rest() {
	w.note("rest")
	w.mending = true
	defer func() { w.mending = false }()
	w.mend()
	for _, stage := range []func(){w.quiet, w.open, w.finishAll, w.assemble, w.quiet, w.configure, w.takeDown, w.strand, w.finishAll, w.tunnels, w.linger, w.tunnels, w.sweep, w.converge, w.judge} {
		if stage(); w.out.Err != nil {
			return
		}
	}
}

// mend ends all faults.
func (w *World) mend() {
	w.setDown(false)
	w.manager.stalled = false
	for _, n := range w.nodes {
		n.cut, n.deaf = false, false
		n.kernel.Refuse(nil)
		n.wired()
		w.makeNode(n)
	}
}

// quiet carries out what is asked and tells everybody everything until nothing is under way.
func (w *World) quiet() {
	for range maxSettle {
		w.settle()
		idle := len(w.waiting) == 0
		for len(w.waiting) > 0 {
			w.serve(w.take(0), answered)
			w.settle() // who comes to a door next finds there whom the answer has set free
		}
		behind := w.tellAll()
		switch {
		case w.out.Err != nil:
			return
		case idle && w.busy == 0 && !behind:
			return
		case idle && len(w.waiting) == 0:
			w.pass(1)
		}
	}
	w.broke("%d commands, rounds or looks do not come to an end, or a feed does not", w.busy)
}

// tellAll tells every view of all there is, and reports whether some feed has yet to see it.
func (w *World) tellAll() (behind bool) {
	head := w.history.head()
	for _, n := range w.nodes {
		switch p := n.agent; {
		case p == nil:
		case p.view != nil && p.view.told() < head:
			w.deliverTo(n, head)
		case p.view == nil:
			snap, ok := p.follows.Snapshot()
			behind = behind || !ok || snap.Rev < head
		}
	}
	if m := w.manager; m != nil {
		m.tell(len(m.untold))
		snap, ok := m.feed.Snapshot()
		behind = behind || !ok || snap.Rev < head
	}
	w.settle()
	return behind
}

// assemble has every host run an agent that has its name. Whose Node is being deleted is deleted before.
func (w *World) assemble() {
	for range maxRounds {
		done := true
		for _, n := range w.nodes {
			switch {
			case n.lost:
				w.bury(n)
			case n.off:
				w.deletion(n)
			case n.agent != nil && n.agent.up && !w.rules.nodes[n.name]:
				n.stop() // it makes its Node when it starts
			case n.agent == nil:
				n.agent = n.start()
				w.joinOf(n)
			case !n.agent.up:
				w.joinOf(n)
			default:
				continue
			}
			done = false
		}
		if done || w.out.Err != nil {
			return
		}
		w.quiet()
		w.pass(int(nodeGrace / tick / 2))
		w.quiet()
	}
	w.broke("some agent does not come up, or the Node of a host that Kubernetes has not is never deleted")
}

// open unlocks the datastore: until then nobody gets anything done.
func (w *World) open() {
	w.setReady(true)
	w.quiet()
}

// strand has all come to etcd that was adrift: behind every DEL.
func (w *World) strand() {
	for len(w.adrift) > 0 && w.out.Err == nil {
		w.land(0)
		w.settle()
	}
	w.quiet()
}

// configure puts the pools back in service.
func (w *World) configure() {
	edit(w, api.IPAMConfigKey, func(c *api.IPAMConfig) { c.StrictAffinity = false })
	w.makePool(nil)
	w.quiet()
	for i := range w.ranges() {
		is := w.newPool(i).Spec
		edit(w, poolKey(i), func(p *api.IPPool) {
			p.Spec.Disabled, p.Spec.VXLANMode, p.Spec.IPIPMode = false, is.VXLANMode, is.IPIPMode
		})
	}
	w.pool++
	w.quiet()
}

// takeDown has the runtime call DEL for whatever has failed.
func (w *World) takeDown() {
	for range maxRounds {
		var left []*pod
		for _, n := range w.nodes {
			left = append(left, n.live(broken)...)
		}
		if len(left) == 0 || w.out.Err != nil {
			return
		}
		for _, p := range left {
			w.beginDel(p)
			w.settle() // of a node's commands it matters who is first
		}
		w.quiet()
	}
	w.broke("some DEL fails though nothing is wrong any more")
}

// tunnels has each node see to its tunnel addresses.
func (w *World) tunnels() {
	for range maxRounds {
		done := true
		for i, n := range w.nodes {
			if n.agent.pools == w.pool {
				continue
			}
			done = false
			w.tunnelsOn(n) // each a node of its own: they may go at the same time
			if i%maxBusy == 0 {
				w.quiet()
			}
		}
		if done || w.out.Err != nil {
			return
		}
		w.quiet()
	}
	w.broke("some node does not get its tunnel addresses")
}

// linger lets pass the time for which an encapsulation is kept that nobody asks for, with a round before and after it.
func (w *World) linger() {
	if len(w.nodes) > keepPlans {
		return // there, no pool changes its mode
	}
	w.rounds()
	for range 35 {
		w.pass(1)
		w.quiet()
	}
	w.rounds()
	w.pool++
}

// rounds has each agent do one.
func (w *World) rounds() {
	for i, n := range w.nodes {
		if !n.agent.rounding {
			w.beginRound(n.agent)
		}
		if i%maxBusy == 0 {
			w.quiet()
		}
	}
	w.quiet()
}

// sweep has each agent look twice for what pods have left behind.
func (w *World) sweep() {
	for range 2 {
		for i, n := range w.nodes {
			w.auditOn(n)
			if i%maxBusy == 0 {
				w.quiet()
			}
		}
		w.quiet()
	}
}

// converge has each agent do rounds until its kernel is what the datastore asks for: first without looking at what there is, but where something was changed
// that no event tells of; then as after the refresh that comes every minute and a half.
func (w *World) converge() {
	for _, n := range w.nodes {
		n.agent.memo = &memo{}
		for _, refresh := range []bool{false, true} {
			n.agent.dirty = refresh || n.meddled || n.agent.dirty
			want, err := w.convergeOn(n)
			switch {
			case err != nil:
				w.broke("%s does not have in its kernel what the datastore asks for: %w", n.name, err)
				return
			case refresh:
				w.fresh(n, want)
			}
		}
		n.agent.memo, n.meddled = nil, false
	}
}

// convergeOn has an agent do rounds until its kernel is right, and says what it should be.
func (w *World) convergeOn(n *node) (want kernel.State, err error) {
	p := n.agent
	for range maxRounds {
		w.beginRound(p)
		w.quiet()
		snap, ok := p.usable()
		if !ok {
			return want, errors.New("it has no snapshot that it may act on, though nothing is wrong any more")
		}
		result := p.plan(snap)
		want = result.State
		if err = errors.Join(p.failed, differs(n.kernel.State(), want), p.unpoliced(snap, result.Tunnels)); err == nil {
			return want, nil
		}
	}
	return want, err
}

// fresh looks whether an agent without memory would write anything.
func (w *World) fresh(n *node, want kernel.State) {
	before := n.kernel.Writes()
	r := reconcile.New(w.tables(n), discard())
	_, listErr := r.Refresh(context.Background())
	if _, err := r.Apply(context.Background(), want); err != nil || listErr != nil {
		w.broke("an agent without memory fails on %s: %v, %v", n.name, listErr, err)
	}
	if wrote := n.kernel.Writes() - before; wrote != 0 {
		w.broke("an agent without memory writes %d objects on %s", wrote, n.name)
	}
}

// differs says in what a kernel is not what it should be. Settings may be more than are asked for: nobody takes them back.
func differs(have, want kernel.State) error {
	for k, v := range want.Sysctls {
		if is := cmp.Or(have.Sysctls[k], "0"); is != v { // as the kernel begins
			return fmt.Errorf("%s is %s, want %s", k.Path, is, v)
		}
	}
	for _, err := range []error{
		differ("link", have.Links, want.Links), differ("address", have.Addrs, want.Addrs), differ("neighbour", have.Neighs, want.Neighs),
		differ("forwarding entry", have.FDB, want.FDB), differ("set", have.Sets, want.Sets), differ("route", have.Routes, want.Routes),
		differ("chain", have.Chains, want.Chains), differ("IPv6 chain", have.Chains6, want.Chains6),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func differ[K, V comparable](what string, have, want map[K]V) error {
	changes := kernel.Diff(have, want)
	if len(changes) == 0 {
		return nil
	}
	c := slices.MinFunc(changes, func(a, b kernel.Change[K, V]) int {
		return cmp.Compare(fmt.Sprint(a.Key), fmt.Sprint(b.Key))
	})
	switch {
	case c.Old == nil:
		return fmt.Errorf("%s %v is missing (%d differ)", what, c.Key, len(changes))
	case c.New == nil:
		return fmt.Errorf("%s %v is too many: %v (%d differ)", what, c.Key, *c.Old, len(changes))
	}
	return fmt.Errorf("%s %v is %v, want %v (%d differ)", what, c.Key, *c.Old, *c.New, len(changes))
}

// feedsAgree looks whether the real feeds have come to what the others were told.
func (w *World) feedsAgree() {
	want := w.history.at(w.history.head())
	for _, n := range w.nodes[:w.cfg.Feeds] {
		have, _ := n.agent.follows.Snapshot()
		if err := sameSnapshot(have, want); err != nil {
			w.broke("the feed of %s, at revision %d: %w", n.name, have.Rev, err)
		}
	}
}

// sameSnapshot says in what two snapshots of one datastore are not the same.
func sameSnapshot(have, want feed.Snapshot) error {
	return errors.Join(
		sameEntries(have.Pools(), want.Pools()), sameEntries(have.Nodes(), want.Nodes()), sameEntries(have.Blocks(), want.Blocks()),
		sameEntries(have.Endpoints(), want.Endpoints()), sameEntries(have.Profiles(), want.Profiles()),
	)
}

func sameEntries[T api.Value](have, want iter.Seq2[string, store.Entry[T]]) error {
	revs := map[string]int64{}
	for key, e := range have {
		revs[key] = e.Rev
	}
	for key, e := range want {
		if revs[key] != e.Rev {
			return fmt.Errorf("%s is at revision %d, want %d", key, revs[key], e.Rev)
		}
		delete(revs, key)
	}
	if len(revs) > 0 {
		return fmt.Errorf("there are %d too many, of them %s", len(revs), slices.Min(slices.Collect(maps.Keys(revs))))
	}
	return nil
}

// judge looks at all that etcd says, and holds it against the pods that there are.
func (w *World) judge() {
	w.feedsAgree()
	v, err := ipamtest.Read(context.Background(), w.etcd.Client())
	if err != nil {
		w.broke("read all of etcd: %w", err)
		return
	}
	all := maps.Clone(v.Endpoints)
	maps.DeleteFunc(v.Endpoints, func(_ string, e *api.WorkloadEndpoint) bool {
		return slices.ContainsFunc(e.Spec.IPNetworks, func(p api.Prefix) bool { return brought.Contains(p.Addr()) })
	})
	if err := v.Exact(network); err != nil {
		w.broke("at rest: %w", err)
		return
	}
	pods := map[string]*pod{}
	for _, n := range w.nodes {
		for _, p := range n.live(running) {
			pods[p.container] = p
		}
	}
	for key, e := range all {
		if pods[e.Spec.ContainerID] == nil {
			w.broke("at rest, %s is left of container %s, which is gone", key, e.Spec.ContainerID)
			return
		}
	}
	if len(all) != len(pods) {
		w.broke("at rest, there are %d pods and %d endpoints", len(pods), len(all))
	}
	for id := range v.Handles {
		if len(v.Held(id)) == 0 {
			w.broke("at rest, handle %s holds nothing", id)
		}
	}
	for _, p := range w.byName(pods) {
		if held := v.Held(api.PodHandle(network, p.container)); !slices.Equal(held, p.addrs) && !isBrought(p.addrs) {
			w.broke("at rest, pod %s (container %s) has %v, and etcd says %v", p.name(), p.container, p.addrs, held)
		}
		if !p.hasRoutes(p.n.kernel.Routes()) {
			w.broke("at rest, pod %s has no route to %v", p.name(), p.addrs)
		}
	}
	w.note("at rest, %d pods at %v", len(pods), time.Since(w.began))
}

func (w *World) byName(pods map[string]*pod) []*pod {
	return slices.SortedFunc(maps.Values(pods), func(a, b *pod) int { return cmp.Compare(a.name(), b.name()) })
}
