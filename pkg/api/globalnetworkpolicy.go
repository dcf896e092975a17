package api

// GlobalNetworkPolicy restricts the traffic of endpoints of all namespaces and of hosts.
type GlobalNetworkPolicy struct {
	Header
	Spec GlobalNetworkPolicySpec `json:"spec"`
}

// GlobalNetworkPolicySpec holds the fields of a GlobalNetworkPolicy.
type GlobalNetworkPolicySpec struct {
	Tier                   string       `json:"tier,omitempty" want:"subdomain"`
	Order                  *float64     `json:"order,omitempty"` // nil sorts last; equal orders sort by name
	Ingress                []Rule       `json:"ingress,omitempty"`
	Egress                 []Rule       `json:"egress,omitempty"`
	Selector               string       `json:"selector,omitempty" want:"selector"` // "": all endpoints
	Types                  []PolicyType `json:"types,omitempty" want:"oneof Ingress Egress"`
	DoNotTrack             bool         `json:"doNotTrack,omitempty"`     // before connection tracking; hosts only
	PreDNAT                bool         `json:"preDNAT,omitempty"`        // before destinations are rewritten; hosts only
	ApplyOnForward         bool         `json:"applyOnForward,omitempty"` // at hosts, also to what they forward
	ServiceAccountSelector string       `json:"serviceAccountSelector,omitempty" want:"selector"`
	NamespaceSelector      string       `json:"namespaceSelector,omitempty" want:"selector"` // "": any namespace, or none
	PerformanceHints       []string     `json:"performanceHints,omitempty" want:"oneof AssumeNeededOnEveryNode"`
}

// KindOf describes GlobalNetworkPolicy.
func (*GlobalNetworkPolicy) KindOf() Kind {
	return Kind{Name: "GlobalNetworkPolicy", Plural: "globalnetworkpolicies", Aliases: "gnp gnps", Names: NameGlobalPolicy}
}

// Default fills tier, types and the tier's label.
func (p *GlobalNetworkPolicy) Default() {
	setTier(&p.Metadata, &p.Spec.Tier)
	p.Spec.Types = defaultTypes(p.Spec.Types, len(p.Spec.Ingress), len(p.Spec.Egress))
}

func (p *GlobalNetworkPolicy) toStored()               { policyToStored(&p.Metadata) }
func (p *GlobalNetworkPolicy) fromStored()             { policyFromStored(&p.Metadata, p.Spec.Tier) }
func (p *GlobalNetworkPolicy) references() []Reference { return tierOf(p.Spec.Tier) }
func (p *GlobalNetworkPolicy) validate(c *checker)     { p.Spec.check(c) }

func (s *GlobalNetworkPolicySpec) check(c *checker) {
	c.types(s.Types)
	c.rules(rules{ingress: s.Ingress, egress: s.Egress, global: true})
	if s.DoNotTrack && s.PreDNAT {
		c.add("spec.preDNAT", s.PreDNAT, "PreDNAT and DoNotTrack cannot both be true, for a given PolicySpec")
	}
	if s.PreDNAT && len(s.Egress) > 0 {
		c.add("spec.egress", nil, "PreDNAT PolicySpec cannot have any Egress rules")
	}
	if s.PreDNAT && (len(s.Types) > 1 || len(s.Types) == 1 && s.Types[0] == Egress) {
		c.add("spec.types", s.Types, "PreDNAT PolicySpec cannot have 'egress' Type")
	}
	if (s.DoNotTrack || s.PreDNAT) && !s.ApplyOnForward {
		c.add("spec.applyOnForward", s.ApplyOnForward, "ApplyOnForward must be true if either PreDNAT or DoNotTrack is true, for a given PolicySpec")
	}
}
