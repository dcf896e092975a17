package ipam

import (
	"cmp"
	"hash/fnv"
	"math/big"
	"math/rand"
	"net/netip"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// occupied is the ranges that cannot become blocks, seen in steps of one block size.
type occupied struct {
	bits   int
	steps  map[netip.Prefix]bool // every step in which there is a range of that size or a smaller one
	larger []netip.Prefix        // ranges of more than one step
}

func newOccupied(bits int) occupied { return occupied{bits: bits, steps: map[netip.Prefix]bool{}} }

func (o *occupied) add(block netip.Prefix) {
	if block.Bits() < o.bits {
		o.larger = append(o.larger, block)
		return
	}
	o.steps[netip.PrefixFrom(block.Addr(), o.bits).Masked()] = true
}

func (o *occupied) has(step netip.Prefix) bool {
	if o.steps[step] {
		return true
	}
	for _, l := range o.larger {
		if l.Contains(step.Addr()) {
			return true
		}
	}
	return false
}

// walk is the order in which a node looks at the ranges of a pool: once around, from a place of its own.
type walk struct {
	pool  netip.Prefix
	first netip.Prefix
}

func walkOf(pool *api.IPPool, node string, now time.Time) walk {
	s := pool.Spec
	return walk{s.CIDR, startOf(s.CIDR, s.BlockSize, seed(s, node, now))}
}

// compare orders blocks of the pool, of whatever size, by when the walk comes to them.
func (w walk) compare(a, b netip.Prefix) int {
	if early, late := w.wraps(a), w.wraps(b); early != late {
		return cmp.Compare(early, late)
	}
	return a.Compare(b)
}

func (w walk) wraps(p netip.Prefix) int {
	if p.Addr().Less(w.first.Addr()) {
		return 1
	}
	return 0
}

// vacant returns the first range that is neither occupied nor wholly reserved. Reserved ranges of any size are passed over in one step.
func (w walk) vacant(taken occupied, held reserved) (netip.Prefix, bool) {
	end, start := lastOf(w.pool), netip.PrefixFrom(w.pool.Addr(), w.first.Bits())
	if at, ok := stretch(w.first, end, taken, held); ok {
		return at, true
	}
	if before := w.first.Addr().Prev(); start != w.first {
		return stretch(start, before, taken, held)
	}
	return netip.Prefix{}, false
}

// stretch is vacant for the ranges from one to the one that contains the last address.
func stretch(at netip.Prefix, last netip.Addr, taken occupied, held reserved) (netip.Prefix, bool) {
	for at.IsValid() && !last.Less(at.Addr()) {
		switch {
		case held.covers(at):
			at = beyond(at, held)
		case taken.has(at):
			at = following(at)
		default:
			return at, true
		}
	}
	return netip.Prefix{}, false
}

// beyond is the first range after one that is wholly reserved in which an address is not.
func beyond(at netip.Prefix, held reserved) netip.Prefix {
	s, _ := held.at(at.Addr())
	end := netip.PrefixFrom(s.last, at.Bits()).Masked()
	if held.covers(end) {
		return following(end)
	}
	return end
}

// seed is the same for a node each time, so that it prefers the same part of a pool. Blocks of a single address go by
// the clock, lest the node's own addresses come in a row.
func seed(s api.IPPoolSpec, node string, now time.Time) int64 {
	if s.BlockSize == s.CIDR.Addr().BitLen() {
		return now.UnixNano()
	}
	h := fnv.New32()
	h.Write([]byte(node)) // never fails
	return int64(h.Sum32())
}

// startOf is a pseudo-random block of the pool: the same that Calico starts from for the same seed.
func startOf(pool netip.Prefix, bits int, seed int64) netip.Prefix {
	count := new(big.Int).Lsh(big.NewInt(1), uint(bits-pool.Bits()))
	n := new(big.Int).Rand(rand.New(rand.NewSource(seed)), count)
	n.Lsh(n, uint(pool.Addr().BitLen()-bits))
	raw := pool.Addr().AsSlice()
	n.Add(n, new(big.Int).SetBytes(raw)).FillBytes(raw)
	a, _ := netip.AddrFromSlice(raw) // 4 or 16 bytes, as they came
	return netip.PrefixFrom(a, bits)
}

// following is the range of the same size after p; the zero Prefix after the last of all.
func following(p netip.Prefix) netip.Prefix {
	a := lastOf(p).Next()
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, p.Bits())
}
