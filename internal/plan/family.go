package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// family is the part of a computation that is done once for IPv4 and once for IPv6.
type family struct {
	*computation
	v6     bool
	self   netip.Prefix    // this node's address with its subnet; invalid if unknown
	parent kernel.Dev      // the device that holds it; zero if none
	vxlan  tunnel          // of the family
	ipip   tunnel          // IPv4 only
	wg     encryption      // of the family
	vteps  map[string]bool // nodes whose VXLAN device we reach through ours
	hosts  []nodeAddr      // of all nodes, by address
}

// leastMTU6 is what every link with IPv6 carries (RFC 8200, section 5). The kernel takes IPv6 off a device with less.
const leastMTU6 = 1280

// tunnel is one encapsulation of a family.
type tunnel struct {
	kind    string     // what it is called
	setting string     // that may ask for it in place of pools
	pooled  bool       // a pool uses it
	asked   bool       // routes may go through it
	on      bool       // it receives: it is asked for, or was until lately
	mtu     int        // of the device
	dev     kernel.Dev // the device, if ready
	ready   bool       // the device is there and up, so that routes can hang on it
}

func (c *computation) family(v6 bool) *family {
	f := &family{computation: c, v6: v6, vteps: map[string]bool{}}
	f.vxlan, f.ipip = tunnel{kind: "VXLAN", setting: "vxlanEnabled"}, tunnel{kind: "IP-in-IP", setting: "ipipEnabled"}
	if v6 {
		f.vxlan.when(c.pooled.VXLAN6, c.asked.VXLAN6, c.Keep.VXLAN6)
		f.wg = c.WireGuard.encryption(true, c.asked.WireGuard6, c.Keep.WireGuard6)
	} else {
		f.wg = c.WireGuard.encryption(false, c.asked.WireGuard, c.Keep.WireGuard)
		f.vxlan.when(c.pooled.VXLAN, c.asked.VXLAN, c.Keep.VXLAN)
		f.ipip.when(c.pooled.IPIP, c.asked.IPIP, c.Keep.IPIP)
	}
	f.locate()
	for _, n := range c.Nodes {
		if a, ok := n.Address(v6); ok {
			f.hosts = append(f.hosts, nodeAddr{a.Addr(), n.Metadata.Name})
		}
	}
	slices.SortStableFunc(f.hosts, func(a, b nodeAddr) int { return a.addr.Compare(b.addr) })
	return f
}

type nodeAddr struct {
	addr netip.Addr
	node string
}

// when says who wants the tunnel: pools, pools or a setting, and nodes that may send through it still.
func (t *tunnel) when(pooled, asked, kept bool) {
	t.pooled, t.asked, t.on = pooled, asked, asked || kept
}

// who says who asks for the tunnel.
func (t *tunnel) who() string {
	if t.pooled {
		return "its pools ask"
	}
	return t.setting + " asks"
}

