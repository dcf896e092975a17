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
	if c, _ := w.ensure(); c != b {
		t.Errorf("address %v, want %v to stay for the pods that there are, though no pool selects the node", c, b)
	}
	w.pool("next", `"cidr":"10.9.0.0/30","blockSize":30,"vxlanMode":"Always","disabled":true`)
	if c, _ := w.ensure(); c != b {
		t.Errorf("address %v, want %v to stay for the pods that there are, though no pool is enabled", c, b)
	}
	w.pool("next", `"cidr":"10.9.0.0/30","blockSize":30`)
	if c, _ := w.ensure(); c.IsValid() {
		t.Errorf("address %v though no pool has the mode", c)
	}
	w.tunnelIs(netip.Addr{})
	if _, changed := w.ensure(); changed != nil {
		t.Errorf("nothing to do wrote %v", changed)
	}
}

func TestTunnelAddressLingersWhenAsked(t *testing.T) {
	w := newWorld(t)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{}}`)
	a, _ := w.ensure()
	w.pool("pool", ipipOn)
	have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now, ipam.TunnelVXLAN)
	if err != nil || len(have) != 2 || have[0].Kind != ipam.TunnelIPIP || have[1].Addr != a {
		t.Fatalf("%v, %v, want an IP-in-IP address and %v", have, err, a)
	}
	w.tunnelIs(a)
	w.pool("pool", ipipOn+`,"disabled":true`)
	if have, _, err = ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now, ipam.TunnelVXLAN); err != nil || len(have) != 2 {
		t.Fatalf("in a disabled pool: %v, %v, want both", have, err)
	}
	w.tunnelIs(a)
	w.pool("pool", ipipOn)
	if have, _, err = ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now); err != nil || len(have) != 1 {
		t.Fatalf("%v, %v, want the IP-in-IP address alone", have, err)
	}
	w.tunnelIs(netip.Addr{})
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

const ipipOn = `"cidr":"10.0.0.0/30","blockSize":30,"ipipMode":"Always"`

func TestEveryKindOfTunnelGetsItsAddressInOneTransaction(t *testing.T) {
	w := newWorld(t)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{"bgp":{"ipv4Address":"172.30.0.1/16","unknown":1}}}`)
	w.pool("pool", ipipOn)
	w.pool("vx", `"cidr":"10.1.0.0/30","blockSize":30,"vxlanMode":"CrossSubnet"`)
	w.pool("vx6", `"cidr":"fd00::/120","blockSize":122,"vxlanMode":"Always"`)
	rev := w.revision()
	have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now)
	if err != nil || w.revision() != rev+1 {
		t.Fatalf("%v, %d revisions, want 1", err, w.revision()-rev)
	}
	n, err := store.Get[api.Node](w.ctx(), w.c, nodeKey)
	if err != nil || n.Value.Spec.BGP.IPv4IPIPTunnelAddr.String() != "10.0.0.0" || len(have) != 3 || !strings.Contains(w.get(nodeKey), `"unknown":1`) {
		t.Errorf("%v; node %s, %v", have, w.get(nodeKey), err)
	}
	for handle, attr := range map[string]string{"ipip-tunnel-addr-node-1": "ipipTunnelAddress", "vxlan-tunnel-addr-node-1": "vxlanTunnelAddress", "vxlan-v6-tunnel-addr-node-1": "vxlanV6TunnelAddress"} {
		if w.get(api.HandleKey(handle)) == "" {
			t.Errorf("no handle %s for %s", handle, attr)
		}
	}
	if o, _ := block.OwnerOf(w.block(blockKey), netip.MustParseAddr("10.0.0.0")); o.Secondary["type"] != "ipipTunnelAddress" || o.Secondary["node"] != "node-1" {
		t.Errorf("owner %v", o)
	}
	if _, changed, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now); err != nil || changed != nil {
		t.Errorf("second time: changed %v, %v", changed, err)
	}
}

