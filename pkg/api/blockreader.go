package api

import "strconv"

// readUsual fills the block from raw, if that has the usual form. The owners that like names too are taken from there, so that the
// versions of a block share what they have in common. like is such a block itself, or nil: its texts need no second look.
func (b *Block) readUsual(raw []byte, like *Block) bool {
	if like == nil {
		like = &Block{}
	}
	r := blockReader{usualReader: usualReader{raw: raw}, like: like.Attributes}
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
	out.Attributes = r.owners(owners)
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

// blockReader reads a block, and shares owners with another one.
type blockReader struct {
	usualReader
	like []Attributes      // owners that may come, in the order in which they would
	last map[string]string // what was said of the owner before
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

func (r *blockReader) owners(size int) []Attributes {
	if r.take(`null`) {
		return nil
	}
	out := make([]Attributes, 0, size)
	r.elements(`[`, `]`, func() { out = append(out, r.owner()) })
	return out
}

// ownerAttr is the key of an attribute, and what stands before its value.
type ownerAttr struct{ key, head string }

// ownerAttrs are nearly all that owners have, in order.
func ownerAttrs() [5]ownerAttr {
	return [...]ownerAttr{
		{AttrNamespace, `"` + AttrNamespace + `":"`}, {AttrNode, `"` + AttrNode + `":"`}, {AttrPod, `"` + AttrPod + `":"`},
		{AttrTimestamp, `"` + AttrTimestamp + `":"`}, {AttrType, `"` + AttrType + `":"`},
	}
}

// owner reads an object whose fields may each be missing.
func (r *blockReader) owner() (a Attributes) {
	if known, ok := r.known(); ok {
		r.last = known.Secondary
		return known
	}
	var like Attributes
	f := givenFields{r: &r.usualReader}
	r.want(`{`)
	if f.has(`"handle_id":`) {
		id := r.text()
		like = r.expected(id)
		a.HandleID = same(id, like.HandleID)
	}
	if f.has(`"secondary":`) {
		a.Secondary = r.words(like.Secondary)
		r.last = a.Secondary
	}
	if f.has(`"alternateOwnerAttrs":`) {
		a.Alternate = r.words(like.Alternate)
	}
	r.want(`}`)
	return a
}

// known is the first of the owners that may come, if the next thing says the very same. To read most of a block is to find that.
func (r *blockReader) known() (a Attributes, ok bool) {
	if len(r.like) == 0 {
		return a, false
	}
	a = r.like[0]
	before := r.at
	if a.HandleID == nil || a.Alternate != nil || !r.take(`{"handle_id":"`) || !r.take(*a.HandleID) || !r.take(`","secondary":{`) || !r.repeats(a.Secondary) || !r.take(`}}`) {
		r.at = before
		return a, false
	}
	r.like = r.like[1:]
	return a, true
}

// repeats passes over the members of an object of the usual attributes, if they are next.
func (r *blockReader) repeats(m map[string]string) bool {
	left := len(m)
	for _, attr := range ownerAttrs() {
		if left == 0 {
			break
		}
		v, ok := m[attr.key]
		if !ok {
			continue
		}
		if left < len(m) && !r.take(`,`) || !r.take(attr.head) || !r.take(v) || !r.take(`"`) {
			return false
		}
		left--
	}
	return left == 0
}

// expected is the owner of that name, if one may come. Those before it are not expected any more.
func (r *blockReader) expected(id []byte) Attributes {
	for i, a := range r.like {
		if a.HandleID != nil && *a.HandleID == string(id) {
			r.like = r.like[i+1:]
			return a
		}
	}
	return Attributes{}
}

// words is an object of strings: the one that is given, if it says the same.
func (r *blockReader) words(like map[string]string) map[string]string {
	before := *r
	if like != nil && r.says(like) {
		return like
	}
	*r = before
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
