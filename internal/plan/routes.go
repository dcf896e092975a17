package plan

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// block adds the route to a block, and one for each of its addresses that is used by another node than its own.
func (r *routing) block(b *api.Block) {
	owner, affine := b.Host()
	switch {
	case !affine:
	case r.coversNode(b.CIDR):
	case owner != r.Node:
		r.remote(b.CIDR, owner)
	case !b.CIDR.IsSingleIP():
		r.route(b.CIDR, kernel.Route{Type: kernel.Blackhole})
	}
	r.borrowed(b, owner)
}

// coversNode tells whether a node has its address in a range, and says so: a route to the range would cut the node off, and with it perhaps etcd, which is
// needed to put the pool right.
func (r *routing) coversNode(dst netip.Prefix) bool {
	first := dst.Masked().Addr()
	at, _ := slices.BinarySearchFunc(r.hosts, first, func(h nodeAddr, a netip.Addr) int { return h.addr.Compare(a) })
	if at == len(r.hosts) || !dst.Contains(r.hosts[at].addr) {
		return false
	}
	r.problem("Node("+r.hosts[at].node+")", "has its address %v in %v, which pods' addresses are from: no route to that; "+
		"take its pool out of use and make one beside the nodes' network", r.hosts[at].addr, dst)
	return true
}

// borrowed adds routes to the addresses of a block that are used on another node than its owner.
func (r *routing) borrowed(b *api.Block, owner string) {
	for i, at := range b.Allocation {
		if at == nil || *at < 0 || *at >= len(b.Attributes) {
			continue
		}
		if owner != r.Node {
			r.passBy(nth(b.CIDR.Addr(), i))
		}
		user := b.Attributes[*at].Secondary[api.AttrNode]
		if user == "" || user == owner || user == r.Node {
			continue
		}
		a := nth(b.CIDR.Addr(), i)
		r.remote(netip.PrefixFrom(a, a.BitLen()), user)
	}
}

// remote adds the route to a range that is used on another node. The address of a pod of ours is not, whatever its block says.
func (r *routing) remote(dst netip.Prefix, owner string) {
	if _, here := r.local[dst.Addr()]; here && dst.IsSingleIP() {
		return
	}
	if dst.IsSingleIP() && r.coversNode(dst) {
		return
	}
	encrypted := r.encrypt(dst, owner)
	object := "Node(" + owner + ")"
	n := r.nodes[owner]
	if n == nil {
		r.problem(object, "owns %v but is not in the datastore; no route until it is back or its addresses are released", dst)
		return
	}
	addr, ok := n.Address(r.v6)
	if !ok {
		r.problem(object, "owns %v but has no address of that family; no route until its agent has started", dst)
		return
	}
	if !r.self.IsValid() && r.nodes[r.Node] != nil {
		r.problem("Node("+r.Node+")", "has no %s address, so its pods reach no other node by %[1]s; set %s=autodetect for its agent", r.family, r.variable())
	}
	if r.parent == (kernel.Dev{}) {
		return
	}
	if r.ours(addr) {
		r.problem(object, oursText, addr.Addr())
		return
	}
	near := r.self.Contains(addr.Addr())
	vxlan, ipip := api.Never, api.Never
	name := "no pool"
	if pool := r.poolOf(dst); pool != nil {
		vxlan, ipip, name = pool.Spec.VXLANMode, pool.Spec.IPIPMode, "IPPool("+pool.Metadata.Name+")"
	}
	switch {
	case vxlan.Encapsulates(near):
		r.throughVXLAN(dst, name, n)
	case ipip.Encapsulates(near):
		r.throughIPIP(dst, name, n, addr.Addr())
	case near:
		r.route(dst, kernel.Route{Gateway: addr.Addr(), Dev: r.parent, Onlink: true})
	case encrypted: // needs no route of the network's
	default:
		r.part.beyond = append(r.part.beyond, beyond{dst, newProblem(object, "is outside our subnet %v and %s is not encapsulated there: "+
			"the route to %v must come from the network. Use vxlanMode CrossSubnet or Always if it does not", r.self.Masked(), name, dst)})
	}
}

// throughVXLAN routes a range to a node's VXLAN device. The tunnel address itself may stand outside the node's blocks:
// then it is reached directly on the device.
func (r *routing) throughVXLAN(dst netip.Prefix, pool string, n *api.Node) {
	gw := vxlanAddr(n, r.v6)
	switch {
	case !r.vxlan.asked:
		r.problem(pool, "uses VXLAN, and vxlanEnabled is false on this node; no route to %v", dst)
	case !gw.IsValid():
		r.problem("Node("+n.Metadata.Name+")", "has no VXLAN tunnel address yet; no route to %v until its agent has allocated one", dst)
		r.hold(dst)
	case !r.vxlan.ready || !r.vteps[n.Metadata.Name]:
		r.hold(dst)
	case dst.IsSingleIP() && dst.Addr() == gw:
		r.route(dst, kernel.Route{Scope: kernel.LinkScope, Dev: r.vxlan.dev})
	default:
		r.route(dst, kernel.Route{Gateway: gw, Dev: r.vxlan.dev, Onlink: true})
	}
}

// throughIPIP routes a range to a node through the IP-in-IP device, which sends to the gateway's address what is routed via it.
//
// It lets in what comes so once its agent has seen that a pool asks for it, and by then it has given itself a tunnel address: until then it is
// sent to as before. Not for long, since pods need no tunnel address of anybody, and another make of agent may give its node none.
func (r *routing) throughIPIP(dst netip.Prefix, pool string, n *api.Node, node netip.Addr) {
	to := kernel.Route{Gateway: node, Dev: r.ipip.dev, Onlink: true}
	switch {
	case !r.ipip.asked:
		r.problem(pool, "uses IP-in-IP, and ipipEnabled is false on this node; no route to %v", dst)
	case !r.ipip.ready:
		r.hold(dst)
	case r.IPIPBegun && !ipipAddr(n).IsValid():
		r.holdOr(dst, to)
	default:
		r.route(dst, to)
	}
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
