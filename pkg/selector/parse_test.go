package selector_test

import (
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/pkg/selector"
)

func mustParse(t testing.TB, s string) selector.Selector {
	t.Helper()
	sel, err := selector.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

// accepted lists texts of the language with their canonical form.
var accepted = []struct{ in, canonical string }{
	{``, `all()`},
	{" \t\r\n", `all()`},
	{`all()`, `all()`},
	{` all( ) `, `all()`},
	{`(((all())))`, `all()`},
	{`global()`, `global()`},
	{`has(k)`, `has(k)`},
	{`has( k )`, `has(k)`},
	{`!has(k)`, `!has(k)`},
	{`! has(k)`, `!has(k)`},
	{`!(has(k))`, `!has(k)`},
	{`!!has(k)`, `has(k)`},
	{`! ! !has(k)`, `!has(k)`},
	{`!(!(has(k)))`, `has(k)`},
	{`!all()`, `!all()`},

	{`k == 'v'`, `k == "v"`},
	{`k=='v'`, `k == "v"`},
	{"k\n==\t\"v\"", `k == "v"`},
	{`k == ''`, `k == ""`},
	{`k == 'say "x"'`, `k == 'say "x"'`},
	{`k == "it's"`, `k == "it's"`},
	{`k == "a\"`, `k == "a\"`},
	{`k == " é && || ) "`, `k == " é && || ) "`},
	{`k!="v"`, `k != "v"`},
	{`!k == 'v'`, `!(k == "v")`},
	{`k contains 'x'`, `k contains "x"`},
	{`k contains"x"`, `k contains "x"`},
	{`k starts   with 'x'`, `k starts with "x"`},
	{`k startswith 'x'`, `k starts with "x"`},
	{`k ends with"x"`, `k ends with "x"`},
	{"k ends\twith 'x'", `k ends with "x"`},

	{`k in {'a','b'}`, `k in {"a", "b"}`},
	{`k in{"b","c"}`, `k in {"b", "c"}`},
	{`k in { 'b' , "a", 'b', }`, `k in {"a", "b"}`},
	{`k in {'x"', 'y'}`, `k in {'x"', "y"}`},
	{`k in {}`, `k in {}`},
	{`k in { }`, `k in {}`},
	{`k not in {'a'}`, `k not in {"a"}`},
	{`k not  in{ }`, `k not in {}`},
	{`k notin {'a'}`, `k not in {"a"}`},

	{`projectcalico.org/name_space-1 == 'x'`, `projectcalico.org/name_space-1 == "x"`},
	{`has(projectcalico.org/namespace)`, `has(projectcalico.org/namespace)`},
	{`has == 'v'`, `has == "v"`},
	{`all == 'v' && global != 'w'`, `all == "v" && global != "w"`},
	{`in in {'in'}`, `in in {"in"}`},
	{`not not in {'not'}`, `not not in {"not"}`},
	{`contains contains 'contains'`, `contains contains "contains"`},
	{`starts starts with 'x'`, `starts starts with "x"`},
	{`has(has)`, `has(has)`},
	{`-./_ == 'v'`, `-./_ == "v"`},
	{strings.Repeat("k", 512) + `=='v'`, strings.Repeat("k", 512) + ` == "v"`},

	{`app=="a"&&zone in{"c","b"}`, `app == "a" && zone in {"b", "c"}`},
	{`a == '1' && b == '2' || c == '3'`, `a == "1" && b == "2" || c == "3"`},
	{`a == '1' && (b == '2' || c == '3')`, `a == "1" && (b == "2" || c == "3")`},
	{`(a == '1' && b == '2') || c == '3'`, `a == "1" && b == "2" || c == "3"`},
	{`has(a) && (has(b) && (has(c)))`, `has(a) && has(b) && has(c)`},
	{`(has(a) || has(b)) || !!(has(c) || has(d))`, `has(a) || has(b) || has(c) || has(d)`},
	{`!(has(a) && has(b)) || !(has(c) || has(d))`, `!(has(a) && has(b)) || !(has(c) || has(d))`},
	{`!has(a) && has(b)`, `!has(a) && has(b)`},
	{`has(b) && has(a)`, `has(b) && has(a)`},
	{
		`projectcalico.org/orchestrator == 'k8s' && k not in { 'a', 'b' } && ! has(x)`,
		`projectcalico.org/orchestrator == "k8s" && k not in {"a", "b"} && !has(x)`,
	},
}

func TestParseGivesCanonicalText(t *testing.T) {
	for _, tc := range accepted {
		sel := mustParse(t, tc.in)
		if sel.String() != tc.canonical {
			t.Errorf("Parse(%q).String() = %q, want %q", tc.in, sel, tc.canonical)
		}
		again := mustParse(t, sel.String())
		if !again.Equal(sel) || again.String() != tc.canonical {
			t.Errorf("%q parsed back as %q", tc.canonical, again)
		}
	}
}

func TestParseRejectsWithPositionFoundAndExpected(t *testing.T) {
	const operand = `expected a label key, "has(", "all()", "global()", "!" or "("`
	const operator = `expected an operator ("==", "!=", "in", "not in", "contains", "starts with" or "ends with")`
	tests := []struct{ in, want string }{
		{`a ==`, `parse selector "a ==": column 5: found the end, expected a quoted literal`},
		{`role = db`, `parse selector "role = db": column 6: found "=", ` + operator + `; did you mean "=="?`},
		{`role == db`, `parse selector "role == db": column 9: found "db", expected a quoted literal; did you mean 'db', in quotes?`},
		{`role != !`, `column 9: found "!", expected a quoted literal`},
		{`role`, `column 5: found the end, ` + operator},
		{`role is 'x'`, `column 6: found "is", ` + operator + `; did you mean "=="?`},
		{`role ! 'x'`, `column 6: found "!", ` + operator + `; did you mean "!=" or "not in"?`},
		{`role not 'x'`, `column 6: found "not", ` + operator + `; did you mean "not in"?`},
		{`role IN {}`, `column 6: found "IN", ` + operator + `; operators are lower case: did you mean "in"?`},
		{`role starts 'x'`, `column 6: found "starts", ` + operator + `; did you mean "starts with"?`},
		{`role ends on 'x'`, `column 6: found "ends", ` + operator + `; did you mean "ends with"?`},
		{`role like 'x'`, `column 6: found "like", ` + operator},
		{`role && has(x)`, `column 6: found "&", ` + operator + `; did you mean "has(role)"?`},
		{`has(a) & has(b)`, `column 8: found "&", expected "&&", "||" or the end; did you mean "&&"?`},
		{`has(a) | has(b)`, `column 8: found "|", expected "&&", "||" or the end; did you mean "||"?`},
		{`has(a) and has(b)`, `column 8: found "and", expected "&&", "||" or the end; did you mean "&&"?`},
		{`has(a) OR has(b)`, `column 8: found "OR", expected "&&", "||" or the end; did you mean "||"?`},
		{`has(a), has(b)`, `column 7: found ",", expected "&&", "||" or the end; did you mean "&&"? A comma separates`},
		{`has(a) has(b)`, `column 8: found "has", expected "&&", "||" or the end`},
		{`has(a) &&`, `column 10: found the end, ` + operand},
		{`has(a) && && has(b)`, `column 11: found "&", ` + operand},
		{`|| has(b)`, `column 1: found "|", ` + operand},
		{`!`, `column 2: found the end, ` + operand},
		{`== 'v'`, `column 1: found "=", ` + operand},
		{`'k' == "v"`, "parse selector `'k' == \"v\"`: column 1: found \"'k'\", " + operand + `; label keys are written without quotes`},
		{`()`, `column 2: found ")", ` + operand},
		{`(has(a)`, `column 8: found the end, expected "&&", "||" or ")"`},
		{`(has(a) & has(b))`, `column 9: found "&", expected "&&", "||" or ")"; did you mean "&&"?`},
		{`has(a))`, `column 7: found ")", expected "&&", "||" or the end`},
		{`has()`, `column 5: found ")", expected a label key`},
		{`has('a')`, `column 5: found "'a'", expected a label key; label keys are written without quotes`},
		{`has(a b)`, `column 7: found "b", expected ")"`},
		{`has (a)`, `column 5: found "(", ` + operator + `; did you mean "has(", without the space?`},
		{`all(x)`, `column 5: found "x", expected ")"`},
		{`global(`, `column 8: found the end, expected ")"`},
		{`any()`, `column 1: found "any", expected "has(", "all()" or "global()"`},
		{`k in 'a'`, `column 6: found "'a'", expected "{"`},
		{`k in {a}`, `column 7: found "a", expected a quoted literal or "}"; did you mean 'a', in quotes?`},
		{`k in {,}`, `column 7: found ",", expected a quoted literal or "}"`},
		{`k in {'a' 'b'}`, `column 11: found "'b'", expected "," or "}"`},
		{`k in {'a'`, `column 10: found the end, expected "," or "}"`},
		{`k in {'a',`, `column 11: found the end, expected a quoted literal or "}"`},
		{`k == 'v`, `column 6: literal is not closed: found the end, expected another '`},
		{`k in {'v', "w}`, `column 12: literal is not closed: found the end, expected another "`},
		{`k == “v”`, `column 6: found "“", expected a quoted literal`},
		{`k == 'v'; drop`, `column 9: found ";", expected "&&", "||" or the end`},
		{"a ==\x00", `parse selector "a ==\x00": column 5: found "\x00", expected a quoted literal`},
		{"\xff", `parse selector "\xff": column 1: found "\xff", ` + operand},
		{strings.Repeat("k", 513) + ` == 'v'`, `column 1: label key has 513 bytes, expected at most 512`},
		{`has(` + strings.Repeat("k", 513) + `)`, `column 5: label key has 513 bytes, expected at most 512`},
	}
	for _, tc := range tests {
		sel, err := selector.Parse(tc.in)
		if err == nil {
			t.Errorf("Parse(%q) = %q, want the error %q", tc.in, sel, tc.want)
			continue
		}
		if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Parse(%q)\n got: %s\nwant: … %s …", tc.in, err, tc.want)
		}
	}
}

