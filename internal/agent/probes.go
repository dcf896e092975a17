package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/echo"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/health"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/probe"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// prober tests the paths by which packets of this node's pods reach other nodes, and answers the tests of theirs. It works beside the loop, which it
// never holds up: the loop gives it what it acts on, and takes the problems that it has found.
//
// It goes by the rule that a fault has to be certain. A node whose agent has not said in etcd that it answers is not asked; one whose kernel says that
// nobody listens has an agent that is away; where there is no route yet, nothing is sent. All these are unknown, and no line in the log.
type prober struct {
	node  string
	port  uint16
	store *store.Client
	ways  func(context.Context, []netip.Addr) (map[netip.Addr]kernel.Hop, error)
	test  func(context.Context, probe.Target) probe.Answers
	log   *slog.Logger
	who   *echo.Responder

	look chan struct{} // cap 1: the loop has given something new
	news chan struct{} // cap 1: there are other problems for the loop

	// Owned by the loop.
	seen     feed.Snapshot
	settings probe.Settings
	peers    []netip.Prefix // who may ask

	mu       sync.Mutex // guards what follows
	targets  []probe.Target
	paths    []api.Path
	problems []string

	// Owned by run.
	ledger    *probe.Ledger
	answering map[string]bool // nodes whose agents answer, as etcd said last
	deaf      string          // why this node answers nobody; "": it does
	told      told            // what was shown last
	published *api.NodePaths  // as etcd has it; nil: not known
	wrote     time.Time       // when it was written last
}

// Bounds of what is under way at once, and of what etcd is asked and told.
const (
	testsAtOnce   = 16
	recordsAtOnce = 100             // in one transaction; etcd takes 128
	recordTimeout = 5 * time.Second // for one of them
	publishPause  = 5 * time.Second // between two that tell the others something
	pathSeries    = 100             // paths that there are metrics of
)

func newProber(node string, c config.Probes, client *store.Client, conn *rtnl.Conn, log *slog.Logger) *prober {
	return &prober{
		node: node, port: uint16(c.Port), store: client, ways: conn.Ways, test: echo.Test, log: log,
		who: echo.NewResponder(uint16(c.Port)), look: make(chan struct{}, 1), news: make(chan struct{}, 1),
		ledger: probe.NewLedger(probe.Pace{Every: c.Every, Peers: c.Peers}), answering: map[string]bool{},
	}
}

// consider takes over what paths depend on, if it is another than before. The loop calls it before it lays out policy, which lets the peers' probes in.
func (p *prober) consider(snap feed.Snapshot, s probe.Settings) {
	if p == nil {
		return
	}
	changed := snap.Since(p.seen)
	s.Port = p.port
	if !changed.Kinds.Has(feed.Nodes|feed.Pools) && reflect.DeepEqual(s, p.settings) {
		p.seen = snap
		return
	}
	m := model(snap, p.node, nil)
	p.seen, p.settings, p.peers = snap, s, probe.Peers(m.Nodes, p.node)
	p.who.Allow(p.peers)
	p.mu.Lock()
	p.targets = probe.Targets(m.Nodes, m.Pools, s)
	p.mu.Unlock()
	poke(p.look)
}

// probing is what the paths of a plan depend on.
func (a *Agent) probing(s plan.Settings, r plan.Result) probe.Settings {
	w := s.WireGuard
	return probe.Settings{
		Node: s.Node, IPv6: s.IPv6 && s.NoIPv6 == "", IPIPEnabled: s.IPIPEnabled, VXLANEnabled: s.VXLANEnabled, BGP: a.bgp != nil,
		MTU: r.PodMTU, VXLANPort: s.VXLANPort,
		WireGuard:  probe.Encryption{On: r.Modes.WireGuard, Device: w.Device, Port: w.Port, Plain: w.Plain},
		WireGuard6: probe.Encryption{On: r.Modes.WireGuard6, Device: w.Device6, Port: w.Port6, Plain: w.Plain},
	}
}

// asked is who may ask this node, and by which port; 0: nobody. The loop calls it.
func (p *prober) asked() (port uint16, peers []netip.Prefix) {
	if p == nil {
		return 0, nil
	}
	return p.port, p.peers
}

// changed tells the loop that troubles says something else than before.
func (p *prober) changed() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.news
}

// troubles are what is wrong with paths. Anybody may call it, as list and numbers.
func (p *prober) troubles() []string {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.problems
}

// list is what is known of every path.
func (p *prober) list() []api.Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paths
}

