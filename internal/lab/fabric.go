package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses of a lab exist only inside its namespaces.
const (
	underlayNet   = "172.30.0.0/16"
	underlayNet6  = "fd00:172:30::/48"
	etcdAddr      = "172.30.0.1" // on the fabric's loopback: the same from every subnet
	etcdPort      = "2379"
	peerPort      = "2380"           // between etcd's members
	fabricAddr6   = "fd00:172:30::1" // beside it, in a dual-stack lab
	outsideSubnet = 254
	gatewayHost   = 254
	subnetBits    = 24
	subnetBits6   = 64
)

func underlay(subnet, host int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 30, byte(subnet), byte(host)})
}

func underlay6(subnet, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0x01, 0x72, 0, 0x30, 7: byte(subnet), 15: byte(host)})
}

// subnetAddrs are the addresses of a host on a subnet, of every family of the lab.
func (o Options) subnetAddrs(subnet, host int) []netip.Prefix {
	addrs := []netip.Prefix{netip.PrefixFrom(underlay(subnet, host), subnetBits)}
	if o.DualStack {
		addrs = append(addrs, netip.PrefixFrom(underlay6(subnet, host), subnetBits6))
	}
	return addrs
}

// plannedNodes are the nodes of a lab before anything of them exists.
func plannedNodes(o Options) []Node {
	nodes := make([]Node, o.Nodes)
	for i := range nodes {
		nodes[i] = o.plannedNode(i + 1)
	}
	return nodes
}

// plannedNode is the node of a number, which counts from 1.
func (o Options) plannedNode(number int) Node {
	subnet := (number-1)%o.Subnets + 1
	n := Node{Name: fmt.Sprintf("node-%d", number), Subnet: subnet, Addr: underlay(subnet, number)}
	if o.DualStack {
		n.Addr6 = underlay6(subnet, number)
	}
	return n
}

// wireFabric joins the namespaces of a lab whose holders run.
func wireFabric(s *state) error {
	return inFabric(s, func(fabric *place, h *netlink.Handle) error { return wireAll(s, fabric, h) })
}

// inFabric lends the fabric's namespaces, and netlink in there.
func inFabric(s *state, fn func(*place, *netlink.Handle) error) error {
	fabric, err := openPlace(s.Fabric)
	if err != nil {
		return fmt.Errorf("enter fabric: %w", err)
	}
	defer fabric.close()
	h, err := fabric.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(fabric, h)
}

func wireAll(s *state, fabric *place, h *netlink.Handle) error {
	if err := setUpFabric(fabric, h, s.Options); err != nil {
		return fmt.Errorf("set up fabric: %w", err)
	}
	if err := tryWireGuard(h, s.Options); err != nil {
		return err
	}
	o := s.Options
	for _, n := range s.Nodes {
		if err := plugNode(h, o, n); err != nil {
			return err
		}
	}
	gateways := o.subnetAddrs(outsideSubnet, gatewayHost)
	if err := plug(h, port{host: s.Outside, name: "outside", addrs: o.subnetAddrs(outsideSubnet, 1), gateways: gateways}); err != nil {
		return fmt.Errorf("plug outside into fabric: %w", err)
	}
	link, err := h.LinkByName("outside")
	if err != nil {
		return fmt.Errorf("find link outside: %w", err)
	}
	return addAddrs(h, link, gateways)
}

// tryWireGuard sees that the kernel has what a lab with encryption is for.
func tryWireGuard(h *netlink.Handle, o Options) error {
	if !o.WireGuard {
		return nil
	}
	trial := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "trial"}}
	if err := h.LinkAdd(trial); err != nil {
		return fmt.Errorf("this kernel has no WireGuard: try the lab in a virtual machine, `sudo make vm CMD='bin/muslin-lab demo --wireguard'`: %w", err)
	}
	return h.LinkDel(trial)
}

func bridgeName(subnet int) string { return fmt.Sprintf("br-%d", subnet) }

