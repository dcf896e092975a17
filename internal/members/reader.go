package members

import (
	"encoding/json"
	"iter"
	"net/netip"
	"strings"
)

// reader reads a document from the front that encoding/json has found valid, so that nothing in it is unexpected.
type reader struct {
	doc []byte
	at  int // where the next thing begins, or the space before it
}

// value is a part of a document: what stands between the names.
type value struct {
	text []byte // without space around it
	at   int64  // where it begins
}

// value takes the value that is next.
func (r *reader) value() value {
	r.space()
	begin := r.at
	switch r.doc[r.at] {
	case '"':
		r.string()
	case '{', '[':
		r.nested()
	default: // a number, true, false or null
		for r.at < len(r.doc) && !strings.ContainsRune(",]} \t\r\n", rune(r.doc[r.at])) {
			r.at++
		}
	}
	return value{text: r.doc[begin:r.at], at: int64(begin)}
}

func (r *reader) space() {
	for r.at < len(r.doc) && (r.doc[r.at] == ' ' || r.doc[r.at] == '\t' || r.doc[r.at] == '\r' || r.doc[r.at] == '\n') {
		r.at++
	}
}

// string passes over a string.
func (r *reader) string() {
	for r.at++; r.doc[r.at] != '"'; r.at++ {
		if r.doc[r.at] == '\\' {
			r.at++
		}
	}
	r.at++
}

// nested passes over an object or an array.
func (r *reader) nested() {
	for depth := 0; ; {
		switch r.doc[r.at] {
		case '"':
			r.string()
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		r.at++
		if depth == 0 {
			return
		}
	}
}

// more passes over what stands before the next member or element, and tells whether there is one.
func (r *reader) more() bool {
	r.space()
	if c := r.doc[r.at]; c == '}' || c == ']' {
		return false
	}
	if r.doc[r.at] == ',' {
		r.at++
	}
	return true
}

// members goes through those of an object, with their names as they are meant.
func (v value) members() iter.Seq2[[]byte, value] {
	return func(yield func([]byte, value) bool) {
		for r := (reader{doc: v.text, at: 1}); r.more(); {
			name := r.value().name()
			r.space()
			r.at++ // the colon
			of := r.value()
			of.at += v.at
			if !yield(name, of) {
				return
			}
		}
	}
}

// name is what a string says.
func (v value) name() []byte {
	if s, ok := v.plain(); ok {
		return s
	}
	var s string
	if json.Unmarshal(v.text, &s) != nil {
		return nil // a valid string can be read
	}
	return []byte(s)
}

// plain is the inside of a string that needs no conversion; false if the value is another.
func (v value) plain() ([]byte, bool) {
	if v.text[0] != '"' {
		return nil, false
	}
	s := v.text[1 : len(v.text)-1]
	for _, c := range s {
		if c == '\\' || c >= 0x80 {
			return nil, false
		}
	}
	return s, true
}

// addrs are those of an array of addresses; false if the value is something else.
func (v value) addrs() ([]netip.Addr, bool) {
	if v.text[0] != '[' {
		return nil, false
	}
	out := []netip.Addr{}
	for r := (reader{doc: v.text, at: 1}); r.more(); {
		s, ok := r.value().plain()
		if !ok {
			return nil, false
		}
		a, err := netip.ParseAddr(string(s))
		if err != nil {
			return nil, false // or it is empty, which stands for no address
		}
		out = append(out, a)
	}
	return out, true
}

func (v value) null() bool { return string(v.text) == "null" }

// kind is what encoding/json calls the value's.
func (v value) kind() string {
	switch v.text[0] {
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "bool"
	}
	return "number"
}

// plain tells whether encoding/json writes the string as it is.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}
