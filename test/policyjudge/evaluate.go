package policyjudge

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Judgement is what becomes of a packet, and who said so.
type Judgement struct {
	Allowed bool
	Why     string
}

func allowed(why string) Judgement { return Judgement{Allowed: true, Why: why} }
func denied(why string) Judgement  { return Judgement{Why: why} }

// Evaluate judges the first packet of a flow, by the resources. The order of what is asked is that of Felix's chains: what comes in by a host's
// endpoint is judged before connection tracking, before destinations are rewritten, and then as what is forwarded or received; then comes the
// policy of the workload that sends, of the one that receives, and of the host's endpoint by which the packet leaves.
func Evaluate(c *Cluster, p Packet) Judgement {
	for _, stage := range []func(*Cluster, Packet) (Judgement, bool){fromHostEndpoint, fromWorkload, toWorkload, toHostEndpoint} {
		if j, decided := stage(c, p); decided && !j.Allowed {
			return j
		}
	}
	return allowed("nobody denies it")
}

// fromWorkload judges what a workload sends: it is to be an endpoint, to send from its own addresses, and no tunnel packets; then its egress policy is
// asked, and for what the host itself receives DefaultEndpointToHostAction.
func fromWorkload(c *Cluster, p Packet) (Judgement, bool) {
	if !workloadDevice(p.In) {
		return Judgement{}, false
	}
	w := c.workloadAt(p.In)
	switch {
	case w == nil:
		return denied("the device is no endpoint's"), true
	case !maySendFrom(w, p.Source):
		return denied("the source is not the workload's"), true
	case !c.Host.VXLANOut && p.Protocol == udp && p.DestinationPort == vxlanPort:
		return denied("workloads send no VXLAN"), true
	case p.Protocol == ipip:
		return denied("workloads send no IP in IP"), true
	}
	j := c.ask(c.workload(w), normal, api.Egress, p)
	if j.Allowed && p.Out == "" && c.Host.ToHost == api.Deny {
		return denied("DefaultEndpointToHostAction"), true
	}
	return j, true
}

// toWorkload judges what a workload receives. What the host itself sends to its workloads is not policed.
func toWorkload(c *Cluster, p Packet) (Judgement, bool) {
	if !workloadDevice(p.Out) || p.In == "" {
		return Judgement{}, false
	}
	w := c.workloadAt(p.Out)
	if w == nil {
		return denied("the device is no endpoint's"), true
	}
	return c.ask(c.workload(w), normal, api.Ingress, p), true
}

// maySendFrom tells whether a source is the workload's: one of its addresses or of the prefixes that it may send from besides. Link-local IPv6 addresses are
// what neighbour discovery works with.
func maySendFrom(w *api.WorkloadEndpoint, source netip.Addr) bool {
	for _, n := range w.Spec.IPNetworks {
		if n.Contains(source) {
			return true
		}
	}
	return inAny(w.Spec.AllowSpoofed, source) || source.Is6() && source.IsLinkLocalUnicast()
}

func fromHostEndpoint(c *Cluster, p Packet) (Judgement, bool) {
	if p.In == "" || workloadDevice(p.In) {
		return Judgement{}, false
	}
	h := c.hostAt(p.In)
	if h == nil {
		return Judgement{}, false
	}
	failsafe := slices.Contains(c.Host.FailIn, Failsafe{p.Protocol, p.DestinationPort})
	for _, u := range []use{untracked, preDNAT} {
		if failsafe {
			break // open before tracking and before DNAT too; what is forwarded is judged as such all the same
		}
		if j, decided := c.askTiers(c.host(h), u, api.Ingress, p); decided {
			return j, true
		}
	}
	switch {
	case p.Out != "":
		return c.askTiers(c.host(h), forward, api.Ingress, p)
	case failsafe:
		return allowed("failsafe port"), true
	}
	return c.ask(c.host(h), normal, api.Ingress, p), true
}

