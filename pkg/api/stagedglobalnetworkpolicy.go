package api

// StagedGlobalNetworkPolicy is a GlobalNetworkPolicy on trial: it is looked at and not enforced.
type StagedGlobalNetworkPolicy struct {
	Header
	Spec StagedGlobalNetworkPolicySpec `json:"spec"`
}

// StagedGlobalNetworkPolicySpec holds the fields of a StagedGlobalNetworkPolicy.
type StagedGlobalNetworkPolicySpec struct {
	StagedAction string `json:"stagedAction,omitempty" want:"oneof Set Delete Learn Ignore"`
	GlobalNetworkPolicySpec
}

// KindOf describes StagedGlobalNetworkPolicy.
func (*StagedGlobalNetworkPolicy) KindOf() Kind {
	return Kind{
		Name: "StagedGlobalNetworkPolicy", Plural: "stagedglobalnetworkpolicies", Aliases: "sgnp sgnps", Names: NameGlobalPolicy,
	}
}

// Default fills staged action, tier, types and the tier's label.
func (p *StagedGlobalNetworkPolicy) Default() {
	setDefault(&p.Spec.StagedAction, StagedSet)
	setTier(&p.Metadata, &p.Spec.Tier)
	p.Spec.Types = defaultTypes(p.Spec.Types, len(p.Spec.Ingress), len(p.Spec.Egress))
}

func (p *StagedGlobalNetworkPolicy) toStored()               { policyToStored(&p.Metadata) }
func (p *StagedGlobalNetworkPolicy) fromStored()             { policyFromStored(&p.Metadata, p.Spec.Tier) }
func (p *StagedGlobalNetworkPolicy) references() []Reference { return tierOf(p.Spec.Tier) }
func (p *StagedGlobalNetworkPolicy) validate(c *checker)     { p.Spec.check(c) }
