package sim

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-cni/muslin/pkg/store"
)

// wire is the way from one process to etcd. It implements pb.KVClient, as far as a store.Client needs it, and pb.WatchClient.
type wire struct {
	pb.KVClient // nil: nobody calls the rest
	w           *World
	name        string
	node        *node           // whose process it is; nil: the operator's
	machine     string          // on which it runs
	life        context.Context // the process's
	feeds       bool            // it is a feed's

	// Guarded by the world's mutex.
	cut  bool    // etcd is not to be reached
	deaf bool    // requests get no answer
	mute []*call // which were not answered
}

// client is a new client at the end of the wire.
func (x *wire) client() *store.Client { return store.Over(store.Services{KV: x, Watch: x}, 0) }

// call is a request that waits to be drawn.
type call struct {
	from   *wire
	what   string
	body   proto.Message
	watch  bool // a message of a watch, which only waits to be delivered
	door   bool // nothing that etcd is asked: a command that comes to the agent's door
	writes bool
	run    func() (any, error)
	done   chan struct{}
	res    any
	err    error
	ctx    context.Context
	task   int    // that asks; -1: what goes on beside tasks
	digest uint64 // of the body
}

// taskID is the key under which a task's context has its number.
type taskID struct{}

// answer ends a call. Whoever has waited for it goes on.
func (c *call) answer(res any, err error) {
	c.res, c.err = res, err
	close(c.done)
}

var errBroken = status.Error(codes.Unavailable, "the connection is broken")

// ask waits until the world draws the request.
func ask[T any](ctx context.Context, x *wire, c *call) (T, error) {
	var none T
	c.from, c.ctx, c.done, c.task, c.digest = x, ctx, make(chan struct{}), -1, digest(c.body)
	if id, ok := ctx.Value(taskID{}).(int); ok {
		c.task = id
	}
	if err := cmp.Or(ctx.Err(), x.life.Err()); err != nil {
		return none, status.FromContextError(err).Err()
	}
	if !x.w.post(c) {
		return none, fmt.Errorf("%w: no connection", store.ErrUnavailable)
	}
	select {
	case <-c.done:
		if c.err != nil {
			return none, c.err
		}
		return c.res.(T), nil
	case <-ctx.Done():
		return none, status.FromContextError(ctx.Err()).Err()
	}
}

// enter waits until the world lets somebody in who has a request for a node's handler. Commands that were begun at different moments may come together at
// its door, when what they have waited for ends for all; there it would be decided by nobody which is first.
func (x *wire) enter(ctx context.Context, who string) error {
	_, err := ask[struct{}](ctx, x, &call{what: who, door: true, run: func() (any, error) { return struct{}{}, nil }})
	return err
}

// again waits until it is the turn of a command that met others' writes: several of a node may have met the same.
func (x *wire) again(ctx context.Context, _ int) error { return x.enter(ctx, "again") }

// post queues a call, unless there is no way to etcd.
func (w *World) post(c *call) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acts(c.from.name, c.what)
	if !c.door && (c.from.cut || w.down) {
		return false
	}
	w.arrived = append(w.arrived, c)
	return true
}

// Range implements pb.KVClient.
func (x *wire) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return ask[*pb.RangeResponse](ctx, x, &call{what: "get " + string(r.Key), body: r, run: func() (any, error) {
		return x.w.etcd.Range(context.Background(), r)
	}})
}

// Txn implements pb.KVClient.
func (x *wire) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	return ask[*pb.TxnResponse](ctx, x, &call{what: describe(r), body: r, writes: writes(r), run: func() (any, error) { return x.w.carryOut(x, r) }})
}

