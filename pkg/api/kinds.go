package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// EncapMode says when a pool's traffic is encapsulated.
type EncapMode string

// The encapsulation modes of an IPPool.
const (
	Never       EncapMode = "Never"
	Always      EncapMode = "Always"
	CrossSubnet EncapMode = "CrossSubnet"
)

// Use is a purpose that a pool's addresses may serve.
type Use string

// The uses of an IPPool.
const (
	UseWorkload     Use = "Workload"
	UseTunnel       Use = "Tunnel"
	UseLoadBalancer Use = "LoadBalancer"
)

// The assignment modes of an IPPool: Automatic pools serve anyone they select, Manual ones only those who name them.
const (
	AssignAutomatic = "Automatic"
	AssignManual    = "Manual"
)

// IPPool is a range of addresses and how traffic to and from them is carried.
type IPPool struct {
	Header
	Spec IPPoolSpec `json:"spec"`
}

// IPPoolSpec holds the fields of an IPPool. CIDR and BlockSize are immutable.
type IPPoolSpec struct {
	CIDR              netip.Prefix `json:"cidr"`
	VXLANMode         EncapMode    `json:"vxlanMode,omitempty"`
	IPIPMode          EncapMode    `json:"ipipMode,omitempty"`
	NATOutgoing       bool         `json:"natOutgoing,omitempty"`
	Disabled          bool         `json:"disabled,omitempty"` // no new allocations; existing ones stay
	DisableBGPExport  bool         `json:"disableBGPExport,omitempty"`
	BlockSize         int          `json:"blockSize,omitempty"`    // prefix length of a block
	NodeSelector      string       `json:"nodeSelector,omitempty"` // over node labels
	NamespaceSelector string       `json:"namespaceSelector,omitempty"`
	AllowedUses       []Use        `json:"allowedUses,omitempty"`
	AssignmentMode    string       `json:"assignmentMode,omitempty"`
}

// KindOf describes IPPool.
func (*IPPool) KindOf() Kind { return Kind{"IPPool", "ippools", false} }

// Default fills the fields that older writers omit.
func (p *IPPool) Default() {
	s := &p.Spec
	setDefault(&s.VXLANMode, Never)
	setDefault(&s.IPIPMode, Never)
	setDefault(&s.NodeSelector, "all()")
	setDefault(&s.AssignmentMode, AssignAutomatic)
	if s.BlockSize == 0 && s.CIDR.IsValid() {
		s.BlockSize = 26
		if s.CIDR.Addr().Is6() {
			s.BlockSize = 122
		}
	}
	if len(s.AllowedUses) == 0 {
		s.AllowedUses = []Use{UseWorkload, UseTunnel}
	}
}

// Check reports why a stored pool cannot be used: a reader skips such a pool and goes on with the others.
func (p *IPPool) Check() error {
	s := p.Spec
	if !s.CIDR.IsValid() {
		return fmt.Errorf("spec.cidr: must be specified")
	}
	if s.CIDR != s.CIDR.Masked() {
		return fmt.Errorf("spec.cidr: %v has host bits set; did you mean %v?", s.CIDR, s.CIDR.Masked())
	}
	lo, hi := 20, 32
	if s.CIDR.Addr().Is6() {
		lo, hi = 116, 128
	}
	if s.BlockSize < lo || s.BlockSize > hi {
		return fmt.Errorf("spec.blockSize: %d is not between %d and %d", s.BlockSize, lo, hi)
	}
	if s.BlockSize < s.CIDR.Bits() && !s.Disabled {
		return fmt.Errorf("spec.blockSize: a /%d block does not fit into %v", s.BlockSize, s.CIDR)
	}
	return nil
}

// Allows reports whether the pool's addresses may serve the use.
func (p *IPPool) Allows(u Use) bool { return slices.Contains(p.Spec.AllowedUses, u) }

// Node is one host.
type Node struct {
	Header
	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status"`
}

// NodeSpec holds a host's addresses and BGP settings.
type NodeSpec struct {
	BGP                 *NodeBGP        `json:"bgp,omitempty"` // nil: no addresses known yet
	IPv4VXLANTunnelAddr netip.Addr      `json:"ipv4VXLANTunnelAddr,omitzero"`
	IPv6VXLANTunnelAddr netip.Addr      `json:"ipv6VXLANTunnelAddr,omitzero"`
	VXLANTunnelMACAddr  string          `json:"vxlanTunnelMACAddr,omitempty"` // overrides the derived MAC
	VXLANTunnelMACAddr6 string          `json:"vxlanTunnelMACAddrV6,omitempty"`
	OrchRefs            []OrchRef       `json:"orchRefs,omitempty"`
	Addresses           []NodeAddress   `json:"addresses,omitempty"`
	Interfaces          []NodeInterface `json:"interfaces,omitempty"`
}

