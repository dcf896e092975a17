// Package xtables reads and writes the iptables rules and ipsets of one network namespace.
//
// Both are tables with List and Apply, see internal/kernel. The kernel gives a rule back in other words than it was given, so
// every rule of ours carries a comment with a hash of its text, its chain and all rules before it. Rules are compared by these
// hashes, and therefore a list of chains returns only them, see Marks.
package xtables

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
)

const (
	markLength = 16  // characters of hash in a mark: 96 bits
	misplaced  = "?" // stands in a list for a rule without mark where one of ours should be
)

// Chains is the table of our chains of one family, and of our rules in the kernel's own chains. Marks are the chain's name and the rule's
// comment. The programs are run in the namespace of the calling thread. For one caller at a time.
type Chains struct {
	ipt     *iptables.IPTables // all that is written goes through it
	program string
	v6      bool
	tells   bool   // the kernel sends events of what the program writes
	hands   *hands // shared with the table of the other family, and with a Watch
	last    bool   // see Append
}

// Append makes our rules stand last in the kernel's own chains, or else first, from the next List on.
func (c *Chains) Append(last bool) { c.last = last }

// Backend returns the name of the iptables program that is used.
func (c *Chains) Backend() string { return c.program }

// Marks returns the marks of a chain's rules, in order. A line that is no rule but a mark, as List returns them, stands for itself.
func Marks(k kernel.ChainKey, c kernel.Chain) []string {
	if c.Rules == "" {
		return nil
	}
	lines := strings.Split(c.Rules, "\n")
	out := make([]string, len(lines))
	before := ""
	for i, line := range lines {
		if line != misplaced && !strings.HasPrefix(line, kernel.CommentPrefix) {
			sum := sha256.Sum256([]byte(strings.Join([]string{k.Table, k.Chain, before, line}, "\x00")))
			line = kernel.CommentPrefix + base64.RawURLEncoding.EncodeToString(sum[:])[:markLength]
		}
		out[i], before = line, line
	}
	return out
}

// Same compares two contents by their marks.
func (c *Chains) Same(k kernel.ChainKey, have, want kernel.Chain) bool {
	return have == want || slices.Equal(Marks(k, have), Marks(k, want))
}

// List returns our chains, and of the kernel's chains those that hold a rule of ours. Instead of the rules it returns their
// marks. It runs one program.
func (c *Chains) List(ctx context.Context) (map[kernel.ChainKey]kernel.Chain, error) {
	all, err := c.dump(ctx)
	if err != nil {
		return nil, err
	}
	out := map[kernel.ChainKey]kernel.Chain{}
	for k, rules := range all {
		if ours := c.ourPart(k, rules); ours != nil || ourChain(k) {
			out[k] = kernel.Chain{Rules: strings.Join(ours, "\n")}
		}
	}
	c.hands.use(c.v6, slices.Collect(maps.Keys(out))...)
	return out, nil
}

func ourChain(k kernel.ChainKey) bool { return strings.HasPrefix(k.Chain, kernel.ChainPrefix) }

// ourPart returns the marks of our rules in a chain, and a placeholder for every other rule that is in our chain, or in a chain of
// the kernel's on the wrong side of one of ours.
func (c *Chains) ourPart(k kernel.ChainKey, rules []rule) []string {
	from, end := 0, len(rules)
	switch {
	case ourChain(k):
	case c.last:
		for from < end && rules[from].mark == "" {
			from++
		}
	default:
		for end > 0 && rules[end-1].mark == "" {
			end--
		}
	}
	var out []string
	for _, r := range rules[from:end] {
		if r.mark == "" {
			out = append(out, misplaced)
			continue
		}
		out = append(out, r.mark)
	}
	return out
}

