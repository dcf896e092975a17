package api

import (
	"slices"
	"strconv"
)

// appendUsual adds the block to the text, as encoding/json would write it; ok is false if it has to.
func (b *Block) appendUsual(to []byte) (out []byte, ok bool) {
	w := usualWriter{out: slices.Grow(to, 512+12*len(b.Allocation)+300*len(b.Attributes))}
	w.raw(`{"cidr":`)
	w.prefix(b.CIDR)
	w.raw(`,"affinity":`)
	if b.Affinity == nil {
		w.raw(`null`)
	} else {
		w.text(*b.Affinity)
	}
	if b.ClaimTime != nil {
		w.raw(`,"affinity_claim_time":`)
		w.time(*b.ClaimTime)
	}
	w.raw(`,"allocations":`)
	writeList(&w, b.Allocation, w.index)
	w.raw(`,"unallocated":`)
	writeList(&w, b.Unallocated, w.small)
	w.raw(`,"attributes":`)
	writeList(&w, b.Attributes, w.owner)
	w.raw(`,"sequenceNumber":`)
	w.number(b.SequenceNumber)
	w.raw(`,"sequenceNumberForAllocation":`)
	writeMap(&w, b.SequenceNumberForAllocation, w.number)
	w.raw(`,"deleted":`)
	w.out = strconv.AppendBool(w.out, b.Deleted)
	if b.HostAffinity != nil {
		w.raw(`,"hostAffinity":`)
		w.text(*b.HostAffinity)
	}
	w.raw(`}`)
	return w.out, !w.failed
}

func (w *usualWriter) index(n *int) {
	if n == nil {
		w.raw(`null`)
		return
	}
	w.small(*n)
}

// owner leaves out what is empty.
func (w *usualWriter) owner(a Attributes) {
	f := writtenFields{w: w}
	w.raw(`{`)
	if a.HandleID != nil {
		f.next(`"handle_id":`)
		w.text(*a.HandleID)
	}
	if len(a.Secondary) > 0 {
		f.next(`"secondary":`)
		w.attributes(a.Secondary)
	}
	if len(a.Alternate) > 0 {
		f.next(`"alternateOwnerAttrs":`)
		writeMap(w, a.Alternate, w.text)
	}
	w.raw(`}`)
}

// attributes writes the keys in order, which those that are usual need not be put into.
func (w *usualWriter) attributes(m map[string]string) {
	begin := len(w.out)
	f := writtenFields{w: w}
	members := 0
	w.raw(`{`)
	for _, attr := range ownerAttrs() {
		v, ok := m[attr.key]
		if !ok {
			continue
		}
		members++
		f.next(attr.name)
		w.text(v)
	}
	w.raw(`}`)
	if members < len(m) {
		w.out = w.out[:begin]
		writeMap(w, m, w.text)
	}
}
