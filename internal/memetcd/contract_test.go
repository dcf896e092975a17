package memetcd_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// patience bounds every wait for a watch.
const patience = 20 * time.Second

// genuine is a real etcd's services.
func genuine(t *testing.T) store.Services {
	conn := etcdtest.New(t).Etcd().ActiveConnection()
	return store.Services{KV: pb.NewKVClient(conn), Watch: pb.NewWatchClient(conn)}
}

func mem() store.Services {
	s := memetcd.New()
	return store.Services{KV: s, Watch: s}
}

// each runs a test on either.
func each(t *testing.T, f func(t *testing.T, s store.Services)) {
	t.Run("real", func(t *testing.T) { f(t, genuine(t)) })
	t.Run("mem", func(t *testing.T) { f(t, mem()) })
}

// sameAnswer compares without what tells clusters apart, and without the revisions that etcd leaves in the headers of a transaction's parts.
var sameAnswer = cmp.Options{
	protocmp.Transform(), protocmp.IgnoreFields(&pb.ResponseHeader{}, "cluster_id", "member_id", "raft_term"),
	protocmp.FilterField(&pb.ResponseOp{}, "response_range", protocmp.IgnoreFields(&pb.RangeResponse{}, "header")),
	protocmp.FilterField(&pb.ResponseOp{}, "response_put", protocmp.IgnoreFields(&pb.PutResponse{}, "header")),
	protocmp.FilterField(&pb.ResponseOp{}, "response_delete_range", protocmp.IgnoreFields(&pb.DeleteRangeResponse{}, "header")),
}

func TestEveryAnswerIsTheSameAsARealEtcds(t *testing.T) {
	a, b := genuine(t), mem()
	g := generator{rand.New(rand.NewPCG(1, 2)), 1}
	refused, wrote, conflicts := 0, 0, 0
	for i := range 4000 {
		r := g.request()
		want, wantErr := send(t.Context(), a.KV, r)
		got, err := send(t.Context(), b.KV, r)
		if text(wantErr) != text(err) {
			t.Fatalf("request %d, %v: error = %v, a real etcd's is %v", i, r, err, wantErr)
		}
		if err != nil {
			refused++
			continue
		}
		if diff := cmp.Diff(want, got, sameAnswer); diff != "" {
			t.Fatalf("request %d, %v (-real +mem):\n%s", i, r, diff)
		}
		if res, ok := got.(*pb.TxnResponse); ok && !res.Succeeded {
			conflicts++
		}
		if rev := got.(interface{ GetHeader() *pb.ResponseHeader }).GetHeader().GetRevision(); rev > g.rev {
			g.rev = rev
			wrote++
		}
	}
	if refused < 100 || wrote < 1000 || conflicts < 100 {
		t.Errorf("%d requests were refused, %d wrote, of %d transactions a compare failed: the requests show too little", refused, wrote, conflicts)
	}
}

// text is an error as a client sees it.
func text(err error) string {
	if err == nil {
		return ""
	}
	return clientv3.ContextError(context.Background(), err).Error()
}

func send(ctx context.Context, kv pb.KVClient, r proto.Message) (proto.Message, error) {
	switch r := r.(type) {
	case *pb.RangeRequest:
		return orNil(kv.Range(ctx, r))
	case *pb.PutRequest:
		return orNil(kv.Put(ctx, r))
	case *pb.DeleteRangeRequest:
		return orNil(kv.DeleteRange(ctx, r))
	case *pb.CompactionRequest:
		return orNil(kv.Compact(ctx, r))
	case *pb.TxnRequest:
		return orNil(kv.Txn(ctx, r))
	}
	return nil, fmt.Errorf("no such request: %T", r)
}

func orNil[T proto.Message](res T, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return res, nil
}

// generator makes requests on few keys, most of which are possible.
type generator struct {
	*rand.Rand
	rev int64
}

func (g *generator) key() []byte {
	if g.IntN(60) == 0 {
		return nil
	}
	return fmt.Appendf(nil, "/%c/%d", 'a'+rune(g.IntN(3)), g.IntN(5))
}

func (g *generator) span() (from, end []byte) {
	switch g.IntN(5) {
	case 0:
		return []byte("/b/"), []byte("/b0")
	case 1:
		return g.key(), []byte{0}
	case 2:
		return g.key(), g.key()
	}
	return g.key(), nil
}

func (g *generator) near() int64 { return max(0, g.rev-int64(g.IntN(30))) + int64(g.IntN(2)) }

func (g *generator) request() proto.Message {
	switch n := g.IntN(100); {
	case n < 25:
		return g.get()
	case n < 45:
		return g.put()
	case n < 52:
		return g.remove()
	case n < 54:
		return &pb.CompactionRequest{Revision: g.near() - 10}
	}
	return g.txn()
}

