package api

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Blocks and endpoints have a codec of their own beside encoding/json: a block of 64 addresses is 18 KB and is written anew with each address, there are as many
// endpoints as pods, and every agent reads them all. It is for the form that they nearly always have: all fields in their order and none that we do
// not know, no space between them, no character that needs escaping. What has another form is left to encoding/json, which reads and writes this one
// alike (FuzzBlockCodec, FuzzEndpointCodec).

// usualReader reads from the front. With the first thing that has not the usual form it has failed, and what it returns means nothing.
type usualReader struct {
	raw    []byte
	at     int // where the next thing begins
	failed bool
}

func (r *usualReader) fail() { r.failed, r.at = true, len(r.raw) }

// take passes over the text, if that is next.
func (r *usualReader) take(text string) bool {
	end := r.at + len(text)
	if end > len(r.raw) || string(r.raw[r.at:end]) != text {
		return false
	}
	r.at = end
	return true
}

func (r *usualReader) want(text string) {
	if !r.take(text) {
		r.fail()
	}
}

// text is the inside of a string.
func (r *usualReader) text() []byte {
	r.want(`"`)
	rest := r.raw[r.at:]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		r.fail()
		return nil
	}
	for _, c := range rest[:end] {
		if !plain(c) {
			r.fail()
			return nil
		}
	}
	r.at += end + 1
	return rest[:end]
}

// Which characters stand for themselves in a JSON string, also where encoding/json wrote it, by bit: all printable ones of ASCII but " & < > and \.
const (
	plainLow  uint64 = 1<<64 - 1<<' ' - 1<<'"' - 1<<'&' - 1<<'<' - 1<<'>'
	plainHigh uint64 = 1<<63 - 1 - 1<<('\\'-64)
)

func plain(c byte) bool {
	if c < 64 {
		return plainLow>>c&1 == 1
	}
	return c < 128 && plainHigh>>(c-64)&1 == 1
}

func (r *usualReader) prefix() netip.Prefix {
	p, err := netip.ParsePrefix(string(r.text()))
	if err != nil {
		r.fail()
	}
	return p
}

func (r *usualReader) time() *time.Time {
	var t time.Time
	if t.UnmarshalText(r.text()) != nil {
		r.fail()
	}
	return &t
}

// maxDigits is how many digits fit into 64 bits whatever they are.
const maxDigits = 19

// number is one without sign. JSON has no zeros before the first digit.
func (r *usualReader) number() (n uint64) {
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
func (r *usualReader) small() int {
	n := r.number()
	if n > 1<<31-1 {
		r.fail()
	}
	return int(n)
}

// short is a number of 16 bits.
func (r *usualReader) short() uint16 {
	n := r.number()
	if n > 1<<16-1 {
		r.fail()
	}
	return uint16(n)
}

// givenFields are those of an object, in their order, each of which may be missing.
type givenFields struct {
	r     *usualReader
	comma string
}

// has passes over the field's name, which comes with its colon, if that is next.
func (f *givenFields) has(name string) bool {
	before := f.r.at
	if f.r.take(f.comma) && f.r.take(name) {
		f.comma = `,`
		return true
	}
	f.r.at = before
	return false
}

// elements has each of a list's or an object's elements read, up to the end.
func (r *usualReader) elements(begin, end string, read func()) {
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
func (r *usualReader) ahead() (elements, nulls int) {
	list, _, _ := bytes.Cut(r.raw[r.at:], []byte(`]`))
	return bytes.Count(list, []byte(`,`)) + 1, bytes.Count(list, []byte(`null`))
}

func (r *usualReader) numbers() []int {
	if r.take(`null`) {
		return nil
	}
	size, _ := r.ahead()
	out := make([]int, 0, size)
	r.elements(`[`, `]`, func() { out = append(out, r.small()) })
	return out
}

// pairs reads an object whose keys are in order, each once. read is to read the value.
func (r *usualReader) pairs(read func(key []byte)) {
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

// says reads an object of strings and reports whether it is like that.
func (r *usualReader) says(like map[string]string) bool {
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

// usualWriter adds to the end. It has failed once something needs escaping, or has no stored form.
type usualWriter struct {
	out    []byte
	failed bool
}

func (w *usualWriter) raw(text string) { w.out = append(w.out, text...) }

func (w *usualWriter) text(s string) {
	for i := range len(s) {
		if !plain(s[i]) {
			w.failed = true
		}
	}
	w.raw(`"`)
	w.raw(s)
	w.raw(`"`)
}

func (w *usualWriter) prefix(p netip.Prefix) {
	w.failed = w.failed || !p.IsValid()
	w.raw(`"`)
	w.out = p.AppendTo(w.out)
	w.raw(`"`)
}

func (w *usualWriter) time(t time.Time) {
	w.raw(`"`)
	out, err := t.AppendText(w.out)
	if err != nil {
		w.failed = true
		return
	}
	w.out = out
	w.raw(`"`)
}

func (w *usualWriter) number(n uint64) { w.out = strconv.AppendUint(w.out, n, 10) }

func (w *usualWriter) small(n int) { w.out = strconv.AppendInt(w.out, int64(n), 10) }

func writeList[T any](w *usualWriter, list []T, write func(T)) {
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
func writeMap[V any](w *usualWriter, m map[string]V, write func(V)) {
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

// writtenFields are those of an object of which what is empty is left out.
type writtenFields struct {
	w     *usualWriter
	comma string
}

// next begins a field. The name comes with its colon.
func (f *writtenFields) next(name string) {
	f.w.raw(f.comma)
	f.w.raw(name)
	f.comma = `,`
}

// text is a field that is a string.
func (f *writtenFields) text(name, s string) {
	if s == "" {
		return
	}
	f.next(name)
	f.w.text(s)
}
