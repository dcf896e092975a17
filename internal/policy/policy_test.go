package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/pkg/api"
)

// objects reads documents of YAML, separated as usual, and sets their defaults.
func objects(t *testing.T, text string) (d Delta) {
	t.Helper()
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var head api.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatal(err)
		}
		kind, ok := api.Lookup(head.Kind)
		if !ok {
			t.Fatalf("no kind in %s", doc)
		}
		raw, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		o, err := kind.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		d.Objects = append(d.Objects, Change{api.KeyOf(o), o})
	}
	return d
}

// modelOf is what engine and oracle make of objects.
func modelOf(t *testing.T, d Delta) Model {
	t.Helper()
	e := New(node)
	e.Apply(d)
	got := e.Model()
	if diff := cmp.Diff(Compute(node, d), got, same()); diff != "" {
		t.Errorf("the engine differs from the oracle (-oracle +engine):\n%s", diff)
	}
	return got
}

// list writes out a list: tiers with policies and what becomes of the rest, profiles, the end. A staged policy has a question mark.
func (m Model) list(id ListID) string {
	l := m.Lists[id]
	if l == nil {
		return "none"
	}
	name := func(id PolicyID) string {
		p := m.Policies[id]
		if p.Staged {
			return p.Name + "?"
		}
		return p.Name
	}
	var out []string
	for _, t := range l.Tiers {
		var names []string
		for _, p := range t.Policies {
			names = append(names, name(p))
		}
		out = append(out, fmt.Sprintf("%s(%s)%s", t.Tier, strings.Join(names, " "), t.End))
	}
	for _, p := range l.Profiles {
		out = append(out, name(p))
	}
	return strings.Join(append(out, string(l.End)), ", ")
}

// only is the one endpoint of a model.
func (m Model) only(t *testing.T) *Endpoint {
	t.Helper()
	for _, e := range m.Endpoints {
		if len(m.Endpoints) == 1 {
			return e
		}
	}
	t.Fatalf("%d endpoints, want one", len(m.Endpoints))
	return nil
}

// find is a direction of a policy.
func (m Model) find(t *testing.T, name string, d api.PolicyType) *Policy {
	t.Helper()
	for _, p := range m.Policies {
		if p.Name == name && p.Direction == d {
			return p
		}
	}
	t.Fatalf("no policy %s of %s", name, d)
	return nil
}

const pod = `
kind: WorkloadEndpoint
metadata: {name: w, namespace: ns, labels: {app: web, projectcalico.org/namespace: ns, projectcalico.org/orchestrator: k8s}}
spec: {node: n1, orchestrator: k8s, interfaceName: cali1, serviceAccountName: sa, ipNetworks: [10.0.0.1/32], profiles: [kns.ns], ports: [{name: web, protocol: TCP, port: 8080}]}
---
kind: Profile
metadata: {name: kns.ns}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}], labelsToApply: {pcns.team: a}}
`

const host = `
kind: HostEndpoint
metadata: {name: h, labels: {app: web}}
spec: {node: n1, interfaceName: eth0, expectedIPs: [192.0.2.1]}
`