// Apply makes, changes and removes chains. Packets never meet a gap: a chain is filled before a rule jumps to it, in a chain that
// changes the new rules are put in before the old ones go, and jumps go before what they lead to. Chains that are as asked
// are left alone. If a rule cannot be added, its chain keeps the old ones.
func (c *Chains) Apply(ctx context.Context, changes []kernel.Change[kernel.ChainKey, kernel.Chain]) error {
	have, err := c.dump(ctx)
	if err != nil {
		return err
	}
	puts, removals := sortChanges(changes)
	for _, p := range puts {
		c.hands.use(c.v6, p.Key)
	}
	a := attempt{c: c, have: have, failed: map[kernel.ChainKey]error{}}
	for _, p := range puts {
		a.step(ctx, p.Key, func(k kernel.ChainKey) error { return a.create(ctx, k) })
	}
	for _, p := range puts {
		a.step(ctx, p.Key, func(k kernel.ChainKey) error { return a.fill(ctx, k, *p.New) })
	}
	for _, p := range removals {
		a.step(ctx, p.Key, func(k kernel.ChainKey) error { return a.fill(ctx, k, kernel.Chain{}) })
	}
	for _, p := range removals {
		a.step(ctx, p.Key, func(k kernel.ChainKey) error { return a.destroy(ctx, k) })
	}
	return a.err(changes)
}

// sortChanges returns additions in the order in which they can be made, called chains before their callers and the kernel's own last,
// and removals in the opposite order.
func sortChanges(changes []kernel.Change[kernel.ChainKey, kernel.Chain]) (puts, removals []kernel.Change[kernel.ChainKey, kernel.Chain]) {
	byKey := map[kernel.ChainKey]kernel.Change[kernel.ChainKey, kernel.Chain]{}
	for _, c := range changes {
		byKey[c.Key] = c
	}
	done := map[kernel.ChainKey]bool{}
	var visit func(kernel.Change[kernel.ChainKey, kernel.Chain])
	visit = func(c kernel.Change[kernel.ChainKey, kernel.Chain]) {
		if done[c.Key] {
			return
		}
		done[c.Key] = true
		if c.New == nil {
			removals = append(removals, c)
			return
		}
		for _, name := range targets(*c.New) {
			if callee, ok := byKey[kernel.ChainKey{Table: c.Key.Table, Chain: name}]; ok && callee.New != nil {
				visit(callee)
			}
		}
		puts = append(puts, c)
	}
	for _, own := range []bool{true, false} {
		for _, c := range changes {
			if ourChain(c.Key) == own {
				visit(c)
			}
		}
	}
	slices.Reverse(removals)
	return puts, removals
}

// targets are the chains that a chain's rules jump or go to.
func targets(c kernel.Chain) []string {
	var out []string
	words := strings.Fields(c.Rules)
	for i, w := range words[:max(0, len(words)-1)] {
		if w == "-j" || w == "-g" {
			out = append(out, words[i+1])
		}
	}
	return out
}

// attempt is one Apply: what was there before, and what has failed.
type attempt struct {
	c      *Chains
	have   map[kernel.ChainKey][]rule
	failed map[kernel.ChainKey]error
}

// step does a piece of a chain's change, unless an earlier piece failed.
func (a *attempt) step(ctx context.Context, k kernel.ChainKey, do func(kernel.ChainKey) error) {
	if a.failed[k] != nil {
		return
	}
	err := ctx.Err()
	if err == nil {
		err = do(k)
	}
	if err != nil {
		a.failed[k] = fmt.Errorf("change chain %s of table %s: %w", k.Chain, k.Table, err)
	}
}

func (a *attempt) err(changes []kernel.Change[kernel.ChainKey, kernel.Chain]) error {
	return kernel.Each(changes, func(c kernel.Change[kernel.ChainKey, kernel.Chain]) error { return a.failed[c.Key] })
}

// write has go-iptables make one change, which is known as ours to a Watch.
func (a *attempt) write(ctx context.Context, kind uint8, k kernel.ChainKey, do func(table, chain string) error) error {
	c := a.c
	e := change{kind: kind, v6: c.v6, table: k.Table, chain: k.Chain}
	if c.tells {
		c.hands.expect(e)
	}
	err := bounded(ctx, func() error { return do(k.Table, k.Chain) })
	if err != nil && c.tells {
		c.hands.takeBack(e)
	}
	return err
}

func (a *attempt) create(ctx context.Context, k kernel.ChainKey) error {
	if _, ok := a.have[k]; ok || !ourChain(k) {
		return nil
	}
	if err := a.write(ctx, msgNewChain, k, a.c.ipt.NewChain); err != nil {
		return err
	}
	return fault.At(fault.ApplyChainMade)
}

func (a *attempt) destroy(ctx context.Context, k kernel.ChainKey) error {
	if _, ok := a.have[k]; !ok || !ourChain(k) {
		return nil
	}
	return ignoreMissing(a.write(ctx, msgDelChain, k, a.c.ipt.DeleteChain))
}

