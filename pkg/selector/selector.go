// Package selector parses and evaluates Calico's label-selector language.
//
// The language, loosest binding first:
//
//	expr       = and { "||" and }
//	and        = unary { "&&" unary }
//	unary      = { "!" } ( "(" expr ")" | "has(" key ")" | "all()" | "global()" | comparison )
//	comparison = key ( "==" | "!=" | "contains" | "starts with" | "ends with" ) literal
//	           | key ( "in" | "not in" ) "{" [ literal { "," literal } [ "," ] ] "}"
//	key        = 1 to 512 of the characters A-Z a-z 0-9 _ . / -
//	literal    = "'" any bytes but ' "'" | '"' any bytes but " '"'
//
// White space (space, tab, line ends) may stand between any two tokens, except before the parenthesis of has(, all( and
// global(; the two words of an operator may also be written together. Literals have no escapes. A text that is empty or only
// white space means all().
//
// A label that is absent has no value: every comparison with it is false, except != and "not in", which are true. global()
// matches what lives in no namespace, that is, label sets without projectcalico.org/namespace.
package selector

import (
	"maps"
	"slices"
)

// namespaceKey is the label that every namespaced endpoint and network set carries.
const namespaceKey = "projectcalico.org/namespace"

// Labels is a set of labels to match against. Get must be a pure look-up: the order and number of calls is unspecified.
type Labels interface {
	// Get returns the value of the label, and whether the set has it at all; a label may have the empty value.
	Get(key string) (value string, ok bool)
}

// Map is a label set held in an ordinary map. The nil Map is the empty set.
type Map map[string]string

// Get implements Labels.
func (m Map) Get(key string) (value string, ok bool) {
	value, ok = m[key]
	return value, ok
}

// Selector is a parsed selector: an immutable value, safe for concurrent use and cheap to copy. The zero Selector is all(): it
// matches everything. Compare with Equal, not with ==; String is suitable as a map key.
type Selector struct {
	root *node  // nil is all()
	text string // canonical; empty if root is nil
}

// Match reports whether the labels satisfy the selector. It does not allocate. Nil labels are the empty set.
func (s Selector) Match(labels Labels) bool {
	if s.root == nil {
		return true
	}
	if labels == nil {
		labels = Map(nil)
	}
	return s.root.match(labels)
}

// String returns the canonical text: one space around operators, literals in double quotes (single quotes if they hold a double
// quote), sets sorted and without duplicates, no needless parentheses or double negations. Operands keep their order. Parsing it
// gives an equal selector.
func (s Selector) String() string {
	if s.root == nil {
		return "all()"
	}
	return s.text
}

// Equal reports whether both selectors have the same canonical text. Equal selectors match the same label sets; the converse
// does not hold, since no logic is simplified beyond what String says.
func (s Selector) Equal(other Selector) bool {
	return s.String() == other.String()
}

// UsesGlobal reports whether global() occurs anywhere in the selector. Most fields that hold a selector refuse it.
func (s Selector) UsesGlobal() bool {
	found := false
	s.root.walk(func(n *node) { found = found || n.kind == kindGlobal })
	return found
}

// Keys returns the keys of all labels that Match may look up, sorted and without duplicates: a change of any other label cannot
// change the result of Match. The caller owns the slice.
func (s Selector) Keys() []string {
	keys := map[string]struct{}{}
	s.root.walk(func(n *node) {
		if n.key != "" {
			keys[n.key] = struct{}{}
		}
	})
	return slices.Sorted(maps.Keys(keys))
}
