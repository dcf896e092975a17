package policyjudge

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Input is the cluster as the compiler takes it.
func (c *Cluster) Input() policy.Delta {
	var d policy.Delta
	for _, o := range c.Objects {
		d.Objects = append(d.Objects, policy.Change{Key: api.KeyOf(o), Object: o})
	}
	for _, s := range c.Services {
		out := policy.Service{Namespace: s.Namespace, Name: s.Name}
		for _, m := range s.Members {
			out.Members = append(out.Members, policy.PortMember{Addr: m.Addr, Protocol: m.Protocol, Port: m.Port})
		}
		d.Services = append(d.Services, out)
	}
	return d
}

// WalkModel judges a packet by a compiled model, policy alone.
func WalkModel(c *Cluster, m policy.Model, p Packet) (Judgement, policy.Walked) {
	f := policy.Flow{Packet: policy.Packet{Source: p.Source, Destination: p.Destination, Protocol: p.Protocol, SourcePort: p.SourcePort,
		DestinationPort: p.DestinationPort, ICMPType: p.Type, ICMPCode: p.Code}}
	f.In, f.Out = endpointAt(c, m, p.In), endpointAt(c, m, p.Out)
	switch {
	case p.In == "":
		f.Way = policy.Sent
	case p.Out == "":
		f.Way = policy.Received
	}
	w := m.Walk(f)
	return Judgement{w.Verdict == api.Allow, "the model"}, w
}

// endpointAt finds the endpoint of a device in the model, as one who reads models has to.
func endpointAt(c *Cluster, m policy.Model, dev string) *policy.Endpoint {
	var found *policy.Endpoint
	rank := func(e *policy.Endpoint) int {
		switch {
		case e.Key.Kind == policy.Workload != workloadDevice(dev):
			return 0
		case e.Interface == dev:
			return 3
		case e.Interface == "" && slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return slices.Contains(c.Host.Devices[dev], a) }):
			return 2
		case e.Interface == "*":
			return 1
		}
		return 0
	}
	best := 0
	for _, e := range m.Endpoints {
		if r := rank(e); dev != "" && r > best {
			found, best = e, r
		}
	}
	return found
}

// ByPolicy tells whether policy alone decides of a packet: a model knows nothing of what is denied or open whatever policy says.
func ByPolicy(c *Cluster, p Packet) bool {
	if workloadDevice(p.In) {
		w := c.workloadAt(p.In)
		if w == nil || !maySendFrom(w, p.Source) || p.Protocol == udp && p.DestinationPort == vxlanPort || p.Out == "" && c.Host.ToHost == api.Deny {
			return false
		}
	}
	if workloadDevice(p.Out) {
		return c.workloadAt(p.Out) != nil
	}
	open := Failsafe{p.Protocol, p.DestinationPort}
	return !slices.Contains(c.Host.FailIn, open) && !slices.Contains(c.Host.FailOut, open)
}
