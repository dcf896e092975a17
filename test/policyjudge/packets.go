package policyjudge

import (
	"math/rand/v2"
	"net/netip"
)

// Packets makes n packets for clusters of Generate, by a seed. They are aimed at the edges of all nets and port ranges that rules of these clusters
// name, and go every way: from and to workloads of this node, the host itself, and what lies beyond the uplink.
func Packets(seed uint64, n int) []Packet {
	g := &generator{rand.New(rand.NewPCG(seed, 1))}
	var out []Packet
	for len(out) < n {
		if p, ok := g.packet(); ok {
			out = append(out, p)
		}
	}
	return out
}

// packet makes a packet; not all that come about can be sent.
func (g *generator) packet() (Packet, bool) {
	six := g.in(3)
	p := Packet{Source: g.addr(six), Destination: g.addr(six)}
	p.In, p.Out = route(p.Source), route(p.Destination)
	switch {
	case p.In == p.Out && p.In != uplink, p.Source == p.Destination:
		return p, false
	case p.In == uplink && g.in(3), workloadDevice(p.In) && g.in(20):
		p.In = device(g.IntN(devices)) // a source that is not the sender's own, but perhaps one that it may use
	}
	if p.In == p.Out && p.In != uplink {
		return p, false
	}
	p.SourcePort, p.DestinationPort = g.portNumber(), g.portNumber()
	p.Protocol = pick[uint8](g, tcp, tcp, tcp, udp, udp, udp, sctp, icmp, 47)
	switch p.Protocol {
	case icmp:
		p.SourcePort, p.DestinationPort = 0, 0
		p.Type, p.Code = pick[uint8](g, 8, 8, 13), pick[uint8](g, 0, 0, 1)
		if six {
			p.Protocol, p.Type = icmp6, 128
		}
	case 47:
		p.SourcePort, p.DestinationPort = 0, 0
	}
	return p, true
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
