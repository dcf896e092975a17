package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Held returns the addresses that the handle really owns, each with the prefix length of its block. Counts of the handle
// that differ are put right, as they do after a Calico writer died between handle and block. The handle and the blocks must
// still be as they are now when the transaction is committed, unless it is Empty.
func (p *Plan) Held(ctx context.Context, h store.Entry[api.Handle]) ([]netip.Prefix, error) {
	id := handleID(h)
	if _, known := p.handles[id]; !known {
		p.setHandle(id, change[api.Handle]{h, h.Value})
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
		p.fence(cidrs, c.now.Block, counts)
		fixed := *c.now
		fixed.Block = counts
		c.now = &fixed
		p.setHandle(id, c)
	}
	return out, nil
}

// recount makes a handle count what it holds in a block that is loaded, if it counts less: a Calico writer who releases what the same
// handle held before may take its count for that. Otherwise no release by handle would find it.
func (p *Plan) recount(h store.Entry[api.Handle], cidr netip.Prefix) {
	id := handleID(h)
	c, known := p.handles[id]
	if !known {
		c = change[api.Handle]{h, h.Value}
		p.setHandle(id, c)
	}
	b, counted := p.blocks[cidr], 0
	if b.now == nil {
		return
	}
	if c.now != nil {
		counted = c.now.Block[cidr.String()]
	}
	for range len(block.Owned(b.now, id)) - counted {
		p.count(id, cidr)
		p.depend(b.was.Key, b.was.Rev)
	}
}

// fence moves the revision of every block in which a handle counts more than it holds. The count may be that of a Calico writer who is
// alive and about to write the block: once the count is gone, that must fail, or else an address would be held by a handle that does not
// exist.
func (p *Plan) fence(cidrs []netip.Prefix, said, held map[string]int) {
	for _, cidr := range cidrs {
		if b := p.blocks[cidr]; b.now != nil && said[cidr.String()] > held[cidr.String()] {
			p.set(cidr, block.Touch(b.now))
		}
	}
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

// Release takes back every address of the handle and deletes it. It returns the addresses. A block that is nobody's
// and has become empty is deleted; one of a node stays the node's. Then empty blocks of the plan's node in pools that do not
// select it any more are given back. While the datastore is locked it is refused: see Unlocked.
func (p *Plan) Release(ctx context.Context, h store.Entry[api.Handle]) ([]netip.Prefix, error) {
	if err := Unlocked(p.facts.Cluster); err != nil {
		return nil, err
	}
	held, err := p.Held(ctx, h)
	if err != nil {
		return nil, err
	}
	id := handleID(h)
	for _, a := range held {
		b := p.blocks[a.Masked()].now
		if b == nil {
			continue // deleted with an address before this one
		}
		if _, b = block.ReleaseHandle(b, id); b.Unowned() && block.Empty(b) {
			b = nil
		}
		p.set(a.Masked(), b)
	}
	c := p.handles[id]
	c.now = nil
	p.setHandle(id, c)
	return held, p.giveBack(ctx, nil)
}

// maxGiveBack bounds the blocks that one transaction gives back beside its own work: each is two keys.
const maxGiveBack = 8

// giveBack deletes the node's empty blocks in pools that do not select it any more, but for those that are needed now.
func (p *Plan) giveBack(ctx context.Context, needed []store.Entry[api.IPPool]) error {
	var lost []netip.Prefix
	for _, cidr := range p.picture.lost {
		if _, used := poolOf(needed, cidr); !used && p.claims[cidr].now != nil {
			lost = append(lost, cidr)
		}
	}
	if err := p.load(ctx, lost...); err != nil {
		return err
	}
	for _, cidr := range lost {
		if p.given == maxGiveBack {
			return nil // the rest is the next transaction's
		}
		c := p.blocks[cidr]
		switch {
		case c.unreadable():
		case c.now == nil:
			p.depend(c.was.Key, c.was.Rev)
			p.drop(cidr)
		case p.dropStale(cidr):
		case block.Empty(c.now):
			p.set(cidr, nil)
			p.drop(cidr)
			p.given++
		}
	}
	return nil
}

// Unused is an empty block of a node, and what makes it the node's.
type Unused struct {
	Block    store.Entry[api.Block]
	Affinity store.Entry[api.Affinity]
	Identity store.Entry[api.NodeIdentity] // of the node's name
	Cluster  store.Entry[api.ClusterInformation]
}

// ReturnBlock gives an empty block back: block and affinity are deleted in one transaction, if all four entries are still what was
// read. It returns what was written. The error is a *Refusal where the datastore is not ready, or the store's; store.ErrConflict means that somebody uses
// the block, or that the datastore was locked since.
func ReturnBlock(ctx context.Context, c *store.Client, u Unused) ([]store.KV, error) {
	if err := Ready(u.Cluster); err != nil {
		return nil, fmt.Errorf("return block %v: %w", u.Block.Value.CIDR, err)
	}
	if !block.Empty(u.Block.Value) {
		return nil, fmt.Errorf("return block %v: it is not empty", u.Block.Value.CIDR)
	}
	var t store.Txn
	t.Expect(ClusterKey(), u.Cluster.Rev)
	t.Delete(u.Block.Key, u.Block.Rev)
	t.Expect(u.Affinity.Key, u.Affinity.Rev)
	if u.Affinity.Exists() {
		t.Delete(u.Affinity.Key, u.Affinity.Rev)
	}
	t.Expect(u.Identity.Key, u.Identity.Rev)
	changed, err := c.Commit(ctx, &t)
	if err != nil {
		return nil, fmt.Errorf("return block %v: %w", u.Block.Value.CIDR, err)
	}
	return changed, nil
}
