package api

// BlockAffinity is how people see a node's claim to a block. etcd holds it as Affinity, under a key of its own.
type BlockAffinity struct {
	Header
	Spec BlockAffinitySpec `json:"spec"`
}

// BlockAffinitySpec holds the fields of a BlockAffinity.
type BlockAffinitySpec struct {
	State   string `json:"state" want:"oneof pending confirmed pendingDeletion"`
	Node    string `json:"node" want:"required"`
	Type    string `json:"type,omitempty" want:"oneof host virtual"` // "": host
	CIDR    string `json:"cidr" want:"required; net"`
	Deleted string `json:"deleted,omitempty" want:"oneof true false"` // a string, for compatibility
}

// KindOf describes BlockAffinity.
func (*BlockAffinity) KindOf() Kind {
	return Kind{Name: "BlockAffinity", Plural: "blockaffinities", Hidden: true, ReadOnly: true}
}
