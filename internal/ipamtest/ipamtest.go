// Package ipamtest reads all that etcd says of addresses and holds it against itself, for tests.
//
// It shares no code with what it judges but the types and keys of package api.
package ipamtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// View is what etcd said at one revision.
type View struct {
	Blocks     map[netip.Prefix]*api.Block
	Affinities map[string]*api.Affinity // by key
	Handles    map[string]*api.Handle   // by ID
	Endpoints  map[string]*api.WorkloadEndpoint

	holders map[netip.Addr]string           // handle IDs
	counts  map[string]map[netip.Prefix]int // by handle ID: addresses that the blocks say it holds
	damage  []error
}

// Read reads everything, at one revision.
func Read(ctx context.Context, c *store.Client) (View, error) {
	v := View{
		Blocks: map[netip.Prefix]*api.Block{}, Affinities: map[string]*api.Affinity{}, Handles: map[string]*api.Handle{}, Endpoints: map[string]*api.WorkloadEndpoint{},
		holders: map[netip.Addr]string{}, counts: map[string]map[netip.Prefix]int{},
	}
	got, _, err := c.Read(ctx, store.Range{Key: api.IPAMRoot, Prefix: true}, store.Range{Key: (*api.WorkloadEndpoint)(nil).KindOf().Prefix(), Prefix: true})
	if err != nil {
		return v, err
	}
	for _, kv := range slices.Concat(got...) {
		if err := v.add(kv); err != nil {
			v.damage = append(v.damage, err)
		}
	}
	for cidr, b := range v.Blocks {
		v.damage = append(v.damage, v.hold(cidr, b)...)
	}
	return v, nil
}

func (v View) add(kv store.KV) error {
	switch {
	case strings.HasPrefix(kv.Key, api.BlocksRoot):
		cidr, err := api.ParseBlockKey(kv.Key)
		if err != nil {
			return err
		}
		return into(v.Blocks, cidr, kv)
	case strings.HasPrefix(kv.Key, api.HostsRoot):
		return into(v.Affinities, kv.Key, kv)
	case strings.HasPrefix(kv.Key, api.HandlesRoot):
		return into(v.Handles, strings.TrimPrefix(kv.Key, api.HandlesRoot), kv)
	case strings.HasPrefix(kv.Key, (*api.WorkloadEndpoint)(nil).KindOf().Prefix()):
		return into(v.Endpoints, kv.Key, kv)
	}
	return nil
}

func into[K comparable, T api.Value](m map[K]*T, key K, kv store.KV) error {
	e, err := store.Decode[T](kv)
	if err == nil {
		m[key] = e.Value
	}
	return err
}

// hold notes who holds the block's addresses, and returns in what the block contradicts itself.
func (v View) hold(cidr netip.Prefix, b *api.Block) (damage []error) {
	wrong := func(format string, args ...any) {
		damage = append(damage, fmt.Errorf("block %v: %s", cidr, fmt.Sprintf(format, args...)))
	}
	if b.CIDR != cidr || len(b.Allocation) != 1<<(cidr.Addr().BitLen()-cidr.Bits()) {
		wrong("it says that it is %v, with %d addresses", b.CIDR, len(b.Allocation))
		return damage
	}
	queued := map[int]int{}
	for _, n := range b.Unallocated {
		queued[n]++
	}
	a := cidr.Addr()
	for n, at := range b.Allocation {
		switch {
		case at == nil && queued[n] != 1:
			wrong("%v is free and %d times in the queue", a, queued[n])
		case at == nil:
		case queued[n] > 0 || *at < 0 || *at >= len(b.Attributes) || b.Attributes[*at].HandleID == nil:
			wrong("%v is held by number %d of %d, and %d times in the queue", a, *at, len(b.Attributes), queued[n])
		default:
			id := *b.Attributes[*at].HandleID
			v.holders[a] = id
			if v.counts[id] == nil {
				v.counts[id] = map[netip.Prefix]int{}
			}
			v.counts[id][cidr]++
		}
		a = a.Next()
	}
	return damage
}

// Holder is the handle that holds an address; "" if it is free.
func (v View) Holder(a netip.Addr) string { return v.holders[a] }

