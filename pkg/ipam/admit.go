package ipam

import (
	"cmp"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// ready refuses to work on a datastore that is being migrated or has not been set up, and for a node that has no object.
func (f Facts) ready(node string) error {
	if err := Ready(f.Cluster); err != nil {
		return err
	}
	if f.Err != nil {
		return f.Err
	}
	if !f.Node.Exists() {
		return refuse(ErrNoNode, "the agent creates it at start: see whether muslin-node runs on this host and under this name", "node %s is not in the datastore", node)
	}
	return nil
}

// Ready refuses, with ErrNotReady, while the cluster's ready flag is not set.
func Ready(cluster store.Entry[api.ClusterInformation]) error {
	const msg = "the cluster is currently not ready to process requests"
	if !cluster.Exists() {
		return refuse(ErrNotReady, "the first agent that starts creates it; start one, then try again", "%s: there is no ClusterInformation", msg)
	}
	if !cluster.Value.Ready() {
		return refuse(ErrNotReady, "it is locked for a migration; try again once it is unlocked (muslinctl datastore migrate unlock)", "%s: datastoreReady is not true", msg)
	}
	return nil
}

// Unlocked refuses, with ErrNotReady, what only frees while the datastore is locked. Where there is no ClusterInformation at all, there
// is no migration to protect: an etcd that lost its data must not keep pods from going.
func Unlocked(cluster store.Entry[api.ClusterInformation]) error {
	if !cluster.Exists() {
		return nil
	}
	return Ready(cluster)
}

// Holds refuses, with ErrNotHolder, where the node's name belongs to another machine than this one. A name without a record is
// nobody's, and anybody may work under it: so it is on a node of Calico's, and where no agent has run yet. machine is "" where
// it is not known.
//
// What is taken out under a name needs no such check as long as it goes by container: a handle is named after its container, and an
// endpoint is deleted only if it still is that container's. So the late DEL of a host that has lost its name frees what its own pod
// had, and nothing of the new holder's.
func Holds(id store.Entry[api.NodeIdentity], node, machine string) error {
	if !id.Exists() || id.Value.MachineID == machine {
		return nil
	}
	return refuse(ErrNotHolder, holderRemedy(node), "the node name %s belongs to machine %s (as %s says), and this is machine %s",
		node, id.Value.MachineID, id.Key, cmp.Or(machine, "unknown"))
}

// holderRemedy says what to do where the node's name is another machine's.
func holderRemedy(node string) string {
	return "if that machine is gone, delete its Node (muslinctl delete node " + node + ") and restart the agent here, or run muslinctl node adopt " + node +
		" here; if it lives, give this one another name (NODENAME)"
}

// Admit makes the transaction rest on what Assign's rests on but for addresses, for a caller that brings its own: the cluster is ready,
// the node is registered, and its name is still whose it was. The error is a *Refusal.
func (p *Plan) Admit() error {
	if err := p.facts.ready(p.node); err != nil {
		return err
	}
	p.admitted()
	return nil
}

// admitted makes the transaction rest on what let the node in, beside the cluster.
func (p *Plan) admitted() {
	p.depend(p.facts.Node.Key, p.facts.Node.Rev)
	p.AsHolder()
}

// AsHolder makes the transaction depend on who has the node's name, as every assignment does.
func (p *Plan) AsHolder() { p.depend(api.IdentityKey(p.node), p.facts.Identity.Rev) }
