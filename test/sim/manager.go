package sim

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/controllers"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// manager is the process of the controllers from its start to its end: those that take addresses back, which look when the world says so. It has a real feed, and
// of Kubernetes a cache.
type manager struct {
	w       *World
	wire    *wire
	ears    *wire // of its feed
	feed    *feed.Feed
	feeding sync.WaitGroup
	ctx     context.Context
	kill    context.CancelFunc
	work    controllers.Cleaners
	cache   apiObjects
	untold  []happening // that the cache does not have yet
	stalled bool        // it hears of nothing, and does not know that
	audits  bool        // a look is under way
	looks   map[string]bool
	due     map[string]time.Time // when to look at nodes anew
}

const (
	controllersName = "controllers" // of their wire
	nodeGrace       = time.Minute
	leakGrace       = 2 * time.Minute
	lookTime        = 59500 * time.Millisecond
)

// newManager begins the controllers. What they know of Kubernetes may be out of date from the first.
func (w *World) newManager() *manager {
	m := &manager{w: w, cache: w.kube.then.clone(), looks: map[string]bool{}, due: map[string]time.Time{}}
	behind := 0
	if w.faulty() {
		behind = w.rnd.IntN(len(w.kube.log) + 1)
	}
	m.untold = append(m.untold, w.kube.log...)
	m.ctx, m.kill = context.WithCancel(w.life)
	m.wire, m.ears = &wire{w: w, name: controllersName, life: m.ctx}, &wire{w: w, name: "controllers/feed", life: m.ctx, feeds: true}
	m.feed = feed.New(m.ears.client(), discard())
	pauses := rand.New(rand.NewPCG(w.rnd.Uint64(), 0))
	m.feed.DrawPauses(func(below time.Duration) time.Duration { return time.Duration(pauses.Int64N(int64(below))) })
	m.work = controllers.NewCleaners(controllers.CleanersDeps{
		Store: m.wire.client(), Feed: m.feed, Kube: m, Now: w.now, UUID: w.uuids("controllers"), NodeGrace: nodeGrace, LeakGrace: leakGrace, Log: discard(),
	})
	m.tell(len(m.untold) - behind)
	w.stir(m)
	m.feeding.Go(func() { _ = m.feed.Run(m.ctx) })
	w.still()
	return m
}

// tell has the cache hear of so many more changes. A node that has come or gone is looked at soon.
func (m *manager) tell(n int) {
	for _, h := range m.untold[:n] {
		m.cache.take(h)
		if h.pods {
			continue
		}
		if m.due[h.name] = time.Now(); h.node != nil {
			m.work.Came(h.name)
		}
	}
	m.untold = m.untold[n:]
}

// unaware tells whether the cache has yet to hear that a node of Kubernetes has come.
func (m *manager) unaware(name string) bool {
	return slices.ContainsFunc(m.untold, func(h happening) bool { return h.node != nil && h.name == name })
}

// stop ends the process.
func (m *manager) stop() {
	w := m.w
	w.manager = nil
	w.stir(m)
	m.kill()
	w.still()
	for _, x := range []*wire{m.wire, m.ears} {
		x.connected(true, false)
		w.hangUp(x, lostAnswer, lost)
	}
	m.feeding.Wait()
}

// restartManager has another process of the controllers take over.
func (w *World) restartManager(*node) bool {
	w.manager.stop()
	w.manager = w.newManager()
	return true
}

// tellManager has the controllers hear of a part of what happened in Kubernetes, or all.
func (w *World) tellManager(*node) bool {
	m := w.manager
	if len(m.untold) == 0 || m.stalled {
		return false
	}
	m.tell(1 + w.rnd.IntN(len(m.untold)))
	m.stalled = w.chance(100)
	return true
}

// wakeManager has the controllers hear of Kubernetes again.
func (w *World) wakeManager(*node) bool {
	was := w.manager.stalled
	w.manager.stalled = false
	return was
}

// auditAll has the controllers look at all addresses.
func (w *World) auditAll(*node) bool {
	m := w.manager
	if m.audits {
		return false
	}
	m.audits = true
	w.spawn(m.ctx, m, func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, 3*lookTime)
		defer cancel()
		_ = m.work.Audit(ctx) // it is tried again when that is drawn
		return func() {
			m.audits = false
			w.succeed()
		}
	})
	return true
}

// lookAt has the controllers look whether a node is still one.
func (w *World) lookAt(n *node) bool {
	m := w.manager
	if m.looks[n.name] {
		return false
	}
	m.looks[n.name] = true
	delete(m.due, n.name)
	w.spawn(m.ctx, m, func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, lookTime)
		defer cancel()
		again, err := m.work.Node(ctx, n.name)
		if err != nil {
			again = time.Second
		}
		return func() {
			delete(m.looks, n.name)
			if again > 0 {
				m.due[n.name] = time.Now().Add(again)
			}
			w.succeed()
		}
	})
	return true
}

// lookAtDue has the controllers look at nodes when it is time to.
func (w *World) lookAtDue() {
	for _, n := range w.nodes {
		if due, ok := w.manager.due[n.name]; ok && !due.After(time.Now()) {
			w.lookAt(n)
			w.settle()
		}
	}
}

// succeed puts other hosts in the places of those that are lost and of which nothing is left, but for blocks where it is recorded whose the name is: who has it next
// has them too.
func (w *World) succeed() {
	for _, n := range w.nodes {
		if n.lost && !w.rules.nodes[n.name] && (w.rules.holders[n.name] != "" || !w.rules.claimed(n.name)) && !w.books.anyOn(n.name) {
			w.replace(n)
		}
	}
}

