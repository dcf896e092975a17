// Package block does the arithmetic of address blocks: it hands out, takes back and counts addresses on api.Block values.
//
// The goals, and how each is met:
//
//  1. What a block says after each step is what Calico's writers would have written: free addresses are a queue (handed out from
//     the front, taken back at the end), equal owners share one entry of Attributes, entries without an address are dropped and
//     the rest renumbered, and the sequence number grows by one with every update.
//  2. A value that was read is never changed: every function returns a new block, or the very one it was given if nothing changed.
//  3. Any block can be worked on, whatever its writer did to it: no function panics, Allocation alone decides who holds an
//     address, and an ordinal of Unallocated that is out of range, repeated or not free is passed over.
package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Errors that callers branch on.
var (
	ErrOutside   = errors.New("the address is not in the block")
	ErrTaken     = errors.New("the address is already assigned in the block")
	ErrNotHeld   = errors.New("the address is not assigned")
	ErrDifferent = errors.New("the address was assigned anew since") // by another handle, or with another sequence number
)

// maxBits bounds a block at 4096 addresses, as IPPool.Check does.
const maxBits = 12

// reservedHandle holds the addresses that Windows nodes keep for themselves in each of their blocks.
const reservedHandle = "windows-reserved-ipam-handle"

// Owner is who an address is assigned to.
type Owner struct {
	HandleID string
	Attrs    map[string]string // api.AttrNode and the like; not modified, and kept by reference
}

// New is an empty block of the host, claimed now. The range must be in canonical form and hold at most 4096 addresses.
func New(cidr netip.Prefix, host string, now time.Time) (*api.Block, error) {
	if !cidr.IsValid() || cidr != cidr.Masked() {
		return nil, fmt.Errorf("make block %v: not the first address of the range", cidr)
	}
	n := Size(cidr)
	if n == 0 {
		return nil, fmt.Errorf("make block %v: more than %d addresses", cidr, 1<<maxBits)
	}
	affinity, claimed := api.HostAffinityOf(host), api.Seconds(now)
	b := &api.Block{
		CIDR:                        cidr,
		Affinity:                    &affinity,
		ClaimTime:                   &claimed,
		Allocation:                  make([]*int, n),
		Unallocated:                 make([]int, n),
		SequenceNumber:              uint64(now.UnixNano()),
		SequenceNumberForAllocation: map[string]uint64{},
	}
	for i := range b.Unallocated {
		b.Unallocated[i] = i
	}
	return b, nil
}

// Assign gives the owner up to n addresses, those that have been free the longest first. Fewer than n means that the block is
// full now.
func Assign(b *api.Block, n int, o Owner) ([]netip.Addr, *api.Block) {
	return AssignWhere(b, n, o, nil)
}

// AssignWhere is Assign of addresses that are allowed; the others keep their place in the queue. nil allows all.
func AssignWhere(b *api.Block, n int, o Owner, allowed func(netip.Addr) bool) ([]netip.Addr, *api.Block) {
	ordinals := freeWhere(b, allowed)
	ordinals = ordinals[:min(max(n, 0), len(ordinals))]
	if len(ordinals) == 0 {
		return nil, b
	}
	addrs := make([]netip.Addr, len(ordinals))
	for i, n := range ordinals {
		addrs[i] = Addr(b.CIDR, n)
	}
	return addrs, assign(b, ordinals, o)
}

// AssignAddr gives the owner this address. The error is ErrOutside or ErrTaken.
func AssignAddr(b *api.Block, a netip.Addr, o Owner) (*api.Block, error) {
	n, ok := ordinal(b, a)
	if !ok {
		return b, fmt.Errorf("assign %v in block %v: %w", a, b.CIDR, ErrOutside)
	}
	if b.Allocation[n] != nil {
		return b, fmt.Errorf("assign %v in block %v: %w", a, b.CIDR, ErrTaken)
	}
	return assign(b, []int{n}, o), nil
}

// ReleaseHandle takes back every address of the handle and returns them in order; none leaves the block as it was.
func ReleaseHandle(b *api.Block, handle string) ([]netip.Addr, *api.Block) {
	var ordinals []int
	var addrs []netip.Addr
	for n := range held(b, handle) {
		ordinals = append(ordinals, n)
		addrs = append(addrs, Addr(b.CIDR, n))
	}
	if len(ordinals) == 0 {
		return nil, b
	}
	return addrs, release(b, ordinals)
}

// Release names one address to take back, and what must still hold for it.
type Release struct {
	Addr   netip.Addr
	Handle string  // "": whoever holds it
	Seq    *uint64 // its SequenceNumberForAllocation; nil: any
}

