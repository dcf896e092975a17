package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// How labels of namespaces and service accounts reach endpoints: profiles named kns.<namespace> and ksa.<namespace>.<name> apply them with
// these prefixes.
const (
	namespacePrefix  = "pcns."
	accountPrefix    = "pcsa."
	namespaceProfile = "kns."
	labelAccount     = "projectcalico.org/serviceaccount"
)

const kindProfile = "Profile"

// source is a policy or profile of any kind, as far as it must be read to know whom it selects.
type source struct {
	kind, namespace, name string
	tie                   string  // what decides between policies of one tier and order
	tier                  string  // "" of a profile
	order                 float64 // infinite where none is set
	staged                bool
	applies               selector.Selector // to endpoints of these labels; not of a profile
	ingress, egress       *[]api.Rule       // nil: the direction is not restricted
	forward               bool
	untracked             bool
	preDNAT               bool
	everywhere            bool // to be compiled whether or not an endpoint of this node is selected
}

// spec is what the kinds of policies have in common.
type spec struct {
	api.GlobalNetworkPolicySpec
	staged string // the staged action; "" of a policy in force
}

// read returns what a policy is about; nil if there is nothing to look at: a staged policy that announces a deletion, or that says itself that it is
// to be ignored. The error is of a policy that does not say readably whom it selects.
func read(o api.Object) (*source, error) {
	m := o.Meta()
	switch p := o.(type) {
	case *api.NetworkPolicy:
		return readPolicy(o, namespaced(p.Spec), m.Namespace)
	case *api.GlobalNetworkPolicy:
		return readPolicy(o, spec{GlobalNetworkPolicySpec: p.Spec}, "")
	case *api.StagedNetworkPolicy:
		s := namespaced(p.Spec.NetworkPolicySpec)
		s.staged = cmp.Or(p.Spec.StagedAction, api.StagedSet)
		return readPolicy(o, s, m.Namespace)
	case *api.StagedGlobalNetworkPolicy:
		s := spec{p.Spec.GlobalNetworkPolicySpec, cmp.Or(p.Spec.StagedAction, api.StagedSet)}
		return readPolicy(o, s, "")
	case *api.StagedKubernetesNetworkPolicy:
		s := namespaced(fromKubernetes(p.Spec))
		s.staged = cmp.Or(p.Spec.StagedAction, api.StagedSet)
		return readPolicy(o, s, m.Namespace)
	}
	return nil, nil
}

func namespaced(p api.NetworkPolicySpec) spec {
	return spec{GlobalNetworkPolicySpec: api.GlobalNetworkPolicySpec{
		Tier: p.Tier, Order: p.Order, Ingress: p.Ingress, Egress: p.Egress, Selector: p.Selector, Types: p.Types,
		ServiceAccountSelector: p.ServiceAccountSelector, PerformanceHints: p.PerformanceHints,
	}}
}

func readPolicy(o api.Object, p spec, namespace string) (*source, error) {
	if p.staged == api.StagedDelete || p.staged == api.StagedIgnore {
		return nil, nil
	}
	s := &source{
		kind: o.KindOf().Name, namespace: namespace, name: o.Meta().Name,
		tier: cmp.Or(p.Tier, api.DefaultTier), order: math.Inf(1), staged: p.staged != "",
		forward: p.ApplyOnForward, untracked: p.DoNotTrack, preDNAT: p.PreDNAT && !p.DoNotTrack,
		everywhere: slices.Contains(p.PerformanceHints, "AssumeNeededOnEveryNode"),
	}
	s.tie = s.name + "/" + s.namespace + "/" + s.kind
	if p.Order != nil {
		s.order = *p.Order
	}
	if len(p.Types) == 0 {
		p.Types = typesOf(p)
	}
	if slices.Contains(p.Types, api.Ingress) {
		s.ingress = &p.Ingress
	}
	if slices.Contains(p.Types, api.Egress) && !s.preDNAT {
		s.egress = &p.Egress
	}
	var err error
	s.applies, err = appliesTo(p, namespace)
	return s, err
}

