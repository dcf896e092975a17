// Package modelcheck drives the real address management through every order of events that a small cluster allows.
//
// An actor is real code (internal/register, pkg/ipam, and Calico's step sequences beside them) that asks etcd for something and goes on when it is answered.
// So all that matters of it is what it has been answered: it is run anew against those replies each time (tape), and what it asks next is its next step.
// etcd is internal/memetcd, any moment of which can be gone back to. A state of the world is thus etcd's and the actors' replies, and the explorer
// goes breadth first through all of them, each once:
//
//   - at any moment any actor makes its next step: one request, whole, to etcd;
//   - a commit may be carried out and its reply lost, or be lost itself: the actor cannot tell, and its caller starts the command again, or gives it up and
//     calls the next;
//   - a commit that the actor knows as little of may be carried out at any moment after that (late.go);
//   - a process may die in front of any step, and so behind any commit: its caller starts the command again in a new one, or nobody ever does.
//
// In every state the invariants of package ipam must hold, and what containers were told must be true. In every state, too, it is seen what would be left if
// all processes died there and only the audits of their nodes ran: nothing but what is alive. (One that died earlier for good is one that makes no more steps: all
// those states are among these.)
//
// What makes it feasible, and why no state is lost by it:
//
//   - A read of keys that no other actor ever writes is made at once: when does not matter. Who writes what is noted as it happens (writers); where a note comes too late
//     for a read that was made on it, the exploration begins anew with it.
//   - Two states are one if etcd holds the same in them and actors were told the same, but for revisions: of those only matters which are equal, and which
//     are still current. Code that computed with revisions would break that; package store has the only one, and it compares.
//   - What a process was told before a command that has ended, or an attempt that was refused, is forgotten where it plans anew from nothing; it is checked
//     each time that it asks then just what a new process asks.
package modelcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Scenario is what is explored: where it begins, and who does what.
type Scenario struct {
	Name   string
	Start  Start
	Actors []Actor
	// Lost bounds, per agent that plans from memory, the replies and requests that are lost to one process: it remembers them. All else may happen any number of times.
	Lost int
	// Late bounds the commits that are carried out late, or never, one at a time.
	Late int
	// Broken changes what Muslin's actors commit, to see whether that is found; nil: it stays as it is.
	Broken func(*pb.TxnRequest) *pb.TxnRequest
}

// Result is what an exploration went through.
type Result struct {
	States, Transitions, Depth int
	Ends                       int        // states in which all actors have ended or died
	Violation                  *Violation // the first, with the fewest steps; nil: none
}

// Plus is two explorations taken together; of violations, the first.
func (r Result) Plus(o Result) Result {
	r.States, r.Transitions, r.Depth, r.Ends = r.States+o.States, r.Transitions+o.Transitions, max(r.Depth, o.Depth), r.Ends+o.Ends
	if r.Violation == nil {
		r.Violation = o.Violation
	}
	return r
}

// Violation is a state that must not be, and a shortest way to it.
type Violation struct {
	What  string
	Trace []string
}

// Error tells both.
func (v *Violation) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, after %d steps:", v.What, len(v.Trace))
	for i, step := range v.Trace {
		fmt.Fprintf(&b, "\n%3d. %s", i+1, step)
	}
	return b.String()
}

// ErrTooMany ends an exploration that came to more states than it may.
var ErrTooMany = errors.New("there are more states than the bound")

// choice is what becomes of an actor's next step.
type choice uint8

const (
	steps    choice = iota // it is carried out and answered
	replyOff               // it is carried out, and the reply is lost
	sendOff                // it is lost
	sendLate               // nobody knows; see lands
	dies                   // the process dies before it, for good, and leaves the lock that it holds to another
	restarts               // the process dies before it, and a new one begins the command again
	choices
	lands // what was sent late is carried out
)

// world is etcd at one moment with what its content is told by.
type world struct {
	etcd   memetcd.State
	digest uint64
}