func TestParseErrorShowsOnlyTheNeighbourhoodOfALongText(t *testing.T) {
	long := strings.Repeat("has(a) && ", 1000)
	_, err := selector.Parse(long + "oops && " + long)
	if err == nil {
		t.Fatal("want an error")
	}
	got := err.Error()
	if !strings.Contains(got, `…`) || !strings.Contains(got, "oops") || !strings.Contains(got, "column 10006") {
		t.Errorf("error does not show where it is: %s", got)
	}
	if len(got) > 500 {
		t.Errorf("error is %d bytes long: %s", len(got), got)
	}
}

func TestParseRefusesNestingBeyondTheLimit(t *testing.T) {
	nest := func(open string, levels int, inner string) string {
		return strings.Repeat(open, levels) + inner + strings.Repeat(")", levels)
	}
	tests := []struct {
		name, in string
		ok       bool
	}{
		{"parentheses at the limit", nest("(", 100, "has(k)"), true},
		{"parentheses beyond", nest("(", 101, "has(k)"), false},
		{"negated parentheses at the limit", nest("has(k) && !(has(j) || ", 100, "has(k)"), true},
		{"negated parentheses beyond", nest("!(", 101, "has(k)"), false},
		{"a bare negation at the limit", nest("has(k) && !(has(j) || ", 99, "!k contains 'x'"), true},
		{"a bare negation beyond", nest("(", 100, "!k contains 'x'"), false},
		{"many exclamation marks", strings.Repeat("!", 1_000_001) + "has(k)", true},
		{"many siblings", strings.Repeat("(has(a) || has(b)) && ", 10_000) + "has(c)", true},
		{"hostile parentheses", strings.Repeat("(", 1_000_000), false},
		{"hostile negations", strings.Repeat("!(", 1_000_000), false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			sel, err := selector.Parse(tc.in)
			if !tc.ok {
				if err == nil || !strings.Contains(err.Error(), "nested deeper than 100 levels") {
					t.Fatalf("got %v, want the nesting refused", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if again := mustParse(t, sel.String()); !again.Equal(sel) {
				t.Error("canonical text does not parse back to an equal selector")
			}
		})
	}
}

func TestEqualComparesCanonicalForms(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{``, `all()`, true},
		{`k in {'a','b'}`, `k in {"b","a","b"}`, true},
		{`((a=='1'))&&has(b)`, `a == "1" && !!has(b)`, true},
		{`k == 'v'`, `k != 'v'`, false},
		{`has(a) && has(b)`, `has(a) || has(b)`, false},
		{`has(a) && has(b)`, `has(b) && has(a)`, false},
		{`all()`, `global()`, false},
	}
	for _, tc := range tests {
		if got := mustParse(t, tc.a).Equal(mustParse(t, tc.b)); got != tc.want {
			t.Errorf("%q equal to %q: got %v", tc.a, tc.b, got)
		}
	}
	if !(selector.Selector{}).Equal(mustParse(t, "all()")) {
		t.Error("the zero selector is not all()")
	}
}

func FuzzParse(f *testing.F) {
	for _, tc := range accepted {
		f.Add(tc.in)
	}
	for _, s := range []string{`a = 'b'`, `k in {'a'`, `!(`, `has (k)`, "k == \xff", `k == 'v`, `starts with with`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		sel, err := selector.Parse(in)
		if err != nil {
			if err.Error() == "" || !sel.Equal(selector.Selector{}) {
				t.Fatalf("Parse(%q) = %q, %v", in, sel, err)
			}
			return
		}
		again, err := selector.Parse(sel.String())
		if err != nil {
			t.Fatalf("canonical text of %q does not parse: %v", in, err)
		}
		if !again.Equal(sel) {
			t.Fatalf("%q has canonical text %q, which parses as %q", in, sel, again)
		}
		for _, labels := range []selector.Map{nil, {"k": "v"}, {"a": "1", "b": ""}} {
			checkRestrictions(t, sel, labels)
			if sel.Match(labels) != again.Match(labels) {
				t.Fatalf("%q and %q differ on %v", sel, again, labels)
			}
		}
	})
}