func (g *generator) get() *pb.RangeRequest {
	r := &pb.RangeRequest{}
	r.Key, r.RangeEnd = g.span()
	if g.IntN(3) == 0 {
		r.Revision = g.near()
	}
	if g.IntN(3) == 0 {
		r.Limit = int64(1 + g.IntN(3))
	}
	if g.IntN(5) == 0 {
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(g.IntN(3)), pb.RangeRequest_KEY
		if g.IntN(2) == 0 {
			r.Key, r.RangeEnd, r.SortTarget = []byte("/a/0"), nil, pb.RangeRequest_SortTarget(g.IntN(5)) // no two are equal
		}
	}
	if g.IntN(6) == 0 {
		r.MinModRevision = g.near()
	}
	if g.IntN(8) == 0 {
		r.MaxCreateRevision = g.near()
	}
	r.KeysOnly, r.CountOnly, r.Serializable = g.IntN(8) == 0, g.IntN(8) == 0, g.IntN(8) == 0
	return r
}

func (g *generator) put() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: fmt.Append(nil, g.IntN(4)), PrevKv: g.IntN(4) == 0}
	if g.IntN(15) == 0 {
		r.IgnoreValue = true
		if g.IntN(2) == 0 {
			r.Value = nil
		}
	}
	return r
}

func (g *generator) remove() *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{PrevKv: g.IntN(4) == 0}
	r.Key, r.RangeEnd = g.span()
	return r
}

func (g *generator) txn() *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	for range g.IntN(4) {
		r.Success = append(r.Success, g.op())
	}
	for range g.IntN(3) {
		r.Failure = append(r.Failure, g.op())
	}
	if g.IntN(100) == 0 {
		for range 130 {
			r.Success = append(r.Success, g.op())
		}
	}
	return r
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{Key: g.key(), Result: pb.Compare_CompareResult(g.IntN(4))}
	if g.IntN(4) == 0 {
		c.Key, c.RangeEnd = g.span()
	}
	switch g.IntN(6) {
	case 0:
		c.Target, c.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: int64(g.IntN(4))}
	case 1:
		c.Target, c.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: g.near()}
	case 2:
		c.Target, c.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: fmt.Append(nil, g.IntN(4))}
	case 3:
		c.Target, c.TargetUnion = pb.Compare_LEASE, &pb.Compare_Lease{}
	default:
		c.Target, c.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: g.near() * int64(g.IntN(2))}
	}
	return c
}

func (g *generator) op() *pb.RequestOp {
	switch g.IntN(4) {
	case 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.get()}}
	case 1:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.remove()}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.put()}}
}

