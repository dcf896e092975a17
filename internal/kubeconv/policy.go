package kubeconv

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// PolicyPrefix stands before the names of policies that Kubernetes' own become.
const PolicyPrefix = "knp.default."

// policyOrder is the order of policies that Kubernetes' own become.
const policyOrder = 1000.0

// pods selects what Kubernetes made.
const pods = api.LabelOrchestrator + " == 'k8s'"

// PolicyName is the name that a NetworkPolicy of Kubernetes has as a resource.
func PolicyName(name string) string { return PolicyPrefix + name }

// ParsePolicyName is the inverse of PolicyName.
func ParsePolicyName(policy string) (name string, ok bool) {
	name, ok = strings.CutPrefix(policy, PolicyPrefix)
	return name, ok && name != ""
}

// NetworkPolicy says in a resource what a NetworkPolicy of Kubernetes says. What the API server would have refused cannot be said: such a
// rule is left out and named in lost, and since every rule allows, the policy allows less. The error is for a podSelector that cannot be
// said, without which there is no policy.
func NetworkPolicy(np *networkingv1.NetworkPolicy) (p *api.NetworkPolicy, lost []error, err error) {
	chosen, err := selectorOf(&np.Spec.PodSelector)
	if err != nil {
		return nil, nil, fmt.Errorf("convert the podSelector of NetworkPolicy %s/%s: %w", np.Namespace, np.Name, err)
	}
	order := policyOrder
	p = &api.NetworkPolicy{Spec: api.NetworkPolicySpec{Tier: api.DefaultTier, Order: &order, Selector: and(pods, chosen), Types: typesOf(np.Spec)}}
	p.Metadata.Name, p.Metadata.Namespace = PolicyName(np.Name), np.Namespace
	for i, r := range np.Spec.Ingress {
		rules, errs := rulesOf(r.Ports, r.From, true)
		p.Spec.Ingress = append(p.Spec.Ingress, rules...)
		lost = append(lost, within(fmt.Sprintf("ingress[%d]", i), errs)...)
	}
	for i, r := range np.Spec.Egress {
		rules, errs := rulesOf(r.Ports, r.To, false)
		p.Spec.Egress = append(p.Spec.Egress, rules...)
		lost = append(lost, within(fmt.Sprintf("egress[%d]", i), errs)...)
	}
	api.SetDefaults(p)
	return p, lost, nil
}

func within(where string, errs []error) []error {
	for i, e := range errs {
		errs[i] = fmt.Errorf("%s: %w", where, e)
	}
	return errs
}

// typesOf are the policy's directions. The API server fills them in by the same rule where they are not said.
func typesOf(s networkingv1.NetworkPolicySpec) []api.PolicyType {
	var out []api.PolicyType
	for _, t := range s.PolicyTypes {
		named := api.PolicyType(t)
		if (named == api.Ingress || named == api.Egress) && !slices.Contains(out, named) {
			out = append(out, named)
		}
	}
	if len(out) > 0 {
		return out
	}
	if len(s.Egress) > 0 {
		return []api.PolicyType{api.Ingress, api.Egress}
	}
	return []api.PolicyType{api.Ingress}
}

// rulesOf is one rule for each protocol and peer. An empty list is any; one of which nothing can be said is nothing.
func rulesOf(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, ingress bool) (out []api.Rule, lost []error) {
	groups, lost := groupPorts(ports)
	entities := []api.EntityRule{{}}
	if len(peers) > 0 {
		entities = nil
	}
	for i, p := range peers {
		e, err := entityOf(p)
		if err != nil {
			lost = append(lost, fmt.Errorf("peer %d: %w", i, err))
			continue
		}
		entities = append(entities, e)
	}
	for _, g := range groups {
		for _, e := range entities {
			r := api.Rule{Action: api.Allow, Protocol: g.protocol}
			if ingress {
				r.Source = e
			} else {
				r.Destination = e
			}
			r.Destination.Ports = g.ports
			out = append(out, r)
		}
	}
	return out, lost
}

