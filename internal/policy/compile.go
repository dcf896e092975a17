package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// errNever is of a rule that is right and cannot match: it is left out and nobody is told.
var errNever = errors.New("matches nothing")

// compiled is one direction of a policy with the sets that its rules refer to.
type compiled struct {
	policy   *Policy
	wants    []want
	problems []Problem
}

// compile makes rules of one direction of a policy, whose rules are given.
func compile(s *source, d api.PolicyType, rules []api.Rule) *compiled {
	c := &compiled{policy: &Policy{
		Kind: s.kind, Namespace: s.namespace, Name: s.name, Tier: s.tier, Direction: d, Staged: s.staged,
	}}
	said := map[RuleID]int{}
	for i := range rules {
		r, ok := c.rule(s, d, i, &rules[i])
		if !ok {
			continue
		}
		r.Index = i
		r.ID = ruleID(s, d, &r, 0)
		if nth := said[r.ID]; nth > 0 {
			said[r.ID]++
			r.ID = ruleID(s, d, &r, nth)
		} else {
			said[r.ID] = 1
		}
		c.policy.Rules = append(c.policy.Rules, r)
	}
	slices.SortFunc(c.wants, func(a, b want) int { return strings.Compare(string(a.id), string(b.id)) })
	c.wants = slices.CompactFunc(c.wants, func(a, b want) bool { return a.id == b.id })
	c.policy.ID = policyID(c.policy)
	return c
}

// rule compiles one rule; false if it matches nothing. Of a rule that cannot be used, what it would allow is not allowed, and what it would deny or
// pass on, of which nobody can tell what it is, is denied: that isolates the endpoints that this policy selects, and no others.
func (c *compiled) rule(s *source, d api.PolicyType, i int, in *api.Rule) (Rule, bool) {
	b := ruleBuilder{source: s, in: in}
	err := b.build(d)
	switch {
	case err == nil:
		c.wants = append(c.wants, b.wants...)
		return b.out, true
	case errors.Is(err, errNever):
		return Rule{}, false
	}
	harmless := in.Action == api.Allow || in.Action == api.Log
	what := "the rule denies everything"
	if harmless {
		what = "the rule matches nothing"
	}
	c.problems = append(c.problems, Problem{s.String(), fmt.Sprintf("spec.%s[%d]%v; %s until it is corrected", strings.ToLower(string(d)), i, err, what)})
	return Rule{Action: api.Deny}, !harmless
}

// ruleBuilder compiles one rule. Errors begin with the path below the rule.
type ruleBuilder struct {
	source *source
	in     *api.Rule
	out    Rule
	wants  []want
}

func (b *ruleBuilder) build(d api.PolicyType) error {
	in := b.in
	switch in.Action {
	case api.Allow, api.Deny, api.Log, api.Pass:
		b.out.Action = in.Action
	default:
		return fmt.Errorf(".action: %q is not known", in.Action)
	}
	if in.HTTP != nil {
		return errors.New(".http: requests cannot be looked at here")
	}
	if err := b.protocols(); err != nil {
		return err
	}
	if err := b.end(".source", &in.Source, &b.out.Source, d == api.Ingress); err != nil {
		return err
	}
	if err := b.end(".destination", &in.Destination, &b.out.Destination, d == api.Egress); err != nil {
		return err
	}
	return b.family()
}

func (b *ruleBuilder) protocols() (err error) {
	in, out := b.in, &b.out
	if out.Protocol, err = number(".protocol", in.Protocol); err != nil {
		return err
	}
	if out.NotProtocol, err = number(".notProtocol", in.NotProtocol); err != nil {
		return err
	}
	if out.Protocol != 0 && out.Protocol == out.NotProtocol {
		return errNever
	}
	if out.ICMP, err = b.icmp(".icmp", in.ICMP); err != nil {
		return err
	}
	out.NotICMP, err = b.icmp(".notICMP", in.NotICMP)
	return err
}

func number(path string, p *api.Protocol) (uint8, error) {
	if p == nil {
		return 0, nil
	}
	n := p.IANA()
	if n == 0 {
		return 0, fmt.Errorf("%s: %q is not known", path, p.String())
	}
	return n, nil
}

