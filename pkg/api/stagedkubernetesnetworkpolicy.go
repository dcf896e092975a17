package api

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// StagedKubernetesNetworkPolicy is a Kubernetes NetworkPolicy on trial: it is looked at and not enforced.
type StagedKubernetesNetworkPolicy struct {
	Header
	Spec StagedKubernetesNetworkPolicySpec `json:"spec"`
}

// StagedKubernetesNetworkPolicySpec holds Kubernetes' fields (networking.k8s.io/v1 NetworkPolicySpec) behind the staged action.
type StagedKubernetesNetworkPolicySpec struct {
	StagedAction string         `json:"stagedAction,omitempty" want:"oneof Set Delete Learn Ignore"`
	PodSelector  *LabelSelector `json:"podSelector,omitempty"` // nil: all pods of the namespace
	Ingress      []KubePeerRule `json:"ingress,omitempty"`
	Egress       []KubePeerRule `json:"egress,omitempty"`
	PolicyTypes  []PolicyType   `json:"policyTypes,omitempty" want:"oneof Ingress Egress"`
}

// KubePeerRule allows traffic with any of the peers on any of the ports; an empty list is any.
type KubePeerRule struct {
	Ports []KubePort `json:"ports,omitempty"`
	From  []KubePeer `json:"from,omitempty"` // of ingress rules
	To    []KubePeer `json:"to,omitempty"`   // of egress rules
}

// KubePort is a port, a range of ports or the name of a port.
type KubePort struct {
	Protocol string `json:"protocol,omitempty" want:"oneof TCP UDP SCTP"` // "": TCP
	Port     *Port  `json:"port,omitempty"`                               // nil: all
	EndPort  *int32 `json:"endPort,omitempty" want:"range 1 65535"`       // nil: only Port
}

// KubePeer is an address range, or pods, namespaces or pods of namespaces.
type KubePeer struct {
	PodSelector       *LabelSelector `json:"podSelector,omitempty"`
	NamespaceSelector *LabelSelector `json:"namespaceSelector,omitempty"`
	IPBlock           *KubeIPBlock   `json:"ipBlock,omitempty"`
}

// KubeIPBlock is an address range with exceptions.
type KubeIPBlock struct {
	CIDR   string   `json:"cidr" want:"required; cidr"`
	Except []string `json:"except,omitempty" want:"cidr"`
}

// LabelSelector is Kubernetes' selector: all of its parts must hold. The empty one selects everything.
type LabelSelector struct {
	MatchLabels      map[string]string  `json:"matchLabels,omitempty"`
	MatchExpressions []LabelRequirement `json:"matchExpressions,omitempty"`
}

// LabelRequirement is what one label must be.
type LabelRequirement struct {
	Key      string   `json:"key" want:"required"`
	Operator string   `json:"operator" want:"required; oneof In NotIn Exists DoesNotExist"`
	Values   []string `json:"values,omitempty"` // of In and NotIn
}

// KindOf describes StagedKubernetesNetworkPolicy.
func (*StagedKubernetesNetworkPolicy) KindOf() Kind {
	return Kind{
		Name: "StagedKubernetesNetworkPolicy", Plural: "stagedkubernetesnetworkpolicies", Namespaced: true, Aliases: "sknp sknps",
	}
}

// Default fills the staged action and the types.
func (p *StagedKubernetesNetworkPolicy) Default() {
	setDefault(&p.Spec.StagedAction, StagedSet)
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []PolicyType{Ingress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = []PolicyType{Ingress, Egress} // as Kubernetes has it
		}
	}
}

func (p *StagedKubernetesNetworkPolicy) toStored()   { policyToStored(&p.Metadata) }
func (p *StagedKubernetesNetworkPolicy) fromStored() { policyFromStored(&p.Metadata, DefaultTier) }

func (p *StagedKubernetesNetworkPolicy) validate(c *checker) {
	c.labelSelector("spec.podSelector", p.Spec.PodSelector)
	for i, r := range p.Spec.Ingress {
		path := fmt.Sprintf("spec.ingress[%d]", i)
		if len(r.To) > 0 {
			c.add(path+".to", nil, "belongs to egress rules; an ingress rule has from")
		}
		r.check(c, path)
	}
	for i, r := range p.Spec.Egress {
		path := fmt.Sprintf("spec.egress[%d]", i)
		if len(r.From) > 0 {
			c.add(path+".from", nil, "belongs to ingress rules; an egress rule has to")
		}
		r.check(c, path)
	}
}

func (r KubePeerRule) check(c *checker, path string) {
	for i, p := range r.Ports {
		p.check(c, fmt.Sprintf("%s.ports[%d]", path, i))
	}
	for i, p := range r.From {
		p.check(c, fmt.Sprintf("%s.from[%d]", path, i))
	}
	for i, p := range r.To {
		p.check(c, fmt.Sprintf("%s.to[%d]", path, i))
	}
}

func (p KubePort) check(c *checker, path string) {
	if p.Port != nil {
		p.Port.check(c, path+".port")
		if p.Port.Min != p.Port.Max {
			c.add(path+".port", p.Port, "must be a number or a name; endPort makes it a range")
		}
	}
	if p.EndPort != nil && (p.Port == nil || p.Port.Name != "" || int32(p.Port.Min) > *p.EndPort) {
		c.add(path+".endPort", p.EndPort, "needs a numeric port that is not greater")
	}
}

func (p KubePeer) check(c *checker, path string) {
	c.labelSelector(path+".podSelector", p.PodSelector)
	c.labelSelector(path+".namespaceSelector", p.NamespaceSelector)
	switch {
	case p.IPBlock == nil && p.PodSelector == nil && p.NamespaceSelector == nil:
		c.add(path, nil, "must have a podSelector, a namespaceSelector or an ipBlock")
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		c.add(path+".ipBlock", p.IPBlock.CIDR, "cannot be combined with selectors")
	case p.IPBlock != nil:
		p.IPBlock.check(c, path+".ipBlock")
	}
}

func (b KubeIPBlock) check(c *checker, path string) {
	all, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return // the tag's rule says so
	}
	for i, e := range b.Except {
		if p, err := netip.ParsePrefix(e); err == nil && (!all.Contains(p.Addr()) || p.Bits() <= all.Bits()) {
			c.add(fmt.Sprintf("%s.except[%d]", path, i), e, "must be a part of %s", b.CIDR)
		}
	}
}

func (c *checker) labelSelector(path string, s *LabelSelector) {
	if s == nil {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		c.label(path+".matchLabels", key, s.MatchLabels[key])
	}
	for i, r := range s.MatchExpressions {
		at := fmt.Sprintf("%s.matchExpressions[%d]", path, i)
		c.label(at+".key", r.Key, "")
		switch listed := r.Operator == "In" || r.Operator == "NotIn"; {
		case listed && len(r.Values) == 0:
			c.add(at+".values", nil, "must be specified for %s", r.Operator)
		case !listed && len(r.Values) > 0:
			c.add(at+".values", r.Values, "must be empty for %s", r.Operator)
		}
	}
}
