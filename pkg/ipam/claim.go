package ipam

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// minClaimAge is how long another node keeps a block that it does not use: it may just be about to.
const minClaimAge = time.Minute

// claim finds a block for the node in the pools: one that is the node's though no affinity says so, else a range without a
// block, else an empty block that another node does not use or that is nobody's.
func (p *Plan) claim(ctx context.Context, s *search) (placed, bool, error) {
	if !s.cfg.AutoAllocateBlocks {
		return placed{}, false, nil
	}
	if limit, remedy := limitOf(s); s.owned >= limit {
		return placed{}, false, refuse(ErrNoAddress, remedy, "cannot allocate new block due to per host block limit: node %s has %d full blocks in pools %s and may have %d",
			p.node, s.owned, list(s.pools), limit)
	}
	for _, find := range []func(context.Context, *search) (placed, bool, error){p.adopt, p.vacant, p.reclaim} {
		if o, ok, err := find(ctx, s); ok || err != nil {
			return o, ok, err
		}
	}
	return placed{}, false, nil
}

// adopt finds a block with room that names the node as its host, though the node has no affinity to it.
func (p *Plan) adopt(ctx context.Context, s *search) (placed, bool, error) {
	every, err := p.every(ctx, s.V6)
	if err != nil {
		return placed{}, false, err
	}
	var found placed
	for cidr, c := range every {
		if c.now == nil || !p.ours(c.now) || p.claims[cidr].now != nil || found.cidr.IsValid() && found.cidr.Compare(cidr) < 0 {
			continue
		}
		if pool, ok := poolOf(s.pools, cidr); ok && block.FreeWhere(c.now, p.picture.reserved.allows()) > 0 {
			found = placed{cidr: cidr, pool: pool}
		}
	}
	return found, found.cidr.IsValid(), nil
}

// vacant finds a range without a block, in the first pool that has one.
func (p *Plan) vacant(ctx context.Context, s *search) (placed, bool, error) {
	every, err := p.every(ctx, s.V6)
	if err != nil {
		return placed{}, false, err
	}
	strays, err := p.strays(ctx, s.Request)
	if err != nil {
		return placed{}, false, err
	}
	for _, pool := range s.pools {
		taken := newOccupied(pool.Value.Spec.BlockSize)
		for cidr, c := range every {
			if c.present() {
				taken.add(cidr)
			}
		}
		for a := range strays {
			taken.add(netip.PrefixFrom(a, a.BitLen()))
		}
		if cidr, ok := walkOf(pool.Value, p.node, p.now).vacant(taken, p.picture.reserved); ok {
			return placed{cidr: cidr, pool: pool}, true, nil
		}
	}
	return placed{}, false, nil
}

// reclaim takes over an empty block: its node's affinity goes and the block becomes this node's in the same transaction. A node that
// uses it at the same time conflicts, whoever is first.
func (p *Plan) reclaim(ctx context.Context, s *search) (placed, bool, error) {
	if err := p.survey(ctx, s); err != nil {
		return placed{}, false, err
	}
	for _, o := range s.present {
		c := p.block(o.cidr)
		if c.now == nil || !p.idle(c.now) || p.picture.reserved.covers(o.cidr) {
			continue
		}
		if host, ok := c.now.Host(); ok {
			if err := p.evict(ctx, host, o.cidr); err != nil {
				return placed{}, false, err
			}
		}
		b, err := block.New(o.cidr, p.node, p.now)
		if err != nil {
			return placed{}, false, err
		}
		p.set(o.cidr, b)
		return o, true, nil
	}
	return placed{}, false, nil
}

// idle reports whether a block is there for the taking: empty, and nobody's, or another node's for a while. Virtual owners keep theirs.
func (p *Plan) idle(b *api.Block) bool {
	if !block.Empty(b) || p.ours(b) {
		return false
	}
	if _, hosted := b.Host(); !hosted {
		return b.Unowned()
	}
	return b.ClaimTime == nil || !b.ClaimTime.After(p.now.Add(-minClaimAge))
}

// evict deletes another node's affinity to a block, or holds on to its absence.
func (p *Plan) evict(ctx context.Context, host string, cidr netip.Prefix) error {
	e, err := p.picture.src.Affinity(ctx, host, cidr)
	if err != nil {
		return err
	}
	if !e.Exists() {
		p.depend(api.AffinityKey(host, cidr), 0)
		return nil
	}
	p.uses[e.Key] = true
	p.evicted[e.Key] = gone(e)
	return nil
}

// gone is the change that deletes an entry, one that cannot be read included.
func gone[T api.Value](e store.Entry[T]) change[T] {
	if e.Value == nil {
		e.Value = new(T)
	}
	return change[T]{was: e}
}

// borrow finds a block with room that is not the node's. The address stays that block's: the agents route it alone to this node.
func (p *Plan) borrow(ctx context.Context, s *search) (placed, bool, error) {
	if s.cfg.StrictAffinity {
		return placed{}, false, nil
	}
	if err := p.survey(ctx, s); err != nil {
		return placed{}, false, err
	}
	for _, o := range s.present {
		b := p.block(o.cidr).now
		if b == nil || p.room(o.cidr) == 0 {
			continue
		}
		if _, hosted := b.Host(); !hosted && !b.Unowned() {
			continue // a virtual owner's, who announces the whole block elsewhere
		}
		o.lent = !p.ours(b)
		return o, true, nil
	}
	return placed{}, false, nil
}

// survey lists every block of the pools in the order of the walk, pool by pool.
func (p *Plan) survey(ctx context.Context, s *search) error {
	if s.present != nil {
		return nil
	}
	every, err := p.every(ctx, s.V6)
	if err != nil {
		return err
	}
	in := make([][]placed, len(s.pools))
	for cidr, c := range every {
		i := slices.IndexFunc(s.pools, func(e store.Entry[api.IPPool]) bool { return within(e.Value, cidr) })
		if i >= 0 && c.present() {
			in[i] = append(in[i], placed{cidr: cidr, pool: s.pools[i]})
		}
	}
	s.present = []placed{}
	for i, pool := range s.pools {
		w := walkOf(pool.Value, p.node, p.now)
		slices.SortFunc(in[i], func(a, b placed) int { return w.compare(a.cidr, b.cidr) })
		s.present = append(s.present, in[i]...)
	}
	return nil
}
