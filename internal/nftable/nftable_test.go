package nftable

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRangesAreTheSmallestThatHoldTheSameAddresses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nets []netip.Prefix
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			a := netip.AddrFrom4([4]byte{255, 255, 255, byte(rapid.IntRange(0, 255).Draw(t, "addr"))})
			nets = append(nets, netip.PrefixFrom(a, rapid.IntRange(24, 32).Draw(t, "bits")).Masked())
		}
		got := Ranges(slices.Clone(nets))
		for i, e := range got {
			if i > 0 && string(e.Key) <= string(Next(Key(got[i-1].To))) {
				t.Fatalf("ranges %d and %d overlap or adjoin: %q", i-1, i, got)
			}
		}
		for n := range 256 {
			a := netip.AddrFrom4([4]byte{255, 255, 255, byte(n)})
			want := slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
			has := slices.ContainsFunc(got, func(e Elem) bool { return e.Key <= AddrKey(a) && AddrKey(a) <= Key(e.To) })
			if want != has {
				t.Fatalf("%v: in the prefixes %v, in the ranges %v", a, want, has)
			}
		}
	})
}

func TestKeysOfManyPartsAreTextInNftsOrder(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.1")
	for _, c := range []struct {
		typ  Type
		key  Key
		want string
	}{
		{Addr4, AddrKey(a), "10.0.0.1"},
		{Ports, PortRange(80, 80).Key, "80"},
		{Ifaces, IfaceKey("cali1"), `"cali1"`},
		{Ifaces, IfaceKey("a-name-that-is-too-long"), `"a-name-that-is-"`},
		{IfaceAddr4, IfaceAddrKey("cali1", a), `"cali1" . 10.0.0.1`},
		{AddrPort4, AddrPortKey(a, 6, 8080), "10.0.0.1 . 6 . 8080"},
		{ProtoPorts, ProtoPortKey(17, 53), "17 . 53"},
		{Addr6, AddrKey(a), "0x0a000001"},
	} {
		if got := keyText(c.typ, c.key); got != c.want {
			t.Errorf("%v: %s, want %s", c.typ, got, c.want)
		}
		if c.typ != Addr6 && len(c.key) != c.typ.Width() {
			t.Errorf("%v: %d bytes, want %d", c.typ, len(c.key), c.typ.Width())
		}
	}
}

func TestMarkFollowsTheStatementsAndNotTheNote(t *testing.T) {
	drop := Rule{Stmts: []Stmt{Proto{Number: 6}, Verdict{Kind: Drop}}}
	noted := Rule{Stmts: drop.Stmts, Note: "why"}
	other := Rule{Stmts: []Stmt{Proto{Number: 17}, Verdict{Kind: Drop}}}
	if drop.Mark() != noted.Mark() || drop.Mark() == other.Mark() {
		t.Fatal(drop.Mark(), noted.Mark(), other.Mark())
	}
	if got := MarkOf(noted.CommentOf(noted.Mark())); got != noted.Mark() {
		t.Fatalf("got %q", got)
	}
	for _, foreign := range []string{"", "short", "a comment of somebody else"} {
		if got := MarkOf(foreign); got != "" {
			t.Errorf("%q has the mark %q", foreign, got)
		}
	}
}

// drawn returns a small random table, over few names.
func drawn(t *rapid.T) *Table {
	tab := NewTable("t")
	for i := range 3 {
		if rapid.Bool().Draw(t, "chain") {
			name := fmt.Sprint("c", i)
			tab.Chains[name] = NewChain(name, Base{}, Rule{Stmts: []Stmt{Proto{Number: uint8(rapid.IntRange(1, 2).Draw(t, "proto"))}}})
		}
		if rapid.Bool().Draw(t, "set") {
			var elems []Elem
			for n := range rapid.IntRange(0, 3).Draw(t, "elems") {
				elems = append(elems, Elem{Key: portKey(uint16(n)), To: string(portKey(uint16(n)))})
			}
			s := NewIntervals(fmt.Sprint("s", i), Ports, elems...)
			tab.Sets[s.Name] = s
		}
		if rapid.Bool().Draw(t, "counter") {
			tab.Counters[fmt.Sprint("r", i)] = struct{}{}
		}
	}
	return tab
}

func TestEditorTakesTheSameAsDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := NewEditor("t")
		for range rapid.IntRange(1, 4).Draw(t, "takes") {
			before := e.Table().Listing()
			for name, s := range before.Sets {
				own := *s
				own.Elems = maps.Clone(s.Elems)
				before.Sets[name] = &own
			}
			var want *Table
			for range rapid.IntRange(1, 3).Draw(t, "detours") {
				want = drawn(t)
				edit(e, want)
			}
			got := e.Take()
			if diff := cmp.Diff(Diff(before, want), got, cmp.AllowUnexported(Chain{})); diff != "" {
				t.Fatalf("difference (-), taken (+):\n%s", diff)
			}
			if e.Table().Text() != want.Text() {
				t.Fatalf("want\n%s\ngot\n%s", want.Text(), e.Table().Text())
			}
			if again := e.Take(); !again.Empty() {
				t.Fatalf("taken twice: %+v", again)
			}
		}
	})
}

// edit makes the editor's table hold want, one thing at a time.
func edit(e *Editor, want *Table) {
	for _, name := range missing(e.Table().Chains, want.Chains) {
		e.DropChain(name)
	}
	for _, name := range missing(e.Table().Sets, want.Sets) {
		e.DropSet(name)
	}
	for _, name := range missing(e.Table().Counters, want.Counters) {
		e.DropCounter(name)
	}
	for name := range want.Counters {
		e.PutCounter(name)
	}
	for _, s := range want.Sets {
		own := *s
		own.Elems = maps.Clone(s.Elems)
		e.PutSet(&own)
	}
	for _, c := range want.Chains {
		e.PutChain(c)
	}
}

func TestSetOfAnotherKindBuildsTheTableAnew(t *testing.T) {
	e := NewEditor("t")
	e.PutSet(NewSet("s", Addr4))
	e.Take()
	e.PutSet(NewSet("s", Addr6))
	if d := e.Take(); !d.Whole || len(d.AddSets) != 1 {
		t.Fatalf("got %+v", d)
	}
	have := NewTable("t")
	have.Sets["s"] = NewSet("s", Addr4)
	if d := Diff(have.Listing(), e.Table()); !d.Whole {
		t.Fatalf("got %+v", d)
	}
}

func TestAdditionsKeepWhatMayBeNewer(t *testing.T) {
	one, two := Elem{Key: IfaceKey("a"), To: "x"}, Elem{Key: IfaceKey("a"), To: "y"}
	gone := Elem{Key: IfaceKey("b"), To: "x"}
	m, h, n := NewMap("m", Ifaces), NewSet("h", Addr4), NewIntervals("n", Addr4)
	d := Delta{
		DelChains: []string{"c"}, DelSets: []string{"s"}, DelCounters: []string{"r"}, AddChains: []*Chain{NewChain("d", Base{})},
		Elems: []ElemDelta{
			{Set: m, Del: []Elem{one, gone}, Add: []Elem{two}}, {Set: h, Del: []Elem{one}, Add: []Elem{two}},
			{Set: n, Del: []Elem{one}, Add: []Elem{two}}, {Set: h, Del: []Elem{one}},
		},
	}
	got := d.Additions()
	want := Delta{AddChains: d.AddChains, Elems: []ElemDelta{
		{Set: m, Del: []Elem{one}, Add: []Elem{two}}, {Set: h, Add: []Elem{two}}, {Set: n, Del: []Elem{one}, Add: []Elem{two}},
	}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Chain{})); diff != "" {
		t.Fatal(diff)
	}
}