// size sets the MTU of the family's tunnels by that of the host, and returns what its pods may use: what fits into every tunnel that
// their packets may take.
func (f *family) size(host int) (pods int) {
	configured, overhead := f.VXLANMTU, VXLANOverhead
	if f.v6 {
		configured, overhead = f.VXLANMTUV6, VXLANOverheadV6
	}
	f.vxlan.mtu = cmp.Or(configured, host-overhead)
	f.ipip.mtu = cmp.Or(f.IPIPMTU, host-IPIPOverhead)
	f.limitMTU(&f.vxlan, f.vxlanName(), overhead)
	f.limitMTU(&f.ipip, kernel.IPIPDevice, IPIPOverhead)
	f.wg.mtu = cmp.Or(f.wg.mtu, host-f.wg.overhead)
	f.limitMTU(&f.wg.tunnel, f.wg.name, f.wg.overhead)
	pods = host
	for _, t := range []tunnel{f.vxlan, f.ipip, f.wg.tunnel} {
		if t.asked {
			pods = min(pods, t.mtu)
		}
	}
	return pods
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

// limitMTU lowers an MTU that cannot be: a tunnel's packets must fit into those of the device below. For VXLAN the kernel would refuse it,
// and with IP-in-IP large packets would be lost.
func (f *family) limitMTU(t *tunnel, name string, overhead int) {
	below, ok := f.host.Links[f.parent.Name]
	if most := below.MTU - overhead; ok && t.on && t.mtu > most {
		f.problem("FelixConfiguration", "an MTU of %d for %s does not fit into the %d of %s; %d is used", t.mtu, name, below.MTU, f.parent.Name, most)
		t.mtu = most
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
		f.problem("Node("+f.Node+")", "no device that is up holds its address %v; correct %s or %[2]s_AUTODETECTION_METHOD", addr.Addr(), f.variable())
	}
}

// vxlanName is the name of the family's VXLAN device.
func (f *family) vxlanName() string {
	if f.v6 {
		return kernel.VXLAN6Device
	}
	return kernel.VXLANDevice
}

// vxlanDevice adds the VXLAN device, its address, and how to reach every other node's.
func (f *family) vxlanDevice() {
	if !f.vxlan.on || f.parent == (kernel.Dev{}) {
		return
	}
	name := f.vxlanName()
	me := f.nodes[f.Node]
	mac, ok := f.vtepMAC(me)
	if !ok {
		return
	}
	f.out.Links[name] = kernel.Link{
		Type: kernel.VXLAN, VNI: f.VXLANVNI, Port: f.VXLANPort, Local: f.self.Addr(), Parent: f.parent, MAC: mac, MTU: f.vxlan.mtu,
	}
	if f.v6 && f.vxlan.mtu < leastMTU6 {
		f.problem("Node("+f.Node+")", "%s has an MTU of %d, and IPv6 needs %d: no IPv6 through it; raise the MTU of %s to %d",
			name, f.vxlan.mtu, leastMTU6, f.parent.Name, leastMTU6+VXLANOverheadV6)
		return
	}
	f.tunnelAddr(f.vxlan, name, vxlanAddr(me, f.v6))
	if f.vxlan.dev, f.vxlan.ready = f.host.Dev(name); !f.vxlan.ready {
		return
	}
	neighs, fdb := f.out.Neighs, f.out.FDB
	f.out.Neighs = make(map[kernel.NeighKey]kernel.MAC, len(neighs)+len(f.Nodes)) // maps that grow are filled twice
	f.out.FDB = make(map[kernel.FDBKey]netip.Addr, len(fdb)+len(f.Nodes))
	maps.Copy(f.out.Neighs, neighs)
	maps.Copy(f.out.FDB, fdb)
	for _, n := range f.Nodes {
		f.vtep(n)
	}
}

// ipipDevice adds the IP-in-IP device and its address. Unlike VXLAN it needs to know nothing of the other nodes.
func (f *family) ipipDevice() {
	if !f.ipip.on {
		return
	}
	if _, there := f.host.Links[kernel.IPIPDevice]; !there && f.NoIPIP != "" {
		f.ipip.on = false
		f.problem("Node("+f.Node+")", "cannot do IP-in-IP, which %s for: %s; routes through it follow as soon as %s is there", f.ipip.who(), f.NoIPIP, kernel.IPIPDevice)
		return
	}
	f.out.Links[kernel.IPIPDevice] = kernel.Link{Type: kernel.IPIP, MTU: f.ipip.mtu}
	if me := f.nodes[f.Node]; me != nil {
		f.tunnelAddr(f.ipip, kernel.IPIPDevice, ipipAddr(me))
	}
	f.ipip.dev, f.ipip.ready = f.host.Dev(kernel.IPIPDevice)
}

// tunnelAddr gives a tunnel's device the address that our Node says.
func (f *family) tunnelAddr(t tunnel, dev string, a netip.Addr) {
	switch {
	case a.IsValid():
		f.out.Addrs[kernel.AddrKey{Link: dev, Addr: netip.PrefixFrom(a, a.BitLen())}] = struct{}{}
	case t.asked && !t.pooled:
		f.problem("FelixConfiguration", "%s is true and no %v pool uses %s: %s is there, has no address, and nothing is sent through it; "+
			"remove the setting, or give a pool that mode", t.setting, f, t.kind, dev)
	case t.asked:
		f.problem("Node("+f.Node+")", "has no %s tunnel address yet; it is allocated once a pool with %[1]s selects the node", t.kind)
	}
}

// vtep adds the permanent neighbour and forwarding entry for another node's VXLAN device.
func (f *family) vtep(n *api.Node) {
	addr, known := n.Address(f.v6)
	tunnel := vxlanAddr(n, f.v6)
	if n.Metadata.Name == f.Node || !known || !tunnel.IsValid() {
		return
	}
	mac, ok := f.vtepMAC(n)
	key := kernel.NeighKey{Dev: f.vxlan.dev, Addr: tunnel}
	_, taken := f.out.Neighs[key]
	switch {
	case f.ours(addr):
		f.problem("Node("+n.Metadata.Name+")", oursText, addr.Addr())
	case !ok:
	case taken || tunnel == vxlanAddr(f.nodes[f.Node], f.v6):
		f.problem("Node("+n.Metadata.Name+")", "has the VXLAN tunnel address %v of another node; remove it from the Node, and its agent allocates one", tunnel)
	default:
		f.out.Neighs[key] = mac
		f.out.FDB[kernel.FDBKey{Dev: f.vxlan.dev, MAC: mac}] = addr.Addr()
		f.vteps[n.Metadata.Name] = true
	}
}

// ours reports whether another node's address is our own: it cannot be reached then, and the kernel refuses such routes.
func (f *family) ours(addr netip.Prefix) bool { return addr.Addr() == f.self.Addr() }

const oursText = "has the address %v of this node; correct it, or delete the Node if it is this host's old name"

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

// vxlanAddr is the address of a node's VXLAN device; the zero Addr if it has none of the family.
func vxlanAddr(n *api.Node, v6 bool) netip.Addr {
	a := n.Spec.IPv4VXLANTunnelAddr
	if v6 {
		a = n.Spec.IPv6VXLANTunnelAddr
	}
	if a.Is6() != v6 {
		return netip.Addr{}
	}
	return a
}

// ipipAddr is the address of a node's IP-in-IP device; the zero Addr if it has none.
func ipipAddr(n *api.Node) netip.Addr {
	if n.Spec.BGP == nil || !n.Spec.BGP.IPv4IPIPTunnelAddr.Is4() {
		return netip.Addr{}
	}
	return n.Spec.BGP.IPv4IPIPTunnelAddr
}
