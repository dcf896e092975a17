package api

// MuslinRoot is the root of the keys that Calico does not have.
const MuslinRoot = "/muslin/v1/"

// IdentitiesRoot is the key prefix of all identity records.
const IdentitiesRoot = MuslinRoot + "nodes/"

// IdentityKey is the etcd key of the record that says which machine a node's name belongs to.
func IdentityKey(node string) string { return IdentitiesRoot + node }

// NodeIdentity says which machine a node's name belongs to. Whoever allocates under the name compares it, so that of two hosts
// with one name only one gives out addresses.
type NodeIdentity struct {
	MachineID string `json:"machineID"`         // of the host that holds the name
	NodeUID   string `json:"nodeUID"`           // metadata.uid of the Node that it held it with: once that Node is gone, another machine may take over
	Leaving   bool   `json:"leaving,omitempty"` // Kubernetes has lost the node and what it had is being taken back, until somebody works under the name again
}
