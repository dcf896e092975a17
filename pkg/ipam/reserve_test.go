package ipam

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func reservation(cidrs ...string) []store.Entry[api.IPReservation] {
	return []store.Entry[api.IPReservation]{{Rev: 1, Value: &api.IPReservation{Spec: api.IPReservationSpec{ReservedCIDRs: cidrs}}}}
}

// TestReservedSpansSayWhatTheirRangesSay holds the merged spans against the ranges that they came from.
func TestReservedSpansSayWhatTheirRangesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			raw := [16]byte{0: 0xfd, 15: rapid.Byte().Draw(t, "low")}
			if rapid.Bool().Draw(t, "v6") {
				return netip.AddrFrom16(raw)
			}
			return netip.AddrFrom4([4]byte{255, 255, 255, raw[15]})
		})
		ranges := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := address.Draw(t, "a")
			return netip.PrefixFrom(a, a.BitLen()-rapid.IntRange(0, 6).Draw(t, "host")).Masked()
		}), 0, 8).Draw(t, "ranges")
		var text []string
		for _, p := range ranges {
			text = append(text, p.String())
		}
		spans, bad := reservedOf(reservation(text...))
		if bad != nil {
			t.Fatal(bad)
		}
		isReserved := func(a netip.Addr) bool {
			for _, p := range ranges {
				if p.Contains(a) {
					return true
				}
			}
			return false
		}
		a := address.Draw(t, "asked")
		if _, got := spans.at(a); got != isReserved(a) {
			t.Fatalf("%v reserved: %v, the ranges %v say %v", a, got, ranges, isReserved(a))
		}
		step := netip.PrefixFrom(a, a.BitLen()-3).Masked()
		want := true
		for at := step.Addr(); at.IsValid() && step.Contains(at); at = at.Next() {
			want = want && isReserved(at)
		}
		if got := spans.covers(step); got != want {
			t.Fatalf("%v covered: %v, the ranges %v say %v", step, got, ranges, want)
		}
	})
}

func TestHugeReservationsArePassedInOneStep(t *testing.T) {
	pool := poolOfSize("fd00:10:244::/48", 122)
	w := walkOf(pool, "node-1", time.Time{})
	for _, c := range []struct {
		reserved string
		free     bool
	}{
		{netip.PrefixFrom(w.first.Addr(), 64).Masked().String(), true},
		{"fd00:10:244::/48", false},
		{"fd00::/16", false},
		{"10.0.0.0/8", true},
	} {
		held, _ := reservedOf(reservation(c.reserved))
		began := newOccupied(122)
		got, ok := w.vacant(began, held)
		if ok != c.free || ok && (held.covers(got) || !pool.Spec.CIDR.Overlaps(got) || got.Bits() != 122) {
			t.Errorf("with %s reserved: %v, %v", c.reserved, got, ok)
		}
	}
	last := "fd00:10:244:ffff:ffff:ffff:ffff:ffc0/122"
	var all []string // everything but the last range
	for p := netip.MustParsePrefix(last); p.Bits() > 48; p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked() {
		sibling := p.Addr().AsSlice()
		sibling[(p.Bits()-1)/8] ^= 1 << (7 - (p.Bits()-1)%8)
		a, _ := netip.AddrFromSlice(sibling)
		all = append(all, netip.PrefixFrom(a, p.Bits()).Masked().String())
	}
	held, bad := reservedOf(reservation(all...))
	if got, ok := w.vacant(newOccupied(122), held); !ok || got.String() != last || bad != nil {
		t.Errorf("with all but %s reserved by %s: %v, %v", last, strings.Join(all[:2], ", "), got, ok)
	}
}

// TestWalkOrderIsTheOrderOfVacantRanges takes one range after the other and compares with the order that loans and takeovers go by.
func TestWalkOrderIsTheOrderOfVacantRanges(t *testing.T) {
	for _, pool := range []*api.IPPool{poolOfSize("10.0.0.0/26", 29), poolOfSize("255.255.255.0/24", 26), poolOfSize("fd00::/118", 122)} {
		w := walkOf(pool, "node-1", time.Time{})
		taken := newOccupied(pool.Spec.BlockSize)
		var before netip.Prefix
		for at, ok := w.vacant(taken, nil); ok; at, ok = w.vacant(taken, nil) {
			if before.IsValid() && w.compare(before, at) >= 0 {
				t.Errorf("pool %v: %v is not before %v", pool.Spec.CIDR, before, at)
			}
			before = at
			taken.add(at)
		}
	}
}
