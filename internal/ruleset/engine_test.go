package ruleset

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// objectOf returns an object in one of several states, or none.
func objectOf(i, state int) policy.Change {
	app := func(n int) string { return fmt.Sprintf("app == '%d'", n%3) }
	tcp := &api.Protocol{Name: "TCP"}
	switch i % 5 {
	case 0, 1:
		w := &api.WorkloadEndpoint{}
		w.Metadata.Namespace, w.Metadata.Name = "default", fmt.Sprintf("n1-k8s-pod--%d-eth0", i)
		w.Metadata.Labels = map[string]string{"app": fmt.Sprint(state)}
		w.Spec = api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: []string{"n1", "n2"}[i%2], Pod: fmt.Sprint("pod-", i), Endpoint: "eth0",
			InterfaceName: fmt.Sprint("cali", i), IPNetworks: []api.Prefix{api.HostPrefix(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))},
			Ports: []api.WEPort{{Name: "web", Protocol: *tcp, Port: uint16(8000 + state)}}}
		return policy.Change{Key: api.KeyOf(w), Object: w}
	case 2:
		p := &api.NetworkPolicy{}
		p.Metadata.Namespace, p.Metadata.Name = "default", fmt.Sprint("default.p", i)
		p.Spec = api.NetworkPolicySpec{Tier: "default", Selector: app(i), Types: []api.PolicyType{api.Ingress, api.Egress},
			Ingress: []api.Rule{
				{Action: api.Allow, Protocol: tcp, Source: api.EntityRule{Selector: app(state)}, Destination: api.EntityRule{Ports: []api.Port{{Min: 80, Max: 80}}}},
				{Action: api.Deny, Protocol: tcp, Source: api.EntityRule{Nets: []string{"10.0.0.0/8", "fd00::/8"}, NotNets: []string{"10.1.0.0/16"}}},
			},
			Egress: []api.Rule{{Action: api.Log}, {Action: api.Allow, Destination: api.EntityRule{NotSelector: app(state + 1)}}}}
		return policy.Change{Key: api.KeyOf(p), Object: p}
	case 3:
		p := &api.GlobalNetworkPolicy{}
		p.Metadata.Name = fmt.Sprint("default.g", i)
		p.Spec = api.GlobalNetworkPolicySpec{Tier: "default", Selector: "all()", Types: []api.PolicyType{api.Ingress},
			Ingress: []api.Rule{{Action: api.Pass, Source: api.EntityRule{Selector: fmt.Sprintf("net == '%d'", state)}}}}
		return policy.Change{Key: api.KeyOf(p), Object: p}
	default:
		s := &api.GlobalNetworkSet{}
		s.Metadata.Name, s.Metadata.Labels = fmt.Sprint("set", i), map[string]string{"net": fmt.Sprint(state), "app": "1"}
		s.Spec.Nets = []string{"203.0.113.0/24", fmt.Sprintf("198.51.%d.0/24", i), "192.0.2.7/32"}[:1+state]
		return policy.Change{Key: api.KeyOf(s), Object: s}
	}
}

func TestEnginesUpdatesLeadToTheTableOfItsModel(t *testing.T) {
	settings := Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000, VXLANPort: 4789, Spoofing: true}
	rapid.Check(t, func(t *rapid.T) {
		engine, l, kernel := policy.New("n1"), New(settings), nftable.NewTable(Table)
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			var d policy.Delta
			for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 14), 1, 8, rapid.ID).Draw(t, "objects") {
				c := objectOf(i, rapid.IntRange(0, 2).Draw(t, "state"))
				if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
					c.Object = nil
				}
				d.Objects = append(d.Objects, c)
			}
			l.Update(engine.Apply(d))
			apply(t, kernel, l.Take())
			complete(t, kernel)
			want := Of(settings, nil, engine.Model()).Text()
			for name, got := range map[string]string{"by updates": l.Table().Text(), "by deltas": kernel.Text()} {
				if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
					t.Fatalf("whole (-), %s (+):\n%s", name, diff)
				}
			}
		}
	})
}
