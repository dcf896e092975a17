package register

import (
	"context"
	"iter"
	"net/netip"
	"strings"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// FromFeed is what the feed has in memory, for Config.Source; its Commit goes into Config.Committed.
func FromFeed(f *feed.Feed) func() Source {
	return func() Source {
		s, ok := f.Snapshot()
		if !ok {
			return nil
		}
		return Picture(s)
	}
}

// Picture is a Source of what one snapshot says. It never fails and never blocks.
func Picture(s feed.Snapshot) Source { return picture{s} }

type picture struct{ s feed.Snapshot }

func (p picture) Facts(_ context.Context, node string) (ipam.Facts, error) {
	f := ipam.Facts{Node: p.s.Node(node), Cluster: p.s.Cluster(), Config: p.s.IPAMConfig(), Identity: p.s.Identity(node)}
	for _, e := range p.s.Pools() {
		f.Pools = append(f.Pools, e)
	}
	for _, e := range p.s.Affinities(node) {
		f.Affinities = append(f.Affinities, e)
	}
	for _, e := range p.s.Reservations() {
		f.Reservations = append(f.Reservations, e)
	}
	for _, bad := range p.s.Bad() {
		if strings.HasPrefix(bad.Key, (*api.IPPool)(nil).KindOf().Prefix()) || strings.HasPrefix(bad.Key, (*api.IPReservation)(nil).KindOf().Prefix()) {
			f.Bad = append(f.Bad, bad.Err)
		}
	}
	return f, nil
}

func (p picture) Blocks(_ context.Context, cidrs ...netip.Prefix) ([]store.Entry[api.Block], error) {
	out := make([]store.Entry[api.Block], len(cidrs))
	for i, c := range cidrs {
		out[i] = p.s.Block(c)
		if bad, ok := p.s.BadAt(api.BlockKey(c)); ok {
			out[i] = store.Entry[api.Block]{Key: bad.Key, Rev: bad.Rev}
		}
	}
	return out, nil
}

func (p picture) Affinity(_ context.Context, node string, cidr netip.Prefix) (store.Entry[api.Affinity], error) {
	if bad, ok := p.s.BadAt(api.AffinityKey(node, cidr)); ok {
		return store.Entry[api.Affinity]{Key: bad.Key, Rev: bad.Rev}, nil
	}
	return p.s.Affinity(node, cidr), nil
}

func (p picture) Survey(_ context.Context, v6 bool) (ipam.Survey, error) {
	var out ipam.Survey
	for key, e := range p.s.Blocks() {
		if cidr, err := api.ParseBlockKey(key); err == nil && cidr.Addr().Is6() == v6 {
			out.Blocks = append(out.Blocks, e)
		}
	}
	for _, bad := range p.s.Bad() {
		if cidr, err := api.ParseBlockKey(bad.Key); err == nil && cidr.Addr().Is6() == v6 {
			out.Blocks = append(out.Blocks, store.Entry[api.Block]{Key: bad.Key, Rev: bad.Rev})
		}
	}
	for _, e := range p.s.Endpoints() {
		out.AddEndpoint(v6, e)
	}
	for _, e := range p.s.Nodes() {
		out.AddNode(v6, e)
	}
	return out, nil
}

func (p picture) Endpoint(key string) store.Entry[api.WorkloadEndpoint] { return p.s.Endpoint(key) }

func (p picture) EndpointsOn(node string) iter.Seq2[string, store.Entry[api.WorkloadEndpoint]] {
	return p.s.EndpointsOn(node)
}

func (p picture) Profile(name string) store.Entry[api.Profile] { return p.s.Profile(name) }
