package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Config is a run. The same Config is the same run.
type Config struct {
	Seed  uint64
	Nodes int
	Ops   int          // operations: commands, rounds, looks, and what goes wrong; not what etcd is asked
	Pods  int          // that a node may have; 0: 4
	Feeds int          // nodes that have a real feed; at most Nodes
	Rests int          // how often the world comes to rest, the end included; 0: 1
	Dir   string       // for the attach locks
	Log   func(string) // told all that happens; nil: nobody is
	Spoil Spoil
}

// Spoil makes the world wrong on purpose, to see that it is found.
type Spoil struct {
	Txn    func(*pb.TxnRequest) // sees each transaction before etcd does
	Stale  bool                 // the API server answers the controllers from their cache
	Routes func(reconcile.Table[kernel.RouteKey, kernel.Route]) reconcile.Table[kernel.RouteKey, kernel.Route]
	Rules  func(nft.Rules) nft.Rules
	Hasty  bool // routes do not wait for policy
}

// Outcome is what came of a run.
type Outcome struct {
	Hash     uint64 // of all that has happened, in its order
	Ops      int    // that were begun
	Steps    int    // all that was drawn
	Commits  int
	Lost     int            // transactions that were refused, since somebody was quicker
	Late     int            // that came when nobody waited for them any more
	Policies int            // that were written
	Seen     map[string]int // how often each kind of operation was begun
	Err      error          // what did not hold; nil: all did
	Trace    []string       // what happened last
	Time     time.Duration  // that passed in the world
}

// World is a cluster. One goroutine owns it; what others may touch is guarded by mu.
type World struct {
	cfg     Config
	dir     string
	rnd     *rand.Rand
	etcd    *memetcd.Server
	history history
	books   *books
	rules   *rules
	nodes   []*node
	users   map[netip.Addr]*pod   // of addresses, from the ADD that gave them until the interface goes
	running map[string]*pod       // likewise, by container
	halves  map[string]bool       // affinities that Calico has begun to release
	foreign map[string]netip.Addr // addresses of another IPAM's, by container
	over    map[string]bool       // containers whose DEL has succeeded: none is ever added again
	pool    int                   // changes of the pools so far
	vxlan   api.EncapMode
	locked  bool // the datastore
	busy    int  // tasks under way
	tasks   int
	made    int // containers and machines
	life    context.Context
	end     context.CancelFunc
	all     sync.WaitGroup
	admin   *wire
	kube    *kube
	manager *manager       // the controllers; nil: while they are restarted
	mending bool           // the world is at rest or about to be: nothing goes wrong any more
	uplinks *regexp.Regexp // the devices whose MTU counts
	began   time.Time

	sum   hash.Hash64
	trace []string
	out   Outcome

	waiting []*call // the world's own
	adrift  []*call // commits whose callers have gone on, and which come to etcd yet

	mu       sync.Mutex
	down     bool // etcd
	arrived  []*call
	asking   []*stream // for progress
	finished []task
	turn     turn
}

// turn is who has been set going since all stood still. What two causes would have the same process do at the same time, Go's scheduler would put in order, and not the
// seed: so there is one at a time, and a run in which there are two, or in which somebody acts whom nobody has set going, fails by itself.
type turn struct {
	all    bool         // anybody may have been
	who    map[any]bool // or these: nodes, and the operator
	broken string       // what was done out of turn first
}

// task is what a goroutine has done, with what the world makes of it.
type task struct {
	id   int
	then func()
}

const (
	tick        = 2 * time.Second // by which time moves: longer than any pause that the code under test draws by itself
	catchUpTime = 5500 * time.Millisecond
	commandTime = 29500 * time.Millisecond // deadlines that are no whole ticks fall together with nothing else
	undoTime    = 13500 * time.Millisecond
	traceLength = 60
	maxHistory  = 6000 // revisions, until etcd is compacted
)

// now is the world's clock.
func (w *World) now() time.Time { return time.Now().Truncate(tick) }