// deleteBarely is another program's deletion of a Node that takes back nothing of what it had: of a lost host's, so that the audit has to, and now and then of one that
// lives, whose agent makes it anew when it starts.
func (w *World) deleteBarely(n *node) bool {
	if n.off && !n.lost || !w.rules.nodes[n.name] || !n.lost && w.chance(800) {
		return false
	}
	keys := []store.Range{{Key: api.NodeKey(n.name)}}
	if n.lost && w.chance(500) {
		keys = append(keys, store.Range{Key: api.IdentityKey(n.name)})
	}
	machine := n.machine
	w.foreignProgram(func(ctx context.Context, c *store.Client) error {
		got, _, err := c.Read(ctx, keys...)
		var t store.Txn
		for _, kv := range slices.Concat(got...) {
			t.Delete(kv.Key, kv.Rev)
		}
		if err != nil || t.Empty() || n.machine != machine {
			return err
		}
		_, err = c.Commit(ctx, &t)
		return err
	})
	return true
}

// calico is the name of another program's wire.
const calico = "calico"

// foreignProgram has another program do something, once: who fails is not tried again.
func (w *World) foreignProgram(do func(context.Context, *store.Client) error) {
	c := (&wire{w: w, name: calico, life: w.life}).client()
	w.spawn(w.life, w.admin, func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, commandTime)
		defer cancel()
		_ = do(ctx, c)
		return nil
	})
}

// releaseAffinity takes a block from a node as Calico does, in three steps, of which it may not come to the last.
func (w *World) releaseAffinity(n *node) bool {
	var keys []string
	for key, is := range w.rules.claims {
		if is && affinityOf(key, n.name) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return false
	}
	slices.Sort(keys)
	key, steps := keys[w.rnd.IntN(len(keys))], 1+w.rnd.IntN(3)
	_, cidr, err := api.ParseAffinityKey(key)
	if err != nil {
		return false
	}
	w.halves[key] = true
	w.foreignProgram(func(ctx context.Context, c *store.Client) error { return releases(ctx, c, key, n.name, cidr, steps) })
	return true
}

// releases takes so many steps of the release of an affinity.
func releases(ctx context.Context, c *store.Client, key, node string, cidr netip.Prefix, steps int) error {
	a, err := store.Get[api.Affinity](ctx, c, key)
	if err != nil {
		return err
	}
	b, err := store.Get[api.Block](ctx, c, api.BlockKey(cidr))
	mine := false
	if err == nil {
		host, _ := b.Value.Host()
		mine = host == node
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if mine {
		if a, err = store.Update(ctx, c, a, &api.Affinity{State: api.AffinityPendingDeletion}); err != nil || steps == 1 {
			return err
		}
		if err := disown(ctx, c, b); err != nil || steps == 2 {
			return err
		}
	}
	return remove(ctx, c, a.Key, a.Rev)
}

func remove(ctx context.Context, c *store.Client, key string, rev int64) error {
	var t store.Txn
	t.Delete(key, rev)
	_, err := c.Commit(ctx, &t)
	return err
}

// disown makes a block nobody's, or deletes it where it is empty.
func disown(ctx context.Context, c *store.Client, b store.Entry[api.Block]) error {
	if block.Empty(b.Value) {
		return remove(ctx, c, b.Key, b.Rev)
	}
	next := *b.Value
	next.Affinity = nil
	_, err := store.Update(ctx, c, b, &next)
	return err
}

// finishAll has Calico go on with what it has begun, as it does sooner or later.
func (w *World) finishAll() {
	for _, key := range slices.Sorted(maps.Keys(w.halves)) {
		node, cidr, err := api.ParseAffinityKey(key)
		if err != nil {
			continue
		}
		w.foreignProgram(func(ctx context.Context, c *store.Client) error {
			a, err := store.Get[api.Affinity](ctx, c, key)
			if err != nil || a.Value.State != api.AffinityPendingDeletion {
				return err
			}
			return releases(ctx, c, key, node, cidr, 3)
		})
		w.settle()
	}
	if len(w.adrift) == 0 { // else a step may come late
		clear(w.halves)
	}
	w.quiet()
}

// bury lets Kubernetes find out that a lost host is gone, all of it, and the controllers look.
func (w *World) bury(n *node) {
	w.dropNode(n)
	for _, name := range w.leftPods(n) {
		w.unbound(name)
	}
	w.manager.tell(len(w.manager.untold))
	w.lookAt(n)
	w.settle()
	w.auditAll(nil)
	w.settle()
}

// robbed says what a commit of the controllers takes from a host that lives, or from a pod that Kubernetes has. A host lives once it has registered: from then on it
// makes what was begun before fail, however late that comes.
func (w *World) robbed(x *wire, key string) string {
	if x.name != controllersName {
		return ""
	}
	for _, n := range w.nodes {
		isNode := key == api.NodeKey(n.name)
		switch {
		case n.back: // nobody can know yet
		case !n.off && w.rules.holders[n.name] == n.machine && (isNode || affinityOf(key, n.name)):
			return "which is a host's that lives"
		case isNode && w.kube.now.nodes[n.name] != nil && reports(w.kube.now.nodes[n.name]):
			return "which Kubernetes has a node for"
		case isNode && w.kube.now.podOn(n.name) != nil:
			return "and Kubernetes still has pods on it"
		}
	}
	return ""
}

func reports(n *corev1.Node) bool { return n.Status.Conditions[0].Status == corev1.ConditionTrue }