// node is a state.
type node struct {
	world  *world
	actors [3]*local
	late   *late // under way; nil: nothing is
	lates  int   // that were so until now
	wrong  error // what the commit that led here must not have done
	id     uint32
	depth  int
}

// local is the state of an actor. It is never modified.
type local struct {
	first   int // the op that its process began with
	replies []reply
	raw     uint64 // of these
	lost    int    // replies, to this process
	dead    bool
	begun   uint8    // ops that have made a step, in any life, of those of which that matters
	told    []string // by op that has ended, in any life; "" if not
	ran     *ran

	digest uint64 // of all that, revisions aside
	known  []seen // what it was told of keys, once each: revisions that may be current or not
}

// ended reports that nothing more comes of the actor.
func (l *local) ended() bool { return l.dead || l.ran.next.none() }

// parent is how a state was reached first.
type parent struct {
	from   uint32
	actor  uint8
	choice choice
}

// explorer is one exploration.
type explorer struct {
	Scenario
	server  *memetcd.Server
	alive   map[string]string // containers of the beginning
	runs    map[runKey]*ran
	locals  map[localKey]*local
	judged  map[uint64]*judgement
	ended   map[uint64]error
	ruled   map[ruling]error
	visited map[uint64]bool
	parents []parent
	queue   []*node
	result  Result
	tracing bool       // what was found is told: nothing is judged
	done    [3][8]bool // by actor and op: it has succeeded in some order

	writers map[string]uint8 // by key: the actors that write it, as bits
	relied  map[string]uint8 // by key: those that read it at once, since no other writes it
	stale   bool             // a note came too late
}

type runKey struct {
	actor, first int
	raw          uint64
}

// localKey is what a local is made of.
type localKey struct {
	actor, first, lost int
	dead               bool
	begun              uint8
	raw                uint64
	told               string
}

// Explore goes through every state that can be reached, at most bound of them; 0: as many as there are. The error is that of a scenario that cannot be
// explored, or ErrTooMany; a violation is in the Result.
func (s Scenario) Explore(ctx context.Context, bound int) (Result, error) {
	writers := map[string]uint8{}
	for {
		e, err := s.explorer(ctx, writers)
		if err != nil {
			return Result{}, err
		}
		err = e.explore(ctx, bound)
		if e.stale && (err == nil || errors.Is(err, ErrTooMany)) {
			continue
		}
		if err == nil && e.result.Violation == nil {
			err = e.idleOps()
		}
		return e.result, err
	}
}

// idleOps is an error if an op never succeeds: then the scenario shows nothing of it. Calico's may fail for good, and do what they do before that.
func (e *explorer) idleOps() error {
	var errs []error
	for i, a := range e.Actors {
		for k, op := range a.Ops {
			if !e.done[i][k] && !op.foreign {
				errs = append(errs, fmt.Errorf("actor %d on %s, %s: it succeeds in no order of events", i+1, a.Node, op.Name))
			}
		}
	}
	return errors.Join(errs...)
}

func (s Scenario) explorer(ctx context.Context, writers map[string]uint8) (*explorer, error) {
	etcd, alive, err := s.Start.build(ctx)
	if err != nil {
		return nil, err
	}
	e := &explorer{
		Scenario: s, server: memetcd.New(), alive: alive, runs: map[runKey]*ran{}, locals: map[localKey]*local{}, judged: map[uint64]*judgement{},
		ended: map[uint64]error{}, ruled: map[ruling]error{}, visited: map[uint64]bool{}, writers: writers, relied: map[string]uint8{},
	}
	e.server.Restore(etcd)
	return e, nil
}

// root is the state at the beginning, to which explore and retrace go first.
func (e *explorer) root() *node {
	n := &node{world: newWorld(e.server.State())}
	for i := range e.Actors {
		n.actors[i] = e.settle(i, &local{told: make([]string, len(e.Actors[i].Ops))})
	}
	return n
}

