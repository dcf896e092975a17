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
		rewrite(p, f.Identity, stays)
	default:
		rewrite(p, f.Node, func(*api.Node) {})
	}
	return true
}

// stays takes back that a node is leaving: somebody works under its name.
func stays(id *api.NodeIdentity) { id.Leaving = false }

// Leaving reports whether what the node has is being taken back. Whoever works under its name all the same must Fence, which makes that fail.
func (p *Plan) Leaving() bool { return p.facts.Identity.Exists() && p.facts.Identity.Value.Leaving }

// rewrite moves the revision of a value that exists.
func rewrite[T api.Value](p *Plan, e store.Entry[T], change func(*T)) {
	next := *e.Value
	change(&next)
	p.Then(e.Key, func(t *store.Txn) { store.Put(t, e, &next) })
}
