// Package hostside says what a workload needs on its host: names, settings, route and neighbour of its interface.
//
// It is used by the plan, which is the one writer on a node with an agent, and by the plugin when it works
// without one, so that both write the same.
package hostside

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"net/netip"
	"strconv"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// MAC of the host's side of every veth pair: the same on every host, so that pods never learn it anew.
const MAC = "ee:ee:ee:ee:ee:ee"

// Gateway is the next hop of every pod's default route. Nobody owns it: the host answers for it by proxy ARP.
const Gateway = "169.254.1.1"

// RouteMetric is the metric of a workload's route.
const RouteMetric = 1024

// InterfaceName is the name of the host's side of a workload's veth pair: a hash of namespace and pod, or for a
// container that is no pod, of its ID's first characters. A pod that is made again under its name gets the same.
func InterfaceName(namespace, pod, containerID string) string {
	if pod == "" {
		return kernel.WorkloadPrefix + containerID[:min(11, len(containerID))]
	}
	sum := sha1.Sum([]byte(namespace + "." + pod))
	return kernel.WorkloadPrefix + hex.EncodeToString(sum[:])[:11]
}

// VTEPMAC is the MAC of a node's VXLAN device, derived from its name so that every node knows it.
func VTEPMAC(node string, v6 bool) kernel.MAC {
	if v6 {
		node += "-v6"
	}
	sum := sha1.Sum([]byte(node))
	m := kernel.MAC{0x66}
	copy(m[1:], sum[:5])
	return m
}

// Workload is a local endpoint as its host sees it.
type Workload struct {
	Dev   kernel.Dev // the host's side
	MAC   kernel.MAC // of the pod's side; zero if unknown
	Addrs []netip.Addr

	Spoofs           bool       // it may send from IPv4 addresses that are not its own
	Metric4, Metric6 int        // of its routes; 0: RouteMetric
	Src4, Src6       netip.Addr // that the host talks to it from; zero: the kernel chooses
}

// Add writes what the workload needs into the state.
func (w Workload) Add(s kernel.State) {
	var v4, v6 bool
	for _, a := range w.Addrs {
		metric, src := w.Metric4, w.Src4
		if a.Is6() {
			metric, src = w.Metric6, w.Src6
		}
		key := kernel.RouteKey{Dst: netip.PrefixFrom(a, a.BitLen()), Metric: cmp.Or(metric, RouteMetric)}
		s.Routes[key] = kernel.Route{Scope: kernel.LinkScope, Dev: w.Dev, Src: src, Protocol: kernel.RouteProtocol}
		if w.MAC != (kernel.MAC{}) {
			s.Neighs[kernel.NeighKey{Dev: w.Dev, Addr: a}] = w.MAC
		}
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	if v4 {
		strict := 1 // sources must be routed to the workload (RFC 3704, section 2.2)
		if w.Spoofs {
			strict = 0 // policy decides then, which knows the ranges
		}
		w.sysctls(s, "net/ipv4/conf/", setting{"route_localnet", 1}, setting{"proxy_arp", 1}, setting{"forwarding", 1}, setting{"rp_filter", strict})
		w.sysctls(s, "net/ipv4/neigh/", setting{"proxy_delay", 0})
	}
	if v6 {
		w.sysctls(s, "net/ipv6/conf/", setting{"disable_ipv6", 0}, setting{"proxy_ndp", 1}, setting{"forwarding", 1}, setting{"accept_ra", 0})
	}
}

// setting is a kernel setting of one interface.
type setting struct {
	name  string
	value int
}

func (w Workload) sysctls(s kernel.State, group string, settings ...setting) {
	for _, set := range settings {
		path := group + w.Dev.Name + "/" + set.name
		s.Sysctls[kernel.SysctlKey{Path: path, Index: w.Dev.Index}] = strconv.Itoa(set.value)
	}
}
