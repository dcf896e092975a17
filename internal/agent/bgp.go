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

	"github.com/muslin-cni/muslin/internal/bgp"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/kube"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/pkg/api"
)

const (
	// gather is how long the speaker waits for more of what BGP says before it looks, at least: a peer sends its routes in many messages.
	gather = 100 * time.Millisecond
	// gatherShare times as long as the last look took is waited, too, up to gatherMost: each looks at everything, and there are many while a large table
	// comes in.
	gatherShare = 4
	gatherMost  = time.Second
	// waysAge is how old the ways to distant gateways may get: no event says when somebody else's routes change.
	waysAge = 10 * time.Second
	// peersTime is how long an agent that starts waits for its peers before it gives up what they may have said to the one before it, as
	// long as peers wait for us (bgp.md: restart time).
	peersTime = 120 * time.Second
	// restLook is how often it is looked whether a peer that has announced too many routes has rested.
	restLook = 5 * time.Second
	// kubeRetry is how often a speaker that waits for Kubernetes' first answers looks whether the wait is over.
	kubeRetry = 250 * time.Millisecond
	// speakerTimeout bounds one change of the speaker, and its end.
	speakerTimeout = 10 * time.Second
)

// cluster is what BGP needs of Kubernetes.
type cluster interface {
	// Secret returns the value of a key of a Secret in the agent's namespace; ok is false while it is not known or absent.
	Secret(name, key string) (value string, ok bool)
	// Advertised returns the services' addresses that this node shall attract, sorted, given the BGPConfigurations.
	Advertised(configs []*api.BGPConfiguration) []netip.Prefix
	// Founded says how well founded those answers are. They are Coming for some seconds at most.
	Founded() kube.Knowledge
	// Changed delivers when an answer may be another one.
	Changed() <-chan struct{}
}

// speaker is this node's part in BGP. It has a goroutine of its own, beside the loop: GoBGP does one thing at a time for all its peers, and
// neither the kernel nor a pod's ADD shall wait for that. The loop gives it the snapshots that it acts on itself, so that what is frozen
// is frozen here too, and takes from it what BGP has learned, which the plan makes routes of. Nothing here writes to the kernel.
type speaker struct {
	node, routerID string
	kube           cluster // nil: no Kubernetes
	host           func() kernel.Host
	ways           func(context.Context, []netip.Addr) (map[netip.Addr]kernel.Hop, error)
	mark           string // file that says that this node has spoken BGP; "": none
	most           uint32 // routes of one family that a peer may announce; 0: any number
	log            *slog.Logger

	look chan struct{} // cap 1: the loop has given something new
	news chan struct{} // cap 1: there is something new for the loop

	mu       sync.Mutex // guards what follows
	given    *given
	learned  *plan.Learned // what the plan is to go by; never nil
	problems []string
	failing  string      // why the last look failed; "": it did not
	server   *bgp.Server // nil until there is something to say
	applied  time.Time   // when the speaker was last changed; zero: never

	said spoken // owned by run
}

// given is what the loop gives.
type given struct {
	snap  feed.Snapshot
	local bool   // the agent makes all routes to nodes by itself
	float bool   // floating addresses lead to their pods
	facts uint64 // number of the host's facts
}

// spoken is what run remembers from one look to the next.
type spoken struct {
	model   peering.Model
	early   bool // Kubernetes' part of the model is on its way, and nobody has been told anything yet
	done    bool // the model is applied
	result  peering.Result
	asked   bool                    // there was a first Apply
	awaited map[netip.Addr]struct{} // its peers that have not told everything yet
	until   time.Time               // they are waited for
	held    []kernel.RouteKey
	distant []netip.Addr // gateways that the kernel was asked the way to
	ways    map[netip.Addr]kernel.Hop
	waysAt  time.Time
	took    time.Duration // the last look
	excess  []string      // about peers that have announced too many routes
}

func newSpeaker(node, routerID string, c *rtnl.Conn, host func() kernel.Host, log *slog.Logger) *speaker {
	return &speaker{
		node: node, routerID: routerID, host: host, ways: c.Ways, log: log, look: make(chan struct{}, 1), news: make(chan struct{}, 1),
		learned: &plan.Learned{Settling: true},
	}
}

