package plan

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// pods are what the local pods give to a plan.
type pods struct {
	*computation
	complaints
	list  []*podPlan            // in the order of the endpoints
	local map[netip.Addr]string // the endpoint that has the address
	nats  []nat                 // of those whose devices are there
	out   kernel.State          // only Routes, Neighs and Sysctls; the latter two with the rest of the node's
}

// podPlan is what one endpoint gives.
type podPlan struct {
	endpoint *api.WorkloadEndpoint
	dev      kernel.Dev // where it is
	up       bool       // it is there, so that routes can hang on it
	own      []netip.Addr
	nats     []nat
	out      kernel.State // only Routes, Neighs and Sysctls
	problems []Problem
}

// podsOn works out what the endpoints of this node give. What old ones gave, which were worked out from the same, is used again; nil: there are none.
func (c *computation) podsOn(h kernel.Host, endpoints []*api.WorkloadEndpoint, old *pods) *pods {
	x := &pods{
		computation: c, complaints: complaints{said: map[Problem]struct{}{}}, list: make([]*podPlan, len(endpoints)), local: make(map[netip.Addr]string, len(endpoints)),
		out: kernel.State{ // maps that grow are filled twice
			Sysctls: make(map[kernel.SysctlKey]string, len(c.out.Sysctls)+5*len(endpoints)),
			Neighs:  make(map[kernel.NeighKey]kernel.MAC, len(c.out.Neighs)+len(endpoints)),
			Routes:  make(map[kernel.RouteKey]kernel.Route, len(endpoints)),
		},
	}
	maps.Copy(x.out.Sysctls, c.out.Sysctls)
	maps.Copy(x.out.Neighs, c.out.Neighs)
	known := make(map[*api.WorkloadEndpoint]*podPlan, len(endpoints))
	if old != nil {
		for _, p := range old.list {
			known[p.endpoint] = p
		}
	}
	for i, e := range endpoints {
		p := &podPlan{endpoint: e, own: x.claim(e)}
		p.dev, p.up = h.Dev(e.Spec.InterfaceName)
		x.list[i] = p
	}
	for i, p := range x.list { // now that it is known whose each address is, whatever others ask for
		p.nats = x.floating(p)
		if before := known[p.endpoint]; before != nil && before.same(p) {
			x.list[i] = before
		} else {
			x.work(p)
		}
		x.add(x.list[i])
	}
	return x
}

// same tells whether another one of the same endpoint gives the same.
func (p *podPlan) same(other *podPlan) bool {
	return p.dev == other.dev && p.up == other.up && slices.Equal(p.own, other.own) && slices.Equal(p.nats, other.nats)
}

// are tells whether these are what the endpoints would give on a host.
func (x *pods) are(endpoints []*api.WorkloadEndpoint, h kernel.Host) bool {
	return slices.EqualFunc(x.list, endpoints, func(p *podPlan, e *api.WorkloadEndpoint) bool {
		if p.endpoint != e {
			return false
		}
		dev, up := h.Dev(e.Spec.InterfaceName)
		return p.dev == dev && p.up == up
	})
}

// differ lists the addresses that are a pod's in one and not in the other.
func (x *pods) differ(other *pods) (out []netip.Addr) {
	for _, pair := range [][2]*pods{{x, other}, {other, x}} {
		for a := range pair[0].local {
			if _, too := pair[1].local[a]; !too {
				out = append(out, a)
			}
		}
	}
	return out
}

func endpointName(e *api.WorkloadEndpoint) string {
	return "WorkloadEndpoint(" + e.Metadata.Namespace + "/" + e.Metadata.Name + ")"
}

// claim gives a local endpoint its addresses; none if it can have no device.
func (x *pods) claim(e *api.WorkloadEndpoint) []netip.Addr {
	name := endpointName(e)
	if !x.Ours.Workload(e.Spec.InterfaceName) {
		x.problem(name, "spec.interfaceName: %q does not begin with %q; re-create the pod", e.Spec.InterfaceName, strings.Join(x.Ours.WorkloadPrefixes(), " or "))
		return nil
	}
	return x.addrs(name, e)
}

// addrs lists the addresses that a local endpoint has to itself, the first that asks for one.
func (x *pods) addrs(name string, e *api.WorkloadEndpoint) []netip.Addr {
	var out []netip.Addr
	for _, p := range e.Spec.IPNetworks {
		if !p.IsValid() || !p.IsSingleIP() {
			x.problem(name, "spec.ipNetworks: %v is not a single address; re-create the pod", p)
			continue
		}
		if !x.IPv6 && p.Addr().Is6() {
			continue
		}
		if first, taken := x.local[p.Addr()]; taken {
			x.problem(name, "address %v belongs to %s too, which keeps it; re-create this pod", p.Addr(), first)
			continue
		}
		x.local[p.Addr()] = name
		out = append(out, p.Addr())
	}
	return out
}

// work works out what an endpoint gives. One whose device is not there or not up yet waits for it.
func (x *pods) work(p *podPlan) {
	if len(p.own) == 0 {
		return
	}
	spec := p.endpoint.Spec
	w := hostside.Workload{
		Dev: p.dev, Addrs: slices.Clone(p.own), Spoofs: x.Spoofing && len(spec.AllowSpoofed) > 0,
		Metric4: x.PodMetric4, Metric6: x.PodMetric6, Src4: x.RouteSource, Src6: x.RouteSource6,
	}
	if spec.MAC != "" {
		mac, err := kernel.ParseMAC(spec.MAC)
		if err != nil {
			p.problems = append(p.problems, newProblem(endpointName(p.endpoint), "spec.mac: %v", err))
		}
		w.MAC = mac
	}
	if !p.up {
		return
	}
	for _, n := range p.nats {
		w.Addrs = append(w.Addrs, n.floating) // BGP announces what is routed here
	}
	p.out = kernel.State{Sysctls: map[kernel.SysctlKey]string{}, Neighs: map[kernel.NeighKey]kernel.MAC{}, Routes: map[kernel.RouteKey]kernel.Route{}}
	w.Add(p.out)
	x.markRoutes(p.out)
}

// add takes over what an endpoint gives.
func (x *pods) add(p *podPlan) {
	x.problems = append(x.problems, p.problems...)
	maps.Copy(x.out.Routes, p.out.Routes)
	maps.Copy(x.out.Neighs, p.out.Neighs)
	maps.Copy(x.out.Sysctls, p.out.Sysctls)
	if p.up {
		x.nats = append(x.nats, p.nats...)
	}
}
