// Package members reads and writes JSON objects member by member.
//
// Before encoding/json touches a struct it works out how to read and write every type that can occur in it. A process that lives for one CNI
// command does that for types of which it sees one value, and spends more on it than on anything else it does by itself. Here a type lists its members, and
// only what occurs is looked at: strings, numbers and addresses in their plain form here, everything else by encoding/json. What comes of it is the same.
package members

import (
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
)

// Member is one of an object's members.
type Member struct {
	Name  string
	Value any  // a pointer to the field. One that is an Object is read and written as such
	Empty bool // is written also where it is empty
}

// Object lists the members of an object, in the order in which they are written.
type Object interface {
	Members() []Member
}

// List is an array of objects, which can be written and not read.
type List []Object

// Decode reads an object: of the members that are not listed nothing, and null leaves a member as it is. Names may differ in case. Errors are those of
// encoding/json, and so is what was read in spite of one; an *UnmarshalTypeError says the way to the field.
func Decode(data []byte, list []Member) error {
	if !json.Valid(data) {
		return json.Unmarshal(data, new(json.RawMessage)) // says what is wrong with it
	}
	r := reader{doc: data}
	return object(r.value(), list)
}

// object reads a value that is to be an object. As encoding/json does, it reads on after a value of the wrong type, and returns the first such error in the end.
func object(v value, list []Member) error {
	switch {
	case v.null():
		return nil
	case v.text[0] != '{':
		return &json.UnmarshalTypeError{Value: v.kind(), Type: reflect.TypeFor[struct{}](), Offset: v.at}
	}
	var failed error
	for name, v := range v.members() {
		err := member(v, list, name)
		if wrong := new(json.UnmarshalTypeError); err != nil && !errors.As(err, &wrong) {
			return err
		}
		failed = cmp.Or(failed, err)
	}
	return failed
}

// member reads the value of the member of that name, if it is listed.
func member(v value, list []Member, name []byte) error {
	m := find(list, name)
	if m == nil {
		return nil
	}
	err := v.into(m.Value)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		wrong.Field = strings.TrimSuffix(m.Name+"."+wrong.Field, ".")
	}
	return err
}

func find(list []Member, name []byte) *Member {
	for i := range list {
		if m := &list[i]; m.Name == string(name) {
			return m
		}
	}
	for i := range list {
		if m := &list[i]; strings.EqualFold(m.Name, string(name)) {
			return m
		}
	}
	return nil
}

// into reads the value to where a member is kept.
func (v value) into(to any) error {
	switch to := to.(type) {
	case Object:
		return object(v, to.Members())
	case json.Unmarshaler, encoding.TextUnmarshaler:
	case *bool:
		if b := string(v.text); b == "true" || b == "false" {
			*to = b == "true"
			return nil
		}
	case *[]netip.Addr:
		if addrs, ok := v.addrs(); ok {
			*to = addrs
			return nil
		}
	default:
		field := reflect.ValueOf(to).Elem()
		if s, ok := v.plain(); ok && field.Kind() == reflect.String {
			field.SetString(string(s))
			return nil
		}
		if n, err := strconv.ParseInt(string(v.text), 10, 64); err == nil && field.CanInt() && !field.OverflowInt(n) {
			field.SetInt(n)
			return nil
		}
	}
	err := json.Unmarshal(v.text, to)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		wrong.Offset += v.at
	}
	return err
}

// Encode writes an object.
func Encode(list []Member) ([]byte, error) { return appendObject(make([]byte, 0, usualSize), list) }

// usualSize is more than most objects need, in bytes.
const usualSize = 1 << 10

func appendObject(out []byte, list []Member) ([]byte, error) {
	out = append(out, '{')
	begin := len(out)
	for _, m := range list {
		if !m.Empty && empty(m.Value) {
			continue
		}
		if len(out) > begin {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), m.Name...), `":`...)
		var err error
		if out, err = appendValue(out, m.Value); err != nil {
			return nil, fmt.Errorf("encode %s: %w", m.Name, err)
		}
	}
	return append(out, '}'), nil
}

func appendValue(out []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case Object:
		return appendObject(out, v.Members())
	case *List:
		return appendArray(out, *v, func(out []byte, o Object) ([]byte, error) { return appendObject(out, o.Members()) })
	case json.Marshaler, encoding.TextMarshaler:
	case *bool:
		return strconv.AppendBool(out, *v), nil
	case *[]netip.Addr:
		if *v != nil {
			return appendArray(out, *v, appendAddr)
		}
	default:
		field := reflect.ValueOf(v).Elem()
		if field.Kind() == reflect.String && plain(field.String()) {
			return append(append(append(out, '"'), field.String()...), '"'), nil
		}
		if field.CanInt() {
			return strconv.AppendInt(out, field.Int(), 10), nil
		}
	}
	return appendOther(out, v)
}

func appendAddr(out []byte, a netip.Addr) ([]byte, error) {
	if a.Zone() != "" { // which may be anything
		return appendOther(out, a)
	}
	out = append(out, '"')
	if a.IsValid() {
		out = a.AppendTo(out)
	}
	return append(out, '"'), nil
}

func appendOther(out []byte, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	return append(out, text...), err
}

func appendArray[T any](out []byte, list []T, add func([]byte, T) ([]byte, error)) ([]byte, error) {
	out = append(out, '[')
	for i, v := range list {
		if i > 0 {
			out = append(out, ',')
		}
		var err error
		if out, err = add(out, v); err != nil {
			return nil, err
		}
	}
	return append(out, ']'), nil
}

// empty is what omitempty takes for it, and of structs the zero value.
func empty(pointer any) bool {
	v := reflect.ValueOf(pointer).Elem()
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	default:
		return v.IsZero()
	}
}
