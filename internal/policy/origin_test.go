package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
)

func TestEveryIDOfEveryModelHasItsOrigin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var all Delta
		for range 5 {
			d := world{rt}.delta(nil)
			all.Objects, all.Services = append(all.Objects, d.Objects...), append(all.Services, d.Services...)
		}
		m, origins := Compute(node, all), Origins(all)
		expect := func(id RuleID, want Origin) {
			if diff := cmp.Diff(want, origins[id], same()); diff != "" {
				rt.Fatalf("origin of %s (-model +told):\n%s", id, diff)
			}
		}
		for _, p := range m.Policies {
			for i := range p.Rules {
				expect(p.Rules[i].ID, Origin{Direction: p.Direction, Policy: p, Rule: &p.Rules[i], Tier: p.Tier})
			}
		}
		for _, l := range m.Lists {
			for _, tier := range l.Tiers {
				expect(tier.EndID, Origin{Direction: l.Direction, Tier: tier.Tier})
			}
			if l.EndID != "" {
				expect(l.EndID, Origin{Direction: l.Direction})
			}
		}
	})
}

func TestOriginsReadAsPeopleSpeak(t *testing.T) {
	p := &Policy{Kind: "NetworkPolicy", Namespace: "default", Name: "web", Rules: []Rule{{Index: 2, Action: api.Log}}}
	for _, c := range []struct {
		origin Origin
		text   string
		action api.Action
	}{
		{Origin{Direction: api.Ingress, Policy: p, Rule: &p.Rules[0], Tier: "default"}, "NetworkPolicy(default/web) ingress rule 2", api.Log},
		{Origin{Direction: api.Egress, Tier: "security"}, "the end of tier security in egress", api.Deny},
		{Origin{Direction: api.Egress}, "no policy or profile, in egress", api.Deny},
	} {
		if c.origin.String() != c.text || c.origin.Action() != c.action {
			t.Errorf("got %q, %s, want %q, %s", c.origin, c.origin.Action(), c.text, c.action)
		}
	}
}
