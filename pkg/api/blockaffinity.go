package api

import "net/netip"

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

// NewBlockAffinity is a node's claim that etcd holds, as people see it.
func NewBlockAffinity(node string, cidr netip.Prefix, a Affinity) *BlockAffinity {
	b := &BlockAffinity{Spec: BlockAffinitySpec{State: string(a.State), Node: node, Type: "host", CIDR: cidr.String(), Deleted: "false"}}
	if a.Confirmed() {
		b.Spec.State = string(AffinityConfirmed)
	}
	if a.Deleted {
		b.Spec.Deleted = "true"
	}
	b.TypeMeta = TypeMeta{Kind: "BlockAffinity", APIVersion: Version}
	return b
}
