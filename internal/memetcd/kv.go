package memetcd

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Range implements pb.KVClient.
func (s *Server) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return answer(ctx, s, func(x *work) (*pb.RangeResponse, error) {
		if err := cmp.Or(wellRange(r), x.checkRange(r)); err != nil {
			return nil, err
		}
		return x.get(r), nil
	})
}

// RangeStream implements pb.KVClient. It is not supported.
func (s *Server) RangeStream(context.Context, *pb.RangeRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	return nil, errUnsupported
}

// Put implements pb.KVClient.
func (s *Server) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	return answer(ctx, s, func(x *work) (*pb.PutResponse, error) {
		if err := cmp.Or(wellPut(r), x.checkPut(r)); err != nil {
			return nil, err
		}
		return x.put(r), nil
	})
}

// DeleteRange implements pb.KVClient.
func (s *Server) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return answer(ctx, s, func(x *work) (*pb.DeleteRangeResponse, error) {
		if err := wellKey(r.Key); err != nil {
			return nil, err
		}
		return x.remove(r), nil
	})
}

// Compact implements pb.KVClient.
func (s *Server) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return answer(ctx, s, func(x *work) (*pb.CompactionResponse, error) {
		switch {
		case r.Revision <= x.compacted:
			return nil, rpctypes.ErrGRPCCompacted
		case r.Revision > x.rev:
			return nil, rpctypes.ErrGRPCFutureRev
		}
		x.compacted = r.Revision
		i, _ := slices.BinarySearchFunc(x.log, r.Revision, func(c change, rev int64) int { return cmp.Compare(c.kv.ModRevision, rev) })
		x.log = slices.Clone(x.log[i:])
		return &pb.CompactionResponse{Header: x.header()}, nil
	})
}

// errUnsupported refuses what this etcd has not.
var errUnsupported = status.Error(codes.Unimplemented, "memetcd has no leases, users, streamed ranges or nested transactions")

// work is one request being carried out on the server's state.
type work struct {
	State
	wrote bool
}

// answer carries a request out and wakes whoever watches what it wrote. A request whose context has ended is not begun.
func answer[T any](ctx context.Context, s *Server, do func(*work) (*T, error)) (*T, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := work{State: s.now}
	out, err := do(&x)
	if err != nil {
		return nil, err // whatever is refused is refused before it writes
	}
	if x.wrote {
		x.rev++
		s.ring()
	}
	s.now = x.State
	return out, nil
}

// next is the revision of what the request writes.
func (x *work) next() int64 { return x.rev + 1 }

// header says which revision is reached: the request's own once it wrote.
func (x *work) header() *pb.ResponseHeader {
	h := &pb.ResponseHeader{ClusterId: 1, MemberId: 1, RaftTerm: 1, Revision: x.rev}
	if x.wrote {
		h.Revision = x.next()
	}
	return h
}

// span is the keys from one (included) to another (not included). An empty end is that one key, and "\x00" stands for all that follow.
type span struct{ from, end string }

func spanOf(key, end []byte) span { return span{string(key), string(end)} }

func (s span) holds(key string) bool {
	if s.end == "" {
		return key == s.from
	}
	return key >= s.from && (s.end == "\x00" || key < s.end)
}

// in lists what there is in a span, in order of the keys.
func (s *State) in(r span) []*mvccpb.KeyValue {
	if r.end == "" {
		if kv, ok := s.keys.Get(r.from); ok {
			return []*mvccpb.KeyValue{kv}
		}
		return nil
	}
	var out []*mvccpb.KeyValue
	s.keys.Ascend(r.from, func(key string, kv *mvccpb.KeyValue) bool {
		if !r.holds(key) {
			return false
		}
		out = append(out, kv)
		return true
	})
	return out
}

// inAt is what there was in a span at a revision: what there is, with every change since undone, the newest first.
func (s *State) inAt(r span, rev int64) []*mvccpb.KeyValue {
	now := s.in(r)
	was := map[string]*mvccpb.KeyValue{}
	for _, kv := range now {
		was[string(kv.Key)] = kv
	}
	for _, c := range slices.Backward(s.log) {
		key := string(c.kv.Key)
		switch {
		case c.kv.ModRevision <= rev:
			return sorted(was)
		case !r.holds(key):
		case c.prev == nil:
			delete(was, key)
		default:
			was[key] = c.prev
		}
	}
	return sorted(was)
}

