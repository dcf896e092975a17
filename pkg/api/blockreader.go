package api

import (
	"hash/maphash"
	"strconv"
)

// readUsual fills the block from raw, if that has the usual form. The owners that were read for like too are taken from there, so that the
// versions of a block share what they have in common, and their texts need no second look. like is such a block itself, or nil.
func (b *Block) readUsual(raw []byte, like *Block) bool {
	if like == nil {
		like = &Block{}
	}
	r := blockReader{usualReader: usualReader{raw: raw}, before: like.read.rest()}
	var out Block
	r.want(`{"cidr":`)
	out.CIDR = r.prefix()
	r.want(`,"affinity":`)
	if !r.take(`null`) {
		out.Affinity = same(r.text(), like.Affinity)
	}
	if r.take(`,"affinity_claim_time":`) {
		out.ClaimTime = r.time()
	}
	r.want(`,"allocations":`)
	var held, owners int
	out.Allocation, held, owners = r.indexes()
	r.want(`,"unallocated":`)
	out.Unallocated = r.numbers()
	r.want(`,"attributes":`)
	r.owners(owners)
	now := r.now // alone, without what it was read from
	out.Attributes, out.read = now.owners, &now
	r.want(`,"sequenceNumber":`)
	out.SequenceNumber = r.number()
	r.want(`,"sequenceNumberForAllocation":`)
	out.SequenceNumberForAllocation = r.sequence(held)
	r.want(`,"deleted":`)
	if out.Deleted = r.take(`true`); !out.Deleted {
		r.want(`false`)
	}
	if r.take(`,"hostAffinity":`) {
		out.HostAffinity = same(r.text(), like.HostAffinity)
	}
	r.want(`}`)
	if r.failed || r.at < len(raw) {
		return false
	}
	*b = out
	return true
}

// blockReader reads a block, and shares owners with the one that was read before.
type blockReader struct {
	usualReader
	before reading           // what of it may come yet
	now    reading           // what came
	last   map[string]string // what was said of the owner before
}

// reading is the owners of a block as they were read, with their texts' fingerprints: of texts that are the same nothing is read twice. It is not
// changed afterwards, whatever becomes of the block.
type reading struct {
	seed   maphash.Seed
	owners []Attributes
	texts  []fingerprint // of the owners
}

// fingerprint stands for a text. Two texts share one only by a chance of one in 2^64, which nobody can better who does not know the seed.
type fingerprint struct {
	size int
	sum  uint64
}

// rest is the whole reading, for the reader of the next version to take from; r may be nil.
func (r *reading) rest() reading {
	if r == nil {
		return reading{seed: maphash.MakeSeed()}
	}
	return *r
}

// same is the text as a string: the one that is given, if it says that.
func same(text []byte, like *string) *string {
	if like != nil && *like == string(text) {
		return like
	}
	s := string(text)
	return &s
}

// indexes is a list of numbers and nulls; null is nil. With it come how many numbers it holds, and how many things they can be the indexes of, which
// says no more than how large to make what follows.
func (r *blockReader) indexes() (out []*int, held, indexed int) {
	if r.take(`null`) {
		return nil, 0, 0
	}
	size, nulls := r.ahead()
	out, numbers := make([]*int, 0, size), make([]int, 0, max(0, size-nulls))
	r.elements(`[`, `]`, func() {
		if r.take(`null`) {
			out = append(out, nil)
			return
		}
		numbers = append(numbers, r.small()) // where they are moved to, the pointers still point to where they were
		out = append(out, &numbers[len(numbers)-1])
		indexed = max(indexed, numbers[len(numbers)-1]+1)
	})
	return out, len(numbers), min(indexed, size)
}

func (r *blockReader) owners(size int) {
	r.now.seed = r.before.seed
	if r.take(`null`) {
		return
	}
	r.now.owners, r.now.texts = make([]Attributes, 0, size), make([]fingerprint, 0, size)
	r.elements(`[`, `]`, func() {
		from := r.at
		owner, text, again := r.again()
		if !again {
			owner = r.owner()
			text = r.fingerprint(from, r.at)
		}
		r.last = owner.Secondary
		r.now.owners, r.now.texts = append(r.now.owners, owner), append(r.now.texts, text)
	})
}

func (r *blockReader) fingerprint(from, to int) fingerprint {
	return fingerprint{size: to - from, sum: maphash.Bytes(r.before.seed, r.raw[from:to])}
}

// goneAtOnce is how many owners may have left a block between two versions without those behind them being read anew. A transaction of the agent frees fewer.
const goneAtOnce = 32

// again passes over an owner that was read before, if that is next. Those that stood before it do not come any more. To read most of a block is to find
// that.
func (r *blockReader) again() (owner Attributes, text fingerprint, ok bool) {
	var next fingerprint // of what comes, as far as the last one that it was held against
	for i, text := range r.before.texts[:min(goneAtOnce+1, len(r.before.texts))] {
		if r.at+text.size > len(r.raw) {
			continue
		}
		if next.size != text.size {
			next = r.fingerprint(r.at, r.at+text.size)
		}
		if next != text {
			continue
		}
		owner = r.before.owners[i]
		r.before.owners, r.before.texts = r.before.owners[i+1:], r.before.texts[i+1:]
		r.at += text.size
		return owner, text, true
	}
	return Attributes{}, fingerprint{}, false
}

// ownerAttr is the key of an attribute, and what stands before its value.
type ownerAttr struct{ key, name string }

// ownerAttrs are nearly all that owners have, in order.
func ownerAttrs() [5]ownerAttr {
	return [...]ownerAttr{
		{AttrNamespace, `"` + AttrNamespace + `":`}, {AttrNode, `"` + AttrNode + `":`}, {AttrPod, `"` + AttrPod + `":`},
		{AttrTimestamp, `"` + AttrTimestamp + `":`}, {AttrType, `"` + AttrType + `":`},
	}
}

// owner reads an object whose fields may each be missing.
func (r *blockReader) owner() (a Attributes) {
	f := givenFields{r: &r.usualReader}
	r.want(`{`)
	if f.has(`"handle_id":`) {
		id := string(r.text())
		a.HandleID = &id
	}
	if f.has(`"secondary":`) {
		a.Secondary = r.words()
	}
	if f.has(`"alternateOwnerAttrs":`) {
		a.Alternate = r.words()
	}
	r.want(`}`)
	return a
}

// words is an object of strings. What the owner before says too is taken from there.
func (r *blockReader) words() map[string]string {
	out := map[string]string{}
	r.pairs(func(key []byte) {
		k := attrName(key)
		text := r.text()
		if v, ok := r.last[k]; ok && v == string(text) {
			out[k] = v
			return
		}
		out[k] = string(text)
	})
	return out
}

// attrName is the key of an owner attribute.
func attrName(key []byte) string {
	for _, attr := range ownerAttrs() {
		if string(key) == attr.key {
			return attr.key
		}
	}
	return string(key)
}

// sequence is an object of numbers.
func (r *blockReader) sequence(size int) map[string]uint64 {
	if r.take(`null`) {
		return nil
	}
	out := make(map[string]uint64, size)
	r.pairs(func(key []byte) { out[ordinalText(key)] = r.number() })
	return out
}

// ordinalText is a key that mostly is a small number, of which strconv has the text already. Keys such as "067" and "+12" are other texts
// than the numbers in them.
func ordinalText(key []byte) string {
	if n, err := strconv.Atoi(string(key)); err == nil && 0 <= n && n < 100 {
		if text := strconv.Itoa(n); text == string(key) {
			return text
		}
	}
	return string(key)
}