func (e *explorer) explore(ctx context.Context, bound int) error {
	if err := e.reach(e.root(), parent{}); err != nil {
		return err
	}
	for len(e.queue) > 0 && e.result.Violation == nil && !e.stale {
		n := e.queue[0]
		e.queue[0] = nil
		e.queue = e.queue[1:]
		if err := errors.Join(ctx.Err(), e.expand(n)); err != nil {
			return err
		}
		if bound > 0 && e.result.States > bound {
			return ErrTooMany
		}
	}
	return nil
}

// expand goes on from a state in every way.
func (e *explorer) expand(n *node) error {
	moved := false
	for i := range e.Actors {
		for c := range choices {
			next, err := e.after(n, i, c)
			if err != nil {
				return err
			}
			if next == nil {
				continue
			}
			moved = moved || c == steps
			if err := e.goOn(next, parent{n.id, uint8(i), c}); err != nil || e.result.Violation != nil {
				return err
			}
		}
	}
	if n.late != nil {
		next, err := e.after(n, n.late.actor, lands)
		if err != nil || next == nil {
			return err
		}
		if err := e.goOn(next, parent{n.id, uint8(n.late.actor), lands}); err != nil || e.result.Violation != nil {
			return err
		}
	}
	if !moved && slices.ContainsFunc(n.actors[:len(e.Actors)], func(l *local) bool { return !l.ended() }) {
		e.result.Violation = &Violation{What: "nobody can go on", Trace: e.retrace(n.id)}
	}
	return nil
}

// goOn makes a transition.
func (e *explorer) goOn(next *node, by parent) error {
	e.result.Transitions++
	return e.reach(next, by)
}

// after is the state that an actor's choice leads to; nil if it has no such choice.
func (e *explorer) after(n *node, i int, c choice) (*node, error) {
	if c == lands {
		return e.landed(n)
	}
	l := n.actors[i]
	if l.ended() || c != dies && !e.mayStep(n, i) {
		return nil, nil
	}
	op := e.Actors[i].Ops[l.ran.at]
	next, changed := *n, *l
	next.depth++
	switch c {
	case dies:
		if !e.contended(i, op) || l.begun&(1<<l.ran.at) == 0 {
			return nil, nil // nobody can tell it from one that makes no more steps
		}
		changed.dead, changed.replies = true, nil
	case restarts:
		if op.foreign || l.ran.fresh && l.first == l.ran.at {
			return nil, nil // Calico's are not started again; one that has not begun is as it is
		}
		changed.begin(op, l)
	default:
		if c != steps && !e.mayLose(n, i, c) {
			return nil, nil
		}
		if op.takes || e.contended(i, op) {
			changed.begun |= 1 << l.ran.at
		}
		if c != steps && e.Actors[i].Memory {
			changed.lost++
		}
		if err := e.step(&next, i, &changed, c); err != nil {
			return nil, err
		}
	}
	next.actors[i] = e.settle(i, &changed)
	return &next, nil
}

// begin is the op's beginning in a new process, or the next one's where nobody begins it again.
func (l *local) begin(op Op, was *local) {
	l.first, l.replies, l.lost = was.ran.at, nil, 0
	if op.once {
		l.first++
		l.told = slices.Clone(was.told)
		l.told[was.ran.at] = failed
	}
}

// mayLose reports whether an actor's next step may be lost, or its reply.
func (e *explorer) mayLose(n *node, i int, c choice) bool {
	l, a := n.actors[i], e.Actors[i]
	switch {
	case a.Ops[l.ran.at].foreign, a.Memory && l.lost == e.Lost, !l.ran.next.commits():
		return false
	}
	return c != sendLate || n.late == nil && n.lates < e.Late
}

