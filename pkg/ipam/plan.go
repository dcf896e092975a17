// Package ipam hands out and takes back addresses: it picks pools and blocks and builds the transaction that changes them.
//
// The goals, and how each is met:
//
//  1. An allocation is whole or not at all: claiming a block, taking addresses from it, counting them on the handle and
//     whatever the caller adds (its endpoint) are the writes of one transaction.
//  2. No address is given twice, whoever else writes: every block is written at the revision that it was read at, and so is
//     compared what the choice rested on (affinity, pool, node, whose machine has its name, configuration, the cluster's ready flag).
//     Nor is a block made anew over addresses that are in use though their block was deleted.
//  3. The usual case reads nothing: a Plan starts from what its Source has in memory, and only a conflict sends it to etcd.
//  4. What Calico's writers leave when they die between two of their steps is understood, and put right by the next
//     transaction that works there: see Plan.Assign and Plan.Held.
//  5. Nothing is written while the datastore is locked: every transaction compares the cluster's ready flag, also one that only frees.
//  6. Blocks go where they are needed: a node gives back its empty ones in pools that do not select it any more, and takes over
//     other nodes' empty ones before it borrows single addresses.
package ipam

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Plan is a transaction in the making. Assign, Held and Release may be called any number of times and see each other's
// effects; nothing is written until the caller commits Txn. After an error the Plan is spoilt: go on with a Clone made before.
// Not safe for concurrent use, nor are a Plan and its Clones together.
type Plan struct {
	facts   Facts
	node    string
	now     time.Time
	picture *picture // shared with clones: it is only ever completed
	blocks  map[netip.Prefix]change[api.Block]
	claims  map[netip.Prefix]change[api.Affinity] // the node's own
	evicted map[string]change[api.Affinity]       // other nodes', by key: those whose blocks were reclaimed
	handles map[string]change[api.Handle]
	expect  map[string]int64
	given   int             // blocks given back
	uses    map[string]bool // see Uses
	more    map[string]func(*store.Txn)
}

// change is a value as it was read, and as it shall be: nil means absent. Values are replaced, never modified.
type change[T api.Value] struct {
	was store.Entry[T]
	now *T
}

// unreadable reports a value that exists and could not be decoded: it is left alone.
func (c change[T]) unreadable() bool { return c.was.Exists() && c.was.Value == nil }

// present reports whether there shall be a value under the key, if only one that cannot be read.
func (c change[T]) present() bool { return c.now != nil || c.unreadable() }

// writes reports whether the value shall differ from what it was.
func (c change[T]) writes() bool { return c.now != c.was.Value }

func (c change[T]) write(t *store.Txn) {
	switch {
	case !c.writes():
	case c.now == nil:
		t.Delete(c.was.Key, c.was.Rev)
	default:
		store.Put(t, c.was, c.now)
	}
}

// NewPlan starts an empty transaction for the node, which depends on the cluster being as it is in the facts: ready, or not there at all. For plans
// that only release, the facts need no more than that; then blocks of pools that no longer select the node are not given back.
func NewPlan(src Source, node string, facts Facts, now time.Time) *Plan {
	p := &Plan{
		facts: facts, node: node, now: now,
		picture: newPicture(src, facts),
		blocks:  map[netip.Prefix]change[api.Block]{},
		claims:  map[netip.Prefix]change[api.Affinity]{},
		evicted: map[string]change[api.Affinity]{},
		handles: map[string]change[api.Handle]{},
		expect:  map[string]int64{ClusterKey(): facts.Cluster.Rev},
		more:    map[string]func(*store.Txn){},
		uses:    usesOfAll(),
	}
	for _, e := range facts.Affinities {
		if _, cidr, err := api.ParseAffinityKey(e.Key); err == nil {
			p.claims[cidr] = change[api.Affinity]{e, e.Value}
		}
	}
	return p
}

// Clone is an independent copy, of which nobody has asked anything yet: see Uses.
func (p *Plan) Clone() *Plan {
	c := *p
	c.blocks, c.claims, c.handles, c.expect = maps.Clone(p.blocks), maps.Clone(p.claims), maps.Clone(p.handles), maps.Clone(p.expect)
	c.evicted, c.more = maps.Clone(p.evicted), maps.Clone(p.more)
	c.uses = usesOfAll()
	return &c
}

// usesOfAll is what every transaction compares, whoever asks for it.
func usesOfAll() map[string]bool { return map[string]bool{ClusterKey(): true} }

