package policy

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Packet is what rules look at in a packet.
type Packet struct {
	Source, Destination         netip.Addr
	Protocol                    uint8  // IANA number
	SourcePort, DestinationPort uint16 // 0 of protocols that have no ports
	ICMPType, ICMPCode          uint8  // of protocols 1 and 58
}

// Way is how a packet goes through the host.
type Way uint8

// The ways.
const (
	Forwarded Way = iota // in by one device and out by another
	Received             // by a process of the host
	Sent                 // likewise
)

// Flow is the first packet of a flow, and the endpoints by whose devices it goes.
type Flow struct {
	Packet
	Way Way
	In  *Endpoint // nil: it comes in by no endpoint's device; not looked at if it is Sent
	Out *Endpoint // nil: it leaves by no endpoint's device; not looked at if it is Received
}

// Use says for what an endpoint's list is asked.
type Use string

// The uses of lists, in the order in which they are asked.
const (
	UseUntracked Use = "untracked" // before connection tracking
	UsePreDNAT   Use = "preDNAT"   // before destinations are rewritten
	UseForward   Use = "forward"   // what passes through the host
	UseOwn       Use = "own"       // what the endpoint itself receives or sends
)

// Walked is how a flow fares.
type Walked struct {
	Verdict api.Action // Allow or Deny; of what the lists leave undecided, Allow
	Sides   []Side     // the lists that were asked, in order; the last one denies if Verdict is Deny
}

// Side is how a flow fares in one list of one endpoint.
type Side struct {
	Endpoint *Endpoint
	Use      Use
	List     *List
	Verdict  api.Action // Allow, Deny, or Pass if the list leaves it undecided
	By       RuleID     // the rule that decided, or the end of a tier or list; "" if none did
	Steps    []Step     // all that was considered, in order
}

// Step is one rule, or one end, that was considered.
type Step struct {
	Tier   string  // "" of profiles and of the list's end
	Policy *Policy // nil: the end of the tier, or of the list where Tier is "" too
	Rule   *Rule   // nil: an end, or a policy without rules
	ID     RuleID
	Action api.Action // what the rule or end does
	// Unmet names the first field of the rule that the packet does not satisfy: "source selector". "": all are satisfied.
	Unmet string
}

// Matched reports whether the packet satisfies the step. Ends are always satisfied.
func (s Step) Matched() bool { return s.Unmet == "" }

// Walk lets the first packet of a flow walk the lists of the endpoints that it goes by, and returns what becomes of it and every rule that was
// considered on the way. It judges by policies alone. What holds without them is for the caller to add: that workloads send only from
// their own addresses and no tunnel packets, that nothing goes by a workload's device which is no endpoint's, that
// failsafe ports are open, and what becomes of packets from workloads to their host in general. The endpoints are the model's.
func (m Model) Walk(f Flow) Walked {
	out := Walked{Verdict: api.Allow}
	for _, e := range f.asked() {
		for _, a := range e {
			if a.list == "" {
				continue
			}
			side := m.side(a, f.Packet)
			out.Sides = append(out.Sides, side)
			if side.Verdict == api.Deny {
				out.Verdict = api.Deny
				return out
			}
			if side.Verdict == api.Allow {
				break // no other list of the endpoint
			}
		}
	}
	return out
}

// ask is one list to ask.
type ask struct {
	endpoint *Endpoint
	use      Use
	list     ListID
}

// asked is what a flow has to ask, endpoint by endpoint.
func (f Flow) asked() [][]ask {
	var out [][]ask
	if e := f.In; e != nil && f.Way != Sent {
		out = append(out, f.in(e))
	}
	if e := f.Out; e != nil && f.Way != Received {
		out = append(out, f.out(e))
	}
	return out
}

func (f Flow) in(e *Endpoint) []ask {
	if e.Key.Kind == Workload {
		return []ask{{e, UseOwn, e.Egress}}
	}
	last := ask{e, UseOwn, e.Ingress}
	if f.Way == Forwarded {
		last = ask{e, UseForward, e.ForwardIngress}
	}
	return []ask{{e, UseUntracked, e.UntrackedIngress}, {e, UsePreDNAT, e.PreDNAT}, last}
}

// out leaves untracked policies out for what is forwarded: a packet on its way out has been tracked by then. What the host itself sends to its
// workloads is not policed.
func (f Flow) out(e *Endpoint) []ask {
	switch {
	case e.Key.Kind == Workload && f.Way == Sent:
		return nil
	case e.Key.Kind == Workload:
		return []ask{{e, UseOwn, e.Ingress}}
	case f.Way == Sent:
		return []ask{{e, UseUntracked, e.UntrackedEgress}, {e, UseOwn, e.Egress}}
	}
	return []ask{{e, UseForward, e.ForwardEgress}}
}

