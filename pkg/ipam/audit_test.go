package ipam_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

// The keys of a small cluster: node-1 has one block, with its tunnel address and one pod.
const (
	auditPool      = "/calico/resources/v3/projectcalico.org/ippools/pool"
	auditNode      = "/calico/resources/v3/projectcalico.org/nodes/node-1"
	auditEndpoint  = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-web-eth0"
	auditEndpoint2 = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-db-eth0"
	auditBlock     = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30"
	auditBlock2    = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-29"
	auditAffinity  = "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.0-30"
	auditAffinity2 = "/calico/ipam/v2/host/node-2/ipv4/block/10.0.0.0-30"
	auditTunnel    = "/calico/ipam/v2/handle/vxlan-tunnel-addr-node-1"
	auditHandle    = "/calico/ipam/v2/handle/net.c1"
)

func healthy() map[string]string {
	return map[string]string{
		auditPool: `{"kind":"IPPool","metadata":{"name":"pool"},"spec":{"cidr":"10.0.0.0/24","blockSize":30,"vxlanMode":"Always"}}`,
		auditNode: `{"kind":"Node","metadata":{"name":"node-1"},"spec":{"ipv4VXLANTunnelAddr":"10.0.0.0"}}`,
		auditBlock: `{"cidr":"10.0.0.0/30","affinity":"host:node-1","allocations":[0,1,null,null],"unallocated":[2,3],"attributes":[
			{"handle_id":"vxlan-tunnel-addr-node-1","secondary":{"node":"node-1","type":"vxlanTunnelAddress"}},
			{"handle_id":"net.c1","secondary":{"node":"node-1","namespace":"default","pod":"web"}}],"sequenceNumber":1,"sequenceNumberForAllocation":{},"deleted":false}`,
		auditAffinity:                   `{"state":"confirmed","deleted":false}`,
		"/calico/ipam/v2/host/node-1":   ``,
		auditTunnel:                     `{"block":{"10.0.0.0/30":1},"deleted":false}`,
		auditHandle:                     `{"block":{"10.0.0.0/30":1},"deleted":false}`,
		auditEndpoint:                   endpointWith("web", "c1", "10.0.0.1"),
		"/calico/ipam/v2/config":        `{"auto_allocate_blocks":true}`,
		"/muslin/v1/nodes/node-1":       `{"machineID":"m","nodeUID":"u"}`,
		"/calico/resources/v3/unknown/": `x`,
	}
}

func endpointWith(pod, container, addr string) string {
	return fmt.Sprintf(`{"kind":"WorkloadEndpoint","metadata":{"name":"node--1-k8s-%s-eth0","namespace":"default"},"spec":{"orchestrator":"k8s","node":"node-1","pod":%q,"containerID":%q,"endpoint":"eth0","ipNetworks":["%s/32"],"interfaceName":"cali1"}}`,
		pod, pod, container, addr)
}

