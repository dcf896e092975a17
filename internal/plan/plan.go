// Package plan computes the kernel state that a node should have.
//
// Compute is a pure function of what the datastore says, of what the kernel says about the host, and of the settings: the same
// inputs give the same state, and nothing else writes kernel objects. Bad input never stops good input: what cannot be
// used is left out and named in a Problem.
//
// Routes to other nodes come from the datastore and from BGP; Learned says which goes before which.
//
// The MTU of tunnels and pods follows the devices that carry packets to the other nodes, see computation.hostMTU.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Model is what the datastore says, as far as one node's kernel depends on it. Every list is sorted by key.
type Model struct {
	Pools     []*api.IPPool
	Nodes     []*api.Node
	Blocks    []*api.Block
	Endpoints []*api.WorkloadEndpoint // this node's only
	Learned   *Learned                // nil: this node has no BGP
}

// Settings are the effective settings of this node.
type Settings struct {
	Node         string
	IPv6         bool           // do IPv6 where a pool asks for it
	NoIPv6       string         // why this host cannot do IPv6; "": it can
	IPIPEnabled  *bool          // nil: when a pool uses IP-in-IP
	IPIPMTU      int            // 0: from the host's devices
	NoIPIP       string         // why the IP-in-IP device could not be made; "": it was not tried, or could
	VXLANEnabled *bool          // nil: when a pool uses VXLAN
	VXLANPort    uint16         // UDP
	VXLANVNI     uint32         // VXLAN network identifier
	VXLANMTU     int            // 0: from the host's devices
	VXLANMTUV6   int            // 0: from the host's devices
	MTUIface     *regexp.Regexp // devices whose MTU counts
	NATKeepHosts bool           // traffic from pods to other hosts is not masqueraded
	NATAddress   netip.Addr     // IPv4 address that masqueraded traffic gets; zero: the device's
	NATPorts     string         // that masqueraded TCP and UDP gets: 32768-65000; "": the kernel chooses
	TunnelPeers  []netip.Prefix // whose VXLAN packets are taken though they are no nodes

	Ours            kernel.Ownership // which devices are workloads', and the protocol of our routes
	AcceptMark      uint32           // of packets that policy has accepted
	PodMetric4      int              // of the routes to local pods; 0: hostside.RouteMetric
	PodMetric6      int              // the same for IPv6
	RouteSource     netip.Addr       // preferred source of these routes; zero: the kernel chooses
	RouteSource6    netip.Addr       // the same for IPv6
	LeaveForwarding bool             // the host's forwarding is not ours to switch on
	Spoofing        bool             // workloads may send from the ranges that their endpoints name
	FloatingIPs     bool             // what is sent to endpoints' floating addresses goes to them
	WireGuard       WireGuard
	Keep            Modes // receiving side stays although no pool uses it any more
	IPIPBegun       bool  // pools ask for IP-in-IP since a short while only: nodes may not know yet
}

// Modes are encapsulations.
type Modes struct{ IPIP, VXLAN, VXLAN6, WireGuard, WireGuard6 bool }

// Problem is input that could not be used. It is data, not an error: everything else is in the state.
type Problem struct {
	Object string // Node(node-2)
	Text   string // what is wrong and what to do
}

func newProblem(object, format string, args ...any) Problem {
	return Problem{Object: object, Text: fmt.Sprintf(format, args...)}
}

// String is the object and the text.
func (p Problem) String() string { return p.Object + ": " + p.Text }

// Result is what Compute returns.
type Result struct {
	State    kernel.State
	PodMTU   int   // for new pods, in bytes
	Modes    Modes // that pools and settings ask for
	Tunnels  Tunnels
	Problems []Problem
}

// Tunnels are what this host takes packets of, and from whom, for policy to let them in.
type Tunnels struct {
	IPIP, VXLAN, VXLAN6, WireGuard, WireGuard6 bool
	IPIPPeers, VXLANPeers, WireGuardPeers      []netip.Prefix // of both families
}

// Overheads of the encapsulations, in bytes (RFC 2003; RFC 7348 over IPv4 and IPv6; WireGuard's of wireguard.cali and wg-v6.cali).
const (
	IPIPOverhead        = 20
	VXLANOverhead       = 50
	VXLANOverheadV6     = 70
	WireGuardOverhead   = 60 // IPv4, UDP, and 32 of its own
	WireGuardOverheadV6 = 80 // IPv6 likewise
)

// fallbackMTU is that of a host of which no device matches.
const fallbackMTU = 1460

// Compute returns the state that the node's kernel should have. Inputs are not modified.
func Compute(m Model, s Settings, h kernel.Host) Result {
	var p Planner
	r, _ := p.Compute(m, s, h)
	return r
}

// compute works out everything but what pods, blocks and BGP give.
func compute(in inputs) *computation {
	m := in.Model
	c := &computation{
		inputs: in, nodes: make(map[string]*api.Node, len(m.Nodes)), out: kernel.NewState(), complaints: complaints{said: map[Problem]struct{}{}},
	}
	for _, n := range m.Nodes {
		c.nodes[n.Metadata.Name] = n
	}
	c.Pools = c.usablePools()
	if c.IPv6 && c.NoIPv6 != "" {
		c.withoutIPv6()
	}
	c.pooled = c.poolModes()
	c.asked = c.modes()
	c.forward("net/ipv4/ip_forward")
	c.checkSources()
	c.families = []*family{c.family(false)}
	if c.IPv6 && (c.Keep.VXLAN6 || c.Keep.WireGuard6 || c.asksForIPv6()) {
		c.forward("net/ipv6/conf/all/forwarding")
		c.families = append(c.families, c.family(true))
	}
	mtu := c.hostMTU()
	c.podMTU = mtu
	for _, f := range c.families {
		c.podMTU = min(c.podMTU, f.size(mtu))
		f.vxlanDevice()
		f.ipipDevice()
		f.wireGuard()
		f.takes()
	}
	c.firewall()
	c.markRoutes(c.out)
	return c
}

