package cni

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

// leastMTU6 is what every link with IPv6 carries (RFC 8200, section 5). The kernel takes IPv6 off an interface with less.
const leastMTU6 = 1280

// podSettings writes the settings of the pod's network namespace, which must be the calling thread's. Those of IPv6 must stand
// before the interface is up.
func podSettings(w pairWish) error {
	forwarding := "0"
	if w.forwarding {
		forwarding = "1"
	}
	err := set("ipv4/ip_forward", forwarding)
	if !w.v6 {
		return err
	}
	if w.mtu != 0 && w.mtu < leastMTU6 {
		return fmt.Errorf("an interface with an MTU of %d has no IPv6, which needs %d: raise the MTU of the devices between nodes, or set mtu in the "+
			"network's configuration", w.mtu, leastMTU6)
	}
	return errors.Join(err,
		set("ipv6/conf/all/disable_ipv6", "0"), set("ipv6/conf/default/disable_ipv6", "0"), set("ipv6/conf/lo/disable_ipv6", "0"),
		set("ipv6/conf/"+w.podIf+"/disable_ipv6", "0"), set("ipv6/conf/"+w.podIf+"/accept_dad", "0"),
		set("ipv6/conf/all/forwarding", forwarding))
}

// hostSettings6 make the host's side the pod's IPv6 gateway from the first moment: its link-local address is made from its MAC, and
// is used without asking around for duplicates, of which there can be none. They must be set before the pod's side is up: the address
// comes with the carrier. The calling thread must be in the host's network namespace.
func hostSettings6(hostIf string) error {
	dir := "ipv6/conf/" + hostIf + "/"
	return errors.Join(set(dir+"accept_dad", "0"), set(dir+"addr_gen_mode", "0"), set(dir+"disable_ipv6", "0"))
}

// set writes a setting below /proc/sys/net unless it has the value: writing some of them costs the kernel much more than reading.
func set(name, value string) error {
	path := "/proc/sys/net/" + name
	have, err := os.ReadFile(path)
	if err == nil && string(bytes.TrimSpace(have)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0o644)
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}

// configure brings the pod's side up and gives it its MAC, routes and addresses. The routes come first, so that from the
// moment the pod has an address it can reach others.
func (p *pair) configure(addrs []netip.Addr, mac kernel.MAC, routes []rtnl.InsideRoute) error {
	want := rtnl.Inside{Name: p.pod.Name, Index: p.pod.Index, Routes: routes, Addrs: addrs}
	if mac != p.mac {
		want.MAC = &mac
	}
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		if err := hostSettings6(p.host.Name); err != nil {
			return err
		}
		gateway, err := neighbour6()
		if err != nil {
			return err
		}
		want.Neighs = append(want.Neighs, gateway)
	}
	if err := p.inside.SetUp(want); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	p.mac = mac
	return nil
}

// neighbour6 tells the pod its gateway's MAC, which is always the same. The host's link-local address comes some moments after the
// carrier, and a pod that had asked for it just before would ask again only a second later (RFC 4861, RETRANS_TIMER).
func neighbour6() (out rtnl.InsideNeigh, err error) {
	out.Addr = netip.MustParseAddr(gateway6)
	out.MAC, err = kernel.ParseMAC(hostside.MAC)
	return out, err
}

// podRoutes are the routes to dsts, or everywhere if there are none, of a pod with these addresses, in the order in which the kernel
// takes them. All traffic goes to a next hop that the host's side answers for: in IPv4 by proxy ARP, in IPv6 as its link-local address.
func podRoutes(addrs []netip.Addr, dsts []netip.Prefix) []rtnl.InsideRoute {
	if len(dsts) == 0 {
		dsts = defaultRoutes()
	}
	var out []rtnl.InsideRoute
	for _, a := range addrs {
		gw := netip.MustParseAddr(gateway6)
		if a.Is4() {
			gw = netip.MustParseAddr(hostside.Gateway)
			out = append(out, rtnl.InsideRoute{Dst: netip.PrefixFrom(gw, gw.BitLen())})
		}
		for _, dst := range dsts {
			if r := (rtnl.InsideRoute{Dst: dst, Gateway: gw}); dst.Addr().Is4() == a.Is4() && !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

func defaultRoutes() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// gateway6 is the link-local address that the kernel gives to an interface with the MAC hostside.MAC (RFC 4291, appendix A).
const gateway6 = "fe80::ecee:eeff:feee:eeee"

// ipNet is a prefix as the netlink and CNI libraries take it.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
