package api_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

func TestKeys(t *testing.T) {
	block := netip.MustParsePrefix("172.20.33.128/26")
	v6 := netip.MustParsePrefix("fd00:10:244::/122")
	endpoint := api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: "node-1", Pod: "nginx-7bf-x", Endpoint: "eth0", ContainerID: "c"}
	kind := (*api.WorkloadEndpoint)(nil).KindOf()
	const root = "/calico/resources/v3/projectcalico.org/"
	for _, tc := range []struct{ what, got, want string }{
		{"endpoint name", api.WorkloadEndpointName(endpoint), "node--1-k8s-nginx--7bf--x-eth0"},
		{"endpoint name without a pod",
			api.WorkloadEndpointName(api.WorkloadEndpointSpec{Orchestrator: "cni", Node: "hc-node1", ContainerID: "hcx-0", Endpoint: "eth0", Pod: "p"}),
			"hc--node1-cni-hcx--0-eth0"},
		{"endpoint", kind.Key("default", api.WorkloadEndpointName(endpoint)), root + "workloadendpoints/default/node--1-k8s-nginx--7bf--x-eth0"},
		{"endpoints of a pod", api.WorkloadEndpointsPrefix("default", "node-1", "k8s", "nginx-7bf-x"),
			root + "workloadendpoints/default/node--1-k8s-nginx--7bf--x-"},
		{"block", api.BlockKey(block), "/calico/ipam/v2/assignment/ipv4/block/172.20.33.128-26"},
		{"IPv6 block", api.BlockKey(v6), "/calico/ipam/v2/assignment/ipv6/block/fd00:10:244::-122"},
		{"blocks", api.BlocksPrefix(false), "/calico/ipam/v2/assignment/ipv4/block/"},
		{"IPv6 blocks", api.BlocksPrefix(true), "/calico/ipam/v2/assignment/ipv6/block/"},
		{"affinity", api.AffinityKey("node-1", block), "/calico/ipam/v2/host/node-1/ipv4/block/172.20.33.128-26"},
		{"affinities", api.AffinitiesPrefix("node-1"), "/calico/ipam/v2/host/node-1/"},
		{"handle", api.HandleKey(api.PodHandle("k8s-pod-network", "3f1c")), "/calico/ipam/v2/handle/k8s-pod-network.3f1c"},
		{"tunnel handle", api.HandleKey(api.VXLANHandle("n", false)), "/calico/ipam/v2/handle/vxlan-tunnel-addr-n"},
		{"IPv6 tunnel handle", api.HandleKey(api.VXLANHandle("n", true)), "/calico/ipam/v2/handle/vxlan-v6-tunnel-addr-n"},
		{"configuration", api.IPAMConfigKey, "/calico/ipam/v2/config"},
		{"pool", (*api.IPPool)(nil).KindOf().Key("ignored", "p"), root + "ippools/p"},
		{"node", (*api.Node)(nil).KindOf().Key("", "n"), root + "nodes/n"},
		{"cluster", (*api.ClusterInformation)(nil).KindOf().Key("", "default"), root + "clusterinformations/default"},
		{"settings", (*api.FelixConfiguration)(nil).KindOf().Key("", "node.n"), root + "felixconfigurations/node.n"},
		{"profile", (*api.Profile)(nil).KindOf().Key("", "kns.default"), root + "profiles/kns.default"},
		{"tier", (*api.Tier)(nil).KindOf().Key("", "default"), root + "tiers/default"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %s, want %s", tc.what, tc.got, tc.want)
		}
	}
}

func TestKeysParseBack(t *testing.T) {
	for _, s := range []string{"172.20.33.128/26", "10.0.0.0/32", "fd00:10:244::/122", "::/116"} {
		cidr := netip.MustParsePrefix(s)
		if got, err := api.ParseBlockKey(api.BlockKey(cidr)); err != nil || got != cidr {
			t.Errorf("block %v parses back as %v, %v", cidr, got, err)
		}
		if node, got, err := api.ParseAffinityKey(api.AffinityKey("node-1", cidr)); err != nil || got != cidr || node != "node-1" {
			t.Errorf("affinity to %v parses back as %s, %v, %v", cidr, node, got, err)
		}
	}
}

