// Package ipam hands out and takes back addresses: it picks pools and blocks and builds the transaction that changes them.
//
// The goals, and how each is met:
//
//  1. An allocation is whole or not at all: claiming a block, taking addresses from it, counting them on the handle and
//     whatever the caller adds (its endpoint) are the writes of one transaction.
//  2. No address is given twice, whoever else writes: every block is written at the revision that it was read at, and so is
//     compared what the choice rested on (affinity, pool, node, whose machine has its name, configuration, the cluster's ready flag).
//  3. The usual case reads nothing: a Plan starts from what its Source has in memory, and only a conflict sends it to etcd.
//  4. What Calico's writers leave when they die between two of their steps is understood, and put right by the next
//     transaction that works there: see Plan.Assign and Plan.Held.
package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// defaultMaxBlocks bounds the blocks of one node where the configuration does not: a guard against runaway claims.
const defaultMaxBlocks = 20

// Plan is a transaction in the making. Assign, Held and Release may be called any number of times and see each other's
// effects; nothing is written until the caller commits Txn. After an error the Plan is spoilt: go on with a Clone made before.
// Not safe for concurrent use.
type Plan struct {
	src     Source
	facts   Facts
	node    string
	now     time.Time
	blocks  map[netip.Prefix]change[api.Block]
	claims  map[netip.Prefix]change[api.Affinity]
	handles map[string]change[api.Handle]
	expect  map[string]int64
	more    map[string]func(*store.Txn)
}

// change is a value as it was read, and as it shall be: nil means absent. Values are replaced, never modified.
type change[T api.Value] struct {
	was store.Entry[T]
	now *T
}

// unreadable reports a value that exists and could not be decoded: it is left alone.
func (c change[T]) unreadable() bool { return c.was.Exists() && c.was.Value == nil }

func (c change[T]) write(t *store.Txn) {
	switch {
	case c.now == c.was.Value:
	case c.now == nil:
		t.Delete(c.was.Key, c.was.Rev)
	default:
		store.Put(t, c.was, c.now)
	}
}

// NewPlan starts an empty transaction for the node. For plans that only release, the facts need no more than the cluster.
func NewPlan(src Source, node string, facts Facts, now time.Time) *Plan {
	p := &Plan{
		src: src, facts: facts, node: node, now: now,
		blocks:  map[netip.Prefix]change[api.Block]{},
		claims:  map[netip.Prefix]change[api.Affinity]{},
		handles: map[string]change[api.Handle]{},
		expect:  map[string]int64{},
		more:    map[string]func(*store.Txn){},
	}
	for _, e := range facts.Affinities {
		if _, cidr, err := api.ParseAffinityKey(e.Key); err == nil {
			p.claims[cidr] = change[api.Affinity]{e, e.Value}
		}
	}
	return p
}

// Clone is an independent copy.
func (p *Plan) Clone() *Plan {
	c := *p
	c.blocks, c.claims, c.handles, c.expect = maps.Clone(p.blocks), maps.Clone(p.claims), maps.Clone(p.handles), maps.Clone(p.expect)
	c.more = maps.Clone(p.more)
	return &c
}

// Then adds the caller's own compares and writes to the transaction, in the place of what was added under the same name.
func (p *Plan) Then(name string, f func(*store.Txn)) { p.more[name] = f }

