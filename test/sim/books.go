package sim

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// books are who has which address, kept from the bytes of each commit. They share no code with what they judge but the types and keys of package api.
type books struct {
	blocks    map[string]map[netip.Addr]string // by key: handle IDs by address
	held      map[string]map[netip.Addr]string // by handle ID: keys of blocks by address
	handles   map[string]map[string]int        // by ID: counts by block
	endpoints map[string]endpoint              // by key
	users     map[netip.Addr]string            // keys of endpoints by address
	byPod     map[string]string                // keys of endpoints by container
	given     []netip.Addr                     // by the commit that is being entered
}

type endpoint struct {
	addrs     []netip.Addr
	container string
	node      string
}

func newBooks() *books {
	return &books{
		blocks: map[string]map[netip.Addr]string{}, held: map[string]map[netip.Addr]string{}, handles: map[string]map[string]int{},
		endpoints: map[string]endpoint{}, users: map[netip.Addr]string{}, byPod: map[string]string{},
	}
}

// containers are those whose endpoints a commit changes, as they were before.
func (b *books) containers(changes []store.KV) (out []string) {
	for _, kv := range changes {
		if e, ok := b.endpoints[kv.Key]; ok {
			out = append(out, e.container)
		}
	}
	return out
}

// containersOf are those to which a commit gives an endpoint or a handle.
func containersOf(changes []store.KV) (out []string) {
	for _, kv := range changes {
		if kv.Value == nil {
			continue
		}
		if container, ok := strings.CutPrefix(kv.Key, api.HandleKey(api.PodHandle(network, ""))); ok {
			out = append(out, container)
		}
		if strings.HasPrefix(kv.Key, endpointsRoot()) {
			if e, err := decode[api.WorkloadEndpoint](kv); err == nil {
				out = append(out, e.Spec.ContainerID)
			}
		}
	}
	return out
}

// anyOn reports whether a node has an endpoint.
func (b *books) anyOn(node string) bool {
	for _, e := range b.endpoints {
		if e.node == node {
			return true
		}
	}
	return false
}

// addrsOf are the addresses of a container's endpoint, in order.
func (b *books) addrsOf(container string) []netip.Addr { return b.endpoints[b.byPod[container]].addrs }

// enter takes in a commit, and says what does not fit in what it touched: an address of two endpoints, a handle that counts other than it holds, an
// endpoint that has other addresses than its container's handle. given are the addresses that nobody had before.
func (b *books) enter(changes []store.KV) (given []netip.Addr, err error) {
	b.given = nil
	ids := map[string]bool{}
	var errs []error
	for _, kv := range changes {
		b.forget(kv.Key, ids) // first of all: an address may go from one endpoint to another
	}
	for _, kv := range changes {
		errs = append(errs, b.change(kv, ids))
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		errs = append(errs, b.balance(id))
	}
	return b.given, errors.Join(errs...)
}

func (b *books) change(kv store.KV, ids map[string]bool) error {
	switch {
	case strings.HasPrefix(kv.Key, api.BlocksRoot):
		return b.block(kv, ids)
	case strings.HasPrefix(kv.Key, api.HandlesRoot):
		return b.handle(kv, ids)
	case strings.HasPrefix(kv.Key, endpointsRoot()):
		return b.endpoint(kv, ids)
	}
	return nil
}

func endpointsRoot() string { return (*api.WorkloadEndpoint)(nil).KindOf().Prefix() }

func decode[T api.Value](kv store.KV) (*T, error) {
	if kv.Value == nil {
		return nil, nil
	}
	e, err := store.Decode[T](kv)
	return e.Value, err
}

func (b *books) block(kv store.KV, ids map[string]bool) error {
	is, err := decode[api.Block](kv)
	if err != nil {
		return err
	}
	was := b.blocks[kv.Key]
	for a, id := range was {
		ids[id] = true
		delete(b.held[id], a)
	}
	delete(b.blocks, kv.Key)
	if is == nil {
		return nil
	}
	now := map[netip.Addr]string{}
	a := is.CIDR.Addr()
	for _, at := range is.Allocation {
		if at != nil {
			if *at < 0 || *at >= len(is.Attributes) || is.Attributes[*at].HandleID == nil {
				return fmt.Errorf("%s: %v is held by number %d of %d", kv.Key, a, *at, len(is.Attributes))
			}
			now[a] = *is.Attributes[*at].HandleID
		}
		a = a.Next()
	}
	for a, id := range now {
		if was[a] == "" {
			b.given = append(b.given, a)
		}
		ids[id] = true
		if b.held[id] == nil {
			b.held[id] = map[netip.Addr]string{}
		}
		b.held[id][a] = is.CIDR.String()
	}
	b.blocks[kv.Key] = now
	return nil
}

func (b *books) handle(kv store.KV, ids map[string]bool) error {
	id := strings.TrimPrefix(kv.Key, api.HandlesRoot)
	ids[id] = true
	is, err := decode[api.Handle](kv)
	if is == nil || err != nil {
		delete(b.handles, id)
		return err
	}
	b.handles[id] = is.Block
	return nil
}

// forget takes an endpoint out.
func (b *books) forget(key string, ids map[string]bool) {
	was, ok := b.endpoints[key]
	if !ok {
		return
	}
	ids[api.PodHandle(network, was.container)] = true
	for _, a := range was.addrs {
		delete(b.users, a)
	}
	delete(b.byPod, was.container)
	delete(b.endpoints, key)
}

func (b *books) endpoint(kv store.KV, ids map[string]bool) error {
	is, err := decode[api.WorkloadEndpoint](kv)
	if is == nil || err != nil {
		return err
	}
	e := endpoint{container: is.Spec.ContainerID, node: is.Spec.Node}
	for _, n := range is.Spec.IPNetworks {
		if other := b.users[n.Addr()]; other != "" {
			return fmt.Errorf("%v is given to %s and to %s", n.Addr(), other, kv.Key)
		}
		b.users[n.Addr()] = kv.Key
		e.addrs = append(e.addrs, n.Addr())
	}
	slices.SortFunc(e.addrs, netip.Addr.Compare)
	b.endpoints[kv.Key], b.byPod[e.container] = e, kv.Key
	ids[api.PodHandle(network, e.container)] = true
	return nil
}

// isBrought reports whether addresses are another IPAM's, so that no handle holds them.
func isBrought(addrs []netip.Addr) bool { return len(addrs) > 0 && brought.Contains(addrs[0]) }

// balance says what does not fit in what a handle holds.
func (b *books) balance(id string) error {
	counts := map[string]int{}
	for _, block := range b.held[id] {
		counts[block]++
	}
	if !maps.Equal(counts, b.handles[id]) {
		return fmt.Errorf("handle %s says %v, and the blocks %v", id, b.handles[id], counts)
	}
	container, ok := strings.CutPrefix(id, network+".")
	if !ok {
		return nil
	}
	holds := slices.SortedFunc(maps.Keys(b.held[id]), netip.Addr.Compare)
	if has := b.endpoints[b.byPod[container]].addrs; !slices.Equal(has, holds) && !(len(holds) == 0 && isBrought(has)) {
		return fmt.Errorf("container %s has an endpoint with %v, and holds %v", container, has, holds)
	}
	return nil
}
