package modelcheck

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/pkg/store"
)

// errStop ends a run at the first request that has no reply yet. It matches context.Canceled, after which nothing is tried again.
var errStop = fmt.Errorf("the tape ends here: %w", context.Canceled)

// errLost is what a client sees of a request whose reply, or which itself, was lost: it cannot tell.
var errLost = errors.New("connection lost")

// request is what a run waits for: a message to etcd, or a look at what the feed has in memory.
type request struct {
	get *pb.RangeRequest
	txn *pb.TxnRequest
	// look asks for all that etcd holds at one moment: an agent plans on that moment, however much later it commits.
	look bool
}

func (r request) none() bool { return r.get == nil && r.txn == nil && !r.look }

// commits reports whether the request would change etcd.
func (r request) commits() bool {
	for _, op := range r.txn.GetSuccess() {
		if op.GetRequestRange() == nil {
			return true
		}
	}
	return false
}

// pinned reports whether the request reads a revision that an earlier reply has named: its reply does not depend on when it is made.
func (r request) pinned() bool { return r.get.GetRevision() > 0 }

// reply is what a request was answered.
type reply struct {
	get   *pb.RangeResponse
	txn   *pb.TxnResponse
	look  *memetcd.State
	lost  bool
	wrote bool   // it was a commit that was carried out
	seen  []seen // the keys that the reply tells of
	raw   uint64 // of all of the above, revisions included
}

// seen is a key as a reply told of it. value is a digest of what it held.
type seen struct {
	key   string
	rev   int64
	value uint64
}

// seed is every digest's, so that they can be compared.
var seed = sync.OnceValue(maphash.MakeSeed)

func seenOf(kvs []*mvccpb.KeyValue) (out []seen) {
	for _, kv := range kvs {
		out = append(out, seen{string(kv.Key), kv.ModRevision, maphash.Bytes(seed(), kv.Value)})
	}
	return out
}

// completed works out what the reply to r tells, for comparing.
func (a reply) completed(r request) reply {
	a.wrote = r.commits() && a.txn.GetSucceeded()
	switch {
	case a.get != nil:
		a.seen = seenOf(a.get.Kvs)
	case a.txn != nil:
		for _, res := range a.txn.Responses {
			a.seen = append(a.seen, seenOf(res.GetResponseRange().GetKvs())...)
		}
		for _, op := range r.txn.Success {
			if put := op.GetRequestPut(); put != nil && a.txn.Succeeded {
				a.seen = append(a.seen, seen{key: string(put.Key), rev: a.txn.Header.Revision})
			}
		}
	case a.look != nil:
		for kv := range a.look.All() {
			a.seen = append(a.seen, seenOf([]*mvccpb.KeyValue{kv})...)
		}
	}
	var h maphash.Hash
	h.SetSeed(seed())
	fmt.Fprint(&h, a.lost, a.txn.GetSucceeded(), a.seen)
	if r.get.GetLimit() > 0 && !r.pinned() {
		fmt.Fprint(&h, a.get.GetHeader().GetRevision()) // what is read next may be pinned to it
	}
	a.raw = h.Sum64()
	return a
}

// tape is an etcd that answers what it answered before, and then no more: code that is deterministic comes to the same point each time it is run
// against the same tape, and next is what it would ask then.
type tape struct {
	replies []reply
	at      int
	next    request
}

func (t *tape) answer(r request) (reply, error) {
	if t.at < len(t.replies) {
		t.at++
		a := t.replies[t.at-1]
		if a.lost {
			return reply{}, errLost
		}
		return a, nil
	}
	if t.next.none() {
		t.next = r
	}
	return reply{}, errStop
}

// Range implements pb.KVClient.
func (t *tape) Range(_ context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	a, err := t.answer(request{get: r})
	return a.get, err
}

// Txn implements pb.KVClient.
func (t *tape) Txn(_ context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	a, err := t.answer(request{txn: r})
	return a.txn, err
}

// look is what an agent has in memory; nil at the end of the tape.
func (t *tape) look() *memetcd.State {
	a, _ := t.answer(request{look: true})
	return a.look
}

// kv completes a tape with what no actor asks for.
type kv struct {
	*memetcd.Server // never reached
	*tape
}

// Range implements pb.KVClient.
func (k kv) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	return k.tape.Range(ctx, r, opts...)
}

// Txn implements pb.KVClient.
func (k kv) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.tape.Txn(ctx, r, opts...)
}

func (t *tape) client() *store.Client { return store.Over(store.Services{KV: kv{tape: t}}, 0) }
