package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// eachKind is a lab in which every kind of policy decides who reaches the pod web: client, which is role=client on the other node, b1, a neighbour, and a2, from
// that other node too. Web takes connections to ports 80 and 81.
type eachKind struct {
	t *testing.T
	l *lab.Lab
}

const webKey = api.ResourcesRoot + "workloadendpoints/default/node--1-k8s-web-eth0"

// openTo says who reaches web, of three.
func (e *eachKind) openTo(what string, port int, client, b1, a2 bool) {
	e.t.Helper()
	ways(e.t, e.l, what, reach{"client", "web", port, client}, reach{"b1", "web", port, b1}, reach{"a2", "web", port, a2})
}

func (e *eachKind) remove(keys ...string) {
	e.t.Helper()
	for _, key := range keys {
		remove(e.t, e.l, key)
	}
}

const toWeb, fromClient = `"selector": "app == 'web'", "types": ["Ingress"], `, `"source": {"selector": "role == 'client'"}`

// TestEachKindOfPolicyWithPackets goes through the kinds of resources that policy is made of, by both families. Those of hosts are in
// TestPoliciesOfHostsWithPackets, single fields of rules in test/policyjudge.
func TestEachKindOfPolicyWithPackets(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "client", Node: "node-2", Labels: map[string]string{"role": "client"}})
	listenTCP(t, l, "web", 80)
	listenTCP(t, l, "web", 81)
	e := &eachKind{t, l}
	e.openTo("without policy", 80, true, true, true)
	for _, part := range []struct {
		name string
		fn   func()
	}{
		{"Kubernetes", e.kubernetes}, {"global", e.global}, {"network sets", e.networkSets}, {"tiers", e.tiers}, {"built-in tiers", e.builtInTiers},
		{"profiles", e.profiles}, {"staged", e.staged}, {"rules", e.rules},
	} {
		part.fn()
		e.openTo("after "+part.name, 80, true, true, true)
	}
}

// kubernetes has a NetworkPolicy of Kubernetes decide, as the controllers write it.
func (e *eachKind) kubernetes() {
	tcp, port := corev1.ProtocolTCP, intstr.FromInt32(80)
	p, lost, err := kubeconv.NetworkPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "client"}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}},
			}},
		},
	})
	if err != nil || len(lost) > 0 {
		e.t.Fatal(err, lost)
	}
	spec, err := json.Marshal(p.Spec)
	if err != nil {
		e.t.Fatal(err)
	}
	key := "networkpolicies/default/" + p.Metadata.Name
	fields := strings.TrimSuffix(strings.TrimPrefix(string(spec), "{"), "}")
	resource(e.t, e.l, "NetworkPolicy", key, fields)
	e.openTo("by a policy of Kubernetes", 80, true, false, false)
	e.openTo("by a policy of Kubernetes", 81, false, false, false)
	e.remove(key)
}

// global has GlobalNetworkPolicies select by the labels of namespaces and of service accounts.
func (e *eachKind) global() {
	e.belong("kns.default", "ksa.default.web")
	const none = `"types": ["Ingress"]`
	for _, by := range []string{`"selector": "app == 'web'"`, `"namespaceSelector": "team == 'a'"`, `"serviceAccountSelector": "rank == 'high'"`,
		`"namespaceSelector": "team == 'a'", "serviceAccountSelector": "rank == 'high'", "selector": "has(app)"`} {
		resource(e.t, e.l, "GlobalNetworkPolicy", "globalnetworkpolicies/default.all", by+`, `+none)
		e.openTo("of all that are selected by "+by, 80, false, false, false)
		e.remove("globalnetworkpolicies/default.all")
		e.openTo("no more", 80, true, true, true)
	}
	resource(e.t, e.l, "GlobalNetworkPolicy", "globalnetworkpolicies/default.peers", toWeb+`"ingress": [{"action": "Allow", "source": {"namespaceSelector": "team == 'a'"}}]`)
	e.openTo("from a namespace by its labels, of which only web is", 80, false, false, false)
	amend(e.t, e.l, api.ResourcesRoot+"workloadendpoints/default/node--1-k8s-b1-eth0", "WorkloadEndpoint", map[string]any{"profiles": []any{"kns.default"}})
	e.openTo("and b1", 80, false, true, false)
	resource(e.t, e.l, "GlobalNetworkPolicy", "globalnetworkpolicies/default.peers", toWeb+`"ingress": [{"action": "Allow", "source": {"serviceAccounts": {"selector": "rank == 'high'"}}}]`)
	e.openTo("from a service account by its labels", 80, false, false, false)
	amend(e.t, e.l, api.ResourcesRoot+"workloadendpoints/default/node--2-k8s-a2-eth0", "WorkloadEndpoint", map[string]any{"profiles": []any{"kns.default", "ksa.default.web"}})
	e.openTo("which a2 has", 80, false, false, true)
	e.remove("globalnetworkpolicies/default.peers")
}