// entityOf is a peer. Pods without a namespaceSelector are those of the policy's namespace, which is what an empty namespaceSelector means in a
// resource too.
func entityOf(p networkingv1.NetworkPolicyPeer) (api.EntityRule, error) {
	switch {
	case p.IPBlock != nil:
		return blockOf(p.IPBlock)
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		return api.EntityRule{}, fmt.Errorf("it has neither a selector nor an ipBlock")
	}
	chosen, err := selectorOf(p.PodSelector)
	if err != nil {
		return api.EntityRule{}, err
	}
	e := api.EntityRule{Selector: and(pods, chosen)}
	if p.NamespaceSelector != nil {
		of, err := selectorOf(p.NamespaceSelector)
		if err != nil {
			return api.EntityRule{}, err
		}
		e.NamespaceSelector = cmp.Or(of, "all()")
	}
	return e, nil
}

// blockOf is an address range. One exception that cannot be read spoils the whole: without it the rule would allow more.
func blockOf(b *networkingv1.IPBlock) (api.EntityRule, error) {
	all, err := rangeOf(b.CIDR)
	if err != nil {
		return api.EntityRule{}, err
	}
	e := api.EntityRule{Nets: []string{all.String()}}
	for _, text := range b.Except {
		not, err := rangeOf(text)
		if err != nil {
			return api.EntityRule{}, err
		}
		if not.Bits() == 0 || not.Addr().Is4() != all.Addr().Is4() {
			return api.EntityRule{}, fmt.Errorf("the exception %s is no part of %s", text, b.CIDR)
		}
		e.NotNets = append(e.NotNets, not.String())
	}
	return e, nil
}

// rangeOf reads a range as Kubernetes does: host bits are ignored, and so are zeros in front of an IPv4 address's numbers and the prefix of
// an IPv4 address that is written as IPv6.
func rangeOf(s string) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(strings.TrimSpace(s), "/")
	n, err := strconv.Atoi(bits)
	if !ok || err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no address range", s)
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		a, err = netip.ParseAddr(withoutZeros(addr))
	}
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no address range", s)
	}
	if a.Is4In6() && n >= 96 {
		a, n = a.Unmap(), n-96
	}
	p, err := a.Prefix(n)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no address range", s)
	}
	return p, nil
}

// withoutZeros makes 10.0.0.1 of 010.000.0.01. Kubernetes reads that in base 10.
func withoutZeros(s string) string {
	parts := strings.Split(s, ".")
	for i, p := range parts {
		if short := strings.TrimLeft(p, "0"); p != "" {
			parts[i] = cmp.Or(short, "0")
		}
	}
	return strings.Join(parts, ".")
}

// selectorOf is a label selector in our language, written as Calico writes it: "" if it selects everything.
func selectorOf(s *metav1.LabelSelector) (string, error) {
	if s == nil {
		return "", nil
	}
	var terms []string
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		if err := sayable(key, s.MatchLabels[key]); err != nil {
			return "", err
		}
		terms = append(terms, fmt.Sprintf("%s == '%s'", key, s.MatchLabels[key]))
	}
	for _, r := range s.MatchExpressions {
		if err := sayable(r.Key, r.Values...); err != nil {
			return "", err
		}
		if set := r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn; set && len(r.Values) == 0 {
			return "", fmt.Errorf("the operator %q of a selector has no values", r.Operator)
		}
		switch r.Operator {
		case metav1.LabelSelectorOpIn:
			terms = append(terms, fmt.Sprintf("%s in { '%s' }", r.Key, strings.Join(r.Values, "', '")))
		case metav1.LabelSelectorOpNotIn:
			terms = append(terms, fmt.Sprintf("%s not in { '%s' }", r.Key, strings.Join(r.Values, "', '")))
		case metav1.LabelSelectorOpExists:
			terms = append(terms, fmt.Sprintf("has(%s)", r.Key))
		case metav1.LabelSelectorOpDoesNotExist:
			terms = append(terms, fmt.Sprintf("! has(%s)", r.Key))
		default:
			return "", fmt.Errorf("the operator %q of a selector is unknown", r.Operator)
		}
	}
	return strings.Join(terms, " && "), nil
}

