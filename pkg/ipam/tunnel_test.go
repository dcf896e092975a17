package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

const nodeKey = "/calico/resources/v3/projectcalico.org/nodes/node-1"

// ensure settles the node's tunnels and returns the VXLAN address.
func (w *world) ensure() (a netip.Addr, changed []store.KV) {
	w.t.Helper()
	have, changed, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range have {
		if h.Kind == "VXLAN" {
			a = h.Addr
		}
	}
	return a, changed
}

// tunnelIs fails unless the node, the block and the handle agree that this is the tunnel's address; the zero Addr: there is none.
func (w *world) tunnelIs(a netip.Addr) {
	w.t.Helper()
	n, err := store.Get[api.Node](w.ctx(), w.c, nodeKey)
	if err != nil {
		w.t.Fatal(err)
	}
	if got := n.Value.Spec.IPv4VXLANTunnelAddr; got != a {
		w.t.Errorf("the node says %v, want %v", got, a)
	}
	blocks, _, err := store.List[api.Block](w.ctx(), w.c, api.BlocksPrefix(false))
	if err != nil {
		w.t.Fatal(err)
	}
	handle := api.VXLANHandle("node-1", false)
	var held []netip.Addr
	for _, b := range blocks {
		held = append(held, block.Owned(b.Value, handle)...)
	}
	want := 0
	if a.IsValid() {
		want = 1
	}
	if len(held) != want || want == 1 && held[0] != a {
		w.t.Errorf("blocks hold %v for the tunnel, want %v", held, a)
	}
	if got := w.get(api.HandleKey(handle)) != ""; got != a.IsValid() {
		w.t.Errorf("handle exists: %v", got)
	}
}

func TestTunnelAddressIsAssignedOnceAndKept(t *testing.T) {
	w := newWorld(t)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{"unknown":1}}`)
	a, changed := w.ensure()
	if a.String() != "10.0.0.0" || len(changed) == 0 {
		t.Errorf("address %v, changed %v", a, changed)
	}
	w.tunnelIs(a)
	if got := w.get(nodeKey); !strings.Contains(got, `"unknown":1`) {
		t.Errorf("the node lost a field: %s", got)
	}
	if o, _ := block.OwnerOf(w.block(blockKey), a); o.Secondary["type"] != "vxlanTunnelAddress" || o.Secondary["node"] != "node-1" {
		t.Errorf("owner %v", o)
	}
	if b, changed := w.ensure(); b != a || changed != nil {
		t.Errorf("second time: %v, changed %v", b, changed)
	}
}

func TestTunnelAddressFollowsThePools(t *testing.T) {
	w := newWorld(t)
	a, _ := w.ensure()
	w.pool("next", `"cidr":"10.9.0.0/30","blockSize":30,"vxlanMode":"CrossSubnet","assignmentMode":"Manual"`)
	if b, _ := w.ensure(); b != a {
		t.Errorf("address %v changed to %v though its pool still serves", a, b)
	}
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"vxlanMode":"Always","disabled":true`)
	b, _ := w.ensure()
	if b.String() != "10.9.0.0" {
		t.Errorf("address %v, want one of the pool that is left", b)
	}
	w.tunnelIs(b)
	w.pool("next", `"cidr":"10.9.0.0/30","blockSize":30,"vxlanMode":"Always","nodeSelector":"zone == \"b\""`)
	if c, _ := w.ensure(); c.IsValid() {
		t.Errorf("address %v though no pool selects the node", c)
	}
	w.tunnelIs(netip.Addr{})
	if _, changed := w.ensure(); changed != nil {
		t.Errorf("nothing to do wrote %v", changed)
	}
}

func TestTunnelAddressOfSomebodyElseIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.mustAssign("pod")
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{"ipv4VXLANTunnelAddr":"10.0.0.0"}}`)
	a, _ := w.ensure()
	if a.String() != "10.0.0.1" {
		t.Errorf("address %v", a)
	}
	w.tunnelIs(a)
	if o, ok := block.OwnerOf(w.block(blockKey), netip.MustParseAddr("10.0.0.0")); !ok || *o.HandleID != "pod" {
		t.Errorf("the pod's address belongs to %v", o)
	}
}

func TestTunnelAddressThatNobodyHoldsIsReplaced(t *testing.T) {
	w := newWorld(t)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{"ipv4VXLANTunnelAddr":"10.0.0.3"}}`)
	a, _ := w.ensure()
	w.tunnelIs(a)
}