// note writes down what happens, until something does not hold.
func (w *World) note(format string, args ...any) {
	if w.out.Err != nil {
		return
	}
	line := fmt.Sprintf(format, args...)
	_, _ = w.sum.Write([]byte(line))
	if w.cfg.Log != nil {
		w.cfg.Log(line)
	}
	if len(w.trace) == 2*traceLength {
		w.trace = slices.Clone(w.trace[traceLength:])
	}
	w.trace = append(w.trace, fmt.Sprintf("%d %v  %s", w.out.Steps, time.Since(w.began).Truncate(time.Second), line))
}

// broke notes what does not hold. The first is the run's.
func (w *World) broke(format string, args ...any) {
	if w.out.Err == nil {
		err := fmt.Errorf(format, args...)
		w.note("BROKEN: %v", err)
		w.out.Err = err
	}
}

// faulty reports whether something may go wrong.
func (w *World) faulty() bool { return !w.mending }

// chance is true so many times in a thousand.
func (w *World) chance(perMille int) bool { return w.rnd.IntN(1000) < perMille }

// wire is a new process's way to etcd.
func (n *node) wire(life context.Context, name string) *wire {
	return &wire{w: n.w, name: name, node: n, machine: n.machine, life: life}
}

// uuids makes UUIDs that nobody else makes, in the same order each time.
func (w *World) uuids(of string) func() string {
	w.made++
	prefix, n := fmt.Sprintf("%s-%d", of, w.made), 0
	return func() string { n++; return fmt.Sprintf("%s-%d", prefix, n) }
}

// newWorld is a cluster whose nodes are all up and have nothing to do yet. It is called in the bubble.
func newWorld(cfg Config) *World {
	w := &World{
		cfg: cfg, dir: cfg.Dir, turn: turn{who: map[any]bool{}}, rnd: rand.New(rand.NewPCG(cfg.Seed, cfg.Seed)), etcd: memetcd.New(), books: newBooks(), rules: newRules(), users: map[netip.Addr]*pod{}, running: map[string]*pod{}, over: map[string]bool{}, halves: map[string]bool{}, foreign: map[string]netip.Addr{},
		uplinks: regexp.MustCompile("^eth"), vxlan: api.Always, sum: fnv.New64a(), began: time.Now(),
	}
	if cfg.Nodes > keepPlans {
		w.vxlan = api.Never // what every node would have for every other takes the square of them
	}
	w.out.Seen = map[string]int{}
	w.life, w.end = context.WithCancel(context.Background())
	w.admin = &wire{w: w, name: "operator", life: w.life}
	w.kube = newKube()
	w.found()
	for i := range cfg.Nodes {
		w.nodes = append(w.nodes, w.newNode(i))
	}
	for _, n := range w.nodes {
		w.registers(n, corev1.ConditionTrue)
		n.agent = n.start()
	}
	w.still()
	w.manager = w.newManager()
	return w
}

// found writes what a cluster begins with, past the wires.
func (w *World) found() {
	c := w.etcd.Client()
	ready := true
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: &ready}}
	info.Metadata.Name = "default"
	var t store.Txn
	store.Put(&t, store.Entry[api.ClusterInformation]{Key: ipam.ClusterKey()}, info)
	cfg := api.DefaultIPAMConfig()
	store.Put(&t, store.Entry[api.IPAMConfig]{Key: api.IPAMConfigKey}, &cfg)
	for i := range w.ranges() {
		p := w.newPool(i)
		store.Put(&t, store.Entry[api.IPPool]{Key: api.KeyOf(p)}, p)
	}
	changes, err := c.Commit(context.Background(), &t)
	if err != nil {
		w.broke("found the cluster: %v", err)
		return
	}
	if err := w.rules.enter(changes); err != nil {
		w.broke("found the cluster: %v", err)
	}
	w.history = history{first: changes[0].Rev}
	w.history.snaps = append(w.history.snaps, listed(changes))
}

// newPool is a pool as it is in the beginning: the second is IP-in-IP's, the third IPv6's.
func (w *World) newPool(i int) *api.IPPool {
	cidr := w.ranges()[i]
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr, BlockSize: cidr.Addr().BitLen() - blockBits, VXLANMode: w.vxlan, NATOutgoing: i == 0}}
	if i == 1 && w.vxlan != api.Never {
		p.Spec.VXLANMode, p.Spec.IPIPMode = api.Never, w.vxlan
	}
	p.Metadata.Name = poolName(i)
	p.Default()
	return p
}

