package selector_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/selector"
)

// expr is a selector as the tests understand it, independent of the package's own tree: how it is spelled, with arbitrary but
// valid spacing, quotes and parentheses, and what it means.
type expr struct {
	text string
	eval func(selector.Map) bool
}

// Small alphabets, so that random selectors and random labels often meet.
var (
	someKeys   = rapid.SampledFrom([]string{"a", "b", "in", "has", "x.y/z-1", "projectcalico.org/namespace"})
	someValues = rapid.SampledFrom([]string{"", "a", "b", "ab", "ba", "aba", "it's", `"q"`})
)

func drawLabels(t *rapid.T) selector.Map {
	return rapid.MapOf(someKeys, someValues).Draw(t, "labels")
}

func drawSpace(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", " ", "  ", "\t", "\n"}).Draw(t, "space")
}

// glue joins tokens with random space between them.
func glue(t *rapid.T, tokens ...string) string {
	var b strings.Builder
	for i, token := range tokens {
		if i > 0 {
			b.WriteString(drawSpace(t))
		}
		b.WriteString(token)
	}
	return b.String()
}

func drawQuoted(t *rapid.T, value string) string {
	if strings.Contains(value, `"`) || !strings.Contains(value, `'`) && rapid.Bool().Draw(t, "single quotes") {
		return "'" + value + "'"
	}
	return `"` + value + `"`
}

func drawExpr(t *rapid.T, depth int) expr {
	if depth == 0 || rapid.IntRange(0, 2).Draw(t, "leaf") == 0 {
		return drawLeaf(t)
	}
	left := drawExpr(t, depth-1)
	inner := glue(t, "(", left.text, ")")
	switch rapid.SampledFrom([]string{"!", "()", "&&", "||"}).Draw(t, "connective") {
	case "!":
		return expr{glue(t, "!", inner), func(m selector.Map) bool { return !left.eval(m) }}
	case "()":
		return expr{inner, left.eval}
	case "&&":
		right := drawExpr(t, depth-1)
		return expr{
			glue(t, inner, "&&", "(", right.text, ")"),
			func(m selector.Map) bool { l, r := left.eval(m), right.eval(m); return l && r },
		}
	}
	// A bare left side: whatever it is, "||" binds looser.
	right := drawExpr(t, depth-1)
	return expr{
		glue(t, left.text, "||", right.text),
		func(m selector.Map) bool { l, r := left.eval(m), right.eval(m); return l || r },
	}
}

func drawLeaf(t *rapid.T) expr {
	k, v := someKeys.Draw(t, "key"), someValues.Draw(t, "value")
	lit := drawQuoted(t, v)
	switch rapid.SampledFrom([]string{
		"all", "global", "has", "!has", "==", "!=", "contains", "starts with", "ends with", "in", "not in",
	}).Draw(t, "leaf kind") {
	case "all":
		return expr{glue(t, "all(", ")"), func(selector.Map) bool { return true }}
	case "global":
		return expr{glue(t, "global(", ")"), func(m selector.Map) bool {
			_, ok := m["projectcalico.org/namespace"]
			return !ok
		}}
	case "has":
		return expr{glue(t, "has(", k, ")"), func(m selector.Map) bool { _, ok := m[k]; return ok }}
	case "!has":
		return expr{glue(t, "!", "has(", k, ")"), func(m selector.Map) bool { _, ok := m[k]; return !ok }}
	case "==":
		return expr{glue(t, k, "==", lit), func(m selector.Map) bool { got, ok := m[k]; return ok && got == v }}
	case "!=":
		return expr{glue(t, k, "!=", lit), func(m selector.Map) bool { got, ok := m[k]; return !(ok && got == v) }}
	case "contains":
		return expr{glue(t, k+" contains", lit), func(m selector.Map) bool {
			got, ok := m[k]
			return ok && strings.Contains(got, v)
		}}
	case "starts with":
		return expr{glue(t, k+" starts ", "with", lit), func(m selector.Map) bool {
			got, ok := m[k]
			return ok && strings.HasPrefix(got, v)
		}}
	case "ends with":
		return expr{glue(t, k+" ends ", "with", lit), func(m selector.Map) bool {
			got, ok := m[k]
			return ok && strings.HasSuffix(got, v)
		}}
	case "in":
		values, set := drawSet(t)
		return expr{glue(t, k+" in", set), func(m selector.Map) bool {
			got, ok := m[k]
			return ok && slices.Contains(values, got)
		}}
	}
	values, set := drawSet(t)
	return expr{glue(t, k+" not ", "in", set), func(m selector.Map) bool {
		got, ok := m[k]
		return !(ok && slices.Contains(values, got))
	}}
}