func TestAuditFindsWhatIsWrong(t *testing.T) {
	srv := etcdtest.New(t)
	client, etcd := srv.Store(), srv.Etcd()
	base := healthy()
	edit := func(key, from, to string) [2]string { return [2]string{key, strings.ReplaceAll(base[key], from, to)} }
	gone := func(key string) [2]string { return [2]string{key, ""} }
	for _, c := range []struct {
		name   string
		change [][2]string // key and value; "": deleted
		want   []string    // kind, first key and addresses
	}{
		{name: "nothing"},
		{name: "overlapping blocks",
			change: [][2]string{
				{auditBlock2, strings.NewReplacer("10.0.0.0/30", "10.0.0.0/29", "host:node-1", "host:node-2", "[0,1,null,null]", "[0,null,null,null,null,null,null,null]", "[2,3]", "[1,2,3,4,5,6,7]",
					`,
			{"handle_id":"net.c1","secondary":{"node":"node-1","namespace":"default","pod":"web"}}`, "").Replace(base[auditBlock])},
				{"/calico/ipam/v2/host/node-2/ipv4/block/10.0.0.0-29", `{"state":"confirmed"}`},
				{auditTunnel, `{"block":{"10.0.0.0/30":1,"10.0.0.0/29":1}}`},
			},
			want: []string{"blocks-overlap " + auditBlock2 + " [10.0.0.0]"}},
		{name: "two endpoints with one address", change: [][2]string{{auditEndpoint2, endpointWith("db", "c1", "10.0.0.1")}},
			want: []string{"endpoints-share " + auditEndpoint2 + " [10.0.0.1]"}},
		{name: "a handle that is missing", change: [][2]string{gone(auditHandle)}, want: []string{"no-handle " + auditBlock + " [10.0.0.1]"}},
		{name: "an owner without a handle", change: [][2]string{edit(auditBlock, `"handle_id":"net.c1",`, ""), gone(auditHandle)}, want: []string{"no-handle " + auditBlock + " [10.0.0.1]"}},
		{name: "a handle that counts too much", change: [][2]string{{auditHandle, `{"block":{"10.0.0.0/30":2,"10.0.0.4/30":1}}`}}, want: []string{"handle-overcounts " + auditHandle + " []"}},
		{name: "a handle without addresses", change: [][2]string{{"/calico/ipam/v2/handle/net.old", `{"block":{"10.0.0.0/30":1}}`}, {"/calico/ipam/v2/handle/net.void", `{"block":null}`}},
			want: []string{"handle-overcounts /calico/ipam/v2/handle/net.old []", "handle-overcounts /calico/ipam/v2/handle/net.void []"}},
		{name: "a handle that counts too little", change: [][2]string{{auditHandle, `{"block":{}}`}}, want: []string{"handle-undercounts " + auditHandle + " []"}},
		{name: "an allocation without endpoint", change: [][2]string{gone(auditEndpoint)}, want: []string{"no-endpoint " + auditBlock + " [10.0.0.1]"}},
		{name: "an endpoint without allocation", change: [][2]string{{auditEndpoint2, endpointWith("db", "c2", "10.0.0.3")}}, want: []string{"no-allocation " + auditEndpoint2 + " [10.0.0.3]"}},
		{name: "an endpoint outside of the pools", change: [][2]string{{auditEndpoint2, endpointWith("db", "c2", "10.9.0.3")}}},
		{name: "an endpoint with another's address", change: [][2]string{edit(auditEndpoint, `"c1"`, `"c2"`)}, want: []string{"foreign-allocation " + auditEndpoint + " [10.0.0.1]"}},
		{name: "a claim without a block", change: [][2]string{{"/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.8-30", `{"state":"confirmed"}`}},
			want: []string{"affinity-without /calico/ipam/v2/host/node-1/ipv4/block/10.0.0.8-30 []"}},
		{name: "a claim to another's block", change: [][2]string{{auditAffinity2, `{"state":"confirmed"}`}}, want: []string{"affinity-stale " + auditAffinity2 + " []"}},
		{name: "claims that were not finished", change: [][2]string{edit(auditAffinity, "confirmed", "pendingDeletion"), {"/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.8-30", `{"state":"pending"}`}},
			want: []string{"affinity-unfinished " + auditAffinity + " []", "affinity-unfinished /calico/ipam/v2/host/node-1/ipv4/block/10.0.0.8-30 []"}},
		{name: "a block without a claim", change: [][2]string{gone(auditAffinity)}, want: []string{"no-affinity " + auditBlock + " []"}},
		{name: "a block of nobody", change: [][2]string{gone(auditAffinity), edit(auditBlock, `"host:node-1"`, "null")}},
		{name: "a block that contradicts itself", change: [][2]string{edit(auditBlock, "[2,3]", "[1,2]")}, want: []string{"block-damaged " + auditBlock + " []"}},
		{name: "a block in no pool", change: [][2]string{edit(auditPool, "10.0.0.0/24", "10.0.1.0/24")}, want: []string{"no-pool " + auditBlock + " []"}},
		{name: "a tunnel address of nobody", change: [][2]string{edit(auditNode, "10.0.0.0", "10.0.0.2")}, want: []string{"tunnel-unallocated " + auditNode + " [10.0.0.2]"}},
		{name: "a tunnel address of another kind", change: [][2]string{edit(auditNode, `"ipv4VXLANTunnelAddr":"10.0.0.0"`, `"bgp":{"ipv4IPIPTunnelAddr":"10.0.0.0"}`)}, want: []string{"tunnel-unallocated " + auditNode + " [10.0.0.0]"}},
		{name: "a value that cannot be read", change: [][2]string{{auditBlock2, "{"}}, want: []string{"unreadable " + auditBlock2 + " []"}},
		{name: "a block under another's key", change: [][2]string{{auditBlock2, base[auditBlock]}}, want: []string{"unreadable " + auditBlock2 + " []"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := maps.Clone(base)
			for _, kv := range c.change {
				all[kv[0]] = kv[1]
				if kv[1] == "" {
					delete(all, kv[0])
				}
			}
			if _, err := etcd.Delete(t.Context(), "/", clientv3.WithPrefix()); err != nil {
				t.Fatal(err)
			}
			for key, value := range all {
				if _, err := etcd.Put(t.Context(), key, value); err != nil {
					t.Fatal(err)
				}
			}
			view, err := ipam.LoadView(t.Context(), client)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range ipam.Audit(view) {
				got = append(got, fmt.Sprintf("%s %s %v", f.Kind, f.Keys[0], f.Addrs))
				if f.Text == "" || f.Remedy == "" {
					t.Errorf("%s says nothing, or no remedy", f.Kind)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}
