package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
)

// assignAddr takes the one address that is asked for. Its pool must be enabled; whether it selects the node, and reservations, do not
// matter to who names an address.
func (p *Plan) assignAddr(ctx context.Context, r Request) (netip.Prefix, error) {
	r.V6 = r.Addr.Is6()
	enabled := p.facts.enabled(r.V6)
	pool, ok := poolOf(enabled, netip.PrefixFrom(r.Addr, r.Addr.BitLen()))
	if !ok {
		return netip.Prefix{}, refuse(ErrRequest, "name an address of an enabled "+family(r.V6)+" pool: "+list(enabled)+badNote(p.facts.Bad),
			"The provided IP address is not in a configured pool: %v", r.Addr)
	}
	if err := p.giveBack(ctx, enabled); err != nil {
		return netip.Prefix{}, err
	}
	o, err := p.holding(ctx, r, pool.Value.Spec.BlockSize)
	if err != nil {
		return netip.Prefix{}, err
	}
	o.pool = pool
	b, err := p.blockFor(o)
	if err != nil {
		return netip.Prefix{}, err
	}
	next, err := block.AssignAddr(b, r.Addr, block.Owner{HandleID: r.Handle, Attrs: r.Attrs})
	if errors.Is(err, block.ErrTaken) {
		return netip.Prefix{}, takenBy(b, r.Addr)
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	p.assigned(o, next, r)
	return netip.PrefixFrom(r.Addr, o.cidr.Bits()), nil
}

// holding finds the block of the address, or the range that becomes one.
func (p *Plan) holding(ctx context.Context, r Request, bits int) (placed, error) {
	cidr, err := p.blockAt(ctx, r.Addr, bits)
	if err != nil {
		return placed{}, err
	}
	if p.blocks[cidr].present() {
		return p.lawful(placed{cidr: cidr})
	}
	return placed{cidr: cidr}, p.free(ctx, r, cidr)
}

// blockAt finds and loads the block that an address is in: of that size, else of another, from before the pool was made anew. Where there is
// none, it is the range of that size.
func (p *Plan) blockAt(ctx context.Context, a netip.Addr, bits int) (netip.Prefix, error) {
	cidr := netip.PrefixFrom(a, bits).Masked()
	if err := p.load(ctx, cidr); err != nil || p.blocks[cidr].present() {
		return cidr, err
	}
	all, err := p.picture.all(ctx, a.Is6())
	if err != nil {
		return cidr, err
	}
	if other := all.holding(a); other.IsValid() && p.block(other).present() {
		return other, p.load(ctx, other)
	}
	return cidr, nil
}

// overlapping is a block that shares addresses with a range that is none; the zero Prefix if there is none.
func (p *Plan) overlapping(ctx context.Context, cidr netip.Prefix) (netip.Prefix, error) {
	every, err := p.every(ctx, cidr.Addr().Is6())
	if err != nil {
		return netip.Prefix{}, err
	}
	for other, c := range every {
		if c.present() && other.Overlaps(cidr) {
			return other, nil
		}
	}
	return netip.Prefix{}, nil
}

// lawful refuses a block that the node may not take the address from.
func (p *Plan) lawful(o placed) (placed, error) {
	c := p.block(o.cidr)
	if c.unreadable() {
		return placed{}, refuse(ErrNoAddress, "repair or delete "+c.was.Key, "block %v is damaged", o.cidr)
	}
	if p.ours(c.now) {
		return o, nil
	}
	if p.facts.config().StrictAffinity {
		return placed{}, refuse(ErrRequest, "run the pod on that node, name an address of this node's blocks, or turn strict affinity off",
			"Block host affinity does not match: block %v belongs to %s, not to node %s", o.cidr, ownerName(c.now), p.node)
	}
	o.lent = true
	return o, nil
}

// free refuses a range without a block that overlaps other blocks, or in which an address is in use.
func (p *Plan) free(ctx context.Context, r Request, cidr netip.Prefix) error {
	other, err := p.overlapping(ctx, cidr)
	if err != nil {
		return err
	}
	if other.IsValid() {
		return refuse(ErrNoAddress, "name an address of an existing block", "there can be no block %v for %v: it overlaps block %v", cidr, r.Addr, other)
	}
	strays, err := p.strays(ctx, r)
	if err != nil {
		return err
	}
	for a, key := range strays {
		if cidr.Contains(a) {
			return refuse(ErrTaken, "that block was deleted while in use: delete the pods that have addresses of it",
				"there can be no block %v for %v: %v is in use by %s without a block", cidr, r.Addr, a, key)
		}
	}
	return nil
}

// takenBy names the holder of an address.
func takenBy(b *api.Block, a netip.Addr) error {
	owner, _ := block.OwnerOf(b, a)
	who := "somebody without a name"
	if owner.HandleID != nil {
		who = "handle " + block.Handle(*owner.HandleID)
	}
	if s := owner.Secondary; s[api.AttrPod] != "" {
		who += fmt.Sprintf(" (pod %s/%s)", s[api.AttrNamespace], s[api.AttrPod])
	}
	if node := owner.Secondary[api.AttrNode]; node != "" {
		who += " on node " + node
	}
	return refuse(ErrTaken, "name another address, or delete who has it", "Address already assigned in block: %v is held by %s", a, who)
}
