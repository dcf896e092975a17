package api

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// UnknownKindError says that a document is of no kind of this package.
type UnknownKindError struct {
	Kind, APIVersion string
	Suggestion       string // the kind that was probably meant; "": none is near
}

func (e *UnknownKindError) Error() string {
	text := fmt.Sprintf("unknown resource type (%s) and/or version (%s)", clip(e.Kind), clip(e.APIVersion))
	_, known := kindNamed(e.Kind)
	switch {
	case e.Suggestion != "":
		text += "; did you mean " + e.Suggestion + "?"
	case e.Kind == "":
		text += ": it says no kind"
	case known && e.APIVersion != Version:
		text += ": want apiVersion " + Version
	}
	return text
}

// Item is one object of a document.
type Item struct {
	Path   string // where in the document it stands: items[3]; "" for the document itself
	Object Object // nil if Err is set, but for an *UnknownFieldsError: then it is the object without these fields
	Err    error  // *InvalidError with paths below the object, *UnknownFieldsError, *UnknownKindError, or what is wrong with the JSON
}

// UnknownFieldsError says that nothing is wrong with an object but that it has fields that its kind does not have, maybe because a newer
// writer stored them, and they were printed.
type UnknownFieldsError struct {
	*InvalidError
	fields   []unknownField
	document any
}

// unknownField is a field that a kind does not have.
type unknownField struct{ parent, key string }

// Unwrap is the fields as what they are to whoever takes none.
func (e *UnknownFieldsError) Unwrap() error { return e.InvalidError }

// Beyond is nil if the object o, which the error came with, has these fields just as stored has them, the bytes of the same object in the
// datastore: writing o over it keeps them. Else it is an *InvalidError with those of which that is not so.
func (e *UnknownFieldsError) Beyond(o Object, stored []byte) error {
	text, err := Text(o, stored)
	if err != nil {
		return err
	}
	kept, err := parse(text)
	if err != nil {
		return err
	}
	left := &checker{}
	for i, f := range e.fields {
		mine, _ := fieldAt(e.document, f.parent, f.key)
		theirs, there := fieldAt(kept, f.parent, f.key)
		if !there || !reflect.DeepEqual(mine, theirs) {
			left.fields = append(left.fields, e.Fields[i])
		}
	}
	return left.err()
}

// fieldAt finds a field of the object that stands at a path, such as spec.ingress[0], in a JSON tree.
func fieldAt(tree any, parent, key string) (any, bool) {
	for step := range strings.FieldsFuncSeq(parent, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		switch at := tree.(type) {
		case map[string]any:
			tree = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(at) {
				return nil, false
			}
			tree = at[i]
		default:
			return nil, false
		}
	}
	m, _ := tree.(map[string]any)
	v, ok := m[key]
	return v, ok
}

// Read reads a document that people wrote, in JSON: an object, a list of a kind (as IPPoolList, or List), or an array. It is
// strict: a field that the kind does not have, or a value that it cannot take, is an error of that object, and all of its errors are
// found at once. Defaults are not set and nothing is validated. An empty document has no items.
func Read(document []byte) []Item {
	root, err := parse(document)
	if err != nil {
		return []Item{{Err: fmt.Errorf("read JSON: %w", err)}}
	}
	return readItems("", root)
}

func readItems(path string, v any) (out []Item) {
	if list, ok := v.([]any); ok {
		for i, e := range list {
			out = append(out, readItems(fmt.Sprintf("%s[%d]", path, i), e)...)
		}
		return out
	}
	if v == nil && path == "" {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return []Item{{Path: path, Err: fmt.Errorf("read object: want a JSON object and not %s", describe(v))}}
	}
	kind, _ := m["kind"].(string)
	if _, isKind := kindNamed(kind); !isKind && strings.HasSuffix(kind, "List") {
		return readList(join(path, "items"), m["items"])
	}
	o, err := readObject(m, kind)
	return []Item{{Path: path, Object: o, Err: err}}
}

// readList reads what a list has under items, which may be nothing.
func readList(path string, items any) []Item {
	switch items.(type) {
	case nil:
		return nil
	case []any:
		return readItems(path, items)
	}
	return []Item{{Path: path, Err: fmt.Errorf("read %s: want a list and not %s", path, describe(items))}}
}

func kindNamed(name string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// names are what kind may be in a document.
func names() (out []string) {
	for _, k := range Kinds() {
		if !k.Hidden {
			out = append(out, k.Name)
		}
	}
	return out
}

func readObject(m map[string]any, kind string) (Object, error) {
	version, _ := m["apiVersion"].(string)
	k, ok := kindNamed(kind)
	if !ok || version != Version {
		e := &UnknownKindError{Kind: kind, APIVersion: version}
		if !ok {
			e.Suggestion = nearest(kind, names())
		}
		return nil, e
	}
	o := k.New()
	c := &checker{}
	c.strict("", m, reflect.TypeOf(o).Elem())
	if len(c.fields) > len(c.unknowns) {
		return nil, c.err()
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	if len(c.unknowns) > 0 {
		return o, &UnknownFieldsError{InvalidError: &InvalidError{Fields: c.fields}, fields: c.unknowns, document: m}
	}
	return o, nil
}

// Read reads one object that people wrote, of a kind that is known: as the package's Read, and an object of another kind is an error.
func (k Kind) Read(document []byte) (Object, error) {
	items := Read(document)
	switch {
	case len(items) != 1:
		return nil, fmt.Errorf("read %s: want one object and not %d", k.Name, len(items))
	case items[0].Err != nil:
		return nil, items[0].Err
	case items[0].Object.KindOf() != k:
		return nil, fmt.Errorf("read %s: the object says it is a %s", k.Name, items[0].Object.KindOf().Name)
	}
	return items[0].Object, nil
}

// parse reads one JSON value, numbers as they are written.
func parse(document []byte) (v any, err error) {
	if len(bytes.TrimSpace(document)) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one value")
	}
	return v, nil
}

// strict notes everything in v that a value of type t cannot take.
func (c *checker) strict(path string, v any, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case v == nil: // as if it were not there
	case reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()):
		c.strictJSON(path, v, t)
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		c.strictText(path, v, t)
	case t.Kind() == reflect.Struct:
		c.strictStruct(path, v, t)
	case t.Kind() == reflect.Slice:
		list, ok := v.([]any)
		if !ok {
			c.wrongType(path, v, "a list")
		}
		for i, e := range list {
			c.strict(fmt.Sprintf("%s[%d]", path, i), e, t.Elem())
		}
	case t.Kind() == reflect.Map:
		object, ok := v.(map[string]any)
		if !ok {
			c.wrongType(path, v, "an object")
		}
		for _, key := range slices.Sorted(maps.Keys(object)) {
			c.strict(path+"."+key, object[key], t.Elem())
		}
	default:
		c.strictScalar(path, v, t)
	}
}