// describe says what a transaction is about: what it reads, or what it compares and writes.
func describe(r *pb.TxnRequest) string {
	var reads, writes []string
	for _, op := range r.Success {
		switch {
		case op.GetRequestRange() != nil:
			reads = append(reads, short(op.GetRequestRange().Key))
		case op.GetRequestPut() != nil:
			writes = append(writes, short(op.GetRequestPut().Key))
		default:
			writes = append(writes, "-"+short(op.GetRequestDeleteRange().GetKey()))
		}
	}
	if len(writes) == 0 {
		return "get " + strings.Join(reads, " ")
	}
	var ifs []string
	for _, c := range r.Compare {
		ifs = append(ifs, fmt.Sprintf("%s@%d", short(c.Key), c.GetModRevision()))
	}
	slices.Sort(writes) // the client may have them in any order
	return "if " + strings.Join(ifs, " ") + " put " + strings.Join(writes, " ")
}

// writes reports whether a transaction is to change anything.
func writes(r *pb.TxnRequest) bool {
	return slices.ContainsFunc(r.Success, func(op *pb.RequestOp) bool { return op.GetRequestRange() == nil })
}

// short is what tells a key from others here.
func short(key []byte) string {
	k := strings.TrimPrefix(string(key), "/calico/")
	for _, long := range []string{"ipam/v2/assignment/ipv4/", "ipam/v2/", "resources/v3/projectcalico.org/"} {
		k = strings.TrimPrefix(k, long)
	}
	return k
}

// Watch implements pb.WatchClient. A stream opens when that is drawn.
func (x *wire) Watch(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error) {
	s, err := ask[grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]](ctx, x, &call{what: "open", watch: true, run: func() (any, error) { return x.w.etcd.Watch(ctx) }})
	if err != nil {
		return nil, errBroken
	}
	return &stream{BidiStreamingClient: s, x: x}, nil
}

// stream is a watch whose messages wait to be drawn.
type stream struct {
	grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
	x  *wire
	of string // what is watched: a feed has two streams, of which each may be told the same at the same moment
}

// Send implements grpc.BidiStreamingClient. How far etcd is, is asked when all stand still, and once however many want to know: of two who ask at the same
// moment, nobody decides whether the answer to the first comes before the second.
func (s *stream) Send(r *pb.WatchRequest) error {
	if w := s.x.w; r.GetProgressRequest() != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.acts(s.x.name, "ask for progress")
		if !slices.Contains(w.asking, s) {
			w.asking = append(w.asking, s)
		}
		return nil
	}
	if create := r.GetCreateRequest(); create != nil {
		s.of = short(create.Key)
	}
	return s.BidiStreamingClient.Send(r)
}

// Recv implements grpc.BidiStreamingClient.
func (s *stream) Recv() (*pb.WatchResponse, error) {
	res, err := s.BidiStreamingClient.Recv()
	if err != nil {
		return nil, err
	}
	out, err := ask[*pb.WatchResponse](s.Context(), s.x, &call{what: "watch " + s.of, body: res, watch: true, run: func() (any, error) { return res, nil }})
	if err != nil && s.Context().Err() == nil {
		return nil, errBroken
	}
	return out, err
}

// passOn asks etcd what streams want to know, and reports whether any did.
func (w *World) passOn() bool {
	w.mu.Lock()
	asking := w.asking
	w.asking = nil
	w.mu.Unlock()
	for _, s := range asking {
		_ = s.BidiStreamingClient.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}) // Recv says why not
	}
	return len(asking) > 0
}

// queue puts what has arrived since the last time behind what waits, in an order that does not depend on who was quicker. Where that is not possible the run
// fails. The world's mutex is held.
func (w *World) queue() {
	slices.SortFunc(w.arrived, inOrder)
	for i, c := range w.arrived {
		if i > 0 && inOrder(w.arrived[i-1], c) == 0 {
			w.turn.breaks(fmt.Sprintf("%s does the same twice at the same moment: %s", c.from.name, c.what))
		}
		if c.from.deaf && !c.door {
			c.from.mute = append(c.from.mute, c)
			continue
		}
		w.waiting = append(w.waiting, c)
	}
	w.arrived = nil
}

