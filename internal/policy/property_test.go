package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

const node = "n1"

// world draws resources from a universe so small that they meet.
type world struct{ t *rapid.T }

func pick[T any](w world, from ...T) T { return from[rapid.IntRange(0, len(from)-1).Draw(w.t, "pick")] }

func (w world) chance(oneIn int) bool { return rapid.IntRange(1, oneIn).Draw(w.t, "chance") == 1 }

func some[T any](w world, most int, draw func() T) (out []T) {
	for range rapid.IntRange(0, most).Draw(w.t, "how many") {
		out = append(out, draw())
	}
	return out
}

func (w world) labels() map[string]string {
	out := map[string]string{}
	for _, key := range []string{"a", "b"} {
		if !w.chance(3) {
			out[key] = pick(w, "x", "y", "z")
		}
	}
	return out
}

func (w world) selector() string {
	return pick(w, "", "all()", "a == 'x'", "a == 'y' && b == 'x'", "has(b)", "!has(a)", "a in {'x', 'y'}", "b != 'z'",
		"a == 'x' || b == 'y'", "global()", "a in {}", "pcns.team == 't1'", "has(pcsa.role) && a == 'x'", "has(a) && !has(a)", "a ==")
}

func (w world) outer() string {
	return pick(w, "", "", "", "all()", "global()", "team == 't1'", "has(team)", "team ==")
}

