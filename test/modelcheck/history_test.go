package modelcheck_test

import (
	"context"
	"flag"
	"net/netip"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
	mc "github.com/muslin-cni/muslin/test/modelcheck"
)

var seed = flag.Uint64("seed", 1, "of histories")

// checkWithin bounds the search for an order of a history; one that is not found in time is no verdict.
const checkWithin = time.Minute

func realEtcd(t *testing.T) store.Services {
	conn := etcdtest.New(t).Etcd().ActiveConnection()
	return store.Services{KV: pb.NewKVClient(conn), Watch: pb.NewWatchClient(conn)}
}

func TestHistoriesOfARealEtcdAreLinearizable(t *testing.T) {
	etcd := realEtcd(t)
	length := max(4*time.Second, *long/5)
	h, err := mc.Crowd{Etcd: etcd, Nodes: 12, For: length, Seed: *seed, Loss: 0.1}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d: %d uses of addresses, %d ADDs, %d refused, %d commits of unknown outcome, %d crashes", *seed, len(h.Ops), h.Added, h.Refused, h.Unknown, h.Crashes)
	if h.Added == 0 || h.Unknown == 0 || h.Crashes == 0 || h.Refused == 0 {
		t.Error("the history shows too little")
	}
	if got := h.Check(checkWithin); got != porcupine.Ok {
		t.Errorf("the history is %v", got)
	}
	v, err := ipam.LoadView(t.Context(), store.Over(etcd, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, verdict := range ipam.Verify(v) {
		for _, f := range verdict.Violations {
			t.Errorf("%s is violated: %v", verdict.Name, f)
		}
	}
	if len(v.Handles)+len(v.Endpoints) > 0 {
		t.Errorf("all are disconnected, and %d handles and %d endpoints are left", len(v.Handles), len(v.Endpoints))
	}
}

func TestWrongHistoriesAreFound(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.1")
	take := func(who string, call, ret int64) porcupine.Operation {
		return porcupine.Operation{Input: mc.Use{Addr: a, Container: who}, Call: call, Return: ret}
	}
	give := func(who string, call, ret int64) porcupine.Operation {
		return porcupine.Operation{Input: mc.Use{Addr: a, Container: who, Gives: true}, Call: call, Return: ret}
	}
	for _, c := range []struct {
		name    string
		history []porcupine.Operation
		ok      bool
	}{
		{"one after the other", []porcupine.Operation{take("x", 1, 2), give("x", 3, 4), take("y", 5, 6)}, true},
		{"taken while it is being given back", []porcupine.Operation{take("x", 1, 2), give("x", 3, 6), take("y", 4, 5)}, true},
		{"taken again by its holder", []porcupine.Operation{take("x", 1, 2), take("x", 3, 4), give("x", 5, 6)}, true},
		{"taken while it is held", []porcupine.Operation{take("x", 1, 2), take("y", 3, 4), give("x", 5, 6)}, false},
		{"given back by another", []porcupine.Operation{take("x", 1, 2), give("y", 3, 4)}, false},
	} {
		h := &mc.History{Ops: c.history}
		if got := h.Check(checkWithin); (got == porcupine.Ok) != c.ok {
			t.Errorf("%s: %v, want ok %v", c.name, got, c.ok)
		}
	}
}

// careless drops the compares of blocks from what is committed.
type careless struct{ pb.KVClient }

func (c careless) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return c.KVClient.Txn(ctx, without(api.BlocksRoot)(r), opts...)
}

// Nodes that do not compare blocks give an address twice sooner or later; a machine that is busy with other things may need several goes.
func TestHistoryOfACarelessAllocatorIsFound(t *testing.T) {
	const goes = 5
	for range goes {
		etcd := realEtcd(t)
		h, err := mc.Crowd{Etcd: store.Services{KV: careless{etcd.KV}, Watch: etcd.Watch}, Nodes: 12, For: 2 * time.Second, Seed: *seed}.Run(t.Context())
		if h == nil {
			t.Fatal(err)
		}
		t.Logf("%d uses of addresses, and then: %v", len(h.Ops), err) // it trips over its own feet, too
		if h.Check(checkWithin) == porcupine.Illegal {
			return
		}
	}
	t.Errorf("in %d goes no history was found out", goes)
}
