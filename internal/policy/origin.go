package policy

import (
	"fmt"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Origin is what a RuleID stands for: a rule, or what becomes of what the rules of a tier, or of all, did not decide.
type Origin struct {
	Direction api.PolicyType
	Policy    *Policy // nil: an end
	Rule      *Rule   // of Policy; nil: an end
	Tier      string  // of the policy, or of whose end this is; "" of profiles, and of the end of a list
}

// String says it for people: NetworkPolicy(default/web) ingress rule 0.
func (o Origin) String() string {
	direction := "ingress"
	if o.Direction == api.Egress {
		direction = "egress"
	}
	switch {
	case o.Rule != nil:
		return fmt.Sprintf("%v %s rule %d", o.Policy, direction, o.Rule.Index)
	case o.Tier != "":
		return fmt.Sprintf("the end of tier %s in %s", o.Tier, direction)
	}
	return "no policy or profile, in " + direction
}

// Action is what becomes of a packet there.
func (o Origin) Action() api.Action {
	if o.Rule == nil {
		return api.Deny
	}
	return o.Rule.Action
}

// Origins returns what each RuleID stands for that the model of any node may have of these inputs, of which the last of a key counts. A RuleID covers what
// it stands for, so that what was learned of one stays true when the inputs change.
func Origins(all Delta) map[RuleID]Origin {
	c := &computation{
		profiles: map[string]*api.Profile{}, tiers: map[string]*api.Tier{}, services: map[string][]PortMember{}, wants: map[SetID]want{},
		out: Model{Policies: map[PolicyID]*Policy{}},
	}
	c.gather(all)
	out := map[RuleID]Origin{}
	for _, d := range []api.PolicyType{api.Ingress, api.Egress} {
		out[EndOfList(d)] = Origin{Direction: d}
		for _, p := range c.policies {
			c.compiled(p.source, d)
			out[EndOfTier(d, p.source.tier)] = Origin{Direction: d, Tier: p.source.tier}
		}
		for _, name := range c.profileNames() {
			c.profile(name, d)
		}
	}
	for _, p := range c.out.Policies {
		for i := range p.Rules {
			out[p.Rules[i].ID] = Origin{Direction: p.Direction, Policy: p, Rule: &p.Rules[i], Tier: p.Tier}
		}
	}
	return out
}

// profileNames are the profiles that there are, and those that endpoints name. One may come twice.
func (c *computation) profileNames() (out []string) {
	for name := range c.profiles {
		out = append(out, name)
	}
	for _, o := range c.items {
		out = append(out, profilesOf(o)...)
	}
	return out
}