func TestEmptyFieldReleasesWhatTheHandleHolds(t *testing.T) {
	w := newWorld(t)
	a, _ := w.ensure()
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{}}`)
	b, _ := w.ensure()
	if a == b {
		t.Errorf("address %v again, want the next one", b)
	}
	w.tunnelIs(b)
}

func TestNamelessTunnelAddressBecomesTheNodes(t *testing.T) {
	w := newWorld(t)
	w.put(affinityKey, `{"state":"confirmed","deleted":false}`)
	w.put(blockKey, `{"cidr":"10.0.0.0/30","affinity":"host:node-1","allocations":[null,null,0,null],"unallocated":[0,1,3],"attributes":[{}],"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}`)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{"ipv4VXLANTunnelAddr":"10.0.0.2"}}`)
	a, _ := w.ensure()
	if a.String() != "10.0.0.2" {
		t.Errorf("address %v, want the one that it had", a)
	}
	w.tunnelIs(a)
	w.block(blockKey)
}

func TestTunnelOfIPv6IsApart(t *testing.T) {
	w := newWorld(t)
	w.pool("six", `"cidr":"fd00::/120","blockSize":122,"vxlanMode":"Always"`)
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30`)
	have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now)
	if err != nil || len(have) != 1 || !have[0].Addr.Is6() {
		t.Fatalf("%v, %v", have, err)
	}
	n, err := store.Get[api.Node](w.ctx(), w.c, nodeKey)
	if err != nil || n.Value.Spec.IPv6VXLANTunnelAddr != have[0].Addr || n.Value.Spec.IPv4VXLANTunnelAddr.IsValid() {
		t.Errorf("node %+v, %v", n.Value.Spec, err)
	}
	w.tunnelIs(netip.Addr{})
}

func TestTunnelNeedsTheNode(t *testing.T) {
	w := newWorld(t)
	if _, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-9", time.Now); !errors.Is(err, ipam.ErrNoNode) {
		t.Errorf("node that does not exist: %v", err)
	}
}

// TestTunnelAddressIsStoredAsCalicoStoresIt compares bytes: what is written for the first tunnel address of a node, and what is
// left when it is taken back.
func TestTunnelAddressIsStoredAsCalicoStoresIt(t *testing.T) {
	w := newWorld(t)
	const (
		handleKey = "/calico/ipam/v2/handle/vxlan-tunnel-addr-node-1"
		stored    = `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-1","uid":"u","creationTimestamp":"2026-11-20T16:22:10Z"},` +
			`"spec":{"bgp":{"ipv4Address":"172.30.0.1/16"}%s,"addresses":[{"address":"172.30.0.1/16","type":"CalicoNodeIP"}]},"status":{}}`
		header = `{"cidr":"10.0.0.0/30","affinity":"host:node-1","affinity_claim_time":"2026-11-20T16:44:44Z",`
	)
	now := func() time.Time { return time.Unix(1795193084, 244979214) }
	compare := func(want map[string]string) {
		t.Helper()
		for key, value := range want {
			if got := w.get(key); got != value {
				t.Errorf("%s\n got %s\nwant %s", key, got, value)
			}
		}
	}
	w.put(nodeKey, fmt.Sprintf(stored, ""))
	if _, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", now); err != nil {
		t.Fatal(err)
	}
	compare(map[string]string{
		nodeKey:     fmt.Sprintf(stored, `,"ipv4VXLANTunnelAddr":"10.0.0.0"`),
		affinityKey: `{"state":"confirmed","deleted":false}`,
		handleKey:   `{"block":{"10.0.0.0/30":1},"deleted":false}`,
		blockKey: header + `"allocations":[0,null,null,null],"unallocated":[1,2,3],` +
			`"attributes":[{"handle_id":"vxlan-tunnel-addr-node-1","secondary":{"node":"node-1","type":"vxlanTunnelAddress"}}],` +
			`"sequenceNumber":1795193084244979215,"sequenceNumberForAllocation":{"0":1795193084244979214},"deleted":false}`,
	})
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"vxlanMode":"Never"`)
	if _, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", now); err != nil {
		t.Fatal(err)
	}
	compare(map[string]string{
		nodeKey: fmt.Sprintf(stored, ""), affinityKey: `{"state":"confirmed","deleted":false}`, handleKey: "",
		blockKey: header + `"allocations":[null,null,null,null],"unallocated":[1,2,3,0],"attributes":[],` +
			`"sequenceNumber":1795193084244979216,"sequenceNumberForAllocation":{},"deleted":false}`,
	})
}
