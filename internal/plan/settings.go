package plan

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// forward switches a kind of forwarding on, unless that is not ours to do.
func (c *computation) forward(path string) {
	if !c.LeaveForwarding {
		c.out.Sysctls[kernel.SysctlKey{Path: path}] = "1"
	}
}

// checkSources drops a source address that the host does not have: the kernel would refuse the routes to all pods.
func (c *computation) checkSources() {
	for _, s := range []struct {
		addr *netip.Addr
		name string
	}{{&c.RouteSource, "deviceRouteSourceAddress"}, {&c.RouteSource6, "deviceRouteSourceAddressIPv6"}} {
		has := slices.ContainsFunc(c.host.Addrs, func(a kernel.HostAddr) bool { return a.Addr.Addr() == *s.addr })
		if s.addr.IsValid() && !has {
			c.problem("FelixConfiguration", "%s %v is on no device of this host, so it does not count", s.name, *s.addr)
			*s.addr = netip.Addr{}
		}
	}
}

// markRoutes gives every route the protocol by which we know it again.
func (c *computation) markRoutes(s kernel.State) {
	p := c.Ours.RouteProtocol()
	if p == kernel.RouteProtocol {
		return
	}
	for k, r := range s.Routes {
		r.Protocol = p
		s.Routes[k] = r
	}
}

// masqueradeAs ends the rule that says what is masqueraded by how: as the device's address or as the one that is set, and within ports
// if some are set, which only TCP and UDP have.
func (f *family) masqueradeAs(rule string) []string {
	target, ports := "-j MASQUERADE", " --to-ports "
	if f.NATAddress.IsValid() && f.NATAddress.Is6() == f.v6 {
		target, ports = "-j SNAT --to-source "+f.NATAddress.String(), ":"
	}
	var out []string
	if f.NATPorts != "" {
		for _, protocol := range []string{"tcp", "udp"} {
			out = append(out, "-p "+protocol+" "+rule+target+ports+f.NATPorts+" --random-fully")
		}
	}
	return append(out, rule+target+" --random-fully")
}

// peers are the hosts besides the nodes that may send VXLAN packets.
func (f *family) peers() []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(f.TunnelPeers), func(p netip.Prefix) bool { return p.Addr().Is6() != f.v6 })
}
