package selector

import (
	"slices"
	"strings"
)

// All is the conjunction of parts, in their order. Of no parts it is all().
func All(parts ...Selector) Selector {
	kids := make([]*node, 0, len(parts))
	for _, p := range parts {
		if p.root != nil {
			kids = append(kids, p.root)
		}
	}
	if len(kids) == 0 {
		return Selector{}
	}
	return fromRoot(join(kindAnd, kids))
}

// Has matches label sets that have a label.
func Has(key string) Selector { return fromRoot(&node{kind: kindHas, key: key}) }

// OneOf matches label sets in which a label has one of values. With no values it matches nothing.
func OneOf(key string, values ...string) Selector {
	if len(values) == 1 {
		return fromRoot(&node{kind: kindEqual, key: key, values: values})
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return fromRoot(&node{kind: kindIn, key: key, values: slices.Compact(sorted)})
}

// Prefixed is s with prefix in front of every label key. What global() asks for stays the same.
func (s Selector) Prefixed(prefix string) Selector {
	if s.root == nil {
		return s
	}
	return fromRoot(s.root.prefixed(prefix))
}

func (n *node) prefixed(prefix string) *node {
	out := *n
	if n.key != "" && n.kind != kindGlobal {
		out.key = prefix + n.key
	}
	out.kids = make([]*node, len(n.kids))
	for i, kid := range n.kids {
		out.kids[i] = kid.prefixed(prefix)
	}
	return &out
}

func fromRoot(root *node) Selector {
	var b strings.Builder
	root.write(&b)
	return Selector{root: root, text: b.String()}
}

// Not matches what s does not match.
func Not(s Selector) Selector {
	root := s.root
	if root == nil {
		root = &node{kind: kindAll}
	}
	return fromRoot(negate(root))
}