// side walks one list.
func (m Model) side(a ask, p Packet) Side {
	list := m.Lists[a.list]
	s := Side{Endpoint: a.endpoint, Use: a.use, List: list}
	for _, tier := range list.Tiers {
		verdict, by := m.askAll(&s, tier.Tier, tier.Policies, p)
		if verdict == "" {
			verdict, by = tier.End, tier.EndID
			s.Steps = append(s.Steps, Step{Tier: tier.Tier, ID: by, Action: verdict})
		}
		if verdict != api.Pass {
			s.Verdict, s.By = verdict, by
			return s
		}
	}
	for _, profile := range list.Profiles {
		verdict, by := m.askAll(&s, "", []PolicyID{profile}, p)
		if verdict != "" && verdict != api.Pass {
			s.Verdict, s.By = verdict, by
			return s
		}
	}
	s.Verdict, s.By = list.End, list.EndID
	s.Steps = append(s.Steps, Step{ID: list.EndID, Action: list.End})
	return s
}

// askAll asks policies in order, and returns what the first of them that decides says; "" if none does.
func (m Model) askAll(s *Side, tier string, ids []PolicyID, p Packet) (api.Action, RuleID) {
	for _, id := range ids {
		policy := m.Policies[id]
		if verdict, by := m.ask(s, tier, policy, p); verdict != "" && !policy.Staged {
			return verdict, by
		}
	}
	return "", ""
}

func (m Model) ask(s *Side, tier string, policy *Policy, p Packet) (api.Action, RuleID) {
	if len(policy.Rules) == 0 {
		s.Steps = append(s.Steps, Step{Tier: tier, Policy: policy, Unmet: "no rule"})
	}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		step := Step{Tier: tier, Policy: policy, Rule: rule, ID: rule.ID, Action: rule.Action, Unmet: m.unmet(rule, p)}
		s.Steps = append(s.Steps, step)
		if step.Matched() && rule.Action != api.Log {
			return rule.Action, rule.ID
		}
	}
	return "", ""
}

// unmet names the first field of a rule that a packet does not satisfy.
func (m Model) unmet(r *Rule, p Packet) string {
	isICMP := func(i *ICMP) bool {
		return i.Type == p.ICMPType && (i.Code < 0 || i.Code == int(p.ICMPCode))
	}
	switch {
	case r.IPVersion == 4 && !p.Source.Is4(), r.IPVersion == 6 && p.Source.Is4():
		return "ipVersion"
	case r.Protocol != 0 && r.Protocol != p.Protocol:
		return "protocol"
	case r.NotProtocol != 0 && r.NotProtocol == p.Protocol:
		return "notProtocol"
	case r.ICMP != nil && !isICMP(r.ICMP):
		return "icmp"
	case r.NotICMP != nil && isICMP(r.NotICMP):
		return "notICMP"
	}
	if field := m.unmetBy(&r.Source, PortMember{p.Source, p.Protocol, p.SourcePort}); field != "" {
		return "source " + field
	}
	if field := m.unmetBy(&r.Destination, PortMember{p.Destination, p.Protocol, p.DestinationPort}); field != "" {
		return "destination " + field
	}
	return ""
}

// unmetBy is unmet for one end of the packet's way.
func (m Model) unmetBy(match *Match, end PortMember) string {
	inNet := func(n netip.Prefix) bool { return n.Contains(end.Addr) }
	inSet := func(id SetID) bool { return m.Sets[id].HasAddr(end.Addr) }
	inPorts := func(r PortRange) bool { return r.Min <= end.Port && end.Port <= r.Max }
	inPortSet := func(id SetID) bool { return m.Sets[id].HasPort(end) }
	outside := func(id SetID) bool { return !inSet(id) }
	switch {
	case len(match.Nets) > 0 && !slices.ContainsFunc(match.Nets, inNet):
		return "nets"
	case slices.ContainsFunc(match.NotNets, inNet):
		return "notNets"
	case slices.ContainsFunc(match.Sets, outside):
		return "selector"
	case slices.ContainsFunc(match.NotSets, inSet):
		return "notSelector"
	case len(match.Ports)+len(match.PortSets) > 0 && !slices.ContainsFunc(match.Ports, inPorts) && !slices.ContainsFunc(match.PortSets, inPortSet):
		return "ports"
	case slices.ContainsFunc(match.NotPorts, inPorts), slices.ContainsFunc(match.NotPortSets, inPortSet):
		return "notPorts"
	}
	return ""
}