func TestPoliciesAreAskedInOrder(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
{kind: NetworkPolicy, metadata: {name: z, namespace: ns}, spec: {order: 1}}
---
{kind: NetworkPolicy, metadata: {name: b, namespace: ns}, spec: {order: 2}}
---
{kind: GlobalNetworkPolicy, metadata: {name: a}, spec: {order: 2}}
---
{kind: GlobalNetworkPolicy, metadata: {name: b}, spec: {order: 2}}
---
{kind: NetworkPolicy, metadata: {name: a-without-order, namespace: ns}, spec: {}}
---
{kind: NetworkPolicy, metadata: {name: out, namespace: ns}, spec: {egress: [{action: Allow}]}}
---
{kind: NetworkPolicy, metadata: {name: elsewhere, namespace: other}, spec: {}}
---
{kind: NetworkPolicy, metadata: {name: for-others, namespace: ns}, spec: {selector: app != 'web'}}`))
	e := m.only(t)
	// Ties are broken by name/namespace/kind: "b//Global…" is before "b/ns/…".
	if got, want := m.list(e.Ingress), "default(z a b b a-without-order)Deny, kns.ns, Deny"; got != want {
		t.Errorf("ingress: %s, want %s", got, want)
	}
	if p := m.Policies[m.Lists[e.Ingress].Tiers[0].Policies[2]]; p.Kind != "GlobalNetworkPolicy" {
		t.Errorf("third is %v, want the global policy", p)
	}
	if got, want := m.list(e.Egress), "default(out)Deny, kns.ns, Deny"; got != want {
		t.Errorf("egress: %s, want %s", got, want)
	}
}

func TestTiersAreAskedInOrderAndEndAsTheySay(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
{kind: Tier, metadata: {name: last}, spec: {defaultAction: Pass}}
---
{kind: Tier, metadata: {name: first}, spec: {order: 1, defaultAction: Pass}}
---
{kind: Tier, metadata: {name: trial}, spec: {order: 2}}
---
{kind: GlobalNetworkPolicy, metadata: {name: last.x}, spec: {tier: last}}
---
{kind: GlobalNetworkPolicy, metadata: {name: first.x}, spec: {tier: first}}
---
{kind: StagedGlobalNetworkPolicy, metadata: {name: trial.x}, spec: {tier: trial, ingress: [{action: Deny}]}}
---
{kind: StagedGlobalNetworkPolicy, metadata: {name: beside}, spec: {order: 0}}
---
{kind: GlobalNetworkPolicy, metadata: {name: kube-admin.x}, spec: {tier: kube-admin}}
---
{kind: GlobalNetworkPolicy, metadata: {name: x}, spec: {}}`))
	want := "first(first.x)Pass, trial(trial.x?)Pass, kube-admin(kube-admin.x)Pass, default(beside? x)Deny, last(last.x)Pass, kns.ns, Deny"
	if got := m.list(m.only(t).Ingress); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := m.list(m.only(t).Egress), "kns.ns, Deny"; got != want {
		t.Errorf("egress: %s, want %s: no policy says anything of it", got, want)
	}
}

