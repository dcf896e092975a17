package policyjudge

import (
	"maps"
	"slices"
	"testing"

	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// TestBrokenModelsAreFound breaks compiled models in the ways in which a compiler goes wrong, and expects that packets of the fixed seeds show each.
func TestBrokenModelsAreFound(t *testing.T) {
	for name, breakIt := range map[string]func(*policy.Model){
		"a policy loses its last rule": ofPolicies(func(p *policy.Policy) {
			p.Rules = p.Rules[:max(0, len(p.Rules)-1)]
		}),
		"staged policies are enforced": ofPolicies(func(p *policy.Policy) { p.Staged = false }),
		"Pass allows": ofRules(func(r *policy.Rule) {
			if r.Action == api.Pass {
				r.Action = api.Allow
			}
		}),
		"Log denies": ofRules(func(r *policy.Rule) {
			if r.Action == api.Log {
				r.Action = api.Deny
			}
		}),
		"excluded protocols are forgotten": ofRules(func(r *policy.Rule) { r.NotProtocol = 0 }),
		"IP versions are forgotten":        ofRules(func(r *policy.Rule) { r.IPVersion = 0 }),
		"excluded ICMP is forgotten":       ofRules(func(r *policy.Rule) { r.NotICMP = nil }),
		"ICMP codes are forgotten": ofRules(func(r *policy.Rule) {
			if r.ICMP != nil {
				r.ICMP = &policy.ICMP{Type: r.ICMP.Type, Code: -1}
			}
		}),
		"excluded nets are forgotten":  ofEnds(func(m *policy.Match) { m.NotNets = nil }),
		"excluded sets are forgotten":  ofEnds(func(m *policy.Match) { m.NotSets = nil }),
		"excluded ports are forgotten": ofEnds(func(m *policy.Match) { m.NotPorts, m.NotPortSets = nil, nil }),
		"named ports are forgotten":    ofEnds(func(m *policy.Match) { m.PortSets = nil }),
		"ranges end too early": ofEnds(func(m *policy.Match) {
			m.Ports = slices.Clone(m.Ports)
			for i := range m.Ports {
				m.Ports[i].Max = max(m.Ports[i].Min, m.Ports[i].Max-1)
			}
		}),
		"tiers are the other way round": ofLists(func(l *policy.List) {
			l.Tiers = slices.Clone(l.Tiers)
			slices.Reverse(l.Tiers)
		}),
		"policies are the other way round": ofLists(func(l *policy.List) {
			l.Tiers = slices.Clone(l.Tiers)
			for i := range l.Tiers {
				l.Tiers[i].Policies = slices.Clone(l.Tiers[i].Policies)
				slices.Reverse(l.Tiers[i].Policies)
			}
		}),
		"tiers end with Pass": ofLists(func(l *policy.List) {
			l.Tiers = slices.Clone(l.Tiers)
			for i := range l.Tiers {
				l.Tiers[i].End = api.Pass
			}
		}),
		"only the first profile is asked": ofLists(func(l *policy.List) { l.Profiles = l.Profiles[:min(1, len(l.Profiles))] }),
		"lists end with Allow":            ofLists(func(l *policy.List) { l.End = api.Allow }),
		"sets have no members":            ofSets(func(s *policy.Set) { s.Members = policy.Members{} }),
		"sets lose their ranges":          ofSets(func(s *policy.Set) { s.Nets = nil }),
		"forwarding is not judged":        ofEndpoints(func(e *policy.Endpoint) { e.ForwardIngress, e.ForwardEgress = "", "" }),
		"untracked is not judged":         ofEndpoints(func(e *policy.Endpoint) { e.UntrackedIngress, e.UntrackedEgress = "", "" }),
		"preDNAT is not judged":           ofEndpoints(func(e *policy.Endpoint) { e.PreDNAT = "" }),
	} {
		t.Run(name, func(t *testing.T) {
			if !found(breakIt) {
				t.Error("no packet shows it")
			}
		})
	}
}

// found tells whether some packet fares otherwise in broken models.
func found(breakIt func(*policy.Model)) bool {
	for seed := range uint64(fixedClusters) {
		c := Generate(seed)
		m := policy.Compute(c.Node, c.Input())
		breakIt(&m)
		for _, p := range Packets(c, seed, packetsPerCluster) {
			if got, _ := WalkModel(c, m, p); ByPolicy(c, p) && got.Allowed != Evaluate(c, p).Allowed {
				return true
			}
		}
	}
	return false
}

// changed is a map of copies of values, each of them changed.
func changed[K comparable, V any](in map[K]*V, change func(*V)) map[K]*V {
	out := maps.Clone(in)
	for k, v := range in {
		one := *v
		change(&one)
		out[k] = &one
	}
	return out
}

func ofPolicies(change func(*policy.Policy)) func(*policy.Model) {
	return func(m *policy.Model) { m.Policies = changed(m.Policies, change) }
}

func ofRules(change func(*policy.Rule)) func(*policy.Model) {
	return ofPolicies(func(p *policy.Policy) {
		p.Rules = slices.Clone(p.Rules)
		for i := range p.Rules {
			change(&p.Rules[i])
		}
	})
}

func ofEnds(change func(*policy.Match)) func(*policy.Model) {
	return ofRules(func(r *policy.Rule) {
		change(&r.Source)
		change(&r.Destination)
	})
}

func ofLists(change func(*policy.List)) func(*policy.Model) {
	return func(m *policy.Model) { m.Lists = changed(m.Lists, change) }
}

func ofSets(change func(*policy.Set)) func(*policy.Model) {
	return func(m *policy.Model) { m.Sets = changed(m.Sets, change) }
}

func ofEndpoints(change func(*policy.Endpoint)) func(*policy.Model) {
	return func(m *policy.Model) { m.Endpoints = changed(m.Endpoints, change) }
}