func poolName(i int) string { return fmt.Sprintf("pool-%d", i) }

// blockBits is so small that blocks fill up: eight addresses.
const blockBits = 3

// ranges are the pools': so small that nodes contend for them, where there are few nodes. Where there are many, all is IPv4: it takes memory enough.
func (w *World) ranges() []netip.Prefix {
	bits := 9 // of the number of blocks
	for 1<<bits < w.cfg.Nodes+w.cfg.Nodes/4 {
		bits++
	}
	for bits > 0 && 1<<(bits-1) >= w.cfg.Nodes+w.cfg.Nodes/4 {
		bits--
	}
	out := []netip.Prefix{
		netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 32-blockBits-bits), netip.PrefixFrom(netip.MustParseAddr("10.128.0.0"), 32-blockBits-bits+1),
	}
	if w.dual() {
		out = append(out, netip.PrefixFrom(netip.MustParseAddr("fd00:10::"), 128-blockBits-bits))
	}
	return out
}

// dual reports whether there is IPv6 too.
func (w *World) dual() bool { return w.cfg.Nodes <= keepPlans }

// stir notes that the world sets a node or the operator going; nil: it may be anybody.
func (w *World) stir(who any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &w.turn
	if t.all || t.who[who] || who == nil && len(t.who) > 0 {
		t.breaks("the world sets somebody going who may be going already")
	}
	if who == nil {
		t.all = true
		return
	}
	t.who[who] = true
}

func (t *turn) breaks(how string) { t.broken = cmp.Or(t.broken, how) }

// acts notes that somebody does what others will see. The world's mutex is held.
func (w *World) acts(who, what string) {
	if !w.turn.all && len(w.turn.who) == 0 {
		w.turn.breaks(fmt.Sprintf("%s does, out of turn: %s", who, what))
	}
}

// spawn has something done beside the world, as long as ctx lasts, by a node's processes, or by the operator. The world goes on with what comes back.
func (w *World) spawn(ctx context.Context, who any, do func(context.Context) (then func())) {
	w.stir(who)
	id := w.tasks
	w.tasks++
	w.busy++
	w.all.Go(func() {
		then := do(context.WithValue(ctx, taskID{}, id))
		w.mu.Lock()
		defer w.mu.Unlock()
		w.acts(fmt.Sprintf("task %d", id), "end")
		w.finished = append(w.finished, task{id, then})
	})
}

// still waits until nobody can go on without the world. What was asked of it is put in an order that does not depend on who was quicker.
func (w *World) still() {
	for synctest.Wait(); w.passOn(); synctest.Wait() {
	}
	w.mu.Lock()
	w.turn.all = false
	clear(w.turn.who)
	w.queue()
	broken := w.turn.broken
	w.mu.Unlock()
	if broken != "" {
		w.broke("this run is no seed's: %s", broken)
	}
}

// settle waits until nobody can go on without the world, and takes in what was done.
func (w *World) settle() {
	for {
		w.still()
		w.mu.Lock()
		done := w.finished
		w.finished = nil
		w.mu.Unlock()
		if len(done) == 0 {
			return
		}
		slices.SortFunc(done, func(a, b task) int { return cmp.Compare(a.id, b.id) })
		for _, t := range done {
			w.busy--
			if t.then != nil {
				t.then()
				w.still()
			}
		}
	}
}

// pass lets time pass, tick by tick. Whoever has given up waiting is forgotten: his request is carried out now, or never. Feeds are answered at once: they have
// pauses of their own, and what they ask when they have come to nothing would be decided by these.
func (w *World) pass(ticks int) {
	w.note("%d ticks pass", ticks)
	for range ticks {
		w.stir(nil)
		time.Sleep(tick)
		w.settle()
		w.kubelets()
		w.lookAtDue()
		for i := w.find(gaveUp); i >= 0; i = w.find(gaveUp) {
			w.forsake(w.take(i))
			w.settle()
		}
		for i := w.find(fed); i >= 0; i = w.find(fed) {
			w.serve(w.take(i), answered)
			w.settle()
		}
	}
}