func TestKeysThatAreNoneAreRefused(t *testing.T) {
	for _, path := range []string{
		"", "ipv4", "ipv4/block", "ipv4/block/", "ipv4/block/10.0.0.0", "ipv4/block/10.0.0.0-33", "ipv6/block/10.0.0.0-26", "ipv4/blocks/10.0.0.0-26",
		"ipv4/block/10.0.0.0-26/x", "ipv4/block/-26",
	} {
		if got, err := api.ParseBlockKey(api.BlocksRoot + path); err == nil {
			t.Errorf("block key %q parses as %v", path, got)
		}
		if node, got, err := api.ParseAffinityKey(api.HostsRoot + "n/" + path); err == nil {
			t.Errorf("affinity key %q parses as %s, %v", path, node, got)
		}
	}
	for _, key := range []string{"", "/calico/ipam/v2/host/n", "/calico/ipam/v2/host//ipv4/block/10.0.0.0-26", "/calico/ipam/v2/virtual/n/ipv4/block/10.0.0.0-26"} {
		if _, _, err := api.ParseAffinityKey(key); err == nil {
			t.Errorf("%q parses as an affinity", key)
		}
		if _, err := api.ParseBlockKey(key); err == nil {
			t.Errorf("%q parses as a block", key)
		}
	}
}

func TestPoolCheck(t *testing.T) {
	for _, tc := range []struct {
		spec string
		ok   bool
	}{
		{`"cidr":"10.0.0.0/16"`, true},
		{`"cidr":"10.0.0.0/26","blockSize":26`, true},
		{`"cidr":"fd00::/48"`, true},
		{`"cidr":"10.0.0.0/28","blockSize":26,"disabled":true`, true},
		{`"cidr":"10.0.0.0/28","blockSize":26`, false},
		{`"cidr":"10.0.0.1/16"`, false},
		{`"cidr":"10.0.0.0/16","blockSize":19`, false},
		{`"cidr":"10.0.0.0/16","blockSize":33`, false},
		{`"cidr":"fd00::/48","blockSize":26`, false},
		{`"blockSize":26`, false},
	} {
		p, err := api.Decode[api.IPPool]([]byte(`{"spec":{` + tc.spec + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Check(); (err == nil) != tc.ok {
			t.Errorf("pool with %s: %v", tc.spec, err)
		}
	}
}

func TestBlockHost(t *testing.T) {
	for _, tc := range []struct {
		block string
		want  string
	}{
		{`"affinity":"host:n"`, "n"},
		{`"affinity":null,"hostAffinity":"host:old"`, "old"},
		{`"affinity":"virtual:load-balancer"`, ""},
		{`"affinity":null`, ""},
	} {
		b, err := api.Decode[api.Block]([]byte(`{"cidr":"10.0.0.0/26",` + tc.block + `}`))
		if err != nil {
			t.Fatal(err)
		}
		host, ok := b.Host()
		if ok != (tc.want != "") || ok && host != tc.want {
			t.Errorf("block with %s belongs to %q, %t", tc.block, host, ok)
		}
	}
	if a := api.HostAffinityOf("n"); a != "host:n" {
		t.Errorf("affinity of n: %s", a)
	}
}

func TestNodeAddress(t *testing.T) {
	n, err := api.Decode[api.Node]([]byte(`{"spec":{"bgp":{"ipv4Address":"10.0.0.5/24","ipv6Address":"fd00::5"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := n.Address(false); !ok || p != netip.MustParsePrefix("10.0.0.5/24") {
		t.Errorf("IPv4 %v %t", p, ok)
	}
	if p, ok := n.Address(true); !ok || p != netip.MustParsePrefix("fd00::5/128") {
		t.Errorf("IPv6 %v %t", p, ok)
	}
	n.Spec.BGP.IPv4Address, n.Spec.BGP.IPv6Address = n.Spec.BGP.IPv6Address, n.Spec.BGP.IPv4Address
	for _, v6 := range []bool{false, true} {
		if p, ok := n.Address(v6); ok {
			t.Errorf("in the wrong field: %v", p)
		}
	}
	n.Spec.BGP = nil
	if p, ok := n.Address(false); ok {
		t.Errorf("without BGP: %v", p)
	}
}

func TestCreatedFillsOnlyWhatIsAbsent(t *testing.T) {
	zone := time.FixedZone("east", 3600)
	now := time.Date(2026, 1, 2, 3, 4, 5, 678, zone)
	var p api.Profile
	api.Created(&p, "one", now)
	api.Created(&p, "two", now.Add(time.Hour))
	if want := time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC); p.Metadata.UID != "one" || p.Metadata.CreationTimestamp != want {
		t.Errorf("created as %+v, want uid one at %v", p.Metadata, want)
	}
}