func (b *ruleBuilder) icmp(path string, m *api.ICMP) (*ICMP, error) {
	switch {
	case m == nil || m.Type == nil && m.Code == nil:
		return nil, nil
	case b.out.Protocol != api.ProtoICMP && b.out.Protocol != api.ProtoICMPv6:
		return nil, fmt.Errorf("%s: needs protocol ICMP or ICMPv6", path)
	case m.Type == nil:
		return nil, fmt.Errorf("%s: a code needs a type", path)
	case *m.Type < 0 || *m.Type > 255:
		return nil, fmt.Errorf("%s.type: %d is not between 0 and 255", path, *m.Type)
	case m.Code == nil:
		return &ICMP{Type: uint8(*m.Type), Code: -1}, nil
	case *m.Code < 0 || *m.Code > 255:
		return nil, fmt.Errorf("%s.code: %d is not between 0 and 255", path, *m.Code)
	}
	return &ICMP{Type: uint8(*m.Type), Code: *m.Code}, nil
}

// end compiles what a rule demands of one end of a packet's way. remote tells the end that is not the policy's own endpoint: only there can services
// be matched.
func (b *ruleBuilder) end(path string, in *api.EntityRule, out *Match, remote bool) (err error) {
	if out.Nets, err = nets(path+".nets", in.Nets); err != nil {
		return err
	}
	if out.NotNets, err = nets(path+".notNets", in.NotNets); err != nil {
		return err
	}
	positive, some, err := b.selects(path, in)
	if err != nil {
		return err
	}
	if some {
		out.Sets = b.refer(out.Sets, wantAddresses(positive))
	}
	if in.NotSelector != "" {
		not, err := selector.Parse(in.NotSelector)
		if err != nil {
			return fmt.Errorf("%s.notSelector: %w", path, err)
		}
		out.NotSets = b.refer(out.NotSets, wantAddresses(not))
	}
	if out.Ports, out.PortSets, err = b.ports(path+".ports", in.Ports, positive); err != nil {
		return err
	}
	if out.NotPorts, out.NotPortSets, err = b.ports(path+".notPorts", in.NotPorts, positive); err != nil {
		return err
	}
	return b.service(path+".services", in.Services, out, remote)
}

// selects combines all that chooses endpoints and network sets by labels; false if nothing does. A namespaced policy means its own namespace
// unless it names others, as soon as it chooses at all, be it by notSelector.
func (b *ruleBuilder) selects(path string, in *api.EntityRule) (sel selector.Selector, some bool, err error) {
	var parts []selector.Selector
	add := func(field, text string, convert func(selector.Selector) selector.Selector) {
		if text == "" || err != nil {
			return
		}
		s, perr := selector.Parse(text)
		if perr != nil {
			err = fmt.Errorf("%s.%s: %w", path, field, perr)
			return
		}
		parts, some = append(parts, convert(s)), true
	}
	home := b.source.namespace
	if home != "" && in.NamespaceSelector == "" && (in.Selector != "" || in.NotSelector != "" || in.ServiceAccounts != nil) {
		parts, some = append(parts, selector.OneOf(api.LabelNamespace, home)), true
	}
	add("namespaceSelector", in.NamespaceSelector, inNamespaces)
	if a := in.ServiceAccounts; a != nil {
		if len(a.Names) > 0 {
			parts, some = append(parts, selector.OneOf(labelAccount, a.Names...)), true
		}
		add("serviceAccounts.selector", a.Selector, func(s selector.Selector) selector.Selector { return s.Prefixed(accountPrefix) })
	}
	add("selector", in.Selector, func(s selector.Selector) selector.Selector { return s })
	return selector.All(parts...), some, err
}

// inNamespaces makes a selector of endpoints of one of namespaces. all() means whatever is in some namespace.
func inNamespaces(s selector.Selector) selector.Selector {
	if s.Equal(selector.Selector{}) {
		return selector.Has(api.LabelNamespace)
	}
	return s.Prefixed(namespacePrefix)
}

// ports sorts numeric ports and makes sets of named ones, which are ports of the endpoints that positive selects.
func (b *ruleBuilder) ports(path string, in []api.Port, positive selector.Selector) (out []PortRange, sets []SetID, err error) {
	if len(in) == 0 {
		return nil, nil, nil
	}
	protocol := b.out.Protocol
	for _, p := range in {
		switch {
		case p.Name != "":
			// Of another protocol no endpoint has ports: such a set is empty, and stays so.
			sets = b.refer(sets, wantPorts(positive, p.Name, protocol))
		case !hasPorts(protocol):
			return nil, nil, fmt.Errorf("%s: numeric ports need protocol TCP, UDP or SCTP", path)
		case p.Min > p.Max:
			return nil, nil, fmt.Errorf("%s: %v is not a range", path, p)
		default:
			out = append(out, PortRange{p.Min, p.Max})
		}
	}
	return joinRanges(out), sets, nil
}