func put(t *testing.T, s store.Services, key, value string) int64 {
	t.Helper()
	res, err := s.KV.Put(t.Context(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return res.Header.Revision
}

// follower is a watch stream of a test.
type follower struct {
	t *testing.T
	pb.Watch_WatchClient
}

func follow(t *testing.T, s store.Services) follower {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	w, err := s.Watch.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return follower{t, w}
}

func (f follower) create(r *pb.WatchCreateRequest) *pb.WatchResponse {
	f.t.Helper()
	if err := f.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
		f.t.Fatal(err)
	}
	return f.next()
}

func (f follower) next() *pb.WatchResponse {
	f.t.Helper()
	res, err := f.Recv()
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

// events reads messages up to a revision: what they told, a revision never in two of them.
func (f follower) events(to int64) (out []string) {
	f.t.Helper()
	for last := int64(0); last < to; {
		res := f.next()
		for i, e := range res.Events {
			if e.Kv.ModRevision <= last && i == 0 || e.Kv.ModRevision > res.Header.Revision {
				f.t.Fatalf("a message up to %d, after one up to %d, begins with %v", res.Header.Revision, last, e)
			}
			out = append(out, fmt.Sprintf("%v %s=%s at %d v%d was %s", e.Type, e.Kv.Key, e.Kv.Value, e.Kv.ModRevision, e.Kv.Version, e.PrevKv.GetValue()))
		}
		if n := len(res.Events); n > 0 {
			last = res.Events[n-1].Kv.ModRevision
		}
	}
	return out
}

func TestWatchesTellTheSameAsARealEtcds(t *testing.T) {
	told := map[string][]string{}
	each(t, func(t *testing.T, s store.Services) {
		put(t, s, "/a/0", "before")
		live := follow(t, s)
		if res := live.create(&pb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0"), PrevKv: true}); !res.Created || res.WatchId != 0 || res.Header.Revision != 2 {
			t.Fatalf("created: %v", res)
		}
		g := generator{rand.New(rand.NewPCG(3, 4)), 1}
		for range 1500 { // more revisions than one message holds to a watch that is behind
			_, _ = send(t.Context(), s.KV, g.txn()) // some are refused
			g.rev++
		}
		end := put(t, s, "/a/0", "last")
		late, puts, all := follow(t, s), follow(t, s), follow(t, s)
		late.create(&pb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0"), StartRevision: 2})
		puts.create(&pb.WatchCreateRequest{Key: []byte("/a/0"), StartRevision: 1, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}})
		all.create(&pb.WatchCreateRequest{StartRevision: 5, RangeEnd: []byte{0}})
		for name, f := range map[string]follower{"live": live, "late": late, "puts": puts, "all": all} {
			got := f.events(end)
			if before, ok := told[name]; !ok {
				told[name] = got
			} else if diff := cmp.Diff(before, got); diff != "" {
				t.Errorf("%s (-real +mem):\n%s", name, diff)
			}
			if len(got) < 30 {
				t.Errorf("%s was told %d events: that shows too little", name, len(got))
			}
		}
	})
}

func TestWatchTellsProgressAfterAllElse(t *testing.T) {
	each(t, func(t *testing.T, s store.Services) {
		f := follow(t, s)
		f.create(&pb.WatchCreateRequest{Key: []byte("/a"), StartRevision: 2})
		put(t, s, "/a", "1")
		rev := put(t, s, "/elsewhere", "1")
		if got := f.next(); len(got.Events) != 1 {
			t.Fatalf("told %v, want the event", got)
		}
		if err := f.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
			t.Fatal(err)
		}
		if got := f.next(); len(got.Events) != 0 || got.WatchId != -1 || got.Header.Revision != rev {
			t.Errorf("told %v, want progress to %d", got, rev)
		}
	})
}

func TestWatchIsCancelledAndMayBeMadeOfWhatIsCompacted(t *testing.T) {
	each(t, func(t *testing.T, s store.Services) {
		f := follow(t, s)
		first := f.create(&pb.WatchCreateRequest{Key: []byte("/a")})
		if err := f.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: first.WatchId}}}); err != nil {
			t.Fatal(err)
		}
		if got := f.next(); !got.Canceled || got.WatchId != first.WatchId {
			t.Errorf("told %v, want that it is cancelled", got)
		}
		for range 5 {
			put(t, s, "/a", "1")
		}
		if _, err := s.KV.Compact(t.Context(), &pb.CompactionRequest{Revision: 4}); err != nil {
			t.Fatal(err)
		}
		if got := f.create(&pb.WatchCreateRequest{Key: []byte("/a"), StartRevision: 3}); !got.Created || got.Canceled {
			t.Errorf("told %v, want that it is created", got)
		}
		if got := f.next(); !got.Canceled || got.CompactRevision != 4 {
			t.Errorf("told %v, want that 4 is the first", got)
		}
		f.create(&pb.WatchCreateRequest{Key: []byte("/a"), StartRevision: 4})
		if got := f.events(6); len(got) != 3 {
			t.Errorf("told %v, want revisions 4 to 6", got)
		}
	})
}

func TestStreamEndsWithItsContext(t *testing.T) {
	each(t, func(t *testing.T, s store.Services) {
		ctx, cancel := context.WithCancel(t.Context())
		w, err := s.Watch.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if res, err := w.Recv(); !errors.Is(clientv3.ContextError(ctx, err), context.Canceled) {
			t.Errorf("told %v, %v; want the context's error", res, err)
		}
	})
}

// What pkg/store makes of either is the same, too: conflicts with what stands there, pages at one revision, prefixes that were written.
func TestStoreWorksOnEither(t *testing.T) {
	each(t, func(t *testing.T, s store.Services) {
		c := store.Over(s, 0)
		if !c.Connected() {
			t.Error("it is not connected")
		}
		var revs []int64
		for i := range 7 {
			e, err := store.Create(t.Context(), c, fmt.Sprintf("/a/%d", i), &api.Affinity{State: api.AffinityPending})
			if err != nil {
				t.Fatal(err)
			}
			revs = append(revs, e.Rev)
		}
		var txn store.Txn
		txn.Expect("/a/0", revs[0])
		txn.Delete("/a/1", revs[0])
		txn.ExpectBelow("/a/", revs[5])
		txn.PutRaw("/b", []byte("x"), 0)
		var conflict *store.ConflictError
		if _, err := c.Commit(t.Context(), &txn); !errors.As(err, &conflict) || len(conflict.Current) != 2 || conflict.Current[0].Key != "/a/1" || conflict.Current[1].Key != "/a/6" {
			t.Errorf("error = %v, want a conflict about /a/1 and /a/6", err)
		}
		got, rev, err := c.ReadAll(t.Context(), 3, store.Range{Key: "/a/", Prefix: true}, store.Range{Key: "/b"})
		if err != nil || len(got) != 7 || rev != revs[6] {
			t.Errorf("read %v at %d, %v", got, rev, err)
		}
		w, err := c.Watch(t.Context(), "/a/", "/a0", revs[2])
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		for seen := revs[2]; seen < revs[6]; {
			b, err := w.Next()
			if err != nil {
				t.Fatal(err)
			}
			seen = b.Rev
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