// toHostEndpoint judges what leaves by a host's endpoint. What is forwarded has been tracked already, so untracked policies say nothing of it on its way out.
func toHostEndpoint(c *Cluster, p Packet) (Judgement, bool) {
	if p.Out == "" || workloadDevice(p.Out) {
		return Judgement{}, false
	}
	h := c.hostAt(p.Out)
	if h == nil {
		return Judgement{}, false
	}
	if p.In != "" {
		return c.askTiers(c.host(h), forward, api.Egress, p)
	}
	if slices.Contains(c.Host.FailOut, Failsafe{p.Protocol, p.DestinationPort}) {
		return allowed("failsafe port"), true
	}
	if j, decided := c.askTiers(c.host(h), untracked, api.Egress, p); decided {
		return j, true
	}
	return c.ask(c.host(h), normal, api.Egress, p), true
}

// ask asks the tiers, and then the profiles, of which one has to allow the packet.
func (c *Cluster) ask(e *endpoint, u use, direction api.PolicyType, p Packet) Judgement {
	if j, decided := c.askTiers(e, u, direction, p); decided {
		return j
	}
	for _, name := range e.profiles {
		profile := c.profile(name)
		if profile == nil {
			return denied("profile " + name + " does not exist")
		}
		rules := profile.Spec.Ingress
		if direction == api.Egress {
			rules = profile.Spec.Egress
		}
		action, i := c.firstMatch(rules, "", p)
		if action == api.Allow || action == api.Deny {
			return Judgement{action == api.Allow, fmt.Sprintf("%s: profile %s rule %d", e.name, name, i)}
		}
	}
	return denied(e.name + ": no profile allows it")
}

// askTiers asks the tiers in order. A tier without a policy for the endpoint in this direction is passed over. What the policies of a tier
// leave undecided is denied at its end, unless the tier's default action is Pass. Policies before tracking and before DNAT deny only what a rule denies.
func (c *Cluster) askTiers(e *endpoint, u use, direction api.PolicyType, p Packet) (Judgement, bool) {
	for _, t := range c.tiers() {
		policies := c.policiesFor(e, u, direction, t.name)
		if len(policies) == 0 {
			continue
		}
		action, why := c.askPolicies(policies, direction, p)
		if action == "" {
			action, why = t.end, "end of tier "+t.name
			if u == untracked || u == preDNAT {
				action = api.Pass
			}
		}
		if action != api.Pass {
			return Judgement{action == api.Allow, fmt.Sprintf("%s %s %s: %s", e.name, u, direction, why)}, true
		}
	}
	return Judgement{}, false
}

func (c *Cluster) askPolicies(policies []*rulebook, direction api.PolicyType, p Packet) (api.Action, string) {
	for _, b := range policies {
		rules := b.spec.Ingress
		if direction == api.Egress {
			rules = b.spec.Egress
		}
		if action, i := c.firstMatch(rules, b.namespace, p); action != "" {
			return action, fmt.Sprintf("%s rule %d", b, i)
		}
	}
	return "", ""
}

// firstMatch is the action of the first rule that matches and is not Log; "" if there is none.
func (c *Cluster) firstMatch(rules []api.Rule, namespace string, p Packet) (api.Action, int) {
	for i := range rules {
		if rules[i].Action != api.Log && c.matches(&rules[i], namespace, p) {
			return rules[i].Action, i
		}
	}
	return "", 0
}

type tier struct {
	name  string
	order float64
	end   api.Action
}

// tiers are the tiers in order; those without an order come last, and equal ones by name. A tier that policies name and that does not exist comes
// behind all others and denies.
func (c *Cluster) tiers() []tier {
	var out []tier
	for _, t := range all[*api.Tier](c) {
		order := math.Inf(1)
		if t.Spec.Order != nil {
			order = *t.Spec.Order
		}
		out = append(out, tier{t.Metadata.Name, order, t.Spec.DefaultAction})
	}
	slices.SortFunc(out, func(a, b tier) int { return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.name, b.name)) })
	var missing []tier
	for _, b := range c.rulebooks() {
		named := func(t tier) bool { return t.name == b.spec.Tier }
		if !slices.ContainsFunc(out, named) && !slices.ContainsFunc(missing, named) {
			missing = append(missing, tier{b.spec.Tier, math.Inf(1), api.Deny})
		}
	}
	slices.SortFunc(missing, func(a, b tier) int { return cmp.Compare(a.name, b.name) })
	return append(out, missing...)
}