// ReleaseAddr takes one address back. The error is ErrOutside, ErrNotHeld or ErrDifferent.
func ReleaseAddr(b *api.Block, r Release) (*api.Block, error) {
	n, ok := ordinal(b, r.Addr)
	if !ok {
		return b, fmt.Errorf("release %v from block %v: %w", r.Addr, b.CIDR, ErrOutside)
	}
	if b.Allocation[n] == nil {
		return b, fmt.Errorf("release %v from block %v: %w", r.Addr, b.CIDR, ErrNotHeld)
	}
	holder := handleOf(b, n)
	if r.Handle != "" && holder != Handle(r.Handle) {
		return b, fmt.Errorf("release %v from block %v: the given handle (%s) does not match (%s): %w", r.Addr, b.CIDR, r.Handle, holder, ErrDifferent)
	}
	if seq := b.SequenceNumberForAllocation[strconv.Itoa(n)]; r.Seq != nil && *r.Seq != seq {
		return b, fmt.Errorf("release %v from block %v: the given sequence number (%d) does not match (%d): %w", r.Addr, b.CIDR, *r.Seq, seq, ErrDifferent)
	}
	return release(b, []int{n}), nil
}

// Touch changes nothing but the sequence number: whoever has read the block before can not write it any more.
func Touch(b *api.Block) *api.Block { return update(b) }

// Owned lists the addresses of the handle in order.
func Owned(b *api.Block, handle string) []netip.Addr {
	var out []netip.Addr
	for n := range held(b, handle) {
		out = append(out, Addr(b.CIDR, n))
	}
	return out
}

// OwnerOf returns who holds the address; ok is false if it is free or not of this block. An address that points to no
// entry is held all the same, by an owner without a name.
func OwnerOf(b *api.Block, a netip.Addr) (owner api.Attributes, ok bool) {
	n, ok := ordinal(b, a)
	if !ok || b.Allocation[n] == nil {
		return api.Attributes{}, false
	}
	if i := *b.Allocation[n]; i >= 0 && i < len(b.Attributes) {
		return b.Attributes[i], true
	}
	return api.Attributes{}, true
}

// Free counts the addresses that Assign could give.
func Free(b *api.Block) int { return len(free(b)) }

// FreeWhere counts the addresses that AssignWhere could give.
func FreeWhere(b *api.Block, allowed func(netip.Addr) bool) int { return len(freeWhere(b, allowed)) }

// Empty reports whether nobody holds an address of the block, but for the ones that a Windows node reserves for itself.
func Empty(b *api.Block) bool {
	for n, a := range b.Allocation {
		if a != nil && !Reserved(handleOf(b, n)) {
			return false
		}
	}
	return true
}

// Reserved reports whether a handle ID is the one under which Windows nodes keep addresses of their blocks for themselves.
func Reserved(id string) bool { return strings.EqualFold(Handle(id), reservedHandle) }

// Handle is a handle ID as it is compared: cut at the first carriage return, which old Windows writers left at its end.
func Handle(id string) string {
	id, _, _ = strings.Cut(id, "\r")
	return id
}

// Size is the number of addresses of a range; 0 if it is no range or has more than 4096.
func Size(cidr netip.Prefix) int {
	host := cidr.Addr().BitLen() - cidr.Bits()
	if !cidr.IsValid() || host > maxBits {
		return 0
	}
	return 1 << host
}

// Addr is the n-th address of a range of at most 4096; the zero Addr if there is none.
func Addr(cidr netip.Prefix, n int) netip.Addr {
	if n < 0 || n >= Size(cidr) {
		return netip.Addr{}
	}
	raw := cidr.Masked().Addr().As16()
	low := binary.BigEndian.Uint16(raw[14:]) // the host part has 12 bits at most
	binary.BigEndian.PutUint16(raw[14:], low|uint16(n))
	if cidr.Addr().Is4() {
		return netip.AddrFrom16(raw).Unmap()
	}
	return netip.AddrFrom16(raw)
}

// Ordinal is the inverse of Addr; ok is false for an address outside of the range.
func Ordinal(cidr netip.Prefix, a netip.Addr) (n int, ok bool) {
	if Size(cidr) == 0 || !cidr.Contains(a) {
		return 0, false
	}
	at, base := a.As16(), cidr.Masked().Addr().As16()
	return int(binary.BigEndian.Uint16(at[14:]) - binary.BigEndian.Uint16(base[14:])), true
}

// ordinal is Ordinal for an address whose allocation the block records.
func ordinal(b *api.Block, a netip.Addr) (int, bool) {
	n, ok := Ordinal(b.CIDR, a)
	return n, ok && n < len(b.Allocation)
}