// contended reports whether another actor has a command about the same container.
func (e *explorer) contended(i int, op Op) bool {
	for j, a := range e.Actors {
		if j != i && op.Container != "" && slices.ContainsFunc(a.Ops, func(o Op) bool { return o.Container == op.Container }) {
			return true
		}
	}
	return false
}

// mayStep reports whether no other actor holds the lock of the interface that this one's command is about.
func (e *explorer) mayStep(n *node, i int) bool {
	l := n.actors[i]
	op := e.Actors[i].Ops[l.ran.at]
	if !e.contended(i, op) || l.begun&(1<<l.ran.at) != 0 {
		return true
	}
	for j := range e.Actors {
		o := n.actors[j]
		if j != i && !o.ended() && o.begun&(1<<o.ran.at) != 0 && e.Actors[j].Ops[o.ran.at].Container == op.Container {
			return false
		}
	}
	return true
}

// step carries an actor's request out, or loses it.
func (e *explorer) step(n *node, i int, l *local, c choice) error {
	r := l.ran.next
	a := reply{lost: true}
	switch c {
	case sendOff:
	case sendLate:
		n.late, n.lates = e.sent(i, r.txn), n.lates+1
	default:
		told, err := e.ask(n, i, r)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Actors[i].Ops[l.ran.at].Name, err)
		}
		if c == steps {
			a = told
		}
	}
	l.replies = append(slices.Clip(l.replies), a.completed(r))
	return nil
}

// ask has etcd answer.
func (e *explorer) ask(n *node, i int, r request) (a reply, err error) {
	if r.look {
		now := n.world.etcd
		return reply{look: &now}, nil
	}
	ctx := context.Background()
	e.server.Restore(n.world.etcd)
	if r.get != nil {
		a.get, err = e.server.Range(ctx, r.get)
		return a, err
	}
	if !r.commits() {
		a.txn, err = e.server.Txn(ctx, r.txn)
		return a, err
	}
	a.txn, err = e.commit(n, i, e.spoilt(i, r.txn))
	return a, err
}

// spoilt is what an actor's commit is where it is broken on purpose.
func (e *explorer) spoilt(i int, txn *pb.TxnRequest) *pb.TxnRequest {
	if e.Broken == nil || e.Actors[i].Operator {
		return txn
	}
	return e.Broken(proto.Clone(txn).(*pb.TxnRequest))
}

// commit has etcd carry out a transaction that writes.
func (e *explorer) commit(n *node, i int, txn *pb.TxnRequest) (*pb.TxnResponse, error) {
	e.server.Restore(n.world.etcd)
	res, err := e.server.Txn(context.Background(), txn)
	if err != nil || !res.Succeeded {
		return res, err
	}
	e.note(i, txn)
	before := n.world
	n.world = newWorld(e.server.State())
	n.wrong = e.rule(i, txn, before, n.world)
	if n.late != nil && n.late.dead(n.world.etcd) {
		n.late = nil
	}
	return res, nil
}

// note notes who writes what. Where another has relied on it that nobody does, all is to begin anew.
func (e *explorer) note(i int, txn *pb.TxnRequest) {
	for _, op := range txn.Success {
		key := string(op.GetRequestPut().GetKey()) + string(op.GetRequestDeleteRange().GetKey())
		e.writers[key] |= 1 << i
		e.stale = e.stale || e.relied[key]&^(1<<i) != 0 || len(e.relied) > 0 && e.reliedPrefix(key, i)
	}
}

// reliedPrefix is the same for what was read with all that is below a prefix, which relied knows with a star at its end.
func (e *explorer) reliedPrefix(key string, i int) bool {
	for at := range key {
		if e.relied[key[:at]+"*"]&^(1<<i) != 0 {
			return true
		}
	}
	return false
}