// numbers counts the paths; nil where none are tested.
func (p *prober) numbers() *health.Paths {
	if p == nil {
		return nil
	}
	out := &health.Paths{Count: map[string]int{string(api.PathOK): 0, string(api.PathBad): 0, string(api.PathUnknown): 0}}
	all := p.list()
	for _, state := range []api.PathState{api.PathBad, api.PathOK, api.PathUnknown} {
		for _, x := range all {
			if x.State != state {
				continue
			}
			out.Count[string(state)]++
			if state != api.PathUnknown && len(out.Known) < pathSeries {
				out.Known = append(out.Known, health.Path{Peer: x.Peer, Family: x.Family, Kind: string(x.Kind), OK: state == api.PathOK, Largest: x.Largest})
			}
		}
	}
	return out
}

// run tests what is due, from when the kernel has been gone through once until ctx ends.
func (p *prober) run(ctx context.Context, up <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-up:
	}
	defer p.who.Close()
	for {
		var timer <-chan time.Time
		if at, ok := p.next(); ok {
			timer = time.After(time.Until(at))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.look:
			p.expect(ctx)
		case <-timer:
			p.round(ctx)
		}
		p.tell()
		p.publish(ctx)
	}
}

// next is when there is something to do.
func (p *prober) next() (at time.Time, ok bool) {
	at, ok = p.ledger.Next()
	if owed := p.wrote.Add(publishPause); p.owes() && (!ok || owed.Before(at)) {
		return owed, true
	}
	return at, ok
}

// expect takes over which paths there are, and answers at their near ends.
func (p *prober) expect(ctx context.Context) {
	p.mu.Lock()
	targets := p.targets
	p.mu.Unlock()
	p.ledger.Expect(targets, time.Now())
	p.listen(ctx, targets)
	p.published = nil // a Node that is deleted takes with it what the node has published
}

func (p *prober) listen(ctx context.Context, targets []probe.Target) {
	p.deaf = ""
	if err := p.who.Listen(ctx, probe.Ends(targets)); err != nil {
		p.deaf = err.Error() + "; set MUSLIN_PATH_PROBE_PORT to a UDP port that is free, on every node the same"
	}
}

// round tests the paths that are due.
func (p *prober) round(ctx context.Context) {
	due := p.ledger.Due(time.Now())
	if len(due) == 0 {
		return
	}
	p.meet(ctx, due)
	ways, err := p.ways(ctx, ends(due))
	if err != nil {
		ways = nil // what cannot be looked up is not there yet
	}
	ready := slices.DeleteFunc(slices.Clone(due), func(t probe.Target) bool {
		why, ok := p.untestable(t, ways)
		if !ok {
			p.ledger.Note(t, why, time.Now())
		}
		return !ok
	})
	found := p.all(ctx, ready)
	p.repair(ctx, ready, found)
	if ctx.Err() != nil {
		return // and what was cut short says nothing
	}
	for i, t := range ready {
		p.ledger.Note(t, found[i], time.Now())
	}
	if p.deaf != "" {
		p.mu.Lock()
		targets := p.targets
		p.mu.Unlock()
		p.listen(ctx, targets)
	}
}

func ends(targets []probe.Target) (out []netip.Addr) {
	for _, t := range targets {
		if t.Lacking() == "" {
			out = append(out, t.To)
		}
	}
	return out
}

// meet asks etcd whose agents answer. While it does not say, what it said last counts.
func (p *prober) meet(ctx context.Context, due []probe.Target) {
	var names []string
	for _, t := range due {
		names = append(names, t.Peer)
	}
	slices.Sort(names)
	for some := range slices.Chunk(slices.Compact(names), recordsAtOnce) {
		if !p.store.Connected() {
			return
		}
		ranges := make([]store.Range, len(some))
		for i, name := range some {
			ranges[i].Key = api.PathsKey(name)
		}
		ctx, cancel := context.WithTimeout(ctx, recordTimeout)
		got, _, err := p.store.Read(ctx, ranges...)
		cancel()
		if err != nil {
			return
		}
		for i, name := range some {
			p.answering[name] = len(got[i]) > 0
		}
	}
}

// untestable says why a path cannot be tested now, unless ok.
func (p *prober) untestable(t probe.Target, ways map[netip.Addr]kernel.Hop) (why probe.Finding, ok bool) {
	switch {
	case !p.answering[t.Peer]:
		return probe.Absent(), false
	case t.Lacking() != "":
		return probe.Unknown(t.Lacking()), false
	case t.Device != "" && ways[t.To].Dev.Name != t.Device:
		return probe.Unknown("this node has no route to the peer by " + t.Device + "; if it should, the log says what it lacks"), false
	}
	return probe.Finding{}, true
}

