package calicowriter

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"math/rand"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// minReclaimAge is how long a block was somebody else's at least before it is taken away empty.
const minReclaimAge = time.Minute

var (
	errFull   = errors.New("no address left in the block")
	errNoPool = errors.New("no configured Calico pools")
	errNoIP   = errors.New("no IPs available in pools")
)

// request asks for one IPv4 address.
type request struct {
	handle string
	attrs  map[string]string
	use    api.Use
}

func (q request) owner() block.Owner { return block.Owner{HandleID: q.handle, Attrs: q.attrs} }

// autoAssign takes one address: from a block of the node, a new one, an empty one of another node that is old enough, or
// by borrowing, in this order.
func (r *run) autoAssign(q request) (netip.Addr, error) {
	pools, err := r.pools(q.use)
	if err != nil {
		return netip.Addr{}, err
	}
	strict, err := r.strict()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, way := range []func([]*api.IPPool, request, bool) (netip.Addr, error){r.fromOwn, r.fromNew, r.borrow} {
		a, err := way(pools, q, strict)
		if !errors.Is(err, errFull) {
			return a, err
		}
	}
	return netip.Addr{}, errNoIP
}

// pools lists the enabled IPv4 pools that select the node.
func (r *run) pools(use api.Use) ([]*api.IPPool, error) {
	node, err := get[api.Node](r, api.NodeKey(r.Node))
	if err != nil {
		return nil, err
	}
	all, err := list[api.IPPool](r, (*api.IPPool)(nil).KindOf().Prefix())
	if err != nil {
		return nil, err
	}
	var out []*api.IPPool
	for _, p := range all {
		s := p.value.Spec
		if s.Disabled || s.CIDR.Addr().Is6() || s.AssignmentMode != api.AssignAutomatic || !p.value.Allows(use) {
			continue
		}
		selects, err := selector.Parse(s.NodeSelector)
		if err != nil {
			return nil, err
		}
		if selects.Match(selector.Map(node.value.Metadata.Labels)) {
			out = append(out, p.value)
		}
	}
	if len(out) == 0 {
		return nil, errNoPool
	}
	return out, nil
}

// strict reads the IPAM configuration, and writes it if there is none.
func (r *run) strict() (bool, error) {
	c, err := get[api.IPAMConfig](r, api.IPAMConfigKey)
	if errors.Is(err, errMissing) {
		def := api.DefaultIPAMConfig()
		if c, err = create(r, api.IPAMConfigKey, &def); errors.Is(err, errExists) {
			c, err = get[api.IPAMConfig](r, api.IPAMConfigKey)
		}
	}
	if err != nil {
		return false, err
	}
	return c.value.StrictAffinity, nil
}

func within(pools []*api.IPPool, cidr netip.Prefix) bool {
	return slices.ContainsFunc(pools, func(p *api.IPPool) bool { return p.Spec.CIDR.Contains(cidr.Addr()) })
}

// fromOwn takes an address of the node's blocks, and gives empty ones back that lie in no pool of the node.
func (r *run) fromOwn(pools []*api.IPPool, q request, strict bool) (netip.Addr, error) {
	affinities, err := list[api.Affinity](r, api.AffinitiesPrefix(r.Node)+"ipv4/block/")
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range affinities {
		_, cidr, err := api.ParseAffinityKey(a.key)
		if err != nil {
			return netip.Addr{}, err
		}
		if !within(pools, cidr) {
			if err := r.releaseAffinity(r.Node, cidr, true, nil); ignore(err, errNotEmpty, errStale, errChanged) != nil {
				return netip.Addr{}, err
			}
			continue
		}
		got, err := r.fromAffinity(a, cidr, q, strict)
		if ignore(err, errFull, errStale, errClaimed, errMissing) != nil || err == nil {
			return got, err
		}
	}
	return netip.Addr{}, errFull
}

// fromAffinity takes an address of one block of the node. After a conflict the affinity is read again.
func (r *run) fromAffinity(a entry[api.Affinity], cidr netip.Prefix, q request, strict bool) (got netip.Addr, err error) {
	err = retry(func() error {
		b, err := r.use(a, cidr)
		if err == nil {
			got, err = r.fromBlock(b, q, strict)
		}
		if errors.Is(err, errConflict) {
			var missing error
			if a, missing = get[api.Affinity](r, a.key); missing != nil {
				return missing
			}
		}
		return err
	})
	return got, err
}

// fromNew claims a block and takes an address of it.
func (r *run) fromNew(pools []*api.IPPool, q request, strict bool) (got netip.Addr, err error) {
	for range retries {
		cidr, err := r.vacant(pools)
		if errors.Is(err, errFull) {
			cidr, err = r.reclaim(pools)
		}
		if err != nil {
			return netip.Addr{}, err
		}
		a, err := r.pending(cidr)
		if err == nil {
			got, err = r.fromAffinity(a, cidr, q, strict)
		}
		if ignore(err, errClaimed, errStale, errConflict, errMissing, errFull) != nil || err == nil {
			return got, err
		}
	}
	return netip.Addr{}, errTooMany
}

