package ruleset

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// conditions returns what a packet must meet for a rule to match it: one list of statements for each rule of nft that it takes. A packet meets
// at most one of them, except that of two sets of one selector both may hold its address.
func (l *Layout) conditions(r policy.Rule, u *uses) [][]nftable.Stmt {
	agnostic := !addresses(r.Source) && !addresses(r.Destination)
	if agnostic && r.IPVersion == 0 && r.ICMP == nil && r.NotICMP == nil {
		m := matcher{l: l, uses: u, alternatives: [][]nftable.Stmt{{}}}
		m.protocol(r)
		m.ports(r.Source, false)
		m.ports(r.Destination, true)
		return m.alternatives
	}
	var out [][]nftable.Stmt
	for family, f := range families {
		if r.IPVersion != 0 && r.IPVersion != f.version || icmpOfOther(r, f.v6) {
			continue
		}
		m := matcher{l: l, uses: u, family: family, alternatives: [][]nftable.Stmt{{nftable.Family{V6: f.v6}}}}
		m.protocol(r)
		m.ports(r.Source, false)
		m.ports(r.Destination, true)
		m.addresses(r.Source, false)
		m.addresses(r.Destination, true)
		out = append(out, m.alternatives...)
	}
	return out
}

// addresses tells whether a match looks at addresses, and so at the family.
func addresses(m policy.Match) bool {
	return len(m.Nets)+len(m.NotNets)+len(m.Sets)+len(m.NotSets)+len(m.PortSets)+len(m.NotPortSets) > 0
}

// icmpOfOther tells whether a rule is about kinds of ICMP messages of the other family.
func icmpOfOther(r policy.Rule, v6 bool) bool {
	return (r.ICMP != nil || r.NotICMP != nil) && (r.Protocol == api.ProtoICMPv6) != v6
}

// matcher gathers the alternatives under which a rule matches. Every condition is put behind each of them; a condition that is an
// alternative of several multiplies them.
type matcher struct {
	l            *Layout
	uses         *uses
	family       int
	alternatives [][]nftable.Stmt
}

// all demands something.
func (m *matcher) all(s nftable.Stmt) { m.any([]nftable.Stmt{s}) }

// any demands one of several; of none, nothing is left to match.
func (m *matcher) any(choices []nftable.Stmt) {
	var out [][]nftable.Stmt
	for _, a := range m.alternatives {
		for _, c := range choices {
			out = append(out, append(slices.Clip(slices.Clone(a)), c))
		}
	}
	m.alternatives = out
}

func (m *matcher) protocol(r policy.Rule) {
	if r.Protocol != 0 {
		m.all(nftable.Proto{Number: r.Protocol})
	}
	if r.NotProtocol != 0 {
		m.all(nftable.Proto{Number: r.NotProtocol, Not: true})
	}
	if r.ICMP != nil {
		m.all(icmp(r, *r.ICMP, false))
	}
	if r.NotICMP != nil {
		m.all(icmp(r, *r.NotICMP, true))
	}
}

func icmp(r policy.Rule, kind policy.ICMP, not bool) nftable.Stmt {
	return nftable.ICMP{V6: r.Protocol == api.ProtoICMPv6, Type: kind.Type, Code: uint8(kind.Code), HasCode: kind.Code >= 0, Not: not}
}

// ports demands of one end what looks at ports: the cheap comparisons come before the sets.
func (m *matcher) ports(p policy.Match, dst bool) {
	f := families[m.family]
	var choices []nftable.Stmt
	switch {
	case len(p.Ports) == 1:
		choices = append(choices, nftable.Port{Dst: dst, First: p.Ports[0].Min, Last: p.Ports[0].Max})
	case len(p.Ports) > 1:
		choices = append(choices, nftable.PortIn{Dst: dst, Set: m.portSet(p.Ports)})
	}
	for _, id := range p.PortSets {
		choices = append(choices, nftable.AddrPortIn{Dst: dst, V6: f.v6, Set: f.ports + string(id)})
	}
	if len(choices) > 0 {
		m.any(choices)
	}
	switch {
	case len(p.NotPorts) == 1:
		m.all(nftable.Port{Dst: dst, First: p.NotPorts[0].Min, Last: p.NotPorts[0].Max, Not: true})
	case len(p.NotPorts) > 1:
		m.all(nftable.PortIn{Dst: dst, Set: m.portSet(p.NotPorts), Not: true})
	}
	for _, id := range p.NotPortSets {
		m.all(nftable.AddrPortIn{Dst: dst, V6: f.v6, Set: f.ports + string(id), Not: true})
	}
}

// addresses demands of one end what looks at its address.
func (m *matcher) addresses(p policy.Match, dst bool) {
	f := families[m.family]
	if len(p.Nets) > 0 {
		m.nets(p.Nets, dst, false)
	}
	if len(p.NotNets) > 0 {
		m.nets(p.NotNets, dst, true)
	}
	for _, id := range p.Sets {
		choices := []nftable.Stmt{nftable.AddrIn{Dst: dst, V6: f.v6, Set: f.addrs + string(id)}}
		if m.hasNets(id) {
			choices = append(choices, nftable.AddrIn{Dst: dst, V6: f.v6, Set: f.nets + string(id)})
		}
		m.any(choices)
	}
	for _, id := range p.NotSets {
		m.all(nftable.AddrIn{Dst: dst, V6: f.v6, Set: f.addrs + string(id), Not: true})
		if m.hasNets(id) {
			m.all(nftable.AddrIn{Dst: dst, V6: f.v6, Set: f.nets + string(id), Not: true})
		}
	}
}

func (m *matcher) hasNets(id policy.SetID) bool {
	s := m.l.sets[id]
	return s != nil && len(s.nets[m.family]) > 0
}

// nets demands an address in one of these nets, or in none. Nets of the other family alone are met by nobody, or by everybody.
func (m *matcher) nets(nets []netip.Prefix, dst, not bool) {
	var own []netip.Prefix
	for _, p := range nets {
		if familyOf(p.Addr()) == m.family {
			own = append(own, p)
		}
	}
	f := families[m.family]
	switch {
	case len(own) == 0 && not:
	case len(own) == 0:
		m.any(nil)
	case len(own) == 1:
		m.all(nftable.Addr{Dst: dst, Prefix: own[0], Not: not})
	default:
		m.all(nftable.AddrIn{Dst: dst, V6: f.v6, Not: not, Set: m.constant(f.constNets, f.addr, nftable.Ranges(own))})
	}
}

func (m *matcher) portSet(ports []policy.PortRange) string {
	var elems []nftable.Elem
	for _, p := range ports {
		elems = append(elems, nftable.PortRange(p.Min, p.Max))
	}
	return m.constant("kp-", nftable.Ports, nftable.Merge(elems))
}

// constant returns the name of a set of ranges that never changes, and notes that it is needed.
func (m *matcher) constant(prefix string, typ nftable.Type, elems []nftable.Elem) string {
	var content []string
	for _, e := range elems {
		content = append(content, string(e.Key), e.To)
	}
	s := nftable.NewIntervals(prefix+nftable.Hash(content...), typ, elems...)
	if !slices.ContainsFunc(m.uses.constant, func(o *nftable.Set) bool { return o.Name == s.Name }) {
		m.uses.constant = append(m.uses.constant, s)
	}
	return s.Name
}