// belong gives web profiles of a namespace and of a service account, by whose labels policies may select it.
func (e *eachKind) belong(namespace, account string) {
	e.t.Helper()
	resource(e.t, e.l, "Profile", "profiles/"+namespace, `"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}], "labelsToApply": {"pcns.team": "a"}`)
	resource(e.t, e.l, "Profile", "profiles/"+account, `"labelsToApply": {"pcsa.rank": "high"}`)
	amend(e.t, e.l, webKey, "WorkloadEndpoint", map[string]any{"profiles": []any{namespace, account}})
}

// networkSets has sets of addresses decide, of one namespace and of all.
func (e *eachKind) networkSets() {
	nets := func(names ...string) string {
		var out []string
		for _, name := range names {
			p := pod(e.t, e.l, name)
			for _, a := range p.Addrs() {
				out = append(out, fmt.Sprintf("%q", a))
			}
		}
		return `"nets": [` + strings.Join(out, ", ") + `]`
	}
	resource(e.t, e.l, "NetworkSet", "networksets/default/friends", nets("client"), "zone", "in")
	resource(e.t, e.l, "NetworkSet", "networksets/other/friends", nets("b1"), "zone", "in")
	resource(e.t, e.l, "GlobalNetworkSet", "globalnetworksets/friends", nets("a2"), "zone", "in")
	from := func(more string) {
		policy(e.t, e.l, "sets", toWeb+`"ingress": [{"action": "Allow", "source": {"selector": "zone == 'in'"`+more+`}}]`)
	}
	from("")
	e.openTo("from the set of the policy's own namespace", 80, true, false, false)
	from(`, "namespaceSelector": "all()"`)
	e.openTo("from sets of all namespaces", 80, true, true, false)
	from(`, "namespaceSelector": "global()"`)
	e.openTo("from sets of no namespace", 80, false, false, true)
	resource(e.t, e.l, "GlobalNetworkSet", "globalnetworksets/friends", nets("b1"), "zone", "in")
	e.openTo("once the set holds another", 80, false, true, false)
	resource(e.t, e.l, "GlobalNetworkSet", "globalnetworksets/friends", `"nets": ["0.0.0.0/0", "::/0"]`, "zone", "in")
	e.openTo("once the set holds everything", 80, true, true, true)
	resource(e.t, e.l, "GlobalNetworkSet", "globalnetworksets/friends", nets("a2"), "zone", "out")
	e.openTo("once the set is called otherwise", 80, false, false, false)
	e.remove("networkpolicies/default/default.sets", "networksets/default/friends", "networksets/other/friends", "globalnetworksets/friends")
}

