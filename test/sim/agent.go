package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/internal/agent"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// process is an agent from its start to its end. The world has it do one round, one look of the audit, and so on at a time.
type process struct {
	n       *node
	wire    *wire
	ears    *wire // of its feed
	client  *store.Client
	follows follower
	view    *view // nil: it has a real feed
	handler *register.Handler
	kernel  *reconcile.Reconciler
	planner *plan.Planner   // nil: each plan is computed anew, which takes less memory
	memo    *memo           // the last plan, while it is kept
	guard   *agent.Guarding // nil: policy is not looked at here
	linger  agent.Lingering
	audit   agent.Audit
	ctx     context.Context // ends with the process
	kill    context.CancelFunc
	feeding sync.WaitGroup

	up       bool // it has its name, and serves pods
	rounding bool
	auditing bool
	settling bool // its tunnel addresses
	dirty    bool // it is time for its tables to be listed again
	pools    int  // the number of the change of pools that its tunnels follow
	failed   error
}

// start begins a new agent on a node. It knows nothing yet.
func (n *node) start() *process {
	w := n.w
	p := &process{n: n, pools: -1}
	p.ctx, p.kill = context.WithCancel(n.life)
	p.wire, p.ears = n.wire(p.ctx, n.name), n.wire(p.ctx, n.name+"/feed")
	p.ears.feeds = true
	for _, x := range p.wires() {
		x.connected(n.cut, n.deaf)
	}
	p.client = p.wire.client()
	if n.watches {
		f := feed.New(p.ears.client(), discard())
		f.Local(n.name)
		pauses := rand.New(rand.NewPCG(n.w.rnd.Uint64(), 0))
		f.DrawPauses(func(below time.Duration) time.Duration { return time.Duration(pauses.Int64N(int64(below))) })
		p.follows = f
		w.stir(n)
		p.feeding.Go(func() { _ = f.Run(p.ctx) })
		w.still()
	} else {
		p.view = newView(&w.history)
		p.follows = p.view
	}
	p.handler = register.New(register.Config{
		Client: p.client, Node: n.name, Machine: n.machine, Now: w.now, UUID: w.uuids(n.name), Committed: p.follows.Commit, Pause: p.wire.again,
		Source: func() register.Source {
			s, ok := p.follows.Snapshot()
			if !ok {
				return nil
			}
			return register.Picture(s)
		},
	})
	p.kernel = reconcile.New(w.tables(n), discard())
	host, _ := n.kernel.Host()
	p.linger = agent.NewLingering(w.now, host)
	p.audit = agent.NewAudit(agent.AuditDeps{
		Node: n.name, Locks: n.locks, Now: w.now, Log: discard(), Free: p.door().free, Picture: p.picture, GiveUp: p.giveUp,
		Links:  func(context.Context) (map[string]bool, error) { return n.kernel.Names(), nil },
		Linked: func(name string) (bool, error) { return n.kernel.Names()[name], nil },
	})
	if len(w.nodes) <= keepPlans {
		p.planner = &plan.Planner{}
	}
	if n.guarded() {
		g := agent.NewGuarding(n.name, n.rules(), discard())
		p.guard = &g
	}
	return p
}

func (p *process) wires() []*wire { return []*wire{p.wire, p.ears} }

// keepPlans is up to how many nodes each keeps its last plan.
const keepPlans = 300

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// settings are what all nodes have.
func (n *node) settings() plan.Settings {
	return plan.Settings{
		Node: n.name, IPv6: n.w.dual(), MTUIface: n.w.uplinks, VXLANPort: 4789, VXLANVNI: 4096, AcceptMark: 0x10000,
	}
}

// usable is the snapshot that the kernel may be made to match, if there is one.
func (p *process) usable() (feed.Snapshot, bool) {
	snap, ok := p.follows.Snapshot()
	return snap, ok && agent.Frozen(snap, p.n.name, p.n.machine) == ""
}

// round is what the agent's loop does in one: see internal/agent, loop.go, whose order this is. acted tells whether there was a snapshot to act on.
func (p *process) round(ctx context.Context) (acted bool, err error) {
	snap, ok := p.usable()
	if !ok {
		return false, nil
	}
	p.kernel.Observe(p.n.kernel.Events())
	listed, listErr := p.kernel.Refresh(ctx)
	if !listed {
		return true, errors.Join(listErr, p.program(ctx, snap, p.kernel.Apply))
	}
	if p.guard != nil {
		p.guard.Check()
	}
	repairErr := p.program(ctx, snap, p.kernel.Repair)
	if err := p.catchUp(ctx); err != nil {
		p.kernel.MarkDirty()
		return true, errors.Join(listErr, repairErr, err)
	}
	if snap, ok = p.usable(); !ok {
		p.kernel.MarkDirty()
		return true, errors.Join(listErr, repairErr)
	}
	if p.guard != nil {
		p.guard.Believe()
	}
	return true, errors.Join(listErr, p.program(ctx, snap, p.kernel.Apply))
}

// program writes what the kernel should hold by a snapshot.
func (p *process) program(ctx context.Context, snap feed.Snapshot, write func(context.Context, kernel.State) (reconcile.Result, error)) error {
	result := p.plan(snap)
	want, guardErr := result.State, error(nil)
	if p.guard != nil {
		host, facts := p.n.kernel.Host()
		guardErr = p.guard.Enforce(ctx, snap, p.n.policySettings(snap, result.Tunnels), host, facts)
		if !p.n.w.cfg.Spoil.Hasty {
			want = p.guard.Admit(want)
		}
	}
	p.linger.Saw(result.Modes)
	_, err := write(ctx, want)
	return errors.Join(guardErr, err)
}

// memo is a plan and what it was computed from.
type memo struct {
	snap     feed.Snapshot
	facts    uint64
	settings plan.Settings
	result   plan.Result
}

// plan computes what the node should have by a snapshot.
func (p *process) plan(snap feed.Snapshot) plan.Result {
	host, facts := p.n.kernel.Host()
	s := p.linger.Settings(p.n.settings())
	if p.planner != nil {
		r, _ := p.planner.Compute(agent.Model(snap, p.n.name), s, host)
		return r
	}
	if m := p.memo; m != nil && m.facts == facts && m.snap == snap && reflect.DeepEqual(m.settings, s) {
		return m.result
	}
	r := plan.Compute(agent.Model(snap, p.n.name), s, host)
	if p.memo != nil {
		*p.memo = memo{snap, facts, s, r}
	}
	return r
}

// catchUp waits until the node knows all that etcd holds now.
func (p *process) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	rev, err := p.client.Revision(ctx)
	if err != nil {
		return fmt.Errorf("ask etcd for its revision: %w", err)
	}
	return p.follows.WaitFor(ctx, rev)
}

func (p *process) picture(ctx context.Context) (feed.Snapshot, bool, error) {
	if err := p.catchUp(ctx); err != nil {
		return feed.Snapshot{}, false, err
	}
	snap, ok := p.usable()
	return snap, ok, nil
}

func (p *process) giveUp(ctx context.Context, u ipam.Unused) error {
	changed, err := ipam.ReturnBlock(ctx, p.client, u)
	p.follows.Commit(changed)
	return err
}

// ensureTunnels gives the node the tunnel addresses that its pools ask for.
func (p *process) ensureTunnels(ctx context.Context) error {
	_, changed, err := ipam.EnsureTunnels(ctx, p.client, p.n.name, p.n.w.now, p.linger.Kept()...)
	p.follows.Commit(changed)
	return err
}