func TestIPIPTunnelAddressGoesWithoutATrace(t *testing.T) {
	w := newWorld(t)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{}}`)
	w.pool("pool", ipipOn)
	if have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now); err != nil || len(have) != 1 || have[0].Kind != "IP-in-IP" {
		t.Fatalf("%v, %v", have, err)
	}
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30`)
	if have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now); err != nil || have != nil {
		t.Fatalf("%v, %v", have, err)
	}
	if got := w.get(nodeKey); strings.Contains(got, "bgp") || w.get("/calico/ipam/v2/handle/ipip-tunnel-addr-node-1") != "" {
		t.Errorf("node %s", got)
	}
}

func TestTunnelThatIsRefusedDoesNotStopTheOthers(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.pool("pool", `"cidr":"10.0.0.0/32","blockSize":32,"ipipMode":"Always"`)
	w.pool("vx", `"cidr":"10.1.0.0/30","blockSize":30,"vxlanMode":"Always"`)
	if _, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-2", time.Now); err != nil {
		t.Fatal(err)
	}
	have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now)
	if !errors.Is(err, ipam.ErrNoAddress) || !strings.Contains(err.Error(), "IP-in-IP") || len(have) != 1 || have[0].Kind != "VXLAN" {
		t.Errorf("%v, %v", have, err)
	}
	w.tunnelIs(have[0].Addr)
}

func TestTunnelAddressMayBeBorrowed(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.mustAssign("pod")
	have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-2", time.Now)
	if err != nil || len(have) != 1 || have[0].Addr.String() != "10.0.0.1" {
		t.Fatalf("%v, %v", have, err)
	}
	if _, changed, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-2", time.Now); err != nil || changed != nil {
		t.Errorf("the borrowed address was not kept: %v, %v", changed, err)
	}
}

// TestTunnelsByTheTable goes through the rows of the reference: what the Node says against who holds the address.
func TestTunnelsByTheTable(t *testing.T) {
	const block = `{"cidr":"10.0.0.0/30","affinity":"host:node-1","allocations":[null,0,null,null],"unallocated":[0,2,3],"attributes":[%s],"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}`
	const mine = `{"handle_id":"ipip-tunnel-addr-node-1","secondary":{"node":"node-1","type":"ipipTunnelAddress"}}`
	const handle = "/calico/ipam/v2/handle/ipip-tunnel-addr-node-1"
	const node = `{"metadata":{"name":"node-1"},"spec":{"bgp":{"ipv4Address":"172.30.0.1/16","ipv4IPIPTunnelAddr":%q}}}`
	for _, c := range []struct {
		name, pool, has, holder, handle, want string
	}{
		{"no pools: cleared", `"cidr":"10.0.0.0/30","blockSize":30`, "10.0.0.1", mine, `{"block":{"10.0.0.0/30":1},"deleted":false}`, ""},
		{"field empty: assigned anew", ipipOn, "", mine, `{"block":{"10.0.0.0/30":1},"deleted":false}`, "10.0.0.0"},
		{"ours and in a pool: kept", ipipOn, "10.0.0.1", mine, `{"block":{"10.0.0.0/30":1},"deleted":false}`, "10.0.0.1"},
		{"ours by type and node: kept", ipipOn, "10.0.0.1", `{"handle_id":"old","secondary":{"node":"node-1","type":"ipipTunnelAddress"}}`, "", "10.0.0.1"},
		{"ours in a pool that does not serve", `"cidr":"10.0.1.0/30","blockSize":30,"ipipMode":"Always"`, "10.0.0.1", mine, `{"block":{"10.0.0.0/30":1},"deleted":false}`, "10.0.1.0"},
		{"somebody else's", ipipOn, "10.0.0.1", `{"handle_id":"net.pod"}`, "", "10.0.0.0"},
		{"not allocated", ipipOn, "10.0.0.3", `{"handle_id":"net.pod"}`, "", "10.0.0.0"},
		{"nameless: owned", ipipOn, "10.0.0.1", `{}`, "", "10.0.0.1"},
		{"nameless beside a handle: assigned anew", ipipOn, "10.0.0.1", `{}`, `{"block":{},"deleted":false}`, "10.0.0.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.pool("pool", c.pool)
			w.put(affinityKey, confirmed)
			w.put(blockKey, fmt.Sprintf(block, c.holder))
			w.put(nodeKey, strings.Replace(fmt.Sprintf(node, c.has), `,"ipv4IPIPTunnelAddr":""`, "", 1))
			if c.handle != "" {
				w.put(handle, c.handle)
			}
			have, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if len(have) > 0 {
				got = have[0].Addr.String()
			}
			if stored := w.get(nodeKey); got != c.want || strings.Contains(stored, "ipv4IPIPTunnelAddr") != (c.want != "") || !strings.Contains(stored, "172.30.0.1/16") {
				t.Errorf("address %q, want %q; node %s", got, c.want, stored)
			}
		})
	}
}