// setUpFabric makes the fabric a router with one bridge a subnet.
func setUpFabric(fabric *place, h *netlink.Handle, o Options) error {
	settings := map[string]string{
		"net/ipv4/ip_forward":             "1",
		"net/ipv4/conf/all/rp_filter":     "0",
		"net/ipv4/conf/default/rp_filter": "0",
	}
	if o.DualStack {
		settings["net/ipv6/conf/all/forwarding"] = "1"
		settings["net/ipv6/conf/default/accept_dad"] = "0" // nobody waits for addresses that are planned
	} else {
		settings["net/ipv6/conf/all/disable_ipv6"] = "1"
		settings["net/ipv6/conf/default/disable_ipv6"] = "1"
	}
	if err := fabric.sysctls(settings); err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	var own []netip.Prefix
	for _, addr := range o.etcdAddrs() {
		own = append(own, netip.PrefixFrom(netip.MustParseAddr(addr), 32))
	}
	if o.DualStack {
		own = append(own, netip.PrefixFrom(netip.MustParseAddr(fabricAddr6), 128))
	}
	if err := errors.Join(h.LinkSetUp(lo), addAddrs(h, lo, own)); err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	for subnet := 1; subnet <= o.Subnets; subnet++ {
		// An address of its own: else it is that of a port, and changes as nodes come and go, under neighbours who know it.
		mac := net.HardwareAddr{0x02, 0, 0, 0, 0xff, byte(subnet)}
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName(subnet), HardwareAddr: mac}}
		if err := h.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge %s: %w", br.Name, err)
		}
		if err := errors.Join(addAddrs(h, br, o.subnetAddrs(subnet, gatewayHost)), h.LinkSetUp(br)); err != nil {
			return fmt.Errorf("set up bridge %s: %w", br.Name, err)
		}
	}
	return nil
}

// port is where a host is plugged into the fabric.
type port struct {
	host     process        // whose eth0 it is
	name     string         // of the fabric's end
	bridge   string         // "": none
	addrs    []netip.Prefix // of the host's end
	gateways []netip.Prefix // of each family that the host has
}

func plugNode(fabric *netlink.Handle, o Options, n Node) error {
	addrs := []netip.Prefix{netip.PrefixFrom(n.Addr, subnetBits)}
	if n.Addr6.IsValid() {
		addrs = append(addrs, netip.PrefixFrom(n.Addr6, subnetBits6))
	}
	p := port{host: n.Holder, name: n.Name, bridge: bridgeName(n.Subnet), addrs: addrs, gateways: o.subnetAddrs(n.Subnet, gatewayHost)}
	if err := plug(fabric, p); err != nil {
		return fmt.Errorf("plug %s into fabric: %w", n.Name, err)
	}
	return nil
}

// plug makes a veth pair with one end in the fabric and the other, eth0, in the host, and sets up both.
func plug(fabric *netlink.Handle, p port) error {
	host, err := openPlace(p.host)
	if err != nil {
		return err
	}
	defer host.close()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: p.name},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(host.net.Fd()),
	}
	if err := fabric.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	if p.bridge != "" {
		br, err := fabric.LinkByName(p.bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", p.bridge, err)
		}
		if err := fabric.LinkSetMaster(veth, br); err != nil {
			return fmt.Errorf("put %s on bridge %s: %w", p.name, p.bridge, err)
		}
	}
	if err := fabric.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set %s up: %w", p.name, err)
	}
	return setUpHost(host, p)
}

// setUpHost gives a host what its administrator would: an address, a default route, and the kernel's defaults for forwarding.
func setUpHost(host *place, p port) error {
	settings := map[string]string{
		"net/ipv4/ip_forward":             "0", // the agent's business
		"net/ipv4/conf/all/rp_filter":     "0",
		"net/ipv4/conf/default/rp_filter": "0",
		"net/ipv6/conf/eth0/disable_ipv6": "1",
	}
	if len(p.addrs) > 1 {
		settings["net/ipv6/conf/eth0/disable_ipv6"] = "0"
		settings["net/ipv6/conf/eth0/accept_dad"] = "0"
	}
	if err := host.sysctls(settings); err != nil {
		return err
	}
	h, err := host.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if name == "eth0" {
			err = addAddrs(h, link, p.addrs)
		}
		if err = errors.Join(err, h.LinkSetUp(link)); err != nil {
			return fmt.Errorf("set up %s: %w", name, err)
		}
	}
	for _, gw := range p.gateways {
		if err := h.RouteAdd(&netlink.Route{Gw: gw.Addr().AsSlice()}); err != nil {
			return fmt.Errorf("add default route via %v: %w", gw.Addr(), err)
		}
	}
	return nil
}

func addAddrs(h *netlink.Handle, link netlink.Link, prefixes []netip.Prefix) error {
	var errs []error
	for _, p := range prefixes {
		errs = append(errs, addAddr(h, link, p))
	}
	return errors.Join(errs...)
}

func addAddr(h *netlink.Handle, link netlink.Link, prefix netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s: %w", prefix, err)
	}
	return nil
}
