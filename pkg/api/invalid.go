package api

import (
	"fmt"
	"reflect"
	"strings"
)

// FieldError says what is wrong with one field of an object.
type FieldError struct {
	Path   string // as in JSON: spec.ingress[0].source.selector
	Value  string // the bad value; "" where there is none
	Reason string // what is allowed
}

// Error renders path, value and reason, leaving out the latter two where they are empty.
func (f FieldError) Error() string {
	var b strings.Builder
	b.WriteString(clip(f.Path))
	if f.Value != "" {
		fmt.Fprintf(&b, " = '%s'", f.Value)
	}
	if f.Reason != "" {
		fmt.Fprintf(&b, " (%s)", f.Reason)
	}
	return b.String()
}

// InvalidError holds everything that is wrong with one object: at least one field, each path and reason once.
type InvalidError struct {
	Fields []FieldError
}

// Error is one line for one field, else a headline and a line per field.
func (e *InvalidError) Error() string {
	if len(e.Fields) == 1 {
		return "error with field " + e.Fields[0].Error()
	}
	var b strings.Builder
	b.WriteString("error with the following fields:\n")
	for _, f := range e.Fields {
		b.WriteString("-  " + f.Error() + "\n")
	}
	return b.String()
}

// UnsupportedError says that an operation is never done to an object, valid as it may be.
type UnsupportedError struct {
	Op     Op
	Object string // Tier(default)
	Reason string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("operation %s is not supported on %s: %s", e.Op, e.Object, e.Reason)
}

// checker collects what is wrong with one object.
type checker struct {
	fields   []FieldError
	unknowns []unknownField // those of fields that are so
}

// add notes a bad field. A nil value is none; pointers are followed.
func (c *checker) add(path string, value any, reason string, args ...any) {
	f := FieldError{Path: path, Value: valueText(value), Reason: fmt.Sprintf(reason, args...)}
	for _, o := range c.fields {
		if o.Path == f.Path && o.Reason == f.Reason {
			return
		}
	}
	c.fields = append(c.fields, f)
}

func (c *checker) err() error {
	if len(c.fields) == 0 {
		return nil
	}
	return &InvalidError{Fields: c.fields}
}

func valueText(v any) string {
	r := reflect.ValueOf(v)
	for r.Kind() == reflect.Pointer || r.Kind() == reflect.Interface {
		r = r.Elem()
	}
	if !r.IsValid() {
		return ""
	}
	return clip(fmt.Sprint(r.Interface()))
}

// clip keeps messages readable where somebody has pasted a document into a field.
func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