// tiers has tiers pass on and end, in both ways that they may.
func (e *eachKind) tiers() {
	end := func(action string) {
		resource(e.t, e.l, "Tier", "tiers/first", fmt.Sprintf(`"order": 10, "defaultAction": %q`, action))
	}
	end("Deny")
	resource(e.t, e.l, "NetworkPolicy", "networkpolicies/default/first.web", `"tier": "first", "order": 5, `+toWeb+`"ingress": [{"action": "Pass", "protocol": "TCP", "destination": {"ports": [80]}},
		{"action": "Allow", "source": {"selector": "app == 'nobody'"}}]`)
	e.openTo("passed to the profile", 80, true, true, true)
	e.openTo("at the end of a tier that denies", 81, false, false, false)
	policy(e.t, e.l, "web", toWeb+`"ingress": [{"action": "Allow", `+fromClient+`}]`)
	e.openTo("passed to the next tier", 80, true, false, false)
	e.openTo("still at the end of the first", 81, false, false, false)
	end("Pass")
	e.openTo("at the end of a tier that passes", 81, true, false, false)
	resource(e.t, e.l, "NetworkPolicy", "networkpolicies/default/first.sooner", `"tier": "first", "order": 4, `+toWeb+`"ingress": [{"action": "Deny", `+fromClient+`}]`)
	e.openTo("denied by who is asked sooner", 80, false, false, false)
	resource(e.t, e.l, "NetworkPolicy", "networkpolicies/default/first.sooner", `"tier": "first", "order": 6, `+toWeb+`"ingress": [{"action": "Deny", `+fromClient+`}]`)
	e.openTo("passed by who is asked sooner now", 80, true, false, false)
	resource(e.t, e.l, "NetworkPolicy", "networkpolicies/default/first.a", `"tier": "first", "order": 5, `+toWeb+`"ingress": [{"action": "Deny", `+fromClient+`}]`)
	e.openTo("of equal order, the first by name", 80, false, false, false)
	e.remove("networkpolicies/default/", "tiers/first")
}

// builtInTiers has policies of the tiers that every cluster has come before and behind all others.
func (e *eachKind) builtInTiers() {
	in := func(tier, action string) string {
		key := "globalnetworkpolicies/" + tier + ".web"
		resource(e.t, e.l, "GlobalNetworkPolicy", key, fmt.Sprintf(`"tier": %q, "order": 1, `, tier)+toWeb+fmt.Sprintf(`"ingress": [{"action": %q, %s}]`, action, fromClient))
		return key
	}
	baseline := in("kube-baseline", "Deny")
	e.openTo("by the last tier, which passes what it does not know", 80, false, true, true)
	policy(e.t, e.l, "web", toWeb+`"ingress": [{"action": "Allow", `+fromClient+`}]`)
	e.openTo("before the last tier is asked", 80, true, false, false)
	admin := in("kube-admin", "Deny")
	e.openTo("by the first tier", 80, false, false, false)
	e.remove("networkpolicies/default/default.web", baseline)
	e.openTo("by the first tier, which passes what it does not know", 80, false, true, true)
	e.remove(admin)
}

// profiles has profiles decide where no policy selects web.
func (e *eachKind) profiles() {
	resource(e.t, e.l, "Profile", "profiles/own", `"ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}, `+fromClient+`}, {"action": "Allow"}], "egress": [{"action": "Allow"}]`)
	amend(e.t, e.l, webKey, "WorkloadEndpoint", map[string]any{"profiles": []any{"own"}})
	e.openTo("by its profile", 80, false, true, true)
	e.openTo("by its profile", 81, true, true, true)
	policy(e.t, e.l, "web", toWeb+`"ingress": [{"action": "Allow", `+fromClient+`}]`)
	e.openTo("by a policy, and no profile is asked", 80, true, false, false)
	e.remove("networkpolicies/default/default.web")
	amend(e.t, e.l, webKey, "WorkloadEndpoint", map[string]any{"profiles": []any{"missing"}})
	e.openTo("by a profile that does not exist", 80, false, false, false)
	amend(e.t, e.l, webKey, "WorkloadEndpoint", map[string]any{"profiles": []any{api.DefaultAllowProfile}})
	e.openTo("by the built-in profile", 80, true, true, true)
	e.remove("profiles/own")
}

