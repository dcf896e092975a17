package policyjudge

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// matches tells whether a packet satisfies all fields of a rule.
func (c *Cluster) matches(r *api.Rule, namespace string, p Packet) bool {
	if r.IPVersion != nil && (*r.IPVersion == 4) != p.Source.Is4() {
		return false
	}
	if namesOtherFamily(r, p.Source) {
		return false
	}
	if r.Protocol != nil && number(*r.Protocol) != p.Protocol {
		return false
	}
	if r.NotProtocol != nil && number(*r.NotProtocol) == p.Protocol {
		return false
	}
	if r.ICMP != nil && !isKind(r.ICMP, p) || r.NotICMP != nil && isKind(r.NotICMP, p) {
		return false
	}
	return c.matchesEnd(&r.Source, namespace, Socket{p.Source, p.Protocol, p.SourcePort}, false) &&
		c.matchesEnd(&r.Destination, namespace, Socket{p.Destination, p.Protocol, p.DestinationPort}, true)
}

// namesOtherFamily tells whether a rule names nets of the other family than an address's, be it in the negative: such a rule is for that family alone
// (https://github.com/projectcalico/felix/issues/1212).
func namesOtherFamily(r *api.Rule, a netip.Addr) bool {
	nets := slices.Concat(r.Source.Nets, r.Source.NotNets, r.Destination.Nets, r.Destination.NotNets)
	return slices.ContainsFunc(nets, func(n string) bool { return strings.Contains(n, ":") == a.Is4() })
}

func isKind(k *api.ICMP, p Packet) bool {
	return (k.Type == nil || *k.Type == int(p.Type)) && (k.Code == nil || *k.Code == int(p.Code))
}

func number(p api.Protocol) uint8 {
	switch p.Name {
	case "TCP":
		return tcp
	case "UDP":
		return udp
	case "ICMP":
		return icmp
	case "ICMPv6":
		return icmp6
	case "SCTP":
		return sctp
	case "UDPLite":
		return udplite
	}
	return p.Number
}

// matchesEnd tells whether one end of a packet's way is as a rule wants it.
func (c *Cluster) matchesEnd(e *api.EntityRule, namespace string, end Socket, destination bool) bool {
	if len(e.Nets) > 0 && !inAny(e.Nets, end.Addr) {
		return false
	}
	if inAny(e.NotNets, end.Addr) {
		return false
	}
	if selectsSomething(e, namespace) && !c.anyHas(end.Addr, func(m *member) bool { return selected(e, namespace, m) }) {
		return false
	}
	if e.NotSelector != "" && c.anyHas(end.Addr, func(m *member) bool { return satisfies(m.labels, "", e.NotSelector) }) {
		return false
	}
	if e.Services != nil && !c.inService(e.Services, namespace, end, destination) {
		return false
	}
	if len(e.Ports) > 0 && !c.inPorts(e, e.Ports, namespace, end) {
		return false
	}
	return !c.inPorts(e, e.NotPorts, namespace, end)
}

func inAny(nets []string, a netip.Addr) bool {
	return slices.ContainsFunc(nets, func(n string) bool {
		if !strings.Contains(n, "/") {
			return netip.MustParseAddr(n) == a
		}
		return netip.MustParsePrefix(n).Contains(a)
	})
}

// selectsSomething tells whether a rule wants its end to be one that it selects.
func selectsSomething(e *api.EntityRule, namespace string) bool {
	return e.Selector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil || e.NotSelector != "" && namespace != ""
}

// selected tells whether a rule of a policy in some namespace (or none) selects something. Without a namespace selector, a policy of a namespace selects from its own
// alone.
func selected(e *api.EntityRule, namespace string, m *member) bool {
	if e.NamespaceSelector == "" && namespace != "" && m.labels[api.LabelNamespace] != namespace {
		return false
	}
	if !inNamespaces(m.labels, e.NamespaceSelector) || !satisfies(m.labels, "", e.Selector) {
		return false
	}
	a := e.ServiceAccounts
	switch {
	case a == nil:
		return true
	case len(a.Names) > 0 && !slices.Contains(a.Names, m.account):
		return false
	}
	return a.Selector == "" || ofAccount(m.labels, a.Selector)
}

// inPorts tells whether an end's port is one of those. A name stands for the ports that endpoints have under it, of those that the rule selects if it selects.
func (c *Cluster) inPorts(e *api.EntityRule, ports []api.Port, namespace string, end Socket) bool {
	return slices.ContainsFunc(ports, func(port api.Port) bool {
		if port.Name == "" {
			return port.Min <= end.Port && end.Port <= port.Max
		}
		return c.anyHas(end.Addr, func(m *member) bool {
			return m.hasPort(port.Name, end) && (!selectsSomething(e, namespace) || selected(e, namespace, m))
		})
	})
}

// inService tells whether an end is one of a service's: as destination with protocol and port, as source by its address alone.
func (c *Cluster) inService(s *api.ServiceMatch, namespace string, end Socket, destination bool) bool {
	in := s.Namespace
	if in == "" {
		in = namespace
	}
	for _, service := range c.Services {
		if service.Namespace != in || service.Name != s.Name {
			continue
		}
		return slices.ContainsFunc(service.Members, func(m Socket) bool {
			return m == end || !destination && m.Addr == end.Addr
		})
	}
	return false
}
