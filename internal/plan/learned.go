package plan

import (
	"net/netip"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/peering"
)

// Learned is what BGP has for the kernel. Who gives one to a plan does not change it any more: what is new is another one.
//
// A range has one route. Where the datastore says how to reach it (through a tunnel, or straight to a node on our subnet), that is the
// route: it holds also while the node that has it speaks to nobody, and nobody else can say otherwise. What BGP says counts everywhere
// else: for nodes beyond our subnet in a pool without encapsulation, and outside of pools. peering.Kernel has left out what is not to be
// routed by BGP at all.
type Learned struct {
	Routes []peering.KernelRoute     // each prefix once
	Reach  []peering.Via             // peers that are reached through a given gateway
	Ways   map[netip.Addr]kernel.Hop // to gateways that are on no subnet of the host
	Local  bool                      // programClusterRoutes keeps BGP's routes into pools out
	// Settling says that peers may not have told everything yet: that a route lacks is no problem then.
	Settling bool
	// Held are routes of an earlier agent that may have been learned: meanwhile they stay, wanted or not.
	Held []kernel.RouteKey
}

func (l *Learned) len() int {
	if l == nil {
		return 0
	}
	return len(l.Routes) + len(l.Reach)
}

// heard is what a Learned gives to a plan. The zero value is of a node without BGP.
type heard struct {
	from        *Learned
	part        blockPlan
	dsts        map[netip.Prefix]struct{} // of the learned routes
	host        kernel.Host               // with the devices of pods
	throughPods bool                      // some hop is on one of these, or would be
}

// hear works out what a Learned gives on a host, of which c knows what is not pods'.
func (c *computation) hear(l *Learned, host kernel.Host) *heard {
	h := &heard{from: l, host: host, dsts: make(map[netip.Prefix]struct{}, l.len())}
	if l == nil {
		return h
	}
	for _, r := range l.Routes {
		h.dsts[r.Dst] = struct{}{}
	}
	c.learned(h)
	return h
}

// has tells whether a learned route covers a range.
func (h *heard) has(dst netip.Prefix) bool {
	for bits := dst.Bits(); bits >= 0; bits-- {
		if _, ok := h.dsts[netip.PrefixFrom(dst.Addr(), bits).Masked()]; ok {
			return true
		}
	}
	return false
}

// beyond is a range that nothing but the network can lead to.
type beyond struct {
	dst     netip.Prefix
	problem Problem // of a node without BGP
}

// lacking says which of the ranges beyond our subnet nobody leads to.
func (h *heard) lacking(all []beyond) (out []Problem) {
	for _, b := range all {
		switch {
		case h.from == nil:
			out = append(out, b.problem)
		case h.has(b.dst):
		case h.from.Local:
			out = append(out, newProblem(b.problem.Object, "is outside our subnet and its pool is not encapsulated there: no route to %v, since "+
				"programClusterRoutes in FelixConfiguration or BGPConfiguration keeps BGP's out; change it, or use vxlanMode CrossSubnet", b.dst))
		case !h.from.Settling:
			out = append(out, newProblem(b.problem.Object, "is outside our subnet, and no BGP peer has sent a route to its %v; see `muslinctl node status`. "+
				"Nodes of different subnets need a router that is their peer, or a pool with vxlanMode or ipipMode CrossSubnet", b.dst))
		}
	}
	return out
}

// learned works out the routes that BGP gives, those too that the datastore's will stand in for.
func (c *computation) learned(h *heard) {
	for _, k := range h.from.Held {
		h.part.held = append(h.part.held, namedRoute{key: k})
	}
	for _, f := range c.families {
		r := hearing{routing{family: f}, h}
		for _, v := range h.from.Reach {
			if v.Peer.Is6() == f.v6 {
				r.reach(v)
			}
		}
		for _, k := range h.from.Routes {
			if k.Dst.Addr().Is6() == f.v6 {
				r.learned(k)
			}
		}
		x := &h.part
		x.routes, x.held, x.problems = append(x.routes, r.part.routes...), append(x.held, r.part.held...), append(x.problems, r.part.problems...)
	}
}

