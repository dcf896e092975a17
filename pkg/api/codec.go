package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// Decode reads a stored value and applies the defaults of its kind. Unknown fields are ignored: pass the same bytes to
// Encode to keep them. An empty value is the zero value (old affinities are stored so).
func Decode[T Value](raw []byte) (*T, error) {
	v, _, err := DecodeLike[T](raw, nil)
	return v, err
}

// DecodeLike is Decode of a value that may share what is behind pointers and in maps with like, best another version of it or one of its kin; nil: with
// nothing. like must be what DecodeLike has returned as whole, unchanged. whole reports that the value is known to say all that raw says, so that Encode needs
// no prior.
func DecodeLike[T Value](raw []byte, like *T) (v *T, whole bool, err error) {
	v = new(T)
	if u, ok := any(v).(usual[T]); ok {
		if u.readUsual(raw, like) {
			return v, true, nil
		}
	}
	if err := decode(v, raw); err != nil {
		return nil, false, err
	}
	return v, false, nil
}

// Encode is the stored form of v: compact JSON, fields in the datastore's order, no resourceVersion. prior is what
// was read before, or nil for a new value: its fields that T does not know are kept.
func Encode[T Value](v *T, prior []byte) ([]byte, error) {
	if u, ok := any(v).(usual[T]); ok && len(prior) == 0 {
		if raw, ok := u.appendUsual(nil); ok {
			return raw, nil
		}
	}
	out := *v
	return encode(&out, prior)
}

// usual is a kind that is stored so often, and mostly in so plain a form, that it has a reader and a writer of its own. Where one of
// them returns true, the outcome is what decode's or encode's would be.
type usual[T any] interface {
	readUsual(raw []byte, like *T) bool // into a zero value, which it leaves where it returns false
	appendUsual(to []byte) ([]byte, bool)
}

// Text is the JSON of o in its user's form, resourceVersion included, with those fields of stored, the bytes that o was read from, that
// its kind does not know. stored may be nil. o is not changed.
func Text(o Object, stored []byte) ([]byte, error) {
	c := Clone(o)
	*c.typeMeta() = TypeMeta{Kind: kindName(c), APIVersion: Version}
	return marshalOver(c, stored)
}

// storer is a kind whose stored form differs from the one that people write. Both directions change the object's own fields, but
// none of the maps and slices that it shares with others.
type storer interface {
	toStored()
	fromStored()
}

func decode(v any, raw []byte) error {
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("decode %s: %w", kindName(v), err)
		}
	}
	if o, ok := v.(Object); ok {
		if t := o.typeMeta(); t.Kind != "" && t.Kind != kindName(v) {
			return fmt.Errorf("decode %s: the stored object says it is a %s", kindName(v), t.Kind)
		}
	}
	if s, ok := v.(storer); ok {
		s.fromStored()
	}
	if d, ok := v.(interface{ Default() }); ok {
		d.Default()
	}
	return nil
}

// encode writes v, a pointer to a copy that it may change, but for what the copy shares.
func encode(v any, prior []byte) ([]byte, error) {
	if o, ok := v.(Object); ok {
		*o.typeMeta() = TypeMeta{Kind: kindName(v), APIVersion: Version}
		o.Meta().ResourceVersion = ""
	}
	if s, ok := v.(storer); ok {
		s.toStored()
	}
	return marshalOver(v, prior)
}

// marshalOver is v's JSON with those fields of prior that v's type does not know.
func marshalOver(v any, prior []byte) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kindName(v), err)
	}
	if len(prior) == 0 || knowsAll(reflect.TypeOf(v).Elem(), prior) {
		return raw, nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, prior); err != nil {
		return nil, fmt.Errorf("encode %s over the stored value: %w", kindName(v), err)
	}
	kept, err := graft(raw, compact.Bytes(), reflect.TypeOf(v).Elem())
	if err != nil {
		return nil, fmt.Errorf("encode %s over the stored value: %w", kindName(v), err)
	}
	return kept, nil
}

