package ipam

import (
	"cmp"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

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
	return refuse(ErrNotHolder, Remedy(node), "the node name %s belongs to machine %s (as %s says), and this is machine %s",
		node, id.Value.MachineID, id.Key, cmp.Or(machine, "unknown"))
}

// Remedy says what to do where the node's name is another machine's.
func Remedy(node string) string {
	return "if that machine is gone, delete its Node (calicoctl delete node " + node + ") and restart the agent here, or run muslinctl node adopt " + node +
		" here; if it lives, give this one another name (NODENAME)"
}
