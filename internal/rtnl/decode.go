package rtnl

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// device is a network device as a link message describes it.
type device struct {
	name  string
	host  kernel.HostLink
	admin bool // set up by the administrator, whatever its carrier says
	alias string
}

// dev is how other objects name the device.
func (d device) dev() kernel.Dev { return kernel.Dev{Name: d.name, Index: d.host.Index} }

// decodeLink reads an RTM_NEWLINK or RTM_DELLINK message (rtnetlink(7)). ok is false for messages that are not about a device,
// but about its part in a bridge.
func decodeLink(m []byte) (d device, ok bool, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return device{}, false, fmt.Errorf("decode link: message of %d bytes", len(m))
	}
	msg := nl.DeserializeIfInfomsg(m)
	if msg.Family != unix.AF_UNSPEC {
		return device{}, false, nil
	}
	d.host.Index = int(msg.Index)
	d.admin = msg.Flags&unix.IFF_UP != 0
	oper := byte(netlink.OperUnknown)
	for a, err := range attributes(m[unix.SizeofIfInfomsg:]) {
		if err != nil {
			return device{}, false, fmt.Errorf("decode link: %w", err)
		}
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			d.name = text(a.Value)
		case unix.IFLA_MTU:
			d.host.MTU = int(number(a.Value))
		case unix.IFLA_ADDRESS:
			copy(d.host.MAC[:], a.Value)
		case unix.IFLA_OPERSTATE:
			oper = byte(number(a.Value))
		case unix.IFLA_IFALIAS:
			d.alias = text(a.Value)
		case unix.IFLA_LINKINFO:
			d.host.Kind = kind(a.Value)
		}
	}
	d.host.Up = d.admin
	carrier := oper == netlink.OperDown && msg.Flags&unix.IFF_LOWER_UP != 0 // the state follows the carrier with a delay of up to a second
	d.host.Live = d.admin && (oper == netlink.OperUp || oper == netlink.OperUnknown || carrier)
	return d, true, nil
}

func kind(info []byte) string {
	for a, err := range attributes(info) {
		if err != nil {
			return ""
		}
		if a.Attr.Type == nl.IFLA_INFO_KIND {
			return text(a.Value)
		}
	}
	return ""
}

// address is an address as an address message describes it.
type address struct {
	index     int
	addr      netip.Prefix
	temporary bool
}

// decodeAddr reads an RTM_NEWADDR or RTM_DELADDR message: struct ifaddrmsg and attributes.
func decodeAddr(m []byte) (address, error) {
	if len(m) < unix.SizeofIfAddrmsg {
		return address{}, fmt.Errorf("decode address: message of %d bytes", len(m))
	}
	msg := nl.DeserializeIfAddrmsg(m)
	var own, peer netip.Addr
	for a, err := range attributes(m[unix.SizeofIfAddrmsg:]) {
		if err != nil {
			return address{}, fmt.Errorf("decode address: %w", err)
		}
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			own, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(a.Value)
		}
	}
	if !own.IsValid() {
		own = peer // IPv6 has IFA_LOCAL only on point-to-point devices
	}
	temporary := own.Is6() && msg.Flags&unix.IFA_F_TEMPORARY != 0 // IPv4 has another meaning for the flag
	return address{index: int(msg.Index), addr: netip.PrefixFrom(own, int(msg.Prefixlen)), temporary: temporary}, nil
}

// neighbour is an entry of the neighbour table or, if bridge, of a forwarding table.
type neighbour struct {
	index     int
	bridge    bool
	permanent bool
	self      bool // an entry of the device itself and not of a bridge that it belongs to
	addr      netip.Addr
	mac       kernel.MAC
}

const sizeofNdMsg = 12 // struct ndmsg of linux/neighbour.h