// idle reports whether it does not matter when an actor makes a request: it reads what no other writes, or at a revision that is fixed already. Who is
// told so relies on it.
func (e *explorer) idle(i int, r request) bool {
	var reads []*pb.RangeRequest
	switch {
	case r.pinned():
		return true
	case r.look || r.commits():
		return false
	case r.get != nil:
		reads = append(reads, r.get)
	}
	for _, op := range r.txn.GetSuccess() {
		reads = append(reads, op.GetRequestRange())
	}
	if slices.ContainsFunc(reads, func(g *pb.RangeRequest) bool { return e.written(i, g) }) {
		return false
	}
	for _, g := range reads {
		e.relied[relyOn(g)] |= 1 << i
	}
	return true
}

func relyOn(g *pb.RangeRequest) string {
	if len(g.RangeEnd) > 0 {
		return string(g.Key) + "*"
	}
	return string(g.Key)
}

// written reports whether another actor than i writes what a range holds.
func (e *explorer) written(i int, g *pb.RangeRequest) bool {
	key := string(g.Key)
	if len(g.RangeEnd) == 0 {
		return e.writers[key]&^(1<<i) != 0
	}
	if string(g.RangeEnd) != clientv3.GetPrefixRangeEnd(key) {
		return true // no prefix: nobody knows
	}
	for w, by := range e.writers {
		if strings.HasPrefix(w, key) && by&^(1<<i) != 0 {
			return true
		}
	}
	return false
}

// settle runs the actor as far as it comes by itself, and forgets what nothing depends on any more.
func (e *explorer) settle(i int, l *local) *local {
	l.raw = rawOf(l.replies)
	key := localKey{i, l.first, l.lost, l.dead, l.begun, l.raw, strings.Join(l.told, ";")}
	if known := e.locals[key]; known != nil {
		return known
	}
	e.locals[key] = l
	if l.dead {
		l.ran = &ran{at: l.ran.at, fresh: true}
	} else {
		l.ran = e.run(i, l.first, l.raw, l.replies)
	}
	if len(l.ran.told) > 0 {
		l.told = slices.Clone(l.told)
		copy(l.told[l.first:], l.ran.told)
	}
	for k, told := range l.ran.told {
		e.done[i][l.first+k] = e.done[i][l.first+k] || told != refused && told != failed
	}
	if !e.Actors[i].Memory && !l.dead {
		e.forget(i, l)
	}
	var op *Op
	if l.ran.at < len(e.Actors[i].Ops) {
		op = &e.Actors[i].Ops[l.ran.at]
	}
	l.summarize(op, e.Actors[i].Memory)
	return l
}

// forget drops the replies to an op that has ended, and to an attempt that has failed: what comes then is as if there had been none.
func (e *explorer) forget(i int, l *local) {
	if len(l.replies) == 0 || l.ran.err != nil {
		return
	}
	anew := e.run(i, l.ran.at, 0, nil)
	if !l.ran.fresh {
		last := l.replies[len(l.replies)-1]
		if !e.Actors[i].Ops[l.ran.at].whole || !last.lost && !isConflict(last) || !anew.next.same(l.ran.next) {
			return
		}
	}
	l.first, l.replies, l.raw, l.ran = l.ran.at, nil, 0, anew
}

func (e *explorer) run(i, first int, raw uint64, replies []reply) *ran {
	key := runKey{i, first, raw}
	out, ok := e.runs[key]
	if !ok {
		r := run(&e.Actors[i], first, replies)
		out = &r
		e.runs[key] = out
	}
	return out
}

// same reports whether two requests ask for the same.
func (r request) same(o request) bool {
	return r.look == o.look && proto.Equal(r.get, o.get) && proto.Equal(r.txn, o.txn)
}

func isConflict(a reply) bool { return a.txn != nil && !a.txn.Succeeded }

func rawOf(replies []reply) uint64 {
	if len(replies) == 0 {
		return 0
	}
	var h maphash.Hash
	h.SetSeed(seed())
	for _, a := range replies {
		put64(&h, a.raw)
	}
	return h.Sum64()
}

func put64(h *maphash.Hash, n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	h.Write(b[:]) // never fails
}

