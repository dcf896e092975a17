package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Action is what becomes of a packet that a rule matches.
type Action string

// The actions of rules. Log goes on with the next rule, Pass with the next tier.
const (
	Allow Action = "Allow"
	Deny  Action = "Deny"
	Log   Action = "Log"
	Pass  Action = "Pass"
)

// Rule matches packets that satisfy all of its fields; a field that is not set is satisfied by every packet.
type Rule struct {
	Action      Action        `json:"action" want:"required; oneof Allow Deny Log Pass"`
	IPVersion   *int          `json:"ipVersion,omitempty" want:"oneof 4 6"` // nil: both
	Protocol    *Protocol     `json:"protocol,omitempty"`
	ICMP        *ICMP         `json:"icmp,omitempty"` // needs protocol ICMP or ICMPv6
	NotProtocol *Protocol     `json:"notProtocol,omitempty"`
	NotICMP     *ICMP         `json:"notICMP,omitempty"`
	Source      EntityRule    `json:"source"`
	Destination EntityRule    `json:"destination"`
	HTTP        *HTTPMatch    `json:"http,omitempty"`
	Metadata    *RuleMetadata `json:"metadata,omitempty"`
}

// ICMP is a kind of ICMP messages.
type ICMP struct {
	Type *int `json:"type,omitempty" want:"range 0 254"` // nil: any
	Code *int `json:"code,omitempty" want:"range 0 255"` // nil: any; needs Type
}

// EntityRule matches one end of a packet's way.
type EntityRule struct {
	Nets     []string `json:"nets,omitempty" want:"cidr"`         // in any of these
	Selector string   `json:"selector,omitempty" want:"selector"` // an endpoint or network set with such labels
	// NamespaceSelector says from which namespaces Selector selects: "" means the policy's own, and all of a policy without
	// namespace; global() means what lives in none.
	NamespaceSelector string               `json:"namespaceSelector,omitempty" want:"entity-selector"`
	Services          *ServiceMatch        `json:"services,omitempty"`
	Ports             []Port               `json:"ports,omitempty"`
	NotNets           []string             `json:"notNets,omitempty" want:"cidr"`
	NotSelector       string               `json:"notSelector,omitempty" want:"selector"`
	NotPorts          []Port               `json:"notPorts,omitempty"`
	ServiceAccounts   *ServiceAccountMatch `json:"serviceAccounts,omitempty"`
}

// ServiceMatch matches the endpoints and ports of a Kubernetes service.
type ServiceMatch struct {
	Name      string `json:"name,omitempty" want:"required; subdomain"`
	Namespace string `json:"namespace,omitempty" want:"subdomain"` // "": the policy's own
}

// ServiceAccountMatch matches pods by their service account. Both fields must be satisfied; an empty one is.
type ServiceAccountMatch struct {
	Names    []string `json:"names,omitempty" want:"subdomain"`
	Selector string   `json:"selector,omitempty" want:"selector"` // over the labels of service accounts
}

// HTTPMatch matches requests. Both fields must be satisfied; an empty one is.
type HTTPMatch struct {
	Methods []string   `json:"methods,omitempty"`
	Paths   []HTTPPath `json:"paths,omitempty"`
}

// HTTPPath matches the path of a request: one of both fields is set.
type HTTPPath struct {
	Exact  string `json:"exact,omitempty"`
	Prefix string `json:"prefix,omitempty"`
}

// RuleMetadata is what people and programs note on a rule.
type RuleMetadata struct {
	Annotations map[string]string `json:"annotations,omitempty"`
}

// rules is what a policy or profile says, to be checked.
type rules struct {
	ingress, egress []Rule
	global          bool // in no namespace
}

// rules checks what the fields of rules say together.
func (c *checker) rules(r rules) {
	for i := range r.ingress {
		c.rule(fmt.Sprintf("spec.ingress[%d]", i), &r.ingress[i], true, r.global)
	}
	for i := range r.egress {
		c.rule(fmt.Sprintf("spec.egress[%d]", i), &r.egress[i], false, r.global)
	}
}

func (c *checker) rule(path string, r *Rule, ingress, global bool) {
	r.Protocol.check(c, path+".protocol")
	r.NotProtocol.check(c, path+".notProtocol")
	c.icmp(path+".icmp", r.ICMP, r.Protocol)
	c.icmp(path+".notICMP", r.NotICMP, r.Protocol)
	c.entity(path+".source", &r.Source, r.Protocol)
	c.entity(path+".destination", &r.Destination, r.Protocol)
	c.oneFamily(path, r)
	c.service(path+".source", &r.Source, global, unless(ingress, "a service can only be the destination of an egress rule"))
	c.service(path+".destination", &r.Destination, global, unless(!ingress, "a service can only be the source of an ingress rule"))
	c.http(path+".http", r, ingress)
	if r.Metadata != nil {
		for _, key := range slices.Sorted(maps.Keys(r.Metadata.Annotations)) {
			if !isQualified(strings.ToLower(key)) {
				c.add(path+".metadata.annotations", key, "a key is a name of at most 63 letters, digits and any of - _ .")
			}
		}
	}
}

