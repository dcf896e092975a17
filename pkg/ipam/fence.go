package ipam

import (
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Fence makes every assignment under the node's name fail that was planned before, and has yet to reach etcd: one whose caller was told nothing,
// and which may lie in the socket of an etcd that is paused. It writes anew, as it is, what each of them compares: the record of whose the name
// is, else the Node. machine is this machine's id, as for Holds.
//
// It reports false where none of them can succeed any more as things stand, for they compare that too: there is no ClusterInformation, no
// Node, or the name is another machine's. Then nothing is written, and whoever has asked must know how things stand from etcd itself.
func (p *Plan) Fence(machine string) bool {
	f := p.facts
	switch {
	case !f.Cluster.Exists(), !f.Node.Exists(), Holds(f.Identity, p.node, machine) != nil:
		return false
	case f.Identity.Exists():
		rewrite(p, f.Identity)
	default:
		rewrite(p, f.Node)
	}
	return true
}

// rewrite moves the revision of a value that exists.
func rewrite[T api.Value](p *Plan, e store.Entry[T]) {
	p.Then(e.Key, func(t *store.Txn) { store.Put(t, e, e.Value) })
}
