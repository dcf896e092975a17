package selector_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/selector"
)

func TestMatch(t *testing.T) {
	abc, empty := selector.Map{"k": "abc"}, selector.Map{"k": ""}
	tests := []struct {
		sel     string
		match   []selector.Map
		nomatch []selector.Map
	}{
		{sel: ``, match: []selector.Map{nil, abc, empty}},
		{sel: `all()`, match: []selector.Map{nil, abc, empty}},
		{sel: `!all()`, nomatch: []selector.Map{nil, abc, empty}},
		{
			sel:     `global()`,
			match:   []selector.Map{nil, abc},
			nomatch: []selector.Map{{"projectcalico.org/namespace": "default"}},
		},
		{sel: `k == 'abc'`, match: []selector.Map{abc}, nomatch: []selector.Map{nil, empty, {"k": "ABC"}, {"K": "abc"}}},
		{sel: `k == ''`, match: []selector.Map{empty}, nomatch: []selector.Map{nil, abc}},
		{sel: `k != 'abc'`, match: []selector.Map{nil, empty, {"k": "x"}}, nomatch: []selector.Map{abc}},
		{sel: `k != ''`, match: []selector.Map{nil, abc}, nomatch: []selector.Map{empty}},
		{sel: `!k == 'abc'`, match: []selector.Map{nil, empty}, nomatch: []selector.Map{abc}},
		{sel: `k in {'x', 'abc', 'y'}`, match: []selector.Map{abc, {"k": "y"}}, nomatch: []selector.Map{nil, empty, {"k": "z"}}},
		{sel: `k in {}`, nomatch: []selector.Map{nil, empty, abc}},
		{sel: `k not in {'x', 'abc', 'y'}`, match: []selector.Map{nil, empty, {"k": "z"}}, nomatch: []selector.Map{abc}},
		{sel: `k not in {}`, match: []selector.Map{nil, empty, abc}},
		{sel: `k contains 'b'`, match: []selector.Map{abc}, nomatch: []selector.Map{nil, empty, {"k": "ac"}}},
		{sel: `k contains ''`, match: []selector.Map{abc, empty}, nomatch: []selector.Map{nil}},
		{sel: `!k contains 'b'`, match: []selector.Map{nil, empty}, nomatch: []selector.Map{abc}},
		{sel: `k starts with 'ab'`, match: []selector.Map{abc}, nomatch: []selector.Map{nil, empty, {"k": "cab"}}},
		{sel: `k ends with 'bc'`, match: []selector.Map{abc}, nomatch: []selector.Map{nil, empty, {"k": "bca"}}},
		{sel: `has(k)`, match: []selector.Map{abc, empty}, nomatch: []selector.Map{nil, {"kk": "abc"}}},
		{sel: `!has(k)`, match: []selector.Map{nil, {"kk": "abc"}}, nomatch: []selector.Map{abc, empty}},
		{
			sel:     `has(a) || has(b) && has(c)`,
			match:   []selector.Map{{"a": ""}, {"b": "", "c": ""}},
			nomatch: []selector.Map{nil, {"b": ""}, {"c": ""}},
		},
		{
			sel:     `(has(a) || has(b)) && has(c)`,
			match:   []selector.Map{{"a": "", "c": ""}, {"b": "", "c": ""}},
			nomatch: []selector.Map{nil, {"a": ""}, {"c": ""}},
		},
		{
			sel:     `!has(a) && has(b)`,
			match:   []selector.Map{{"b": ""}},
			nomatch: []selector.Map{nil, {"a": ""}, {"a": "", "b": ""}},
		},
		{
			sel:     `!(has(a) && has(b))`,
			match:   []selector.Map{nil, {"a": ""}, {"b": ""}},
			nomatch: []selector.Map{{"a": "", "b": ""}},
		},
	}
	for _, tc := range tests {
		sel := mustParse(t, tc.sel)
		for _, labels := range tc.match {
			if !sel.Match(labels) {
				t.Errorf("%q does not match %v", tc.sel, labels)
			}
		}
		for _, labels := range tc.nomatch {
			if sel.Match(labels) {
				t.Errorf("%q matches %v", tc.sel, labels)
			}
		}
	}
}

func TestZeroSelectorMatchesEverything(t *testing.T) {
	var zero selector.Selector
	for _, labels := range []selector.Labels{nil, selector.Map(nil), selector.Map{"k": "v"}} {
		if !zero.Match(labels) {
			t.Errorf("does not match %v", labels)
		}
	}
	if zero.String() != "all()" || zero.UsesGlobal() || len(zero.Keys()) != 0 || len(zero.Restrictions()) != 0 {
		t.Errorf("got %q, global %v, keys %v, restrictions %v", zero, zero.UsesGlobal(), zero.Keys(), zero.Restrictions())
	}
}

func TestMatchTakesNilLabelsAsTheEmptySet(t *testing.T) {
	if mustParse(t, "has(k)").Match(nil) || !mustParse(t, "k != 'v'").Match(nil) {
		t.Error("nil labels do not behave like the empty set")
	}
}

func TestUsesGlobalFindsItAtAnyDepth(t *testing.T) {
	for in, want := range map[string]bool{
		``:                                false,
		`has(k) && global == 'x'`:         false,
		`k == 'global()'`:                 false,
		`global()`:                        true,
		`has(a) && !(has(b) || global())`: true,
	} {
		if got := mustParse(t, in).UsesGlobal(); got != want {
			t.Errorf("%q: got %v", in, got)
		}
	}
}

