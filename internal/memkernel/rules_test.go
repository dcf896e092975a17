package memkernel_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
)

const rulesTable = "suite"

// rulesOf are a table with a chain that a map leads to, one that nothing leads to, a set and a counter.
func rulesOf() *nftable.Editor {
	e := nftable.NewEditor(rulesTable)
	for _, name := range []string{"a", "b"} {
		e.PutChain(nftable.NewChain(name, nftable.Base{}, verdict(nftable.Drop)))
	}
	e.PutSet(nftable.NewSet("s", nftable.Ifaces, nftable.Elem{Key: nftable.IfaceKey("one")}))
	e.PutSet(nftable.NewMap("m", nftable.Ifaces, nftable.Elem{Key: nftable.IfaceKey("one"), To: "a"}))
	e.PutCounter("c")
	return e
}

func verdict(kind nftable.VerdictKind) nftable.Rule {
	return nftable.Rule{Stmts: []nftable.Stmt{nftable.Verdict{Kind: kind}}}
}

func (s subject) commit(t *testing.T, d nftable.Delta) {
	t.Helper()
	if err := s.rules.Commit(t.Context(), rulesTable, d, 0); err != nil {
		t.Fatal(err)
	}
}

// wantRules fails the test unless the kernel holds a table.
func (s subject) wantRules(t *testing.T, want *nftable.Table) {
	t.Helper()
	have, _, err := s.rules.List(t.Context(), rulesTable)
	if err != nil {
		t.Fatal(err)
	}
	if d := nftable.Diff(have, want); !d.Empty() {
		t.Errorf("it holds %+v; to what it should there lacks %+v", have, d)
	}
}

func TestRulesAreWhatWasCommitted(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		have, _, err := s.rules.List(t.Context(), rulesTable)
		if err != nil || have.Exists || len(have.Chains)+len(have.Sets)+len(have.Counters) > 0 {
			t.Fatalf("before it was made, the table is %+v, %v", have, err)
		}
		e := rulesOf()
		e.Take()
		s.commit(t, nftable.Build(e.Table()))
		s.wantRules(t, e.Table())
		for name, change := range map[string]func(){
			"another rule":        func() { e.PutChain(nftable.NewChain("b", nftable.Base{}, verdict(nftable.Return))) },
			"a base chain":        func() { e.PutChain(nftable.NewChain("base", nftable.Base{Hook: nftable.Forward, Priority: 5})) },
			"a chain less":        func() { e.DropChain("b") },
			"a set and a counter": func() { e.PutSet(nftable.NewSet("s2", nftable.Addr4)); e.PutCounter("c2") },
			"elements": func() {
				e.DropElem("s", nftable.Elem{Key: nftable.IfaceKey("one")})
				e.PutElem("s", nftable.Elem{Key: nftable.IfaceKey("two")})
			},
			"a key that leads elsewhere": func() {
				e.PutChain(nftable.NewChain("new", nftable.Base{}))
				e.DropElem("m", nftable.Elem{Key: nftable.IfaceKey("one"), To: "a"})
				e.PutElem("m", nftable.Elem{Key: nftable.IfaceKey("one"), To: "new"})
				e.DropChain("a")
			},
			"a set less": func() { e.DropSet("m"); e.DropCounter("c") },
		} {
			e = rulesOf()
			e.Take()
			s.commit(t, nftable.Build(e.Table()))
			change()
			t.Log(name)
			s.commit(t, e.Take())
			s.wantRules(t, e.Table())
		}
	})
}

func TestRulesThatAreRefusedChangeNothing(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		e := rulesOf()
		e.Take()
		sound := nftable.NewChain("sound", nftable.Base{}, verdict(nftable.Drop))
		if err := s.rules.Commit(t.Context(), rulesTable, nftable.Delta{AddChains: []*nftable.Chain{sound}}, 0); !errors.Is(err, unix.ENOENT) {
			t.Errorf("into a table that is not there: %v", err)
		}
		s.commit(t, nftable.Build(e.Table()))
		set, m := e.Table().Sets["s"], e.Table().Sets["m"]
		absent := nftable.NewSet("absent", nftable.Ifaces)
		two := nftable.Elem{Key: nftable.IfaceKey("two")}
		for name, c := range map[string]struct {
			delta nftable.Delta
			want  error
		}{
			"a chain that is absent":         {nftable.Delta{DelChains: []string{"absent"}}, unix.ENOENT},
			"rules of one that is absent":    {nftable.Delta{SetChains: []*nftable.Chain{nftable.NewChain("absent", nftable.Base{})}}, unix.ENOENT},
			"a set that is absent":           {nftable.Delta{DelSets: []string{"absent"}}, unix.ENOENT},
			"a counter that is absent":       {nftable.Delta{DelCounters: []string{"absent"}}, unix.ENOENT},
			"an element that is absent":      {nftable.Delta{Elems: []nftable.ElemDelta{{Set: set, Del: []nftable.Elem{two}}}}, unix.ENOENT},
			"elements of what is absent":     {nftable.Delta{Elems: []nftable.ElemDelta{{Set: absent, Add: []nftable.Elem{two}}}}, unix.ENOENT},
			"a key to a chain that is none":  {nftable.Delta{Elems: []nftable.ElemDelta{{Set: m, Add: []nftable.Elem{{Key: two.Key, To: "absent"}}}}}, unix.ENOENT},
			"a key that leads elsewhere":     {nftable.Delta{Elems: []nftable.ElemDelta{{Set: m, Add: []nftable.Elem{{Key: nftable.IfaceKey("one"), To: "b"}}}}}, unix.EEXIST},
			"a chain that a map leads to":    {nftable.Delta{DelChains: []string{"a"}}, unix.EBUSY},
			"a generation that is not there": {nftable.Delta{DelChains: []string{"b"}}, unix.ERESTART},
		} {
			c.delta.AddChains = []*nftable.Chain{sound}
			before := s.generation(t)
			gen := uint32(0)
			if errors.Is(c.want, unix.ERESTART) {
				gen = before + 1000
			}
			if err := s.rules.Commit(t.Context(), rulesTable, c.delta, gen); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
			if after := s.generation(t); after != before {
				t.Errorf("%s: the generation was %d and is %d", name, before, after)
			}
			s.wantRules(t, e.Table())
		}
	})
}

func (s subject) generation(t *testing.T) uint32 {
	t.Helper()
	gen, err := s.rules.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return gen
}

func TestKeeperOfRulesRepairsThem(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		e := rulesOf()
		k := nft.NewKeeper(s.rules, rulesTable)
		if _, err := k.Apply(t.Context(), e.Table(), e.Take(), false); err != nil {
			t.Fatal(err)
		}
		before := s.generation(t)
		if done, err := k.Check(t.Context(), e.Table()); err != nil || done.Listed || s.generation(t) != before {
			t.Errorf("while nobody has changed anything: %+v, %v", done, err)
		}
		s.empty("s")
		if done, err := k.Check(t.Context(), e.Table()); err != nil || len(done.Changed.Elems) != 1 {
			t.Errorf("after a set was emptied: %+v, %v", done, err)
		}
		s.wantRules(t, e.Table())
	})
}
