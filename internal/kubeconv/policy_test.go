package kubeconv_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// convert is the spec that a policy's spec, as YAML, becomes.
func convert(t *testing.T, spec string) string {
	t.Helper()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}}
	if err := yaml.Unmarshal([]byte(spec), &np.Spec); err != nil {
		t.Fatal(err)
	}
	p, _, err := kubeconv.NetworkPolicy(np)
	if err != nil {
		return err.Error()
	}
	b, err := json.Marshal(p.Spec)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPoliciesAreWrittenAsCalicoWritesThem(t *testing.T) {
	const pods = `"selector":"projectcalico.org/orchestrator == 'k8s'"`
	const head = `{"tier":"default","order":1000,`
	for _, c := range []struct{ what, in, want string }{
		{"nothing allowed", `podSelector: {}`, head + pods + `,"types":["Ingress"]}`},
		{"nothing allowed either way", `{podSelector: {}, policyTypes: [Ingress, Egress]}`, head + pods + `,"types":["Ingress","Egress"]}`},
		{"types that are not said", `{podSelector: {}, egress: [{}]}`, head + `"egress":[{"action":"Allow","source":{},"destination":{}}],` + pods + `,"types":["Ingress","Egress"]}`},
		{"everything allowed", `{podSelector: {}, ingress: [{}]}`, head + `"ingress":[{"action":"Allow","source":{},"destination":{}}],` + pods + `,"types":["Ingress"]}`},
		{"selectors", `{podSelector: {matchLabels: {b: x, a: w}, matchExpressions: [{key: c, operator: In, values: [p, q]}, {key: d, operator: NotIn, values: [r]}, {key: e, operator: Exists}, {key: f, operator: DoesNotExist}]}}`,
			head + `"selector":"projectcalico.org/orchestrator == 'k8s' \u0026\u0026 a == 'w' \u0026\u0026 b == 'x' \u0026\u0026 c in { 'p', 'q' } \u0026\u0026 d not in { 'r' } \u0026\u0026 has(e) \u0026\u0026 ! has(f)","types":["Ingress"]}`},
		{"peers", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {a: b}}}, {namespaceSelector: {}}, {namespaceSelector: {matchLabels: {k: m}}, podSelector: {}}]}]}`,
			head + `"ingress":[{"action":"Allow","source":{"selector":"projectcalico.org/orchestrator == 'k8s' \u0026\u0026 a == 'b'"},"destination":{}},` +
				`{"action":"Allow","source":{"selector":"projectcalico.org/orchestrator == 'k8s'","namespaceSelector":"all()"},"destination":{}},` +
				`{"action":"Allow","source":{"selector":"projectcalico.org/orchestrator == 'k8s'","namespaceSelector":"k == 'm'"},"destination":{}}],` + pods + `,"types":["Ingress"]}`},
		{"address ranges, as Kubernetes takes them", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 010.1.2.3/8, except: [10.9.0.1/16]}}, {ipBlock: {cidr: "fd00::1/64"}}, {ipBlock: {cidr: "::ffff:10.0.0.0/104"}}]}]}`,
			head + `"egress":[{"action":"Allow","source":{},"destination":{"nets":["10.0.0.0/8"],"notNets":["10.9.0.0/16"]}},{"action":"Allow","source":{},"destination":{"nets":["fd00::/64"]}},` +
				`{"action":"Allow","source":{},"destination":{"nets":["10.0.0.0/8"]}}],` + pods + `,"types":["Egress"]}`},
		{"ports", `{podSelector: {}, ingress: [{ports: [{port: 81}, {port: 80}, {port: http}, {port: 8000, endPort: 8010}, {protocol: UDP, port: 53}, {protocol: SCTP}, {protocol: SCTP, port: 9}]}]}`,
			head + `"ingress":[{"action":"Allow","protocol":"SCTP","source":{},"destination":{}},{"action":"Allow","protocol":"TCP","source":{},"destination":{"ports":["80:81","8000:8010","http"]}},` +
				`{"action":"Allow","protocol":"UDP","source":{},"destination":{"ports":[53]}}],` + pods + `,"types":["Ingress"]}`},
		{"ports and peers", `{podSelector: {}, ingress: [{ports: [{port: 80}], from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}`,
			head + `"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"projectcalico.org/orchestrator == 'k8s'"},"destination":{"ports":[80]}},` +
				`{"action":"Allow","protocol":"TCP","source":{"nets":["10.0.0.0/8"]},"destination":{"ports":[80]}}],` + pods + `,"types":["Ingress"]}`},
		{"what cannot be said allows nothing", `{podSelector: {}, ingress: [{ports: [{protocol: ICMP}, {port: 70000}, {port: 9, endPort: 8}]}, {from: [{}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]}, {from: [{podSelector: {matchLabels: {a: "b'"}}}]}]}`,
			head + pods + `,"types":["Ingress"]}`},
		{"a selector that cannot be said", `{podSelector: {matchExpressions: [{key: a, operator: Near}]}}`,
			`convert the podSelector of NetworkPolicy ns/web: the operator "Near" of a selector is unknown`},
	} {
		if diff := cmp.Diff(c.want, convert(t, c.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}

// The following draw policies that the API server takes.

var keys = rapid.SampledFrom([]string{"app", "k8s-app", "kubernetes.io/metadata.name", "x.y/Z_1.2"})
var values = rapid.SampledFrom([]string{"", "a", "B-1", "x_y.z"})

func drawSelector(t *rapid.T) *metav1.LabelSelector {
	s := &metav1.LabelSelector{MatchLabels: rapid.MapOfN(keys, values, 0, 3).Draw(t, "labels")}
	for range rapid.IntRange(0, 2).Draw(t, "expressions") {
		r := metav1.LabelSelectorRequirement{Key: keys.Draw(t, "key"), Operator: rapid.SampledFrom([]metav1.LabelSelectorOperator{
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist}).Draw(t, "operator")}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = rapid.SliceOfN(values, 1, 3).Draw(t, "values")
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

func drawPeer(t *rapid.T) (p networkingv1.NetworkPolicyPeer) {
	switch rapid.IntRange(0, 4).Draw(t, "peer") {
	case 0:
		p.IPBlock = &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: rapid.SampledFrom([][]string{nil, {"10.1.0.0/16"}, {"10.1.0.0/16", "10.2.0.1/32"}}).Draw(t, "except")}
	case 1:
		p.IPBlock = &networkingv1.IPBlock{CIDR: "::/0", Except: []string{"fd00::/8"}}
	case 2:
		p.NamespaceSelector = drawSelector(t)
	case 3:
		p.NamespaceSelector, p.PodSelector = drawSelector(t), drawSelector(t)
	default:
		p.PodSelector = drawSelector(t)
	}
	return p
}

func drawPort(t *rapid.T) (p networkingv1.NetworkPolicyPort) {
	if protocol := rapid.SampledFrom([]corev1.Protocol{"", "TCP", "UDP", "SCTP"}).Draw(t, "protocol"); protocol != "" {
		p.Protocol = &protocol
	}
	switch rapid.IntRange(0, 3).Draw(t, "port") {
	case 0:
		port, end := intstr.FromInt32(rapid.Int32Range(1, 65535).Draw(t, "number")), int32(65535)
		p.Port = &port
		if rapid.Bool().Draw(t, "range") {
			p.EndPort = &end
		}
	case 1:
		port := intstr.FromString(rapid.SampledFrom([]string{"http", "a-b", "h2"}).Draw(t, "name"))
		p.Port = &port
	}
	return p
}

func drawPolicy(t *rapid.T) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: rapid.SampledFrom([]string{"web", "a.b.c", "x-1"}).Draw(t, "name")}}
	np.Spec.PodSelector = *drawSelector(t)
	np.Spec.PolicyTypes = rapid.SampledFrom([][]networkingv1.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Egress", "Ingress"}}).Draw(t, "types")
	for range rapid.IntRange(0, 2).Draw(t, "ingress") {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			Ports: rapid.SliceOfN(rapid.Custom(drawPort), 0, 4).Draw(t, "ports"), From: rapid.SliceOfN(rapid.Custom(drawPeer), 0, 3).Draw(t, "from")})
	}
	for range rapid.IntRange(0, 2).Draw(t, "egress") {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{
			Ports: rapid.SliceOfN(rapid.Custom(drawPort), 0, 4).Draw(t, "ports"), To: rapid.SliceOfN(rapid.Custom(drawPeer), 0, 3).Draw(t, "to")})
	}
	return np
}