// joinRanges sorts ranges and makes one of those that overlap or touch.
func joinRanges(in []PortRange) []PortRange {
	slices.SortFunc(in, func(a, b PortRange) int { return int(a.Min) - int(b.Min) })
	var out []PortRange
	for _, r := range in {
		if last := len(out) - 1; last >= 0 && int(r.Min) <= int(out[last].Max)+1 {
			out[last].Max = max(out[last].Max, r.Max)
			continue
		}
		out = append(out, r)
	}
	return out
}

func (b *ruleBuilder) service(path string, s *api.ServiceMatch, out *Match, remote bool) error {
	if s == nil {
		return nil
	}
	namespace := s.Namespace
	if namespace == "" {
		namespace = b.source.namespace
	}
	switch {
	case !remote:
		return fmt.Errorf("%s: can only be the source of ingress and the destination of egress", path)
	case namespace == "" || s.Name == "":
		return fmt.Errorf("%s: must name a namespace and a service", path)
	case len(b.in.Destination.Ports)+len(b.in.Destination.NotPorts) > 0 && &b.out.Destination == out:
		return fmt.Errorf("%s: cannot be combined with ports, which the service itself has", path)
	}
	if out == &b.out.Source {
		out.Sets = b.refer(out.Sets, wantService(Addresses, namespace, s.Name))
		return nil
	}
	out.PortSets = b.refer(out.PortSets, wantService(Ports, namespace, s.Name))
	return nil
}

// refer adds a set to those that a field names.
func (b *ruleBuilder) refer(ids []SetID, w want) []SetID {
	b.wants = append(b.wants, w)
	if i, found := slices.BinarySearch(ids, w.id); !found {
		ids = slices.Insert(ids, i, w.id)
	}
	return ids
}

// nets reads ranges, masked and sorted.
func nets(path string, in []string) ([]netip.Prefix, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]netip.Prefix, len(in))
	for i, text := range in {
		p, ok := parseNet(text)
		if !ok {
			return nil, fmt.Errorf("%s[%d]: %q is neither an address nor a range", path, i, text)
		}
		out[i] = p
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

// parseNet reads a range, or an address as the range of one, and masks it.
func parseNet(text string) (netip.Prefix, bool) {
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, false
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// family finds out which IP versions the rule can match: those of every list of ranges in it, and of the kind of ICMP. A list of exclusions
// speaks of its own family only, and one that excludes a whole family leaves nothing of it.
func (b *ruleBuilder) family() error {
	v4, v6 := true, true
	if v := b.in.IPVersion; v != nil {
		if *v != 4 && *v != 6 {
			return fmt.Errorf(".ipVersion: %d is neither 4 nor 6", *v)
		}
		v4, v6 = *v == 4, *v == 6
	}
	v4 = v4 && b.out.Protocol != api.ProtoICMPv6
	v6 = v6 && b.out.Protocol != api.ProtoICMP
	for _, m := range []*Match{&b.out.Source, &b.out.Destination} {
		if len(m.Nets) > 0 {
			v4, v6 = v4 && slices.ContainsFunc(m.Nets, is4), v6 && slices.ContainsFunc(m.Nets, is6)
		}
		if len(m.NotNets) > 0 {
			v4, v6 = v4 && slices.ContainsFunc(m.NotNets, is4), v6 && slices.ContainsFunc(m.NotNets, is6)
		}
		for _, p := range m.NotNets {
			v4, v6 = v4 && !(is4(p) && p.Bits() == 0), v6 && !(is6(p) && p.Bits() == 0)
		}
	}
	switch {
	case !v4 && !v6:
		return errNever
	case !v6:
		b.only(4, is6)
	case !v4:
		b.only(6, is4)
	}
	return nil
}

// only limits the rule to one IP version and leaves out ranges of the other.
func (b *ruleBuilder) only(version uint8, other func(netip.Prefix) bool) {
	b.out.IPVersion = version
	for _, m := range []*Match{&b.out.Source, &b.out.Destination} {
		m.Nets, m.NotNets = slices.DeleteFunc(m.Nets, other), slices.DeleteFunc(m.NotNets, other)
	}
}

func is4(p netip.Prefix) bool { return p.Addr().Is4() }
func is6(p netip.Prefix) bool { return p.Addr().Is6() }