// summarize digests the state but for revisions, of which it keeps which are equal. Of what came before the attempt that is under way, a process remembers
// the handles that it wrote, and that nobody knows what became of its last commit.
func (l *local) summarize(op *Op, memory bool) {
	var h maphash.Hash
	h.SetSeed(seed())
	fmt.Fprint(&h, l.first, l.lost, l.dead, l.begun, l.ran.at, strings.Join(l.told, ";"))
	class := map[seen]int{}
	l.known = nil
	began := attempt(l, op)
	doubt := memory
	for _, a := range l.replies {
		doubt = a.lost || doubt && !a.wrote
	}
	fmt.Fprint(&h, "|", began > l.ran.began, doubt)
	for i, a := range l.replies {
		if i >= began {
			fmt.Fprint(&h, "|", a.lost, a.txn.GetSucceeded(), a.look != nil)
		}
		for _, s := range a.seen {
			if i < began && (!a.wrote || !strings.HasPrefix(s.key, api.HandlesRoot)) {
				continue
			}
			k := seen{key: s.key, rev: s.rev}
			n, ok := class[k]
			if !ok {
				n = len(class)
				class[k] = n
				l.known = append(l.known, k)
			}
			h.WriteString(s.key) // never fails
			put64(&h, uint64(n))
			put64(&h, s.value)
		}
	}
	l.digest = h.Sum64()
}

// attempt is the first reply to the attempt that is under way: after a conflict an op begins anew from nothing, if it is of that kind.
func attempt(l *local, op *Op) int {
	began := l.ran.began
	for i := began; i < len(l.replies) && op != nil && op.whole; i++ {
		if isConflict(l.replies[i]) {
			began = i + 1
		}
	}
	return min(began, len(l.replies))
}

func newWorld(s memetcd.State) *world {
	var h maphash.Hash
	h.SetSeed(seed())
	for kv := range s.All() {
		h.Write(kv.Key) // never fails
		h.WriteByte(0)
		h.Write(kv.Value)
		h.WriteByte(0)
	}
	return &world{s, h.Sum64()}
}

// key tells states apart, but for an accident: that one of a million states has the digest of another has a chance of one in thirty million.
func (e *explorer) key(n *node) uint64 {
	var h maphash.Hash
	h.SetSeed(seed())
	put64(&h, n.world.digest)
	put64(&h, uint64(n.lates))
	if n.late != nil {
		put64(&h, n.late.digest)
	}
	for _, l := range n.actors[:len(e.Actors)] {
		put64(&h, l.digest)
		var bits uint64
		for i, k := range l.known {
			if kv := n.world.etcd.Get(k.key); kv != nil && kv.ModRevision == k.rev {
				bits |= 1 << (i % 64)
			}
			if i%64 == 63 {
				put64(&h, bits)
				bits = 0
			}
		}
		put64(&h, bits)
	}
	return h.Sum64()
}

// reach visits a state, after the steps that may be made at once.
func (e *explorer) reach(n *node, by parent) error {
	if err := e.hurry(n); err != nil {
		return err
	}
	key := e.key(n)
	if e.tracing || e.visited[key] && n.wrong == nil {
		return nil
	}
	e.visited[key] = true
	n.id = uint32(len(e.parents))
	e.parents = append(e.parents, by)
	e.result.States++
	e.result.Depth = max(e.result.Depth, n.depth)
	if err := e.judge(n); err != nil {
		e.result.Violation = &Violation{What: err.Error(), Trace: e.retrace(n.id)}
	}
	e.queue = append(e.queue, n)
	return nil
}