func TestTierThatDoesNotExistDeniesLast(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
{kind: GlobalNetworkPolicy, metadata: {name: nowhere.x}, spec: {tier: nowhere, order: 0}}
---
{kind: GlobalNetworkPolicy, metadata: {name: x}, spec: {}}`))
	if got, want := m.list(m.only(t).Ingress), "default(x)Deny, nowhere(nowhere.x)Deny, kns.ns, Deny"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(m.Problems) != 1 || m.Problems[0].Object != "GlobalNetworkPolicy(nowhere.x)" {
		t.Errorf("problems %v, want one of the policy", m.Problems)
	}
}

func TestHostEndpointHasListsByUse(t *testing.T) {
	d := objects(t, host+`
---
{kind: GlobalNetworkPolicy, metadata: {name: plain}, spec: {types: [Ingress, Egress]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: forward}, spec: {applyOnForward: true, types: [Ingress]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: raw}, spec: {applyOnForward: true, doNotTrack: true, types: [Ingress, Egress]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: early}, spec: {applyOnForward: true, preDNAT: true, types: [Ingress]}}
---
{kind: NetworkPolicy, metadata: {name: pods-only, namespace: ns}, spec: {}}
---
{kind: GlobalNetworkPolicy, metadata: {name: somewhere}, spec: {namespaceSelector: has(team)}}`)
	m := modelOf(t, d)
	e := m.only(t)
	for _, c := range []struct{ what, got, want string }{
		{"ingress", m.list(e.Ingress), "default(forward plain)Deny, Deny"},
		{"egress", m.list(e.Egress), "default(plain)Deny, Deny"},
		{"forward ingress", m.list(e.ForwardIngress), "default(forward)Deny, Pass"},
		{"forward egress", m.list(e.ForwardEgress), "none"},
		{"untracked ingress", m.list(e.UntrackedIngress), "default(raw)Pass, Pass"},
		{"untracked egress", m.list(e.UntrackedEgress), "default(raw)Pass, Pass"},
		{"before DNAT", m.list(e.PreDNAT), "default(early)Pass, Pass"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	d.Objects = append(d.Objects, objects(t, pod).Objects...)
	m = modelOf(t, d)
	w := m.Endpoints[EndpointKey{Workload, "ns", "w"}]
	if got, want := m.list(w.Ingress), "default(forward plain pods-only somewhere)Deny, kns.ns, Deny"; got != want {
		t.Errorf("workload: %s, want %s", got, want)
	}
}

func TestHostEndpointWithoutAnythingDenies(t *testing.T) {
	m := modelOf(t, objects(t, host))
	e := m.only(t)
	if m.list(e.Ingress) != "Deny" || m.list(e.Egress) != "Deny" || e.ForwardIngress != "" || e.UntrackedEgress != "" || e.PreDNAT != "" {
		t.Errorf("%+v", e)
	}
}

func TestMissingProfileDeniesAndTheBuiltInAllows(t *testing.T) {
	m := modelOf(t, objects(t, `
kind: WorkloadEndpoint
metadata: {name: w, namespace: ns}
spec: {node: n1, interfaceName: cali1, profiles: [gone, projectcalico-default-allow]}`))
	if got, want := m.list(m.only(t).Ingress), "gone, projectcalico-default-allow, Deny"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if r := m.find(t, "gone", api.Egress).Rules; len(r) != 1 || r[0].Action != api.Deny {
		t.Errorf("a profile that does not exist: %+v, want a denial", r)
	}
	if r := m.find(t, api.DefaultAllowProfile, api.Egress).Rules; len(r) != 1 || r[0].Action != api.Allow {
		t.Errorf("the built-in profile: %+v, want that it allows", r)
	}
	if len(m.Problems) != 1 || m.Problems[0].Object != "Profile(gone)" {
		t.Errorf("problems: %v", m.Problems)
	}
}

func TestOnlyPoliciesThatSelectAnEndpointHereAreCompiled(t *testing.T) {
	d := objects(t, pod+`
---
{kind: GlobalNetworkPolicy, metadata: {name: others}, spec: {selector: app == 'db', ingress: [{action: Allow, source: {selector: all()}}]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: everywhere}, spec: {selector: app == 'db', performanceHints: [AssumeNeededOnEveryNode]}}`)
	m := modelOf(t, d)
	if len(m.Sets) != 0 || len(m.Policies) != 3 {
		t.Errorf("%d sets, want none; policies %v, want the profile's two and the hinted one", len(m.Sets), m.Policies)
	}
	m.find(t, "everywhere", api.Ingress)
}

// TestSelectorsOfRulesBecomeOneSet shows what becomes of the selectors of one end of a rule, in a policy of the namespace ns and in a global one.
func TestSelectorsOfRulesBecomeOneSet(t *testing.T) {
	const home, team = `projectcalico.org/namespace == "ns"`, `pcns.team == "a"`
	for _, c := range []struct{ source, namespaced, global string }{
		{`{}`, "", ""},
		{`{selector: "app == 'db'"}`, home + ` && app == "db"`, `app == "db"`},
		{`{selector: all()}`, home, "all()"},
		{`{notSelector: "app == 'db'"}`, home + ` not app == "db"`, `not app == "db"`},
		{`{namespaceSelector: "team == 'a'"}`, team, team},
		{`{namespaceSelector: "team == 'a'", selector: "app == 'db' || has(x)"}`, team + ` && (app == "db" || has(x))`, team + ` && (app == "db" || has(x))`},
		{`{namespaceSelector: all()}`, "has(projectcalico.org/namespace)", "has(projectcalico.org/namespace)"},
		{`{namespaceSelector: global(), selector: has(x)}`, "global() && has(x)", "global() && has(x)"},
		{`{serviceAccounts: {names: [b, a]}}`, home + ` && projectcalico.org/serviceaccount in {"a", "b"}`, `projectcalico.org/serviceaccount in {"a", "b"}`},
		{`{serviceAccounts: {selector: "role == 'r'"}, namespaceSelector: "team == 'a'"}`, team + ` && pcsa.role == "r"`, team + ` && pcsa.role == "r"`},
	} {
		for head, want := range map[string]string{
			`kind: NetworkPolicy, metadata: {name: p, namespace: ns}`: c.namespaced,
			`kind: GlobalNetworkPolicy, metadata: {name: p}`:          c.global,
		} {
			m := modelOf(t, objects(t, pod+"\n---\n{"+head+`, spec: {ingress: [{action: Allow, source: `+c.source+`}]}}`))
			r := m.find(t, "p", api.Ingress).Rules[0]
			var got []string
			for _, id := range r.Source.Sets {
				got = append(got, m.Sets[id].Text)
			}
			for _, id := range r.Source.NotSets {
				got = append(got, "not "+m.Sets[id].Text)
			}
			if text := strings.Join(got, " "); text != want || len(m.Problems) > 0 {
				t.Errorf("%s in %s: %s, want %s; problems %v", c.source, head, text, want, m.Problems)
			}
		}
	}
}

// TestRulesAreCompiled shows single rules; "" is a rule that is left out.
func TestRulesAreCompiled(t *testing.T) {
	const denied = "Deny"
	for _, c := range []struct {
		rule, want string
		problem    bool
	}{
		{`{action: Allow}`, "Allow", false},
		{`{action: Pass, protocol: TCP, notProtocol: UDP}`, "Pass proto=6 notproto=17", false},
		{`{action: Log, protocol: 132}`, "Log proto=132", false},
		{`{action: Allow, protocol: TCP, notProtocol: 6}`, "", false},
		{`{action: Allow, protocol: ICMP, icmp: {type: 8}}`, "Allow v4 proto=1 icmp=8/-1", false},
		{`{action: Allow, protocol: ICMPv6, notICMP: {type: 128, code: 0}}`, "Allow v6 proto=58 noticmp=128/0", false},
		{`{action: Allow, protocol: ICMPv6, ipVersion: 4}`, "", false},
		{`{action: Allow, source: {nets: [10.0.0.7/8, 192.0.2.1]}}`, "Allow v4 src=10.0.0.0/8,192.0.2.1/32", false},
		{`{action: Deny, destination: {notNets: ["fd00::/8"]}}`, "Deny v6 dst!=fd00::/8", false},
		{`{action: Allow, source: {nets: [10.0.0.0/8]}, destination: {nets: ["fd00::/8"]}}`, "", false},
		{`{action: Allow, source: {nets: [10.0.0.0/8, "fd00::/8"]}, ipVersion: 6}`, "Allow v6 src=fd00::/8", false},
		{`{action: Allow, source: {nets: [10.0.0.0/8, "fd00::/8"]}}`, "Allow src=10.0.0.0/8,fd00::/8", false},
		{`{action: Allow, source: {notNets: [0.0.0.0/0]}}`, "", false},
		{`{action: Allow, protocol: TCP, destination: {ports: [90, "80:85", 86, 100, "84:95"]}}`, "Allow proto=6 dport=80-95,100-100", false},
		{`{action: Allow, protocol: UDP, source: {notPorts: [53]}}`, "Allow proto=17 sport!=53-53", false},
		// What cannot be read allows nothing, and denies everything.
		{`{action: Allow, destination: {ports: [80]}}`, "", true},
		{`{action: Deny, destination: {ports: [80]}}`, denied, true},
		{`{action: Pass, source: {nets: [ten]}}`, denied, true},
		{`{action: Log, source: {selector: "a ="}}`, "", true},
		{`{action: Shrug}`, denied, true},
		{`{action: Deny, protocol: XYZ}`, denied, true},
		{`{action: Allow, protocol: TCP, icmp: {type: 8}}`, "", true},
		{`{action: Allow, protocol: TCP, http: {methods: [GET]}}`, "", true},
		{`{action: Allow, destination: {services: {name: s, namespace: ns}}}`, "", true},
		{`{action: Allow, source: {services: {name: s}}}`, "", true},
	} {
		m := modelOf(t, objects(t, pod+`
