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
	VXLANPort     uint16
}

// Ready tells whether both ends have the addresses that a probe needs.
func (t Target) Ready() bool { return t.From.IsValid() && t.To.IsValid() }

// Targets lists the paths that pods' packets take from the node to each other one, sorted by peer, family and kind. Pools say which: a disabled
// pool counts, for its pods live on. A pool that is not encapsulated has a path beyond our subnet only by BGP.
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
			for _, kind := range s.kinds(pools, v6, self.Contains(peer.Addr())) {
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
func (s Settings) kinds(pools []*api.IPPool, v6, near bool) []api.PathKind {
	var out []api.PathKind
	for _, p := range pools {
		if p.Spec.CIDR.Addr().Is6() != v6 || slices.Equal(p.Spec.AllowedUses, []api.Use{api.UseLoadBalancer}) {
			continue
		}
		switch {
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

func (s Settings) target(kind api.PathKind, v6 bool, self, peer *api.Node) Target {
	t := Target{Key: Key{Peer: peer.Metadata.Name, V6: v6, Kind: kind}, Self: s.Node, MTU: s.MTU, Port: s.Port, VXLANPort: s.VXLANPort, Device: device(kind, v6)}
	t.From, t.To = end(self, kind, v6), end(peer, kind, v6)
	return t
}

func device(kind api.PathKind, v6 bool) string {
	switch {
	case kind == api.PathVXLAN && v6:
		return kernel.VXLAN6Device
	case kind == api.PathVXLAN:
		return kernel.VXLANDevice
	case kind == api.PathIPIP:
		return kernel.IPIPDevice
	}
	return ""
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
			for _, kind := range []api.PathKind{api.PathVXLAN, api.PathIPIP, api.PathDirect} {
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
	case api.PathDirect:
		return "direct routes"
	}
	return string(k)
}
