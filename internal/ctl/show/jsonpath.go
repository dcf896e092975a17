package show

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// jsonPath prints by a template of kubectl's kind: text with paths in braces, as in {.spec.cidr}, {.items[*].metadata.name},
// {range .items[*]}{.metadata.name}{"\n"}{end} and {.items[?(@.spec.disabled==true)].metadata.name}. Steps are .name, ['name'], [n],
// [*], .*, ..name and filters with == and !=, or with the mere presence of a field. Several named objects are a list.
func jsonPath(text string) (func(io.Writer, Result) error, error) {
	nodes, rest, err := parseTemplate(text)
	if err == nil && rest != "" {
		err = errors.New("{end} without {range}")
	}
	if err != nil {
		return nil, fmt.Errorf("read jsonpath template: %w", err)
	}
	return func(w io.Writer, r Result) error {
		r.List = r.List || len(r.Items) != 1
		doc, err := document(r)
		if err != nil {
			return err
		}
		tree, err := treeOf(doc)
		if err != nil {
			return err
		}
		return render(w, nodes, tree)
	}, nil
}

// part is a piece of a template: text, a path, or a range over a path.
type part struct {
	text string
	path []step
	body []part // not nil: a range
}

// parseTemplate reads parts until {end} or the end; rest is "end" for the former and then what follows.
func parseTemplate(s string) (out []part, rest string, err error) {
	for s != "" {
		before, after, found := strings.Cut(s, "{")
		if before != "" {
			out = append(out, part{text: before})
		}
		if !found {
			return out, "", nil
		}
		inner, after, err := action(after)
		if err != nil {
			return nil, "", err
		}
		s = after
		switch word, arg, _ := strings.Cut(inner, " "); {
		case inner == "end":
			return out, "end" + s, nil
		case word == "range":
			p := part{}
			if p.path, err = parsePath(strings.TrimSpace(arg)); err != nil {
				return nil, "", err
			}
			body, rest, err := parseTemplate(s)
			if err != nil {
				return nil, "", err
			}
			after, ended := strings.CutPrefix(rest, "end")
			if !ended {
				return nil, "", errors.New("{range} without {end}")
			}
			p.body, s = append([]part{}, body...), after
			out = append(out, p)
		case strings.HasPrefix(inner, `"`), strings.HasPrefix(inner, "'"):
			literal, err := unquote(inner)
			if err != nil {
				return nil, "", err
			}
			out = append(out, part{text: literal})
		default:
			path, err := parsePath(inner)
			if err != nil {
				return nil, "", err
			}
			out = append(out, part{path: path})
		}
	}
	return out, "", nil
}

// action is what stands before the closing brace, which may occur in quotes.
func action(s string) (inner, after string, err error) {
	var quote byte
	for i := range len(s) {
		switch {
		case quote != 0 && s[i] == '\\':
		case quote != 0:
			if s[i] == quote && s[i-1] != '\\' {
				quote = 0
			}
		case s[i] == '"' || s[i] == '\'':
			quote = s[i]
		case s[i] == '}':
			return strings.TrimSpace(s[:i]), s[i+1:], nil
		}
	}
	return "", "", fmt.Errorf("no } behind {%s", s)
}

func unquote(s string) (string, error) {
	if len(s) < 2 || s[len(s)-1] != s[0] {
		return "", fmt.Errorf("%s: want a text in quotes", s)
	}
	if s[0] == '\'' {
		return s[1 : len(s)-1], nil
	}
	return strconv.Unquote(s)
}

// step leads from values to parts of them.
type step func(v any) []any

func parsePath(s string) (out []step, err error) {
	s = strings.TrimLeft(s, "$@")
	if s != "" && s[0] != '.' && s[0] != '[' {
		return nil, fmt.Errorf("%s: want a path such as .metadata.name", s)
	}
	for s != "" {
		var next step
		switch {
		case strings.HasPrefix(s, ".."):
			name, rest := word(s[2:])
			next, s = deep(name), rest
		case s == ".":
			return out, nil
		case strings.HasPrefix(s, ".["):
			s = s[1:]
			continue
		case s[0] == '.':
			name, rest := word(s[1:])
			next, s = field(name), rest
			if name == "*" {
				next = children
			}
		default:
			inner, rest, ok := bracket(s)
			if !ok {
				return nil, fmt.Errorf("%s: want [n], [*], ['name'] or [?(@.name==\"value\")]", s)
			}
			if next, err = subscript(inner); err != nil {
				return nil, err
			}
			s = rest
		}
		out = append(out, next)
	}
	return out, nil
}