func drawSet(t *rapid.T) (values []string, text string) {
	values = rapid.SliceOfN(someValues, 0, 4).Draw(t, "values")
	tokens := []string{"{"}
	for i, value := range values {
		if i > 0 {
			tokens = append(tokens, ",")
		}
		tokens = append(tokens, drawQuoted(t, value))
	}
	return values, glue(t, append(tokens, "}")...)
}

func drawParsed(t *rapid.T) (expr, selector.Selector) {
	e := drawExpr(t, rapid.IntRange(0, 5).Draw(t, "depth"))
	sel, err := selector.Parse(e.text)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return e, sel
}

func TestPropertyCanonicalTextParsesBackToAnEqualSelector(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, sel := drawParsed(t)
		again, err := selector.Parse(sel.String())
		if err != nil {
			t.Fatalf("canonical text of %q: %v", e.text, err)
		}
		if !again.Equal(sel) || again.String() != sel.String() {
			t.Fatalf("%q printed as %q, then as %q", e.text, sel, again)
		}
	})
}

func TestPropertyMatchEqualsNaiveEvaluation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, sel := drawParsed(t)
		labels := drawLabels(t)
		if got, want := sel.Match(labels), e.eval(labels); got != want {
			t.Fatalf("%q on %v: got %v, want %v", e.text, labels, got, want)
		}
	})
}

func TestPropertyRestrictionsHoldForEveryMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, sel := drawParsed(t)
		checkRestrictions(t, sel, drawLabels(t))
	})
}

func TestPropertyOnlyLabelsInKeysMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, sel := drawParsed(t)
		labels := drawLabels(t)
		relevant := selector.Map{}
		for _, key := range sel.Keys() {
			if value, ok := labels[key]; ok {
				relevant[key] = value
			}
		}
		if sel.Match(labels) != sel.Match(relevant) {
			t.Fatalf("%q: %v and %v differ, keys are %v", sel, labels, relevant, sel.Keys())
		}
	})
}

// checkRestrictions fails if sel matches labels that violate one of its restrictions, or if a restriction is malformed.
func checkRestrictions(t interface{ Fatalf(string, ...any) }, sel selector.Selector, labels selector.Map) {
	matches := sel.Match(labels)
	for key, r := range sel.Restrictions() {
		if !r.MustBePresent && !r.MustBeAbsent {
			t.Fatalf("%q: the restriction on %q demands nothing: %+v", sel, key, r)
		}
		if r.MustHaveOneOf != nil && !r.MustBePresent {
			t.Fatalf("%q: values without presence for %q: %+v", sel, key, r)
		}
		if !slices.IsSorted(r.MustHaveOneOf) || len(slices.Compact(slices.Clone(r.MustHaveOneOf))) != len(r.MustHaveOneOf) {
			t.Fatalf("%q: values for %q are not a sorted set: %q", sel, key, r.MustHaveOneOf)
		}
		if value, ok := labels[key]; matches && !r.Allows(value, ok) {
			t.Fatalf("%q matches %v but demands %+v of %q", sel, labels, r, key)
		}
	}
}