// sayable reports whether a label and values of it can stand in a selector. Literals have no escapes: what holds a quote could end its literal and
// begin another term.
func sayable(key string, values ...string) error {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-"
	if _, err := selector.Parse("has(" + key + ")"); err != nil || strings.Trim(key, letters) != "" {
		return fmt.Errorf("%q is no key of a label", key)
	}
	for _, v := range values {
		if strings.Contains(v, "'") {
			return fmt.Errorf("%q is no value of a label", v)
		}
	}
	return nil
}

// and joins two selectors; "" is everything.
func and(a, b string) string {
	if b == "" {
		return a
	}
	return a + " && " + b
}

// portGroup is the ports of one protocol; none: all.
type portGroup struct {
	protocol *api.Protocol // nil: every protocol
	ports    []api.Port
}

// groupPorts sorts ports by protocol, by name. Where one port of a protocol is any, all are.
func groupPorts(ports []networkingv1.NetworkPolicyPort) (out []portGroup, lost []error) {
	if len(ports) == 0 {
		return []portGroup{{}}, nil
	}
	by, every := map[string][]api.Port{}, map[string]bool{}
	for i, p := range ports {
		name, port, err := portOf(p)
		if err != nil {
			lost = append(lost, fmt.Errorf("port %d: %w", i, err))
			continue
		}
		if port == nil {
			every[name] = true
			by[name] = nil
			continue
		}
		by[name] = append(by[name], *port)
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		g := portGroup{protocol: &api.Protocol{Name: name}}
		if !every[name] {
			g.ports = coalesce(by[name])
		}
		out = append(out, g)
	}
	return out, lost
}

// portOf is a port with its protocol; nil is every port.
func portOf(p networkingv1.NetworkPolicyPort) (protocol string, port *api.Port, err error) {
	protocol = string(corev1.ProtocolTCP)
	if p.Protocol != nil && *p.Protocol != "" {
		protocol = string(*p.Protocol)
	}
	if !slices.Contains([]string{"TCP", "UDP", "SCTP"}, protocol) {
		return "", nil, fmt.Errorf("the protocol %q is unknown", protocol)
	}
	switch {
	case p.Port == nil:
		return protocol, nil, nil
	case p.Port.Type == intstr.String:
		return named(protocol, p.Port.StrVal)
	}
	first, last := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if first < 1 || last > 65535 || last < first {
		return "", nil, fmt.Errorf("the ports %d to %d are no range of ports", first, last)
	}
	return protocol, &api.Port{Min: uint16(first), Max: uint16(last)}, nil
}

// named is a port that pods name. Kubernetes' names are IANA's (RFC 6335), which have a letter; a number as text would be read as a number.
func named(protocol, name string) (string, *api.Port, error) {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	if len(name) > 128 || !strings.ContainsAny(name, letters) || strings.Trim(name, letters+"0123456789_.-") != "" {
		return "", nil, fmt.Errorf("%q is no name of a port", name)
	}
	return protocol, &api.Port{Name: name}, nil
}

// coalesce joins numbers that touch to ranges, in order, and puts names behind them.
func coalesce(ports []api.Port) []api.Port {
	var numbers, names []api.Port
	for _, p := range ports {
		if p.Name != "" {
			if !slices.Contains(names, p) {
				names = append(names, p)
			}
			continue
		}
		numbers = append(numbers, p)
	}
	slices.SortFunc(numbers, func(a, b api.Port) int { return cmp.Or(cmp.Compare(a.Min, b.Min), cmp.Compare(a.Max, b.Max)) })
	var out []api.Port
	for _, p := range numbers {
		if n := len(out); n > 0 && int(p.Min) <= int(out[n-1].Max)+1 {
			out[n-1].Max = max(out[n-1].Max, p.Max)
			continue
		}
		out = append(out, p)
	}
	return append(out, names...)
}