func (w world) addr() string {
	return pick(w, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2")
}

func (w world) net() string {
	return pick(w, "10.0.0.1/32", "10.0.0.0/24", "10.0.0.3", "0.0.0.0/0", "fd00::/64", "fd00::2", "::/0", "10.0.0.7/24", "nonsense")
}

func (w world) port() api.Port {
	return pick(w, api.Port{Name: "web"}, api.Port{Name: "dns"}, api.Port{Min: 80, Max: 80}, api.Port{Min: 79, Max: 90}, api.Port{Min: 91, Max: 99})
}

func (w world) entity() api.EntityRule {
	e := api.EntityRule{}
	if w.chance(2) {
		e.Selector = w.selector()
	}
	if w.chance(4) {
		e.NotSelector = w.selector()
	}
	if w.chance(3) {
		e.NamespaceSelector = w.outer()
	}
	if w.chance(4) {
		e.ServiceAccounts = &api.ServiceAccountMatch{Selector: pick(w, "", "role == 'r1'"), Names: some(w, 2, func() string { return pick(w, "s1", "s2") })}
	}
	if w.chance(4) {
		e.Nets = some(w, 2, w.net)
	}
	if w.chance(6) {
		e.NotNets = some(w, 2, w.net)
	}
	if w.chance(3) {
		e.Ports = some(w, 3, w.port)
	}
	if w.chance(6) {
		e.NotPorts = some(w, 2, w.port)
	}
	if w.chance(8) {
		e.Services = &api.ServiceMatch{Namespace: pick(w, "", "ns1"), Name: "svc"}
	}
	return e
}

func (w world) rule() api.Rule {
	number := func() *int { return pick(w, nil, nil, new(0), new(8), new(999)) }
	r := api.Rule{Action: pick(w, api.Allow, api.Allow, api.Deny, api.Log, api.Pass, "Nod"), Source: w.entity(), Destination: w.entity()}
	if w.chance(2) {
		r.Protocol = pick(w, &api.Protocol{Name: "TCP"}, &api.Protocol{Name: "UDP"}, &api.Protocol{Number: 6}, &api.Protocol{Name: "ICMP"},
			&api.Protocol{Name: "ICMPv6"}, &api.Protocol{Name: "huh"})
	}
	if w.chance(6) {
		r.NotProtocol = &api.Protocol{Name: "UDP"}
	}
	if w.chance(6) {
		r.IPVersion = pick(w, new(4), new(6), new(5))
	}
	if w.chance(6) {
		r.ICMP = &api.ICMP{Type: number(), Code: number()}
	}
	if w.chance(12) {
		r.HTTP = &api.HTTPMatch{Methods: []string{"GET"}}
	}
	return r
}

func (w world) spec() api.GlobalNetworkPolicySpec {
	s := api.GlobalNetworkPolicySpec{
		Tier: pick(w, "default", "default", "t1", "t2", "kube-admin"), Order: pick(w, nil, new(1.0), new(2.0)), Selector: w.selector(),
		Ingress: some(w, 2, w.rule), Egress: some(w, 2, w.rule),
	}
	if w.chance(4) {
		s.ServiceAccountSelector = pick(w, "role == 'r1'", "has(role)", "role ==")
	}
	if w.chance(8) {
		s.PerformanceHints = []string{"AssumeNeededOnEveryNode"}
	}
	return s
}

func (w world) global() api.GlobalNetworkPolicySpec {
	s := w.spec()
	s.NamespaceSelector = w.outer()
	switch rapid.IntRange(0, 5).Draw(w.t, "host") {
	case 0:
		s.DoNotTrack, s.ApplyOnForward = true, true
	case 1:
		s.PreDNAT, s.ApplyOnForward = true, true
	case 2:
		s.ApplyOnForward = true
	}
	return s
}

func (w world) namespaced() api.NetworkPolicySpec {
	s := w.spec()
	return api.NetworkPolicySpec{
		Tier: s.Tier, Order: s.Order, Ingress: s.Ingress, Egress: s.Egress, Selector: s.Selector,
		ServiceAccountSelector: s.ServiceAccountSelector, PerformanceHints: s.PerformanceHints,
	}
}

func (w world) labelSelector() *api.LabelSelector {
	if w.chance(3) {
		return nil
	}
	s := &api.LabelSelector{}
	if w.chance(2) {
		s.MatchLabels = map[string]string{"a": pick(w, "x", "y")}
	}
	if w.chance(3) {
		s.MatchExpressions = []api.LabelRequirement{{Key: "b", Operator: pick(w, "In", "NotIn", "Exists", "DoesNotExist", "Huh"), Values: []string{"x"}}}
	}
	return s
}

func (w world) kubernetes() api.StagedKubernetesNetworkPolicySpec {
	rule := func() api.KubePeerRule {
		return api.KubePeerRule{
			Ports: some(w, 2, func() api.KubePort {
				return api.KubePort{Protocol: pick(w, "", "UDP"), Port: pick(w, nil, &api.Port{Name: "web"}, &api.Port{Min: 80, Max: 80}), EndPort: pick(w, nil, new(int32(90)))}
			}),
			From: some(w, 2, func() api.KubePeer {
				if w.chance(3) {
					return api.KubePeer{IPBlock: &api.KubeIPBlock{CIDR: "10.0.0.0/16", Except: []string{"10.0.1.0/24"}}}
				}
				return api.KubePeer{PodSelector: w.labelSelector(), NamespaceSelector: w.labelSelector()}
			}),
		}
	}
	return api.StagedKubernetesNetworkPolicySpec{PodSelector: w.labelSelector(), Ingress: some(w, 2, rule)}
}

func (w world) workload(i int) api.Object {
	o := &api.WorkloadEndpoint{}
	o.Metadata.Namespace, o.Metadata.Name, o.Metadata.Labels = pick(w, "ns1", "ns2"), fmt.Sprintf("w%d", i), w.labels()
	o.Metadata.Labels[api.LabelOrchestrator] = "k8s"
	o.Spec = api.WorkloadEndpointSpec{
		Node: pick(w, node, node, "n2"), InterfaceName: fmt.Sprintf("cali%d", i), ServiceAccountName: pick(w, "", "s1", "s2"),
		Profiles: some(w, 2, func() string { return pick(w, "kns.ns1", "kns.ns2", "p1", "missing", api.DefaultAllowProfile) }),
	}
	for _, a := range some(w, 2, w.addr) {
		o.Spec.IPNetworks = append(o.Spec.IPNetworks, api.HostPrefix(netip.MustParseAddr(a)))
	}
	if w.chance(2) {
		o.Spec.Ports = []api.WEPort{{Name: "web", Protocol: api.Protocol{Name: "TCP"}, Port: 8080}, {Name: "dns", Protocol: api.Protocol{Name: pick(w, "UDP", "TCP")}, Port: 53}}
	}
	if w.chance(4) {
		o.Spec.AllowSpoofed = some(w, 2, w.net)
	}
	return o
}

func (w world) host(i int) api.Object {
	o := &api.HostEndpoint{}
	o.Metadata.Name, o.Metadata.Labels = fmt.Sprintf("h%d", i), w.labels()
	o.Spec = api.HostEndpointSpec{
		Node: pick(w, node, "n2"), InterfaceName: pick(w, "*", "eth0", ""), ExpectedIPs: some(w, 2, func() string { return pick(w, w.addr(), "nonsense") }),
		Profiles: some(w, 1, func() string { return "p1" }), Ports: []api.EndpointPort{{Name: "web", Protocol: api.Protocol{Name: "TCP"}, Port: 8443}},
	}
	return o
}

func (w world) profile() api.Object {
	o := &api.Profile{}
	o.Metadata.Name = pick(w, "kns.ns1", "kns.ns2", "p1", api.DefaultAllowProfile)
	o.Spec = api.ProfileSpec{Ingress: some(w, 2, w.rule), Egress: some(w, 1, w.rule), LabelsToApply: map[string]string{}}
	for _, key := range []string{"pcns.team", "pcsa.role", "a"} {
		if w.chance(2) {
			o.Spec.LabelsToApply[key] = pick(w, "t1", "t2", "r1", "x")
		}
	}
	return o
}

func (w world) tier() api.Object {
	o := &api.Tier{}
	o.Metadata.Name = pick(w, "t1", "t2", "default")
	o.Spec = api.TierSpec{Order: pick(w, nil, new(1.0), new(2e6)), DefaultAction: pick(w, api.Deny, api.Pass)}
	return o
}

// object draws any object that policies depend on.
func (w world) object() api.Object {
	staged := pick(w, "", api.StagedSet, api.StagedDelete)
	switch i := rapid.IntRange(0, 3).Draw(w.t, "i"); rapid.IntRange(0, 14).Draw(w.t, "kind") {
	case 0, 1, 2:
		return w.workload(i)
	case 3:
		return w.host(i)
	case 4, 5:
		return w.profile()
	case 6:
		return w.tier()
	case 7:
		o := &api.NetworkSet{Spec: api.NetworkSetSpec{Nets: some(w, 3, w.net)}}
		o.Metadata.Namespace, o.Metadata.Name, o.Metadata.Labels = pick(w, "ns1", "ns2"), "set", w.labels()
		return o
	case 8:
		o := &api.GlobalNetworkSet{Spec: api.NetworkSetSpec{Nets: some(w, 3, w.net)}}
		o.Metadata.Name, o.Metadata.Labels = "set", w.labels()
		return o
	case 9:
		o := &api.StagedNetworkPolicy{Spec: api.StagedNetworkPolicySpec{StagedAction: staged, NetworkPolicySpec: w.namespaced()}}
		o.Metadata.Namespace, o.Metadata.Name = "ns1", fmt.Sprintf("p%d", i)
		return o
	case 10:
		o := &api.StagedGlobalNetworkPolicy{Spec: api.StagedGlobalNetworkPolicySpec{StagedAction: staged, GlobalNetworkPolicySpec: w.global()}}
		o.Metadata.Name = fmt.Sprintf("p%d", i)
		return o
	case 11:
		o := &api.StagedKubernetesNetworkPolicy{Spec: w.kubernetes()}
		o.Metadata.Namespace, o.Metadata.Name = "ns1", fmt.Sprintf("p%d", i)
		return o
	case 12, 13:
		o := &api.NetworkPolicy{Spec: w.namespaced()}
		o.Metadata.Namespace, o.Metadata.Name = pick(w, "ns1", "ns2"), fmt.Sprintf("p%d", i)
		return o
	default:
		o := &api.GlobalNetworkPolicy{Spec: w.global()}
		o.Metadata.Name = fmt.Sprintf("p%d", i)
		return o
	}
}

func (w world) delta(known []string) Delta {
	var d Delta
	for range rapid.IntRange(1, 6).Draw(w.t, "changes") {
		if len(known) > 0 && w.chance(4) {
			d.Objects = append(d.Objects, Change{Key: pick(w, known...)})
			continue
		}
		o := w.object()
		d.Objects = append(d.Objects, Change{Key: api.KeyOf(o), Object: o})
	}
	if w.chance(4) {
		s := Service{Namespace: "ns1", Name: "svc"}
		s.Members = some(w, 3, func() PortMember {
			return PortMember{netip.MustParseAddr(w.addr()), pick[uint8](w, 6, 17), pick[uint16](w, 80, 443)}
		})
		d.Services = append(d.Services, s)
	}
	return d
}

// same compares models; a list of nothing is nil or empty.
func same() cmp.Options {
	return cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
}

// keep does to a model what an update says, and complains of what does not fit.
func keep(t *rapid.T, m *Model, u Update) {
	keepMap(t, m.Endpoints, u.Endpoints, true)
	keepMap(t, m.Lists, u.Lists, false)
	keepMap(t, m.Policies, u.Policies, false)
	for id, c := range u.Sets {
		old, had := m.Sets[id]
		switch {
		case c.Gone:
			if !had {
				t.Fatalf("set %s, which was not there, is gone", id)
			}
			delete(m.Sets, id)
			continue
		case (c.Set != nil) == had:
			t.Fatalf("set %s is new: %v; it was there: %v", id, c.Set != nil, had)
		case c.Set != nil:
			old = c.Set
		}
		fresh := *old
		fresh.Addrs = keepMembers(t, old.Addrs, c.Added.Addrs, c.Removed.Addrs, netip.Addr.Compare)
		fresh.Nets = keepMembers(t, old.Nets, c.Added.Nets, c.Removed.Nets, netip.Prefix.Compare)
		fresh.Ports = keepMembers(t, old.Ports, c.Added.Ports, c.Removed.Ports, PortMember.compare)
		m.Sets[id] = &fresh
	}
	if u.Problems != nil || u.Solved {
		m.Problems = u.Problems
	}
}

func keepMap[K comparable, V any](t *rapid.T, have map[K]*V, changed map[K]*V, mayDiffer bool) {
	for k, v := range changed {
		_, had := have[k]
		if v == nil && !had || v != nil && had && !mayDiffer {
			t.Fatalf("%v: change to %v, and it was there: %v", k, v, had)
		}
		if v == nil {
			delete(have, k)
			continue
		}
		have[k] = v
	}
}

func keepMembers[T comparable](t *rapid.T, have, added, removed []T, compare func(a, b T) int) []T {
	out := slices.Clone(have)
	for _, m := range added {
		if slices.Contains(out, m) {
			t.Fatalf("member %v is added to %v", m, out)
		}
		out = append(out, m)
	}
	for _, m := range removed {
		i := slices.Index(out, m)
		if i < 0 {
			t.Fatalf("member %v is removed from %v", m, out)
		}
		out = slices.Delete(out, i, i+1)
	}
	slices.SortFunc(out, compare)
	return out
}

func TestEngineAgreesWithTheOracleAfterEveryChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, e := world{t}, New(node)
		var all Delta
		kept := e.Model()
		known := map[string]bool{}
		for range rapid.IntRange(1, 8).Draw(t, "deltas") {
			d := w.delta(slices.Sorted(maps.Keys(known)))
			for _, c := range d.Objects {
				known[c.Key] = true
			}
			all.Objects, all.Services = append(all.Objects, d.Objects...), append(all.Services, d.Services...)
			u := e.Apply(d)
			want, got := Compute(node, all), e.Model()
			if diff := cmp.Diff(want, got, same()); diff != "" {
				t.Fatalf("the engine differs from the oracle (-oracle +engine):\n%s", diff)
			}
			keep(t, &kept, u)
			if diff := cmp.Diff(got, kept, same()); diff != "" {
				t.Fatalf("updates do not lead to the model (-model +kept):\n%s", diff)
			}
			wantClosed(t, got)
			if again := e.Apply(d); !again.Empty() {
				t.Fatalf("the same again changes something: %+v", again)
			}
		}
		wantSameWhole(t, all, e.Model())
		wantNothingLeft(t, e, known)
	})
}