// all tests paths, some at a time.
func (p *prober) all(ctx context.Context, targets []probe.Target) []probe.Finding {
	out := make([]probe.Finding, len(targets))
	var g errgroup.Group
	g.SetLimit(testsAtOnce)
	for i, t := range targets {
		g.Go(func() error {
			out[i] = probe.Judge(t, p.test(ctx, t))
			return nil
		})
	}
	_ = g.Wait() // nothing fails
	return out
}

// repair has the kernel compute checksums where what is left to the device does not arrive, and tests these paths again. That a path fails so twice in a row
// is no chance. The plan knows nothing of it: it is a property of this host's kernel and drivers that stays as long as the device does, and that an agent
// without memory finds as it was left.
func (p *prober) repair(ctx context.Context, targets []probe.Target, found []probe.Finding) {
	off := map[string]error{}
	for i, t := range targets {
		if found[i].Fault != api.FaultChecksum || t.Device == "" || ctx.Err() != nil {
			continue
		}
		err, done := off[t.Device]
		if !done {
			if found[i] = probe.Judge(t, p.test(ctx, t)); found[i].Fault != api.FaultChecksum {
				continue
			}
			err = p.leaveOffload(t)
			off[t.Device] = err
		}
		if err != nil {
			found[i].Text += "; the agent cannot: " + err.Error()
			continue
		}
		found[i] = probe.Judge(t, p.test(ctx, t))
	}
}

// leaveOffload has the kernel compute the checksums of what goes by a path's device, and says so.
func (p *prober) leaveOffload(t probe.Target) error {
	on, err := rtnl.TxChecksum(t.Device)
	if err == nil && !on {
		err = errors.New("the kernel computes them already")
	}
	if err == nil {
		err = rtnl.TurnOffTxChecksum(t.Device)
	}
	if err != nil {
		return err
	}
	p.log.Warn("turned off tx checksum offload: packets whose checksum is left to the device do not arrive, others do; a fault of the kernel or of the driver below",
		"device", t.Device, "path", t.String())
	return nil
}

// told is what the prober shows depends on: what the ledger has found, and why this node answers nobody.
type told struct {
	found int
	deaf  string
}

// tell shows what is known, if that is something else than before, and wakes the loop if it has other problems to say.
func (p *prober) tell() {
	now := told{p.ledger.Found(), p.deaf}
	if now == p.told {
		return
	}
	p.told = now
	problems := p.ledger.Problems()
	if p.deaf != "" {
		problems = append(problems, p.deaf)
	}
	p.mu.Lock()
	news := !slices.Equal(problems, p.problems)
	p.paths, p.problems = p.ledger.Paths(), problems
	p.mu.Unlock()
	if news {
		poke(p.news)
	}
}

// owes tells whether the others are to be told something. A node that answers nobody tells nothing.
func (p *prober) owes() bool {
	return p.deaf == "" && (p.published == nil || !reflect.DeepEqual(*p.published, p.ledger.Record()))
}

// publish tells the other nodes, by etcd, that this one answers, and what is wrong with its paths. What fails is tried again after a while. What the
// agent before this one has said stays until every path was tried.
func (p *prober) publish(ctx context.Context) {
	if !p.owes() || time.Since(p.wrote) < publishPause {
		return
	}
	if p.wrote = time.Now(); !p.store.Connected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	now := p.ledger.Record()
	_, err := store.Mutate(ctx, p.store, api.PathsKey(p.node), func(v *api.NodePaths, exists bool) (write bool, err error) {
		write = !exists || now.Tested && !reflect.DeepEqual(*v, now)
		*v = now
		return write, nil
	})
	p.published = nil
	if err == nil {
		p.published = &now
	}
}

// withdraw tells the other nodes that this one answers no probes, after an agent that did.
func (a *Agent) withdraw(ctx context.Context) error {
	retry := backoff{}
	for {
		err := a.forgetPaths(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		retry.next()
		select {
		case <-ctx.Done():
			return nil
		case <-retry.due():
			retry.fired()
		}
	}
}

func (a *Agent) forgetPaths(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	got, _, err := a.store.Read(ctx, store.Range{Key: api.PathsKey(a.node)})
	if err != nil || len(got[0]) == 0 {
		return err
	}
	var txn store.Txn
	txn.Delete(got[0][0].Key, got[0][0].Rev)
	_, err = a.store.Commit(ctx, &txn)
	return err
}
