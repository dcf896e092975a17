package selector

import "slices"

// Restriction is what a selector demands of one label in every label set that it matches. The zero Restriction demands nothing.
// A label that cannot satisfy it (both flags set, or an empty list of values) means that the selector matches nothing.
type Restriction struct {
	MustBePresent bool
	MustBeAbsent  bool
	MustHaveOneOf []string // sorted, without duplicates; nil if any value will do; implies MustBePresent
}

// Allows reports whether a label in this state satisfies the restriction; value counts only if the label is present.
func (r Restriction) Allows(value string, present bool) bool {
	if !present {
		return !r.MustBePresent
	}
	if r.MustBeAbsent {
		return false
	}
	return r.MustHaveOneOf == nil || slices.Contains(r.MustHaveOneOf, value)
}

// Restrictions returns, by label key, conditions that are necessary for a match: a label set that the selector matches satisfies
// all of them. They need not be sufficient, and keys without a condition are left out. An index can so find the few selectors
// that may match a label set, and must still call Match. The caller owns the map and its slices.
func (s Selector) Restrictions() map[string]Restriction {
	if s.root == nil {
		return map[string]Restriction{}
	}
	return s.root.restrictions(false)
}

// restrictions returns the restrictions of n, or of its negation.
func (n *node) restrictions(negated bool) map[string]Restriction {
	switch {
	case n.kind == kindNot:
		return n.kids[0].restrictions(!negated)
	case len(n.kids) == 0:
		return n.leafRestrictions(negated)
	}
	demands := make([]map[string]Restriction, len(n.kids))
	for i, kid := range n.kids {
		demands[i] = kid.restrictions(negated)
	}
	if (n.kind == kindOr) != negated { // De Morgan
		return requireAny(demands)
	}
	return requireAll(demands)
}

func (n *node) leafRestrictions(negated bool) map[string]Restriction {
	r := Restriction{}
	switch n.kind {
	case kindHas:
		r = Restriction{MustBePresent: !negated, MustBeAbsent: negated}
	case kindGlobal:
		r = Restriction{MustBePresent: negated, MustBeAbsent: !negated}
	case kindContains, kindStartsWith, kindEndsWith:
		r = Restriction{MustBePresent: !negated}
	case kindEqual, kindIn:
		if !negated {
			r = oneOf(n.values)
		}
	case kindNotEqual, kindNotIn:
		if negated {
			r = oneOf(n.values)
		}
	}
	if r.demandsNothing() {
		return map[string]Restriction{}
	}
	return map[string]Restriction{n.key: r}
}

func oneOf(values []string) Restriction {
	return Restriction{MustBePresent: true, MustHaveOneOf: append([]string{}, values...)}
}

func (r Restriction) demandsNothing() bool {
	return !r.MustBePresent && !r.MustBeAbsent && r.MustHaveOneOf == nil
}

// requireAll returns what holds where every one of the demands is met. It reuses them.
func requireAll(demands []map[string]Restriction) map[string]Restriction {
	result := demands[0]
	for _, demand := range demands[1:] {
		for key, r := range demand {
			old := result[key]
			result[key] = Restriction{
				MustBePresent: old.MustBePresent || r.MustBePresent,
				MustBeAbsent:  old.MustBeAbsent || r.MustBeAbsent,
				MustHaveOneOf: intersect(old.MustHaveOneOf, r.MustHaveOneOf),
			}
		}
	}
	return result
}

// requireAny returns what holds wherever at least one of the demands is met. It reuses them.
func requireAny(demands []map[string]Restriction) map[string]Restriction {
	result := map[string]Restriction{}
	for key, r := range demands[0] {
		for _, demand := range demands[1:] {
			r = either(r, demand[key])
			if r.demandsNothing() {
				break
			}
		}
		if r.demandsNothing() {
			continue
		}
		if r.MustHaveOneOf != nil { // sorted here, once, so that a long chain of alternatives stays cheap
			slices.Sort(r.MustHaveOneOf)
			r.MustHaveOneOf = slices.Compact(r.MustHaveOneOf)
		}
		result[key] = r
	}
	return result
}

// either returns what holds where a or b holds, its values unsorted.
func either(a, b Restriction) Restriction {
	r := Restriction{MustBePresent: a.MustBePresent && b.MustBePresent, MustBeAbsent: a.MustBeAbsent && b.MustBeAbsent}
	if a.MustHaveOneOf != nil && b.MustHaveOneOf != nil {
		r.MustHaveOneOf = slices.Concat(a.MustHaveOneOf, b.MustHaveOneOf)
	}
	return r
}

// intersect returns the values in both lists, where nil stands for every value. It reuses both.
func intersect(a, b []string) []string {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	return slices.DeleteFunc(a, func(value string) bool {
		_, found := slices.BinarySearch(b, value)
		return !found
	})
}