// fill gives a chain its rules: those that are right stay, the others are inserted after them, and then what is left
// of the old ones goes.
func (a *attempt) fill(ctx context.Context, k kernel.ChainKey, want kernel.Chain) error {
	have, marks := a.have[k], Marks(k, want)
	if a.c.last && !ourChain(k) {
		return a.fillLast(ctx, k, want, have)
	}
	keep := 0
	for keep < len(have) && keep < len(marks) && have[keep].mark == marks[keep] {
		keep++
	}
	lines := strings.Split(want.Rules, "\n")
	for i := keep; i < len(marks); i++ {
		if err := a.add(ctx, k, i+1, marks[i], lines[i]); err != nil {
			return fmt.Errorf("add rule %q: %w", lines[i], err)
		}
	}
	inserted := marks[keep:]
	for i := len(have) - 1; i >= keep; i-- {
		if have[i].mark == "" && !ourChain(k) {
			continue
		}
		if err := a.drop(ctx, k, have[i], i+len(inserted)+1, slices.Contains(inserted, have[i].mark)); err != nil {
			return fmt.Errorf("remove rule %s: %w", have[i].mark, err)
		}
	}
	return nil
}

// fillLast gives one of the kernel's chains its rules at the end: first the new ones, so that there is no gap, and then the old ones go.
func (a *attempt) fillLast(ctx context.Context, k kernel.ChainKey, want kernel.Chain, have []rule) error {
	marks := Marks(k, want)
	if slices.Equal(a.c.ourPart(k, have), marks) {
		return nil
	}
	lines := strings.Split(want.Rules, "\n")
	for i, m := range marks {
		if err := a.add(ctx, k, atEnd, m, lines[i]); err != nil {
			return fmt.Errorf("add rule %q: %w", lines[i], err)
		}
	}
	for i := len(have) - 1; i >= 0; i-- {
		if have[i].mark == "" {
			continue
		}
		if err := a.drop(ctx, k, have[i], i+1, slices.Contains(marks, have[i].mark)); err != nil {
			return fmt.Errorf("remove rule %s: %w", have[i].mark, err)
		}
	}
	return nil
}

// atEnd is the position behind all rules of a chain.
const atEnd = 0

// add puts a rule at a position, the first being 1.
func (a *attempt) add(ctx context.Context, k kernel.ChainKey, position int, mark, line string) error {
	text, err := words(line)
	if err != nil {
		return err
	}
	spec := slices.Concat([]string{"-m", "comment", "--comment", mark}, text)
	err = a.write(ctx, msgNewRule, k, func(table, chain string) error {
		if position == atEnd {
			return a.c.ipt.Append(table, chain, spec...)
		}
		return a.c.ipt.Insert(table, chain, position, spec...)
	})
	if err != nil {
		return err
	}
	return fault.At(fault.ApplyRuleAdded)
}

// drop removes a rule by its text, since others may be changing the chain too and its position may be wrong. Only if it has
// a twin that stays it must be the position, which is checked just before.
func (a *attempt) drop(ctx context.Context, k kernel.ChainKey, r rule, position int, twin bool) error {
	if !twin && r.spec != nil {
		return ignoreMissing(a.write(ctx, msgDelRule, k, func(table, chain string) error { return a.c.ipt.Delete(table, chain, r.spec...) }))
	}
	line, err := a.at(ctx, k, position)
	if err != nil {
		return err
	}
	if !strings.Contains(line, r.mark) {
		return fmt.Errorf("another program is changing the chain")
	}
	return a.write(ctx, msgDelRule, k, func(table, chain string) error { return a.c.ipt.DeleteById(table, chain, position) })
}

// at returns the rule at a position, and "" if there is none. (ListById would panic then.)
func (a *attempt) at(ctx context.Context, k kernel.ChainKey, position int) (string, error) {
	var lines []string
	err := bounded(ctx, func() (err error) {
		lines, err = a.c.ipt.List(k.Table, k.Chain)
		return err
	})
	rules := slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "-A ") }) // the first line is the chain itself
	if err != nil || position > len(rules) {
		return "", err
	}
	return rules[position-1], nil
}

func ignoreMissing(err error) error {
	var e *iptables.Error
	if errors.As(err, &e) && e.IsNotExist() {
		return nil
	}
	return err
}