func TestKeysListsEveryLabelOnce(t *testing.T) {
	sel := mustParse(t, `z == '1' && (has(b) || !(b contains 'x')) && a not in {'q'} && global()`)
	want := []string{"a", "b", "projectcalico.org/namespace", "z"}
	if diff := cmp.Diff(want, sel.Keys()); diff != "" {
		t.Error(diff)
	}
}

func TestRestrictions(t *testing.T) {
	type demands = map[string]selector.Restriction
	present, absent := selector.Restriction{MustBePresent: true}, selector.Restriction{MustBeAbsent: true}
	oneOf := func(values ...string) selector.Restriction {
		return selector.Restriction{MustBePresent: true, MustHaveOneOf: append([]string{}, values...)}
	}
	tests := []struct {
		sel  string
		want demands
	}{
		{`all()`, demands{}},
		{`!all()`, demands{}},
		{`has(k)`, demands{"k": present}},
		{`!has(k)`, demands{"k": absent}},
		{`global()`, demands{"projectcalico.org/namespace": absent}},
		{`!global()`, demands{"projectcalico.org/namespace": present}},
		{`k == 'v'`, demands{"k": oneOf("v")}},
		{`k != 'v'`, demands{}},
		{`!k != 'v'`, demands{"k": oneOf("v")}},
		{`k in {'b', 'a'}`, demands{"k": oneOf("a", "b")}},
		{`k in {}`, demands{"k": oneOf()}},
		{`!k not in {'a'}`, demands{"k": oneOf("a")}},
		{`!k in {'a'}`, demands{}},
		{`k contains 'x'`, demands{"k": present}},
		{`k starts with 'x'`, demands{"k": present}},
		{`k ends with 'x'`, demands{"k": present}},
		{`!k contains 'x'`, demands{}},
		{`a == '1' && has(b) && !has(c)`, demands{"a": oneOf("1"), "b": present, "c": absent}},
		{`k in {'a','b'} && k in {'b','c'} && has(k)`, demands{"k": oneOf("b")}},
		{`k == 'a' && k == 'b'`, demands{"k": oneOf()}},
		{`has(k) && !has(k)`, demands{"k": {MustBePresent: true, MustBeAbsent: true}}},
		{`k == 'c' || k in {'a', 'b'} || k == 'a'`, demands{"k": oneOf("a", "b", "c")}},
		{`k == 'a' || k contains 'b'`, demands{"k": present}},
		{`k == 'a' || !has(k)`, demands{}},
		{`a == '1' && has(b) || a == '2'`, demands{"a": oneOf("1", "2")}},
		{`a == '1' || has(b)`, demands{}},
		{`!(k != 'a' || has(b))`, demands{"k": oneOf("a"), "b": absent}},
		{`!(k != 'a' && k != 'b')`, demands{"k": oneOf("a", "b")}},
	}
	for _, tc := range tests {
		if diff := cmp.Diff(tc.want, mustParse(t, tc.sel).Restrictions()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tc.sel, diff)
		}
	}
}

func TestRestrictionsBelongToTheCaller(t *testing.T) {
	sel := mustParse(t, `k in {'a', 'b'} && (j == 'x' || j == 'y')`)
	first := sel.Restrictions()
	first["k"].MustHaveOneOf[0], first["j"].MustHaveOneOf[0] = "changed", "changed"
	if !sel.Match(selector.Map{"k": "a", "j": "x"}) {
		t.Error("changing a result changed the selector")
	}
	if got := sel.Restrictions()["k"].MustHaveOneOf; !cmp.Equal(got, []string{"a", "b"}) {
		t.Errorf("second result is %v", got)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	sel := mustParse(t, benchmarkText)
	labels := benchmarkLabels()
	if !sel.Match(labels) {
		t.Fatal("does not match")
	}
	if n := testing.AllocsPerRun(100, func() { sel.Match(labels) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

const benchmarkText = `projectcalico.org/orchestrator == "k8s" && app in {"api", "db", "web"} && ` +
	`(tier starts with "front" || !has(legacy) && env not in {"dev", "test"}) && track != "canary"`

func benchmarkLabels() selector.Map {
	return selector.Map{"projectcalico.org/orchestrator": "k8s", "app": "web", "tier": "back", "env": "prod"}
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(benchmarkText)))
	for b.Loop() {
		if _, err := selector.Parse(benchmarkText); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	sel, labels := mustParse(b, benchmarkText), benchmarkLabels()
	b.ReportAllocs()
	for b.Loop() {
		if !sel.Match(labels) {
			b.Fatal("does not match")
		}
	}
}

// BenchmarkRestrictions shows that a long chain of alternatives does not cost quadratic time.
func BenchmarkRestrictions(b *testing.B) {
	for _, n := range []int{10, 1_000, 100_000} {
		terms := make([]string, n)
		for i := range terms {
			terms[i] = fmt.Sprintf("k == '%d'", i)
		}
		sel := mustParse(b, strings.Join(terms, " || "))
		b.Run(fmt.Sprintf("alternatives=%d", n), func(b *testing.B) {
			for b.Loop() {
				sel.Restrictions()
			}
		})
	}
}
