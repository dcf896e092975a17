package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
)

// world is what a planner is told, and how it changes: as in the feed, what changes gets a new pointer.
type world struct {
	*rapid.T
	m Model
	s Settings
	h kernel.Host
}

// TestPlannerGivesWhatComputeGives changes a small cluster at random and compares each plan with one that is computed from nothing.
func TestPlannerGivesWhatComputeGives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, h := cluster(8)
		h.Links["wireguard.cali"] = kernel.HostLink{Index: 77, MTU: 1440, Kind: "wireguard", Up: true}
		w := &world{T: t, m: m, s: settings(), h: h}
		changes := []func(){w.block, w.block, w.noBlock, w.block6, w.node, w.noNode, w.pool, w.endpoint, w.device, w.setting, w.hear, func() {}}
		var p Planner
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			rapid.SampledFrom(changes).Draw(t, "change")()
			got, _ := p.Compute(w.m, w.s, w.h)
			want := Compute(w.m, w.s, w.h)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("planner:\n%s%v\nfrom nothing:\n%s%v", got.State.Text(), got.Problems, want.State.Text(), want.Problems)
			}
		}
	})
}

// TestPlannerLooksOnlyAtNewBlocks is what it is for.
func TestPlannerLooksOnlyAtNewBlocks(t *testing.T) {
	m, h := cluster(50)
	var p Planner
	p.Compute(m, settings(), h)
	before := maps.Clone(p.parts)
	alike := *m.Blocks[7]
	m.Blocks = put(m.Blocks, 7, &alike)
	if _, again := p.Compute(m, settings(), h); !again {
		t.Error("a block that changed in nothing that counts here is a reason for another plan")
	}
	other, owner := *m.Blocks[7], api.HostAffinityOf("node-3")
	other.Affinity = &owner
	m.Blocks = put(m.Blocks, 7, &other)
	if _, again := p.Compute(m, settings(), h); again {
		t.Error("a block's other owner changes nothing")
	}
	for i, x := range m.Blocks {
		if same := p.parts[x.CIDR].gives == before[x.CIDR].gives; same != (i != 7) {
			t.Errorf("block %d: what it gave is used again: %t", i, same)
		}
	}
	if len(p.parts) != len(m.Blocks) {
		t.Errorf("%d blocks are remembered and not %d", len(p.parts), len(m.Blocks))
	}
}

// TestPlannerKnowsWhatPodsLeaveAsItIs: a pod that comes or goes is no reason to work out the rest of the cluster, and a device that is nobody's no reason for
// anything.
func TestPlannerKnowsWhatPodsLeaveAsItIs(t *testing.T) {
	m, h := cluster(50)
	var p Planner
	if _, again := p.Compute(m, settings(), h); again {
		t.Error("the first plan is said to be the last")
	}
	base, block := p.base, p.parts[m.Blocks[30].CIDR].gives
	e := *m.Endpoints[0]
	e.Metadata.Name, e.Spec.InterfaceName, e.Spec.IPNetworks = "new", "cali-new", []api.Prefix{api.HostPrefix(nth(m.Blocks[0].CIDR.Addr(), 60))}
	m.Endpoints = append(slices.Clone(m.Endpoints), &e)
	if _, again := p.Compute(m, settings(), h); again {
		t.Error("a new pod changes nothing")
	}
	h.Links = maps.Clone(h.Links)
	h.Links["cali-new"] = kernel.HostLink{Index: 4711, Kind: "veth", Up: true}
	if r, again := p.Compute(m, settings(), h); again || !slices.ContainsFunc(slices.Collect(maps.Values(r.State.Routes)), func(r kernel.Route) bool { return r.Dev.Index == 4711 }) {
		t.Error("a new pod's device gets no route")
	}
	h.Links = maps.Clone(h.Links)
	h.Links["cali-other"] = kernel.HostLink{Index: 4712, Kind: "veth", Up: true}
	if _, again := p.Compute(m, settings(), h); !again {
		t.Error("a device of no pod is a reason for another plan")
	}
	if p.base != base || p.parts[m.Blocks[30].CIDR].gives != block {
		t.Error("what pods are no part of was worked out anew")
	}
}

// hear has peers say something else, or nothing.
func (w *world) hear() {
	w.m.Learned = nil
	if rapid.Bool().Draw(w.T, "bgp") {
		l := &Learned{Settling: rapid.Bool().Draw(w.T, "settling"), Local: rapid.Bool().Draw(w.T, "local")}
		for range rapid.IntRange(0, 4).Draw(w.T, "routes") {
			dst := netip.PrefixFrom(nth(netip.MustParseAddr("10.0.0.0"), 64*w.index(10)), rapid.IntRange(20, 27).Draw(w.T, "bits")).Masked()
			l.Routes = append(l.Routes, peering.KernelRoute{Dst: dst, Metric: 1024, Gateways: []netip.Addr{nth(netip.MustParseAddr("172.16.0.1"), w.index(9))}})
			l.Held = append(l.Held, kernel.RouteKey{Dst: dst, Metric: 512})
			dev := rapid.SampledFrom(slices.Sorted(maps.Keys(w.h.Links))).Draw(w.T, "way") // a pod's too
			gw := rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1%" + dev)}).Draw(w.T, "gateway")
			l.Ways = map[netip.Addr]kernel.Hop{gw: {Gateway: gw, Dev: kernel.Dev{Name: dev, Index: w.h.Links[dev].Index}}}
			l.Reach = []peering.Via{{Peer: netip.MustParseAddr("192.0.2.9"), Gateway: gw}}
		}
		w.m.Learned = l
	}
}

