package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Assign takes one address and returns it with the prefix length of its block. A handle that Held has not loaded is created, and
// the commit conflicts if it exists.
//
// Blocks of the node come first, then a new one is claimed: a range without a block, else another node's empty block. Where there is
// none, and the configuration is not strict, a single address is borrowed from any block of the pools, another node's or nobody's.
// Reserved addresses are passed over, and so are ranges without a block in which an address is in use. Request.Addr asks for one
// address, wherever it is in an enabled pool; neither reservations nor selectors concern it.
//
// Of what the node's affinities may say: one whose block belongs to somebody else, or to nobody, is stale and is deleted; one that
// cannot be read is written over; one without a block gets it, or is deleted where there can be no such block; one that is not confirmed is confirmed together with the allocation,
// which takes the block's revision from under whoever was about to release it. Empty blocks of the node in pools that do not
// select it any more are given back on the way.
//
// The error is a *Refusal, or the Source's, or Facts.Err.
func (p *Plan) Assign(ctx context.Context, r Request) (netip.Prefix, error) {
	if err := p.facts.ready(p.node); err != nil {
		return netip.Prefix{}, err
	}
	if r.Addr.IsValid() {
		return p.assignAddr(ctx, r)
	}
	pools, err := p.facts.choose(p.node, r)
	if err != nil {
		return netip.Prefix{}, err
	}
	if err := p.giveBack(ctx, pools); err != nil {
		return netip.Prefix{}, err
	}
	s := &search{Request: r, pools: pools, cfg: p.facts.config()}
	for _, find := range []func(context.Context, *search) (placed, bool, error){p.own, p.claim, p.borrow} {
		o, ok, err := find(ctx, s)
		if err != nil {
			return netip.Prefix{}, err
		}
		if ok {
			return p.take(o, r)
		}
	}
	return netip.Prefix{}, p.exhausted(ctx, s)
}

// search is the state of one Assign.
type search struct {
	Request
	pools   []store.Entry[api.IPPool] // that serve the request
	cfg     api.IPAMConfig
	owned   int      // blocks of the node in these pools
	present []placed // every block in these pools, as the walk comes to them; nil until it is needed
}

// placed is a block with the pool that it lies in.
type placed struct {
	cidr netip.Prefix
	pool store.Entry[api.IPPool]
	lent bool // it is not the node's, and stays what it is
}

// own finds a block of the node with room, and drops stale affinities on the way.
func (p *Plan) own(ctx context.Context, s *search) (placed, bool, error) {
	var in []placed
	var cidrs []netip.Prefix
	for _, cidr := range slices.SortedFunc(maps.Keys(p.claims), netip.Prefix.Compare) {
		if pool, ok := poolOf(s.pools, cidr); ok && p.claims[cidr].now != nil {
			in, cidrs = append(in, placed{cidr: cidr, pool: pool}), append(cidrs, cidr)
		}
	}
	if err := p.load(ctx, cidrs...); err != nil {
		return placed{}, false, err
	}
	kept := in[:0]
	for _, o := range in {
		dropped, err := p.dropVoid(ctx, o)
		if err != nil {
			return placed{}, false, err
		}
		if !dropped && !p.dropStale(o.cidr) {
			kept = append(kept, o)
		}
	}
	s.owned = len(kept)
	for _, o := range kept {
		if p.room(o.cidr) == 0 {
			continue
		}
		if fit, err := p.fit(ctx, s, o.cidr); fit || err != nil {
			return o, fit, err
		}
	}
	return placed{}, false, nil
}

// dropStale deletes the node's affinity to a block that is not the node's.
func (p *Plan) dropStale(cidr netip.Prefix) bool {
	b := p.blocks[cidr]
	if b.unreadable() || b.now == nil || p.ours(b.now) {
		return false
	}
	p.drop(cidr)
	p.depend(b.was.Key, b.was.Rev)
	return true
}

// dropVoid deletes the node's affinity to a range that has no block and must not become one: it overlaps blocks, or is of another size than
// those that the pool is divided into, so that two nodes could make overlapping blocks under different keys at the same time.
func (p *Plan) dropVoid(ctx context.Context, o placed) (bool, error) {
	c := p.blocks[o.cidr]
	if c.present() {
		return false, nil
	}
	void := o.cidr.Bits() != o.pool.Value.Spec.BlockSize
	if !void {
		other, err := p.overlapping(ctx, o.cidr)
		if err != nil {
			return false, err
		}
		void = other.IsValid()
	}
	if void {
		p.drop(o.cidr)
		p.depend(c.was.Key, c.was.Rev)
	}
	return void, nil
}

// fit reports whether addresses may be taken from a block that is loaded: always if it exists, and else if none of its range is in use.
func (p *Plan) fit(ctx context.Context, s *search, cidr netip.Prefix) (bool, error) {
	if c := p.blocks[cidr]; c.now != nil || c.was.Exists() {
		return true, nil
	}
	strays, err := p.strays(ctx, s.Request)
	if err != nil {
		return false, err
	}
	for a := range strays {
		if cidr.Contains(a) {
			return false, nil
		}
	}
	return true, nil
}

