package api

// StagedNetworkPolicy is a NetworkPolicy on trial: it is looked at and not enforced.
type StagedNetworkPolicy struct {
	Header
	Spec StagedNetworkPolicySpec `json:"spec"`
}

// StagedNetworkPolicySpec holds the fields of a StagedNetworkPolicy.
type StagedNetworkPolicySpec struct {
	StagedAction string `json:"stagedAction,omitempty" want:"oneof Set Delete Learn Ignore"`
	NetworkPolicySpec
}

// KindOf describes StagedNetworkPolicy.
func (*StagedNetworkPolicy) KindOf() Kind {
	return Kind{
		Name: "StagedNetworkPolicy", Plural: "stagednetworkpolicies", Namespaced: true, Aliases: "snp snps", Names: NamePolicy,
	}
}

// Default fills staged action, tier, types and the tier's label.
func (p *StagedNetworkPolicy) Default() {
	setDefault(&p.Spec.StagedAction, StagedSet)
	setTier(&p.Metadata, &p.Spec.Tier)
	p.Spec.Types = defaultTypes(p.Spec.Types, len(p.Spec.Ingress), len(p.Spec.Egress))
}

func (p *StagedNetworkPolicy) toStored()               { policyToStored(&p.Metadata) }
func (p *StagedNetworkPolicy) fromStored()             { policyFromStored(&p.Metadata, p.Spec.Tier) }
func (p *StagedNetworkPolicy) references() []Reference { return tierOf(p.Spec.Tier) }
func (p *StagedNetworkPolicy) validate(c *checker)     { p.Spec.check(c) }
