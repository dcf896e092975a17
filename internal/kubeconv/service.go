package kubeconv

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/muslin-cni/muslin/internal/policy"
)

// protocolNumber is a service's protocol (IANA, Protocol Numbers); 0 if it is none that services have. nil is TCP.
func protocolNumber(p *corev1.Protocol) uint8 {
	if p == nil || *p == "" {
		return tcp
	}
	return map[corev1.Protocol]uint8{corev1.ProtocolTCP: tcp, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}[*p]
}

const tcp = 6

// ServiceMembers is where a service's endpoints are, for rules that match it, by all slices of the service. Endpoints that are not ready count:
// readiness says who is sent new connections, and not who the service is. A service without ports has its endpoints at port 0, which
// no packet has, so that rules for its addresses find them.
func ServiceMembers(of []*discoveryv1.EndpointSlice) (out []policy.PortMember) {
	for _, s := range of {
		ports := memberPorts(s.Ports)
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				if err != nil { // a slice of names
					continue
				}
				for _, p := range ports {
					p.Addr = a.Unmap()
					out = append(out, p)
				}
			}
		}
	}
	slices.SortFunc(out, comparePorts)
	return slices.Compact(out)
}

func memberPorts(of []discoveryv1.EndpointPort) (out []policy.PortMember) {
	for _, p := range of {
		number := protocolNumber(p.Protocol)
		if number != 0 && p.Port != nil && isPort(*p.Port) {
			out = append(out, policy.PortMember{Protocol: number, Port: uint16(*p.Port)})
		}
	}
	if len(out) == 0 {
		out = []policy.PortMember{{Protocol: tcp}}
	}
	return out
}

func comparePorts(p, q policy.PortMember) int {
	if c := p.Addr.Compare(q.Addr); c != 0 {
		return c
	}
	if p.Protocol != q.Protocol {
		return int(p.Protocol) - int(q.Protocol)
	}
	return int(p.Port) - int(q.Port)
}

// IsLocal reports whether a slice has an endpoint on the node that new connections may be sent to.
func IsLocal(s *discoveryv1.EndpointSlice, node string) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready // nil: to be taken for ready
		return ready && e.NodeName != nil && *e.NodeName == node
	})
}