// hurry makes the steps of which it does not matter when they are made. The first of a command does where it takes a lock.
func (e *explorer) hurry(n *node) error {
	for i, a := range e.Actors {
		for l := n.actors[i]; !l.ended() && !(l.ran.fresh && e.contended(i, a.Ops[l.ran.at])) && !n.late.writesWhat(l.ran.next) && e.idle(i, l.ran.next); l = n.actors[i] {
			changed := *l
			if err := e.step(n, i, &changed, steps); err != nil {
				return err
			}
			n.actors[i] = e.settle(i, &changed)
		}
	}
	return nil
}

// retrace tells the way to a state step by step.
func (e *explorer) retrace(id uint32) []string {
	var path []parent
	for at := id; at != 0; at = e.parents[at].from {
		path = append(path, e.parents[at])
	}
	slices.Reverse(path)
	again, err := e.explorer(context.Background(), e.writers)
	if err != nil {
		return []string{err.Error()}
	}
	again.tracing = true
	var out []string
	n := again.root()
	for _, p := range path {
		if err := again.reach(n, parent{}); err != nil {
			return append(out, err.Error())
		}
		next, err := again.after(n, int(p.actor), p.choice)
		if err != nil || next == nil {
			return append(out, fmt.Sprintf("cannot be retraced: %v", err))
		}
		out = append(out, again.describe(n, next, p))
		n = next
	}
	return out
}

// describe is a step as a line.
func (e *explorer) describe(before, after *node, by parent) string {
	l, now := before.actors[by.actor], after.actors[by.actor]
	a := e.Actors[by.actor]
	if by.choice == lands {
		return fmt.Sprintf("late: %s", request{txn: before.late.txn}.text())
	}
	who := fmt.Sprintf("actor %d on %s, %s", by.actor+1, a.Node, a.Ops[l.ran.at].Name)
	switch by.choice {
	case dies:
		return who + ": dies"
	case restarts:
		return who + ": dies and is started again"
	case sendLate:
		return who + ": its commit is under way: " + l.ran.next.text()
	case sendOff:
		return who + ": its commit is lost: " + l.ran.next.text()
	case replyOff:
		return who + ": the reply to its commit is lost: " + l.ran.next.text()
	}
	line := who + ": " + l.ran.next.text()
	if l.ran.next.commits() && after.world == before.world {
		line += ": refused"
	}
	if now.told[l.ran.at] != l.told[l.ran.at] {
		line += fmt.Sprintf("; it is told %q", now.told[l.ran.at])
	}
	return line
}

// text names what a request is about.
func (r request) text() string {
	short := func(key []byte) string {
		return strings.TrimPrefix(strings.TrimPrefix(string(key), "/calico/ipam/v2/"), "/calico/resources/v3/projectcalico.org/")
	}
	switch {
	case r.look:
		return "looks at its memory"
	case r.get != nil:
		return "reads " + short(r.get.Key)
	}
	var ops []string
	for _, op := range r.txn.Success {
		switch {
		case op.GetRequestPut() != nil:
			ops = append(ops, "writes "+short(op.GetRequestPut().Key))
		case op.GetRequestDeleteRange() != nil:
			ops = append(ops, "deletes "+short(op.GetRequestDeleteRange().Key))
		default:
			ops = append(ops, "reads "+short(op.GetRequestRange().Key))
		}
	}
	return strings.Join(ops, ", ")
}

// live is the containers that are connected in a state, with what each was told: none that anybody has begun to disconnect since.
func (e *explorer) live(n *node) map[string]string {
	type by struct{ actor, op int }
	out, given := maps.Clone(e.alive), map[string]by{}
	for i, a := range e.Actors {
		for k, op := range a.Ops {
			if told := n.actors[i].told[k]; op.gives && told != "" && told != refused && told != failed {
				out[op.Container], given[op.Container] = told, by{i, k}
			}
		}
	}
	for i, a := range e.Actors {
		for k, op := range a.Ops {
			if g, ok := given[op.Container]; op.takes && n.actors[i].begun&(1<<k) != 0 && !(ok && g.actor == i && g.op > k) {
				delete(out, op.Container)
			}
		}
	}
	return out
}