// Uses is the keys that the transaction compares, or may compare, for the sake of what was asked of this plan since it was made or cloned: where
// one of several jobs that share a transaction met another's write, these tell which. Do not modify it.
func (p *Plan) Uses() map[string]bool { return p.uses }

// Then adds the caller's own compares and writes to the transaction, in the place of what was added under the same name. It
// writes one key at most: the one of that name, if Uses is to hold it.
func (p *Plan) Then(name string, f func(*store.Txn)) {
	p.uses[name] = true
	p.more[name] = f
}

// Size bounds the keys that the transaction compares, and so those that it writes: store.MaxKeys is what etcd takes.
func (p *Plan) Size() int {
	n := len(p.expect) + len(p.more)
	count := func(key string, writes bool) {
		if _, counted := p.expect[key]; writes && !counted {
			n++
		}
	}
	for _, c := range p.blocks {
		count(c.was.Key, c.writes())
	}
	for _, c := range p.claims {
		count(c.was.Key, c.writes())
	}
	for _, c := range p.evicted {
		count(c.was.Key, c.writes())
	}
	for _, c := range p.handles {
		count(c.was.Key, c.writes())
	}
	return n
}

// Txn is the transaction as planned so far. It is Empty if everything is as it should be already.
func (p *Plan) Txn() *store.Txn {
	t := &store.Txn{}
	for key, rev := range p.expect {
		t.Expect(key, rev)
	}
	for _, key := range slices.Sorted(maps.Keys(p.evicted)) {
		p.evicted[key].write(t)
	}
	for _, cidr := range slices.SortedFunc(maps.Keys(p.claims), netip.Prefix.Compare) {
		p.claims[cidr].write(t)
	}
	for _, id := range slices.Sorted(maps.Keys(p.handles)) {
		p.handles[id].write(t)
	}
	for _, cidr := range slices.SortedFunc(maps.Keys(p.blocks), netip.Prefix.Compare) {
		p.blocks[cidr].write(t)
	}
	for _, name := range slices.Sorted(maps.Keys(p.more)) {
		p.more[name](t)
	}
	return t
}

// depend makes the transaction conflict if the key is not at that revision. A key that the plan depends on already keeps its.
func (p *Plan) depend(key string, rev int64) {
	p.uses[key] = true
	p.expect[key] = rev
}

// load reads the blocks that the plan has not seen yet.
func (p *Plan) load(ctx context.Context, cidrs ...netip.Prefix) error {
	var missing []netip.Prefix
	for _, c := range cidrs {
		if _, ok := p.blocks[c]; !ok {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	got, err := p.picture.src.Blocks(ctx, missing...)
	if err != nil {
		return err
	}
	for i, e := range got {
		e.Key = api.BlockKey(missing[i])
		p.blocks[missing[i]] = change[api.Block]{e, e.Value}
	}
	return nil
}

// block is the block as the plan has it: loaded, or known from the list of all.
func (p *Plan) block(cidr netip.Prefix) change[api.Block] {
	if c, ok := p.blocks[cidr]; ok {
		return c
	}
	e := p.picture.blocks[index(cidr.Addr().Is6())].at[cidr]
	e.Key = api.BlockKey(cidr)
	return change[api.Block]{e, e.Value}
}

// set notes what shall become of a block; nil: it is deleted.
func (p *Plan) set(cidr netip.Prefix, b *api.Block) {
	c := p.block(cidr)
	c.now = b
	p.uses[c.was.Key] = true
	p.blocks[cidr] = c
}

// drop deletes the node's claim to a block.
func (p *Plan) drop(cidr netip.Prefix) {
	c := p.claims[cidr]
	c.now = nil
	p.setClaim(cidr, c)
}

// setClaim notes what shall become of the node's claim to a block.
func (p *Plan) setClaim(cidr netip.Prefix, c change[api.Affinity]) {
	p.uses[c.was.Key] = true
	p.claims[cidr] = c
}

// setHandle notes what shall become of a handle.
func (p *Plan) setHandle(id string, c change[api.Handle]) {
	p.uses[c.was.Key] = true
	p.handles[id] = c
}

func (p *Plan) ours(b *api.Block) bool {
	host, ok := b.Host()
	return ok && host == p.node
}

// room counts the addresses of a block that may be assigned. One that does not exist yet has all of them.
func (p *Plan) room(cidr netip.Prefix) int {
	c := p.block(cidr)
	switch {
	case c.unreadable():
		return 0
	case c.now == nil && p.picture.reserved.covers(cidr):
		return 0
	case c.now == nil:
		return block.Size(cidr)
	}
	return block.FreeWhere(c.now, p.picture.reserved.allows())
}
