package memetcd

import (
	"cmp"
	"context"
	"io"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxRevisions bounds the revisions of one message to a watch that is behind, as etcd does.
const maxRevisions = 1000

// invalidWatch is the ID in messages that are about no watch, or about all.
const invalidWatch = -1

// Watch implements pb.WatchClient. The stream belongs to its context: when that ends, so does the stream.
func (s *Server) Watch(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	w := &stream{ctx: ctx, server: s, bell: make(chan struct{}, 1), watches: map[int64]*watch{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[w] = true
	return w, nil
}

// stream is what a client has of a Watch call. All but ctx, server and bell is guarded by the server's mutex.
type stream struct {
	ctx    context.Context // a gRPC stream is one call
	server *Server
	bell   chan struct{} // rung when there may be something to say

	cut, closed bool
	said        []*pb.WatchResponse // what is to be said before any event
	watches     map[int64]*watch
	asked       bool // to tell progress
	nextID      int64
}

// watch is one range that a stream follows.
type watch struct {
	id     int64
	span   span
	next   int64 // the first revision that was not told
	prev   bool
	noPut  bool
	noDel  bool
	behind bool // it began in the past: what it is told may hold many revisions
}

func (w *stream) ring() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// Send implements grpc.BidiStreamingClient.
func (w *stream) Send(r *pb.WatchRequest) error {
	s := w.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.cut || w.closed || w.ctx.Err() != nil {
		return io.EOF // as gRPC does: Recv says why
	}
	switch u := r.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		w.create(u.CreateRequest)
	case *pb.WatchRequest_CancelRequest:
		if id := u.CancelRequest.GetWatchId(); w.watches[id] != nil {
			delete(w.watches, id)
			w.say(&pb.WatchResponse{WatchId: id, Canceled: true})
		}
	case *pb.WatchRequest_ProgressRequest:
		w.asked = true
	}
	w.ring()
	return nil
}

func (w *stream) say(r *pb.WatchResponse) {
	r.Header = (&work{State: w.server.now}).header()
	w.said = append(w.said, r)
}

func (w *stream) create(r *pb.WatchCreateRequest) {
	id := r.WatchId
	switch {
	case r.StartRevision < 0:
		w.say(&pb.WatchResponse{WatchId: invalidWatch, Created: true, Canceled: true, CancelReason: rpctypes.ErrCompacted.Error()})
		return
	case id == 0:
		for w.watches[w.nextID] != nil {
			w.nextID++
		}
		id = w.nextID
		w.nextID++
	case w.watches[id] != nil:
		w.say(&pb.WatchResponse{WatchId: invalidWatch, Created: true, Canceled: true, CancelReason: "mvcc: duplicate watch ID provided on the WatchStream"})
		return
	}
	next := &watch{
		id: id, span: spanOf(r.Key, r.RangeEnd), next: r.StartRevision, prev: r.PrevKv,
		noPut: slices.Contains(r.Filters, pb.WatchCreateRequest_NOPUT), noDel: slices.Contains(r.Filters, pb.WatchCreateRequest_NODELETE),
	}
	if next.span.from == "" {
		next.span.from = "\x00"
	}
	if next.next == 0 {
		next.next = w.server.now.rev + 1
	}
	next.behind = next.next <= w.server.now.rev
	w.watches[id] = next
	w.say(&pb.WatchResponse{WatchId: id, Created: true})
}

// Recv implements grpc.BidiStreamingClient. It waits for something to say.
func (w *stream) Recv() (*pb.WatchResponse, error) {
	for {
		res, err := w.take()
		if res != nil || err != nil {
			return res, err
		}
		select {
		case <-w.ctx.Done():
		case <-w.bell:
		}
	}
}

// take is the next message; nil if there is none now.
func (w *stream) take() (*pb.WatchResponse, error) {
	s := w.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := w.ctx.Err(); err != nil {
		delete(s.streams, w)
		return nil, status.FromContextError(err).Err()
	}
	if w.cut {
		return nil, status.Error(codes.Unavailable, "transport is closing")
	}
	if len(w.said) > 0 {
		res := w.said[0]
		w.said = w.said[1:]
		return res, nil
	}
	for _, id := range slices.Sorted(maps.Keys(w.watches)) {
		if res := w.tell(w.watches[id]); res != nil {
			return res, nil
		}
	}
	if w.asked {
		w.asked = false
		return &pb.WatchResponse{Header: (&work{State: s.now}).header(), WatchId: invalidWatch}, nil
	}
	if w.closed {
		delete(s.streams, w)
		return nil, io.EOF
	}
	return nil, nil
}

// tell is what a watch is to be told next: a revision, or as many as a message holds if it is behind.
func (w *stream) tell(at *watch) *pb.WatchResponse {
	now := &w.server.now
	if at.next < now.compacted && at.next <= now.rev {
		delete(w.watches, at.id)
		return &pb.WatchResponse{Header: (&work{State: *now}).header(), WatchId: at.id, CompactRevision: now.compacted, Canceled: true}
	}
	res := &pb.WatchResponse{Header: (&work{State: *now}).header(), WatchId: at.id}
	i, _ := slices.BinarySearchFunc(now.log, at.next, func(c change, rev int64) int { return cmp.Compare(c.kv.ModRevision, rev) })
	revs, last := 0, int64(0)
	for _, c := range now.log[i:] {
		if c.kv.ModRevision != last {
			if revs == maxRevisions || len(res.Events) > 0 && !at.behind {
				break
			}
			last = c.kv.ModRevision
			revs++
		}
		at.next = last + 1
		if e := at.event(c); e != nil {
			res.Events = append(res.Events, e)
		}
	}
	if len(res.Events) == 0 && at.next <= now.rev && last != 0 {
		return w.tell(at) // a message's worth of revisions of other keys
	}
	if at.next > now.rev {
		at.behind = false
	}
	if len(res.Events) == 0 {
		return nil
	}
	if !at.behind && at.next <= now.rev {
		res.Header.Revision = last // what follows is told next
	}
	return res
}

// event is what a watch is told of a change; nil: nothing.
func (at *watch) event(c change) *mvccpb.Event {
	gone := c.kv.Version == 0
	if !at.span.holds(string(c.kv.Key)) || gone && at.noDel || !gone && at.noPut {
		return nil
	}
	e := &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: c.kv}
	if gone {
		e.Type = mvccpb.Event_DELETE
	}
	if at.prev {
		e.PrevKv = c.prev
	}
	return e
}

// CloseSend implements grpc.ClientStream.
func (w *stream) CloseSend() error {
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	w.closed = true
	w.ring()
	return nil
}

// Context implements grpc.ClientStream.
func (w *stream) Context() context.Context { return w.ctx }

// Header implements grpc.ClientStream. There is none.
func (w *stream) Header() (metadata.MD, error) { return nil, nil }

// Trailer implements grpc.ClientStream. There is none.
func (w *stream) Trailer() metadata.MD { return nil }

// SendMsg implements grpc.ClientStream. Send is the way.
func (w *stream) SendMsg(any) error { return errUnsupported }

// RecvMsg implements grpc.ClientStream. Recv is the way.
func (w *stream) RecvMsg(any) error { return errUnsupported }