// free lists the ordinals that can be handed out, in the order of the queue.
func free(b *api.Block) []int {
	size := min(Size(b.CIDR), len(b.Allocation))
	seen := make([]bool, size)
	out := make([]int, 0, len(b.Unallocated))
	for _, n := range b.Unallocated {
		if n < 0 || n >= size || b.Allocation[n] != nil || seen[n] {
			continue
		}
		seen[n] = true
		out = append(out, n)
	}
	return out
}

// freeWhere is free without the addresses that are not allowed.
func freeWhere(b *api.Block, allowed func(netip.Addr) bool) []int {
	out := free(b)
	if allowed == nil {
		return out
	}
	return slices.DeleteFunc(out, func(n int) bool { return !allowed(Addr(b.CIDR, n)) })
}

// held yields the ordinals of a handle's addresses, ascending.
func held(b *api.Block, handle string) func(yield func(int) bool) {
	handle = Handle(handle)
	return func(yield func(int) bool) {
		for n := range min(Size(b.CIDR), len(b.Allocation)) {
			if b.Allocation[n] == nil || handle == "" || handleOf(b, n) != handle {
				continue
			}
			if !yield(n) {
				return
			}
		}
	}
}

// handleOf is the handle of the n-th address; "" if it is free or its owner has no name.
func handleOf(b *api.Block, n int) string {
	i := b.Allocation[n]
	if i == nil || *i < 0 || *i >= len(b.Attributes) || b.Attributes[*i].HandleID == nil {
		return ""
	}
	return Handle(*b.Attributes[*i].HandleID)
}

// update is a copy of b to write in, at the next sequence number.
func update(b *api.Block) *api.Block {
	out := *b
	out.Allocation = slices.Clone(b.Allocation)
	out.Attributes = slices.Clone(b.Attributes)
	out.SequenceNumberForAllocation = maps.Clone(b.SequenceNumberForAllocation)
	if out.SequenceNumberForAllocation == nil {
		out.SequenceNumberForAllocation = map[string]uint64{}
	}
	out.SequenceNumber++
	return &out
}

// assign gives free ordinals to the owner.
func assign(b *api.Block, ordinals []int, o Owner) *api.Block {
	out := update(b)
	at := slices.IndexFunc(out.Attributes, func(a api.Attributes) bool {
		return a.HandleID != nil && *a.HandleID == o.HandleID && a.Alternate == nil && maps.Equal(a.Secondary, o.Attrs)
	})
	if at < 0 {
		at = len(out.Attributes)
		out.Attributes = append(out.Attributes, api.Attributes{HandleID: &o.HandleID, Secondary: o.Attrs})
	}
	for _, n := range ordinals {
		out.Allocation[n] = &at
		out.SequenceNumberForAllocation[strconv.Itoa(n)] = b.SequenceNumber
	}
	out.Unallocated = slices.DeleteFunc(free(b), func(n int) bool { return slices.Contains(ordinals, n) })
	return out
}

// Disown makes a block nobody's: its addresses stay with who holds them, and the last one to be released deletes it.
func Disown(b *api.Block) *api.Block {
	out := update(b)
	out.Affinity, out.HostAffinity, out.ClaimTime = nil, nil, nil
	return out
}

// release takes back held ordinals, which join the end of the queue.
func release(b *api.Block, ordinals []int) *api.Block {
	out := update(b)
	for _, n := range ordinals {
		out.Allocation[n] = nil
		delete(out.SequenceNumberForAllocation, strconv.Itoa(n))
	}
	out.Unallocated = append(free(b), ordinals...)
	compact(out)
	return out
}

// compact drops the attributes that no address points to and renumbers the rest. An address that points to none gets an
// owner without a name, so that nobody inherits it.
func compact(b *api.Block) {
	kept := make([]api.Attributes, 0, len(b.Attributes))
	index := make(map[int]*int, len(b.Attributes))
	for _, i := range used(b) {
		at := len(kept)
		index[i], kept = &at, append(kept, b.Attributes[i])
	}
	var nameless *int
	for n, a := range b.Allocation {
		switch {
		case a == nil:
		case index[*a] != nil:
			b.Allocation[n] = index[*a]
		default:
			if nameless == nil {
				at := len(kept)
				nameless, kept = &at, append(kept, api.Attributes{})
			}
			b.Allocation[n] = nameless
		}
	}
	b.Attributes = kept
}

// used lists the indexes of the attributes that some address points to, ascending.
func used(b *api.Block) []int {
	var out []int
	for _, a := range b.Allocation {
		if a != nil && *a >= 0 && *a < len(b.Attributes) {
			out = append(out, *a)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
