package api

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// appendUsual adds the block to the text, as encoding/json would write it; ok is false if it has to.
func (b *Block) appendUsual(to []byte) (out []byte, ok bool) {
	w := blockWriter{out: slices.Grow(to, 512+12*len(b.Allocation)+300*len(b.Attributes))}
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

// blockWriter adds to the end. It has failed once something needs escaping, or has no stored form.
type blockWriter struct {
	out    []byte
	failed bool
}

func (w *blockWriter) raw(text string) { w.out = append(w.out, text...) }

func (w *blockWriter) text(s string) {
	for i := range len(s) {
		if !plain(s[i]) {
			w.failed = true
		}
	}
	w.raw(`"`)
	w.raw(s)
	w.raw(`"`)
}

func (w *blockWriter) prefix(p netip.Prefix) {
	w.failed = w.failed || !p.IsValid()
	w.raw(`"`)
	w.out = p.AppendTo(w.out)
	w.raw(`"`)
}

func (w *blockWriter) time(t time.Time) {
	w.raw(`"`)
	out, err := t.AppendText(w.out)
	if err != nil {
		w.failed = true
		return
	}
	w.out = out
	w.raw(`"`)
}

func (w *blockWriter) number(n uint64) { w.out = strconv.AppendUint(w.out, n, 10) }

func (w *blockWriter) small(n int) { w.out = strconv.AppendInt(w.out, int64(n), 10) }

func (w *blockWriter) index(n *int) {
	if n == nil {
		w.raw(`null`)
		return
	}
	w.small(*n)
}

// owner leaves out what is empty.
func (w *blockWriter) owner(a Attributes) {
	comma := ``
	field := func(name string) {
		w.raw(comma)
		w.raw(name)
		comma = `,`
	}
	w.raw(`{`)
	if a.HandleID != nil {
		field(`"handle_id":`)
		w.text(*a.HandleID)
	}
	if len(a.Secondary) > 0 {
		field(`"secondary":`)
		writeMap(w, a.Secondary, w.text)
	}
	if len(a.Alternate) > 0 {
		field(`"alternateOwnerAttrs":`)
		writeMap(w, a.Alternate, w.text)
	}
	w.raw(`}`)
}

func writeList[T any](w *blockWriter, list []T, write func(T)) {
	if list == nil {
		w.raw(`null`)
		return
	}
	w.raw(`[`)
	for i, v := range list {
		if i > 0 {
			w.raw(`,`)
		}
		write(v)
	}
	w.raw(`]`)
}

// writeMap writes the keys in order.
func writeMap[V any](w *blockWriter, m map[string]V, write func(V)) {
	if m == nil {
		w.raw(`null`)
		return
	}
	var few [8]string // as many as an owner's, for which nothing is allocated
	keys := slices.AppendSeq(few[:0], maps.Keys(m))
	slices.Sort(keys)
	w.raw(`{`)
	for i, k := range keys {
		if i > 0 {
			w.raw(`,`)
		}
		w.text(k)
		w.raw(`:`)
		write(m[k])
	}
	w.raw(`}`)
}
