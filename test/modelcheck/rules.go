package modelcheck

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// ruling is a commit in a world.
type ruling struct {
	world uint64
	txn   *pb.TxnRequest
}

// rule says what is wrong with a commit, given what was so until it. That is what compares are for: what a commit rests on must be true when it is carried
// out, and not only when it was planned. Calico's steps compare less, and operators make the rules.
func (e *explorer) rule(i int, txn *pb.TxnRequest, before, after *world) error {
	a := e.Actors[i]
	if a.Operator || slices.ContainsFunc(a.Ops, func(o Op) bool { return o.foreign }) {
		return nil
	}
	key := ruling{before.digest, txn}
	err, known := e.ruled[key]
	if !known {
		err = law{before.etcd, after.etcd, a.Node}.judge(txn)
		e.ruled[key] = err
	}
	return err
}

// law is what a commit for a node is judged by.
type law struct {
	before, after memetcd.State
	node          string
}

// valueIn decodes what a key held; nil if there was nothing.
func valueIn[T api.Value](s memetcd.State, key string) *T {
	kv := s.Get(key)
	if kv == nil {
		return nil
	}
	e, err := store.Decode[T](store.KV{Key: key, Value: kv.Value, Rev: kv.ModRevision})
	if err != nil {
		return nil
	}
	return e.Value
}

func (l law) judge(txn *pb.TxnRequest) error {
	cluster := valueIn[api.ClusterInformation](l.before, ipam.ClusterKey())
	locked := cluster != nil && !cluster.Ready()
	for _, op := range txn.Success {
		key := string(op.GetRequestPut().GetKey()) + string(op.GetRequestDeleteRange().GetKey())
		isEndpoint := strings.HasPrefix(key, (*api.WorkloadEndpoint)(nil).KindOf().Prefix())
		switch {
		case locked && (isEndpoint || strings.HasPrefix(key, api.IPAMRoot)):
			return fmt.Errorf("%s is written while the datastore is locked", key)
		case isEndpoint && op.GetRequestPut() != nil:
			if err := l.endpoint(key); err != nil {
				return err
			}
		case strings.HasPrefix(key, (*api.Profile)(nil).KindOf().Prefix()) && l.before.Get(key) != nil:
			return fmt.Errorf("%s is written over", key)
		}
	}
	return nil
}

// endpoint judges one that is written.
func (l law) endpoint(key string) error {
	id := valueIn[api.NodeIdentity](l.before, api.IdentityKey(l.node))
	switch {
	case valueIn[api.Node](l.before, api.NodeKey(l.node)) == nil:
		return fmt.Errorf("%s is written, and there is no node %s", key, l.node)
	case id != nil && id.MachineID != machineOf(l.node):
		return fmt.Errorf("%s is written, and the name %s is machine %s's", key, l.node, id.MachineID)
	}
	for _, n := range valueIn[api.WorkloadEndpoint](l.after, key).Spec.IPNetworks {
		if err := l.address(n.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// address judges one that an endpoint has now.
func (l law) address(a netip.Addr) error {
	blockKey := api.BlockKey(netip.PrefixFrom(a, 30).Masked())
	is := valueIn[api.Block](l.after, blockKey)
	if is == nil {
		return nil // what is wrong with that, an invariant says
	}
	if was := valueIn[api.Block](l.before, blockKey); was != nil {
		if _, held := block.OwnerOf(was, a); held {
			return nil // it is given to nobody new
		}
	}
	pool := valueIn[api.IPPool](l.before, poolKey())
	if pool == nil || pool.Spec.Disabled {
		return fmt.Errorf("%v is given out, and its pool is out of use", a)
	}
	host, hosted := is.Host()
	if hosted && host == l.node {
		claim := valueIn[api.Affinity](l.after, api.AffinityKey(l.node, is.CIDR))
		if claim == nil || !claim.Confirmed() {
			return fmt.Errorf("%v is given out of a block to which node %s has no confirmed affinity: %v", a, l.node, claim)
		}
		return nil
	}
	if cfg := valueIn[api.IPAMConfig](l.before, api.IPAMConfigKey); cfg != nil && cfg.StrictAffinity {
		return fmt.Errorf("%v of another's block is given to node %s, and affinity is strict", a, l.node)
	}
	return nil
}
