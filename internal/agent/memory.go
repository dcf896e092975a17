package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// memory serves the register handler from the feed, without asking etcd. It implements register.Source.
type memory struct{ feed *feed.Feed }

// Facts implements ipam.Source.
func (m memory) Facts(_ context.Context, node string) (ipam.Facts, error) {
	snap, ok := m.feed.Snapshot()
	if !ok {
		return ipam.Facts{}, fmt.Errorf("the datastore has not been read yet: %w", store.ErrUnavailable)
	}
	f := ipam.Facts{Node: snap.Node(node), Cluster: snap.Cluster(), Config: snap.IPAMConfig()}
	for _, p := range snap.Pools() {
		f.Pools = append(f.Pools, p)
	}
	for _, a := range snap.Affinities(node) {
		f.Affinities = append(f.Affinities, a)
	}
	return f, nil
}

// Blocks implements ipam.Source.
func (m memory) Blocks(_ context.Context, cidrs ...netip.Prefix) ([]store.Entry[api.Block], error) {
	snap, _ := m.feed.Snapshot()
	out := make([]store.Entry[api.Block], len(cidrs))
	for i, c := range cidrs {
		out[i] = snap.Block(c)
		if bad, ok := snap.BadAt(api.BlockKey(c)); ok {
			out[i].Rev = bad.Rev
		}
	}
	return out, nil
}

// AllBlocks implements ipam.Source.
func (m memory) AllBlocks(_ context.Context, v6 bool) ([]store.Entry[api.Block], error) {
	snap, _ := m.feed.Snapshot()
	var out []store.Entry[api.Block]
	for _, b := range snap.Blocks() {
		if b.Value.CIDR.Addr().Is6() == v6 {
			out = append(out, b)
		}
	}
	for _, bad := range snap.Bad() {
		if cidr, err := api.ParseBlockKey(bad.Key); err == nil && cidr.Addr().Is6() == v6 {
			out = append(out, store.Entry[api.Block]{Key: bad.Key, Rev: bad.Rev})
		}
	}
	return out, nil
}

// Endpoint implements register.Source.
func (m memory) Endpoint(key string) store.Entry[api.WorkloadEndpoint] {
	snap, _ := m.feed.Snapshot()
	return snap.Endpoint(key)
}

// Profile implements register.Source.
func (m memory) Profile(key string) store.Entry[api.Profile] {
	snap, _ := m.feed.Snapshot()
	return snap.Profile(strings.TrimPrefix(key, (*api.Profile)(nil).KindOf().Prefix()))
}
