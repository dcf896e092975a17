package memkernel

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

// PolicyRules is what a function that Refuse was given is told of the rules of nftables, with the name of their table.
const PolicyRules reconcile.Name = "policy"

// Rules are the kernel's rules of nftables, as a connection to it: of each table what is read back of it, since that is all that anybody compares. Whatever is
// committed takes effect as a whole or not at all. It knows which chains maps lead to, but not what rules name.
type Rules struct{ k *Kernel }

// Rules are the kernel's rules of nftables.
func (k *Kernel) Rules() Rules { return Rules{k} }

// Generation is a number that is another one after each commit, as of Conn of internal/nft.
func (r Rules) Generation(context.Context) (uint32, error) {
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	return r.k.generation, nil
}

// List reads a table back, with the generation that it is of. Its content is not to be modified.
func (r Rules) List(_ context.Context, table string) (nftable.Listing, uint32, error) {
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	return r.k.rules[table], r.k.generation, nil
}

// Owns tells that tables belong to nobody.
func (r Rules) Owns() bool { return false }

// Adopt does nothing.
func (r Rules) Adopt(context.Context, string) error { return nil }

// Commit makes a delta take effect on a table. Its errors are those of Conn.Commit of internal/nft: ERESTART for another generation than gen, unless that is 0,
// ENOENT for what is not there, EEXIST for a key that leads elsewhere, EBUSY for a chain that a map leads to.
func (r Rules) Commit(_ context.Context, table string, d nftable.Delta, gen uint32) error {
	if d.Empty() {
		return nil
	}
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	if gen != 0 && gen != r.k.generation {
		return fmt.Errorf("commit: %w", unix.ERESTART)
	}
	if err := r.k.may(PolicyRules, table); err != nil {
		return err
	}
	return r.k.changeRules(table, d)
}

// changeRules makes a delta take effect on a table, or leaves all as it was.
func (k *Kernel) changeRules(table string, d nftable.Delta) error {
	b := rulesBatch{now: copied(k.rules[table])}
	if b.commit(d); b.err != nil {
		return b.err
	}
	k.rules[table] = b.now
	k.generation++
	return nil
}

// MeddleRules takes the elements out of a set as another program would. A Monitor would tell of it.
func (k *Kernel) MeddleRules(table, set string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s, ok := k.rules[table].Sets[set]; ok {
		_ = k.changeRules(table, nftable.Delta{Elems: []nftable.ElemDelta{{Set: s, Del: s.Sorted()}}}) // what is there can be taken out
	}
}

// copied is a listing whose maps may be changed, but for the elements of its sets.
func copied(l nftable.Listing) nftable.Listing {
	l.Chains, l.Sets, l.Counters = maps.Clone(l.Chains), maps.Clone(l.Sets), maps.Clone(l.Counters)
	return l
}

// rulesBatch is a table on the way from one content to the next.
type rulesBatch struct {
	now nftable.Listing
	err error // the first
}

func (b *rulesBatch) want(ok bool, verb, what string, why error) {
	if b.err == nil && !ok {
		b.err = fmt.Errorf("%s %s: %w", verb, what, why)
	}
}

// commit does what a delta says, in the order of internal/nft: what names another thing comes after it, and goes before it.
func (b *rulesBatch) commit(d nftable.Delta) {
	if d.Whole {
		b.now = nftable.Listing{Exists: true, Chains: map[string]nftable.Listed{}, Sets: map[string]*nftable.Set{}, Counters: map[string]nftable.Counted{}}
	}
	b.want(b.now.Exists, "write", "the table", unix.ENOENT)
	if b.err != nil {
		return
	}
	for _, name := range d.AddCounters {
		b.now.Counters[name] = nftable.Counted{}
	}
	for _, c := range d.AddChains {
		b.now.Chains[c.Name] = nftable.Listed{Base: c.Base, Marks: c.Marks()}
	}
	for _, c := range d.SetChains {
		_, ok := b.now.Chains[c.Name]
		b.want(ok, "flush chain", c.Name, unix.ENOENT)
		b.now.Chains[c.Name] = nftable.Listed{Base: c.Base, Marks: c.Marks()}
	}
	b.elements(d)
	b.removals(d)
}

func (b *rulesBatch) elements(d nftable.Delta) {
	for _, e := range d.Elems {
		s := b.edit(e.Set)
		for _, el := range e.Del {
			_, ok := s.Elems[el]
			b.want(ok, "take elements from set", s.Name, unix.ENOENT)
			delete(s.Elems, el)
		}
	}
	for _, set := range d.AddSets {
		empty := *set
		empty.Elems = map[nftable.Elem]struct{}{}
		b.now.Sets[set.Name] = &empty
		b.fill(&empty, set.Sorted())
	}
	for _, e := range d.Elems {
		if s, ok := b.now.Sets[e.Set.Name]; ok {
			b.fill(s, e.Add)
		}
	}
}

// edit is a set of the table, with elements of its own.
func (b *rulesBatch) edit(s *nftable.Set) *nftable.Set {
	was, ok := b.now.Sets[s.Name]
	b.want(ok, "take elements from set", s.Name, unix.ENOENT)
	if !ok {
		return &nftable.Set{Elems: map[nftable.Elem]struct{}{}}
	}
	now := *was
	now.Elems = maps.Clone(was.Elems)
	b.now.Sets[s.Name] = &now
	return &now
}

func (b *rulesBatch) fill(s *nftable.Set, elems []nftable.Elem) {
	to := make(map[nftable.Key]string, len(s.Elems))
	for el := range s.Elems {
		to[el.Key] = el.To
	}
	for _, el := range elems {
		if s.Map {
			_, ok := b.now.Chains[el.To]
			b.want(ok, "add elements to set", s.Name, unix.ENOENT)
		}
		other, taken := to[el.Key]
		b.want(!taken || other == el.To, "add elements to set", s.Name, unix.EEXIST)
		to[el.Key] = el.To
		s.Elems[el] = struct{}{}
	}
}

func (b *rulesBatch) removals(d nftable.Delta) {
	for _, name := range d.DelSets {
		_, ok := b.now.Sets[name]
		b.want(ok, "delete set", name, unix.ENOENT)
		delete(b.now.Sets, name)
	}
	if len(d.DelChains) > 0 {
		b.drop(d.DelChains)
	}
	for _, name := range d.DelCounters {
		_, ok := b.now.Counters[name]
		b.want(ok, "delete counter", name, unix.ENOENT)
		delete(b.now.Counters, name)
	}
}

// drop deletes chains, to which no map may lead any more.
func (b *rulesBatch) drop(chains []string) {
	for _, name := range chains {
		_, ok := b.now.Chains[name]
		b.want(ok, "delete chain", name, unix.ENOENT)
		delete(b.now.Chains, name)
	}
	for _, s := range b.now.Sets {
		for el := range s.Elems {
			b.want(!s.Map || !slices.Contains(chains, el.To), "delete chain", el.To, unix.EBUSY)
		}
	}
}