// word is a field's name, in which a backslash keeps a dot from ending it.
func word(s string) (name, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '.' || s[i] == '[':
			return b.String(), s[i:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}

// bracket is what stands between s's first bracket and its counterpart.
func bracket(s string) (inner, rest string, ok bool) {
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '[':
			depth++
		case ']':
			if depth--; depth == 0 {
				return s[1:i], s[i+1:], true
			}
		}
	}
	return "", "", false
}

func subscript(inner string) (step, error) {
	switch {
	case inner == "*":
		return children, nil
	case strings.HasPrefix(inner, "?(") && strings.HasSuffix(inner, ")"):
		return filter(inner[2 : len(inner)-1])
	case strings.HasPrefix(inner, "'") || strings.HasPrefix(inner, `"`):
		name, err := unquote(inner)
		return field(name), err
	}
	n, err := strconv.Atoi(inner)
	if err != nil {
		return nil, fmt.Errorf("[%s]: want a number, *, a name in quotes or a filter", inner)
	}
	return func(v any) []any {
		list, _ := v.([]any)
		i := n
		if i < 0 {
			i += len(list)
		}
		if i < 0 || i >= len(list) {
			return nil
		}
		return list[i : i+1]
	}, nil
}

func field(name string) step {
	return func(v any) []any {
		m, _ := v.(map[string]any)
		if part, ok := m[name]; ok {
			return []any{part}
		}
		return nil
	}
}

func children(v any) (out []any) {
	switch v := v.(type) {
	case []any:
		return v
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			out = append(out, v[key])
		}
	}
	return out
}

// deep finds a field at any depth.
func deep(name string) step {
	var look step
	look = func(v any) []any {
		out := field(name)(v)
		for _, c := range children(v) {
			out = append(out, look(c)...)
		}
		return out
	}
	return look
}

// filter keeps the children that have a field, or have it with a value.
func filter(expr string) (step, error) {
	left, right, equal := strings.Cut(expr, "==")
	unequal := false
	if !equal {
		left, right, unequal = strings.Cut(expr, "!=")
	}
	path, err := parsePath(strings.TrimSpace(left))
	if err != nil {
		return nil, err
	}
	want := strings.TrimSpace(right)
	if strings.HasPrefix(want, `"`) || strings.HasPrefix(want, "'") {
		if want, err = unquote(want); err != nil {
			return nil, err
		}
	}
	return func(v any) (out []any) {
		for _, c := range children(v) {
			got := walk(path, c)
			same := len(got) > 0 && text(got[0]) == want
			if !equal && !unequal && len(got) > 0 || equal && same || unequal && !same {
				out = append(out, c)
			}
		}
		return out
	}, nil
}

func walk(path []step, v any) []any {
	now := []any{v}
	for _, s := range path {
		var next []any
		for _, v := range now {
			next = append(next, s(v)...)
		}
		now = next
	}
	return now
}

func render(w io.Writer, parts []part, v any) error {
	for _, p := range parts {
		found := walk(p.path, v)
		switch {
		case p.body != nil:
			for _, e := range found {
				if err := render(w, p.body, e); err != nil {
					return err
				}
			}
		case p.path == nil && p.text != "":
			fmt.Fprint(w, p.text)
		default:
			texts := make([]string, len(found))
			for i, e := range found {
				texts[i] = text(e)
			}
			fmt.Fprint(w, strings.Join(texts, " "))
		}
	}
	return nil
}

// text is a scalar as plain does, and all else as JSON.
func text(v any) string {
	switch v.(type) {
	case []any, map[string]any:
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if e.Encode(v) != nil {
			return ""
		}
		return strings.TrimSpace(b.String())
	}
	return plain(v)
}
