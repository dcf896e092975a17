// Package peering computes what a node says to its BGP peers, and what it makes of what they say.
//
// Compute is a pure function of the datastore: which sessions the node has, which routes it originates, what each session lets
// through. Kernel says which of the learned routes the node's kernel should have, and how. Both follow Calico, so that its nodes
// and ours are each other's peers.
package peering

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Model is what the datastore says, as far as a node's BGP depends on it. Every list is sorted by key.
type Model struct {
	Nodes       []*api.Node
	Configs     []*api.BGPConfiguration
	Peers       []*api.BGPPeer
	Filters     []*api.BGPFilter
	Pools       []*api.IPPool
	Blocks      []netip.Prefix          // that are affine to this node, the claim confirmed
	Endpoints   []*api.WorkloadEndpoint // this node's only
	Services    []netip.Prefix          // services' addresses that this node shall attract
	Passwords   map[Secret]string
	FloatingIPs bool // endpoints are reached at these too

	RouterID string // CALICO_ROUTER_ID; "": the node's IPv4 address, or hash where it has none
}

// Equal tells whether two models are of the same objects, by their pointers: then Compute returns the same.
func (m Model) Equal(o Model) bool {
	return m.RouterID == o.RouterID && m.FloatingIPs == o.FloatingIPs && slices.Equal(m.Nodes, o.Nodes) && slices.Equal(m.Configs, o.Configs) && slices.Equal(m.Peers, o.Peers) &&
		slices.Equal(m.Filters, o.Filters) && slices.Equal(m.Pools, o.Pools) && slices.Equal(m.Blocks, o.Blocks) &&
		slices.Equal(m.Endpoints, o.Endpoints) && slices.Equal(m.Services, o.Services) && maps.Equal(m.Passwords, o.Passwords)
}

// Relevant leaves those of this node's endpoints that the model depends on: all if a peer is among pods, else those with an address outside of
// the node's blocks, or a floating one. Most pods come and go without anything to be computed anew.
func (m Model) Relevant(endpoints []*api.WorkloadEndpoint) []*api.WorkloadEndpoint {
	if slices.ContainsFunc(m.Peers, func(p *api.BGPPeer) bool { return p.Spec.LocalWorkloadSelector != "" }) {
		return endpoints
	}
	return slices.DeleteFunc(slices.Clone(endpoints), func(e *api.WorkloadEndpoint) bool {
		return len(e.Spec.IPNATs) == 0 && !slices.ContainsFunc(e.Spec.IPNetworks, func(p api.Prefix) bool { return p.IsValid() && !inBlock(m.Blocks, p.Addr()) })
	})
}

// Secrets are the keys that the model's sessions have their passwords from, sorted, each once.
func (m Model) Secrets() []Secret {
	refs := []*api.BGPPassword{}
	for _, c := range m.Configs {
		refs = append(refs, c.Spec.NodeMeshPassword)
	}
	for _, p := range m.Peers {
		refs = append(refs, p.Spec.Password)
	}
	var out []Secret
	for _, r := range refs {
		if r != nil && r.SecretKeyRef != nil {
			out = append(out, Secret{Name: r.SecretKeyRef.Name, Key: r.SecretKeyRef.Key})
		}
	}
	slices.SortFunc(out, func(a, b Secret) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Key, b.Key)) })
	return slices.Compact(out)
}

// Secret names a key of a Secret in the agent's namespace.
type Secret struct{ Name, Key string }

// Problem is input that could not be used. It is data, not an error: everything else is in the result.
type Problem struct {
	Object string // BGPPeer(tor)
	Text   string // what is wrong and what to do
}

// String is the object and the text.
func (p Problem) String() string { return p.Object + ": " + p.Text }

// Via is a route by which a peer is reached.
type Via struct{ Peer, Gateway netip.Addr }

// Result is what Compute returns.
type Result struct {
	Speaker  Speaker
	Routes   []Route // to announce, sorted by prefix; each session's Export decides which of them it sends
	Reach    []Via   // for the kernel, sorted by peer
	Problems []Problem
}

const (
	defaultAS       = 64512
	defaultPort     = 179
	defaultPriority = 1024
	// maxPreference less a route's metric is its local preference: of two routes the one with the lower metric wins.
	maxPreference = 2147483647
)

// Preference is the local preference of a route with the metric. Metric undoes it.
func Preference(metric int) uint32 { return uint32(maxPreference - metric) }

// Metric is the metric of a route with the local preference, at least 1.
func Metric(preference uint32) int { return max(1, maxPreference-int(min(preference, maxPreference))) }

// Compute returns what the node's speaker should do. Inputs are not modified.
func Compute(node string, m Model) Result {
	c := &computation{Model: m, name: node, nodes: map[string]*api.Node{}, configs: map[string]*api.BGPConfiguration{}, filters: map[string]*api.BGPFilter{}}
	for _, n := range m.Nodes {
		c.nodes[n.Metadata.Name] = n
	}
	for _, b := range m.Configs {
		c.configs[b.Metadata.Name] = b
	}
	for _, f := range m.Filters {
		c.filters[f.Metadata.Name] = f
	}
	c.config = orEmpty(c.configs["default"])
	c.self = c.nodes[node]
	if c.self == nil {
		c.problem("Node("+node+")", "is not in the datastore; there is no BGP until the agent has written it")
		return c.out
	}
	c.speaker()
	c.originate()
	four, six := c.sessions(false), c.sessions(true)
	four.share(six)
	four.list()
	six.list()
	slices.SortFunc(c.out.Speaker.Sessions, func(a, b Session) int { return a.Peer.Compare(b.Peer) })
	slices.SortFunc(c.out.Reach, func(a, b Via) int { return a.Peer.Compare(b.Peer) })
	return c.out
}

