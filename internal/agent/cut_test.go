package agent

import (
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/pkg/api"
)

// twoPods is a model in which everybody may reach a, and b only those in a set, which nobody is in; and both reach everything.
func twoPods() policy.Model {
	out := policy.List{ID: "out", Direction: api.Egress, Profiles: []policy.PolicyID{"all"}, End: api.Deny}
	open := policy.List{ID: "open", Direction: api.Ingress, Profiles: []policy.PolicyID{"all"}, End: api.Deny}
	friends := policy.List{ID: "friends", Direction: api.Ingress, End: api.Deny, Tiers: []policy.TierPart{{Policies: []policy.PolicyID{"some"}, End: api.Deny}}}
	endpoint := func(name, addr string, in policy.ListID) *policy.Endpoint {
		return &policy.Endpoint{Key: policy.EndpointKey{Name: name}, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Ingress: in, Egress: "out"}
	}
	a, b := endpoint("a", "10.0.0.1", "open"), endpoint("b", "10.0.0.2", "friends")
	return policy.Model{
		Endpoints: map[policy.EndpointKey]*policy.Endpoint{a.Key: a, b.Key: b},
		Lists:     map[policy.ListID]*policy.List{"out": &out, "open": &open, "friends": &friends},
		Policies: map[policy.PolicyID]*policy.Policy{
			"all":  {ID: "all", Rules: []policy.Rule{{Action: api.Allow}}},
			"some": {ID: "some", Rules: []policy.Rule{{Action: api.Allow, Source: policy.Match{Sets: []policy.SetID{"set"}}}}},
		},
		Sets: map[policy.SetID]*policy.Set{"set": {ID: "set"}},
	}
}

func tracked(from, to string) rtnl.Tracked {
	return rtnl.Tracked{Source: netip.MustParseAddr(from), Destination: netip.MustParseAddr(to), Protocol: api.ProtoTCP, SourcePort: 40000, DestinationPort: 80}
}

func TestOnlyDeniedConnectionsOfPodsWhosePolicyChangedAreCut(t *testing.T) {
	byEndpoint, bySet, byOther := newChangedPolicy(), newChangedPolicy(), newChangedPolicy()
	byEndpoint.endpoints[policy.EndpointKey{Name: "b"}] = struct{}{}
	bySet.sets["set"] = struct{}{}
	byOther.endpoints[policy.EndpointKey{Name: "a"}] = struct{}{}
	for what, changes := range map[string]changedPolicy{"endpoint": byEndpoint, "set": bySet, "other": byOther} {
		changes.host = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		j := newJudge(twoPods(), changes)
		for _, c := range []struct {
			from, to string
			cut      bool
		}{
			{"10.9.0.9", "10.0.0.2", what != "other"},
			{"10.0.0.1", "10.0.0.2", true}, // of both
			{"10.9.0.9", "10.0.0.1", false},
			{"10.0.0.2", "10.9.0.9", false},
			{"192.0.2.1", "10.0.0.2", false}, // the host's own
			{"10.0.0.1", "192.0.2.1", false},
			{"10.9.0.9", "10.9.0.8", false},
		} {
			if got := j.denies(tracked(c.from, c.to)); got != c.cut {
				t.Errorf("%s changed: %s to %s is cut: %t, want %t", what, c.from, c.to, got, c.cut)
			}
		}
	}
}

func TestManyChangesOfPolicyAreOneLookASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		c := newCutter(twoPods, slog.New(slog.DiscardHandler))
		c.cut = func(func(rtnl.Tracked) bool) (int, error) { looks++; return 0, nil }
		go func() { _ = c.run(t.Context()) }()
		u := newChangedPolicy()
		c.changed(u) // of which nothing is to be looked for
		u.endpoints[policy.EndpointKey{Name: "b"}] = struct{}{}
		for range 100 {
			c.changed(u)
			synctest.Wait()
			<-time.After(25 * time.Millisecond)
		}
		if looks < 2 || looks > 4 {
			t.Errorf("%d looks in two and a half seconds", looks)
		}
	})
}