// vacant finds a range without a block, beginning where the node's name says.
func (r *run) vacant(pools []*api.IPPool) (netip.Prefix, error) {
	for _, p := range pools {
		blocks, err := r.blocks(p.Spec.CIDR)
		if err != nil {
			return netip.Prefix{}, err
		}
		for _, cidr := range r.walk(p) {
			if !slices.ContainsFunc(blocks, func(b entry[api.Block]) bool { return b.value.CIDR.Overlaps(cidr) }) {
				return cidr, nil
			}
		}
	}
	return netip.Prefix{}, errFull
}

// walk lists the block ranges of a small pool, once around from the node's own place.
func (r *run) walk(p *api.IPPool) []netip.Prefix {
	var out []netip.Prefix
	for at := p.Spec.CIDR.Addr(); p.Spec.CIDR.Contains(at); {
		cidr := netip.PrefixFrom(at, p.Spec.BlockSize)
		out = append(out, cidr)
		at = block.Addr(cidr, block.Size(cidr)-1).Next()
	}
	h := fnv.New32()
	h.Write([]byte(r.Node)) // never fails
	first := new(big.Int).Rand(rand.New(rand.NewSource(int64(h.Sum32()))), big.NewInt(int64(len(out)))).Int64()
	return append(out[first:len(out):len(out)], out[:first]...)
}

// reclaim frees the range of an empty block of another node.
func (r *run) reclaim(pools []*api.IPPool) (netip.Prefix, error) {
	for _, p := range pools {
		blocks, err := r.blocks(p.Spec.CIDR)
		if err != nil {
			return netip.Prefix{}, err
		}
		for _, b := range blocks {
			host, ok := b.value.Host()
			if !ok || host == r.Node || !block.Empty(b.value) || b.value.ClaimTime == nil || r.Now().Sub(*b.value.ClaimTime) < minReclaimAge {
				continue
			}
			err := r.releaseAffinity(host, b.value.CIDR, true, &b.value.SequenceNumber)
			if err == nil || ignore(err, errNotEmpty, errStale, errChanged) != nil {
				return b.value.CIDR, err
			}
		}
	}
	return netip.Prefix{}, errFull
}

// borrow takes an address of anybody's block.
func (r *run) borrow(pools []*api.IPPool, q request, strict bool) (netip.Addr, error) {
	if strict {
		return netip.Addr{}, errFull
	}
	for _, p := range pools {
		for _, cidr := range r.walk(p) {
			b, err := get[api.Block](r, api.BlockKey(cidr))
			if errors.Is(err, errMissing) {
				continue
			}
			var a netip.Addr
			if err == nil {
				a, err = r.fromBlock(b, q, false)
			}
			if ignore(err, errFull, errMissing) != nil || err == nil {
				return a, err
			}
		}
	}
	return netip.Addr{}, errFull
}

// fromBlock counts an address on the handle, then takes it from the block, and takes the count back if the block has changed.
func (r *run) fromBlock(b entry[api.Block], q request, strict bool) (netip.Addr, error) {
	for range retries {
		if strict && !r.owns(b.value) {
			return netip.Addr{}, errStale
		}
		addrs, next := block.Assign(b.value, 1, q.owner())
		if len(addrs) == 0 {
			return netip.Addr{}, errFull
		}
		cidr := b.value.CIDR
		if err := r.increment(q.handle, cidr); err != nil {
			return netip.Addr{}, err
		}
		_, err := update(r, b, next)
		if err == nil {
			return addrs[0], nil
		}
		if errors.Is(err, errAbandoned) {
			return netip.Addr{}, err
		}
		r.decrement(q.handle, cidr, 1)
		if !errors.Is(err, errConflict) {
			return netip.Addr{}, err
		}
		if b, err = get[api.Block](r, b.key); err != nil {
			return netip.Addr{}, err
		}
	}
	return netip.Addr{}, errTooMany
}

// increment adds one address of the block to the handle.
func (r *run) increment(id string, cidr netip.Prefix) error {
	return retry(func() error {
		h, err := get[api.Handle](r, api.HandleKey(id))
		if ignore(err, errMissing) != nil {
			return err
		}
		_, err = put(r, h, counted(h.value, cidr, 1))
		if errors.Is(err, errExists) || errors.Is(err, errMissing) {
			return errConflict
		}
		return err
	})
}

// decrement takes addresses of the block off the handle, and deletes it if none is left. What goes wrong is only logged, so not
// even told.
func (r *run) decrement(id string, cidr netip.Prefix, n int) {
	_ = retry(func() error {
		h, err := get[api.Handle](r, api.HandleKey(id))
		if err != nil {
			return err
		}
		if have := h.value.Block[cidr.String()]; have < n {
			return fmt.Errorf("tried to decrement block %v by %d but it only has %d addresses on handle %s", cidr, n, have, id)
		}
		next := counted(h.value, cidr, -n)
		if len(next.Block) == 0 {
			return remove(r, h)
		}
		_, err = update(r, h, next)
		return err
	})
}

// counted is the handle with n more addresses of the block; h may be nil.
func counted(h *api.Handle, cidr netip.Prefix, n int) *api.Handle {
	out := &api.Handle{Block: map[string]int{}}
	if h != nil {
		for k, v := range h.Block {
			out.Block[k] = v
		}
	}
	if out.Block[cidr.String()] += n; out.Block[cidr.String()] == 0 {
		delete(out.Block, cidr.String())
	}
	return out
}
