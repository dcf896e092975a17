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
		f.throughVXLAN(dst, n)
	case encapsulated(ipip, near):
		f.problem(name, "uses IP-in-IP, which this version does not program; no route to %s. Use vxlanMode", owner)
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
func (f *family) throughVXLAN(dst netip.Prefix, n *api.Node) {
	gw := tunnelAddr(n, f.v6)
	if !gw.IsValid() {
		f.problem("Node("+n.Metadata.Name+")", "has no VXLAN tunnel address yet; no route to %v until its agent has allocated one", dst)
		return
	}
	if !f.tunnel || !f.vteps[n.Metadata.Name] {
		return
	}
	r := kernel.Route{Gateway: gw, Dev: f.dev, Onlink: true, Protocol: kernel.RouteProtocol}
	if dst.IsSingleIP() && dst.Addr() == gw {
		r = kernel.Route{Scope: kernel.LinkScope, Dev: f.dev, Protocol: kernel.RouteProtocol}
	}
	f.out.Routes[f.key(dst)] = r
}

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
