package plan

import (
	"net/netip"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// blocks adds a route for every block, and one for each address that is used by another node than its block's.
func (f *family) blocks() {
	for _, b := range f.Blocks {
		if b.CIDR.Addr().Is6() != f.v6 {
			continue
		}
		owner, affine := b.Host()
		switch {
		case !affine:
		case owner != f.Node:
			f.remote(b.CIDR, owner)
		case !b.CIDR.IsSingleIP():
			f.out.Routes[f.key(b.CIDR)] = kernel.Route{Type: kernel.Blackhole, Protocol: kernel.RouteProtocol}
		}
		f.borrowed(b, owner)
	}
}

// borrowed adds routes to the addresses of a block that are used on another node than its owner.
func (f *family) borrowed(b *api.Block, owner string) {
	for i, at := range b.Allocation {
		if at == nil || *at < 0 || *at >= len(b.Attributes) {
			continue
		}
		user := b.Attributes[*at].Secondary[api.AttrNode]
		if user == "" || user == owner || user == f.Node {
			continue
		}
		a := nth(b.CIDR.Addr(), i)
		f.remote(netip.PrefixFrom(a, a.BitLen()), user)
	}
}

// remote adds the route to a range that is used on another node. The address of a pod of ours is not, whatever its block says.
func (f *family) remote(dst netip.Prefix, owner string) {
	if _, here := f.local[dst.Addr()]; here && dst.IsSingleIP() {
		return
	}
	object := "Node(" + owner + ")"
	n := f.nodes[owner]
	if n == nil {
		f.problem(object, "owns %v but is not in the datastore; no route until it is back or its addresses are released", dst)
		return
	}
	addr, ok := n.Address(f.v6)
	if !ok {
		f.problem(object, "owns %v but has no address of that family; no route until its agent has started", dst)
		return
	}
	if !f.self.IsValid() && f.nodes[f.Node] != nil {
		f.problem("Node("+f.Node+")", "has no %s address, so its pods reach no other node by %[1]s; set %s=autodetect for its agent", f, f.variable())
	}
	if f.parent == (kernel.Dev{}) || f.ours(n, addr) {
		return
	}
	near := f.self.Contains(addr.Addr())
	vxlan, ipip := api.Never, api.Never
	name := "no pool"
	if pool := f.poolOf(dst); pool != nil {
		vxlan, ipip, name = pool.Spec.VXLANMode, pool.Spec.IPIPMode, "IPPool("+pool.Metadata.Name+")"
	}
	switch {
	case encapsulated(vxlan, near):
		f.throughVXLAN(dst, name, n)
	case encapsulated(ipip, near):
		f.throughIPIP(dst, name, addr.Addr())
	case near:
		f.out.Routes[f.key(dst)] = kernel.Route{
			Gateway: addr.Addr(), Dev: f.parent, Onlink: true, Protocol: kernel.RouteProtocol,
		}
	default:
		f.problem(object, "is outside our subnet %v and %s is not encapsulated there: the route to %v must come from the network. "+
			"Use vxlanMode CrossSubnet or Always if it does not", f.self.Masked(), name, dst)
	}
}

func encapsulated(mode api.EncapMode, near bool) bool {
	return mode == api.Always || mode == api.CrossSubnet && !near
}

// throughVXLAN routes a range to a node's VXLAN device. The tunnel address itself may stand outside the node's blocks:
// then it is reached directly on the device.
func (f *family) throughVXLAN(dst netip.Prefix, pool string, n *api.Node) {
	gw := vxlanAddr(n, f.v6)
	switch {
	case !f.vxlan.asked:
		f.problem(pool, "uses VXLAN, and vxlanEnabled is false on this node; no route to %v", dst)
	case !gw.IsValid():
		f.problem("Node("+n.Metadata.Name+")", "has no VXLAN tunnel address yet; no route to %v until its agent has allocated one", dst)
		f.hold(dst)
	case !f.vxlan.ready || !f.vteps[n.Metadata.Name]:
		f.hold(dst)
	case dst.IsSingleIP() && dst.Addr() == gw:
		f.out.Routes[f.key(dst)] = kernel.Route{Scope: kernel.LinkScope, Dev: f.vxlan.dev, Protocol: kernel.RouteProtocol}
	default:
		f.out.Routes[f.key(dst)] = kernel.Route{Gateway: gw, Dev: f.vxlan.dev, Onlink: true, Protocol: kernel.RouteProtocol}
	}
}

// throughIPIP routes a range to a node through the IP-in-IP device, which sends to the gateway's address what is routed via it.
func (f *family) throughIPIP(dst netip.Prefix, pool string, node netip.Addr) {
	switch {
	case !f.ipip.asked:
		f.problem(pool, "uses IP-in-IP, and ipipEnabled is false on this node; no route to %v", dst)
	case !f.ipip.ready:
		f.hold(dst)
	default:
		f.out.Routes[f.key(dst)] = kernel.Route{Gateway: node, Dev: f.ipip.dev, Onlink: true, Protocol: kernel.RouteProtocol}
	}
}

// hold leaves standing what carries a range's packets until its new route can be written.
func (f *family) hold(dst netip.Prefix) { f.out.Held[f.key(dst)] = struct{}{} }

// key names a route to a range. The kernel gives an IPv6 route without metric this one.
func (f *family) key(dst netip.Prefix) kernel.RouteKey {
	if f.v6 {
		return kernel.RouteKey{Dst: dst, Metric: 1024}
	}
	return kernel.RouteKey{Dst: dst}
}

// nth is the address i places after a.
func nth(a netip.Addr, i int) netip.Addr {
	b := a.AsSlice()
	for at := len(b) - 1; at >= 0 && i > 0; at-- {
		i += int(b[at])
		b[at] = byte(i)
		i >>= 8
	}
	out, _ := netip.AddrFromSlice(b) // the length is that of an address
	return out
}
