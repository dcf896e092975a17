package policyjudge

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// use is for what policies of an endpoint are asked.
type use string

const (
	normal    use = "own"       // what the endpoint itself receives and sends
	forward   use = "forward"   // what passes by a host's endpoint: applyOnForward
	untracked use = "untracked" // doNotTrack
	preDNAT   use = "preDNAT"
)

// rulebook is a policy that is in force, of either kind: a NetworkPolicy says nothing in the fields that only the global kind has. Staged policies are
// not in force.
type rulebook struct {
	kind, namespace, name string
	spec                  api.GlobalNetworkPolicySpec
}

func (b *rulebook) String() string { return b.kind + "(" + b.namespace + "/" + b.name + ")" }

func (c *Cluster) rulebooks() []*rulebook {
	var out []*rulebook
	for _, p := range all[*api.GlobalNetworkPolicy](c) {
		out = append(out, &rulebook{"GlobalNetworkPolicy", "", p.Metadata.Name, p.Spec})
	}
	for _, p := range all[*api.NetworkPolicy](c) {
		s := p.Spec
		out = append(out, &rulebook{"NetworkPolicy", p.Metadata.Namespace, p.Metadata.Name, api.GlobalNetworkPolicySpec{
			Tier: s.Tier, Order: s.Order, Ingress: s.Ingress, Egress: s.Egress, Selector: s.Selector, Types: s.Types,
			ServiceAccountSelector: s.ServiceAccountSelector}})
	}
	return out
}

// policiesFor are the policies of a tier that select an endpoint for a use and a direction, in order: by their order, those without one last, and equal
// ones by name/namespace/kind.
func (c *Cluster) policiesFor(e *endpoint, u use, direction api.PolicyType, tier string) []*rulebook {
	var out []*rulebook
	for _, b := range c.rulebooks() {
		if b.spec.Tier == tier && slices.Contains(b.spec.Types, direction) && b.isFor(u) && b.selects(e) {
			out = append(out, b)
		}
	}
	order := func(b *rulebook) float64 {
		if b.spec.Order == nil {
			return math.Inf(1)
		}
		return *b.spec.Order
	}
	slices.SortFunc(out, func(a, b *rulebook) int {
		return cmp.Or(cmp.Compare(order(a), order(b)),
			strings.Compare(a.name+"/"+a.namespace+"/"+a.kind, b.name+"/"+b.namespace+"/"+b.kind))
	})
	return out
}

// isFor tells whether a policy is asked for a use. One that is doNotTrack or preDNAT is asked for that alone; any other for what endpoints themselves
// receive and send, and with applyOnForward for what passes by too.
func (b *rulebook) isFor(u use) bool {
	switch {
	case b.spec.DoNotTrack:
		return u == untracked
	case b.spec.PreDNAT:
		return u == preDNAT
	}
	return u == normal || u == forward && b.spec.ApplyOnForward
}

// selects tells whether a policy applies to an endpoint: one of the policy's namespace, or of the namespaces that it selects.
func (b *rulebook) selects(e *endpoint) bool {
	if b.namespace != "" && e.labels[api.LabelNamespace] != b.namespace {
		return false
	}
	return inNamespaces(e.labels, b.spec.NamespaceSelector) &&
		satisfies(e.labels, "", b.spec.Selector) &&
		(b.spec.ServiceAccountSelector == "" || ofAccount(e.labels, b.spec.ServiceAccountSelector))
}

// satisfies tells whether labels satisfy a selector over keys that have a prefix there. The empty selector selects everything.
func satisfies(labels map[string]string, prefix, text string) bool {
	s, err := selector.Parse(text)
	return err == nil && s.Match(prefixed{labels, prefix})
}

// prefixed are the labels whose keys have a prefix, without it.
type prefixed struct {
	labels map[string]string
	prefix string
}

// Get implements selector.Labels.
func (p prefixed) Get(key string) (string, bool) {
	v, ok := p.labels[p.prefix+key]
	return v, ok
}

// inNamespaces tells whether a selector over the labels of namespaces selects something. These labels are those of the namespace's profile, with pcns. in
// front, and a selector is evaluated as if its keys had that in front: so one in the negative selects what lives in no namespace too. all() is every
// namespace, and global() none.
func inNamespaces(labels map[string]string, text string) bool {
	_, namespaced := labels[api.LabelNamespace]
	switch text {
	case "":
		return true
	case "all()":
		return namespaced
	case "global()":
		return !namespaced
	}
	return satisfies(labels, "pcns.", text)
}

// ofAccount tells whether labels are those of a pod whose service account a selector selects; the labels of accounts have pcsa. in front.
func ofAccount(labels map[string]string, text string) bool { return satisfies(labels, "pcsa.", text) }