// computation is a plan but for what pods, blocks and BGP give, and what these depend on.
type computation struct {
	inputs
	families []*family
	podMTU   int
	pooled   Modes // that pools use
	asked    Modes // that are to be, which settings may say otherwise
	nodes    map[string]*api.Node
	local    map[netip.Addr]string // the local pod that has the address
	nats     []nat                 // of pods whose devices are there
	out      kernel.State
	tunnels  Tunnels
	complaints
}

// complaints are problems, each said once.
type complaints struct {
	problems []Problem
	said     map[Problem]struct{}
}

func (c *complaints) problem(object, format string, args ...any) {
	p := newProblem(object, format, args...)
	if _, said := c.said[p]; said {
		return
	}
	c.said[p] = struct{}{}
	c.problems = append(c.problems, p)
}

// usablePools leaves out, and names, the pools that make no sense.
func (c *computation) usablePools() []*api.IPPool {
	var out []*api.IPPool
	for _, p := range c.Pools {
		if err := p.Check(); err != nil {
			c.problem("IPPool("+p.Metadata.Name+")", "%v; the pool is left out until it is corrected", err)
			continue
		}
		out = append(out, p)
	}
	return out
}

// asksForIPv6 tells whether pods of the cluster have IPv6, or may get it. Forwarding makes a host deaf to router advertisements, so
// IPv6 is touched nowhere else. Blocks outlive a deleted pool.
func (c *computation) asksForIPv6() bool {
	return slices.ContainsFunc(c.Pools, func(p *api.IPPool) bool { return p.Spec.CIDR.Addr().Is6() }) ||
		c.blocks6
}

// modes are the encapsulations that pools ask for, or the settings in their place.
func (c *computation) modes() Modes {
	m := c.pooled
	if c.IPIPEnabled != nil {
		m.IPIP = *c.IPIPEnabled
	}
	if c.VXLANEnabled != nil {
		m.VXLAN, m.VXLAN6 = *c.VXLANEnabled, *c.VXLANEnabled && c.IPv6 && c.asksForIPv6()
	}
	m.WireGuard, m.WireGuard6 = c.WireGuard.Enabled, c.WireGuard.Enabled6 && c.IPv6 && c.asksForIPv6()
	return m
}

// poolModes are the encapsulations that pools use. Disabled ones count: their pods live on.
func (c *computation) poolModes() Modes {
	var m Modes
	for _, p := range c.Pools {
		vxlan := p.Spec.VXLANMode != api.Never
		m.IPIP = m.IPIP || p.Spec.IPIPMode != api.Never
		m.VXLAN = m.VXLAN || vxlan && p.Spec.CIDR.Addr().Is4()
		m.VXLAN6 = m.VXLAN6 || vxlan && p.Spec.CIDR.Addr().Is6() && c.IPv6
	}
	return m
}

// withoutIPv6 goes on with IPv4 on a host that cannot do more.
func (c *computation) withoutIPv6() {
	c.IPv6 = false
	if c.asksForIPv6() {
		c.problem("Node("+c.Node+")", "cannot do IPv6, and goes on with IPv4: %s. Or set ipv6Support to false in FelixConfiguration(node.%s)", c.NoIPv6, c.Node)
	}
}

// hostMTU is the MTU of what lies between the nodes. It is the smallest of these devices, the first kind of which there is one:
//
//  1. those that match mtuIfacePattern and hold an address of this node: on them goes the route to the other nodes;
//  2. the live ones that match the pattern, which is Calico's rule, and the ones that hold this node's addresses under another name:
//     a bridge or bond over devices that match, or a tunnel that no pattern thought of;
//  3. while an uplink has lost its carrier and none is live, those that match and are up.
//
// The loopback device says nothing: a node whose address is there reaches the others through devices that match.
func (c *computation) hostMTU() int {
	var matching, carrying, live, up int
	for _, f := range c.families {
		l, ok := c.host.Links[f.parent.Name]
		switch {
		case !ok || f.parent.Name == "lo":
		case c.MTUIface.MatchString(f.parent.Name):
			matching = smaller(matching, l.MTU)
		default:
			carrying = smaller(carrying, l.MTU)
		}
	}
	if matching > 0 && carrying > 0 { // the families go different ways
		matching = min(matching, carrying)
	}
	if matching > 0 {
		return matching
	}
	for name, l := range c.host.Links {
		if !c.MTUIface.MatchString(name) {
			continue
		}
		if l.Live {
			live = smaller(live, l.MTU)
		}
		if l.Up {
			up = smaller(up, l.MTU)
		}
	}
	return cmp.Or(smaller(live, carrying), up, fallbackMTU)
}

// smaller is the smaller of two MTUs, of which 0 is none.
func smaller(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// poolOf returns the pool that holds a prefix, or nil: blocks outlive a deleted pool.
func (c *computation) poolOf(p netip.Prefix) *api.IPPool {
	for _, pool := range c.Pools {
		if pool.Spec.CIDR.Overlaps(p) && pool.Spec.CIDR.Bits() <= p.Bits() {
			return pool
		}
	}
	return nil
}