---
{kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {ingress: [`+c.rule+`]}}`))
		got := ""
		for _, r := range m.find(t, "p", api.Ingress).Rules {
			got += r.text()
		}
		if got != c.want || (len(m.Problems) == 1) != c.problem {
			t.Errorf("%s: %q, want %q; problems %v", c.rule, got, c.want, m.Problems)
		}
	}
}

// text writes out a rule without sets.
func (r Rule) text() string {
	out := string(r.Action)
	add := func(some bool, format string, args ...any) {
		if some {
			out += " " + fmt.Sprintf(format, args...)
		}
	}
	add(r.IPVersion != 0, "v%d", r.IPVersion)
	add(r.Protocol != 0, "proto=%d", r.Protocol)
	add(r.NotProtocol != 0, "notproto=%d", r.NotProtocol)
	if r.ICMP != nil {
		add(true, "icmp=%d/%d", r.ICMP.Type, r.ICMP.Code)
	}
	if r.NotICMP != nil {
		add(true, "noticmp=%d/%d", r.NotICMP.Type, r.NotICMP.Code)
	}
	for _, end := range []struct {
		name string
		Match
	}{{"s", r.Source}, {"d", r.Destination}} {
		prefix := map[string]string{"s": "src", "d": "dst"}[end.name]
		add(len(end.Nets) > 0, "%s=%s", prefix, joined(end.Nets))
		add(len(end.NotNets) > 0, "%s!=%s", prefix, joined(end.NotNets))
		add(len(end.Ports) > 0, "%sport=%s", end.name, ports(end.Ports))
		add(len(end.NotPorts) > 0, "%sport!=%s", end.name, ports(end.NotPorts))
	}
	return out
}

func joined(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ",")
}

func ports(list []PortRange) string {
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%d-%d", r.Min, r.Max))
	}
	return strings.Join(out, ",")
}

func TestPolicyWithAnUnreadableSelectorIsLeftOutAlone(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
{kind: NetworkPolicy, metadata: {name: bad, namespace: ns}, spec: {selector: "app ="}}
---
{kind: NetworkPolicy, metadata: {name: good, namespace: ns}, spec: {}}`))
	if got, want := m.list(m.only(t).Ingress), "default(good)Deny, kns.ns, Deny"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(m.Problems) != 1 || m.Problems[0].Object != "NetworkPolicy(ns/bad)" {
		t.Errorf("problems: %v", m.Problems)
	}
}

