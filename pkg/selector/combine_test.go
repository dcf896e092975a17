package selector

import "testing"

func TestCombinedSelectorsReadLikeParsedOnes(t *testing.T) {
	parse := func(text string) Selector {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, c := range []struct {
		got  Selector
		want string
	}{
		{All(), "all()"},
		{All(parse(""), parse("all()")), "all()"},
		{All(parse("a == 'b'")), `a == "b"`},
		{All(parse("a == 'b'"), parse(""), parse("has(c) || has(d)")), `a == "b" && (has(c) || has(d))`},
		{All(parse("has(a) && has(b)"), parse("has(c)")), "has(a) && has(b) && has(c)"},
		{Has("x/y"), "has(x/y)"},
		{OneOf("k", "v"), `k == "v"`},
		{OneOf("k", "w", "v", "w"), `k in {"v", "w"}`},
		{OneOf("k"), `k in {}`},
		{Not(parse("")), "!all()"},
		{Not(parse("!has(a)")), "has(a)"},
		{Not(OneOf("k", "v")), `!(k == "v")`},
		{parse("").Prefixed("p."), "all()"},
		{parse("a == 'b' && !(has(c) || global())").Prefixed("p."), `p.a == "b" && !(has(p.c) || global())`},
	} {
		if c.got.String() != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
		if again := parse(c.got.String()); !again.Equal(c.got) {
			t.Errorf("%s is read as %s", c.got, again)
		}
	}
}

func TestPrefixedLeavesTheOriginalAlone(t *testing.T) {
	s, err := Parse("a == 'b' && has(c)")
	if err != nil {
		t.Fatal(err)
	}
	p := s.Prefixed("p.")
	if !s.Match(Map{"a": "b", "c": ""}) || s.Match(Map{"p.a": "b", "p.c": ""}) {
		t.Error("the original changed")
	}
	if !p.Match(Map{"p.a": "b", "p.c": ""}) || p.Match(Map{"a": "b", "c": ""}) {
		t.Error("the copy does not look at prefixed keys")
	}
}
