package register_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// slow is a way to etcd on which one commit is held until it is let go, long after its caller was told that the connection is gone. It is for one goroutine.
type slow struct {
	pb.KVClient
	hold bool
	held *pb.TxnRequest
}

// Txn implements pb.KVClient.
func (s *slow) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if s.hold && slices.ContainsFunc(r.Success, func(op *pb.RequestOp) bool { return op.GetRequestPut() != nil }) {
		s.hold, s.held = false, r
		return nil, status.Error(codes.Unavailable, "the connection is broken")
	}
	return s.KVClient.Txn(ctx, r, opts...)
}

// letGo has etcd carry out what was held, and reports whether it did.
func (s *slow) letGo(t *testing.T) bool {
	t.Helper()
	if s.held == nil {
		t.Fatal("no commit was held")
	}
	res, err := s.KVClient.Txn(t.Context(), s.held)
	if err != nil {
		t.Fatal(err)
	}
	return res.Succeeded
}

func newSlow(w *world) *slow { return &slow{KVClient: clientv3.RetryKVClient(w.etcd.Etcd())} }

func (s *slow) client() *store.Client { return store.Over(store.Services{KV: s}, 0) }

// TestCommitThatLandsBehindTheDelFails has an ADD's transaction come to etcd when the DEL that found nothing of it has succeeded.
func TestCommitThatLandsBehindTheDelFails(t *testing.T) {
	for _, c := range []struct {
		name           string
		record, memory bool // somebody's name is recorded; the handler is an agent's
		restart        bool // the DEL is another process's
	}{
		{"agent", true, true, false},
		{"agent that was started anew", true, true, true},
		{"executable", true, false, true},
		{"executable on a node of nobody's", false, false, true},
		{"agent on a node of nobody's", false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.node("node-1", nil)
			w.pool("pool", "10.0.0.0/24", 26)
			if c.record {
				put(w, api.IdentityKey("node-1"), &api.NodeIdentity{MachineID: "m", NodeUID: "u"})
			}
			way := newSlow(w)
			start := func() *register.Handler {
				cfg := register.Config{Client: way.client(), Node: "node-1", Machine: "m"}
				if c.memory {
					cfg.Source = always(w.picture())
				}
				return register.New(cfg)
			}
			h := start()
			way.hold = true
			if _, err := h.Add(w.ctx(), request("c")); !errors.Is(err, store.ErrUnknown) {
				t.Fatalf("ADD: %v", err)
			}
			if c.restart {
				h = start()
			}
			w.del(h, request("c"))
			if way.letGo(t) {
				t.Error("the commit was carried out behind the DEL")
			}
			if n := w.consistent(); n != 0 || len(w.endpoints()) != 0 {
				t.Errorf("%d addresses, %d endpoints", n, len(w.endpoints()))
			}
			w.add(h, request("d"))
			rev := w.revision()
			w.del(h, request("c"))
			if now := w.revision(); now != rev && !c.restart {
				t.Errorf("a second DEL that finds nothing writes: revision %d, was %d", now, rev)
			}
		})
	}
}

// TestCommitThatLandsBeforeTheDelIsUndone is the other order: what the DEL has read is old when it commits.
func TestCommitThatLandsBeforeTheDelIsUndone(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	way := newSlow(w)
	h := register.New(register.Config{Client: way.client(), Node: "node-1"})
	way.hold = true
	if _, err := h.Add(w.ctx(), request("c")); !errors.Is(err, store.ErrUnknown) {
		t.Fatalf("ADD: %v", err)
	}
	late := *way
	way.hold = true // the DEL's own
	if err := h.Del(w.ctx(), request("c")); !errors.Is(err, store.ErrUnknown) {
		t.Fatalf("DEL: %v", err)
	}
	if !late.letGo(t) || w.consistent() != 1 {
		t.Fatal("the ADD was not carried out")
	}
	if way.letGo(t) {
		t.Error("the DEL's commit was carried out, though it rests on nothing being there")
	}
	w.del(h, request("c"))
	if n := w.consistent(); n != 0 || len(w.endpoints()) != 0 {
		t.Errorf("%d addresses, %d endpoints", n, len(w.endpoints()))
	}
}

// TestLockIsComparedByWhatFrees locks the datastore between the plan of a DEL and its commit.
func TestLockIsComparedByWhatFrees(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	way := newSlow(w)
	direct := w.handler("node-1")
	w.add(direct, request("c"))
	late := register.New(register.Config{Client: way.client(), Node: "node-1"})
	way.hold = true
	if err := late.Del(w.ctx(), request("c")); !errors.Is(err, store.ErrUnknown) {
		t.Fatalf("DEL: %v", err)
	}
	remembers := register.New(register.Config{Client: w.c, Node: "node-1", Source: always(w.picture())})
	w.lock(true)
	before := w.dump()
	if way.letGo(t) {
		t.Error("a DEL that was planned before the lock was carried out")
	}
	for name, h := range map[string]*register.Handler{"executable": direct, "agent that has not seen it yet": remembers} {
		for _, container := range []string{"c", "of-nobody"} {
			err := h.Del(w.ctx(), request(container))
			var cni *attach.Error
			if !errors.As(err, &cni) || cni.Code != attach.CodeTryAgain || !strings.Contains(cni.Details, "migrate unlock") {
				t.Errorf("%s: DEL of %s: %v", name, container, err)
			}
		}
	}
	if now := w.dump(); !maps.Equal(before, now) {
		t.Error("the locked datastore was written")
	}
	w.lock(false)
	w.del(direct, request("c"))
	if n := w.consistent(); n != 0 || len(w.endpoints()) != 0 {
		t.Errorf("%d addresses, %d endpoints", n, len(w.endpoints()))
	}
}