// knowsAll reports whether no field of prior would be lost in a value of type t. It takes a tenth of the time of a graft.
func knowsAll(t reflect.Type, prior []byte) bool {
	d := json.NewDecoder(bytes.NewReader(prior))
	d.DisallowUnknownFields()
	if d.Decode(reflect.New(t).Interface()) != nil {
		return false
	}
	_, err := d.Token()
	return err == io.EOF
}

func kindName(v any) string { return reflect.TypeOf(v).Elem().Name() }

// member is one field of a JSON object, in the order in which it stands there.
type member struct {
	key   string
	value json.RawMessage
}

// graft returns the JSON of fresh plus those fields of prior that the type t does not know, at every depth.
func graft(fresh, prior json.RawMessage, t reflect.Type) (json.RawMessage, error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()):
		return fresh, nil
	case t.Kind() == reflect.Struct && isObject(fresh) && isObject(prior):
		return graftObject(fresh, prior, t)
	case t.Kind() == reflect.Slice && holdsStructs(t.Elem()) && isArray(fresh) && isArray(prior):
		return graftArray(fresh, prior, t.Elem())
	}
	return fresh, nil
}

// graftObject keeps each unknown field of prior behind the field that it follows there.
func graftObject(fresh, prior json.RawMessage, t reflect.Type) (json.RawMessage, error) {
	now, err := members(fresh)
	if err != nil {
		return nil, err
	}
	old, err := members(prior)
	if err != nil {
		return nil, err
	}
	known := fields(t)
	at := make(map[string]int, len(now))
	for i, m := range now {
		at[fold(m.key)] = i
	}
	behind := make(map[int][]member) // unknown fields by the place of the field before them; -1: none is before
	last := -1
	for _, m := range old {
		ft, ok := known[fold(m.key)]
		i, present := at[fold(m.key)]
		switch {
		case !ok:
			behind[last] = append(behind[last], m)
		case present:
			last = i
			if now[i].value, err = graft(now[i].value, m.value, ft); err != nil {
				return nil, err
			}
		}
	}
	out := slices.Clone(behind[-1])
	for i, m := range now {
		out = append(append(out, m), behind[i]...)
	}
	return object(out), nil
}

// graftArray pairs each element with the first element of prior that agrees in all fields we know.
func graftArray(fresh, prior json.RawMessage, elem reflect.Type) (json.RawMessage, error) {
	var now, old []json.RawMessage
	if err := json.Unmarshal(fresh, &now); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(prior, &old); err != nil {
		return nil, err
	}
	same := make(map[string][]json.RawMessage, len(old)) // by the part that we know
	for _, o := range old {
		part := string(knownPart(o, elem))
		same[part] = append(same[part], o)
	}
	for i := range now {
		part := string(now[i])
		if len(same[part]) == 0 {
			continue
		}
		kept, err := graft(now[i], same[part][0], elem)
		if err != nil {
			return nil, err
		}
		now[i], same[part] = kept, same[part][1:]
	}
	return json.Marshal(now)
}

// knownPart is raw as our type would write it; nil if it cannot be read.
func knownPart(raw json.RawMessage, t reflect.Type) []byte {
	v := reflect.New(t)
	if json.Unmarshal(raw, v.Interface()) != nil {
		return nil
	}
	out, err := json.Marshal(v.Interface())
	if err != nil {
		return nil
	}
	return out
}

// fold makes field names equal that encoding/json takes for the same field.
func fold(name string) string { return strings.ToLower(strings.ToUpper(name)) }

// fields maps the folded JSON names of a struct, embedded ones included, to their types.
func fields(t reflect.Type) map[string]reflect.Type {
	out := make(map[string]reflect.Type, t.NumField())
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		out[fold(name)] = f.Type
	}
	return out
}

func holdsStructs(t reflect.Type) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[interface{ UnmarshalText([]byte) error }]())
}

func isObject(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '{' }
func isArray(raw json.RawMessage) bool  { return len(raw) > 0 && raw[0] == '[' }

func members(raw json.RawMessage) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	var out []member
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := member{key: key.(string)} // an object's keys are strings by JSON's grammar
		if err := d.Decode(&m.value); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func object(ms []member) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range ms {
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(m.key) // a string always marshals
		b.Write(key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}