// typesOf are the directions of a policy that names none.
func typesOf(p spec) []api.PolicyType {
	switch {
	case len(p.Egress) == 0:
		return []api.PolicyType{api.Ingress}
	case len(p.Ingress) == 0:
		return []api.PolicyType{api.Egress}
	}
	return []api.PolicyType{api.Ingress, api.Egress}
}

// appliesTo is the selector of the endpoints that a policy selects.
func appliesTo(p spec, namespace string) (selector.Selector, error) {
	own, err := selector.Parse(p.Selector)
	if err != nil {
		return own, fmt.Errorf("spec.selector: %w", err)
	}
	spaces, err := selector.Parse(p.NamespaceSelector)
	if err != nil {
		return own, fmt.Errorf("spec.namespaceSelector: %w", err)
	}
	accounts, err := selector.Parse(p.ServiceAccountSelector)
	if err != nil {
		return own, fmt.Errorf("spec.serviceAccountSelector: %w", err)
	}
	var home selector.Selector
	if namespace != "" {
		home = selector.OneOf(api.LabelNamespace, namespace)
	}
	return selector.All(home, spaces.Prefixed(namespacePrefix), accounts.Prefixed(accountPrefix), own), nil
}

// profileSource is a profile's rules. A profile that does not exist denies everything, as Calico has it.
func profileSource(name string, p *api.Profile) *source {
	s := &source{kind: kindProfile, name: name}
	switch {
	case p != nil:
		s.ingress, s.egress = &p.Spec.Ingress, &p.Spec.Egress
	case name == api.DefaultAllowProfile:
		builtin := api.NewDefaultAllow()
		s.ingress, s.egress = &builtin.Spec.Ingress, &builtin.Spec.Egress
	default:
		deny := []api.Rule{{Action: api.Deny}}
		s.ingress, s.egress = &deny, &deny
	}
	return s
}

// rules are the rules of a direction; nil if the policy does not restrict it.
func (s *source) rules(d api.PolicyType) *[]api.Rule {
	if d == api.Ingress {
		return s.ingress
	}
	return s.egress
}

// String is the source as users know it.
func (s *source) String() string { return objectName(s.kind, s.namespace, s.name) }

// compare is the order of policies within a tier: by order, then as Calico breaks ties, by the text name/namespace/kind.
func (s *source) compare(t *source) int {
	return cmp.Or(cmp.Compare(s.order, t.order), strings.Compare(s.tie, t.tie))
}

// concerns reports whether a policy says anything to endpoints of a kind: what is not tracked, and what happens before destinations are
// rewritten, is the host's business.
func (s *source) concerns(k EndpointKind) bool { return k == Host || !s.untracked && !s.preDNAT }

// tierInfo is what there is to know of a tier.
type tierInfo struct {
	name    string
	order   float64
	action  api.Action
	missing bool
}

// tierOf is the tier of that name; t is nil if it is not stored. The tiers that every cluster has are known without. Any other that does
// not exist denies by default and comes last.
func tierOf(name string, t *api.Tier) tierInfo {
	info := tierInfo{name: name, order: math.Inf(1), action: api.Deny}
	if t == nil {
		for _, s := range api.StaticTiers() {
			if s.Name == name {
				return tierInfo{name: name, order: s.Order, action: s.Action}
			}
		}
		info.missing = true
		return info
	}
	if t.Spec.Order != nil {
		info.order = *t.Spec.Order
	}
	if t.Spec.DefaultAction == api.Pass {
		info.action = api.Pass
	}
	return info
}

func (t tierInfo) compare(u tierInfo) int {
	return cmp.Or(cmp.Compare(t.order, u.order), strings.Compare(t.name, u.name))
}

// missingProfile says that endpoints of this node name a profile that does not exist.
func missingProfile(name string) Problem {
	return Problem{objectName(kindProfile, "", name), "does not exist, and denies everything to the endpoints that name it and that no policy decides for; create the profile"}
}

// missingTier says that a policy's tier does not exist.
func (s *source) missingTier() Problem {
	return Problem{s.String(), fmt.Sprintf("its tier %q does not exist: the policy comes after those of all tiers, and denies what it selects and does not allow; create the tier", s.tier)}
}