func TestEveryPolicyThatKubernetesTakesIsOneThatWeRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		np := drawPolicy(t)
		p, lost, err := kubeconv.NetworkPolicy(np)
		if err != nil || len(lost) > 0 {
			t.Fatal(err, lost)
		}
		raw, err := api.EncodeObject(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range api.Read(raw) {
			if item.Err != nil {
				t.Fatalf("%s: %v", raw, item.Err)
			}
		}
	})
}

// TestSelectorsSelectWhatKubernetesWould holds the selector of a policy against Kubernetes' own matching.
func TestSelectorsSelectWhatKubernetesWould(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		np := drawPolicy(t)
		p, _, err := kubeconv.NetworkPolicy(np)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := selector.Parse(p.Spec.Selector)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
		if err != nil {
			t.Fatal(err)
		}
		pod := rapid.MapOfN(keys, values, 0, 4).Draw(t, "pod")
		want := theirs.Matches(labels.Set(pod))
		pod["projectcalico.org/orchestrator"] = "k8s"
		if got := ours.Match(selector.Map(pod)); got != want {
			t.Fatalf("%s on %v: %v, Kubernetes says %v", p.Spec.Selector, pod, got, want)
		}
	})
}

func FuzzNetworkPolicy(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"a","namespace":"b"},"spec":{"podSelector":{"matchLabels":{"a":"b"}},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],"ports":[{"port":80,"endPort":90},{"port":"http"}]}]}}`))
	f.Add([]byte(`{"spec":{"podSelector":{"matchExpressions":[{"key":"a') || has(","operator":"In","values":["x' } || has(b"]}]}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		np := &networkingv1.NetworkPolicy{}
		if json.Unmarshal(raw, np) != nil {
			return
		}
		np.Namespace, np.Name = "ns", "web"
		p, _, err := kubeconv.NetworkPolicy(np)
		if err != nil {
			return
		}
		text, err := api.EncodeObject(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range api.Read(text) {
			if item.Err != nil {
				t.Fatalf("%s: %v", text, item.Err)
			}
		}
	})
}