func sorted(m map[string]*mvccpb.KeyValue) []*mvccpb.KeyValue {
	out := make([]*mvccpb.KeyValue, 0, len(m))
	for _, kv := range m {
		out = append(out, kv)
	}
	slices.SortFunc(out, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return out
}

// wellKey refuses a request without a key.
func wellKey(key []byte) error {
	if len(key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// wellRange refuses a range that makes no sense whatever is stored.
func wellRange(r *pb.RangeRequest) error {
	if err := wellKey(r.Key); err != nil {
		return err
	}
	if r.SortOrder < pb.RangeRequest_NONE || r.SortOrder > pb.RangeRequest_DESCEND || r.SortTarget < pb.RangeRequest_KEY || r.SortTarget > pb.RangeRequest_VALUE {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

// checkRange refuses a revision that is forgotten, or not reached.
func (x *work) checkRange(r *pb.RangeRequest) error {
	switch {
	case r.Revision > x.rev:
		return rpctypes.ErrGRPCFutureRev
	case r.Revision > 0 && r.Revision < x.compacted:
		return rpctypes.ErrGRPCCompacted
	}
	return nil
}

// get answers a range. Within a transaction it sees what was written before it there.
func (x *work) get(r *pb.RangeRequest) *pb.RangeResponse {
	s := spanOf(r.Key, r.RangeEnd)
	var kvs []*mvccpb.KeyValue
	if r.Revision > 0 {
		kvs = x.inAt(s, r.Revision)
	} else {
		kvs = x.in(s)
	}
	out := &pb.RangeResponse{Header: x.header(), Count: int64(len(kvs))}
	if r.CountOnly {
		return out
	}
	kvs = order(r, slices.DeleteFunc(kvs, func(kv *mvccpb.KeyValue) bool { return filtered(r, kv) }))
	if out.More = r.Limit > 0 && int64(len(kvs)) > r.Limit; out.More {
		kvs = kvs[:r.Limit]
	}
	for _, kv := range kvs {
		if r.KeysOnly {
			kv = &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version}
		}
		out.Kvs = append(out.Kvs, kv)
	}
	return out
}

// filtered reports whether the request does not want the key for its revisions.
func filtered(r *pb.RangeRequest, kv *mvccpb.KeyValue) bool {
	outside := func(rev, low, high int64) bool { return low != 0 && rev < low || high != 0 && rev > high }
	return outside(kv.ModRevision, r.MinModRevision, r.MaxModRevision) || outside(kv.CreateRevision, r.MinCreateRevision, r.MaxCreateRevision)
}

// order sorts as the request says; kvs come in order of the keys.
func order(r *pb.RangeRequest, kvs []*mvccpb.KeyValue) []*mvccpb.KeyValue {
	by := map[pb.RangeRequest_SortTarget]func(a, b *mvccpb.KeyValue) int{
		pb.RangeRequest_KEY:     func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) },
		pb.RangeRequest_VERSION: func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.Version, b.Version) },
		pb.RangeRequest_CREATE:  func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) },
		pb.RangeRequest_MOD:     func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) },
		pb.RangeRequest_VALUE:   func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Value, b.Value) },
	}[r.SortTarget]
	switch {
	case r.SortOrder == pb.RangeRequest_DESCEND:
		slices.SortStableFunc(kvs, func(a, b *mvccpb.KeyValue) int { return by(b, a) })
	case r.SortTarget != pb.RangeRequest_KEY:
		slices.SortStableFunc(kvs, by)
	}
	return kvs
}

// wellPut refuses a put that makes no sense whatever is stored.
func wellPut(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.Lease != 0 || r.IgnoreLease:
		return errUnsupported
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	}
	return nil
}

// checkPut refuses to keep a value that does not exist.
func (x *work) checkPut(r *pb.PutRequest) error {
	if r.IgnoreValue && x.Get(string(r.Key)) == nil {
		return rpctypes.ErrGRPCKeyNotFound
	}
	return nil
}

func (x *work) put(r *pb.PutRequest) *pb.PutResponse {
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, CreateRevision: x.next(), ModRevision: x.next(), Version: 1}
	prev := x.Get(string(r.Key))
	if prev != nil {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
		if r.IgnoreValue {
			kv.Value = prev.Value
		}
	}
	x.change(change{kv, prev})
	out := &pb.PutResponse{Header: x.header()}
	if r.PrevKv {
		out.PrevKv = prev
	}
	return out
}

func (x *work) remove(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	gone := x.in(spanOf(r.Key, r.RangeEnd))
	for _, kv := range gone {
		x.change(change{&mvccpb.KeyValue{Key: kv.Key, ModRevision: x.next()}, kv})
	}
	out := &pb.DeleteRangeResponse{Header: x.header(), Deleted: int64(len(gone))}
	if r.PrevKv {
		out.PrevKvs = gone
	}
	return out
}

func (x *work) change(c change) {
	x.wrote = true
	x.log = append(x.log, c)
	if key := string(c.kv.Key); c.kv.Version == 0 {
		x.keys.Delete(key)
	} else {
		x.keys.Set(key, c.kv)
	}
}