// computation is the working state of one Compute.
type computation struct {
	Model
	name    string
	self    *api.Node
	nodes   map[string]*api.Node
	configs map[string]*api.BGPConfiguration
	filters map[string]*api.BGPFilter
	config  *api.BGPConfiguration // the cluster's, never nil
	out     Result
}

func orEmpty(b *api.BGPConfiguration) *api.BGPConfiguration {
	if b == nil {
		return &api.BGPConfiguration{}
	}
	return b
}

func (c *computation) problem(object, format string, args ...any) {
	p := Problem{Object: object, Text: fmt.Sprintf(format, args...)}
	if !slices.Contains(c.out.Problems, p) {
		c.out.Problems = append(c.out.Problems, p)
	}
}

// speaker fills in what concerns no single session.
func (c *computation) speaker() {
	s := &c.out.Speaker
	s.AS, s.Port = c.asOf(c.self), c.portOf(c.self)
	own := orEmpty(c.configs["node."+c.name]).Spec
	bind := cmp.Or(own.BindMode, c.config.Spec.BindMode)
	s.Log = cmp.Or(own.LogSeverityScreen, c.config.Spec.LogSeverityScreen)
	for _, v6 := range []bool{false, true} {
		if a, ok := c.self.Address(v6); ok && bind == "NodeIP" {
			s.Listen = append(s.Listen, a.Addr())
		}
	}
	s.RouterID = c.routerID()
	if c.config.Spec.LocalWorkloadPeeringIPV4 != "" || c.config.Spec.LocalWorkloadPeeringIPV6 != "" {
		c.problem("BGPConfiguration(default)", "spec.localWorkloadPeeringIPV4 and IPV6 are not heeded: pods that are peers (BGPPeer's localWorkloadSelector) find the node "+
			"at its own address; have them dial that")
	}
}

func (c *computation) routerID() netip.Addr {
	four, ok := c.self.Address(false)
	switch {
	case c.RouterID == "hash" || c.RouterID == "" && !ok:
		return hashed(c.name)
	case c.RouterID == "":
		return four.Addr()
	}
	id, err := netip.ParseAddr(c.RouterID)
	if err != nil || !id.Is4() || id.IsUnspecified() {
		c.problem("Node("+c.name+")", "CALICO_ROUTER_ID %q is neither an IPv4 address nor hash; hash is used", c.RouterID)
		return hashed(c.name)
	}
	return id
}

// hashed makes a router id of a name: any number but 0 will do, as long as it is the node's alone.
func hashed(name string) netip.Addr {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	sum := max(h.Sum32(), 1)
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

func (c *computation) globalAS() api.ASN {
	if as := c.config.Spec.ASNumber; as != nil {
		return *as
	}
	return defaultAS
}

func (c *computation) asOf(n *api.Node) api.ASN {
	if n.Spec.BGP != nil && n.Spec.BGP.ASNumber != nil {
		return *n.Spec.BGP.ASNumber
	}
	return c.globalAS()
}

// portOf is the port on which a node listens.
func (c *computation) portOf(n *api.Node) uint16 {
	return cmp.Or(orEmpty(c.configs["node."+n.Metadata.Name]).Spec.ListenPort, c.config.Spec.ListenPort, defaultPort)
}

// clusterOf is the route reflector cluster of a node; "" if it is no reflector.
func clusterOf(n *api.Node) string {
	if n == nil || n.Spec.BGP == nil {
		return ""
	}
	return n.Spec.BGP.RouteReflectorClusterID
}

// originate lists the routes that the node itself is the origin of: its blocks, its pods' addresses outside of them, floating ones, and services.
func (c *computation) originate() {
	add := func(p netip.Prefix, dev string) {
		c.out.Routes = append(c.out.Routes, Route{Prefix: p, LocalPref: Preference(c.priority(p.Addr().Is6())), Dev: dev})
	}
	for _, b := range c.Blocks {
		if !b.IsSingleIP() {
			add(b, "")
		}
	}
	for _, e := range c.Endpoints {
		for _, p := range e.Spec.IPNetworks {
			if p.IsValid() && p.IsSingleIP() && !inBlock(c.Blocks, p.Addr()) {
				add(p.Prefix, e.Spec.InterfaceName)
			}
		}
		for _, n := range e.Spec.IPNATs {
			if a, err := netip.ParseAddr(n.ExternalIP); err == nil && c.FloatingIPs {
				add(netip.PrefixFrom(a, a.BitLen()), e.Spec.InterfaceName)
			}
		}
	}
	for _, s := range c.Services {
		add(s, "")
	}
	slices.SortFunc(c.out.Routes, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	c.out.Routes = slices.CompactFunc(c.out.Routes, func(a, b Route) bool { return a.Prefix == b.Prefix })
}

// inBlock tells whether an address is announced with one of the node's blocks.
func inBlock(blocks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return !b.IsSingleIP() && b.Contains(a) })
}

// priority is the metric of routes in the kernel.
func (c *computation) priority(v6 bool) int {
	p := c.config.Spec.IPv4NormalRoutePriority
	if v6 {
		p = c.config.Spec.IPv6NormalRoutePriority
	}
	if p == nil {
		return defaultPriority
	}
	return *p
}
