// Package probe decides which paths to other nodes are tested, and when, and says what the answers mean.
//
// A path is how packets of this node's pods reach the pods of a peer: by a family and by a kind of encapsulation. A probe goes between the addresses that
// the two nodes have at the ends of that path, so that it takes the same route, the same encapsulation and the same devices. It asks three things:
//
//  1. Does a small packet get through, whose checksum is right when it leaves us?
//  2. Does one whose checksum the kernel leaves to the device, as it does with what pods send?
//  3. How large a packet gets through that must not be fragmented?
//
// The peer's agent answers each with a packet that is no larger, and whose checksum is right when it leaves, so that an answer tells of the way
// there. The other way is what the peer tests.
//
// Targets says what there is to test, Ledger when, Judge what came of it, and Record what the others are told.
package probe

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Settings are what the targets depend on besides pools and nodes.
type Settings struct {
	Node         string
	IPv6         bool  // the node does IPv6
	IPIPEnabled  *bool // nil: when a pool uses IP-in-IP
	VXLANEnabled *bool // nil: when a pool uses VXLAN
	BGP          bool  // routes to nodes beyond our subnet may come from peers
	MTU          int   // of pods, in bytes
	Port         uint16
	VXLANPort    uint16
	WireGuard    Encryption // of IPv4
	WireGuard6   Encryption // of IPv6
}

// Encryption is WireGuard of a family. Where it is on, pods' packets go by it whatever their pools say.
type Encryption struct {
	On     bool
	Device string
	Port   uint16 // UDP
	Plain  bool   // what is for a peer that has told no key goes in clear, and is not refused
}

// Key names a path from this node.
type Key struct {
	Peer string
	V6   bool
	Kind api.PathKind
}

// Family is the family's name.
func (k Key) Family() string {
	if k.V6 {
		return "IPv6"
	}
	return "IPv4"
}

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Peer, o.Peer), cmp.Compare(k.Family(), o.Family()), cmp.Compare(k.Kind, o.Kind))
}

// Target is a path that is to be tested. It is comparable: another value is another test.
type Target struct {
	Key
	Self          string     // this node
	From, To      netip.Addr // of the probes; zero where that node has none yet
	Local, Remote netip.Addr // the nodes' addresses
	Device        string     // of the tunnel; "": it is direct
	MTU           int        // of pods, in bytes
	Port          uint16     // UDP, of who answers
	TunnelPort    uint16     // UDP, by which the tunnel goes; 0: by none
	Keyless       bool       // it is encrypted, and the peer has told no key that could be
	Encrypts      bool       // it is not, and the peer has told a key
}

// Lacking says what a probe needs and the path does not have; "" if it has all.
func (t Target) Lacking() string {
	switch {
	case t.Keyless:
		return "the peer has told no WireGuard key, so that what is for it is refused: its agent tells one once WireGuard is on for it and its kernel has that"
	case !t.From.IsValid():
		return "this node has no tunnel address of that kind yet"
	case !t.To.IsValid():
		return "the peer has no tunnel address of that kind yet"
	}
	return ""
}

// Targets lists the paths that pods' packets take from the node to each other one, sorted by peer, family and kind. Pools say which: a disabled
// pool counts, for its pods live on. A pool that is not encapsulated has a path beyond our subnet only by BGP. Where WireGuard is on, it is the path of all
// pools at once, also to a peer that it cannot encrypt to yet, unless what is for that goes in clear.
//
// What nodes say to each other themselves is no path of its own. With hosts' encryption it takes that of WireGuard too; no probe is exempt from that, and none
// goes where no packet of pods does.
func Targets(nodes []*api.Node, pools []*api.IPPool, s Settings) []Target {
	at := slices.IndexFunc(nodes, func(n *api.Node) bool { return n.Metadata.Name == s.Node })
	if at < 0 {
		return nil
	}
	var out []Target
	for _, v6 := range []bool{false, true} {
		self, ok := nodes[at].Address(v6)
		if !ok || v6 && !s.IPv6 {
			continue
		}
		for _, n := range nodes {
			peer, ok := n.Address(v6)
			if !ok || n == nodes[at] || peer.Addr() == self.Addr() {
				continue
			}
			for _, kind := range s.kinds(pools, n, v6, self.Contains(peer.Addr())) {
				t := s.target(kind, v6, nodes[at], n)
				t.Local, t.Remote = self.Addr(), peer.Addr()
				out = append(out, t)
			}
		}
	}
	slices.SortFunc(out, func(a, b Target) int { return a.compare(b.Key) })
	return out
}