// wantSameWhole checks that it does not matter how inputs were cut and in which order keys came.
func wantSameWhole(t *rapid.T, all Delta, want Model) {
	last := map[string]api.Object{}
	for _, c := range all.Objects {
		last[c.Key] = c.Object
	}
	e := New(node)
	e.Apply(Delta{Services: all.Services})
	for _, key := range rapid.Permutation(slices.Sorted(maps.Keys(last))).Draw(t, "order") {
		e.Apply(Delta{Objects: []Change{{key, last[key]}}})
	}
	if diff := cmp.Diff(want, e.Model(), same()); diff != "" {
		t.Fatalf("one key after the other gives another model:\n%s", diff)
	}
}

// wantClosed checks that every name in the model resolves in it and that nothing is in it for nobody.
func wantClosed(t *rapid.T, m Model) {
	used := map[string]bool{"": true}
	for _, e := range m.Endpoints {
		for _, id := range e.lists() {
			used["list "+string(id)] = true
			if id != "" && m.Lists[id] == nil {
				t.Fatalf("%v refers to list %s, which is not there", e.Key, id)
			}
		}
		if e.Ingress == "" || e.Egress == "" {
			t.Fatalf("%v has no list", e.Key)
		}
	}
	for id, l := range m.Lists {
		if !used["list "+string(id)] || id != listID(l) {
			t.Fatalf("list %s is for nobody, or not what its name says", id)
		}
		for _, part := range l.Tiers {
			for _, p := range part.Policies {
				wantPolicy(t, m, p, l)
			}
		}
		for _, p := range l.Profiles {
			wantPolicy(t, m, p, l)
		}
	}
	for _, p := range m.Policies {
		for _, r := range p.Rules {
			for _, end := range []Match{r.Source, r.Destination} {
				for _, id := range slices.Concat(end.Sets, end.NotSets, end.PortSets, end.NotPortSets) {
					used["set "+string(id)] = true
					if m.Sets[id] == nil {
						t.Fatalf("%v refers to set %s, which is not there", p, id)
					}
				}
			}
		}
	}
	for id := range m.Sets {
		if !used["set "+string(id)] {
			t.Fatalf("nobody refers to set %s", id)
		}
	}
}