func TestSetsHoldAddressesRangesAndNamedPorts(t *testing.T) {
	m := modelOf(t, objects(t, pod+"\n---\n"+host+`
---
kind: WorkloadEndpoint
metadata: {name: v, namespace: other, labels: {app: web}}
spec: {node: n2, interfaceName: cali2, ipNetworks: [10.0.0.2/32, "fd00::2/128"], profiles: [kns.other], ports: [{name: web, protocol: TCP, port: 80}, {name: web, protocol: UDP, port: 81}]}
---
{kind: GlobalNetworkSet, metadata: {name: s, labels: {app: web}}, spec: {nets: [10.0.0.2, 10.1.0.0/16, "2001:db8::/32"]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'web'}, destination: {ports: [web, 443]}}]}}`))
	r := m.find(t, "p", api.Ingress).Rules[0]
	got := []Members{m.Sets[r.Source.Sets[0]].Members, m.Sets[r.Destination.PortSets[0]].Members}
	a := netip.MustParseAddr
	want := []Members{
		{
			Addrs: []netip.Addr{a("10.0.0.1"), a("10.0.0.2"), a("192.0.2.1"), a("fd00::2")},
			Nets:  []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32")},
		},
		{Ports: []PortMember{{a("10.0.0.1"), api.ProtoTCP, 8080}, {a("10.0.0.2"), api.ProtoTCP, 80}, {a("fd00::2"), api.ProtoTCP, 80}}},
	}
	if diff := cmp.Diff(want, got, same()); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if !got[0].HasAddr(a("10.1.2.3")) || !got[0].HasAddr(a("fd00::2")) || got[0].HasAddr(a("10.0.0.3")) {
		t.Error("HasAddr does not say what the members are")
	}
	if !got[1].HasPort(PortMember{a("10.0.0.2"), api.ProtoTCP, 80}) || got[1].HasPort(PortMember{a("10.0.0.2"), api.ProtoUDP, 81}) {
		t.Error("HasPort does not say what the members are")
	}
	if diff := cmp.Diff([]PortRange{{443, 443}}, r.Destination.Ports); diff != "" {
		t.Errorf("numeric ports (-want +got):\n%s", diff)
	}
}

