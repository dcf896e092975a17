package api

import (
	"bytes"
	"net/netip"
	"strconv"
	"time"
)

// A block of 64 addresses is 18 KB, is written anew with each address, and is read by every agent. So blocks have a codec of their own
// beside encoding/json, for the form that they nearly always have: all fields in their order and none that we do not know, no space between
// them, no character that needs escaping. What has another form is left to encoding/json, which reads and writes this one alike
// (FuzzBlockCodec).

// readUsual fills the block from raw, if that has the usual form. The owners that like names too are taken from there, so that the
// versions of a block share what they have in common.
func (b *Block) readUsual(raw []byte, like *Block) bool {
	r := blockReader{raw: raw, like: like.Attributes}
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
	out.Allocation = r.indexes()
	r.want(`,"unallocated":`)
	out.Unallocated = r.numbers()
	r.want(`,"attributes":`)
	out.Attributes = r.owners(len(like.Attributes) + 1)
	r.want(`,"sequenceNumber":`)
	out.SequenceNumber = r.number()
	r.want(`,"sequenceNumberForAllocation":`)
	out.SequenceNumberForAllocation = r.sequence(len(like.SequenceNumberForAllocation) + 1)
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

// blockReader reads from the front. With the first thing that has not the usual form it has failed, and what it returns means nothing.
type blockReader struct {
	raw    []byte
	at     int // where the next thing begins
	failed bool
	like   []Attributes      // owners that may come, in the order in which they would
	last   map[string]string // what was said of the owner before
}

func (r *blockReader) fail() { r.failed, r.at = true, len(r.raw) }

// take passes over the text, if that is next.
func (r *blockReader) take(text string) bool {
	end := r.at + len(text)
	if end > len(r.raw) || string(r.raw[r.at:end]) != text {
		return false
	}
	r.at = end
	return true
}

func (r *blockReader) want(text string) {
	if !r.take(text) {
		r.fail()
	}
}

// text is the inside of a string.
func (r *blockReader) text() []byte {
	r.want(`"`)
	rest := r.raw[r.at:]
	for i, c := range rest {
		if c == '"' {
			r.at += i + 1
			return rest[:i]
		}
		if !plain(c) {
			break
		}
	}
	r.fail()
	return nil
}

// plain reports a character that stands for itself in a JSON string, also where encoding/json wrote it.
func plain(c byte) bool {
	return ' ' <= c && c < 0x7f && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
}

// same is the text as a string: the one that is given, if it says that.
func same(text []byte, like *string) *string {
	if like != nil && *like == string(text) {
		return like
	}
	s := string(text)
	return &s
}

func (r *blockReader) prefix() netip.Prefix {
	p, err := netip.ParsePrefix(string(r.text()))
	if err != nil {
		r.fail()
	}
	return p
}

func (r *blockReader) time() *time.Time {
	var t time.Time
	if t.UnmarshalText(r.text()) != nil {
		r.fail()
	}
	return &t
}

// maxDigits is how many digits fit into 64 bits whatever they are.
const maxDigits = 19

// number is one without sign. JSON has no zeros before the first digit.
func (r *blockReader) number() (n uint64) {
	rest, digits := r.raw[r.at:], 0
	for digits < len(rest) && '0' <= rest[digits] && rest[digits] <= '9' {
		n = n*10 + uint64(rest[digits]-'0')
		digits++
	}
	if digits == 0 || digits > maxDigits || digits > 1 && rest[0] == '0' {
		r.fail()
		return 0
	}
	r.at += digits
	return n
}

// small is a number that fits into any int.
func (r *blockReader) small() int {
	n := r.number()
	if n > 1<<31-1 {
		r.fail()
	}
	return int(n)
}

// elements has each of a list's or an object's elements read, up to the end.
func (r *blockReader) elements(begin, end string, read func()) {
	r.want(begin)
	if r.take(end) {
		return
	}
	for read(); r.take(`,`); {
		read()
	}
	r.want(end)
}

// ahead counts the elements of the flat list that is next, and the nulls among them, so that what is made for them is as large as they need:
// blocks stay. Of what is no such list it says nothing true.
func (r *blockReader) ahead() (elements, nulls int) {
	list, _, _ := bytes.Cut(r.raw[r.at:], []byte(`]`))
	return bytes.Count(list, []byte(`,`)) + 1, bytes.Count(list, []byte(`null`))
}

// indexes is a list of numbers and nulls; null is nil.
func (r *blockReader) indexes() []*int {
	if r.take(`null`) {
		return nil
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
	})
	return out
}

func (r *blockReader) numbers() []int {
	if r.take(`null`) {
		return nil
	}
	size, _ := r.ahead()
	out := make([]int, 0, size)
	r.elements(`[`, `]`, func() { out = append(out, r.small()) })
	return out
}

func (r *blockReader) owners(size int) []Attributes {
	if r.take(`null`) {
		return nil
	}
	out := make([]Attributes, 0, size)
	r.elements(`[`, `]`, func() { out = append(out, r.owner()) })
	return out
}

// owner reads an object whose fields may each be missing.
func (r *blockReader) owner() (a Attributes) {
	var like Attributes
	comma := ``
	has := func(name string) bool {
		before := r.at
		if r.take(comma) && r.take(name) {
			comma = `,`
			return true
		}
		r.at = before
		return false
	}
	r.want(`{`)
	if has(`"handle_id":`) {
		id := r.text()
		like = r.expected(id)
		a.HandleID = same(id, like.HandleID)
	}
	if has(`"secondary":`) {
		a.Secondary = r.words(like.Secondary)
		r.last = a.Secondary
	}
	if has(`"alternateOwnerAttrs":`) {
		a.Alternate = r.words(like.Alternate)
	}
	r.want(`}`)
	return a
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

// says reads an object of strings and reports whether it is like that.
func (r *blockReader) says(like map[string]string) bool {
	members, equal := 0, 0
	r.pairs(func(key []byte) {
		members++
		v, ok := like[string(key)]
		if text := r.text(); ok && v == string(text) {
			equal++
		}
	})
	return members == len(like) && equal == members
}

// attrName is the key of an owner attribute.
func attrName(key []byte) string {
	for _, k := range []string{AttrNamespace, AttrNode, AttrPod, AttrTimestamp, AttrType} {
		if string(key) == k {
			return k
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

// pairs reads an object whose keys are in order, each once. read is to read the value.
func (r *blockReader) pairs(read func(key []byte)) {
	var before []byte
	r.elements(`{`, `}`, func() {
		key := r.text()
		if before != nil && bytes.Compare(before, key) >= 0 {
			r.fail()
		}
		before = key
		r.want(`:`)
		read(key)
	})
}
