package ipam

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
)

func firstVacant(pool *api.IPPool, taken occupied, node string, now time.Time) (netip.Prefix, bool) {
	return walkOf(pool, node, now).vacant(taken, nil)
}

func poolOfSize(cidr string, bits int) *api.IPPool {
	return &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix(cidr), BlockSize: bits}}
}

func TestNodesStartWhereCalicoStarts(t *testing.T) {
	got, ok := firstVacant(poolOfSize("10.244.0.0/16", 26), newOccupied(26), "hc-node1", time.Time{})
	if want := netip.MustParsePrefix("10.244.62.192/26"); !ok || got != want {
		t.Errorf("first block of hc-node1 is %v, recorded from Calico is %v", got, want)
	}
}

func TestWalkVisitsEveryRangeOnceAndWrapsAround(t *testing.T) {
	for _, pool := range []*api.IPPool{
		poolOfSize("10.0.0.0/26", 29), poolOfSize("255.255.255.0/24", 26), poolOfSize("10.0.0.4/30", 32),
		poolOfSize("fd00::/118", 122), poolOfSize("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 124), poolOfSize("10.0.0.0/26", 26),
	} {
		taken := newOccupied(pool.Spec.BlockSize)
		seen := map[netip.Prefix]bool{}
		for range 1 << (pool.Spec.BlockSize - pool.Spec.CIDR.Bits()) {
			got, ok := firstVacant(pool, taken, "node-1", time.Unix(1, 0))
			if !ok || seen[got] || got != got.Masked() || !pool.Spec.CIDR.Overlaps(got) || got.Bits() != pool.Spec.BlockSize {
				t.Fatalf("pool %v, after %d blocks: %v, %v", pool.Spec.CIDR, len(seen), got, ok)
			}
			seen[got] = true
			taken.add(got)
		}
		if got, ok := firstVacant(pool, taken, "node-1", time.Unix(1, 0)); ok {
			t.Errorf("full pool %v yields %v", pool.Spec.CIDR, got)
		}
	}
}

func TestHugePoolHasACandidate(t *testing.T) {
	got, ok := firstVacant(poolOfSize("fd00:10:244::/48", 122), newOccupied(122), "node-1", time.Time{})
	if !ok || !netip.MustParsePrefix("fd00:10:244::/48").Contains(got.Addr()) || got != got.Masked() {
		t.Errorf("candidate %v, %v", got, ok)
	}
}

func TestSingleAddressBlocksGoByTheClock(t *testing.T) {
	pool := poolOfSize("10.0.0.0/16", 32)
	a, _ := firstVacant(pool, newOccupied(32), "node-1", time.Unix(1, 0))
	b, _ := firstVacant(pool, newOccupied(32), "node-1", time.Unix(2, 0))
	if a == b {
		t.Errorf("both start at %v", a)
	}
}

// TestCandidatesNeverOverlapBlocksOfAnySize guards against blocks that a deleted pool with another block size has left.
func TestCandidatesNeverOverlapBlocksOfAnySize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := poolOfSize("10.0.0.0/24", rapid.IntRange(26, 30).Draw(t, "size"))
		taken := newOccupied(pool.Spec.BlockSize)
		var blocks []netip.Prefix
		for range rapid.IntRange(0, 8).Draw(t, "blocks") {
			a := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "addr")})
			b := netip.PrefixFrom(a, rapid.IntRange(25, 32).Draw(t, "bits")).Masked()
			blocks = append(blocks, b)
			taken.add(b)
		}
		got, ok := firstVacant(pool, taken, "node-1", time.Time{})
		if ok {
			for _, b := range blocks {
				if b.Overlaps(got) {
					t.Fatalf("%v overlaps %v", got, b)
				}
			}
			return
		}
		for at := netip.PrefixFrom(pool.Spec.CIDR.Addr(), pool.Spec.BlockSize); pool.Spec.CIDR.Overlaps(at); at = following(at) {
			free := true
			for _, b := range blocks {
				free = free && !b.Overlaps(at)
			}
			if free {
				t.Fatalf("%v is free and was not found", at)
			}
		}
	})
}
