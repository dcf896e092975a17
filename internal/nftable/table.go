// Package nftable describes the content of one nftables table as values: chains, rules, sets, maps and counters, their text in
// nft's own language, and what leads from one content to another.
//
// It is the part of nftables that computes. What a table holds is laid out above (internal/ruleset); how it gets into the
// kernel, and is read back, is internal/nft's business.
package nftable

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// Table is the content of one table of the family inet. The zero value is not usable, see NewTable.
// Whoever changes one that somebody else compares with uses an Editor.
type Table struct {
	Name     string
	Chains   map[string]*Chain
	Sets     map[string]*Set // sets and verdict maps
	Counters map[string]struct{}
}

// NewTable returns a table that holds nothing.
func NewTable(name string) *Table {
	return &Table{Name: name, Chains: map[string]*Chain{}, Sets: map[string]*Set{}, Counters: map[string]struct{}{}}
}

// Chain is a list of rules. It is immutable: make one with NewChain.
type Chain struct {
	Name  string
	Base  Base // zero for a chain that is only jumped to
	Rules []Rule
	marks []string // of the rules, in their order
}

// NewChain returns a chain of these rules. It takes the rules over.
func NewChain(name string, base Base, rules ...Rule) *Chain {
	c := &Chain{Name: name, Base: base, Rules: rules, marks: make([]string, len(rules))}
	for i, r := range rules {
		c.marks[i] = r.Mark()
	}
	return c
}

// Marks returns the Mark of each rule, in order. The slice is not to be modified.
func (c *Chain) Marks() []string { return c.marks }

// Equal tells whether both are the same chain with the same rules.
func (c *Chain) Equal(o *Chain) bool {
	return c.Name == o.Name && c.Base == o.Base && slices.Equal(c.marks, o.marks)
}

// Base says where packets enter a chain. Every base chain of ours is of the type filter and accepts what reaches its end: what is
// to be dropped is dropped by a rule, so that a half-made table never takes a host off the network.
type Base struct {
	Hook     Hook // empty: no base chain
	Priority int32
}

// Hook is a place in a packet's way, as nft names it.
type Hook string

// The hooks of the family inet that we use.
const (
	Prerouting Hook = "prerouting"
	Input      Hook = "input"
	Forward    Hook = "forward"
	Output     Hook = "output"
)

// Rule is a list of statements: conditions, and what happens to a packet that meets them all.
type Rule struct {
	Stmts []Stmt
	Note  string // for people, shown by nft; at most 80 bytes count
}

// maxNote keeps a rule's comment below the 128 bytes that nft takes, the mark included.
const maxNote = 80

// encoding is part of every mark. A release that encodes the same statements differently raises it, and so replaces the rules of
// its predecessor.
const encoding = "1"

// markLen is the length of a Mark: 48 bits suffice to tell a rule from what somebody put in its place.
const markLen = 12

// Mark returns what the rule is recognised by when it is read back: a hash of its text, 12 hexadecimal digits.
func (r Rule) Mark() string { return Hash(encoding, r.text())[:markLen] }

// CommentOf returns what stands beside the rule in the kernel: its mark, which the caller knows, and the note.
func (r Rule) CommentOf(mark string) string {
	if r.Note == "" {
		return mark
	}
	return mark + " " + r.note()
}

func (r Rule) note() string { return r.Note[:min(len(r.Note), maxNote)] }

// MarkOf returns the mark in a comment that was read back, empty if there is none.
func MarkOf(comment string) string {
	mark, _, _ := strings.Cut(comment, " ")
	if len(mark) != markLen || strings.Trim(mark, "0123456789abcdef") != "" {
		return ""
	}
	return mark
}

// Hash returns 16 hexadecimal digits that stand for the parts, in this order. Names of things that are known by their content
// are made with it.
func Hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	var sum [sha256.Size]byte
	return hex.EncodeToString(h.Sum(sum[:0])[:8])
}
