package modelcheck

import (
	"fmt"
	"hash/maphash"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/muslin-cni/muslin/internal/memetcd"
)

// late is a commit that is under way: its actor was told nothing of it and has gone on, and etcd carries it out at any later moment, or never. So it is with
// one that lies in the socket of an etcd that is paused.
type late struct {
	actor  int
	txn    *pb.TxnRequest
	digest uint64 // of all but revisions: it is forgotten as soon as one of those is past, and so all are current
}

// sent is an actor's commit on its way.
func (e *explorer) sent(i int, txn *pb.TxnRequest) *late {
	l := &late{actor: i, txn: e.spoilt(i, txn)}
	var h maphash.Hash
	h.SetSeed(seed())
	for _, c := range l.txn.Compare {
		fmt.Fprintf(&h, "%s %t;", c.Key, c.GetModRevision() == 0)
	}
	for _, op := range l.txn.Success {
		fmt.Fprintf(&h, "%s=%s-%s;", op.GetRequestPut().GetKey(), op.GetRequestPut().GetValue(), op.GetRequestDeleteRange().GetKey())
	}
	l.digest = h.Sum64()
	return l
}

// dead reports whether it never succeeds any more: a revision that it expects is past. A key that it expects to be absent may go again.
func (l *late) dead(now memetcd.State) bool {
	return slices.ContainsFunc(l.txn.Compare, func(c *pb.Compare) bool {
		rev := c.GetModRevision()
		if rev == 0 || len(c.RangeEnd) > 0 {
			return false
		}
		kv := now.Get(string(c.Key))
		return kv == nil || kv.ModRevision != rev
	})
}

// writesWhat reports whether it writes something that a request asks for, so that it matters which of the two is first.
func (l *late) writesWhat(r request) bool {
	if l == nil {
		return false
	}
	asked := []*pb.RangeRequest{r.get}
	for _, op := range r.txn.GetSuccess() {
		asked = append(asked, op.GetRequestRange())
	}
	return slices.ContainsFunc(l.txn.Success, func(op *pb.RequestOp) bool {
		key := string(op.GetRequestPut().GetKey()) + string(op.GetRequestDeleteRange().GetKey())
		return slices.ContainsFunc(asked, func(g *pb.RangeRequest) bool {
			return g != nil && (key == string(g.Key) || key > string(g.Key) && key < string(g.RangeEnd))
		})
	})
}

// landed is the state after what is under way has come to etcd; nil if it is refused there.
func (e *explorer) landed(n *node) (*node, error) {
	if n.late == nil {
		return nil, nil
	}
	next := *n
	next.depth++
	next.late = nil
	res, err := e.commit(&next, n.late.actor, n.late.txn)
	if err != nil || !res.Succeeded {
		return nil, err
	}
	return &next, nil
}
