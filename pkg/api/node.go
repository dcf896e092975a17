package api

import "net/netip"

// Node is one host.
type Node struct {
	Header
	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status"`
}

// NodeSpec holds a host's addresses and BGP settings.
type NodeSpec struct {
	BGP                 *NodeBGP        `json:"bgp,omitempty"` // nil: no addresses known yet
	IPv4VXLANTunnelAddr netip.Addr      `json:"ipv4VXLANTunnelAddr,omitzero" want:"ip4"`
	VXLANTunnelMACAddr  string          `json:"vxlanTunnelMACAddr,omitempty" want:"mac"` // overrides the derived MAC
	IPv6VXLANTunnelAddr netip.Addr      `json:"ipv6VXLANTunnelAddr,omitzero" want:"ip6"`
	VXLANTunnelMACAddr6 string          `json:"vxlanTunnelMACAddrV6,omitempty" want:"mac"`
	OrchRefs            []OrchRef       `json:"orchRefs,omitempty"`
	Wireguard           *NodeWireguard  `json:"wireguard,omitempty"`
	Addresses           []NodeAddress   `json:"addresses,omitempty"`
	Interfaces          []NodeInterface `json:"interfaces,omitempty"`
}

// NodeBGP holds the addresses by which other nodes reach this one, with the prefix length of their subnet.
type NodeBGP struct {
	ASNumber                *ASN       `json:"asNumber,omitempty"` // nil: the cluster's
	IPv4Address             Prefix     `json:"ipv4Address,omitzero"`
	IPv6Address             Prefix     `json:"ipv6Address,omitzero"`
	IPv4IPIPTunnelAddr      netip.Addr `json:"ipv4IPIPTunnelAddr,omitzero" want:"ip4"`
	RouteReflectorClusterID string     `json:"routeReflectorClusterID,omitempty" want:"ip4"` // not "": the node is a route reflector
}

// NodeWireguard holds the addresses of a node's WireGuard interfaces.
type NodeWireguard struct {
	InterfaceIPv4Address netip.Addr `json:"interfaceIPv4Address,omitzero" want:"ip4"`
	InterfaceIPv6Address netip.Addr `json:"interfaceIPv6Address,omitzero" want:"ip6"`
}

// OrchRef ties the node to an orchestrator's name for it.
type OrchRef struct {
	NodeName     string `json:"nodeName,omitempty"`
	Orchestrator string `json:"orchestrator" want:"required"`
}

// NodeAddress is an address of the node.
type NodeAddress struct {
	Address string `json:"address" want:"required; cidr"`
	Type    string `json:"type,omitempty" want:"oneof CalicoNodeIP InternalIP ExternalIP"`
}

// NodeInterface is a network interface of the node and its addresses.
type NodeInterface struct {
	Name      string   `json:"name,omitempty"`
	Addresses []string `json:"addresses,omitempty" want:"cidr"`
}

// NodeStatus holds what the node itself reports; unknown fields survive.
type NodeStatus struct {
	WireguardPublicKey   string   `json:"wireguardPublicKey,omitempty"`
	WireguardPublicKeyV6 string   `json:"wireguardPublicKeyV6,omitempty"`
	PodCIDRs             []string `json:"podCIDRs,omitempty" want:"net"`
}

// KindOf describes Node.
func (*Node) KindOf() Kind {
	return Kind{Name: "Node", Plural: "nodes", Aliases: "no nos"}
}

// Address returns the node's address of the family with its subnet; ok is false when it has none. An address that stands in the
// field of the other family counts for none.
func (n *Node) Address(v6 bool) (p netip.Prefix, ok bool) {
	if n.Spec.BGP == nil {
		return netip.Prefix{}, false
	}
	p = n.Spec.BGP.IPv4Address.Prefix
	if v6 {
		p = n.Spec.BGP.IPv6Address.Prefix
	}
	return p, p.IsValid() && p.Addr().Is6() == v6
}

func (n *Node) validate(c *checker) {
	b := n.Spec.BGP
	if b == nil {
		return
	}
	if *b == (NodeBGP{}) {
		c.add("spec.bgp", nil, "Spec.BGP should not be empty")
	}
	if p := b.IPv4Address; p.IsValid() && !p.Addr().Is4() {
		c.add("spec.bgp.ipv4Address", p, "must be an IPv4 address with the prefix length of its subnet")
	}
	if p := b.IPv6Address; p.IsValid() && !p.Addr().Is6() {
		c.add("spec.bgp.ipv6Address", p, "must be an IPv6 address with the prefix length of its subnet")
	}
}
