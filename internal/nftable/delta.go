package nftable

import (
	"cmp"
	"maps"
	"slices"
)

// Delta is what leads from one content of a table to another. internal/nft makes all of it take effect at once.
type Delta struct {
	// Whole throws away what the table holds, if there is one, and begins with an empty one. All that follows is then added.
	Whole bool

	AddCounters, DelCounters []string
	AddSets                  []*Set // with all their elements
	DelSets                  []string
	AddChains                []*Chain
	SetChains                []*Chain // present, get other rules
	DelChains                []string
	Elems                    []ElemDelta // of sets that stay
}

// ElemDelta is what changes in one set. What is in Add was not in it, what is in Del was.
type ElemDelta struct {
	Set      *Set
	Add, Del []Elem
}

// Empty tells whether there is nothing to do.
func (d Delta) Empty() bool {
	return !d.Whole && len(d.AddCounters)+len(d.DelCounters)+len(d.AddSets)+len(d.DelSets)+
		len(d.AddChains)+len(d.SetChains)+len(d.DelChains)+len(d.Elems) == 0
}

// Additions returns the delta without what takes away: no chain, counter or member of a set goes, except members that stand in the
// way of those to be added (the same key of a map, and ranges, which must not overlap). For an agent that cannot say yet whether what
// it does not know is old or newer than what it knows.
func (d Delta) Additions() Delta {
	out := d
	out.DelCounters, out.DelSets, out.DelChains, out.Elems = nil, nil, nil, nil
	for _, e := range d.Elems {
		switch {
		case len(e.Add) == 0:
			continue
		case e.Set.Map:
			e.Del = sameKeys(e.Del, e.Add)
		case !e.Set.Interval:
			e.Del = nil
		}
		out.Elems = append(out.Elems, e)
	}
	return out
}

// sameKeys returns those of elems whose keys are among others'.
func sameKeys(elems, others []Elem) []Elem {
	keys := make(map[Key]bool, len(others))
	for _, e := range others {
		keys[e.Key] = true
	}
	var out []Elem
	for _, e := range elems {
		if keys[e.Key] {
			out = append(out, e)
		}
	}
	return out
}

// sort puts everything into the order of names and keys, so that equal deltas are equal bytes.
func (d *Delta) sort() {
	slices.Sort(d.AddCounters)
	slices.Sort(d.DelCounters)
	slices.Sort(d.DelSets)
	slices.Sort(d.DelChains)
	slices.SortFunc(d.AddSets, func(a, b *Set) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.AddChains, func(a, b *Chain) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.SetChains, func(a, b *Chain) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Elems, func(a, b ElemDelta) int { return cmp.Compare(a.Set.Name, b.Set.Name) })
	for _, e := range d.Elems {
		slices.SortFunc(e.Add, Elem.compare)
		slices.SortFunc(e.Del, Elem.compare)
	}
}

// Build returns the delta that makes the table from nothing, whatever there is in its place.
func Build(want *Table) Delta {
	d := Diff(Listing{}, want)
	d.Whole = true
	return d
}

// Listing is what was read back of a table.
type Listing struct {
	Exists   bool
	Chains   map[string]Listed
	Sets     map[string]*Set
	Counters map[string]Counted
	// Strange says what no Table can hold, as what somebody else added to ours: unknown types of sets, objects that are no counters.
	Strange []string
}

// Listed is a chain that was read back.
type Listed struct {
	Base  Base
	Marks []string // of its rules, in order; empty for a rule that is not ours
}

// Counted is what a counter has counted.
type Counted struct{ Packets, Bytes uint64 }

// Diff returns what makes a table that was read back hold what is wanted. It is Whole if there is no table, and if what differs
// cannot be changed in place.
func Diff(have Listing, want *Table) Delta {
	var d Delta
	if !have.Exists || !changeable(have, want) {
		have, d.Whole = Listing{}, true
	}
	d.AddCounters, d.DelCounters = missing(want.Counters, have.Counters), missing(have.Counters, want.Counters)
	d.DelChains = missing(have.Chains, want.Chains)
	for name, c := range want.Chains {
		switch listed, ok := have.Chains[name]; {
		case !ok:
			d.AddChains = append(d.AddChains, c)
		case !slices.Equal(listed.Marks, c.marks):
			d.SetChains = append(d.SetChains, c)
		}
	}
	d.DelSets = missing(have.Sets, want.Sets)
	for name, s := range want.Sets {
		h, ok := have.Sets[name]
		if !ok {
			d.AddSets = append(d.AddSets, s)
			continue
		}
		e := ElemDelta{Set: s, Add: missing(s.Elems, h.Elems), Del: missing(h.Elems, s.Elems)}
		if len(e.Add)+len(e.Del) > 0 {
			d.Elems = append(d.Elems, e)
		}
	}
	d.sort()
	return d
}

// changeable tells whether have can become want without starting from nothing.
func changeable(have Listing, want *Table) bool {
	if len(have.Strange) > 0 {
		return false
	}
	for name, c := range have.Chains {
		if w, ok := want.Chains[name]; ok && w.Base != c.Base {
			return false
		}
	}
	for name, s := range have.Sets {
		if w, ok := want.Sets[name]; ok && !w.Alike(s) {
			return false
		}
	}
	return true
}

// missing returns the keys of a that b lacks.
func missing[K comparable, A, B any](a map[K]A, b map[K]B) []K {
	var out []K
	for k := range a {
		if _, ok := b[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

// Listing returns what would be read back of a table.
func (t *Table) Listing() Listing {
	l := Listing{Exists: true, Chains: map[string]Listed{}, Sets: maps.Clone(t.Sets), Counters: map[string]Counted{}}
	for name, c := range t.Chains {
		l.Chains[name] = Listed{Base: c.Base, Marks: c.marks}
	}
	for name := range t.Counters {
		l.Counters[name] = Counted{}
	}
	return l
}
