package ipam_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

// A pool is deleted and made anew with another block size while its addresses are in use: that is how an operator changes it.

// wantAudit fails the test if the audit finds anything but these kinds.
func (w *world) wantAudit(but ...ipam.FindingKind) {
	w.t.Helper()
	v, err := ipam.LoadView(w.ctx(), w.c)
	if err != nil {
		w.t.Fatal(err)
	}
	allowed := map[ipam.FindingKind]bool{}
	for _, k := range but {
		allowed[k] = true
	}
	for _, f := range ipam.Audit(v) {
		if !allowed[f.Kind] {
			w.t.Error(f)
		}
	}
}

func TestTunnelAddressStaysWhenThePoolIsMadeAnewWithOtherBlocks(t *testing.T) {
	for _, bits := range []string{"28", "31"} {
		t.Run(bits, func(t *testing.T) {
			w := newWorld(t)
			w.pool("pool", `"cidr":"10.0.0.0/26","blockSize":30,"vxlanMode":"Always"`)
			a, _ := w.ensure()
			w.pool("pool", `"cidr":"10.0.0.0/26","blockSize":`+bits+`,"vxlanMode":"Always"`)
			if b, changed := w.ensure(); b != a || changed != nil {
				t.Errorf("%v became %v, changed %v", a, b, changed)
			}
			w.tunnelIs(a)
			w.wantAudit()
		})
	}
}

func TestNamelessTunnelAddressOfABlockOfAnotherSizeBecomesTheNodes(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/26","blockSize":28,"vxlanMode":"Always"`)
	w.put(blockKey, strings.Replace(blockJSON(`"host:node-1"`), `{"handle_id":"other"}`, `{"secondary":{}}`, 1))
	w.put(affinityKey, confirmed)
	w.put(nodeKey, `{"metadata":{"name":"node-1"},"spec":{"ipv4VXLANTunnelAddr":"10.0.0.0"}}`)
	if a, _ := w.ensure(); a.String() != "10.0.0.0" {
		t.Errorf("address %v", a)
	}
	w.tunnelIs(netip.MustParseAddr("10.0.0.0"))
	w.wantAudit()
}

func TestClaimToABlockOfAnotherSizeMakesNone(t *testing.T) {
	const large = "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.0-28"
	w := newWorld(t)
	w.node("node-2", "")
	w.pool("pool", `"cidr":"10.0.0.0/28","blockSize":30,"vxlanMode":"Always"`)
	w.put(large, confirmed) // of the pool as it was, and its block is gone
	for _, handle := range []string{"net.a", "net.b", "net.c", "net.d", "net.e"} {
		if _, err := w.assign("node-2", askFor("node-2", handle)); err != nil {
			t.Fatal(err)
		}
	}
	a := w.mustAssign("net.own")
	if a.Bits() != 30 {
		t.Errorf("%v is of a block of the old size", a)
	}
	if w.get(large) != "" {
		t.Error("the claim is left")
	}
	w.wantAudit(ipam.NoEndpoint)
}

func TestClaimsOfSizesThatOverlapMakeNoBlocksThatDo(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/28","blockSize":29,"vxlanMode":"Always"`)
	w.put("/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.0-29", confirmed) // without a block, of the right size, and taken
	w.put("/calico/ipam/v2/assignment/ipv4/block/10.0.0.4-30", strings.NewReplacer("10.0.0.0/30", "10.0.0.4/30").Replace(blockJSON(`"host:node-2"`)))
	w.put("/calico/ipam/v2/host/node-2/ipv4/block/10.0.0.4-30", confirmed)
	w.put(api.HandleKey("other"), `{"block":{"10.0.0.4/30":1},"deleted":false}`)
	w.mustAssign("net.own")
	w.wantAudit(ipam.NoEndpoint)
}

func TestSmallerBlocksOfBeforeAreUsedUpAndStandInNoWay(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/27","blockSize":30,"vxlanMode":"Always"`)
	first := w.mustAssign("net.a")
	w.pool("pool", `"cidr":"10.0.0.0/27","blockSize":28,"vxlanMode":"Always"`)
	for _, handle := range []string{"net.b", "net.c", "net.d"} {
		if a := w.mustAssign(handle); a.Masked() != first.Masked() {
			t.Errorf("%v is not of the block that there is", a)
		}
	}
	if a := w.mustAssign("net.e"); a.Bits() != 28 || a.Overlaps(first.Masked()) {
		t.Errorf("%v", a)
	}
	w.wantAudit(ipam.NoEndpoint)
	if _, err := w.assign("node-1", named("net.f", first.Addr().String())); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("an address that is held: %v", err)
	}
}
