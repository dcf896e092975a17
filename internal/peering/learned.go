package peering

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// KernelRoute is a learned route as the kernel should have it.
type KernelRoute struct {
	Dst      netip.Prefix
	Gateways []netip.Addr // sorted; more than one share the traffic
	Tunnel   bool         // through tunl0, onlink
	Metric   int
}

// Rules say which learned routes go into the kernel.
type Rules struct {
	Pools    []*api.IPPool
	Own      []Route        // what this node announces itself: nobody tells it where that is
	Subnets  []netip.Prefix // the node's addresses with their subnets
	Services []netip.Prefix // ranges of services, which are not hosts
	Local    bool           // the agent makes the cluster's routes from the datastore (programClusterRoutes Disabled)
}

// ServiceRanges are the ranges that a BGPConfiguration says to be services'. What cannot be read is left out.
func ServiceRanges(b *api.BGPConfiguration) []netip.Prefix {
	var out []netip.Prefix
	for _, list := range [][]api.ServiceRange{b.Spec.ServiceClusterIPs, b.Spec.ServiceExternalIPs, b.Spec.ServiceLoadBalancerIPs} {
		for _, r := range list {
			if p, err := parseCIDR(r.CIDR); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// Kernel computes the routes that the kernel should have of those that peers sent, the best ones of each prefix, sorted by prefix.
// While a path of a peer that is here is known, paths of peers that are away are not used.
func Kernel(paths []Path, r Rules) []KernelRoute {
	byPrefix := map[netip.Prefix][]Path{}
	for _, p := range paths {
		byPrefix[p.Prefix] = append(byPrefix[p.Prefix], p)
	}
	var out []KernelRoute
	for dst, all := range byPrefix {
		if route, ok := r.route(dst, usable(all)); ok {
			out = append(out, route)
		}
	}
	slices.SortFunc(out, func(a, b KernelRoute) int { return a.Dst.Compare(b.Dst) })
	return out
}

// usable leaves the fresh paths if there are any.
func usable(paths []Path) []Path {
	fresh := slices.DeleteFunc(slices.Clone(paths), func(p Path) bool { return p.Stale })
	if len(fresh) > 0 {
		return fresh
	}
	return paths
}

func (r Rules) route(dst netip.Prefix, paths []Path) (KernelRoute, bool) {
	own := slices.ContainsFunc(r.Own, func(o Route) bool { return o.Prefix == dst })
	service := slices.ContainsFunc(r.Services, func(s netip.Prefix) bool { return s.Overlaps(dst) && s.Bits() <= dst.Bits() })
	if own || service || !routable(dst.Addr()) {
		return KernelRoute{}, false
	}
	pool := r.poolOf(dst)
	if pool != nil && (encapsulates(pool.Spec.VXLANMode) || r.Local) {
		return KernelRoute{}, false
	}
	out := KernelRoute{Dst: dst}
	for _, p := range paths {
		if !p.NextHop.IsValid() || p.NextHop.IsUnspecified() || p.NextHop.IsMulticast() || r.isOurs(p.NextHop) {
			continue
		}
		out.Gateways = append(out.Gateways, p.NextHop)
		out.Metric = Metric(p.LocalPref)
	}
	if len(out.Gateways) == 0 {
		return KernelRoute{}, false
	}
	slices.SortFunc(out.Gateways, netip.Addr.Compare)
	out.Gateways = slices.Compact(out.Gateways)
	if pool != nil && encapsulates(pool.Spec.IPIPMode) {
		r.tunnel(&out, pool.Spec.IPIPMode)
	}
	return out, true
}

// routable tells whether routes may lead to ranges that begin with the address. Those of a host or a link alone, and groups, are nobody's to announce.
func routable(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func encapsulates(m api.EncapMode) bool { return m == api.Always || m == api.CrossSubnet }

// tunnel sends a route through tunl0 where the pool's mode asks for it. Of gateways inside and outside of our subnet those
// inside are used: one route has one way.
func (r Rules) tunnel(k *KernelRoute, mode api.EncapMode) {
	near := slices.DeleteFunc(slices.Clone(k.Gateways), func(a netip.Addr) bool {
		return !slices.ContainsFunc(r.Subnets, func(s netip.Prefix) bool { return s.Masked().Contains(a) })
	})
	if mode == api.CrossSubnet && len(near) > 0 {
		k.Gateways = near
		return
	}
	k.Tunnel = true
}

func (r Rules) isOurs(a netip.Addr) bool {
	return slices.ContainsFunc(r.Subnets, func(s netip.Prefix) bool { return s.Addr() == a })
}

// poolOf is the narrowest pool that holds all of a prefix.
func (r Rules) poolOf(dst netip.Prefix) *api.IPPool {
	var best *api.IPPool
	for _, p := range r.Pools {
		if c := p.Spec.CIDR; c.IsValid() && c.Bits() <= dst.Bits() && c.Contains(dst.Addr()) && (best == nil || c.Bits() > best.Spec.CIDR.Bits()) {
			best = p
		}
	}
	return best
}
