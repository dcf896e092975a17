package addresses

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
)

func TestPartsAreEqualApartAndTheWholePool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bitLen := rapid.SampledFrom([]int{32, 128}).Draw(t, "family")
		raw := rapid.SliceOfN(rapid.Byte(), bitLen/8, bitLen/8).Draw(t, "address")
		addr, _ := netip.AddrFromSlice(raw)
		bits := rapid.IntRange(0, bitLen).Draw(t, "bits")
		pool := netip.PrefixFrom(addr, bits).Masked()
		deeper := rapid.IntRange(1, 6).Draw(t, "deeper")
		n := 1 << deeper
		got, err := divide(api.IPPoolSpec{CIDR: pool, BlockSize: bitLen}, n)
		if bits+deeper > bitLen {
			if err == nil {
				t.Fatalf("divide(%v, %d) = %v: want an error", pool, n, got)
			}
			return
		}
		if err != nil || len(got) != n {
			t.Fatalf("divide(%v, %d) = %v, %v", pool, n, got, err)
		}
		for i, p := range got {
			if p != p.Masked() || p.Bits() != bits+deeper || !pool.Contains(p.Addr()) {
				t.Errorf("part %d of %v is %v", i, pool, p)
			}
			if i > 0 && got[i-1].Addr().Compare(p.Addr()) >= 0 {
				t.Errorf("%v does not come before %v", got[i-1], p)
			}
		}
	})
}