func (c *checker) icmp(path string, m *ICMP, p *Protocol) {
	if m == nil {
		return
	}
	if p == nil || !p.Is("ICMP") && !p.Is("ICMPv6") {
		c.add(path, nil, "rules that specify ICMP fields must set protocol to ICMP or ICMPv6")
	}
	if m.Code != nil && m.Type == nil {
		c.add(path+".code", m.Code, "an ICMP code needs a type")
	}
}

func (c *checker) entity(path string, e *EntityRule, p *Protocol) {
	c.ports(path+".ports", e.Ports, p)
	c.ports(path+".notPorts", e.NotPorts, p)
	for i, n := range e.NotNets {
		if p, err := parseNet(n); err == nil && p.Bits() == 0 {
			c.add(fmt.Sprintf("%s.notNets[%d]", path, i), n, "a rule that excludes every address matches nothing")
		}
	}
}

func (c *checker) ports(path string, ports []Port, p *Protocol) {
	numeric := false
	for i, port := range ports {
		port.check(c, fmt.Sprintf("%s[%d]", path, i))
		numeric = numeric || port.Name == ""
	}
	if numeric && !isTransport(p) {
		c.add(path, ports, "rules with numeric port or port range must set protocol to TCP or UDP or SCTP")
	}
}

// oneFamily checks that a rule does not name addresses of both families.
func (c *checker) oneFamily(path string, r *Rule) {
	var v4, v6 bool
	for _, nets := range [][]string{r.Source.Nets, r.Source.NotNets, r.Destination.Nets, r.Destination.NotNets} {
		for _, n := range nets {
			if p, err := parseNet(n); err == nil {
				v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
			}
		}
	}
	switch {
	case v4 && v6:
		c.add(path, nil, "rule contains both IPv4 and IPv6 CIDRs")
	case r.IPVersion != nil && (v4 && *r.IPVersion == 6 || v6 && *r.IPVersion == 4):
		c.add(path+".ipVersion", r.IPVersion, "rule contains CIDRs of the other IP version")
	}
}

// service checks a match on a service, if there is one; misplaced says why there must be none.
func (c *checker) service(path string, e *EntityRule, global bool, misplaced string) {
	s := e.Services
	if s == nil {
		return
	}
	if misplaced != "" {
		c.add(path+".services", s.Name, "%s", misplaced)
	}
	if global && s.Namespace == "" {
		c.add(path+".services.namespace", nil, "must be specified in a policy without namespace")
	}
	if len(e.Nets)+len(e.NotNets) > 0 {
		c.add(path+".services", s.Name, "cannot be combined with nets")
	}
	if e.Selector != "" || e.NotSelector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil {
		c.add(path+".services", s.Name, "cannot be combined with selectors")
	}
	if len(e.Ports)+len(e.NotPorts) > 0 {
		c.add(path+".services", s.Name, "cannot be combined with ports, which the service itself has")
	}
}

func (c *checker) http(path string, r *Rule, ingress bool) {
	h := r.HTTP
	if h == nil {
		return
	}
	if !ingress || r.Action != Allow {
		c.add(path, nil, "only ingress rules that allow can look at HTTP requests")
	}
	if r.Protocol != nil && !r.Protocol.Is("TCP") {
		c.add(path, nil, "rules with HTTP match must have protocol TCP or unset")
	}
	for i, m := range h.Methods {
		if m != "*" && !contains([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}, m, false) {
			c.add(fmt.Sprintf("%s.methods[%d]", path, i), m, "must be a method of HTTP (RFC 9110) in upper case, or *")
		}
	}
	for i, p := range h.Paths {
		text := p.Exact + p.Prefix
		switch {
		case (p.Exact == "") == (p.Prefix == ""):
			c.add(fmt.Sprintf("%s.paths[%d]", path, i), text, "must have one of exact and prefix")
		case !strings.HasPrefix(text, "/") || strings.ContainsAny(text, "?# \t\r\n"):
			c.add(fmt.Sprintf("%s.paths[%d]", path, i), text, "must begin with / and have neither a query nor a fragment")
		}
	}
}
