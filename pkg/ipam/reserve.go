package ipam

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// reserved is the addresses that nobody gets without asking for them: ranges in order, no two of which touch.
type reserved []span

type span struct{ first, last netip.Addr }

// reservedOf reads reservations. A range that cannot be read does not count, and is named among the errors.
func reservedOf(all []store.Entry[api.IPReservation]) (reserved, []error) {
	var spans []span
	var bad []error
	for _, e := range all {
		for _, s := range e.Value.Spec.ReservedCIDRs {
			var p api.Prefix
			if err := p.UnmarshalText([]byte(s)); err != nil || !p.IsValid() {
				bad = append(bad, fmt.Errorf("IPReservation(%s): spec.reservedCIDRs: %q is not a range", e.Value.Metadata.Name, s))
				continue
			}
			cidr := p.Masked()
			spans = append(spans, span{cidr.Addr(), lastOf(cidr)})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return a.first.Compare(b.first) })
	var out reserved
	for _, s := range spans {
		if n := len(out); n > 0 && touches(out[n-1].last, s.first) {
			if out[n-1].last.Less(s.last) {
				out[n-1].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out, bad
}

// touches reports whether a range that begins at next goes on where one ends at last, or before.
func touches(last, next netip.Addr) bool {
	return last.BitLen() == next.BitLen() && (!last.Less(next) || last.Next() == next)
}

// at is the span that the address is in.
func (r reserved) at(a netip.Addr) (span, bool) {
	i, exact := slices.BinarySearchFunc(r, a, func(s span, a netip.Addr) int { return s.first.Compare(a) })
	if !exact {
		i--
	}
	if i < 0 || a.BitLen() != r[i].first.BitLen() || r[i].last.Less(a) {
		return span{}, false
	}
	return r[i], true
}

// covers reports whether every address of the range is reserved.
func (r reserved) covers(cidr netip.Prefix) bool {
	s, ok := r.at(cidr.Addr())
	return ok && !s.last.Less(lastOf(cidr))
}

// allows is the filter for addresses that may be assigned; nil if all may.
func (r reserved) allows() func(netip.Addr) bool {
	if len(r) == 0 {
		return nil
	}
	return func(a netip.Addr) bool {
		_, held := r.at(a)
		return !held
	}
}

// lastOf is the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for i := range raw {
		switch free := (i+1)*8 - p.Bits(); {
		case free >= 8:
			raw[i] = 0xff
		case free > 0:
			raw[i] |= 1<<free - 1
		}
	}
	a, _ := netip.AddrFromSlice(raw) // 4 or 16 bytes, as they came
	return a
}
