package show

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
	"unicode"
	"unicode/utf8"

	"github.com/muslin-cni/muslin/pkg/api"
)

// printing is the function that every value of a template goes through on its way out. Nobody can write its name.
const printing = "_text"

// goTemplate prints by a text/template. Its data is a slice: of one list with Items, or of the objects. An object has calicoctl's names
// (.ObjectMeta.Name, .Spec.CIDR) and those of its JSON (.metadata.name, .spec.cidr). Scalars are printed as tables have them, everything
// else as JSON, and what is not there as nothing: a template never shows how Go keeps a value.
func goTemplate(source string, set Settings) (func(io.Writer, Result) error, error) {
	t, err := template.New("go-template").Funcs(functions(set)).Parse(source)
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	for _, each := range t.Templates() {
		printText(each.Root)
	}
	return func(w io.Writer, r Result) error {
		data, err := views(r)
		if err != nil {
			return err
		}
		if err := t.Execute(w, data); err != nil {
			return fmt.Errorf("%w (the data is a list: {{range .}}, and within it, of a whole kind, {{range .Items}})", err)
		}
		return nil
	}, nil
}

// functions are calicoctl's, and those of text/template that print, so that they print as everything else is printed.
func functions(set Settings) template.FuncMap {
	return template.FuncMap{
		printing: rendered,
		"join":   func(v any, sep string) string { return strings.Join(texts(v), sep) },
		"joinAndTruncate": func(v any, sep string, most int) string {
			return truncate(strings.Join(texts(v), sep), most)
		},
		"config": func(key string) string {
			switch {
			case !strings.EqualFold(key, "asnumber"):
				return ""
			case set.ASN == nil:
				return "64512"
			}
			return set.ASN()
		},
		"print":   readable(fmt.Sprint),
		"println": readable(fmt.Sprintln),
		"printf": func(format string, args ...any) string {
			args = printable(args)
			return fmt.Sprintf(format, args...)
		},
	}
}

// readable is a function of fmt's on what is printable.
func readable(of func(...any) string) func(...any) string {
	return func(args ...any) string {
		args = printable(args)
		return of(args...)
	}
}

// printText has every action below n end in printing, as html/template has them end in escapers.
func printText(n parse.Node) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil { // no {{else}}
			return
		}
		for _, each := range n.Nodes {
			printText(each)
		}
	case *parse.ActionNode:
		if len(n.Pipe.Decl) == 0 {
			name := parse.NewIdentifier(printing).SetPos(n.Pos)
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{name}})
		}
	case *parse.IfNode:
		printText(n.List)
		printText(n.ElseList)
	case *parse.RangeNode:
		printText(n.List)
		printText(n.ElseList)
	case *parse.WithNode:
		printText(n.List)
		printText(n.ElseList)
	}
}

// object is a resource or a list as templates see it: a map with Go's names, which begin in upper case, beside those of JSON.
type object map[string]any

// MarshalJSON leaves out Go's names: what they say is there already.
func (o object) MarshalJSON() ([]byte, error) {
	out := make(map[string]any, len(o))
	for name, v := range o {
		if first, _ := utf8.DecodeRuneInString(name); !unicode.IsUpper(first) {
			out[name] = v
		}
	}
	return json.Marshal(out)
}

// views are what a template works on.
func views(r Result) ([]any, error) {
	data := make([]any, len(r.Items))
	for i, it := range r.Items {
		var err error
		if data[i], err = view(it); err != nil {
			return nil, err
		}
	}
	if !r.List {
		return data, nil
	}
	rev := strconv.FormatInt(r.Rev, 10)
	return []any{object{
		"Kind": r.Kind.List(), "APIVersion": api.Version, "Items": data, "ResourceVersion": rev,
		"kind": r.Kind.List(), "apiVersion": api.Version, "items": data, "metadata": map[string]any{"resourceVersion": rev},
	}}, nil
}

// view is an object as templates see it.
func view(it Item) (object, error) {
	tree, err := treeOf(it.Text)
	if err != nil {
		return nil, err
	}
	out := object{}
	if m, ok := numbers(tree).(map[string]any); ok {
		out = m
	}
	m := *it.Object.Meta()
	out["ObjectMeta"], out["Kind"], out["APIVersion"] = m, it.Object.KindOf().Name, api.Version
	out["Name"], out["Namespace"], out["UID"], out["ResourceVersion"] = m.Name, m.Namespace, m.UID, m.ResourceVersion
	out["Labels"], out["Annotations"] = m.Labels, m.Annotations
	v := reflect.ValueOf(it.Object).Elem()
	for _, name := range []string{"Spec", "Status"} {
		if f := v.FieldByName(name); f.IsValid() {
			out[name] = f.Interface()
		}
	}
	return out, nil
}

// numbers makes numbers of a JSON tree's numbers, which templates can compare.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
		return v.String()
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	}
	return v
}

// rendered is a value for people: a scalar as it is, nothing for what is not there, and JSON for everything else.
func rendered(v any) (string, error) {
	r := reflect.ValueOf(v)
	for r.Kind() == reflect.Pointer || r.Kind() == reflect.Interface {
		r = r.Elem()
	}
	if !r.IsValid() {
		return "", nil
	}
	v = r.Interface()
	if m, ok := v.(encoding.TextMarshaler); ok {
		out, err := m.MarshalText()
		return string(out), err
	}
	_, special := v.(json.Marshaler)
	switch kind := r.Kind(); {
	case special:
	case kind == reflect.String:
		return r.String(), nil
	case r.CanFloat():
		return strconv.FormatFloat(r.Float(), 'f', -1, 64), nil
	case kind == reflect.Bool || r.CanInt() || r.CanUint():
		return fmt.Sprint(r.Interface()), nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return unquoted(bytes.TrimSpace(b.Bytes())), nil
}

// unquoted is JSON as it is printed: a text, which a type with a JSON of its own may write, without quotes.
func unquoted(raw []byte) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// printable makes texts of what fmt would print as Go keeps it, and leaves scalars, which formats as %d want.
func printable(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		out[i] = a
		switch r := reflect.ValueOf(a); r.Kind() {
		case reflect.Bool, reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
			reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		default:
			s, err := rendered(a)
			if err != nil {
				s = err.Error()
			}
			out[i] = s
		}
	}
	return out
}

// texts are the elements of a list as text.
func texts(v any) []string {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Slice && r.Kind() != reflect.Array {
		s, err := rendered(v)
		if err != nil {
			s = err.Error()
		}
		return []string{s}
	}
	out := make([]string, r.Len())
	for i := range out {
		s, err := rendered(r.Index(i).Interface())
		if err != nil {
			s = err.Error()
		}
		out[i] = s
	}
	return out
}
