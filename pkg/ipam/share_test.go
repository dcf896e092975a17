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

const (
	strict      = `{"strict_affinity":true,"auto_allocate_blocks":true}`
	affinityOf2 = "/calico/ipam/v2/host/node-2/ipv4/block/10.0.0.0-30"
	confirmed   = `{"state":"confirmed","deleted":false}`
)

func (w *world) node(name, labels string) {
	w.put("/calico/resources/v3/projectcalico.org/nodes/"+name, fmt.Sprintf(`{"metadata":{"name":%q,"labels":{%s}},"spec":{}}`, name, labels))
}

func (w *world) delete(key string) {
	w.t.Helper()
	if _, err := w.e.Etcd().Delete(w.ctx(), key); err != nil {
		w.t.Fatal(err)
	}
}

func askFor(node, handle string) ipam.Request {
	r := ask(handle)
	r.Attrs = map[string]string{api.AttrNode: node}
	return r
}

// emptyBlock is 10.0.0.0/30, claimed at that time.
func emptyBlock(affinity string, claimed time.Time) string {
	return `{"cidr":"10.0.0.0/30","affinity":` + affinity + `,"affinity_claim_time":"` + claimed.UTC().Format(time.RFC3339) +
		`","allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":[],"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}`
}

func TestAddressIsBorrowedWhereNoBlockCanBeClaimed(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.mustAssign("first") // claims the only block
	a, err := w.assign("node-2", askFor("node-2", "guest"))
	if err != nil || a.String() != "10.0.0.1/30" {
		t.Fatalf("got %v, %v", a, err)
	}
	b := w.block(blockKey)
	if host, _ := b.Host(); host != "node-1" || w.get(affinityOf2) != "" {
		t.Errorf("the block belongs to %q, node-2's affinity is %q", host, w.get(affinityOf2))
	}
	if o, _ := block.OwnerOf(b, a.Addr()); o.Secondary["node"] != "node-2" || *o.HandleID != "guest" {
		t.Errorf("the address belongs to %v", o)
	}
	w.release("guest")
	if got := block.Free(w.block(blockKey)); got != 3 {
		t.Errorf("%d free after the release, want 3", got)
	}
}