func TestServicesAreMatchedByWhereTheyAre(t *testing.T) {
	d := objects(t, pod+`
---
{kind: NetworkPolicy, metadata: {name: p, namespace: ns}, spec: {ingress: [{action: Allow, source: {services: {name: s}}}], egress: [{action: Allow, destination: {services: {name: s, namespace: ns}}}]}}`)
	at := PortMember{netip.MustParseAddr("10.0.0.9"), api.ProtoTCP, 443}
	d.Services = []Service{{Namespace: "ns", Name: "s", Members: []PortMember{at, at}}}
	m := modelOf(t, d)
	from, to := m.Sets[m.find(t, "p", api.Ingress).Rules[0].Source.Sets[0]], m.Sets[m.find(t, "p", api.Egress).Rules[0].Destination.PortSets[0]]
	if diff := cmp.Diff([]Members{{Addrs: []netip.Addr{at.Addr}}, {Ports: []PortMember{at}}}, []Members{from.Members, to.Members}, same()); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

func TestMemberStaysWhileSomebodyStandsForIt(t *testing.T) {
	e := New(node)
	e.Apply(objects(t, pod+`
---
{kind: GlobalNetworkSet, metadata: {name: s, labels: {app: web}}, spec: {nets: [10.0.0.1/32]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {types: [Ingress], ingress: [{action: Allow, source: {selector: app == 'web'}}]}}`))
	set := (*api.GlobalNetworkSet)(nil).KindOf().Key("", "s")
	if u := e.Apply(Delta{Objects: []Change{{Key: set}}}); !u.Empty() {
		t.Errorf("one of two who stand for a member is gone: %+v, want no change", u)
	}
	u := e.Apply(objects(t, strings.Replace(pod, "app: web", "app: db", 1)))
	if len(u.Sets) != 1 || len(u.Endpoints)+len(u.Lists)+len(u.Policies) != 0 {
		t.Fatalf("a label changed: %+v, want the change of one set", u)
	}
	for _, c := range u.Sets {
		if len(c.Removed.Addrs) != 1 || c.Added.Len() != 0 {
			t.Errorf("%+v, want that one address is removed", c)
		}
	}
}

func TestRuleKeepsItsNameWhileOthersChange(t *testing.T) {
	names := func(rules string) []RuleID {
		p := modelOf(t, objects(t, pod+`
---
{kind: NetworkPolicy, metadata: {name: p, namespace: ns}, spec: {ingress: [`+rules+`]}}`)).find(t, "p", api.Ingress)
		var out []RuleID
		for _, r := range p.Rules {
			out = append(out, r.ID)
		}
		return out
	}
	before := names(`{action: Allow, protocol: TCP}, {action: Deny}`)
	after := names(`{action: Log}, {action: Allow, protocol: TCP}, {action: Allow, protocol: TCP}, {action: Deny}`)
	if before[0] != after[1] || before[1] != after[3] {
		t.Errorf("names %v became %v", before, after)
	}
	unique := slices.Compact(slices.Sorted(slices.Values(after)))
	if len(unique) != len(after) || len(before[0]) != 16 {
		t.Errorf("names %v are not all different and of 16 digits", after)
	}
}

func TestEndpointsGovernedAlikeShareAList(t *testing.T) {
	m := modelOf(t, objects(t, pod+"\n---\n"+strings.NewReplacer("name: w,", "name: w2,", "cali1", "cali2", "10.0.0.1", "10.0.0.2").Replace(pod)))
	if len(m.Endpoints) != 2 || len(m.Lists) != 2 {
		t.Errorf("%d endpoints, %d lists; want 2 and one for each direction", len(m.Endpoints), len(m.Lists))
	}
}

func TestKubernetesPolicyOnTrialSaysWhatItWouldInForce(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
kind: StagedKubernetesNetworkPolicy
metadata: {name: p, namespace: ns}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}, {key: z, operator: Exists}]}
    - namespaceSelector: {}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports: [{port: 80, endPort: 90}, {port: web}, {protocol: UDP}]`))
	p := m.find(t, "p", api.Ingress)
	var got []string
	for _, r := range p.Rules {
		text := r.text()
		for _, id := range slices.Concat(r.Source.Sets, r.Destination.PortSets) {
			text += "; " + m.Sets[id].Text
		}
		got = append(got, text)
	}
	const k8s = `projectcalico.org/orchestrator == "k8s"`
	const pods, spaces = `projectcalico.org/namespace == "ns" && ` + k8s + ` && !(app == "x") && has(z)`, `has(projectcalico.org/namespace) && ` + k8s
	want := []string{
		"Allow proto=6 dport=80-90; " + pods + "; port web/tcp of all()",
		"Allow proto=6 dport=80-90; " + spaces + "; port web/tcp of all()",
		"Allow v4 proto=6 src=10.0.0.0/8 src!=10.1.0.0/16 dport=80-90; port web/tcp of all()",
		"Allow proto=17; " + pods, "Allow proto=17; " + spaces, "Allow v4 proto=17 src=10.0.0.0/8 src!=10.1.0.0/16",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if got := m.list(m.only(t).Ingress); got != "default(p?)Pass, kns.ns, Deny" {
		t.Errorf("list: %s", got)
	}
}

func TestEndpointTakesTheLabelsOfItsProfiles(t *testing.T) {
	d := objects(t, pod+`