// TestWireGuardHasItsAddressAndKeyInOneTransaction goes through the life of encryption on a node: on with a key that is not known yet, the key, another
// key, off for a while, off.
func TestWireGuardHasItsAddressAndKeyInOneTransaction(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/28","blockSize":30`)
	w.pool("pool6", `"cidr":"fd00::/120","blockSize":122`)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{},"status":{"wireguardPublicKeyV6":"of-before","podCIDRs":["10.9.0.0/24"]}}`)
	node := func() *api.Node {
		n, err := store.Get[api.Node](w.ctx(), w.c, nodeKey)
		if err != nil {
			t.Fatal(err)
		}
		return n.Value
	}
	ensure := func(wish ipam.Wish) (addrs []ipam.TunnelAddr, writes int) {
		t.Helper()
		have, changed, err := ipam.EnsureWish(w.ctx(), w.c, "node-1", time.Now, wish)
		if err != nil {
			t.Fatal(err)
		}
		return have, len(changed)
	}
	on := func(key, key6 string) ipam.Wish {
		return ipam.Wish{Keys: map[string]string{ipam.TunnelWireGuard: key, ipam.TunnelWireGuard6: key6}}
	}
	have, _ := ensure(on("", ""))
	if len(have) != 2 || have[0].Kind != ipam.TunnelWireGuard || have[1].Kind != ipam.TunnelWireGuard6 || node().Status.WireguardPublicKeyV6 != "of-before" {
		t.Fatalf("with keys that are not known: %v and %+v, want addresses of both families and the key of before", have, node().Status)
	}
	a := have[0].Addr
	if got := node().Spec.Wireguard; got == nil || got.InterfaceIPv4Address != a || got.InterfaceIPv6Address != have[1].Addr {
		t.Errorf("the Node says %+v, want %v", got, have)
	}
	b, err := store.Get[api.Block](w.ctx(), w.c, api.BlockKey(netip.PrefixFrom(a, 30).Masked()))
	if err != nil {
		t.Fatal(err)
	}
	if o, held := block.OwnerOf(b.Value, a); !held || o.Secondary[api.AttrType] != "wireguardTunnelAddress" || o.HandleID == nil || *o.HandleID != "wireguard-tunnel-addr-node-1" {
		t.Errorf("the address is held by %+v", o)
	}
	ensure(on("one", "six"))
	ensure(on("two", "six"))
	if s := node().Status; s.WireguardPublicKey != "two" || s.WireguardPublicKeyV6 != "six" || len(s.PodCIDRs) != 1 {
		t.Errorf("with keys the Node says %+v", s)
	}
	if _, writes := ensure(on("two", "")); writes > 0 {
		t.Errorf("nothing to do wrote %d keys", writes)
	}
	have, _ = ensure(ipam.Wish{Keep: []string{ipam.TunnelWireGuard, ipam.TunnelWireGuard6}})
	if s := node().Status; len(have) != 2 || s.WireguardPublicKey != "" || s.WireguardPublicKeyV6 != "" {
		t.Errorf("off for a while: %v, %+v, want the addresses without keys", have, s)
	}
	have, _ = ensure(ipam.Wish{})
	if len(have) > 0 || node().Spec.Wireguard != nil || w.get(api.HandleKey(api.WireguardHandle("node-1", false))) != "" {
		t.Errorf("off: %v, %+v", have, node().Spec)
	}
}