// decodeNeigh reads an RTM_NEWNEIGH or RTM_DELNEIGH message: struct ndmsg and attributes.
func decodeNeigh(m []byte) (neighbour, error) {
	if len(m) < sizeofNdMsg {
		return neighbour{}, fmt.Errorf("decode neighbour: message of %d bytes", len(m))
	}
	flags := m[10]
	n := neighbour{
		bridge:    m[0] == unix.AF_BRIDGE,
		index:     int(int32(binary.NativeEndian.Uint32(m[4:]))),
		permanent: binary.NativeEndian.Uint16(m[8:])&netlink.NUD_PERMANENT != 0 && flags&netlink.NTF_PROXY == 0,
		self:      flags&netlink.NTF_SELF != 0,
	}
	for a, err := range attributes(m[sizeofNdMsg:]) {
		if err != nil {
			return neighbour{}, fmt.Errorf("decode neighbour: %w", err)
		}
		switch a.Attr.Type {
		case netlink.NDA_DST:
			n.addr, _ = netip.AddrFromSlice(a.Value)
		case netlink.NDA_LLADDR:
			copy(n.mac[:], a.Value)
		}
	}
	return n, nil
}

// route is a route of any table. Of its devices only the indexes are known until name has been called.
type route struct {
	key  kernel.RouteKey
	val  kernel.Route
	hops []kernel.Hop // nil unless there are several
}

// name completes the route by its devices' names.
func (r *route) name(of func(index int) string) {
	if len(r.hops) == 0 {
		r.val.Dev.Name = of(r.val.Dev.Index)
		return
	}
	for i := range r.hops {
		r.hops[i].Dev.Name = of(r.hops[i].Dev.Index)
	}
	r.val = r.val.Via(r.hops...)
}

// otherType is added to the kernel's number for route types that the plan does not know. Such a route equals no wanted one.
const otherType = 100

// decodeRoute reads an RTM_NEWROUTE or RTM_DELROUTE message: struct rtmsg and attributes. ok is false for what is no
// route, and for those of the table of the host's own addresses, which are the kernel's.
func decodeRoute(m []byte) (r route, ok bool, err error) {
	if len(m) < unix.SizeofRtMsg {
		return route{}, false, fmt.Errorf("decode route: message of %d bytes", len(m))
	}
	msg := nl.DeserializeRtMsg(m)
	v4 := msg.Family == unix.AF_INET
	if !v4 && msg.Family != unix.AF_INET6 || msg.Flags&unix.RTM_F_CLONED != 0 || msg.Tos != 0 {
		return route{}, false, nil
	}
	dst := netip.IPv6Unspecified()
	if v4 {
		dst = netip.IPv4Unspecified()
	}
	r.val = kernel.Route{Protocol: int(msg.Protocol), Onlink: msg.Flags&unix.RTNH_F_ONLINK != 0}
	table := uint32(msg.Table)
	for a, err := range attributes(m[unix.SizeofRtMsg:]) {
		if err != nil {
			return route{}, false, fmt.Errorf("decode route: %w", err)
		}
		switch a.Attr.Type {
		case unix.RTA_TABLE:
			table = number(a.Value)
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		default:
			r.attribute(a)
		}
	}
	r.key.Dst = netip.PrefixFrom(dst, int(msg.Dst_len))
	if table != unix.RT_TABLE_MAIN {
		r.key.Table = int(table)
	}
	r.classify(msg)
	return r, table != unix.RT_TABLE_LOCAL, nil
}

func (r *route) attribute(a syscall.NetlinkRouteAttr) {
	switch a.Attr.Type {
	case unix.RTA_PRIORITY:
		r.key.Metric = int(number(a.Value))
	case unix.RTA_OIF:
		r.val.Dev.Index = int(number(a.Value))
	case unix.RTA_GATEWAY:
		r.val.Gateway, _ = netip.AddrFromSlice(a.Value)
	case unix.RTA_PREFSRC:
		r.val.Src, _ = netip.AddrFromSlice(a.Value)
	case unix.RTA_MULTIPATH:
		r.hops = decodeHops(a.Value)
	}
}

