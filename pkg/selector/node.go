package selector

import (
	"slices"
	"strings"
)

// kind says what a node tests, and so which of its fields are in use.
type kind uint8

const (
	kindAll        kind = iota
	kindGlobal          // key, always namespaceKey
	kindHas             // key
	kindEqual           // key, values[0]
	kindNotEqual        // key, values[0]
	kindContains        // key, values[0]
	kindStartsWith      // key, values[0]
	kindEndsWith        // key, values[0]
	kindIn              // key, values
	kindNotIn           // key, values
	kindNot             // kids[0], never a kindNot
	kindAnd             // kids, at least two, none a kindAnd
	kindOr              // kids, at least two, none a kindOr
)

// operator returns the canonical spelling of a comparison, and "" for other kinds.
func (k kind) operator() string {
	switch k {
	case kindEqual:
		return "=="
	case kindNotEqual:
		return "!="
	case kindContains:
		return "contains"
	case kindStartsWith:
		return "starts with"
	case kindEndsWith:
		return "ends with"
	case kindIn:
		return "in"
	case kindNotIn:
		return "not in"
	}
	return ""
}

// node is one vertex of a parsed selector in canonical form. It is not modified once Parse has returned it.
type node struct {
	kind   kind
	key    string
	values []string // sorted and without duplicates
	kids   []*node
}

// negate returns the negation of n, undoing one instead of stacking a second.
func negate(n *node) *node {
	if n.kind == kindNot {
		return n.kids[0]
	}
	return &node{kind: kindNot, kids: []*node{n}}
}

// join returns the conjunction or disjunction of kids, absorbing those that are of the same kind.
func join(k kind, kids []*node) *node {
	if len(kids) == 1 {
		return kids[0]
	}
	flat := make([]*node, 0, len(kids))
	for _, kid := range kids {
		if kid.kind == k {
			flat = append(flat, kid.kids...)
			continue
		}
		flat = append(flat, kid)
	}
	return &node{kind: k, kids: flat}
}

// walk calls visit for n, if it is not nil, and everything below it.
func (n *node) walk(visit func(*node)) {
	if n == nil {
		return
	}
	visit(n)
	for _, kid := range n.kids {
		kid.walk(visit)
	}
}

func (n *node) match(labels Labels) bool {
	switch n.kind {
	case kindAll:
		return true
	case kindNot:
		return !n.kids[0].match(labels)
	case kindAnd:
		for _, kid := range n.kids {
			if !kid.match(labels) {
				return false
			}
		}
		return true
	case kindOr:
		for _, kid := range n.kids {
			if kid.match(labels) {
				return true
			}
		}
		return false
	}
	value, ok := labels.Get(n.key)
	return n.test(value, ok)
}

// test decides a node that depends on one label only.
func (n *node) test(value string, present bool) bool {
	switch n.kind {
	case kindGlobal:
		return !present
	case kindHas:
		return present
	case kindEqual:
		return present && value == n.values[0]
	case kindNotEqual:
		return !present || value != n.values[0]
	case kindContains:
		return present && strings.Contains(value, n.values[0])
	case kindStartsWith:
		return present && strings.HasPrefix(value, n.values[0])
	case kindEndsWith:
		return present && strings.HasSuffix(value, n.values[0])
	case kindIn:
		return present && n.holds(value)
	case kindNotIn:
		return !present || !n.holds(value)
	}
	return false
}

// holds reports whether value is one of the node's values.
func (n *node) holds(value string) bool {
	_, found := slices.BinarySearch(n.values, value)
	return found
}

// write appends the canonical text of n.
func (n *node) write(b *strings.Builder) {
	switch n.kind {
	case kindAll:
		b.WriteString("all()")
	case kindGlobal:
		b.WriteString("global()")
	case kindHas:
		b.WriteString("has(" + n.key + ")")
	case kindNot:
		b.WriteByte('!')
		kid := n.kids[0]
		kid.writeOperand(b, len(kid.kids) > 0 || kid.kind.operator() != "")
	case kindAnd:
		n.writeJoined(b, " && ")
	case kindOr:
		n.writeJoined(b, " || ")
	default:
		n.writeComparison(b)
	}
}

// writeOperand appends n, in parentheses where its parent binds tighter.
func (n *node) writeOperand(b *strings.Builder, parens bool) {
	if !parens {
		n.write(b)
		return
	}
	b.WriteByte('(')
	n.write(b)
	b.WriteByte(')')
}

func (n *node) writeJoined(b *strings.Builder, separator string) {
	for i, kid := range n.kids {
		if i > 0 {
			b.WriteString(separator)
		}
		kid.writeOperand(b, kid.kind == kindOr)
	}
}

func (n *node) writeComparison(b *strings.Builder) {
	b.WriteString(n.key + " " + n.kind.operator() + " ")
	if n.kind != kindIn && n.kind != kindNotIn {
		writeLiteral(b, n.values[0])
		return
	}
	b.WriteByte('{')
	for i, value := range n.values {
		if i > 0 {
			b.WriteString(", ")
		}
		writeLiteral(b, value)
	}
	b.WriteByte('}')
}

// writeLiteral quotes a value. No value holds both kinds of quote, since it was once read between two of one kind.
func writeLiteral(b *strings.Builder, value string) {
	quote := byte('"')
	if strings.IndexByte(value, '"') >= 0 {
		quote = '\''
	}
	b.WriteByte(quote)
	b.WriteString(value)
	b.WriteByte(quote)
}