// find is the place of the first call of a kind among those that wait; -1 if there is none.
func (w *World) find(is func(*call) bool) int { return slices.IndexFunc(w.waiting, is) }

// gaveUp reports whether nobody waits for a call any more.
func gaveUp(c *call) bool { return c.ctx.Err() != nil }

// fed reports whether it is a feed that asks.
func fed(c *call) bool { return c.from.feeds }

// forsake is the end of a call that nobody waits for. A transaction may be carried out all the same, now or later.
func (w *World) forsake(c *call) {
	if c.writes {
		w.serve(c, []fate{swallowed, silent, late}[w.rnd.IntN(3)])
	}
}

// committed takes in what etcd was made to hold.
func (w *World) committed(x *wire, rev int64, changes []store.KV) {
	w.out.Commits++
	for _, kv := range changes {
		verb := "put"
		if kv.Value == nil {
			verb = "delete"
			if why := w.robbed(x, kv.Key); why != "" {
				w.broke("revision %d: the controllers delete %s, %s", rev, kv.Key, why)
			}
		}
		w.note("  %d: %s %s", kv.Rev, verb, short([]byte(kv.Key)))
	}
	if head := w.history.head(); rev != head+1 {
		w.broke("etcd is at revision %d after %d", rev, head)
		return
	}
	w.history.add(rev, changes)
	for _, container := range containersOf(changes) {
		if w.over[container] {
			w.broke("revision %d, of %s: container %s is given something, whose DEL has succeeded", rev, x.name, container)
		}
	}
	for _, kv := range changes {
		if kv.Value != nil && strings.HasPrefix(kv.Key, (*api.GlobalNetworkPolicy)(nil).KindOf().Prefix()) {
			w.out.Policies++
		}
	}
	touched := w.books.containers(changes)
	given, err := w.books.enter(changes)
	if err = errors.Join(err, w.rules.judge(x, changes, given), w.rules.enter(changes)); err != nil {
		w.broke("revision %d, of %s: %w", rev, x.name, err)
	}
	for _, container := range touched {
		if p := w.running[container]; p != nil && !slices.Equal(w.books.addrsOf(container), p.addrs) {
			w.broke("revision %d, of %s: pod %s (container %s) lives with %v, and its endpoint has %v", rev, x.name, p.name(), container, p.addrs, w.books.addrsOf(container))
		}
	}
}

// Run runs a world until its operations are done or something does not hold. It must be called in a bubble of testing/synctest.
func Run(cfg Config) Outcome {
	if cfg.Pods == 0 && cfg.Nodes <= keepPlans {
		cfg.Pods = 13
	}
	cfg.Pods, cfg.Rests, cfg.Feeds = cmp.Or(cfg.Pods, 3), cmp.Or(cfg.Rests, 1), min(cfg.Feeds, cfg.Nodes)
	w := newWorld(cfg)
	w.rest() // everybody arrives
	for part := range cfg.Rests {
		for until := cfg.Ops * (part + 1) / cfg.Rests; w.out.Ops < until && w.out.Err == nil; {
			w.step()
		}
		if w.out.Err == nil {
			w.rest()
		}
	}
	w.close()
	w.out.Hash, w.out.Trace, w.out.Time = w.sum.Sum64(), w.trace[max(0, len(w.trace)-traceLength):], time.Since(w.began)
	return w.out
}

// close ends everybody.
func (w *World) close() {
	w.stir(nil)
	w.end()
	w.still()
	w.manager.stop()
	for _, n := range w.nodes {
		if n.agent != nil {
			n.stop()
		}
	}
	w.mu.Lock()
	w.down = true
	waiting := slices.Concat(w.waiting, w.arrived)
	w.waiting, w.arrived = nil, nil
	w.mu.Unlock()
	w.stir(nil)
	for _, c := range waiting {
		c.answer(nil, errBroken)
	}
	w.all.Wait()
}

// tables are a host's, spoilt where the run says so.
func (w *World) tables(n *node) reconcile.Tables {
	t := n.kernel.Tables()
	if w.cfg.Spoil.Routes != nil {
		t.Routes = w.cfg.Spoil.Routes(t.Routes)
	}
	return t
}
