// Package kernel describes the kernel objects of a node as comparable values, and the difference between two sets of them.
//
// The goals, and how each is met:
//
//  1. A state can be computed, printed and compared without a kernel: every object is a plain value, named by what it is and
//     not by a handle that only one kernel knows. The one exception is Dev.Index, see there.
//  2. A fresh agent finds exactly its own objects: the marks below are on every object that is written, and listing
//     a table returns only what carries them.
//  3. Every kind is handled alike: a table is a map from a key (what the kernel lets exist only once) to a value.
package kernel

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Marks by which our objects are known.
const (
	RouteProtocol = 80 // rtm_protocol of every route and rule of ours, as in Calico

	VXLANDevice      = "vxlan.calico"
	VXLAN6Device     = "vxlan-v6.calico"
	IPIPDevice       = "tunl0"
	WireGuardDevice  = "wireguard.cali"
	WireGuard6Device = "wg-v6.cali"
	LinkAlias        = "muslin" // of WireGuard devices, which settings may name otherwise

	WorkloadPrefix = "cali"   // of the host's side of every workload's veth pair
	SetPrefix      = "cali40" // of every IPv4 ipset
	Set6Prefix     = "cali60" // of every IPv6 ipset
	ChainPrefix    = "cali-"  // of every iptables chain
	CommentPrefix  = "cali:"  // of the comment on every iptables rule; a hash follows
)

// MAC is a link-layer address.
type MAC [6]byte

// ParseMAC reads six hex pairs with colons between them. (It is called for every local pod in every round.)
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) != 3*len(m)-1 {
		return MAC{}, fmt.Errorf("parse MAC %q: want six hex pairs with colons between them", s)
	}
	for i := range m {
		n, err := strconv.ParseUint(s[3*i:3*i+2], 16, 8)
		if err != nil || i > 0 && s[3*i-1] != ':' {
			return MAC{}, fmt.Errorf("parse MAC %q: want six hex pairs with colons between them", s)
		}
		m[i] = byte(n)
	}
	return m, nil
}

// String is the usual form: 66:f9:37:c3:7e:94.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Dev is a network device that another object hangs on. The index takes part in comparisons: when a device is re-made
// under its old name, the kernel has dropped what hung on the old one, and the changed index makes us write it anew.
type Dev struct {
	Name  string
	Index int
}

// String is the device's name.
func (d Dev) String() string { return d.Name }

// LinkType is the kind of a device of ours.
type LinkType uint8

// The kinds of devices.
const (
	VXLAN         LinkType = iota + 1
	IPIP                   // without endpoints: a route's gateway is where its packets go
	WireGuardLink          // its keys, port and peers are tables of their own
)

// Link is a device that we make, or find made by the kernel. Up is part of it. Of an IPIP or WireGuard device there is nothing to say but the MTU.
type Link struct {
	Type   LinkType
	VNI    uint32
	Port   uint16
	Local  netip.Addr // source address of the encapsulated packets
	Parent Dev        // device that carries Local
	MAC    MAC
	MTU    int
}

// AddrKey names an address on a device of ours.
type AddrKey struct {
	Link string
	Addr netip.Prefix
}

// RouteKey names a route: the kernel holds one route of ours per table, destination and metric.
type RouteKey struct {
	Dst    netip.Prefix
	Metric int // 0: none. For IPv6 say 1024 instead, which the kernel takes 0 for and lists
	Table  int // 0: the main table
}

// String orders routes as they are to be written: those of other tables before the main one's, which would send in clear what WireGuard's have not claimed yet.
func (k RouteKey) String() string {
	if k.Table == 0 {
		return fmt.Sprintf("main %v %d", k.Dst, k.Metric)
	}
	return fmt.Sprintf("%d %v %d", k.Table, k.Dst, k.Metric)
}

// RouteType is the kind of a route.
type RouteType uint8

// The kinds of routes.
const (
	Unicast RouteType = iota
	Blackhole
	Prohibit // the sender is told that it may not
	Throw    // the lookup goes on with the next rule, as if the table had no route
)

// RouteScope is the scope of a route.
type RouteScope uint8

// The scopes of routes.
const (
	Universe  RouteScope = iota // via a gateway
	LinkScope                   // directly on the device
)

// Route is what a route says. A route of another protocol never appears here, except on devices that are all ours.
type Route struct {
	Type     RouteType
	Scope    RouteScope
	Dev      Dev        // zero unless Unicast
	Gateway  netip.Addr // zero if none
	Src      netip.Addr // preferred source; zero if none
	Onlink   bool
	Protocol int
	Hops     Hops // of a route that shares its traffic; "": Dev, Gateway and Onlink say the only way
}

// NeighKey names a permanent neighbour entry.
type NeighKey struct {
	Dev  Dev
	Addr netip.Addr
}

// FDBKey names a forwarding entry of a VXLAN device.
type FDBKey struct {
	Dev Dev
	MAC MAC
}

// SysctlKey is the path of a setting below /proc/sys: net/ipv4/conf/calic440f455693/proxy_arp. The index of the
// device, where there is one, tells a re-made device from the old one.
type SysctlKey struct {
	Path  string
	Index int
}

// SetKey names an ipset, with the prefix of its family.
type SetKey string

// Is6 tells whether a set of ours holds IPv6 prefixes. The name says it: a set has one family for good.
func (k SetKey) Is6() bool { return strings.HasPrefix(string(k), Set6Prefix) }

// Set is the content of an ipset of type hash:net, as sorted, comma-joined prefixes. (A string, so that it is comparable.)
type Set struct{ Members string }

// ChainKey names an iptables chain of one family.
type ChainKey struct{ Table, Chain string }

// Chain is the content of a chain: one rule a line, as iptables takes it after the chain's name. For the kernel's own
// chains (FORWARD, POSTROUTING…) it is only our rules, which stand first.
type Chain struct{ Rules string }

// State is everything of ours that a node's kernel should hold.
type State struct {
	Sysctls map[SysctlKey]string
	Links   map[string]Link // by device name
	Addrs   map[AddrKey]struct{}
	Neighs  map[NeighKey]MAC
	FDB     map[FDBKey]netip.Addr // the remote node's address
	Routes  map[RouteKey]Route
	Rules   map[Rule]struct{}
	Sets    map[SetKey]Set
	Chains  map[ChainKey]Chain // of IPv4
	Chains6 map[ChainKey]Chain // of IPv6

	WireGuard map[Dev]WireGuard
	Peers     map[PeerKey]Peer

	// Held are places of routes that cannot be written yet, since the device that they lead through is not there or the other node is
	// not ready. What stands in such a place, as from before a change of mode, is not changed meanwhile. Where nothing does, the route
	// here is written; the zero Route is none.
	Held map[RouteKey]Route
}

// NewState returns a state in which every map is empty and ready.
func NewState() State {
	return State{
		Sysctls: map[SysctlKey]string{},
		Links:   map[string]Link{},
		Addrs:   map[AddrKey]struct{}{},
		Neighs:  map[NeighKey]MAC{},
		FDB:     map[FDBKey]netip.Addr{},
		Routes:  map[RouteKey]Route{},
		Rules:   map[Rule]struct{}{},
		Sets:    map[SetKey]Set{},
		Chains:  map[ChainKey]Chain{},
		Chains6: map[ChainKey]Chain{},
		Held:    map[RouteKey]Route{},

		WireGuard: map[Dev]WireGuard{},
		Peers:     map[PeerKey]Peer{},
	}
}
