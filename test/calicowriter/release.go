package calicowriter

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// releaseByHandle takes back all addresses of a handle: of each block that it counts addresses in, the block, then the count.
// The error is errMissing if there is no such handle.
func (r *run) releaseByHandle(id string) error {
	h, err := get[api.Handle](r, api.HandleKey(id))
	if err != nil {
		return err
	}
	for text := range h.value.Block {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		if err := r.releaseIn(cidr, id); err != nil {
			return err
		}
	}
	return nil
}

// releaseIn takes back the handle's addresses of one block. A handle that has none there keeps its count.
func (r *run) releaseIn(cidr netip.Prefix, id string) error {
	freed := 0
	err := retry(func() error {
		b, err := get[api.Block](r, api.BlockKey(cidr))
		if err != nil {
			return ignore(err, errMissing)
		}
		addrs, next := block.ReleaseHandle(b.value, id)
		if freed = len(addrs); freed == 0 {
			return nil
		}
		next.SequenceNumberForAllocation = b.value.SequenceNumberForAllocation // forgotten when it is by handle
		return r.released(b, next)
	})
	if err != nil || freed == 0 {
		return err
	}
	r.decrement(id, cidr, freed)
	return r.giveBackUnselected(cidr)
}

// released writes a block that lost addresses, or deletes it if it is nobody's and now empty.
func (r *run) released(b entry[api.Block], next *api.Block) error {
	if next.Affinity == nil && block.Empty(next) {
		return ignore(remove(r, b), errMissing)
	}
	_, err := update(r, b, next)
	return err
}

// giveBackUnselected releases a block, if it is empty, whose pool does not select the block's node any more.
func (r *run) giveBackUnselected(cidr netip.Prefix) error {
	b, err := get[api.Block](r, api.BlockKey(cidr))
	if err != nil {
		return ignore(err, errMissing)
	}
	host, ok := b.value.Host()
	if !ok {
		return nil
	}
	node, err := get[api.Node](r, api.NodeKey(host))
	if err != nil {
		return ignore(err, errMissing)
	}
	pools, err := list[api.IPPool](r, (*api.IPPool)(nil).KindOf().Prefix())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(pools, func(p entry[api.IPPool]) bool { return p.value.Spec.CIDR.Contains(cidr.Addr()) })
	if i < 0 {
		return nil
	}
	selects, err := selector.Parse(pools[i].value.Spec.NodeSelector)
	if err != nil || selects.Match(selector.Map(node.value.Metadata.Labels)) {
		return err
	}
	return ignore(r.releaseAffinity(host, cidr, true, nil), errNotEmpty, errStale, errChanged, errTooMany)
}

// Allocation names one address with what must still hold for it when it is collected.
type Allocation struct {
	Addr   netip.Addr
	Block  netip.Prefix
	Handle string
	Seq    uint64 // its SequenceNumberForAllocation
}

// CollectGarbage releases leaked addresses, each only while it is still the handle's and of that sequence number, and then gives back the
// node's empty blocks, if there is more than one and it has not changed since it was found empty.
func (w Writer) CollectGarbage(leaks ...Allocation) *Sequence {
	return w.sequence("collect garbage of "+w.Node, func(r *run) error {
		for _, l := range leaks {
			if err := r.releaseAddr(l); err != nil {
				return err
			}
		}
		blocks, err := list[api.Block](r, api.BlocksPrefix(false))
		if err != nil {
			return err
		}
		own := slices.DeleteFunc(blocks, func(b entry[api.Block]) bool { return !r.owns(b.value) })
		left := len(own)
		for _, b := range own {
			if left < 2 || !block.Empty(b.value) {
				continue
			}
			err := r.releaseAffinity(r.Node, b.value.CIDR, true, &b.value.SequenceNumber)
			if ignore(err, errNotEmpty, errChanged, errStale) != nil {
				return err
			}
			if err == nil {
				left--
			}
		}
		return nil
	})
}

// releaseAddr takes back one address: the block, then the count. One that is somebody else's by now is left alone.
func (r *run) releaseAddr(l Allocation) error {
	freed := false
	err := retry(func() error {
		b, err := get[api.Block](r, api.BlockKey(l.Block))
		if err != nil {
			return ignore(err, errMissing)
		}
		next, err := block.ReleaseAddr(b.value, block.Release{Addr: l.Addr, Handle: l.Handle, Seq: &l.Seq})
		if err != nil {
			return nil // as it should be: not a leak any more
		}
		err = r.released(b, next)
		freed = err == nil
		return err
	})
	if err != nil || !freed {
		return err
	}
	r.decrement(l.Handle, l.Block, 1)
	return r.giveBackUnselected(l.Block)
}

// DeleteNode removes a node with all that is its own: the addresses of its endpoints and tunnels, the endpoints, its blocks, itself.
func (w Writer) DeleteNode() *Sequence {
	return w.sequence("delete node "+w.Node, func(r *run) error {
		node, err := get[api.Node](r, api.NodeKey(r.Node))
		if err != nil {
			return err
		}
		endpoints, err := r.endpoints()
		if err != nil {
			return err
		}
		for _, e := range endpoints {
			if err := r.releaseAll(e.value.Spec.IPNetworks); err != nil {
				return err
			}
		}
		if err := r.releaseTunnel(node.value); err != nil {
			return err
		}
		for _, e := range endpoints {
			if err := ignore(remove(r, e), errMissing); err != nil {
				return err
			}
		}
		if err := r.releaseHost(false); err != nil {
			return err
		}
		return remove(r, node)
	})
}

// endpoints lists those of the node.
func (r *run) endpoints() ([]entry[api.WorkloadEndpoint], error) {
	all, err := list[api.WorkloadEndpoint](r, (*api.WorkloadEndpoint)(nil).KindOf().Prefix())
	return slices.DeleteFunc(all, func(e entry[api.WorkloadEndpoint]) bool { return e.value.Spec.Node != r.Node }), err
}

// releaseAll takes back addresses, whoever holds them.
func (r *run) releaseAll(nets []api.Prefix) error {
	for _, n := range nets {
		if err := r.releaseWhoever(n.Addr()); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) releaseTunnel(n *api.Node) error {
	if !n.Spec.IPv4VXLANTunnelAddr.IsValid() {
		return nil
	}
	return r.releaseWhoever(n.Spec.IPv4VXLANTunnelAddr)
}

// releaseWhoever finds the address's block among those of all pools and takes it back.
func (r *run) releaseWhoever(a netip.Addr) error {
	all, err := r.blocks(netip.PrefixFrom(a, 0).Masked())
	if err != nil {
		return err
	}
	for _, b := range all {
		owner, held := block.OwnerOf(b.value, a)
		n, _ := block.Ordinal(b.value.CIDR, a)
		if !held || owner.HandleID == nil {
			continue
		}
		return r.releaseAddr(Allocation{a, b.value.CIDR, *owner.HandleID, b.value.SequenceNumberForAllocation[strconv.Itoa(n)]})
	}
	return nil
}
