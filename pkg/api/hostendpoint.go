package api

import "fmt"

// HostEndpoint is an interface of a host, as policies see it.
type HostEndpoint struct {
	Header
	Spec HostEndpointSpec `json:"spec"`
}

// HostEndpointSpec holds the fields of a HostEndpoint. The interface is the named one, else the one with an expected address.
type HostEndpointSpec struct {
	Node          string         `json:"node,omitempty"`
	InterfaceName string         `json:"interfaceName,omitempty"` // *: all interfaces of the host
	ExpectedIPs   []string       `json:"expectedIPs,omitempty" want:"ip"`
	Profiles      []string       `json:"profiles,omitempty"`
	Ports         []EndpointPort `json:"ports,omitempty"`
}

// EndpointPort is a named port.
type EndpointPort struct {
	Name     string   `json:"name"`
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
}

// KindOf describes HostEndpoint.
func (*HostEndpoint) KindOf() Kind {
	return Kind{Name: "HostEndpoint", Plural: "hostendpoints", Aliases: "hep heps"}
}

func (h *HostEndpoint) validate(c *checker) {
	s := h.Spec
	if s.InterfaceName == "" && len(s.ExpectedIPs) == 0 {
		c.add("spec.interfaceName", nil, "no interface or expected IPs have been specified")
	}
	if s.Node == "" {
		c.add("spec.node", nil, "no node has been specified")
	}
	if s.InterfaceName != "" && s.InterfaceName != "*" && !isInterface(s.InterfaceName) {
		c.add("spec.interfaceName", s.InterfaceName, "must be the name of a network interface, at most 15 characters, or *")
	}
	for i, p := range s.Ports {
		path := fmt.Sprintf("spec.ports[%d]", i)
		checkTransport(c, path+".protocol", &p.Protocol)
		if !isPortName(p.Name) {
			c.add(path+".name", p.Name, "must be specified, with at most 128 letters, digits and any of _ . -")
		}
		if p.Port == 0 {
			c.add(path+".port", p.Port, "must be between 1 and 65535")
		}
	}
}
