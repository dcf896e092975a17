package ipam

import (
	"hash/fnv"
	"math/big"
	"math/rand"
	"net/netip"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// occupied is the ranges that blocks cover, seen in steps of one block size.
type occupied struct {
	bits   int
	steps  map[netip.Prefix]bool // every step in which there is a block of that size or a smaller one
	larger []netip.Prefix        // blocks of more than one step
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

// vacant returns the first range without a block, walking the pool once around from where the node starts.
func vacant(pool *api.IPPool, taken occupied, node string, now time.Time) (netip.Prefix, bool) {
	first := startOf(pool.Spec.CIDR, pool.Spec.BlockSize, seed(pool.Spec, node, now))
	for at := first; ; {
		if !taken.has(at) {
			return at, true
		}
		at = following(at)
		if !pool.Spec.CIDR.Overlaps(at) { // also where at is invalid, past the last address
			at = netip.PrefixFrom(pool.Spec.CIDR.Addr(), pool.Spec.BlockSize)
		}
		if at == first {
			return netip.Prefix{}, false
		}
	}
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
	raw := p.Addr().AsSlice()
	if p.Bits() == 0 {
		return netip.Prefix{}
	}
	i := (p.Bits() - 1) / 8
	carry := 1 << (7 - (p.Bits()-1)%8)
	for ; i >= 0 && carry > 0; i-- {
		sum := int(raw[i]) + carry
		raw[i], carry = byte(sum), sum>>8
	}
	if carry > 0 {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(a, p.Bits())
}
