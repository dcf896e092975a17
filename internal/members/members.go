// Package members reads and writes JSON objects member by member.
//
// Before encoding/json touches a struct it works out how to read and write every type that can occur in it. A process that lives for one CNI
// command does that for types of which it sees one value, and spends more on it than on anything else it does by itself. Here a type lists its members, and
// only what occurs is looked at. What comes of it is the same.
package members

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
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
// encoding/json; an *UnmarshalTypeError says the way to the field.
func Decode(data []byte, list []Member) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := object(d, list); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("there is more after the end of the object, at byte %d", d.InputOffset())
	}
	return nil
}

func object(d *json.Decoder, list []Member) error {
	start, err := d.Token()
	if err != nil {
		return whole(err)
	}
	switch start {
	case nil:
		return nil
	case json.Delim('{'):
	default:
		return &json.UnmarshalTypeError{Value: kind(start), Type: reflect.TypeFor[struct{}](), Offset: d.InputOffset()}
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return whole(err)
		}
		if err := member(d, list, fmt.Sprint(name)); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return whole(err)
}

// member reads the value that comes next.
func member(d *json.Decoder, list []Member, name string) error {
	var value any = &json.RawMessage{} // that nobody wants
	for _, m := range list {
		if strings.EqualFold(m.Name, name) {
			value, name = m.Value, m.Name
			break
		}
	}
	var err error
	if o, ok := value.(Object); ok {
		err = object(d, o.Members())
	} else {
		err = whole(d.Decode(value))
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		wrong.Field = strings.TrimSuffix(name+"."+wrong.Field, ".")
	}
	return err
}

// whole says of an object that breaks off what encoding/json says of one that is read at once.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// kind is what encoding/json calls a value that begins so.
func kind(t json.Token) string {
	switch t.(type) {
	case json.Delim:
		return "array"
	case string:
		return "string"
	case bool:
		return "bool"
	}
	return "number"
}

// Encode writes an object.
func Encode(list []Member) ([]byte, error) {
	out := []byte{'{'}
	for _, m := range list {
		v := reflect.ValueOf(m.Value).Elem()
		if !m.Empty && empty(v) {
			continue
		}
		b, err := value(m.Value)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", m.Name, err)
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(append(out, '"'), m.Name...), `":`...), b...)
	}
	return append(out, '}'), nil
}

func value(v any) ([]byte, error) {
	switch v := v.(type) {
	case Object:
		return Encode(v.Members())
	case *List:
		return array(*v)
	}
	return json.Marshal(v)
}

func array(list List) ([]byte, error) {
	out := []byte{'['}
	for i, o := range list {
		if i > 0 {
			out = append(out, ',')
		}
		b, err := Encode(o.Members())
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return append(out, ']'), nil
}

// empty is what omitempty takes for it, and of structs the zero value.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	default:
		return v.IsZero()
	}
}
