package plan

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Planner computes plans one after the other, each as Compute would. It is for one goroutine. The zero value is ready.
//
// A large cluster has thousands of blocks, of which few change at a time. What a block gives depends on it and on what is no block, and on
// no other block. So it is kept, and used again for as long as the block is the same and all else is the same. What changes gets a new
// pointer; what is pointed to does not change. Of a result's State only the routes are made anew each time: do not modify it.
type Planner struct {
	given inputs
	base  *computation // of what was given; nil: nothing was computed yet
	parts map[*api.Block]*blockPlan
	turn  int
	heard *heard // what BGP gives; nil: not worked out yet
}

// inputs is all that a plan is computed from but the blocks and what BGP has learned, of which Model has none here.
type inputs struct {
	Model
	Settings
	host    kernel.Host
	blocks6 bool // there are IPv6 blocks
}

func (in inputs) equal(other inputs) bool {
	return in.blocks6 == other.blocks6 &&
		slices.Equal(in.Nodes, other.Nodes) && slices.Equal(in.Pools, other.Pools) && slices.Equal(in.Endpoints, other.Endpoints) &&
		maps.Equal(in.host.Links, other.host.Links) && slices.Equal(in.host.Addrs, other.host.Addrs) &&
		reflect.DeepEqual(in.Settings, other.Settings)
}

// blockPlan is what a block gives to a plan.
type blockPlan struct {
	routes   []namedRoute
	held     []namedRoute
	allowed  []allowed
	problems []Problem
	beyond   []beyond
	turn     int // the last in which there was the block
}

type namedRoute struct {
	key   kernel.RouteKey
	route kernel.Route
}

// Compute returns the state that the node's kernel should have. Inputs are not modified, and must not be by others from now on.
func (p *Planner) Compute(m Model, s Settings, h kernel.Host) Result {
	blocks, learned := m.Blocks, m.Learned
	m.Blocks, m.Learned = nil, nil
	in := inputs{Model: m, Settings: s, host: h, blocks6: slices.ContainsFunc(blocks, func(b *api.Block) bool { return b.CIDR.Addr().Is6() })}
	if p.base == nil || !p.given.equal(in) {
		p.given, p.base, p.parts = in, compute(in), make(map[*api.Block]*blockPlan, len(blocks))
		p.heard = nil
	}
	if p.heard == nil || p.heard.from != learned {
		p.heard = p.base.hear(learned)
	}
	p.turn++
	r := Result{State: p.base.out, PodMTU: p.base.podMTU, Modes: p.base.asked, Tunnels: p.base.tunnels, Problems: slices.Clip(p.base.problems)}
	r.State.Routes = make(map[kernel.RouteKey]kernel.Route, len(blocks)+len(p.base.out.Routes)+learned.len()) // maps that grow are filled twice
	maps.Copy(r.State.Routes, p.base.out.Routes)
	r.State.Held = map[kernel.RouteKey]kernel.Route{}
	var far []beyond
	var nodes []allowed
	for _, b := range blocks {
		x := p.part(b)
		x.add(&r)
		far, nodes = append(far, x.beyond...), append(nodes, x.allowed...)
	}
	r.State.Peers = p.base.peers(nodes)
	r.Problems = append(r.Problems, p.heard.lacking(far)...)
	p.heard.merge(&r, p.base.local)
	if len(p.parts) > len(blocks) {
		maps.DeleteFunc(p.parts, func(_ *api.Block, x *blockPlan) bool { return x.turn != p.turn })
	}
	if len(r.Problems) > len(p.base.problems) {
		r.Problems = unique(r.Problems)
	}
	return r
}

// part is what a block gives, from the last time if nothing has changed.
func (p *Planner) part(b *api.Block) *blockPlan {
	x := p.parts[b]
	if x == nil {
		x = p.base.block(b)
		p.parts[b] = x
	}
	x.turn = p.turn
	return x
}

func (x *blockPlan) add(r *Result) {
	for _, n := range x.routes {
		r.State.Routes[n.key] = n.route
	}
	for _, n := range x.held {
		r.State.Held[n.key] = n.route
	}
	r.Problems = append(r.Problems, x.problems...)
}

// unique is a list without what has stood in it before.
func unique(list []Problem) []Problem {
	said := make(map[Problem]struct{}, len(list))
	var out []Problem
	for _, p := range list {
		if _, before := said[p]; !before {
			said[p] = struct{}{}
			out = append(out, p)
		}
	}
	return out
}

// block works out what a block gives: nothing if it is of a family that this node does not do.
func (c *computation) block(b *api.Block) *blockPlan {
	for _, f := range c.families {
		if f.v6 == b.CIDR.Addr().Is6() {
			r := routing{family: f}
			r.block(b)
			return &r.part
		}
	}
	return &blockPlan{}
}

// routing works out one block. What it adds goes to the part and not to the computation, which it only reads.
type routing struct {
	*family
	part blockPlan
}

func (r *routing) problem(object, format string, args ...any) {
	r.part.problems = append(r.part.problems, newProblem(object, format, args...))
}

func (r *routing) route(dst netip.Prefix, to kernel.Route) { r.put(keyOf(dst), to) }

func (r *routing) put(k kernel.RouteKey, to kernel.Route) {
	to.Protocol = r.Ours.RouteProtocol()
	r.part.routes = append(r.part.routes, namedRoute{k, to})
}

// hold leaves standing what carries a range's packets until its new route can be written.
func (r *routing) hold(dst netip.Prefix) {
	r.part.held = append(r.part.held, namedRoute{key: keyOf(dst)})
}

// holdOr is hold, with a route for where nothing stands.
func (r *routing) holdOr(dst netip.Prefix, to kernel.Route) {
	to.Protocol = r.Ours.RouteProtocol()
	r.part.held = append(r.part.held, namedRoute{keyOf(dst), to})
}
