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
// A large cluster has thousands of blocks, of which few change at a time, and on a node pods come and go. What a block gives depends on it, on which of its
// addresses are local pods', and on what is neither block nor pod. What a pod gives depends on it, its device, the other pods' addresses, and again on what
// is neither. So each is kept, and used again for as long as what it depends on is the same. What changes gets a new pointer; what is pointed to does not
// change. Results share maps with each other: do not modify them.
type Planner struct {
	host  kernel.Host // as it was given
	in    inputs
	base  *computation // of these; nil: nothing was computed yet
	pods  *pods
	parts map[netip.Prefix]given // by the block's range
	heard *heard                 // what BGP gives; nil: not worked out yet

	blocks []*api.Block // of the result
	gave   []*blockPlan // by each of them
	result Result
}

// inputs is all that a plan is computed from but blocks, pods with their devices, and what BGP has learned: Model has none of these here.
type inputs struct {
	Model
	Settings
	host    kernel.Host // but for workloads' devices
	blocks6 bool        // there are IPv6 blocks
}

func (in inputs) equal(other inputs) bool {
	return in.blocks6 == other.blocks6 && slices.Equal(in.Nodes, other.Nodes) && slices.Equal(in.Pools, other.Pools) && sameHost(in.host, other.host) &&
		reflect.DeepEqual(in.Settings, other.Settings)
}

func sameHost(a, b kernel.Host) bool {
	return maps.Equal(a.Links, b.Links) && slices.Equal(a.Addrs, b.Addrs)
}

// withoutWorkloads is a host without the devices of pods.
func withoutWorkloads(h kernel.Host, ours kernel.Ownership) kernel.Host {
	out := kernel.Host{Links: make(map[string]kernel.HostLink)}
	for name, l := range h.Links {
		if !ours.Workload(name) {
			out.Links[name] = l
		}
	}
	for _, a := range h.Addrs {
		if !ours.Workload(a.Dev) {
			out.Addrs = append(out.Addrs, a)
		}
	}
	return out
}

// given is a block and what it gives to a plan.
type given struct {
	block *api.Block // nil: what it gives is to be worked out anew
	gives *blockPlan
}

// blockPlan is what a block gives to a plan.
type blockPlan struct {
	routes   []namedRoute
	held     []namedRoute
	allowed  []allowed
	problems []Problem
	beyond   []beyond
}

// same tells whether two blocks give the same. Most changes of a block are of its own node's pods, which are nothing to others.
func (x *blockPlan) same(other *blockPlan) bool {
	return slices.Equal(x.routes, other.routes) && slices.Equal(x.held, other.held) && slices.Equal(x.allowed, other.allowed) &&
		slices.Equal(x.problems, other.problems) && slices.Equal(x.beyond, other.beyond)
}

type namedRoute struct {
	key   kernel.RouteKey
	route kernel.Route
}

// Compute returns the state that the node's kernel should have, and whether it is the very result that was returned last. Inputs are not modified, and must
// not be by others from now on.
func (p *Planner) Compute(m Model, s Settings, h kernel.Host) (r Result, again bool) {
	changed := p.look(m, s, h)
	if !changed && slices.Equal(m.Blocks, p.blocks) {
		return p.result, true
	}
	p.blocks = m.Blocks
	gave := p.work(m.Blocks)
	if !changed && slices.Equal(gave, p.gave) {
		return p.result, true
	}
	p.gave, p.result = gave, p.put(gave)
	return p.result, false
}

// look works anew what has changed, but for blocks, and reports whether anything has.
func (p *Planner) look(m Model, s Settings, h kernel.Host) (changed bool) {
	in := inputs{Model: m, Settings: s, host: p.in.host, blocks6: p.in.blocks6}
	in.Blocks, in.Endpoints, in.Learned = nil, nil, nil
	if !slices.Equal(m.Blocks, p.blocks) {
		in.blocks6 = slices.ContainsFunc(m.Blocks, func(b *api.Block) bool { return b.CIDR.Addr().Is6() })
	}
	moved := !sameHost(h, p.host)
	if moved || !s.Ours.Equal(p.in.Ours) {
		p.host, in.host = h, withoutWorkloads(h, s.Ours)
	}
	if p.base == nil || !p.in.equal(in) {
		p.in, p.base, p.parts, p.pods, p.heard = in, compute(in), make(map[netip.Prefix]given, len(m.Blocks)), nil, nil
	}
	if p.pods == nil || !p.pods.are(m.Endpoints, h) {
		p.repod(p.base.podsOn(h, m.Endpoints, p.pods))
		changed = true
	}
	if p.heard == nil || p.heard.from != m.Learned || moved && p.heard.throughPods {
		p.heard = p.base.hear(m.Learned, h)
		changed = true
	}
	return changed
}

// repod takes over other pods than before.
func (p *Planner) repod(now *pods) {
	if p.pods != nil {
		moved := p.pods.differ(now)
		for cidr, x := range p.parts {
			if slices.ContainsFunc(moved, cidr.Contains) {
				x.block = nil
				p.parts[cidr] = x
			}
		}
	}
	p.pods, p.base.local = now, now.local
	if !slices.Equal(p.base.nats, now.nats) {
		p.base.nats = now.nats
		p.base.firewall()
	}
}

// work returns what each block gives, worked out anew where that may have changed.
func (p *Planner) work(blocks []*api.Block) []*blockPlan {
	out := make([]*blockPlan, len(blocks))
	for i, b := range blocks {
		x := p.parts[b.CIDR]
		if x.block != b {
			gives := p.base.block(b)
			if x.gives == nil || !x.gives.same(gives) {
				x.gives = gives
			}
			x.block = b
			p.parts[b.CIDR] = x
		}
		out[i] = x.gives
	}
	if len(p.parts) > len(blocks) {
		there := make(map[netip.Prefix]struct{}, len(blocks))
		for _, b := range blocks {
			there[b.CIDR] = struct{}{}
		}
		maps.DeleteFunc(p.parts, func(cidr netip.Prefix, _ given) bool { _, stays := there[cidr]; return !stays })
	}
	return out
}

// put puts a result together.
func (p *Planner) put(parts []*blockPlan) Result {
	r := Result{State: p.base.out, PodMTU: p.base.podMTU, Modes: p.base.asked, Tunnels: p.base.tunnels, Problems: slices.Concat(p.base.problems, p.pods.problems)}
	r.State.Neighs, r.State.Sysctls = p.pods.out.Neighs, p.pods.out.Sysctls
	r.State.Routes = make(map[kernel.RouteKey]kernel.Route, len(parts)+len(p.base.out.Routes)+len(p.pods.out.Routes)+p.heard.from.len()) // maps that grow are filled twice
	maps.Copy(r.State.Routes, p.base.out.Routes)
	maps.Copy(r.State.Routes, p.pods.out.Routes)
	r.State.Held = map[kernel.RouteKey]kernel.Route{}
	var far []beyond
	var nodes []allowed
	for _, x := range parts {
		x.add(&r)
		far, nodes = append(far, x.beyond...), append(nodes, x.allowed...)
	}
	r.State.Peers = p.base.peers(nodes)
	r.Problems = append(r.Problems, p.heard.lacking(far)...)
	p.heard.merge(&r, p.pods.local)
	if len(r.Problems) > 1 {
		r.Problems = unique(r.Problems)
	}
	return r
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