// found takes note of the routes that the kernel holds when the agent starts, before any is removed. Those that may have been learned stay until
// peers have said what they have to say. The first call counts. The loop calls it.
func (b *speaker) found(routes map[kernel.RouteKey]kernel.Route, ours kernel.Ownership) {
	if b == nil || b.speaking() != nil {
		return
	}
	l := &plan.Learned{Settling: true}
	earlier := false
	for k, r := range routes {
		remote := r.Gateway.IsValid() || r.Hops != ""
		earlier = earlier || remote || r.Type == kernel.Blackhole
		if remote && k.Metric != 0 && ours.HasProtocol(r.Protocol) && !isVXLAN(r.Dev.Name) { // those of the datastore have no metric, which for IPv6 cannot be told
			l.Held = append(l.Held, k)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.learned = l
	b.server = bgp.New(b.log, bgp.Options{Restarting: earlier, MaxRoutes: b.most})
}

// isVXLAN tells whether a device is one into which BGP's routes never lead.
func isVXLAN(dev string) bool { return dev == kernel.VXLANDevice || dev == kernel.VXLAN6Device }

// consider takes what the loop acts on, and has it looked at if BGP depends on what is new in it. The loop calls it.
func (b *speaker) consider(g given) {
	if b == nil {
		return
	}
	b.mu.Lock()
	old := b.given
	b.given = &g
	b.mu.Unlock()
	if old == nil || old.local != g.local || old.float != g.float || old.facts != g.facts || g.snap.Since(old.snap).Kinds.Has(feed.ForBGP) {
		poke(b.look)
	}
}

// changed receives when there is something new for the loop; it is nil without BGP.
func (b *speaker) changed() <-chan struct{} {
	if b == nil {
		return nil
	}
	return b.news
}

// heard is what BGP has for the plan; nil without BGP.
func (b *speaker) heard() *plan.Learned {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.learned
}

// troubles are the problems of peering.
func (b *speaker) troubles() []string {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.problems
}

// paths are the best paths that peers have sent; none without BGP.
func (b *speaker) paths() ([]peering.Path, error) {
	if b == nil {
		return nil, nil
	}
	server := b.speaking()
	if server == nil {
		return nil, nil
	}
	return server.Learned()
}

func (b *speaker) speaking() *bgp.Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.server
}

// run speaks until ctx ends. Then it falls silent without a word: the peers keep our routes, and the kernel theirs, for the next agent.
func (b *speaker) run(ctx context.Context) error {
	retry := backoff{}
	var gathered <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return b.close()
		case <-b.more():
			if gathered == nil {
				gathered = time.After(min(max(gather, gatherShare*b.said.took), gatherMost))
			}
			continue
		case <-gathered:
			gathered = nil
		case <-b.look:
		case <-b.kubeChanged():
		case <-retry.due():
			retry.fired()
		case <-b.patience():
		}
		began := time.Now()
		done := b.once(ctx)
		b.said.took = time.Since(began)
		if done {
			retry.reset()
		} else {
			retry.next()
		}
	}
}

func (b *speaker) kubeChanged() <-chan struct{} {
	if b.kube == nil {
		return nil
	}
	return b.kube.Changed()
}

// more receives when peers have said something; nil before there are any.
func (b *speaker) more() <-chan struct{} {
	if server := b.speaking(); server != nil {
		return server.Changed()
	}
	return nil
}

// patience receives when it is time to look without being asked to; it is nil if that will never be.
func (b *speaker) patience() <-chan time.Time {
	switch {
	case b.said.early:
		return time.After(kubeRetry)
	case len(b.said.awaited) > 0:
		return time.After(time.Second)
	case len(b.said.excess) > 0:
		return time.After(restLook)
	case len(b.said.distant) > 0:
		return time.After(waysAge)
	}
	return nil
}

// close ends the speaker's sessions so that peers keep the routes (RFC 4724).
func (b *speaker) close() error {
	server := b.speaking()
	if server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), speakerTimeout)
	defer cancel()
	return server.Close(ctx)
}

// once says what is new to the peers and takes over what is new of them. It tells whether all of that succeeded.
func (b *speaker) once(ctx context.Context) bool {
	b.mu.Lock()
	g, server := b.given, b.server
	b.mu.Unlock()
	if g == nil || server == nil {
		return true
	}
	m := b.model(g.snap)
	m.FloatingIPs = g.float
	if b.said.early = b.tooEarly(); b.said.early {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, speakerTimeout)
	defer cancel()
	err := b.speak(ctx, server, m)
	if b.said.asked { // before that, silence says nothing
		err = errors.Join(err, b.listen(ctx, server, g))
	}
	b.complain(ctx, err)
	return err == nil
}