// kinds are the ways that the pools of a family ask for, to a node that is near or not.
func (s Settings) kinds(pools []*api.IPPool, peer *api.Node, v6, near bool) []api.PathKind {
	var out []api.PathKind
	wg := s.encryption(v6)
	encrypted := wg.On && (!wg.Plain || keyed(peer, v6))
	for _, p := range pools {
		if p.Spec.CIDR.Addr().Is6() != v6 || slices.Equal(p.Spec.AllowedUses, []api.Use{api.UseLoadBalancer}) {
			continue
		}
		switch {
		case encrypted:
			out = append(out, api.PathWireGuard)
		case p.Spec.VXLANMode.Encapsulates(near):
			out = addUnless(out, s.VXLANEnabled, api.PathVXLAN)
		case p.Spec.IPIPMode.Encapsulates(near) && !v6:
			out = addUnless(out, s.IPIPEnabled, api.PathIPIP)
		case near || s.BGP:
			out = append(out, api.PathDirect)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// addUnless adds a kind, unless a setting forbids it: there is no route then, and the plan says so.
func addUnless(out []api.PathKind, enabled *bool, kind api.PathKind) []api.PathKind {
	if enabled != nil && !*enabled {
		return out
	}
	return append(out, kind)
}

func (s Settings) encryption(v6 bool) Encryption {
	if v6 {
		return s.WireGuard6
	}
	return s.WireGuard
}

// keyed tells whether a node has told a public key by which it can be encrypted to.
func keyed(n *api.Node, v6 bool) bool {
	text := n.Status.WireguardPublicKey
	if v6 {
		text = n.Status.WireguardPublicKeyV6
	}
	_, err := kernel.ParsePublicKey(text)
	return err == nil
}

func (s Settings) target(kind api.PathKind, v6 bool, self, peer *api.Node) Target {
	t := Target{Key: Key{Peer: peer.Metadata.Name, V6: v6, Kind: kind}, Self: s.Node, MTU: s.MTU, Port: s.Port}
	t.From, t.To = end(self, kind, v6), end(peer, kind, v6)
	t.Device, t.TunnelPort = s.tunnel(kind, v6)
	wg, can := s.encryption(v6).On, keyed(peer, v6)
	t.Keyless, t.Encrypts = kind == api.PathWireGuard && !can, !wg && can
	return t
}

// tunnel is the device that a path goes through, and the UDP port by which the other node's is reached; nothing where it is none.
func (s Settings) tunnel(kind api.PathKind, v6 bool) (device string, port uint16) {
	switch {
	case kind == api.PathWireGuard:
		wg := s.encryption(v6)
		return wg.Device, wg.Port
	case kind == api.PathVXLAN && v6:
		return kernel.VXLAN6Device, s.VXLANPort
	case kind == api.PathVXLAN:
		return kernel.VXLANDevice, s.VXLANPort
	case kind == api.PathIPIP:
		return kernel.IPIPDevice, 0
	}
	return "", 0
}

// end is the address by which a node is at the end of its paths of a kind; the zero Addr if it has none.
func end(n *api.Node, kind api.PathKind, v6 bool) (a netip.Addr) {
	switch {
	case kind == api.PathVXLAN && v6:
		a = n.Spec.IPv6VXLANTunnelAddr
	case kind == api.PathVXLAN:
		a = n.Spec.IPv4VXLANTunnelAddr
	case kind == api.PathIPIP && n.Spec.BGP != nil:
		a = n.Spec.BGP.IPv4IPIPTunnelAddr
	case kind == api.PathWireGuard && n.Spec.Wireguard != nil && v6:
		a = n.Spec.Wireguard.InterfaceIPv6Address
	case kind == api.PathWireGuard && n.Spec.Wireguard != nil:
		a = n.Spec.Wireguard.InterfaceIPv4Address
	case kind == api.PathDirect:
		p, _ := n.Address(v6)
		a = p.Addr()
	}
	if a.IsValid() && a.Is6() != v6 {
		return netip.Addr{}
	}
	return a
}

// Peers lists the addresses that other nodes send probes from, sorted: who has another one is not answered.
func Peers(nodes []*api.Node, self string) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range nodes {
		if n.Metadata.Name == self {
			continue
		}
		for _, v6 := range []bool{false, true} {
			for _, kind := range []api.PathKind{api.PathVXLAN, api.PathIPIP, api.PathWireGuard, api.PathDirect} {
				if a := end(n, kind, v6); a.IsValid() {
					out = append(out, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// Ends lists the addresses of this node that probes are sent from, and so are answered at: the near ends of its targets.
func Ends(targets []Target) []netip.Addr {
	var out []netip.Addr
	for _, t := range targets {
		if t.From.IsValid() {
			out = append(out, t.From)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// String names the path as logs do.
func (t Target) String() string {
	s := fmt.Sprintf("path %s to %s by %s", t.Self, t.Peer, kindName(t.Kind))
	if t.V6 {
		s += " over IPv6"
	}
	return s
}

func kindName(k api.PathKind) string {
	switch k {
	case api.PathVXLAN:
		return "VXLAN"
	case api.PathIPIP:
		return "IP-in-IP"
	case api.PathWireGuard:
		return "WireGuard"
	case api.PathDirect:
		return "direct routes"
	}
	return string(k)
}