// Held lists a handle's addresses, in order.
func (v View) Held(handle string) []netip.Addr {
	var out []netip.Addr
	for a, id := range v.holders {
		if id == handle {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Allocated is the number of addresses that are held.
func (v View) Allocated() int { return len(v.holders) }

// Sound reports what must never be, whoever died in the middle of whatever: blocks that overlap or contradict themselves, an address of
// two endpoints, an endpoint's address that another's handle holds, an address whose handle does not know of it.
func (v View) Sound() error {
	errs := slices.Concat(v.damage, v.overlaps(), v.doubles())
	for id, counts := range v.counts {
		for cidr, n := range counts {
			if h := v.Handles[id]; h == nil || h.Block[cidr.String()] < n {
				errs = append(errs, fmt.Errorf("handle %s holds %d addresses of %v, and says %v", id, n, cidr, h))
			}
		}
	}
	return errors.Join(errs...)
}

func (v View) overlaps() (errs []error) {
	sorted := slices.SortedFunc(maps.Keys(v.Blocks), netip.Prefix.Compare)
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].Overlaps(sorted[i]) {
			errs = append(errs, fmt.Errorf("blocks %v and %v overlap", sorted[i-1], sorted[i]))
		}
	}
	return errs
}

func (v View) doubles() (errs []error) {
	seen := map[netip.Addr]string{}
	for key, e := range v.Endpoints {
		for _, n := range e.Spec.IPNetworks {
			a := n.Addr()
			if other := seen[a]; other != "" {
				errs = append(errs, fmt.Errorf("%v is given to %s and to %s", a, other, key))
			}
			seen[a] = key
			if id := v.holders[a]; id != "" && !strings.HasSuffix(id, "."+e.Spec.ContainerID) {
				errs = append(errs, fmt.Errorf("%s has %v, which %s holds", key, a, id))
			}
		}
	}
	return errs
}

// Exact reports, beyond Sound, what is never so where only whole transactions were made: a handle that counts other than what it holds, a
// container of the network that holds addresses and has no endpoint with just these, an endpoint whose addresses nobody holds, a
// confirmed affinity without the block, a node's block without the affinity.
func (v View) Exact(network string) error {
	errs := []error{v.Sound()}
	for id, h := range v.Handles {
		want := map[string]int{}
		for cidr, n := range v.counts[id] {
			want[cidr.String()] = n
		}
		if len(want) == 0 || !maps.Equal(h.Block, want) {
			errs = append(errs, fmt.Errorf("handle %s says %v and holds %v", id, h.Block, want))
		}
	}
	errs = append(errs, v.endpointsAgree(network)...)
	return errors.Join(append(errs, v.affinitiesAgree()...)...)
}

func (v View) endpointsAgree(network string) (errs []error) {
	seen := map[string]bool{}
	for key, e := range v.Endpoints {
		var has []netip.Addr
		for _, n := range e.Spec.IPNetworks {
			has = append(has, n.Addr())
		}
		slices.SortFunc(has, netip.Addr.Compare)
		id := api.PodHandle(network, e.Spec.ContainerID)
		seen[id] = true
		if held := v.Held(id); !slices.Equal(has, held) {
			errs = append(errs, fmt.Errorf("%s has %v, its handle holds %v", key, has, held))
		}
	}
	for id := range v.counts {
		if strings.HasPrefix(id, network+".") && !seen[id] {
			errs = append(errs, fmt.Errorf("%s holds %v, and has no endpoint", id, v.Held(id)))
		}
	}
	return errs
}

func (v View) affinitiesAgree() (errs []error) {
	for key, a := range v.Affinities {
		node, cidr, err := api.ParseAffinityKey(key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if b := v.Blocks[cidr]; a.Confirmed() && (b == nil || b.Affinity == nil || *b.Affinity != api.HostAffinityOf(node)) {
			errs = append(errs, fmt.Errorf("%s is confirmed, and the block is %v", key, b))
		}
	}
	for cidr, b := range v.Blocks {
		if node, ok := b.Host(); ok && (v.Affinities[api.AffinityKey(node, cidr)] == nil || !v.Affinities[api.AffinityKey(node, cidr)].Confirmed()) {
			errs = append(errs, fmt.Errorf("block %v is of %s, which has no confirmed affinity", cidr, node))
		}
	}
	return errs
}

// Nothing reports the addresses, handles and endpoints that there still are.
func (v View) Nothing() error {
	errs := slices.Clone(v.damage)
	for a, id := range v.holders {
		errs = append(errs, fmt.Errorf("%v is still held by %s", a, id))
	}
	for id, h := range v.Handles {
		errs = append(errs, fmt.Errorf("handle %s is still there: %v", id, h.Block))
	}
	for key := range v.Endpoints {
		errs = append(errs, fmt.Errorf("endpoint %s is still there", key))
	}
	return errors.Join(errs...)
}
