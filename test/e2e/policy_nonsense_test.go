package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// nonsense is policies that nobody should write, as raw values: validation stands in front of etcd in our own tools, but not in everybody's. All select pods that
// nobody knocks at. said is what the log says of one, if it does.
func nonsense() map[string]struct{ spec, said string } {
	const other = `"selector": "!has(app) && !has(role)", "order": 50, "types": ["Ingress"]`
	rule := func(fields string) string { return other + `, "ingress": [{"action": "Allow", ` + fields + `}]` }
	many := func(n int, format string) string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf(format, i>>8, i&255))
		}
		return strings.Join(out, ", ")
	}
	return map[string]struct{ spec, said string }{
		"selector":       {`"selector": "app ==", "types": ["Ingress"]`, "NetworkPolicy(default/selector): spec.selector"},
		"rule-selector":  {rule(`"source": {"selector": "a in"}`), "NetworkPolicy(default/rule-selector): spec.ingress[0].source.selector"},
		"huge-selector":  {`"selector": "` + strings.Repeat("(", 5000) + `", "types": ["Ingress"]`, "NetworkPolicy(default/huge-selector): spec.selector"},
		"port-zero":      {rule(`"protocol": "TCP", "destination": {"ports": [0]}`), ""},
		"port-70000":     {rule(`"protocol": "TCP", "destination": {"ports": [70000]}`), "port-70000"},
		"port-backwards": {rule(`"protocol": "TCP", "destination": {"ports": ["90:80"]}`), "port-backwards"},
		"all-ports":      {rule(`"protocol": "TCP", "destination": {"ports": ["0:65535"], "notPorts": ["0:65535"]}`), ""},
		"many-ports":     {rule(`"protocol": "TCP", "destination": {"ports": [` + many(2000, "1%[2]d%[1]d") + `]}`), ""},
		"protocol":       {rule(`"protocol": "Carrier pigeon"`), "protocol"},
		"protocol-0":     {rule(`"protocol": 0`), "protocol-0"},
		"nets":           {rule(`"source": {"nets": ["10.0.0.0/33"]}`), "NetworkPolicy(default/nets): spec.ingress[0].source.nets[0]"},
		"nets-of-both":   {rule(`"source": {"nets": ["10.0.0.0/8", "fd00::/8", "::ffff:10.0.0.0/104"]}`), ""},
		"everything":     {rule(`"source": {"nets": ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "255.255.255.255/32"]}`), ""},
		"nothing":        {rule(`"source": {"notNets": ["0.0.0.0/0", "::/0"]}`), ""},
		"many-nets":      {rule(`"source": {"nets": [` + many(10_000, `"10.%d.%d.0/24"`) + `]}`), ""},
		"many-rules":     {other + `, "ingress": [` + many(5000, `{"action": "Deny", "source": {"nets": ["203.%d.%d.0/24"]}}`) + `]`, ""},
		"order-nan":      {`"order": "NaN", ` + other, "order-nan"},
		"order-infinite": {`"order": 1e999, ` + other, "order-infinite"},
		"order-tiny":     {`"order": -1e308, ` + other, ""},
		"action":         {other + `, "ingress": [{"action": "Shrug"}, {}]`, "NetworkPolicy(default/action): spec.ingress[0].action"},
		"types":          {`"selector": "!has(app) && !has(role)", "types": ["Sideways", "Ingress", "Ingress"]`, ""},
		"tier":           {`"tier": "there is none", ` + other, "its tier"},
		"icmp":           {rule(`"protocol": "ICMP", "icmp": {"type": 999, "code": -1}`), "icmp"},
		"list":           {`"ingress": 7`, "list"},
		"service":        {rule(`"source": {"services": {"name": "", "namespace": ""}}`), "service"},
	}
}