// Txn is the transaction as planned so far. It is Empty if everything is as it should be already.
func (p *Plan) Txn() *store.Txn {
	t := &store.Txn{}
	for key, rev := range p.expect {
		t.Expect(key, rev)
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

// Assign takes one address and returns it with the prefix length of its block. A handle that Held has not loaded is created, and
// the commit conflicts if it exists.
//
// Blocks of the node come first, then a new one is claimed. Of what the node's affinities may say: one whose block belongs to
// somebody else, or to nobody, is stale and is deleted; one that cannot be read is written over; one without a block gets it; one that
// is not confirmed is confirmed together with the allocation, which takes the block's revision from under whoever was about to
// release it.
//
// The error is a *Refusal, or the Source's.
func (p *Plan) Assign(ctx context.Context, r Request) (netip.Prefix, error) {
	if err := p.facts.ready(p.node); err != nil {
		return netip.Prefix{}, err
	}
	pools, err := p.facts.choose(p.node, r)
	if err != nil {
		return netip.Prefix{}, err
	}
	own, err := p.own(ctx, pools)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, o := range own {
		if p.room(o.cidr) > 0 {
			return p.take(o, r)
		}
	}
	o, err := p.claim(ctx, pools, own, r)
	if err != nil {
		return netip.Prefix{}, err
	}
	return p.take(o, r)
}

// placed is a block with the pool that it lies in.
type placed struct {
	cidr netip.Prefix
	pool store.Entry[api.IPPool]
}

// own lists the node's blocks in the pools, and drops stale affinities on the way.
func (p *Plan) own(ctx context.Context, pools []store.Entry[api.IPPool]) ([]placed, error) {
	var in []placed
	var cidrs []netip.Prefix
	for _, cidr := range slices.SortedFunc(maps.Keys(p.claims), netip.Prefix.Compare) {
		if pool, ok := poolOf(pools, cidr); ok && p.claims[cidr].now != nil {
			in, cidrs = append(in, placed{cidr, pool}), append(cidrs, cidr)
		}
	}
	if err := p.load(ctx, cidrs...); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(in, func(o placed) bool { return p.dropStale(o.cidr) }), nil
}

// dropStale deletes the node's affinity to a block that is not the node's.
func (p *Plan) dropStale(cidr netip.Prefix) bool {
	b := p.blocks[cidr]
	if b.unreadable() || b.now == nil || p.ours(b.now) {
		return false
	}
	c := p.claims[cidr]
	c.now = nil
	p.claims[cidr] = c
	p.depend(b.was.Key, b.was.Rev)
	return true
}

func (p *Plan) ours(b *api.Block) bool {
	host, ok := b.Host()
	return ok && host == p.node
}

// room counts the free addresses of a block that is loaded. One that does not exist yet has all of them.
func (p *Plan) room(cidr netip.Prefix) int {
	c := p.blocks[cidr]
	switch {
	case c.unreadable():
		return 0
	case c.now == nil:
		return block.Size(cidr)
	}
	return block.Free(c.now)
}

// take assigns one address from a block with room, and claims the block as far as it is not yet.
func (p *Plan) take(o placed, r Request) (netip.Prefix, error) {
	c := p.blocks[o.cidr]
	b := c.now
	if b == nil {
		var err error
		if b, err = block.New(o.cidr, p.node, p.now); err != nil {
			return netip.Prefix{}, err
		}
	}
	addrs, b := block.Assign(b, 1, block.Owner{HandleID: r.Handle, Attrs: r.Attrs})
	p.assigned(o, b, r)
	return netip.PrefixFrom(addrs[0], o.cidr.Bits()), nil
}

// reown makes an address that is held without an owner the requester's.
func (p *Plan) reown(o placed, a netip.Addr, r Request) error {
	b, err := block.ReleaseAddr(p.blocks[o.cidr].now, block.Release{Addr: a})
	if err != nil {
		return err
	}
	if b, err = block.AssignAddr(b, a, block.Owner{HandleID: r.Handle, Attrs: r.Attrs}); err != nil {
		return err
	}
	p.assigned(o, b, r)
	return nil
}

// assigned records that the block has one address more of the requester's, and what that rests on.
func (p *Plan) assigned(o placed, b *api.Block, r Request) {
	c := p.blocks[o.cidr]
	c.now = b
	p.blocks[o.cidr] = c
	p.confirm(o.cidr)
	p.count(r.Handle, o.cidr)
	p.depend(o.pool.Key, o.pool.Rev)
	p.depend(p.facts.Node.Key, p.facts.Node.Rev)
	p.AsHolder()
	p.depend(api.IPAMConfigKey, p.facts.Config.Rev)
	p.depend(ClusterKey(), p.facts.Cluster.Rev)
}

// confirm makes the node's affinity to the block confirmed, or holds on to it if it is.
func (p *Plan) confirm(cidr netip.Prefix) {
	c, known := p.claims[cidr]
	switch {
	case !known:
		c.was.Key = api.AffinityKey(p.node, cidr)
	case c.unreadable():
		c.was = store.Entry[api.Affinity]{Key: c.was.Key, Rev: c.was.Rev} // to be written over, not merged with
	case c.now != nil && c.now.Confirmed():
		if c.now == c.was.Value {
			p.depend(c.was.Key, c.was.Rev)
		}
		return
	}
	c.now = &api.Affinity{State: api.AffinityConfirmed}
	p.claims[cidr] = c
}

// count adds one address of the block to the handle.
func (p *Plan) count(id string, cidr netip.Prefix) {
	c, known := p.handles[id]
	if !known {
		c.was.Key = api.HandleKey(id)
	}
	h := api.Handle{}
	if c.now != nil {
		h = *c.now
	}
	if h.Block = maps.Clone(h.Block); h.Block == nil {
		h.Block = map[string]int{}
	}
	h.Block[cidr.String()]++
	c.now = &h
	p.handles[id] = c
}

// claim finds a block for the node in the pools, in order: one that is the node's though no affinity says so, else a range
// without a block.
func (p *Plan) claim(ctx context.Context, pools []store.Entry[api.IPPool], own []placed, r Request) (placed, error) {
	if err := p.mayClaim(pools, own); err != nil {
		return placed{}, err
	}
	all, err := p.src.AllBlocks(ctx, r.V6)
	if err != nil {
		return placed{}, err
	}
	if o, ok := p.adopt(pools, all); ok {
		return o, nil
	}
	for _, pool := range pools {
		cidr, ok := vacant(pool.Value, p.occupied(pool.Value.Spec.BlockSize, all), p.node, p.now)
		if !ok {
			continue
		}
		if _, known := p.blocks[cidr]; !known {
			p.blocks[cidr] = change[api.Block]{was: store.Entry[api.Block]{Key: api.BlockKey(cidr)}}
		}
		return placed{cidr, pool}, nil
	}
	return placed{}, refuse(ErrNoAddress,
		"add an IPPool, or delete nodes that are gone to free their blocks; single addresses of other nodes' blocks and their empty blocks are not taken",
		"no free blocks in pools %s: every range has one of the %d blocks, and the %d of node %s are full", list(pools), len(all), len(own), p.node)
}

// mayClaim refuses where the configuration does not let the node have another block.
func (p *Plan) mayClaim(pools []store.Entry[api.IPPool], own []placed) error {
	cfg := api.DefaultIPAMConfig()
	if p.facts.Config.Exists() {
		cfg = *p.facts.Config.Value
	}
	if !cfg.AutoAllocateBlocks {
		return refuse(ErrNoAddress, "set auto_allocate_blocks, or assign the node a block",
			"failed to find or claim a block in pools %s: the %d blocks of node %s are full and the IPAM configuration forbids to claim more", list(pools), len(own), p.node)
	}
	limit, remedy := cfg.MaxBlocksPerHost, "raise it (calicoctl ipam configure --max-blocks-per-host), or run fewer pods on the node"
	if limit <= 0 {
		limit, remedy = defaultMaxBlocks, "set a higher maxBlocksPerHost, use pools with larger blocks, or run fewer pods on the node"
	}
	if len(own) >= limit {
		return refuse(ErrNoAddress, remedy, "cannot allocate new block due to per host block limit: node %s has %d full blocks in pools %s and may have %d",
			p.node, len(own), list(pools), limit)
	}
	return nil
}

// adopt finds a block with room that names the node as its host, though the node has no affinity to it.
func (p *Plan) adopt(pools []store.Entry[api.IPPool], all []store.Entry[api.Block]) (placed, bool) {
	for _, e := range all {
		cidr, err := api.ParseBlockKey(e.Key)
		if err != nil || e.Value == nil || !p.ours(e.Value) {
			continue
		}
		pool, ok := poolOf(pools, cidr)
		if p.claims[cidr].now != nil || !ok || block.Free(e.Value) == 0 {
			continue
		}
		if _, loaded := p.blocks[cidr]; !loaded {
			p.blocks[cidr] = change[api.Block]{e, e.Value}
		}
		return placed{cidr, pool}, true
	}
	return placed{}, false
}

// occupied gathers where blocks are, this plan's own included.
func (p *Plan) occupied(bits int, all []store.Entry[api.Block]) occupied {
	out := newOccupied(bits)
	for _, e := range all {
		if cidr, err := api.ParseBlockKey(e.Key); err == nil {
			out.add(cidr)
		}
	}
	for cidr, c := range p.blocks {
		if c.now != nil || c.was.Exists() {
			out.add(cidr)
		}
	}
	return out
}

// poolOf returns the pool that a block belongs to.
func poolOf(pools []store.Entry[api.IPPool], cidr netip.Prefix) (store.Entry[api.IPPool], bool) {
	i := slices.IndexFunc(pools, func(e store.Entry[api.IPPool]) bool {
		s := e.Value.Spec
		return s.CIDR.Bits() <= cidr.Bits() && s.CIDR.Contains(cidr.Addr())
	})
	if i < 0 {
		return store.Entry[api.IPPool]{}, false
	}
	return pools[i], true
}

// Held returns the addresses that the handle really owns, each with the prefix length of its block. Counts of the handle
// that differ are put right, as they do after a Calico writer died between handle and block. The handle and the blocks must
// still be as they are now when the transaction is committed, unless it is Empty.
func (p *Plan) Held(ctx context.Context, h store.Entry[api.Handle]) ([]netip.Prefix, error) {
	id := strings.TrimPrefix(h.Key, api.HandlesRoot)
	if _, known := p.handles[id]; !known {
		p.handles[id] = change[api.Handle]{h, h.Value}
	}
	c := p.handles[id]
	if c.now == nil {
		return nil, nil
	}
	cidrs := blocksOf(c.now)
	if err := p.load(ctx, cidrs...); err != nil {
		return nil, err
	}
	var out []netip.Prefix
	counts := map[string]int{}
	for _, cidr := range cidrs {
		b := p.blocks[cidr]
		if b.unreadable() {
			return nil, fmt.Errorf("read block %v of handle %s: it is damaged: repair or delete %s", cidr, id, b.was.Key)
		}
		p.depend(b.was.Key, b.was.Rev)
		if b.now == nil {
			continue
		}
		for _, a := range block.Owned(b.now, id) {
			out = append(out, netip.PrefixFrom(a, cidr.Bits()))
			counts[cidr.String()]++
		}
	}
	if !maps.Equal(counts, c.now.Block) {
		fixed := *c.now
		fixed.Block = counts
		c.now = &fixed
		p.handles[id] = c
	}
	return out, nil
}

// Release takes back every address of the handle and deletes it. It returns the addresses. A block that is nobody's
// and has become empty is deleted; one of a node stays the node's.
func (p *Plan) Release(ctx context.Context, h store.Entry[api.Handle]) ([]netip.Prefix, error) {
	held, err := p.Held(ctx, h)
	if err != nil {
		return nil, err
	}
	id := strings.TrimPrefix(h.Key, api.HandlesRoot)
	for _, a := range held {
		cidr := a.Masked()
		b := p.blocks[cidr]
		if b.now == nil {
			continue // deleted with an address before this one
		}
		if _, b.now = block.ReleaseHandle(b.now, id); b.now.Affinity == nil && b.now.HostAffinity == nil && block.Empty(b.now) {
			b.now = nil
		}
		p.blocks[cidr] = b
	}
	c := p.handles[id]
	c.now = nil
	p.handles[id] = c
	return held, nil
}

// AsHolder makes the transaction depend on who has the node's name, as every assignment does.
func (p *Plan) AsHolder() { p.depend(api.IdentityKey(p.node), p.facts.Identity.Rev) }

// depend makes the transaction conflict if the key is not at that revision. A key that the plan depends on already keeps its.
func (p *Plan) depend(key string, rev int64) { p.expect[key] = rev }

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
	got, err := p.src.Blocks(ctx, missing...)
	if err != nil {
		return err
	}
	for i, e := range got {
		e.Key = api.BlockKey(missing[i])
		p.blocks[missing[i]] = change[api.Block]{e, e.Value}
	}
	return nil
}

// blocksOf lists the blocks that a handle counts addresses in.
func blocksOf(h *api.Handle) []netip.Prefix {
	var out []netip.Prefix
	for s := range h.Block {
		if c, err := netip.ParsePrefix(s); err == nil && c == c.Masked() {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}
