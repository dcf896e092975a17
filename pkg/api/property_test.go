package api_test

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
)

// TestWhateverADocumentHoldsIsReadOrRefused makes documents of every kind, with fields of the kind and values that are right, wrong and
// strange: what is read can be validated, written and read back, and nothing panics.
func TestWhateverADocumentHoldsIsReadOrRefused(t *testing.T) {
	for _, k := range api.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			read := 0
			rapid.Check(t, func(rt *rapid.T) {
				m := object(rt, reflect.TypeOf(k.New()).Elem(), 6)
				m["kind"], m["apiVersion"] = k.Name, api.Version
				raw, err := json.Marshal(m)
				if err != nil {
					rt.Fatal(err)
				}
				for _, i := range api.Read(raw) {
					if i.Err != nil {
						_ = i.Err.Error()
						continue
					}
					read++
					examine(t, i.Object)
				}
			})
			if read == 0 {
				t.Error("no document was read")
			}
		})
	}
}

// object has some of the fields that a type knows.
func object(t *rapid.T, s reflect.Type, depth int) map[string]any {
	out := map[string]any{}
	for _, f := range reflect.VisibleFields(s) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && rapid.IntRange(0, 2).Draw(t, "has "+name) == 0 {
			out[name] = value(t, f.Type, f.Tag.Get("want"), depth-1)
		}
	}
	return out
}

// texts are words that some field or other wants, and some that none does.
func texts() []string {
	return []string{
		"", "a", "default", "kube-admin", "knp.default.x", "10.0.0.0/16", "10.0.0.1", "10.0.0.1/16", "fd00::/48", "fe80::1", "::ffff:1.2.3.4", "fe80::1%eth0", "0.0.0.0/0",
		"all()", "global()", "has(a) && b == 'c'", "a ==", "TCP", "icmp", "UDP", "30s", "-5m", "2026-01-02T15:04:05Z", "1:2", "1:2:3", "*", "?", "eth0", "host:n",
		"ee:ee:ee:ee:ee:ee", "web", "80", "8000:8010", "GET", "/a", "\xff", "ü", strings.Repeat("x", 300), "(", "0",
	}
}

// value is one that the type takes, nine times of ten, or any.
func value(t *rapid.T, s reflect.Type, want string, depth int) any {
	for s.Kind() == reflect.Pointer {
		s = s.Elem()
	}
	odd := rapid.IntRange(0, 60).Draw(t, "odd") == 0
	text := rapid.SampledFrom(texts()).Draw(t, "text")
	if name, rest, _ := strings.Cut(strings.TrimPrefix(want, "required; "), " "); name == "oneof" || name == "fold" {
		text = rapid.SampledFrom(append(strings.Fields(rest), text)).Draw(t, "word")
	}
	p := reflect.PointerTo(s)
	switch scalar := p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()); {
	case odd:
		return rapid.SampledFrom([]any{nil, true, 1.5, -1, 1e300, "text", []any{}, []any{nil}, map[string]any{}, map[string]any{"a": 1}}).Draw(t, "any")
	case scalar:
		return fitting(t, p)
	case s.Kind() == reflect.Struct && depth > 0:
		return object(t, s, depth)
	case s.Kind() == reflect.Slice && depth > 0:
		out := make([]any, rapid.IntRange(0, 3).Draw(t, "length"))
		for i := range out {
			out[i] = value(t, s.Elem(), want, depth-1)
		}
		return out
	case s.Kind() == reflect.Map:
		return map[string]any{text: rapid.SampledFrom(texts()).Draw(t, "entry")}
	case s.Kind() == reflect.String:
		return text
	case s.Kind() == reflect.Bool:
		return rapid.Bool().Draw(t, "truth")
	case s.Kind() == reflect.Float64:
		return rapid.SampledFrom([]float64{0, -1.5, 1e6, 1e300}).Draw(t, "number")
	case s.Kind() >= reflect.Int && s.Kind() <= reflect.Uint64:
		return rapid.SampledFrom([]int{0, 1, 4, 26, 63, 100}).Draw(t, "whole number")
	}
	return nil
}

// fitting is a text that a type of one word takes.
func fitting(t *rapid.T, p reflect.Type) any {
	fits := rapid.SampledFrom(texts()).Filter(func(s string) bool {
		raw, err := json.Marshal(s)
		return err == nil && json.Unmarshal(raw, reflect.New(p.Elem()).Interface()) == nil
	})
	return fits.Draw(t, fmt.Sprintf("a %v", p.Elem()))
}
