package policyjudge

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Packets makes n packets for a cluster, by a seed. They are aimed at the edges of the nets and port ranges that rules of the cluster name, and go every way:
// from and to workloads of this node, the host itself, and what lies beyond the uplink.
func Packets(c *Cluster, seed uint64, n int) []Packet {
	g := &generator{rand.New(rand.NewPCG(seed, 1))}
	rules := c.rules()
	var out []Packet
	for len(out) < n {
		var aim api.Rule
		if len(rules) > 0 && !g.in(4) {
			aim = pick(g, rules...)
		}
		p, ok := g.packet(aim)
		if ok && (g.in(15) || c.sendable(p)) {
			out = append(out, p)
		}
	}
	return out
}

// sendable tells whether a packet gets as far as policy: its sender and its receiver are there, and the source is the sender's.
func (c *Cluster) sendable(p Packet) bool {
	if workloadDevice(p.In) {
		if w := c.workloadAt(p.In); w == nil || !maySendFrom(w, p.Source) {
			return false
		}
	}
	return !workloadDevice(p.Out) || c.workloadAt(p.Out) != nil
}

// rules are all rules of policies that are in force.
func (c *Cluster) rules() []api.Rule {
	var out []api.Rule
	for _, b := range c.rulebooks() {
		out = append(append(out, b.spec.Ingress...), b.spec.Egress...)
	}
	return out
}

// packet makes a packet aimed at a rule; not all that come about can be sent.
func (g *generator) packet(aim api.Rule) (Packet, bool) {
	six := g.in(3) || aim.Protocol != nil && aim.Protocol.Is("ICMPv6")
	p := Packet{Source: g.end(six, aim.Source), Destination: g.end(six, aim.Destination)}
	p.In, p.Out = route(p.Source), route(p.Destination)
	switch {
	case p.Source.Is4() != p.Destination.Is4(), p.Source == p.Destination, p.In == p.Out && p.In != uplink:
		return p, false
	case p.In == uplink && g.in(4), workloadDevice(p.In) && g.in(20):
		p.In = device(g.IntN(devices)) // a source that is not the sender's own, but perhaps one that it may use
	}
	if p.In == p.Out && p.In != uplink {
		return p, false
	}
	p.SourcePort, p.DestinationPort = g.portOf(aim.Source), g.portOf(aim.Destination)
	p.Protocol = pick[uint8](g, tcp, tcp, tcp, udp, udp, udp, sctp, icmp, 47)
	if aim.Protocol != nil && !g.in(5) {
		p.Protocol = number(*aim.Protocol)
	}
	switch p.Protocol {
	case icmp, icmp6:
		p.SourcePort, p.DestinationPort = 0, 0
		p.Protocol, p.Type, p.Code = icmp, pick[uint8](g, 8, 8, 13), pick[uint8](g, 0, 0, 1)
		if p.Source.Is6() {
			p.Protocol, p.Type = icmp6, 128
		}
		if k := pick(g, aim.ICMP, aim.NotICMP); k != nil && k.Type != nil && slices.Contains([]int{8, 13}, *k.Type) && p.Source.Is4() {
			p.Type = uint8(*k.Type) // of the requests, with which alone a flow begins
		}
	case tcp, udp, sctp:
	default:
		p.SourcePort, p.DestinationPort = 0, 0
	}
	return p, true
}

// end makes an address near an edge of what a rule matches.
func (g *generator) end(six bool, aim api.EntityRule) netip.Addr {
	nets := append(slices.Clone(aim.Nets), aim.NotNets...)
	if len(nets) == 0 || g.in(2) {
		return g.addr(six)
	}
	prefix := netip.MustParsePrefix(with32(pick(g, nets...)))
	last := prefix.Addr().AsSlice()
	for i := prefix.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	end, _ := netip.AddrFromSlice(last)
	a := pick(g, prefix.Addr(), prefix.Addr().Prev(), end, end.Next())
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4() && (a.As4()[0] == 255 || a.As4()[0] == 0) || a.IsLinkLocalUnicast() {
		return g.addr(six)
	}
	return a
}

// with32 is a range as text, of one address if it is only that.
func with32(net string) string {
	a, err := netip.ParseAddr(net)
	if err != nil {
		return net
	}
	return netip.PrefixFrom(a, a.BitLen()).String()
}

// portOf makes a port at an edge of what a rule matches.
func (g *generator) portOf(aim api.EntityRule) uint16 {
	ports := append(slices.Clone(aim.Ports), aim.NotPorts...)
	if len(ports) == 0 || g.in(3) {
		return g.portNumber()
	}
	port := pick(g, ports...)
	if port.Name != "" {
		return pick[uint16](g, 53, 80, 81, 8000)
	}
	return max(1, pick(g, port.Min, port.Min-1, port.Max, port.Max+1))
}

func (g *generator) addr(six bool) netip.Addr {
	for {
		v4, v6 := localAddrs(g.IntN(devices))
		a := pick(g, v4, v4, v4, v6, v6, v6, pick(g, hostAddrs()...), pick(g, remotes()...), pick(g, remotes()...))
		if a.Is6() == six {
			return a
		}
	}
}

func (g *generator) portNumber() uint16 {
	return pick[uint16](g, 1, 22, 53, 67, 68, 79, 80, 80, 80, 81, 81, 82, 179, 1024, 1025, 7999, 8000, 8000, 8005, 8006, 8010, 8011, 65535, 4789)
}