// decodeHops reads the ways of a route with several: struct rtnexthop (rtnetlink(7)) and attributes, for each. What is cut short ends the list.
func decodeHops(b []byte) (out []kernel.Hop) {
	for len(b) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			return out
		}
		h := kernel.Hop{Onlink: b[2]&unix.RTNH_F_ONLINK != 0}
		h.Dev.Index = int(int32(binary.NativeEndian.Uint32(b[4:])))
		for a, err := range attributes(b[unix.SizeofRtNexthop:size]) {
			if err != nil {
				return out
			}
			if a.Attr.Type == unix.RTA_GATEWAY {
				h.Gateway, _ = netip.AddrFromSlice(a.Value)
			}
		}
		out = append(out, h)
		b = b[min(len(b), aligned(size)):]
	}
	return out
}

// classify sets type and scope. IPv6 routes have no scope in the kernel: there one without gateway is on the link.
func (r *route) classify(msg *nl.RtMsg) {
	switch msg.Type {
	case unix.RTN_UNICAST:
		r.val.Type = kernel.Unicast
		if msg.Scope != unix.RT_SCOPE_UNIVERSE || msg.Family == unix.AF_INET6 && !r.val.Gateway.IsValid() && len(r.hops) == 0 {
			r.val.Scope = kernel.LinkScope
		}
	case unix.RTN_BLACKHOLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		r.val.Type = map[uint8]kernel.RouteType{
			unix.RTN_BLACKHOLE: kernel.Blackhole, unix.RTN_PROHIBIT: kernel.Prohibit, unix.RTN_THROW: kernel.Throw,
		}[msg.Type]
		r.val.Dev = kernel.Dev{} // IPv6 says lo
	default:
		r.val.Type = kernel.RouteType(otherType + msg.Type)
	}
}

// number reads an attribute of one to four bytes in the host's order.
func number(b []byte) uint32 {
	switch len(b) {
	case 0:
		return 0
	case 1:
		return uint32(b[0])
	case 2, 3:
		return uint32(binary.NativeEndian.Uint16(b))
	default:
		return binary.NativeEndian.Uint32(b)
	}
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// devices lists the namespace's devices by index.
func (c *Conn) devices(ctx context.Context) (map[int]device, error) {
	msgs, err := c.dump(ctx, unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), skipStats)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	out := make(map[int]device, len(msgs))
	for _, m := range msgs {
		d, ok, err := decodeLink(m)
		if err != nil {
			return nil, err
		}
		if ok {
			out[d.host.Index] = d
		}
	}
	return out, nil
}

// addresses lists the namespace's addresses in the kernel's order.
func (c *Conn) addresses(ctx context.Context) ([]address, error) {
	msgs, err := c.dump(ctx, unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), 0)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]address, 0, len(msgs))
	for _, m := range msgs {
		a, err := decodeAddr(m)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// ours tells whether a device is in the table of links.
func (d device) ours() bool {
	return ourTunnel(d.name) || d.name == kernel.IPIPDevice || d.host.Kind == kindWireGuard && d.alias == kernel.LinkAlias
}

const kindWireGuard = "wireguard"

// ourTunnel tells whether a device is one that we alone make, so that whatever hangs on it is ours: a VXLAN or WireGuard device. Routes through the
// IPIP device may be those of a routing daemon.
func ourTunnel(name string) bool {
	switch name {
	case kernel.VXLANDevice, kernel.VXLAN6Device, kernel.WireGuardDevice, kernel.WireGuard6Device:
		return true
	}
	return false
}

// ourDevice tells whether a device belongs to us with all neighbours on it.
func (c *Conn) ourDevice(name string) bool { return ourTunnel(name) || c.ownership().Workload(name) }

// toIPNet and toIP serve the library, which knows no netip.
func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toIP(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}