func wantPolicy(t *rapid.T, m Model, id PolicyID, l *List) {
	if p := m.Policies[id]; p == nil || p.Direction != l.Direction || p.ID != id {
		t.Fatalf("list %s refers to policy %s, which is %v", l.ID, id, p)
	}
}

// wantNothingLeft takes everything away from an engine.
func wantNothingLeft(t *rapid.T, e *Engine, keys map[string]bool) {
	d := Delta{Services: []Service{{Namespace: "ns1", Name: "svc"}}}
	for key := range keys {
		d.Objects = append(d.Objects, Change{Key: key})
	}
	e.Apply(d)
	if left := e.size(); left != 0 {
		t.Fatalf("%d things are left: %+v", left, e)
	}
	if diff := cmp.Diff(New(node).Model(), e.Model(), same()); diff != "" {
		t.Fatalf("something is left in the model:\n%s", diff)
	}
}

// size is how many things an engine holds, in whatever index.
func (e *Engine) size() int {
	n := len(e.items) + len(e.free) + len(e.ids) + len(e.profiles) + len(e.policies) + len(e.tiers) + len(e.services) +
		len(e.endpoints) + len(e.sets) + len(e.shared) + len(e.lists) + len(e.problems) + len(e.told) +
		len(e.selecting.byKey) + len(e.selecting.rest) + len(e.resolving.byKey) + len(e.resolving.rest) + len(e.postings.keys) - 1
	for _, p := range e.postings.keys {
		n += len(p.values)
	}
	return n
}

func mustParse(t *testing.T, text string) selector.Selector {
	t.Helper()
	s, err := selector.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