// passed is metadata that Kubernetes' own objects carry. It may stand in a file, and is not looked at.
func passed() []string {
	return []string{"generateName", "selfLink", "generation", "deletionGracePeriodSeconds", "ownerReferences", "finalizers", "managedFields", "clusterName"}
}

func (c *checker) strictStruct(path string, v any, t reflect.Type) {
	object, ok := v.(map[string]any)
	if !ok {
		c.wrongType(path, v, "an object")
		return
	}
	known := make(map[string]reflect.StructField, t.NumField())
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			known[name] = f
		}
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		f, ok := known[key]
		switch {
		case ok && f.Tag.Get("bad") != "":
			c.strictWith(join(path, key), object[key], f.Type, f.Tag.Get("bad"))
		case ok:
			c.strict(join(path, key), object[key], f.Type)
		case t == reflect.TypeFor[ObjectMeta]() && contains(passed(), key, false):
		default:
			c.unknown(path, key, slices.Collect(maps.Keys(known)))
		}
	}
}

// strictWith is strict for a field whose tag `bad` says in the system's usual words what is wrong.
func (c *checker) strictWith(path string, v any, t reflect.Type, reason string) {
	probe := &checker{}
	probe.strict(path, v, t)
	if len(probe.fields) > 0 {
		c.add(path, v, "%s", reason)
	}
}

func (c *checker) unknown(parent, key string, known []string) {
	slices.Sort(known)
	c.unknowns = append(c.unknowns, unknownField{parent, key})
	hint := ""
	if near := nearest(key, known); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	c.add(join(parent, key), nil, "field in document is not recognized or is in the wrong location%s", hint)
}

func (c *checker) wrongType(path string, v any, want string) {
	var value any
	switch v.(type) {
	case string, json.Number, bool:
		value = v
	}
	c.add(path, value, "must be %s and not %s", want, describe(v))
}

func describe(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case bool:
		return "a truth value"
	case []any:
		return "a list"
	}
	return "an object"
}

func (c *checker) strictJSON(path string, v any, t reflect.Type) {
	raw, err := json.Marshal(v)
	if err != nil {
		c.add(path, nil, "%v", err)
		return
	}
	if err := reflect.New(t).Interface().(json.Unmarshaler).UnmarshalJSON(raw); err != nil {
		c.refused(path, v, err, t)
	}
}

func (c *checker) strictText(path string, v any, t reflect.Type) {
	s, ok := v.(string)
	if !ok {
		c.wrongType(path, v, "a string")
		return
	}
	if err := reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
		c.refused(path, v, err, t)
	}
}

// refused notes a text that t does not take. The errors of types that are not ours are about parsing, and not for people.
func (c *checker) refused(path string, v any, err error, t reflect.Type) {
	reason := err.Error()
	switch t.String() {
	case "netip.Prefix":
		reason = "must be a range such as 10.0.0.0/8"
	case "netip.Addr":
		reason = "must be an IP address"
	case "api.Prefix":
		reason = "must be an address, with or without a prefix length"
	case "time.Time":
		reason = "must be a time such as 2026-01-02T15:04:05Z"
	}
	c.add(path, v, "%s", reason)
}

func (c *checker) strictScalar(path string, v any, t reflect.Type) {
	switch kind := t.Kind(); {
	case kind == reflect.String:
		if _, ok := v.(string); !ok {
			c.wrongType(path, v, "a string")
		}
	case kind == reflect.Bool:
		if _, ok := v.(bool); !ok {
			c.wrongType(path, v, "true or false")
		}
	case kind == reflect.Float64 || kind == reflect.Float32:
		n, ok := v.(json.Number)
		if !ok {
			c.wrongType(path, v, "a number")
		} else if f, err := n.Float64(); err != nil || math.IsInf(f, 0) {
			c.add(path, v, "is too great a number")
		}
	default:
		c.strictInt(path, v, t)
	}
}

func (c *checker) strictInt(path string, v any, t reflect.Type) {
	n, ok := v.(json.Number)
	if !ok {
		c.wrongType(path, v, "a whole number")
		return
	}
	var err error
	low, high := int64(math.MinInt64), uint64(math.MaxInt64)
	if size := t.Bits(); t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64 {
		low, high = 0, math.MaxUint64>>(64-size)
		_, err = strconv.ParseUint(n.String(), 10, size)
	} else {
		low, high = low>>(64-size), high>>(64-size)
		_, err = strconv.ParseInt(n.String(), 10, size)
	}
	if err != nil {
		c.add(path, v, "must be a whole number between %d and %d", low, high)
	}
}