func TestStrictAffinityBorrowsNothing(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.put(api.IPAMConfigKey, strict)
	w.mustAssign("first")
	a, err := w.assign("node-2", askFor("node-2", "guest"))
	if !errors.Is(err, ipam.ErrNoAddress) || !strings.Contains(err.Error(), "No more free affine blocks and strict affinity enabled") {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestStrictAffinityIsComparedAtTheCommit(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.mustAssign("first")
	p, _ := w.plan("node-2", "guest")
	if _, err := p.Assign(w.ctx(), askFor("node-2", "guest")); err != nil {
		t.Fatal(err)
	}
	w.put(api.IPAMConfigKey, strict)
	if _, err := w.c.Commit(w.ctx(), p.Txn()); !errors.Is(err, store.ErrConflict) {
		t.Errorf("commit of a loan that is forbidden by now: %v", err)
	}
}

func TestBlocksOfNobodyAreBorrowedFromAndVirtualOnesNot(t *testing.T) {
	for affinity, want := range map[string]string{`null`: "10.0.0.1/30", `"virtual:load-balancer"`: "invalid Prefix"} {
		w := newWorld(t)
		w.put(blockKey, blockJSON(affinity))
		a, err := w.assign("node-1", ask("mine"))
		if a.String() != want || (err == nil) != a.IsValid() {
			t.Errorf("affinity %s: got %v, %v", affinity, a, err)
		}
		if b := w.block(blockKey); w.get(affinityKey) != "" || a.IsValid() && !b.Unowned() {
			t.Errorf("affinity %s: the block was claimed", affinity)
		}
	}
}

func TestFullPoolIsRefusedByName(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	for i := range 4 {
		w.mustAssign(fmt.Sprint("h", i))
	}
	_, err := w.assign("node-2", askFor("node-2", "guest"))
	var r *ipam.Refusal
	if !errors.As(err, &r) || !strings.HasPrefix(r.Msg, "No IPs available in pools: [10.0.0.0/30] (1 blocks") || r.Remedy == "" {
		t.Errorf("refused by %v", err)
	}
}

func TestLimitOfBlocksAbortsWithoutBorrowing(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.pool("pool", `"cidr":"10.0.0.0/24","blockSize":32`)
	w.mustAssign("first")
	r := askFor("node-2", "guest")
	r.MaxBlocks = 1
	if _, err := w.assign("node-2", r); err != nil {
		t.Fatal(err)
	}
	r.Handle = "second"
	if a, err := w.assign("node-2", r); !errors.Is(err, ipam.ErrNoAddress) || !strings.Contains(err.Error(), "cannot allocate new block due to per host block limit") {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestSmallerOfTwoLimitsHolds(t *testing.T) {
	for _, c := range []struct{ config, request, want int }{{2, 3, 2}, {3, 2, 2}, {0, 2, 2}, {2, 0, 2}} {
		w := newWorld(t)
		w.pool("pool", `"cidr":"10.0.0.0/24","blockSize":32`)
		w.put(api.IPAMConfigKey, fmt.Sprintf(`{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":%d}`, c.config))
		n := 0
		for ; n < 5; n++ {
			r := ask(fmt.Sprint("h", n))
			r.MaxBlocks = c.request
			if _, err := w.assign("node-1", r); err != nil {
				break
			}
		}
		if n != c.want {
			t.Errorf("configuration %d, request %d: %d blocks, want %d", c.config, c.request, n, c.want)
		}
	}
}

func TestWithoutAutoAllocateBlocksOnlyLoansAreLeft(t *testing.T) {
	w := newWorld(t)
	w.put(api.IPAMConfigKey, `{"strict_affinity":true}`)
	if _, err := w.assign("node-1", ask("h")); err == nil || !strings.Contains(err.Error(), "failed to find or claim a block") {
		t.Errorf("nothing to claim, nothing to borrow: %v", err)
	}
	w.put(api.IPAMConfigKey, `{}`)
	w.put(blockKey, blockJSON(`"host:node-2"`))
	if a, err := w.assign("node-1", ask("h")); err != nil || a.Addr().String() != "10.0.0.1" {
		t.Errorf("got %v, %v; want a loan", a, err)
	}
}

func TestConfigurationsThatContradictThemselvesAreRefused(t *testing.T) {
	for _, c := range []struct {
		config api.IPAMConfig
		says   string
	}{
		{api.IPAMConfig{}, "Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time"},
		{api.IPAMConfig{AutoAllocateBlocks: true, MaxBlocksPerHost: 3}, "MaxBlocksPerHost requires StrictAffinity to be enabled"},
		{api.IPAMConfig{StrictAffinity: true, MaxBlocksPerHost: -1}, "negative"},
		{api.IPAMConfig{StrictAffinity: true}, ""},
		{api.DefaultIPAMConfig(), ""},
		{api.IPAMConfig{StrictAffinity: true, AutoAllocateBlocks: true, MaxBlocksPerHost: 3}, ""},
	} {
		err := ipam.CheckConfig(c.config)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %q", c.config, err, c.says)
		}
	}
}

func TestEmptyBlocksOfOthersAreTakenOver(t *testing.T) {
	old, young := time.Now().Add(-2*time.Minute), time.Now()
	const windows = `{"cidr":"10.0.0.0/30","affinity":"host:node-2","allocations":[0,null,null,0],"unallocated":[1,2],"attributes":[{"handle_id":"Windows-Reserved-IPAM-handle"}],"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}`
	for _, c := range []struct {
		name, block string
		taken       bool
	}{
		{"claimed a while ago", emptyBlock(`"host:node-2"`, old), true},
		{"claimed just now", emptyBlock(`"host:node-2"`, young), false},
		{"nobody's", emptyBlock(`null`, young), true},
		{"a virtual owner's", emptyBlock(`"virtual:load-balancer"`, old), false},
		{"only what Windows reserves", windows, true},
		{"in use", blockJSON(`"host:node-2"`), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.put(api.IPAMConfigKey, strict)
			w.put(blockKey, c.block)
			w.put(affinityOf2, confirmed)
			a, err := w.assign("node-1", ask("mine"))
			if (err == nil) != c.taken {
				t.Fatalf("got %v, %v", a, err)
			}
			if !c.taken {
				if w.get(blockKey) != c.block || w.get(affinityOf2) != confirmed {
					t.Errorf("the refused request changed something: %s, %s", w.get(blockKey), w.get(affinityOf2))
				}
				return
			}
			b := w.block(blockKey)
			if host, _ := b.Host(); host != "node-1" || w.get(affinityKey) != confirmed || block.Free(b) != 3 || b.ClaimTime == nil {
				t.Errorf("block %s, our affinity %q", w.get(blockKey), w.get(affinityKey))
			}
			if got := w.get(affinityOf2); strings.Contains(c.block, "host:node-2") && got != "" {
				t.Errorf("node-2 still has the affinity %s", got)
			}
		})
	}
}

func TestTakeoverConflictsWithWhoUsesTheBlock(t *testing.T) {
	for _, who := range []string{"the other node", "the new one"} {
		w := newWorld(t)
		w.node("node-2", "")
		w.put(blockKey, emptyBlock(`"host:node-2"`, time.Now().Add(-time.Hour)))
		w.put(affinityOf2, `{`) // which nobody can read
		taker, _ := w.plan("node-1", "mine")
		if _, err := taker.Assign(w.ctx(), ask("mine")); err != nil {
			t.Fatal(err)
		}
		user, _ := w.plan("node-2", "theirs")
		if _, err := user.Assign(w.ctx(), askFor("node-2", "theirs")); err != nil {
			t.Fatal(err)
		}
		first, second := user, taker
		if who == "the new one" {
			first, second = taker, user
		}
		if _, err := w.c.Commit(w.ctx(), first.Txn()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.c.Commit(w.ctx(), second.Txn()); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s came first: the second commit says %v", who, err)
		}
	}
}

func TestReservedAddressesAreLeftOut(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/28","blockSize":30`)
	w.reserve("r1", `"10.0.0.0/29","10.0.0.8"`)
	w.reserve("r2", `"10.0.0.10/31","fd00::/64"`)
	seen := map[string]bool{}
	for i := range 5 {
		seen[w.mustAssign(fmt.Sprint("h", i)).Addr().String()] = true
	}
	for _, want := range []string{"10.0.0.9", "10.0.0.12", "10.0.0.13", "10.0.0.14", "10.0.0.15"} {
		if !seen[want] {
			t.Errorf("%s was not assigned, but %v", want, seen)
		}
	}
	if got := len(w.blocks()); got != 2 {
		t.Errorf("%d blocks, want two: those that are wholly reserved are not claimed", got)
	}
	if _, err := w.assign("node-1", ask("more")); !errors.Is(err, ipam.ErrNoAddress) || !strings.Contains(err.Error(), "IPReservations") {
		t.Errorf("only reserved addresses are left: %v", err)
	}
	if a, err := w.assign("node-1", named("named", "10.0.0.10")); err != nil {
		t.Errorf("by name: %v, %v", a, err)
	}
}

func (w *world) reserve(name, cidrs string) {
	w.put("/calico/resources/v3/projectcalico.org/ipreservations/"+name, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"reservedCIDRs":[%s]}}`, name, cidrs))
}

func (w *world) blocks() []store.Entry[api.Block] {
	w.t.Helper()
	out, _, err := store.List[api.Block](w.ctx(), w.c, api.BlocksPrefix(false))
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func named(handle, addr string) ipam.Request {
	r := ask(handle)
	r.Addr = netip.MustParseAddr(addr)
	return r
}

func TestReservedAddressesAreNeitherBorrowedNorTakenOver(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.put(blockKey, emptyBlock(`"host:node-2"`, time.Now().Add(-time.Hour)))
	w.reserve("all", `"10.0.0.0/30"`)
	if a, err := w.assign("node-1", ask("mine")); !errors.Is(err, ipam.ErrNoAddress) {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestBrokenReservationsSpoilOnlyThemselves(t *testing.T) {
	w := newWorld(t)
	w.reserve("half", `"nonsense","10.0.0.0/31"`)
	w.put("/calico/resources/v3/projectcalico.org/ipreservations/whole", `{"spec":7}`)
	if a := w.mustAssign("a"); a.Addr().String() != "10.0.0.2" {
		t.Errorf("address %v", a)
	}
	w.mustAssign("b")
	_, err := w.assign("node-1", ask("c"))
	if err == nil || !strings.Contains(err.Error(), `IPReservation(half): spec.reservedCIDRs: "nonsense"`) || !strings.Contains(err.Error(), "ipreservations/whole") {
		t.Errorf("the refusal does not name what could not be read: %v", err)
	}
}

// TestRangeInUseWithoutABlockIsNotClaimed is about a block that somebody deleted from under its pods.
func TestRangeInUseWithoutABlockIsNotClaimed(t *testing.T) {
	const endpoint = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-web-eth0"
	for _, user := range []struct{ key, value string }{
		{endpoint, `{"metadata":{"name":"node--1-k8s-web-eth0","namespace":"default"},"spec":{"ipNetworks":["10.0.0.2/32"]}}`},
		{"/calico/resources/v3/projectcalico.org/nodes/node-3", `{"metadata":{"name":"node-3"},"spec":{"ipv4VXLANTunnelAddr":"10.0.0.2"}}`},
		{"/calico/resources/v3/projectcalico.org/nodes/node-3", `{"metadata":{"name":"node-3"},"spec":{"bgp":{"ipv4IPIPTunnelAddr":"10.0.0.2"}}}`},
	} {
		for _, affinity := range []string{"", confirmed} {
			w := newWorld(t)
			w.put(user.key, user.value)
			if affinity != "" {
				w.put(affinityKey, affinity)
			}
			_, err := w.assign("node-1", ask("mine"))
			if !errors.Is(err, ipam.ErrNoAddress) || !strings.Contains(err.Error(), "10.0.0.2 by "+user.key) {
				t.Errorf("%s, affinity %q: %v", user.key, affinity, err)
			}
			if _, err := w.assign("node-1", named("mine", "10.0.0.1")); !errors.Is(err, ipam.ErrTaken) || !strings.Contains(err.Error(), user.key) {
				t.Errorf("%s, affinity %q, by name: %v", user.key, affinity, err)
			}
			w.pool("spare", `"cidr":"10.7.0.0/30","blockSize":30`)
			if a := w.mustAssign("mine"); a.Addr().String() != "10.7.0.0" {
				t.Errorf("%s: address %v", user.key, a)
			}
			w.delete(user.key)
			w.pool("spare", `"cidr":"10.7.0.0/30","blockSize":30,"disabled":true`)
			if a := w.mustAssign("next"); a.Addr().String() != "10.0.0.0" {
				t.Errorf("%s: address %v once nobody uses the range", user.key, a)
			}
		}
	}
}

func TestAddressesComeBackLast(t *testing.T) {
	w := newWorld(t)
	for i := range 4 {
		w.mustAssign(fmt.Sprint("h", i))
	}
	for _, i := range []int{2, 0, 3} {
		w.release(fmt.Sprint("h", i))
	}
	for i, want := range []string{"10.0.0.2", "10.0.0.0", "10.0.0.3"} {
		if a := w.mustAssign(fmt.Sprint("again", i)); a.Addr().String() != want {
			t.Errorf("got %v, want %s", a, want)
		}
	}
}
