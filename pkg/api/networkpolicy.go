package api

// NetworkPolicy restricts the traffic of endpoints of its namespace.
type NetworkPolicy struct {
	Header
	Spec NetworkPolicySpec `json:"spec"`
}

// NetworkPolicySpec holds the fields of a NetworkPolicy.
type NetworkPolicySpec struct {
	Tier                   string       `json:"tier,omitempty" want:"subdomain"`
	Order                  *float64     `json:"order,omitempty"` // nil sorts last; equal orders sort by name
	Ingress                []Rule       `json:"ingress,omitempty"`
	Egress                 []Rule       `json:"egress,omitempty"`
	Selector               string       `json:"selector,omitempty" want:"selector"` // "": all endpoints of the namespace
	Types                  []PolicyType `json:"types,omitempty" want:"oneof Ingress Egress"`
	ServiceAccountSelector string       `json:"serviceAccountSelector,omitempty" want:"selector"`
	PerformanceHints       []string     `json:"performanceHints,omitempty" want:"oneof AssumeNeededOnEveryNode"`
}

// KindOf describes NetworkPolicy.
func (*NetworkPolicy) KindOf() Kind {
	return Kind{
		Name: "NetworkPolicy", Plural: "networkpolicies", Namespaced: true, Aliases: "policy np policies pol pols",
		Names: NamePolicy,
	}
}

// Default fills tier, types and the tier's label.
func (p *NetworkPolicy) Default() {
	setTier(&p.Metadata, &p.Spec.Tier)
	p.Spec.Types = defaultTypes(p.Spec.Types, len(p.Spec.Ingress), len(p.Spec.Egress))
}

func (p *NetworkPolicy) toStored()               { policyToStored(&p.Metadata) }
func (p *NetworkPolicy) fromStored()             { policyFromStored(&p.Metadata, p.Spec.Tier) }
func (p *NetworkPolicy) references() []Reference { return tierOf(p.Spec.Tier) }
func (p *NetworkPolicy) refuses(op Op) string    { return refusesMirror(op, p.Metadata.Name) }
func (p *NetworkPolicy) validate(c *checker)     { p.Spec.check(c) }
func (s *NetworkPolicySpec) check(c *checker) {
	c.types(s.Types)
	c.rules(rules{ingress: s.Ingress, egress: s.Egress})
}