// take assigns one address from a block with room, and claims the block as far as it is not yet.
func (p *Plan) take(o placed, r Request) (netip.Prefix, error) {
	b, err := p.blockFor(o)
	if err != nil {
		return netip.Prefix{}, err
	}
	addrs, b := block.AssignWhere(b, 1, block.Owner{HandleID: r.Handle, Attrs: r.Attrs}, p.picture.reserved.allows())
	if len(addrs) == 0 {
		return netip.Prefix{}, fmt.Errorf("assign an address in block %v: it has none left", o.cidr)
	}
	p.assigned(o, b, r)
	return netip.PrefixFrom(addrs[0], o.cidr.Bits()), nil
}

// blockFor is the block as the plan has it, or a new one of the node.
func (p *Plan) blockFor(o placed) (*api.Block, error) {
	if b := p.block(o.cidr).now; b != nil {
		return b, nil
	}
	return block.New(o.cidr, p.node, p.now)
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
	p.set(o.cidr, b)
	if !o.lent {
		p.confirm(o.cidr)
	}
	p.count(r.Handle, o.cidr)
	p.admitted()
	p.depend(o.pool.Key, o.pool.Rev)
	p.depend(api.IPAMConfigKey, p.facts.Config.Rev)
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
		p.uses[c.was.Key] = true
		if c.now == c.was.Value {
			p.depend(c.was.Key, c.was.Rev)
		}
		return
	}
	c.now = &api.Affinity{State: api.AffinityConfirmed}
	p.setClaim(cidr, c)
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
	p.setHandle(id, c)
}

// poolOf returns the pool that a block belongs to.
func poolOf(pools []store.Entry[api.IPPool], cidr netip.Prefix) (store.Entry[api.IPPool], bool) {
	i := slices.IndexFunc(pools, func(e store.Entry[api.IPPool]) bool { return within(e.Value, cidr) })
	if i < 0 {
		return store.Entry[api.IPPool]{}, false
	}
	return pools[i], true
}

// within reports whether the range lies in the pool.
func within(pool *api.IPPool, cidr netip.Prefix) bool {
	s := pool.Spec
	return s.CIDR.Bits() <= cidr.Bits() && s.CIDR.Contains(cidr.Addr())
}

// exhausted is the refusal after all blocks were looked at: what the rules forbade, and what the pools are full of.
func (p *Plan) exhausted(ctx context.Context, s *search) error {
	var why []string
	remedy := "add an IPPool, or free addresses: delete pods, and nodes that are gone"
	if !s.cfg.AutoAllocateBlocks {
		why = append(why, fmt.Sprintf("failed to find or claim a block in pools %s: the IPAM configuration forbids to claim more than the %d of node %s", list(s.pools), s.owned, p.node))
		remedy += "; or set auto_allocate_blocks in " + api.IPAMConfigKey
	}
	if s.cfg.StrictAffinity {
		why = append(why, fmt.Sprintf("No more free affine blocks and strict affinity enabled: node %s has %d full blocks in pools %s", p.node, s.owned, list(s.pools)))
		remedy += "; or turn strict affinity off, so that single addresses of other nodes' blocks are taken"
	} else {
		why = append(why, "No IPs available in pools: "+cidrs(s.pools))
	}
	found, err := p.census(ctx, s)
	if err != nil {
		return err
	}
	return refuse(ErrNoAddress, remedy+found.remedy+badNote(p.facts.Bad, p.picture.bad), "%s%s", strings.Join(why, "; "), found.msg)
}

// note is something to add to a refusal.
type note struct{ msg, remedy string }

// census says what the pools are full of.
func (p *Plan) census(ctx context.Context, s *search) (note, error) {
	if err := p.survey(ctx, s); err != nil {
		return note{}, err
	}
	strays, err := p.strays(ctx, s.Request)
	if err != nil {
		return note{}, err
	}
	out := note{msg: fmt.Sprintf(" (%d blocks in %s", len(s.present), list(s.pools))}
	if len(p.picture.reserved) > 0 {
		out.msg += "; addresses of IPReservations do not count as free"
	}
	var users []string
	for _, a := range slices.SortedFunc(maps.Keys(strays), netip.Addr.Compare) {
		if _, ok := poolOf(s.pools, netip.PrefixFrom(a, a.BitLen())); ok {
			users = append(users, fmt.Sprintf("%v by %s", a, strays[a]))
		}
	}
	if n := len(users); n > 0 {
		out.msg += fmt.Sprintf("; the ranges of %d addresses that are in use and in no block cannot be claimed: %s", n, strings.Join(users[:min(n, 3)], ", "))
		out.remedy = "; a block that was deleted while pods use it comes back when these pods are gone: delete them"
	}
	out.msg += ")"
	return out, nil
}
