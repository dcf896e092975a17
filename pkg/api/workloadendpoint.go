package api

import (
	"fmt"
	"net/netip"
	"strings"
)

// WorkloadEndpoint is a pod's (or container's) attachment to the network.
type WorkloadEndpoint struct {
	Header
	Spec WorkloadEndpointSpec `json:"spec"`
}

// WorkloadEndpointSpec holds the fields of a WorkloadEndpoint.
type WorkloadEndpointSpec struct {
	Orchestrator       string       `json:"orchestrator,omitempty" want:"required"` // k8s or cni
	Workload           string       `json:"workload,omitempty"`
	Node               string       `json:"node,omitempty" want:"required; subdomain"`
	ContainerID        string       `json:"containerID,omitempty"`
	Pod                string       `json:"pod,omitempty"`
	Endpoint           string       `json:"endpoint,omitempty" want:"required"` // the pod's interface: eth0
	ServiceAccountName string       `json:"serviceAccountName,omitempty"`
	IPNetworks         []Prefix     `json:"ipNetworks,omitempty"` // /32 and /128 only
	IPNATs             []IPNAT      `json:"ipNATs,omitempty"`
	IPv4Gateway        string       `json:"ipv4Gateway,omitempty" want:"ip4"`
	IPv6Gateway        string       `json:"ipv6Gateway,omitempty" want:"ip6"`
	Profiles           []string     `json:"profiles,omitempty"`
	InterfaceName      string       `json:"interfaceName,omitempty" want:"required; ifname"` // the host's side of the veth pair
	MAC                string       `json:"mac,omitempty" want:"mac"`                        // of the pod's side
	Ports              []WEPort     `json:"ports,omitempty"`
	AllowSpoofed       []string     `json:"allowSpoofedSourcePrefixes,omitempty" want:"cidr"`
	QoSControls        *QoSControls `json:"qosControls,omitempty"`
}

// QoSControls limits an endpoint's traffic. Zero is no limit. Bandwidth and peak rates are bits a second, bursts bits; packet
// rates packets a second; seen from the pod: ingress goes to it.
type QoSControls struct {
	IngressBandwidth      int64  `json:"ingressBandwidth,omitempty"`
	EgressBandwidth       int64  `json:"egressBandwidth,omitempty"`
	IngressBurst          int64  `json:"ingressBurst,omitempty"`
	EgressBurst           int64  `json:"egressBurst,omitempty"`
	IngressPeakrate       int64  `json:"ingressPeakrate,omitempty"`
	EgressPeakrate        int64  `json:"egressPeakrate,omitempty"`
	IngressMinburst       int64  `json:"ingressMinburst,omitempty"`
	EgressMinburst        int64  `json:"egressMinburst,omitempty"`
	IngressPacketRate     int64  `json:"ingressPacketRate,omitempty"`
	EgressPacketRate      int64  `json:"egressPacketRate,omitempty"`
	IngressPacketBurst    int64  `json:"ingressPacketBurst,omitempty"`
	EgressPacketBurst     int64  `json:"egressPacketBurst,omitempty"`
	IngressMaxConnections int64  `json:"ingressMaxConnections,omitempty"`
	EgressMaxConnections  int64  `json:"egressMaxConnections,omitempty"`
	DSCP                  *uint8 `json:"dscp,omitempty" want:"range 0 63"` // nil: left as it is
}

// AnnotationPluginLimits says which bandwidths among an endpoint's QoSControls the plugin bandwidth keeps, so that nobody else has to: "egress", "ingress", or both
// with a comma between them.
const AnnotationPluginLimits = "muslin-cni/bandwidth-plugin"

// IPNAT maps an address from outside to one of the endpoint's.
type IPNAT struct {
	InternalIP string `json:"internalIP" want:"required; ip"`
	ExternalIP string `json:"externalIP" want:"required; ip"`
}

// WEPort is a named or host port of a workload.
type WEPort struct {
	Name     string   `json:"name"`
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
	HostPort uint16   `json:"hostPort"`
	HostIP   string   `json:"hostIP" want:"ip"`
}

// KindOf describes WorkloadEndpoint.
func (*WorkloadEndpoint) KindOf() Kind {
	return Kind{Name: "WorkloadEndpoint", Plural: "workloadendpoints", Namespaced: true, Aliases: "wep weps"}
}

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

// toStored adds the labels by which selectors find the endpoint's namespace and orchestrator.
func (w *WorkloadEndpoint) toStored() {
	m := &w.Metadata
	if m.Namespace != "" {
		m.Labels = set(m.Labels, LabelNamespace, m.Namespace)
	}
	if w.Spec.Orchestrator != "" {
		m.Labels = set(m.Labels, LabelOrchestrator, w.Spec.Orchestrator)
	}
}

func (*WorkloadEndpoint) fromStored() {}

func (w *WorkloadEndpoint) validate(c *checker) {
	s := w.Spec
	if want := WorkloadEndpointName(s); w.Metadata.Name != want {
		c.add("metadata.name", w.Metadata.Name,
			"the WorkloadEndpoint name does not match the primary identifiers assigned in the Spec: expected name %s", want)
	}
	for i, p := range s.IPNetworks {
		if !p.IsValid() || !p.IsSingleIP() {
			c.add(fmt.Sprintf("spec.ipNetworks[%d]", i), p, "must be a single address, with /32 or /128 or without")
		}
	}
	for i, n := range s.IPNATs {
		inner, err := netip.ParseAddr(n.InternalIP)
		if err == nil && !s.has(inner) {
			c.add(fmt.Sprintf("spec.ipNATs[%d].internalIP", i), n.InternalIP, "must be one of the endpoint's ipNetworks")
		}
	}
	for i, p := range s.Ports {
		p.check(c, fmt.Sprintf("spec.ports[%d]", i))
	}
}

func (s WorkloadEndpointSpec) has(a netip.Addr) bool {
	for _, p := range s.IPNetworks {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (p WEPort) check(c *checker, path string) {
	checkTransport(c, path+".protocol", &p.Protocol)
	switch {
	case p.Name == "" && p.HostPort == 0:
		c.add(path+".name", nil, "must be specified, but for a port with hostPort")
	case p.Name != "" && !isPortName(p.Name):
		c.add(path+".name", p.Name, "the name of a port is at most 128 letters, digits and any of _ . -")
	}
	if p.Port == 0 {
		c.add(path+".port", p.Port, "must be between 1 and 65535")
	}
}

// checkTransport checks that a protocol has ports.
func checkTransport(c *checker, path string, p *Protocol) {
	if !isTransport(p) {
		c.add(path, p, "supported values: %s", quoted([]string{"TCP", "UDP", "SCTP"}))
	}
}

func isTransport(p *Protocol) bool {
	return p != nil && (p.Is("TCP") || p.Is("UDP") || p.Is("SCTP"))
}
