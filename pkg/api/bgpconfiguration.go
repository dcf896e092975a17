package api

import (
	"fmt"
	"strconv"
	"strings"
)

// BGPConfiguration holds BGP's settings: name "default" for the cluster, "node.<name>" for one node.
type BGPConfiguration struct {
	Header
	Spec BGPConfigurationSpec `json:"spec"`
}

// BGPConfigurationSpec holds the fields of a BGPConfiguration.
type BGPConfigurationSpec struct {
	LogSeverityScreen              string                `json:"logSeverityScreen,omitempty" want:"fold Trace Debug Info Warning Error Fatal"`
	NodeToNodeMeshEnabled          *bool                 `json:"nodeToNodeMeshEnabled,omitempty"` // nil: true; default object only
	ASNumber                       *ASN                  `json:"asNumber,omitempty"`              // nil: 64512; default object only
	ServiceLoadBalancerIPs         []ServiceRange        `json:"serviceLoadBalancerIPs,omitempty"`
	ServiceExternalIPs             []ServiceRange        `json:"serviceExternalIPs,omitempty"`
	ServiceClusterIPs              []ServiceRange        `json:"serviceClusterIPs,omitempty"`
	ServiceLoadBalancerAggregation string                `json:"serviceLoadBalancerAggregation,omitempty" want:"oneof Enabled Disabled"`
	Communities                    []Community           `json:"communities,omitempty"` // values that PrefixAdvertisements may name
	PrefixAdvertisements           []PrefixAdvertisement `json:"prefixAdvertisements,omitempty"`
	ListenPort                     uint16                `json:"listenPort,omitempty"`       // 0: 179
	NodeMeshPassword               *BGPPassword          `json:"nodeMeshPassword,omitempty"` // default object only
	NodeMeshMaxRestartTime         *Duration             `json:"nodeMeshMaxRestartTime,omitempty"`
	BindMode                       string                `json:"bindMode,omitempty" want:"oneof None NodeIP"` // "": None
	IgnoredInterfaces              []string              `json:"ignoredInterfaces,omitempty"`
	LocalWorkloadPeeringIPV4       string                `json:"localWorkloadPeeringIPV4,omitempty" want:"ip4"`
	LocalWorkloadPeeringIPV6       string                `json:"localWorkloadPeeringIPV6,omitempty" want:"ip6"`
	// ProgramClusterRoutes says who makes routes to other nodes: Enabled BGP ("" too), Disabled the agent by itself.
	ProgramClusterRoutes    string `json:"programClusterRoutes,omitempty" want:"oneof Enabled Disabled"`
	IPv4NormalRoutePriority *int   `json:"ipv4NormalRoutePriority,omitempty" want:"range 1 2147483646"` // nil: 1024
	IPv6NormalRoutePriority *int   `json:"ipv6NormalRoutePriority,omitempty" want:"range 1 2147483646"`
}

// ServiceRange is a range of services' addresses to be advertised.
type ServiceRange struct {
	CIDR string `json:"cidr,omitempty" want:"required; net"`
}

// Community is a name for a BGP community.
type Community struct {
	Name  string `json:"name,omitempty" want:"required"`
	Value string `json:"value,omitempty" want:"required"` // aa:nn (RFC 1997) or aa:nn:mm (RFC 8092)
}

// PrefixAdvertisement gives all advertised routes of a range communities, by value or by name.
type PrefixAdvertisement struct {
	CIDR        string   `json:"cidr,omitempty" want:"required; net"`
	Communities []string `json:"communities,omitempty" want:"required"`
}

// BGPPassword says where the password of a session is.
type BGPPassword struct {
	SecretKeyRef *SecretKeyRef `json:"secretKeyRef,omitempty" want:"required"`
}

// SecretKeyRef is a key of a Kubernetes Secret in the agent's namespace.
type SecretKeyRef struct {
	Name     string `json:"name,omitempty"`
	Key      string `json:"key" want:"required"`
	Optional *bool  `json:"optional,omitempty"` // nil: false
}

// KindOf describes BGPConfiguration.
func (*BGPConfiguration) KindOf() Kind {
	return Kind{Name: "BGPConfiguration", Plural: "bgpconfigurations", Aliases: "bgpconfig bgpconfigs"}
}

// Default fills what Calico's schema fills on every write.
func (b *BGPConfiguration) Default() {
	setDefault(&b.Spec.LogSeverityScreen, "Info")
	setDefault(&b.Spec.ServiceLoadBalancerAggregation, "Enabled")
}

func (b *BGPConfiguration) validate(c *checker) {
	s := b.Spec
	if b.Metadata.Name != "default" {
		b.validateNode(c)
	}
	if len(s.Communities) > 0 && len(s.PrefixAdvertisements) == 0 {
		c.add("spec.communities", nil, "communities are defined but not used in prefixAdvertisements")
	}
	defined := map[string]bool{}
	for i, m := range s.Communities {
		defined[m.Name] = true
		if !isCommunity(m.Value) {
			c.add(fmt.Sprintf("spec.communities[%d].value", i), m.Value, communityReason)
		}
	}
	for i, a := range s.PrefixAdvertisements {
		for j, v := range a.Communities {
			if !defined[v] && !isCommunity(v) {
				c.add(fmt.Sprintf("spec.prefixAdvertisements[%d].communities[%d]", i, j), v, "must be the name of one of spec.communities, or %s", communityReason)
			}
		}
	}
	for i, name := range s.IgnoredInterfaces {
		if name == "*" || !isInterface(strings.ReplaceAll(name, "*", "x")) {
			c.add(fmt.Sprintf("spec.ignoredInterfaces[%d]", i), name, "must be the name of an interface, in which * stands for anything, and not * alone")
		}
	}
	mesh := s.NodeToNodeMeshEnabled == nil || *s.NodeToNodeMeshEnabled
	if !mesh && s.NodeMeshPassword != nil {
		c.add("spec.nodeMeshPassword", nil, "Cannot set nodeMeshPassword when the node to node mesh is disabled.")
	}
	if !mesh && s.NodeMeshMaxRestartTime != nil {
		c.add("spec.nodeMeshMaxRestartTime", s.NodeMeshMaxRestartTime, "Cannot set nodeMeshMaxRestartTime when the node to node mesh is disabled.")
	}
}

// validateNode checks that a node's object leaves the cluster's settings alone.
func (b *BGPConfiguration) validateNode(c *checker) {
	s := b.Spec
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"nodeToNodeMeshEnabled", s.NodeToNodeMeshEnabled != nil},
		{"asNumber", s.ASNumber != nil},
		{"serviceLoadBalancerIPs", len(s.ServiceLoadBalancerIPs) > 0},
		{"serviceExternalIPs", len(s.ServiceExternalIPs) > 0},
		{"serviceClusterIPs", len(s.ServiceClusterIPs) > 0},
		{"nodeMeshPassword", s.NodeMeshPassword != nil},
		{"nodeMeshMaxRestartTime", s.NodeMeshMaxRestartTime != nil},
	} {
		if f.set {
			c.add("spec."+f.name, nil, "Cannot set %s on a non default BGP Configuration.", f.name)
		}
	}
}

const communityReason = "must be a community aa:nn of numbers up to 65535, or a large community aa:nn:mm of numbers up to 4294967295"

// isCommunity reports whether s is a community (RFC 1997) or a large community (RFC 8092).
func isCommunity(s string) bool {
	parts := strings.Split(s, ":")
	bits := 16
	if len(parts) == 3 {
		bits = 32
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, bits); err != nil {
			return false
		}
	}
	return len(parts) == 2 || len(parts) == 3
}
