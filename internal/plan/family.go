package plan

import (
	"net/netip"

	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// family is the part of a computation that is done once for IPv4 and once for IPv6.
type family struct {
	*computation
	v6     bool
	vxlan  bool            // some pool of the family uses VXLAN
	mtu    int             // of the VXLAN device
	self   netip.Prefix    // this node's address with its subnet; invalid if unknown
	parent kernel.Dev      // the device that holds it; zero if none
	dev    kernel.Dev      // the VXLAN device, if tunnel
	tunnel bool            // the VXLAN device is there and up, so that routes can hang on it
	vteps  map[string]bool // nodes whose VXLAN device we reach through ours
}

func (c *computation) family(v6 bool, hostMTU int) *family {
	f := &family{computation: c, v6: v6, vteps: map[string]bool{}}
	for _, p := range c.Pools {
		f.vxlan = f.vxlan || p.Spec.CIDR.Addr().Is6() == v6 && p.Spec.VXLANMode != api.Never
	}
	if c.VXLANEnabled != nil {
		f.vxlan = *c.VXLANEnabled
	}
	configured, overhead := c.VXLANMTU, vxlanOverhead
	if v6 {
		configured, overhead = c.VXLANMTUV6, vxlanOverheadV6
	}
	f.mtu = configured
	if f.mtu == 0 {
		f.mtu = hostMTU - overhead
	}
	f.locate()
	f.limitMTU(overhead)
	return f
}

// String is the family's name.
func (f *family) String() string {
	if f.v6 {
		return "IPv6"
	}
	return "IPv4"
}

// variable is the environment variable that says where the agent finds the node's address.
func (f *family) variable() string {
	if f.v6 {
		return "IP6"
	}
	return "IP"
}

// limitMTU lowers an MTU that the kernel would refuse: a tunnel's packets must fit into those of the device below.
func (f *family) limitMTU(overhead int) {
	below, ok := f.host.Links[f.parent.Name]
	if most := below.MTU - overhead; ok && f.vxlan && f.mtu > most {
		f.problem("FelixConfiguration", "an MTU of %d for %s does not fit into the %d of %s; %d is used", f.mtu, f.deviceName(), below.MTU, f.parent.Name, most)
		f.mtu = most
	}
}

// locate finds this node's own address and the device that holds it.
func (f *family) locate() {
	me := f.nodes[f.Node]
	if me == nil {
		f.problem("Node("+f.Node+")", "is not in the datastore; the agent writes it at start")
		return
	}
	addr, ok := me.Address(f.v6)
	if !ok {
		return
	}
	f.self = addr
	if f.parent, ok = f.host.Holder(addr.Addr()); !ok {
		f.problem("Node("+f.Node+")", "no device that is up holds its address %v; correct IP or IP_AUTODETECTION_METHOD", addr.Addr())
	}
}

// deviceName is the name of the family's VXLAN device.
func (f *family) deviceName() string {
	if f.v6 {
		return kernel.VXLAN6Device
	}
	return kernel.VXLANDevice
}

// device adds the VXLAN device, its address, and how to reach every other node's.
func (f *family) device() {
	if !f.vxlan || f.parent == (kernel.Dev{}) {
		return
	}
	name := f.deviceName()
	me := f.nodes[f.Node]
	mac, ok := f.vtepMAC(me)
	if !ok {
		return
	}
	f.out.Links[name] = kernel.Link{
		VNI: f.VXLANVNI, Port: f.VXLANPort, Local: f.self.Addr(), Parent: f.parent, MAC: mac, MTU: f.mtu,
	}
	if a := tunnelAddr(me, f.v6); a.IsValid() {
		f.out.Addrs[kernel.AddrKey{Link: name, Addr: netip.PrefixFrom(a, a.BitLen())}] = struct{}{}
	} else {
		f.problem("Node("+f.Node+")", "has no VXLAN tunnel address yet; it is allocated once a pool with VXLAN selects the node")
	}
	f.dev, f.tunnel = f.host.Dev(name)
	if !f.tunnel {
		return
	}
	for _, n := range f.Nodes {
		f.vtep(n)
	}
}

// vtep adds the permanent neighbour and forwarding entry for another node's VXLAN device.
func (f *family) vtep(n *api.Node) {
	addr, known := n.Address(f.v6)
	tunnel := tunnelAddr(n, f.v6)
	if n.Metadata.Name == f.Node || !known || !tunnel.IsValid() {
		return
	}
	mac, ok := f.vtepMAC(n)
	key := kernel.NeighKey{Dev: f.dev, Addr: tunnel}
	_, taken := f.out.Neighs[key]
	switch {
	case !ok || f.ours(n, addr):
	case taken || tunnel == tunnelAddr(f.nodes[f.Node], f.v6):
		f.problem("Node("+n.Metadata.Name+")", "has the VXLAN tunnel address %v of another node; remove it from the Node, and its agent allocates one", tunnel)
	default:
		f.out.Neighs[key] = mac
		f.out.FDB[kernel.FDBKey{Dev: f.dev, MAC: mac}] = addr.Addr()
		f.vteps[n.Metadata.Name] = true
	}
}

// ours reports whether another node's address is our own: it cannot be reached then, and the kernel refuses such routes.
func (f *family) ours(n *api.Node, addr netip.Prefix) bool {
	if addr.Addr() != f.self.Addr() {
		return false
	}
	f.problem("Node("+n.Metadata.Name+")", "has the address %v of this node; correct it, or delete the Node if it is this host's old name", addr.Addr())
	return true
}

func (f *family) vtepMAC(n *api.Node) (kernel.MAC, bool) {
	set := n.Spec.VXLANTunnelMACAddr
	if f.v6 {
		set = n.Spec.VXLANTunnelMACAddr6
	}
	if set == "" {
		return hostside.VTEPMAC(n.Metadata.Name, f.v6), true
	}
	mac, err := kernel.ParseMAC(set)
	if err != nil {
		f.problem("Node("+n.Metadata.Name+")", "spec.vxlanTunnelMACAddr: %v; correct or remove it", err)
	}
	return mac, err == nil
}

// tunnelAddr is the address of a node's VXLAN device; the zero Addr if it has none of the family.
func tunnelAddr(n *api.Node, v6 bool) netip.Addr {
	a := n.Spec.IPv4VXLANTunnelAddr
	if v6 {
		a = n.Spec.IPv6VXLANTunnelAddr
	}
	if a.Is6() != v6 {
		return netip.Addr{}
	}
	return a
}