func TestNamesOfProfilesAreReadBack(t *testing.T) {
	ns, ok := kubeconv.ParseNamespaceProfile(kubeconv.NamespaceProfile("a"))
	if ns != "a" || !ok {
		t.Errorf("%q, %v", ns, ok)
	}
	ns, name, ok := kubeconv.ParseServiceAccountProfile(kubeconv.ServiceAccountProfile("a", "b.c"))
	if ns != "a" || name != "b.c" || !ok {
		t.Errorf("%q, %q, %v", ns, name, ok)
	}
	for _, s := range []string{"", "kns.", "ksa.", "ksa.a", "ksa.a.", "ksa..b", "projectcalico-default-allow", "knp.default."} {
		if _, ok := kubeconv.ParseNamespaceProfile(s); ok {
			t.Errorf("%q is taken for a namespace's", s)
		}
		if _, _, ok := kubeconv.ParseServiceAccountProfile(s); ok {
			t.Errorf("%q is taken for a service account's", s)
		}
		if _, ok := kubeconv.ParsePolicyName(s); ok {
			t.Errorf("%q is taken for a policy's", s)
		}
	}
}

func TestHostEndpointsFollowTemplates(t *testing.T) {
	var n api.Node
	n.Metadata.Name, n.Metadata.Labels = "n1", map[string]string{"zone": "a"}
	n.Spec.Addresses = []api.NodeAddress{{Address: "10.1.0.1/24"}, {Address: "10.2.0.1"}}
	n.Spec.Interfaces = []api.NodeInterface{{Name: "eth0", Addresses: []string{"10.1.0.1/24"}}, {Name: "Eth1.5", Addresses: []string{"10.2.0.1/24"}}, {Name: "lo"}}
	made, lost := kubeconv.HostEndpoints(&n, &api.AutoHostEndpoint{AutoCreate: "Enabled", CreateDefaultHostEndpoint: "Disabled", Templates: []api.HostEndpointTemplate{
		{GenerateName: "net", InterfaceCIDRs: []string{"10.1.0.0/16"}, Labels: map[string]string{"l": "1"}},
		{GenerateName: "all", InterfacePattern: "(?i)^eth", NodeSelector: "zone == 'a'"},
		{GenerateName: "other", InterfaceCIDRs: []string{"10.1.0.0/16"}, NodeSelector: "zone == 'b'"},
		{GenerateName: "bad", InterfacePattern: "("},
	}})
	var got []string
	for _, h := range made {
		got = append(got, h.Metadata.Name+" "+h.Spec.InterfaceName+" "+h.Metadata.Labels["l"]+" "+h.Metadata.Labels["zone"])
		if !kubeconv.AutoHostEndpoint(h) || h.Spec.Node != "n1" {
			t.Errorf("%+v", h)
		}
	}
	if diff := cmp.Diff([]string{"n1-net-auto-hep  1 a", "n1-all-eth0-auto-hep eth0  a", "n1-all-eth1-5-auto-hep Eth1.5  a"}, got); diff != "" || len(lost) != 1 {
		t.Errorf("lost %v (-want +got):\n%s", lost, diff)
	}
}

func TestLabelsOfAnAnnotationThatCannotBeReadAreKept(t *testing.T) {
	var n api.Node
	n.Metadata.Labels = map[string]string{"a": "1"}
	n.Metadata.Annotations = map[string]string{"projectcalico.org/kube-labels": "{"}
	if !kubeconv.Label(&n, map[string]string{"b": "2"}) || n.Metadata.Labels["a"] != "1" || n.Metadata.Labels["b"] != "2" {
		t.Errorf("labels %v", n.Metadata.Labels)
	}
	if kubeconv.Label(&n, map[string]string{"b": "2"}) {
		t.Error("a second time it changed something")
	}
	var bare api.Node
	if kubeconv.Label(&bare, nil); len(bare.Metadata.Labels) > 0 {
		t.Errorf("labels %v", bare.Metadata.Labels)
	}
}
