package agent

import (
	"context"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// model is the part of a snapshot that this node's BGP is computed from.
func (b *speaker) model(snap feed.Snapshot) peering.Model {
	was := b.said.model
	m := peering.Model{
		Nodes: objects(snap, snap.Nodes(), was.Nodes), Configs: objects(snap, snap.BGPConfigs(), was.Configs), Peers: objects(snap, snap.BGPPeers(), was.Peers),
		Filters: objects(snap, snap.BGPFilters(), was.Filters), Pools: objects(snap, snap.Pools(), was.Pools), RouterID: b.routerID,
	}
	for key, a := range snap.Affinities(b.node) {
		if _, block, err := api.ParseAffinityKey(key); err == nil && a.Value.Confirmed() && !a.Value.Deleted {
			m.Blocks = append(m.Blocks, block)
		}
	}
	m.Endpoints = m.Relevant(objects(snap, snap.EndpointsOn(b.node), nil))
	if b.kube == nil {
		return m
	}
	m.Services, m.Passwords = b.kube.Advertised(m.Configs), map[peering.Secret]string{}
	for _, s := range m.Secrets() {
		if value, ok := b.kube.Secret(s.Name, s.Key); ok {
			m.Passwords[s] = value
		}
	}
	return m
}

// objects lists the values of a table in the order of their keys. One that cannot be read counts as it did before: what it says is not known, and
// its absence would end sessions, or let through what a filter keeps back.
func objects[T api.Value](snap feed.Snapshot, all iter.Seq2[string, store.Entry[T]], before []*T) []*T {
	var out []*T
	for _, e := range all {
		out = append(out, e.Value)
	}
	if len(snap.Bad()) == 0 {
		return out
	}
	key := func(v *T) string { return api.KeyOf(any(v).(api.Object)) }
	for _, v := range before {
		if _, bad := snap.BadAt(key(v)); bad {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *T) int { return strings.Compare(key(a), key(b)) })
	return out
}

// rules say which learned routes are for the kernel.
func (b *speaker) rules(g *given) peering.Rules {
	r := peering.Rules{Pools: b.said.model.Pools, Own: b.said.result.Routes, Local: g.local}
	for _, c := range b.said.model.Configs {
		r.Services = append(r.Services, peering.ServiceRanges(c)...)
		r.Local = r.Local || c.Spec.ProgramClusterRoutes == "Disabled"
	}
	for _, n := range b.said.model.Nodes {
		if n.Metadata.Name != b.node {
			continue
		}
		for _, v6 := range []bool{false, true} {
			if a, ok := n.Address(v6); ok {
				r.Subnets = append(r.Subnets, a)
			}
		}
	}
	return r
}

// waysTo looks up how the kernel reaches the gateways that are on no subnet of the host: anew if some are new, and every so often.
func (b *speaker) waysTo(ctx context.Context, l *plan.Learned) (map[netip.Addr]kernel.Hop, error) {
	distant := b.distant(l)
	asked := func(gw netip.Addr) bool {
		_, before := slices.BinarySearchFunc(b.said.distant, gw, netip.Addr.Compare)
		return before
	}
	if time.Since(b.said.waysAt) < waysAge && !slices.ContainsFunc(distant, func(gw netip.Addr) bool { return !asked(gw) }) {
		return b.said.ways, nil
	}
	ways, err := b.ways(ctx, distant)
	if err != nil {
		return b.said.ways, err
	}
	b.said.ways, b.said.distant, b.said.waysAt = ways, distant, time.Now()
	return ways, nil
}

// distant lists, sorted, the gateways that the host has no address beside.
func (b *speaker) distant(l *plan.Learned) []netip.Addr {
	all := map[netip.Addr]struct{}{}
	for _, v := range l.Reach {
		all[v.Gateway] = struct{}{}
	}
	for _, r := range l.Routes {
		for _, gw := range r.Gateways {
			if !r.Tunnel && gw.Zone() == "" {
				all[gw] = struct{}{}
			}
		}
	}
	host := b.host()
	maps.DeleteFunc(all, func(gw netip.Addr, _ struct{}) bool {
		return slices.ContainsFunc(host.Addrs, func(a kernel.HostAddr) bool { return a.Addr.Masked().Contains(gw) })
	})
	return slices.SortedFunc(maps.Keys(all), netip.Addr.Compare)
}