// TestNonsenseHarmsNobodyElse stores policies that make no sense, and some that make too much, one after the other: each is told, what can be used of it is, other policy
// goes on changing, and when it is gone nothing is left of it.
func TestNonsenseHarmsNobodyElse(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	p := probed(t, l)
	listenTCP(t, l, "web", 81)
	before := tableOf(t, l)
	turn := 0
	changes := func(what string) {
		t.Helper()
		turn++
		open := turn%2 == 0
		policy(t, l, "turn", fmt.Sprintf(`"selector": "app == 'web'", "order": 1, "types": ["Ingress"], "ingress": [{"action": %q, "protocol": "TCP", "destination": {"ports": [81]}}]`,
			map[bool]string{true: "Allow", false: "Deny"}[open]))
		ways(t, l, what, reach{"client", "web", 81, open}, reach{"a2", "web", 81, open})
	}
	for name, n := range nonsense() {
		value := `{"kind": "NetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "default.` + name + `", "namespace": "default"}, "spec": {` + n.spec + `}}`
		put(t, l, api.ResourcesRoot+"networkpolicies/default/default."+name, value)
		changes("beside " + name)
		if n.said != "" {
			nettest.Eventually(t, func() error { return has(n.said)(agentLog(t, l, "node-1")) })
		}
		if !json.Valid([]byte(value)) {
			t.Errorf("%s is no JSON", name)
		}
		if name == "many-rules" || name == "many-nets" {
			continue // they stay for a while
		}
		remove(t, l, "networkpolicies/default/default."+name)
	}
	nowhere := strings.Repeat("x", 300)
	resource(t, l, "GlobalNetworkSet", "globalnetworksets/odd", `"nets": ["", "x", "10.0.0.0/99", "0.0.0.0/0", "::/0", "10.0.0.0/8", "1.2.3.4"]`, nowhere, nowhere)
	resource(t, l, "Tier", "tiers/odd", `"order": -1e308, "defaultAction": "Shrug"`)
	resource(t, l, "HostEndpoint", "hostendpoints/odd", `"node": "node-1", "interfaceName": "`+nowhere+`", "expectedIPs": ["x", "1.2.3.4"], "ports": [{"name": "", "protocol": "x", "port": 0}]`)
	resource(t, l, "Profile", "profiles/odd", `"ingress": [{"action": "x"}], "labelsToApply": {"": ""}`)
	changes("beside other kinds")
	if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
		t.Fatal(err)
	}
	changes("after a restart")
	remove(t, l, "hostendpoints/odd")
	for _, key := range []string{"globalnetworksets/odd", "tiers/odd", "profiles/odd", "networkpolicies/default/default.many-", "networkpolicies/default/default.turn"} {
		remove(t, l, key)
	}
	isAsBefore(t, l, "once all is gone", before)
	p.end()
	if text := agentLog(t, l, "node-1"); strings.Contains(text, "round failed") {
		t.Errorf("rounds failed:\n%s", text)
	}
}

// TestFlappingPolicyCostsNothingElse has one policy come and go 1,000 times as fast as etcd takes it.
func TestFlappingPolicyCostsNothingElse(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	p := probed(t, l)
	listenTCP(t, l, "b1", 80)
	before := tableOf(t, l)
	flap(t, l, 1000, api.ResourcesRoot+"networkpolicies/default/default.flap", `{"kind": "NetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "default.flap", "namespace": "default"},
		"spec": {"selector": "has(app)", "order": 1, "types": ["Ingress", "Egress"], "ingress": [{"action": "Allow", "source": {"selector": "role == 'flap'"}}], "egress": [{"action": "Deny", "destination": {"nets": ["198.51.100.0/24"]}}]}}`)
	policy(t, l, "b1", `"selector": "!has(app) && !has(role)", "types": ["Ingress"]`)
	ways(t, l, "afterwards", reach{"client", "b1", 80, false})
	remove(t, l, "networkpolicies/default/default.b1")
	isAsBefore(t, l, "afterwards", before)
	p.end()
}