// hearing works out what BGP gives for one family.
type hearing struct {
	routing
	heard *heard
}

// reach adds the route to a peer that the operator has said the gateway of.
func (r *hearing) reach(v peering.Via) {
	hop, ok := r.hop(v.Gateway)
	if !ok {
		r.problem("BGPPeer", "reachableBy %v is on no subnet of this host, so that there is no route to %v through it; correct it", v.Gateway, v.Peer)
		return
	}
	dst := netip.PrefixFrom(v.Peer.WithZone(""), v.Peer.BitLen())
	r.put(keyOf(dst), kernel.Route{}.Via(hop))
}

// learned adds one learned route. A gateway that cannot be reached is left out; the others carry on.
func (r *hearing) learned(k peering.KernelRoute) {
	key := kernel.RouteKey{Dst: k.Dst, Metric: k.Metric}
	if k.Tunnel && !r.ipip.ready {
		r.part.held = append(r.part.held, namedRoute{key: key})
		return
	}
	var hops []kernel.Hop
	for _, gw := range k.Gateways {
		hop, ok := kernel.Hop{Gateway: gw, Dev: r.ipip.dev, Onlink: true}, true
		if !k.Tunnel {
			hop, ok = r.hop(gw)
		}
		if !ok {
			r.problem("BGP", "nothing leads to %v, which peers name as next hop; routes through it wait for a route to it", gw)
			continue
		}
		hops = append(hops, hop)
	}
	if len(hops) > 0 {
		r.put(key, kernel.Route{}.Via(hops...))
	}
}

// hop is the way to a gateway: by its zone, on the subnet of ours that holds it, or where the kernel would send what is for it.
func (r *hearing) hop(gw netip.Addr) (kernel.Hop, bool) {
	if gw.Zone() != "" {
		dev, up := r.device(gw.Zone())
		return kernel.Hop{Gateway: gw.WithZone(""), Dev: dev}, up
	}
	best := -1
	var on kernel.Dev
	for _, a := range r.host.Addrs {
		if a.Addr.Bits() <= best || !a.Addr.Masked().Contains(gw) || a.Addr.Addr() == gw {
			continue
		}
		if dev, up := r.device(a.Dev); up {
			best, on = a.Addr.Bits(), dev
		}
	}
	if best >= 0 {
		return kernel.Hop{Gateway: gw, Dev: on}, true
	}
	hop, ok := r.heard.from.Ways[gw]
	if !ok {
		return hop, false
	}
	dev, _ := r.device(hop.Dev.Name)
	return hop, dev.Index == hop.Dev.Index
}

// device returns a device of the host, which may be a pod's, and whether it is up.
func (r *hearing) device(name string) (kernel.Dev, bool) {
	r.heard.throughPods = r.heard.throughPods || r.Ours.Workload(name)
	return r.heard.host.Dev(name)
}

// merge adds to a result what BGP gives and the datastore does not.
func (h *heard) merge(r *Result, local map[netip.Addr]string) {
	free := func(dst netip.Prefix) bool { return !taken(r.State, local, dst) }
	for _, n := range h.part.routes {
		if free(n.key.Dst) {
			r.State.Routes[n.key] = n.route
		}
	}
	for _, n := range h.part.held {
		if free(n.key.Dst) {
			r.State.Held[n.key] = n.route
		}
	}
	r.Problems = append(r.Problems, h.part.problems...)
}

// taken tells whether a range has a route from the datastore, or is a local pod's address.
func taken(s kernel.State, local map[netip.Addr]string, dst netip.Prefix) bool {
	if _, here := local[dst.Addr()]; here && dst.IsSingleIP() {
		return true
	}
	_, has := s.Routes[keyOf(dst)]
	return has
}

// keyOf names the datastore's route to a range. The kernel gives an IPv6 route without metric this one.
func keyOf(dst netip.Prefix) kernel.RouteKey {
	if dst.Addr().Is6() {
		return kernel.RouteKey{Dst: dst, Metric: 1024}
	}
	return kernel.RouteKey{Dst: dst}
}
