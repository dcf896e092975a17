package kubeconv_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
)

func pointer[T any](v T) *T { return &v }

func TestServiceMembersAreAllEndpointsOfAllSlices(t *testing.T) {
	got := kubeconv.ServiceMembers([]*discoveryv1.EndpointSlice{
		{
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: pointer(false)}}, {Addresses: []string{"10.0.0.1", "name"}},
			},
			Ports: []discoveryv1.EndpointPort{{Port: pointer(int32(80))}, {Port: pointer(int32(53)), Protocol: pointer(corev1.ProtocolUDP)}},
		},
		{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}, Ports: []discoveryv1.EndpointPort{{Port: pointer(int32(80))}}},
		{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"fd00::1"}}}},
	})
	const want = "[{10.0.0.1 6 80} {10.0.0.1 17 53} {10.0.0.2 6 80} {10.0.0.2 17 53} {fd00::1 6 0}]"
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
}

func TestOnlyReadyEndpointsOfTheNodeAreLocal(t *testing.T) {
	for _, c := range []struct {
		node  *string
		ready *bool
		local bool
	}{
		{pointer("n"), nil, true}, {pointer("n"), pointer(true), true}, {pointer("n"), pointer(false), false}, {pointer("m"), nil, false}, {nil, nil, false},
	} {
		s := &discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{{NodeName: c.node, Conditions: discoveryv1.EndpointConditions{Ready: c.ready}}}}
		if got := kubeconv.IsLocal(s, "n"); got != c.local {
			t.Errorf("%+v: %v", s.Endpoints[0], got)
		}
	}
}

// ranges reads "cluster; external; load balancer", each CIDRs with spaces between them.
func ranges(t *testing.T, text string, single bool) kubeconv.ServiceRanges {
	t.Helper()
	list := func(s string) (out []api.ServiceRange) {
		for _, c := range strings.Fields(s) {
			out = append(out, api.ServiceRange{CIDR: c})
		}
		return out
	}
	parts := strings.Split(text, ";")
	own, others := &api.BGPConfiguration{}, &api.BGPConfiguration{}
	own.Metadata.Name, others.Metadata.Name = "default", "node.x"
	own.Spec.ServiceClusterIPs, own.Spec.ServiceExternalIPs, own.Spec.ServiceLoadBalancerIPs = list(parts[0]), list(parts[1]), list(parts[2])
	if single {
		own.Spec.ServiceLoadBalancerAggregation = "Disabled"
	}
	others.Spec.ServiceClusterIPs = list("172.16.0.0/12")
	return kubeconv.RangesOf([]*api.BGPConfiguration{own, others})
}

func TestAdvertisedAddressesOfAService(t *testing.T) {
	const all = "10.96.0.0/12 fd96::/108; 192.0.2.0/24; 198.51.100.0/24"
	balanced := func(policy corev1.ServiceExternalTrafficPolicy) *corev1.Service {
		s := &corev1.Service{Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10", "fd96::a"},
			ExternalIPs: []string{"192.0.2.1", "203.0.113.1"}, ExternalTrafficPolicy: policy,
		}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}, {IP: "203.0.113.2"}, {Hostname: "lb"}}
		return s
	}
	local, everywhere := balanced(corev1.ServiceExternalTrafficPolicyLocal), balanced(corev1.ServiceExternalTrafficPolicyCluster)
	headless := balanced(corev1.ServiceExternalTrafficPolicyLocal)
	headless.Spec.ClusterIP, headless.Spec.ClusterIPs = "None", []string{"None"}
	name := balanced(corev1.ServiceExternalTrafficPolicyLocal)
	name.Spec.Type = corev1.ServiceTypeExternalName
	port := balanced(corev1.ServiceExternalTrafficPolicyLocal)
	port.Spec.Type = corev1.ServiceTypeNodePort
	for _, c := range []struct {
		name    string
		ranges  string
		single  bool
		service *corev1.Service
		here    bool
		want    string
	}{
		{"local with an endpoint here", all, false, local, true, "10.96.0.10/32 fd96::a/128 192.0.2.1/32 198.51.100.1/32"},
		{"local without", all, false, local, false, ""},
		{"cluster", all, false, everywhere, true, ""},
		{"cluster, one by one", all, true, everywhere, false, "198.51.100.1/32"},
		{"cluster, in a range of one address", "10.96.0.0/12;;198.51.100.1/32", false, everywhere, false, "198.51.100.1/32"},
		{"only where a range is set", ";;198.51.100.0/24", false, local, true, "198.51.100.1/32"},
		{"headless", all, false, headless, true, ""},
		{"a name elsewhere", all, false, name, true, ""},
		{"what a former load balancer left", all, false, port, true, "10.96.0.10/32 fd96::a/128 192.0.2.1/32"},
	} {
		got := strings.Trim(fmt.Sprint(ranges(t, c.ranges, c.single).Addresses(c.service, c.here)), "[]")
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestWholeRangesAreTheDefaultConfigurations(t *testing.T) {
	const all = "10.96.0.1/12; 192.0.2.9 junk; 198.51.100.0/24 198.51.101.7/32"
	for single, want := range map[bool]string{
		false: "[10.96.0.0/12 192.0.2.9/32 198.51.100.0/24]",
		true:  "[10.96.0.0/12 192.0.2.9/32]",
	} {
		if got := fmt.Sprint(ranges(t, all, single).Whole()); got != want {
			t.Errorf("one by one %v: %s, want %s", single, got, want)
		}
	}
	if r := ranges(t, ";;", false); !r.Empty() || len(r.Whole()) != 0 {
		t.Errorf("nothing configured: %v", r)
	}
	if got := ranges(t, ";;0.0.0.0/0", false).Whole(); len(got) != 1 || got[0] != netip.MustParsePrefix("0.0.0.0/0") {
		t.Errorf("everything: %v", got)
	}
}
