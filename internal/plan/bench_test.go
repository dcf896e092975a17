package plan

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// cluster is a model of so many nodes with one full block of 30 pods each, of which node-1's are local, and the host of node-1.
func cluster(nodes int) (Model, kernel.Host) {
	const pods = 30
	pool := &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix("10.0.0.0/8"), VXLANMode: api.CrossSubnet, NATOutgoing: true}}
	pool.Metadata.Name = "pool"
	pool.Default()
	m := Model{Pools: []*api.IPPool{pool}}
	h := kernel.Host{Links: map[string]kernel.HostLink{
		"eth0":             {Index: 2, MTU: 1500, Up: true, Live: true},
		kernel.VXLANDevice: {Index: 3, MTU: 1450, Up: true, Live: true},
	}}
	for i := range nodes {
		name := "node-" + strconv.Itoa(i+1)
		own := netip.PrefixFrom(nth(netip.MustParseAddr("172.16.0.1"), 100*i), 16) // some share our subnet, some do not
		cidr := netip.PrefixFrom(nth(netip.MustParseAddr("10.0.0.0"), 64*i), 26)
		n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: own}}, IPv4VXLANTunnelAddr: cidr.Addr()}}
		n.Metadata.Name = name
		m.Nodes = append(m.Nodes, n)
		affinity := api.HostAffinityOf(name)
		b := &api.Block{CIDR: cidr, Affinity: &affinity, Allocation: make([]*int, 64)}
		for pod := range pods {
			at, handle := pod, fmt.Sprintf("net.%s-%d", name, pod)
			b.Allocation[pod] = &at
			b.Attributes = append(b.Attributes, api.Attributes{HandleID: &handle, Secondary: map[string]string{
				api.AttrNode: name, api.AttrPod: handle, api.AttrNamespace: "default", api.AttrTimestamp: "2026-01-01 00:00:00 +0000 UTC",
			}})
		}
		m.Blocks = append(m.Blocks, b)
	}
	h.Addrs = []kernel.HostAddr{{Dev: "eth0", Addr: m.Nodes[0].Spec.BGP.IPv4Address.Prefix}}
	for pod := range pods {
		e := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
			InterfaceName: "cali" + strconv.Itoa(pod), MAC: "02:00:00:00:00:01",
			IPNetworks: []api.Prefix{api.HostPrefix(nth(m.Blocks[0].CIDR.Addr(), pod))},
		}}
		e.Metadata.Namespace, e.Metadata.Name = "default", strconv.Itoa(pod)
		m.Endpoints = append(m.Endpoints, e)
		h.Links[e.Spec.InterfaceName] = kernel.HostLink{Index: 10 + pod, MTU: 1450, Up: true, Live: true}
	}
	return m, h
}

// BenchmarkCompute is what a change of anything but a block costs a node, by the size of its cluster.
func BenchmarkCompute(b *testing.B) {
	for _, nodes := range []int{10, 1000, 5000} {
		m, h := cluster(nodes)
		s := settings()
		b.Run(strconv.Itoa(nodes)+"-nodes", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Compute(m, s, h)
			}
		})
	}
}

// BenchmarkPlanner is what one block costs of which nothing counts here that changes.
func BenchmarkPlanner(b *testing.B) {
	changing(b, func(m *Model) {
		changed := *m.Blocks[len(m.Blocks)/2]
		m.Blocks = put(m.Blocks, len(m.Blocks)/2, &changed)
	})
}

// BenchmarkPlannerPod is what one local pod that changes costs.
func BenchmarkPlannerPod(b *testing.B) {
	changing(b, func(m *Model) {
		changed := *m.Endpoints[0]
		m.Endpoints = put(m.Endpoints, 0, &changed)
	})
}

// changing measures one plan after the other, each after a change.
func changing(b *testing.B, change func(*Model)) {
	for _, nodes := range []int{10, 1000, 5000} {
		m, h := cluster(nodes)
		s := settings()
		b.Run(strconv.Itoa(nodes)+"-nodes", func(b *testing.B) {
			b.ReportAllocs()
			var p Planner
			p.Compute(m, s, h)
			for b.Loop() {
				change(&m)
				p.Compute(m, s, h)
			}
		})
	}
}

// BenchmarkDiff is what holding a computed state against the confirmed one costs when nothing has changed.
func BenchmarkDiff(b *testing.B) {
	for _, nodes := range []int{10, 1000, 5000} {
		m, h := cluster(nodes)
		have, want := Compute(m, settings(), h).State, Compute(m, settings(), h).State
		b.Run(strconv.Itoa(nodes)+"-nodes", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := len(kernel.Diff(have.Sysctls, want.Sysctls)) + len(kernel.Diff(have.Neighs, want.Neighs)) + len(kernel.Diff(have.FDB, want.FDB)) +
					len(kernel.Diff(have.Routes, want.Routes)) + len(kernel.Diff(have.Sets, want.Sets)) + len(kernel.Diff(have.Chains, want.Chains))
				if n > 0 {
					b.Fatalf("%d differences", n)
				}
			}
		})
	}
}
