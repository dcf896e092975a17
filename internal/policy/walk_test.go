package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

// steps writes out what a side considered: the policy, its rule and what it does, and the field that the packet does not satisfy.
func (s Side) steps() (out []string) {
	for _, step := range s.Steps {
		who := "end"
		if step.Policy != nil {
			who = step.Policy.Name
		}
		if step.Rule != nil {
			who += fmt.Sprint(" ", step.Rule.Index)
		}
		line := fmt.Sprintf("%s: %s %s", step.Tier, who, step.Action)
		if !step.Matched() {
			line += ", but " + step.Unmet
		}
		out = append(out, line)
	}
	return out
}

func TestWalkTellsEveryRuleConsidered(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
{kind: NetworkPolicy, metadata: {name: web, namespace: ns}, spec: {types: [Ingress], ingress: [
  {action: Log},
  {action: Deny, protocol: UDP},
  {action: Deny, source: {nets: [192.0.2.0/24]}},
  {action: Deny, source: {selector: app == 'db'}},
  {action: Deny, source: {notSelector: "!has(x)"}, destination: {notNets: [10.0.0.0/8]}},
  {action: Deny, protocol: TCP, destination: {ports: [80, "81:82"]}},
  {action: Pass, protocol: TCP, destination: {ports: [web]}}]}}
---
{kind: StagedNetworkPolicy, metadata: {name: tried, namespace: ns}, spec: {types: [Ingress], ingress: [{action: Deny}]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: last}, spec: {tier: kube-baseline, types: [Ingress]}}`))
	e := m.Endpoints[EndpointKey{Workload, "ns", "w"}]
	p := Packet{Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddr("10.0.0.1"), Protocol: 6, SourcePort: 1024, DestinationPort: 8080}
	w := m.Walk(Flow{Packet: p, Out: e})
	if w.Verdict != api.Allow || len(w.Sides) != 1 || w.Sides[0].Verdict != api.Allow || w.Sides[0].By != m.find(t, "kns.ns", api.Ingress).Rules[0].ID {
		t.Fatalf("got %+v", w)
	}
	want := []string{
		"default: tried 0 Deny",
		"default: web 0 Log",
		"default: web 1 Deny, but protocol",
		"default: web 2 Deny, but source nets",
		"default: web 3 Deny, but source selector",
		"default: web 4 Deny, but source selector",
		"default: web 5 Deny, but destination ports",
		"default: web 6 Pass",
		"kube-baseline: last , but no rule",
		"kube-baseline: end Pass",
		": kns.ns 0 Allow",
	}
	if d := cmp.Diff(want, w.Sides[0].steps()); d != "" {
		t.Error(d)
	}
}

func TestWalkAsksEachEndpointThatAFlowGoesBy(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
`+host+`
---
{kind: GlobalNetworkPolicy, metadata: {name: raw}, spec: {applyOnForward: true, doNotTrack: true, types: [Ingress, Egress], selector: "!has(pcns.team)",
  ingress: [{action: Allow, protocol: 47}], egress: [{action: Deny, protocol: 47}]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: early}, spec: {applyOnForward: true, preDNAT: true, selector: "!has(pcns.team)",
  ingress: [{action: Allow, protocol: UDP}, {action: Deny, protocol: ICMP}]}}
---
{kind: GlobalNetworkPolicy, metadata: {name: forward}, spec: {applyOnForward: true, types: [Ingress, Egress], selector: "!has(pcns.team)",
  ingress: [{action: Allow, protocol: TCP}], egress: [{action: Allow, protocol: 50}]}}`))
	w, h := m.Endpoints[EndpointKey{Workload, "ns", "w"}], m.Endpoints[EndpointKey{Kind: Host, Name: "h"}]
	for _, c := range []struct {
		name     string
		flow     Flow
		protocol uint8
		want     string
	}{
		{"to a workload", Flow{In: h, Out: w}, 6, "Allow: h untracked Pass, h preDNAT Pass, h forward Allow, w own Allow"},
		{"to a workload, allowed before DNAT", Flow{In: h, Out: w}, 17, "Allow: h untracked Pass, h preDNAT Allow, w own Allow"},
		{"to a workload, denied before DNAT", Flow{In: h, Out: w}, 1, "Deny: h untracked Pass, h preDNAT Deny"},
		{"to a workload, untracked", Flow{In: h, Out: w}, 47, "Allow: h untracked Allow, w own Allow"},
		{"from a workload", Flow{In: w, Out: h}, 47, "Deny: w own Allow, h forward Deny"},
		{"from a workload, allowed", Flow{In: w, Out: h}, 50, "Allow: w own Allow, h forward Allow"},
		{"to the host", Flow{In: h, Way: Received}, 6, "Allow: h untracked Pass, h preDNAT Pass, h own Allow"},
		{"to the host from a workload", Flow{In: w, Out: w, Way: Received}, 6, "Allow: w own Allow"},
		{"from the host", Flow{Out: h, Way: Sent}, 47, "Deny: h untracked Deny"},
		{"from the host by its own policy", Flow{Out: h, Way: Sent}, 6, "Deny: h untracked Pass, h own Deny"},
		{"from the host to a workload", Flow{Out: w, Way: Sent}, 6, "Allow"},
		{"by nobody's device", Flow{}, 6, "Allow"},
	} {
		c.flow.Packet = Packet{Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddr("10.0.0.1"), Protocol: c.protocol}
		walked := m.Walk(c.flow)
		got := string(walked.Verdict)
		for i, s := range walked.Sides {
			got += []string{": ", ", "}[min(i, 1)] + fmt.Sprint(s.Endpoint.Key.Name, " ", s.Use, " ", s.Verdict)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// What follows was found by holding compiled models against the documented semantics on random clusters (test/policyjudge).

func TestPolicyOfAllNamespacesSelectsNoHost(t *testing.T) {
	m := modelOf(t, objects(t, host+`
---
{kind: GlobalNetworkPolicy, metadata: {name: pods}, spec: {namespaceSelector: all()}}`))
	if got := m.list(m.only(t).Ingress); got != "Deny" {
		t.Errorf("the host has the list %s", got)
	}
}

func TestTierThatDoesNotExistComesBehindOneWithoutOrder(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
{kind: Tier, metadata: {name: red}, spec: {}}
---
{kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {tier: red}}
---
{kind: GlobalNetworkPolicy, metadata: {name: q}, spec: {tier: blue}}`))
	if got, want := m.list(m.only(t).Ingress), "red(p)Deny, blue(q)Deny, kns.ns, Deny"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestNamedPortOfProtocolWithoutPortsMatchesNothing(t *testing.T) {
	m := modelOf(t, objects(t, pod+`
---
{kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {ingress: [{action: Pass, protocol: 47, destination: {ports: [web]}}, {action: Allow, protocol: 47, destination: {notPorts: [web]}}]}}`))
	p := Packet{Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddr("10.0.0.1"), Protocol: 47}
	w := m.Walk(Flow{Packet: p, Out: m.only(t)})
	if got, want := w.Sides[0].steps(), []string{"default: p 0 Pass, but destination ports", "default: p 1 Allow"}; !cmp.Equal(got, want) || len(m.Problems) > 0 {
		t.Errorf("%q, problems %v", got, m.Problems)
	}
}