// put replaces an element of a list, in a copy of it.
func put[V any](list []V, i int, v V) []V {
	list = slices.Clone(list)
	list[i] = v
	return list
}

func (w *world) index(of int) int { return rapid.IntRange(0, of-1).Draw(w.T, "which") }

func (w *world) name() string { return fmt.Sprintf("node-%d", rapid.IntRange(1, 10).Draw(w.T, "node")) }

// block gives a block another owner, or one of its addresses another user.
func (w *world) block() {
	if len(w.m.Blocks) == 0 {
		return
	}
	i := w.index(len(w.m.Blocks))
	b := *w.m.Blocks[i]
	if owner := api.HostAffinityOf(w.name()); rapid.Bool().Draw(w.T, "owner") || len(b.Attributes) == 0 {
		b.Affinity = &owner
	} else {
		b.Attributes = put(b.Attributes, 0, api.Attributes{Secondary: map[string]string{api.AttrNode: w.name()}})
	}
	w.m.Blocks = put(w.m.Blocks, i, &b)
}

func (w *world) noBlock() {
	if len(w.m.Blocks) > 0 {
		i := w.index(len(w.m.Blocks))
		w.m.Blocks = slices.Delete(slices.Clone(w.m.Blocks), i, i+1)
	}
}

func (w *world) block6() {
	owner := api.HostAffinityOf(w.name())
	w.m.Blocks = append(slices.Clone(w.m.Blocks), &api.Block{CIDR: netip.PrefixFrom(nth(netip.MustParseAddr("fd00::"), len(w.m.Blocks)*64), 122), Affinity: &owner})
}

// node changes a node's address, or takes its tunnel address away.
func (w *world) node() {
	if len(w.m.Nodes) == 0 {
		return
	}
	i := w.index(len(w.m.Nodes))
	n := *w.m.Nodes[i]
	if key := rapid.IntRange(0, 3).Draw(w.T, "key"); key > 0 {
		n.Status.WireguardPublicKey = kernel.PublicKey{byte(key)}.String()
		n.Spec.Wireguard = &api.NodeWireguard{InterfaceIPv4Address: nth(netip.MustParseAddr("10.0.0.0"), key)}
	}
	if rapid.Bool().Draw(w.T, "address") {
		at := rapid.SampledFrom([]string{"172.16.0.1/16", "172.16.0.9/16", "172.17.0.9/16"}).Draw(w.T, "to")
		n.Spec.BGP = &api.NodeBGP{IPv4Address: api.Prefix{Prefix: netip.MustParsePrefix(at)}, IPv6Address: api.Prefix{Prefix: netip.MustParsePrefix("fd01::9/64")}}
	} else {
		n.Spec.IPv4VXLANTunnelAddr = netip.Addr{}
	}
	w.m.Nodes = put(w.m.Nodes, i, &n)
}

func (w *world) noNode() {
	if len(w.m.Nodes) > 0 {
		i := w.index(len(w.m.Nodes))
		w.m.Nodes = slices.Delete(slices.Clone(w.m.Nodes), i, i+1)
	}
}

func (w *world) pool() {
	p := *w.m.Pools[0]
	modes := []api.EncapMode{api.Never, api.Always, api.CrossSubnet}
	p.Spec.VXLANMode, p.Spec.IPIPMode = rapid.SampledFrom(modes).Draw(w.T, "VXLAN"), api.Never
	if p.Spec.VXLANMode == api.Never {
		p.Spec.IPIPMode = rapid.SampledFrom(modes).Draw(w.T, "IP-in-IP")
	}
	w.m.Pools = []*api.IPPool{&p}
}

// endpoint moves a local pod to an address that may be in another node's block.
func (w *world) endpoint() {
	i := w.index(len(w.m.Endpoints))
	e := *w.m.Endpoints[i]
	own := nth(netip.MustParseAddr("10.0.0.0"), w.index(256))
	e.Spec.IPNetworks = []api.Prefix{api.HostPrefix(own)}
	e.Spec.IPNATs = []api.IPNAT{{ExternalIP: nth(netip.MustParseAddr("10.0.0.0"), w.index(256)).String(), InternalIP: own.String()}}
	e.Spec.MAC = rapid.SampledFrom([]string{"", "nonsense", "02:00:00:00:00:01"}).Draw(w.T, "MAC")
	w.m.Endpoints = put(w.m.Endpoints, i, &e)
}

func (w *world) device() {
	names := slices.Sorted(maps.Keys(w.h.Links))
	name := rapid.SampledFrom(names).Draw(w.T, "device")
	l := w.h.Links[name]
	l.Up = !l.Up
	w.h.Links = maps.Clone(w.h.Links)
	w.h.Links[name] = l
}

func (w *world) setting() {
	switch rapid.IntRange(0, 5).Draw(w.T, "setting") {
	case 0:
		w.s.Keep = Modes{VXLAN: !w.s.Keep.VXLAN}
	case 1:
		w.s.Ours.Protocol = 80 + 81 - max(w.s.Ours.Protocol, 80)
	case 2:
		w.s.WireGuard.Enabled, w.s.WireGuard.Hosts = !w.s.WireGuard.Enabled, rapid.Bool().Draw(w.T, "hosts")
		w.s.WireGuard.Onset = rapid.SampledFrom([]Onset{Strict, Partial, Silent}).Draw(w.T, "onset")
	case 3:
		w.s.FloatingIPs = !w.s.FloatingIPs
	case 4:
		w.s.Keep.WireGuard = !w.s.Keep.WireGuard
	default:
		w.s.IPv6 = !w.s.IPv6
	}
}