---
{kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {namespaceSelector: team == 'a', serviceAccountSelector: role == 'r'}}
---
{kind: Profile, metadata: {name: ksa.ns.sa}, spec: {labelsToApply: {pcsa.role: r, pcns.team: b}}}`)
	e := New(node)
	e.Apply(d)
	key := EndpointKey{Workload, "ns", "w"}
	if m := e.Model(); m.list(m.Endpoints[key].Ingress) != "kns.ns, Deny" {
		t.Errorf("selected without the labels of its service account: %s", m.list(m.Endpoints[key].Ingress))
	}
	e.Apply(objects(t, strings.Replace(pod, "profiles: [kns.ns]", "profiles: [kns.ns, ksa.ns.sa]", 1)))
	if m := e.Model(); m.list(m.Endpoints[key].Ingress) != "default(p)Deny, kns.ns, ksa.ns.sa, Deny" {
		t.Errorf("not selected: %s", m.list(m.Endpoints[key].Ingress))
	}
	e.Apply(objects(t, `{kind: Profile, metadata: {name: kns.ns}, spec: {labelsToApply: {pcns.team: b}}}`))
	if m := e.Model(); m.list(m.Endpoints[key].Ingress) != "kns.ns, ksa.ns.sa, Deny" {
		t.Errorf("still selected after its namespace changed: %s", m.list(m.Endpoints[key].Ingress))
	}
}

// TestNobodyInANamespacePassesForOneOfAnother has a pod and a network set give themselves the labels of a namespace and of an account that are not theirs.
func TestNobodyInANamespacePassesForOneOfAnother(t *testing.T) {
	const claim = "pcns.team: trusted, pcsa.role: admin"
	const claims = "labels: {" + claim + "}"
	d := objects(t, strings.Replace(pod, "{app: web,", "{"+claim+", app: web,", 1)+`
---
{kind: NetworkSet, metadata: {name: s, namespace: ns, `+claims+`}, spec: {nets: [192.0.2.0/24]}}
---
{kind: GlobalNetworkSet, metadata: {name: g, `+claims+`}, spec: {nets: [198.51.100.0/24]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {namespaceSelector: team == 'trusted'}}
---
{kind: GlobalNetworkPolicy, metadata: {name: q}, spec: {ingress: [{action: Allow, source: {selector: "pcns.team == 'trusted' || pcsa.role == 'admin'"}}]}}`)
	e := New(node)
	e.Apply(d)
	m := e.Model()
	if got := m.list(m.Endpoints[EndpointKey{Workload, "ns", "w"}].Ingress); got != "default(q)Deny, kns.ns, Deny" {
		t.Errorf("the pod is selected as if it were of the other namespace: %s", got)
	}
	var members string
	for _, s := range m.Sets {
		members += fmt.Sprint(*s)
	}
	if strings.Contains(members, "192.0.2.0") || strings.Contains(members, "10.0.0.1") || !strings.Contains(members, "198.51.100.0") {
		t.Errorf("members are %s, want those of the cluster's own set alone", members)
	}
}

func TestNamesTellEverythingApart(t *testing.T) {
	seen := map[SetID]string{}
	for _, w := range []want{
		wantAddresses(mustParse(t, "")), wantAddresses(mustParse(t, "has(a)")), wantPorts(mustParse(t, ""), "a", 0),
		wantPorts(mustParse(t, ""), "a", api.ProtoTCP), wantPorts(mustParse(t, "has(a)"), "a", api.ProtoTCP), wantPorts(mustParse(t, ""), "b", api.ProtoTCP),
		wantService(Addresses, "a", "b"), wantService(Ports, "a", "b"), wantService(Ports, "a", "c"),
	} {
		if other, had := seen[w.id]; had {
			t.Errorf("%s and %s have one name", other, w.text())
		}
		seen[w.id] = w.text()
	}
	if len(slices.Compact(slices.Sorted(maps.Values(seen)))) != len(seen)-1 { // the service is in two kinds of sets
		t.Errorf("texts: %v", seen)
	}
}
