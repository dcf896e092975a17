package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// endpointOf describes an endpoint of a node, without its lists; nil if the object is not one.
func endpointOf(o api.Object, node string) *Endpoint {
	switch v := o.(type) {
	case *api.WorkloadEndpoint:
		if v.Spec.Node == node {
			return workload(v)
		}
	case *api.HostEndpoint:
		if v.Spec.Node == node {
			return hostEndpoint(v)
		}
	}
	return nil
}

func workload(w *api.WorkloadEndpoint) *Endpoint {
	e := &Endpoint{
		Key:       EndpointKey{Workload, w.Metadata.Namespace, w.Metadata.Name},
		Interface: w.Spec.InterfaceName, Limits: limitsOf(w),
	}
	for _, p := range w.Spec.IPNetworks {
		if p.IsValid() && p.IsSingleIP() {
			e.Addrs = append(e.Addrs, p.Addr().Unmap())
		}
	}
	for _, text := range w.Spec.AllowSpoofed {
		if p, ok := parseNet(text); ok {
			e.Spoofable = append(e.Spoofable, p)
		}
	}
	for _, p := range w.Spec.Ports {
		if port, ok := namedPort(p.Name, p.Protocol, p.Port); ok {
			e.Ports = append(e.Ports, port)
		}
	}
	e.sort()
	return e
}

func hostEndpoint(h *api.HostEndpoint) *Endpoint {
	e := &Endpoint{Key: EndpointKey{Kind: Host, Name: h.Metadata.Name}, Interface: h.Spec.InterfaceName, Addrs: expectedAddrs(h)}
	for _, p := range h.Spec.Ports {
		if port, ok := namedPort(p.Name, p.Protocol, p.Port); ok {
			e.Ports = append(e.Ports, port)
		}
	}
	e.sort()
	return e
}

func (e *Endpoint) sort() {
	slices.SortFunc(e.Addrs, netip.Addr.Compare)
	e.Addrs = slices.Compact(e.Addrs)
	slices.SortFunc(e.Spoofable, netip.Prefix.Compare)
	e.Spoofable = slices.Compact(e.Spoofable)
	slices.SortFunc(e.Ports, NamedPort.compare)
	e.Ports = slices.Compact(e.Ports)
}

// equal reports whether both say the same.
func (e *Endpoint) equal(o *Endpoint) bool {
	if e == nil || o == nil {
		return e == o
	}
	return e.Key == o.Key && e.Interface == o.Interface && e.Limits == o.Limits && e.lists() == o.lists() &&
		slices.Equal(e.Addrs, o.Addrs) && slices.Equal(e.Spoofable, o.Spoofable) && slices.Equal(e.Ports, o.Ports)
}

// lists are all lists of the endpoint, some of them "".
func (e *Endpoint) lists() [7]ListID {
	return [...]ListID{
		e.Ingress, e.Egress, e.ForwardIngress, e.ForwardEgress, e.UntrackedIngress, e.UntrackedEgress, e.PreDNAT,
	}
}

// problemsOf says what of an endpoint of this node, or of a network set, cannot be read.
func problemsOf(o api.Object, node string) (out []Problem) {
	say := func(format string, args ...any) { out = append(out, Problem{nameOf(o), fmt.Sprintf(format, args...)}) }
	switch v := o.(type) {
	case *api.WorkloadEndpoint:
		if v.Spec.Node != node {
			return nil
		}
		for i, p := range v.Spec.IPNetworks {
			if !p.IsValid() || !p.IsSingleIP() {
				say("spec.ipNetworks[%d]: %v is not a single address and is ignored; re-create the pod", i, p)
			}
		}
		ignoredNets("allowSpoofedSourcePrefixes", v.Spec.AllowSpoofed, say)
		oddLimits(v.Spec.QoSControls, say)
	case *api.HostEndpoint:
		if v.Spec.Node == node && len(expectedAddrs(v)) < len(v.Spec.ExpectedIPs) {
			say("spec.expectedIPs: %q are not all addresses; what is none is ignored", v.Spec.ExpectedIPs)
		}
	case *api.NetworkSet:
		ignoredNets("nets", v.Spec.Nets, say)
	case *api.GlobalNetworkSet:
		ignoredNets("nets", v.Spec.Nets, say)
	}
	return out
}

func ignoredNets(field string, nets []string, say func(string, ...any)) {
	for i, text := range nets {
		if _, ok := parseNet(text); !ok {
			say("spec.%s[%d]: %q is neither an address nor a range and is ignored", field, i, text)
		}
	}
}