// NodeBGP holds the addresses by which other nodes reach this one, with the prefix length of their subnet.
type NodeBGP struct {
	ASNumber                *uint32    `json:"asNumber,omitempty"` // nil: the cluster's
	IPv4Address             Prefix     `json:"ipv4Address,omitzero"`
	IPv6Address             Prefix     `json:"ipv6Address,omitzero"`
	IPv4IPIPTunnelAddr      netip.Addr `json:"ipv4IPIPTunnelAddr,omitzero"`
	RouteReflectorClusterID string     `json:"routeReflectorClusterID,omitempty"`
}

// OrchRef ties the node to an orchestrator's name for it.
type OrchRef struct {
	NodeName     string `json:"nodeName,omitempty"`
	Orchestrator string `json:"orchestrator"`
}

// NodeAddress is an address of the node; Type is CalicoNodeIP, InternalIP or ExternalIP.
type NodeAddress struct {
	Address string `json:"address"`
	Type    string `json:"type,omitempty"`
}

// NodeInterface is a network interface of the node and its addresses.
type NodeInterface struct {
	Name      string   `json:"name,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// NodeStatus holds what the node itself reports; unknown fields survive.
type NodeStatus struct{}

// KindOf describes Node.
func (*Node) KindOf() Kind { return Kind{"Node", "nodes", false} }

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

// WorkloadEndpoint is a pod's (or container's) attachment to the network.
type WorkloadEndpoint struct {
	Header
	Spec WorkloadEndpointSpec `json:"spec"`
}

// WorkloadEndpointSpec holds the fields of a WorkloadEndpoint.
type WorkloadEndpointSpec struct {
	Orchestrator       string   `json:"orchestrator,omitempty"` // k8s or cni
	Workload           string   `json:"workload,omitempty"`
	Node               string   `json:"node,omitempty"`
	ContainerID        string   `json:"containerID,omitempty"`
	Pod                string   `json:"pod,omitempty"`
	Endpoint           string   `json:"endpoint,omitempty"` // the pod's interface: eth0
	ServiceAccountName string   `json:"serviceAccountName,omitempty"`
	IPNetworks         []Prefix `json:"ipNetworks,omitempty"` // /32 and /128 only
	IPNATs             []IPNAT  `json:"ipNATs,omitempty"`
	IPv4Gateway        string   `json:"ipv4Gateway,omitempty"`
	IPv6Gateway        string   `json:"ipv6Gateway,omitempty"`
	Profiles           []string `json:"profiles,omitempty"`
	InterfaceName      string   `json:"interfaceName,omitempty"` // the host's side of the veth pair
	MAC                string   `json:"mac,omitempty"`           // of the pod's side
	Ports              []WEPort `json:"ports,omitempty"`
	AllowSpoofed       []string `json:"allowSpoofedSourcePrefixes,omitempty"`
}

// IPNAT maps an address from outside to one of the endpoint's.
type IPNAT struct {
	InternalIP string `json:"internalIP"`
	ExternalIP string `json:"externalIP"`
}

// WEPort is a named or host port of a workload.
type WEPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
	HostPort uint16 `json:"hostPort"`
	HostIP   string `json:"hostIP"`
}

// KindOf describes WorkloadEndpoint.
func (*WorkloadEndpoint) KindOf() Kind { return Kind{"WorkloadEndpoint", "workloadendpoints", true} }

// Labels that every stored WorkloadEndpoint carries.
const (
	LabelNamespace    = "projectcalico.org/namespace"
	LabelOrchestrator = "projectcalico.org/orchestrator"
)

// WorkloadEndpointName is the name that the endpoint's identifiers prescribe:
// node, orchestrator, pod (or container ID) and interface joined by dashes, with every dash inside a part doubled.
func WorkloadEndpointName(s WorkloadEndpointSpec) string {
	id := s.Pod
	if s.Orchestrator != "k8s" {
		id = s.ContainerID
	}
	return endpointNamePrefix(s.Node, s.Orchestrator, id) + dashes(s.Endpoint)
}

func endpointNamePrefix(node, orchestrator, id string) string {
	return dashes(node) + "-" + dashes(orchestrator) + "-" + dashes(id) + "-"
}

func dashes(s string) string { return strings.ReplaceAll(s, "-", "--") }

// ClusterInformation is the one object that describes the cluster.
type ClusterInformation struct {
	Header
	Spec ClusterInformationSpec `json:"spec"`
}

// ClusterInformationSpec holds the cluster's identity and the ready flag.
type ClusterInformationSpec struct {
	ClusterGUID    string `json:"clusterGUID,omitempty"` // 32 hex digits
	ClusterType    string `json:"clusterType,omitempty"` // comma-separated set
	CalicoVersion  string `json:"calicoVersion,omitempty"`
	DatastoreReady *bool  `json:"datastoreReady,omitempty"` // false: migration under way, hands off
	Variant        string `json:"variant,omitempty"`
}

// KindOf describes ClusterInformation.
func (*ClusterInformation) KindOf() Kind {
	return Kind{"ClusterInformation", "clusterinformations", false}
}

// Ready reports whether components may work on the datastore. A missing flag means no.
func (c *ClusterInformation) Ready() bool {
	return c.Spec.DatastoreReady != nil && *c.Spec.DatastoreReady
}

// FelixConfiguration holds the agent's settings: name "default" for all nodes, "node.<name>" for one.
type FelixConfiguration struct {
	Header
	Spec FelixConfigurationSpec `json:"spec"`
}

// FelixConfigurationSpec holds the settings that the agent reads; other fields survive as unknown. nil means not set.
type FelixConfigurationSpec struct {
	IPv6Support                    *bool   `json:"ipv6Support,omitempty"`
	DefaultEndpointToHostAction    string  `json:"defaultEndpointToHostAction,omitempty"`
	LogSeverityScreen              string  `json:"logSeverityScreen,omitempty"`
	IPIPEnabled                    *bool   `json:"ipipEnabled,omitempty"`
	IPIPMTU                        *int    `json:"ipipMTU,omitempty"`
	VXLANEnabled                   *bool   `json:"vxlanEnabled,omitempty"`
	VXLANMTU                       *int    `json:"vxlanMTU,omitempty"`
	VXLANMTUV6                     *int    `json:"vxlanMTUV6,omitempty"`
	VXLANPort                      *int    `json:"vxlanPort,omitempty"`
	VXLANVNI                       *int    `json:"vxlanVNI,omitempty"`
	MTUIfacePattern                string  `json:"mtuIfacePattern,omitempty"`
	IptablesBackend                string  `json:"iptablesBackend,omitempty"`
	NATOutgoingExclusions          string  `json:"natOutgoingExclusions,omitempty"`
	ReportingInterval              *string `json:"reportingInterval,omitempty"`
	NFTablesMode                   string  `json:"nftablesMode,omitempty"`
	BPFLogLevel                    string  `json:"bpfLogLevel"`
	BPFConnectTimeLoadBalancing    string  `json:"bpfConnectTimeLoadBalancing,omitempty"`
	BPFHostNetworkedNATWithoutCTLB string  `json:"bpfHostNetworkedNATWithoutCTLB,omitempty"`
	FloatingIPs                    string  `json:"floatingIPs,omitempty"`
}

// KindOf describes FelixConfiguration.
func (*FelixConfiguration) KindOf() Kind {
	return Kind{"FelixConfiguration", "felixconfigurations", false}
}

// Default fills the fields that Calico's schema fills on every write.
func (f *FelixConfiguration) Default() {
	setDefault(&f.Spec.NFTablesMode, "Auto")
	setDefault(&f.Spec.BPFConnectTimeLoadBalancing, "TCP")
	setDefault(&f.Spec.BPFHostNetworkedNATWithoutCTLB, "Enabled")
	setDefault(&f.Spec.FloatingIPs, "Disabled")
}

// Profile is a set of rules and labels that endpoints name.
type Profile struct {
	Header
	Spec ProfileSpec `json:"spec"`
}

// ProfileSpec holds the fields of a Profile.
type ProfileSpec struct {
	Ingress       []Rule            `json:"ingress,omitempty"`
	Egress        []Rule            `json:"egress,omitempty"`
	LabelsToApply map[string]string `json:"labelsToApply,omitempty"`
}

// Rule is a policy rule. Only the parts that the network's own profile needs are typed; the rest survives as unknown.
type Rule struct {
	Action      string     `json:"action"`
	Source      EntityRule `json:"source"`
	Destination EntityRule `json:"destination"`
}

// EntityRule says which side of a packet a rule looks at.
type EntityRule struct {
	Selector string `json:"selector,omitempty"`
}

// KindOf describes Profile.
func (*Profile) KindOf() Kind { return Kind{"Profile", "profiles", false} }

// Tier groups policies.
type Tier struct {
	Header
	Spec   TierSpec   `json:"spec"`
	Status TierStatus `json:"status"`
}

// TierSpec holds the fields of a Tier. A nil order sorts last.
type TierSpec struct {
	Order         *float64 `json:"order,omitempty"`
	DefaultAction string   `json:"defaultAction,omitempty"` // Deny or Pass
}

// TierStatus is empty today; unknown fields survive.
type TierStatus struct{}

// KindOf describes Tier.
func (*Tier) KindOf() Kind { return Kind{"Tier", "tiers", false} }

// Prefix is an address with a prefix length. A bare address reads as a single host. Host bits are kept.
type Prefix struct{ netip.Prefix }

// HostPrefix is a as a single-host prefix: /32 or /128.
func HostPrefix(a netip.Addr) Prefix { return Prefix{netip.PrefixFrom(a, a.BitLen())} }

// UnmarshalText reads "a.b.c.d/n" or a bare address; the empty string is the zero Prefix.
func (p *Prefix) UnmarshalText(b []byte) error {
	s := string(b)
	if s == "" {
		*p = Prefix{}
		return nil
	}
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		*p = HostPrefix(a)
		return nil
	}
	n, err := netip.ParsePrefix(s)
	if err != nil {
		return err
	}
	*p = Prefix{n}
	return nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