func inOrder(a, b *call) int {
	return cmp.Or(cmp.Compare(a.from.name, b.from.name), cmp.Compare(a.what, b.what), cmp.Compare(a.task, b.task), cmp.Compare(a.digest, b.digest))
}

// digest tells requests apart.
func digest(m proto.Message) uint64 {
	if m == nil {
		return 0
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write(raw)
	return h.Sum64()
}

// take removes a call from those that wait.
func (w *World) take(i int) *call {
	c := w.waiting[i]
	w.waiting = slices.Delete(w.waiting, i, i+1)
	return c
}

// fate is what becomes of a request.
type fate uint8

const (
	answered   fate = iota
	lostAnswer      // it is carried out, and the connection breaks
	lost            // the connection breaks before
	silent          // it is carried out, and no answer comes
	swallowed       // nor is it carried out
	late            // the connection breaks, and it is carried out later
)

func (f fate) String() string {
	return [...]string{"", " and the answer is lost", ", which is lost", " and no answer comes", ", which is swallowed", ", which is late"}[f]
}

// connected is how a process reaches etcd from now on. What got no answer so far gets none: those connections are broken.
func (x *wire) connected(cut, deaf bool) {
	x.w.mu.Lock()
	x.cut, x.deaf = cut, deaf
	mute := x.mute
	x.mute = nil
	x.w.mu.Unlock()
	for _, c := range mute {
		x.w.stir(nil)
		c.answer(nil, errBroken)
		x.w.still()
	}
}

// serve carries a call out, or not.
func (w *World) serve(c *call, f fate) {
	if f == late && c.from.name == calico {
		f = lost // what another program's late commits do is not ours to put right
	}
	w.stir(nil)
	w.note("%s: %s%v", c.from.name, c.what, f)
	var res any
	var err error
	if f == answered || f == lostAnswer || f == silent {
		res, err = c.run()
	}
	switch f {
	case answered:
		c.answer(res, err)
	case late:
		w.adrift = append(w.adrift, c)
		c.answer(nil, errBroken)
	case lostAnswer, lost:
		c.answer(nil, errBroken)
	}
}

// land has etcd carry out a commit that was adrift.
func (w *World) land(i int) {
	c := w.adrift[i]
	w.adrift = slices.Delete(w.adrift, i, i+1)
	w.note("late, %s: %s", c.from.name, c.what)
	w.out.Late++
	w.stir(nil)
	_, _ = c.run() // nobody is told
}

// hangUp ends what a process has asked for: each request has the one fate or the other.
func (w *World) hangUp(x *wire, one, other fate) {
	for i := 0; i < len(w.waiting); {
		if w.waiting[i].from != x || w.waiting[i].door {
			i++
			continue
		}
		f := one
		switch {
		case w.waiting[i].writes && w.chance(300):
			f = late
		case w.chance(500):
			f = other
		}
		w.serve(w.take(i), f)
		w.still()
	}
}

// carryOut is a transaction at etcd.
func (w *World) carryOut(x *wire, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if w.cfg.Spoil.Txn != nil {
		w.cfg.Spoil.Txn(r)
	}
	res, err := w.etcd.Txn(context.Background(), r)
	if err != nil || !res.Succeeded {
		w.out.Lost++
		return res, err
	}
	var changes []store.KV
	for i, op := range r.Success {
		switch {
		case op.GetRequestPut() != nil:
			changes = append(changes, store.KV{Key: string(op.GetRequestPut().Key), Value: op.GetRequestPut().Value, Rev: res.Header.Revision})
		case res.Responses[i].GetResponseDeleteRange().GetDeleted() > 0:
			changes = append(changes, store.KV{Key: string(op.GetRequestDeleteRange().Key), Rev: res.Header.Revision})
		}
	}
	if len(changes) > 0 {
		slices.SortFunc(changes, func(a, b store.KV) int { return cmp.Compare(a.Key, b.Key) })
		w.committed(x, res.Header.Revision, changes)
	}
	return res, nil
}