// staged has policies of each staged kind count and deny nothing; a real one behind them shows when they are there.
func (e *eachKind) staged() {
	const deny = toWeb + `"ingress": [{"action": "Deny"}]`
	resource(e.t, e.l, "StagedNetworkPolicy", "stagednetworkpolicies/default/default.dry", deny)
	resource(e.t, e.l, "StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies/default.dry", deny)
	resource(e.t, e.l, "StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies/default/dry",
		`"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}]`)
	policy(e.t, e.l, "web", toWeb+`"ingress": [{"action": "Allow", `+fromClient+`}]`)
	e.openTo("by the one that is not staged", 80, true, false, false)
	nettest.Eventually(e.t, func() error {
		out, err := try(e.t, e.l, "node-1", "muslinctl", "node", "drops", "--all")
		for _, want := range []string{"StagedNetworkPolicy(default/dry)", "StagedGlobalNetworkPolicy(dry)", "StagedKubernetesNetworkPolicy(default/dry)"} {
			if !strings.Contains(out, want) {
				err = errors.Join(err, fmt.Errorf("%s has counted nothing:\n%s", want, out))
			}
		}
		return err
	})
	e.remove("networkpolicies/default/default.web")
	e.openTo("by staged ones alone, and so by the profile", 80, true, true, true)
	e.remove("stagednetworkpolicies/", "stagedglobalnetworkpolicies/", "stagedkubernetesnetworkpolicies/")
}

// rules has single rules decide, of kinds that the tests above do not have.
func (e *eachKind) rules() {
	for _, r := range []struct {
		rule               string
		port               int
		client, b1, others bool
	}{
		{`"action": "Allow", "source": {"notSelector": "role == 'client'"}`, 80, false, true, true},
		{`"action": "Allow", "protocol": 6, "notProtocol": 17, "destination": {"ports": ["79:80"]}, "source": {"selector": "role == 'client'"}`, 80, true, false, false},
		{`"action": "Allow", "protocol": "TCP", "destination": {"notPorts": [81, "90:99"]}`, 80, true, true, true},
		{`"action": "Allow", "protocol": "TCP", "destination": {"notPorts": [80, "90:99"]}`, 80, false, false, false},
		{`"action": "Log"}, {"action": "Allow", "source": {"selector": "role == 'client'"}`, 80, true, false, false},
		{`"action": "Log"}, {"action": "Pass", "source": {"notSelector": "role == 'client'"}`, 80, false, true, true},
	} {
		policy(e.t, e.l, "web", toWeb+`"ingress": [{`+r.rule+`}]`)
		e.openTo(r.rule, r.port, r.client, r.b1, r.others)
	}
	for _, kind := range []struct {
		rule      string
		four, six bool
	}{
		{`"protocol": "ICMP", "icmp": {"type": 8}`, true, false},
		{`"protocol": "ICMPv6", "icmp": {"type": 128}`, false, true},
		{`"protocol": "ICMP", "notICMP": {"type": 8}`, false, false},
		{`"ipVersion": 6`, false, true},
	} {
		policy(e.t, e.l, "web", toWeb+`"ingress": [{"action": "Allow", `+kind.rule+`}]`)
		e.pings(kind.rule, kind.four, kind.six)
	}
	e.remove("networkpolicies/default/default.web")
}

// pings waits until web answers echo requests of a family, or does not.
func (e *eachKind) pings(what string, four, six bool) {
	e.t.Helper()
	web := pod(e.t, e.l, "web")
	nettest.Eventually(e.t, func() error {
		for addr, want := range map[string]bool{web.Addr.String(): four, web.Addr6.String(): six} {
			err := e.l.PodExec(e.t.Context(), "b1", lab.Command{Args: []string{"ping", "-c1", "-W1", addr}})
			if (err == nil) != want {
				return fmt.Errorf("%s: ping of %s: want an answer %t: %w", what, addr, want, errors.Join(err, errors.New("not so")))
			}
		}
		return nil
	})
}