// tooEarly tells whether Kubernetes has yet to say what passwords and services there are. Who speaks for the first time waits for that, which takes
// some seconds at most: peers that kept the routes of an earlier agent drop those that the first words lack.
func (b *speaker) tooEarly() bool {
	return !b.said.asked && b.kube != nil && b.kube.Founded() == kube.Coming
}

// complain says why looks fail: once, and again when it is for another reason.
func (b *speaker) complain(ctx context.Context, err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case why == b.failing || errors.Is(ctx.Err(), context.Canceled):
		return
	case why == "":
		b.log.Info("BGP is as it should be again")
	default:
		b.log.Error("BGP is not as it should be; it is tried again", "error", err)
	}
	b.failing = why
}

// failures is what complain has logged last, while it is so.
func (b *speaker) failures() []string {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing == "" {
		return nil
	}
	return []string{"BGP is not as it should be, and tried again: " + b.failing}
}

// speak computes what this node has to say, and says it. The routes come first: peers take what they are sent at first for the whole.
func (b *speaker) speak(ctx context.Context, server *bgp.Server, m peering.Model) error {
	if b.said.done && m.Equal(b.said.model) {
		return nil
	}
	b.said.model, b.said.done = m, false
	b.said.result = peering.Compute(b.node, m)
	if err := server.Announce(b.said.result.Routes); err != nil {
		return err
	}
	err := server.Apply(ctx, b.said.result.Speaker)
	if !b.said.asked {
		b.await(b.said.result.Speaker.Sessions)
	}
	b.said.done = err == nil
	b.configured(time.Now())
	return err
}

// configured takes note of when the speaker was changed.
func (b *speaker) configured(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied = at
}

// lastConfigured is when the speaker was last changed; zero: never.
func (b *speaker) lastConfigured() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.applied
}

// await begins to wait for the first peers.
func (b *speaker) await(sessions []peering.Session) {
	b.said.asked = true
	if err := b.marked(); err != nil {
		b.log.Warn("write down that this node has spoken BGP", "error", err)
	}
	b.said.awaited, b.said.until = make(map[netip.Addr]struct{}, len(sessions)), time.Now().Add(peersTime)
	for _, s := range sessions {
		b.said.awaited[s.Peer] = struct{}{}
	}
	b.said.held = b.heard().Held
}

// settle looks who of the first peers has told everything. Those that are asked no more are not waited for.
func (b *speaker) settle(server *bgp.Server) error {
	if len(b.said.awaited) == 0 {
		return nil
	}
	all, err := server.Status()
	if err != nil {
		return err
	}
	left := map[netip.Addr]struct{}{}
	for _, s := range all {
		if _, awaited := b.said.awaited[s.Peer]; awaited && !s.Complete {
			left[s.Peer] = struct{}{}
		}
	}
	if !b.said.done { // somebody was not even asked
		left = b.said.awaited
	}
	if len(left) > 0 && time.Now().After(b.said.until) {
		b.log.Warn("BGP peers have not answered since the agent started; what they may have said before it counts no more", "peers", len(left))
		left = nil
	}
	b.said.awaited = left
	return nil
}

// listen takes over what the peers have said.
func (b *speaker) listen(ctx context.Context, server *bgp.Server, g *given) error {
	if err := b.settle(server); err != nil {
		return err
	}
	var err error
	if b.said.excess, err = server.Tend(ctx); err != nil {
		return err
	}
	paths, err := server.Learned()
	if err != nil {
		return err
	}
	rules := b.rules(g)
	l := &plan.Learned{
		Routes: peering.Kernel(paths, rules), Reach: b.said.result.Reach, Local: rules.Local, Settling: len(b.said.awaited) > 0,
	}
	if l.Settling {
		l.Held = b.said.held
	}
	l.Ways, err = b.waysTo(ctx, l)
	b.publish(l)
	return err
}

// publish gives the loop what is new.
func (b *speaker) publish(l *plan.Learned) {
	var problems []string
	for _, p := range b.said.result.Problems {
		problems = append(problems, p.String())
	}
	problems = append(problems, b.said.excess...)
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(problems, b.problems) && reflect.DeepEqual(l, b.learned) {
		return
	}
	b.learned, b.problems = l, problems
	poke(b.news)
}
