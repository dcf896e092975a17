package ipam

import (
	"context"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
	"github.com/muslin-cni/muslin/pkg/store"
)

// picture is what a Plan and its Clones know of the world, each part asked for when it is first needed.
type picture struct {
	src      Source
	reserved reserved
	bad      []error                  // what is wrong with reservations
	lost     []netip.Prefix           // the node's claims in pools that do not serve it any more
	blocks   [2]ranges                // all of a family; empty until asked for. Index 1 is IPv6
	strays   [2]map[netip.Addr]string // see Plan.strays; as of the same revision
}

func newPicture(src Source, f Facts) *picture {
	c := &picture{src: src}
	c.reserved, c.bad = reservedOf(f.Reservations)
	if !f.Node.Exists() {
		return c
	}
	labels := selector.Map(f.Node.Value.Metadata.Labels)
	for _, e := range f.Affinities {
		if _, cidr, err := api.ParseAffinityKey(e.Key); err == nil && e.Value != nil && !f.serves(cidr, labels) {
			c.lost = append(c.lost, cidr)
		}
	}
	return c
}

// serves reports whether a node with these labels may keep an empty block: it lies in a pool that selects the node, or that
// cannot be judged. A pool that is disabled for a while keeps its blocks.
func (f Facts) serves(cidr netip.Prefix, labels selector.Map) bool {
	pool, ok := poolOf(f.Pools, cidr)
	if !ok || pool.Value.Metadata.DeletionTimestamp != nil {
		return !ok && len(f.Bad) > 0 // one that cannot be read may be it
	}
	selects, err := selector.Parse(pool.Value.Spec.NodeSelector)
	return err != nil || selects.Match(labels)
}

// ranges is blocks by their range.
type ranges struct {
	at   map[netip.Prefix]store.Entry[api.Block]
	bits []int // the prefix lengths that there are
}

func (r ranges) holds(a netip.Addr) bool { return r.holding(a).IsValid() }

// holding is the range that the address is in; the zero Prefix if there is none.
func (r ranges) holding(a netip.Addr) netip.Prefix {
	for _, bits := range r.bits {
		cidr := netip.PrefixFrom(a, bits).Masked()
		if _, ok := r.at[cidr]; ok {
			return cidr
		}
	}
	return netip.Prefix{}
}

// all is every block of the family, as the source says.
func (c *picture) all(ctx context.Context, v6 bool) (ranges, error) {
	known := &c.blocks[index(v6)]
	if known.at != nil {
		return *known, nil
	}
	survey, err := c.src.Survey(ctx, v6)
	if err != nil {
		return ranges{}, err
	}
	out := ranges{at: make(map[netip.Prefix]store.Entry[api.Block], len(survey.Blocks))}
	for _, e := range survey.Blocks {
		cidr, err := api.ParseBlockKey(e.Key)
		if err != nil {
			continue
		}
		out.at[cidr] = e
		if !slices.Contains(out.bits, cidr.Bits()) {
			out.bits = append(out.bits, cidr.Bits())
		}
	}
	strays := map[netip.Addr]string{}
	for a, key := range survey.InUse {
		if !out.holds(a) {
			strays[a] = key
		}
	}
	*known, c.strays[index(v6)] = out, strays
	return out, nil
}

func index(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// every yields the blocks of the family as the plan has them, those that it makes or deletes included, in no order.
func (p *Plan) every(ctx context.Context, v6 bool) (iter.Seq2[netip.Prefix, change[api.Block]], error) {
	all, err := p.picture.all(ctx, v6)
	if err != nil {
		return nil, err
	}
	return func(yield func(netip.Prefix, change[api.Block]) bool) {
		for cidr, e := range all.at {
			c, loaded := p.blocks[cidr]
			if !loaded {
				c = change[api.Block]{e, e.Value}
			}
			if !yield(cidr, c) {
				return
			}
		}
		for cidr, c := range p.blocks {
			if _, listed := all.at[cidr]; listed || cidr.Addr().Is6() != v6 {
				continue
			}
			if !yield(cidr, c) {
				return
			}
		}
	}, nil
}

// strays is the addresses of the family that are in use and in no block, with the key of who uses each: their block was deleted, or
// they never had one. A new block over them would hand them out again. A node's own tunnel addresses do not stand in the way of new ones.
func (p *Plan) strays(ctx context.Context, r Request) (map[netip.Addr]string, error) {
	if _, err := p.picture.all(ctx, r.V6); err != nil {
		return nil, err
	}
	all := p.picture.strays[index(r.V6)]
	if r.Use != api.UseTunnel {
		return all, nil
	}
	others := maps.Clone(all)
	maps.DeleteFunc(others, func(_ netip.Addr, key string) bool { return key == p.facts.Node.Key })
	return others, nil
}
