package memetcd_test

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestRestoredServerIsWhatItWasAndTheOtherIsUntouched(t *testing.T) {
	s := memetcd.New()
	both := store.Services{KV: s, Watch: s}
	put(t, both, "/a", "1")
	before := s.State()
	f := follow(t, both)
	f.create(&pb.WatchCreateRequest{Key: []byte("/a")})
	put(t, both, "/a", "2")
	put(t, both, "/b", "1")
	later := s.State()
	s.Restore(before)
	if got := s.State(); got.Rev() != 2 || string(got.Get("/a").Value) != "1" || got.Get("/b") != nil {
		t.Errorf("restored: %d, %v, %v", got.Rev(), got.Get("/a"), got.Get("/b"))
	}
	if res, err := f.Recv(); err == nil {
		t.Errorf("a watch from before goes on with %v", res)
	}
	put(t, both, "/c", "1")
	if before.Get("/c") != nil || before.Rev() != 2 || string(later.Get("/a").Value) != "2" || later.Get("/c") != nil {
		t.Error("what was kept has changed")
	}
	s.Restore(later)
	if got, err := s.Range(t.Context(), &pb.RangeRequest{Key: []byte("/a"), Revision: 2}); err != nil || string(got.Kvs[0].Value) != "1" {
		t.Errorf("the past of what was restored: %v, %v", got, err)
	}
	n := 0
	for range later.All() {
		n++
	}
	if n != 2 {
		t.Errorf("it holds %d keys, want 2", n)
	}
}

// losing carries transactions out and loses the answer, or does not pass them on at all.
type losing struct {
	*memetcd.Server
	unsent bool
}

func (l losing) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if l.unsent {
		return nil, store.ErrUnavailable
	}
	if _, err := l.Server.Txn(ctx, r, opts...); err != nil {
		return nil, err
	}
	return nil, errors.New("connection lost")
}

func TestCommitOverServicesTellsUnsentFromUnknown(t *testing.T) {
	s := memetcd.New()
	for _, unsent := range []bool{true, false} {
		var txn store.Txn
		txn.PutRaw("/a", []byte("1"), 0)
		_, err := store.Over(store.Services{KV: losing{s, unsent}, Watch: s}, 0).Commit(t.Context(), &txn)
		if errors.Is(err, store.ErrUnknown) == unsent || errors.Is(err, store.ErrUnavailable) != unsent {
			t.Errorf("unsent %v: error = %v", unsent, err)
		}
		if done := s.State().Get("/a") != nil; done == unsent {
			t.Errorf("unsent %v: written %v", unsent, done)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Client().Commit(ctx, &store.Txn{}); !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnknown) {
		t.Errorf("after the end of the context: %v", err)
	}
}
