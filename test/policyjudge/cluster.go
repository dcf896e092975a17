// Package policyjudge judges packets by the documented semantics of policy, apart from the compiler and from nftables, and holds both against
// its judgement on random clusters and packets.
//
// The evaluator (evaluate.go, rules.go, members.go) reads like the documentation: from the resources themselves, every time anew, with no index
// and nothing shared with internal/policy but the selector language. It is the reference; where it is wrong, so is what it is
// compared with, unless they disagree. generate.go makes clusters and packets of small alphabets, so that things collide, and
// shrink.go makes what they disagree about small. The tests compare three judges: the evaluator, the compiled model as it is walked (by the oracle
// and by the engine), and the kernel.
package policyjudge

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Cluster is all that policy depends on, seen from one node.
type Cluster struct {
	Node     string
	Objects  []api.Object // with defaults set
	Services []Service
	Host     Host
}

// Service is a Kubernetes service, by the addresses and ports of its endpoints.
type Service struct {
	Namespace, Name string
	Members         []Socket
}

// Socket is an address with a protocol and a port.
type Socket struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
}

// Host is the node's configuration, as far as packets fare by it.
type Host struct {
	Devices  map[string][]netip.Addr // of the host, but workloads' ones
	ToHost   api.Action              // DefaultEndpointToHostAction: Allow (ACCEPT, and RETURN to a host without rules) or Deny
	FailIn   []Failsafe
	FailOut  []Failsafe
	VXLANOut bool // AllowVXLANPacketsFromWorkloads
}

// Failsafe is a port that stays open on hosts' endpoints.
type Failsafe struct {
	Protocol uint8
	Port     uint16
}

// Packet is the first packet of a flow.
type Packet struct {
	In, Out                     string // devices of the host; "": a process of the host sends or receives it
	Source, Destination         netip.Addr
	Protocol                    uint8 // IANA number
	SourcePort, DestinationPort uint16
	Type, Code                  uint8 // of ICMP and ICMPv6
}

// IANA, Protocol Numbers.
const (
	icmp, ipip, tcp, udp, icmp6, sctp, udplite = 1, 4, 6, 17, 58, 132, 136
)

const vxlanPort = 4789

// workloadDevice tells whether a device is a workload's, by its name.
func workloadDevice(dev string) bool { return strings.HasPrefix(dev, "cali") }

// all returns the cluster's objects of one kind.
func all[T api.Object](c *Cluster) []T {
	var out []T
	for _, o := range c.Objects {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

func (c *Cluster) profile(name string) *api.Profile {
	if name == api.DefaultAllowProfile {
		return api.NewDefaultAllow()
	}
	for _, p := range all[*api.Profile](c) {
		if p.Metadata.Name == name {
			return p
		}
	}
	return nil
}

// workloadAt is the workload endpoint whose device that is; of two, the one whose key sorts last.
func (c *Cluster) workloadAt(dev string) *api.WorkloadEndpoint {
	var found *api.WorkloadEndpoint
	for _, w := range all[*api.WorkloadEndpoint](c) {
		if w.Spec.Node == c.Node && w.Spec.InterfaceName == dev && (found == nil || api.KeyOf(w) > api.KeyOf(found)) {
			found = w
		}
	}
	return found
}

// hostAt is the host endpoint that a device is: the one that names it, else one that expects an address of it, else the one for all.
func (c *Cluster) hostAt(dev string) *api.HostEndpoint {
	fits := []func(h *api.HostEndpoint) bool{
		func(h *api.HostEndpoint) bool { return h.Spec.InterfaceName == dev },
		func(h *api.HostEndpoint) bool {
			return h.Spec.InterfaceName == "" && slices.ContainsFunc(h.Spec.ExpectedIPs, func(ip string) bool {
				return slices.Contains(c.Host.Devices[dev], netip.MustParseAddr(ip))
			})
		},
		func(h *api.HostEndpoint) bool { return h.Spec.InterfaceName == "*" },
	}
	for _, fit := range fits {
		for _, h := range all[*api.HostEndpoint](c) {
			if h.Spec.Node == c.Node && fit(h) {
				return h
			}
		}
	}
	return nil
}
