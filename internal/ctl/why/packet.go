package why

import (
	"encoding/binary"
	"net/netip"

	"github.com/muslin-cni/muslin/internal/policy"
)

// parse reads the headers of a packet, of which the end may be missing: the addresses, and as far as they are there the ports, or the kind of an ICMP
// message. False if not even the addresses are there.
func parse(b []byte) (policy.Packet, bool) {
	if len(b) < 20 {
		return policy.Packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b), true
	case 6:
		return parse6(b)
	}
	return policy.Packet{}, false
}

// parse4 reads a header of RFC 791, of at least its 20 bytes.
func parse4(b []byte) policy.Packet {
	p := policy.Packet{
		Source: netip.AddrFrom4([4]byte(b[12:16])), Destination: netip.AddrFrom4([4]byte(b[16:20])), Protocol: b[9],
	}
	first := binary.BigEndian.Uint16(b[6:])&0x1fff == 0 // of the packet's fragments, which alone has what follows
	if begin := int(b[0]&0xf) * 4; first && begin >= 20 && begin <= len(b) {
		transport(&p, b[begin:])
	}
	return p
}

// extensions of IPv6 that may stand before what the packet carries: RFC 8200, RFC 4302.
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	destOptions = 60
)

// parse6 reads a header of RFC 8200 with its extensions.
func parse6(b []byte) (policy.Packet, bool) {
	if len(b) < 40 {
		return policy.Packet{}, false
	}
	p := policy.Packet{Source: netip.AddrFrom16([16]byte(b[8:24])), Destination: netip.AddrFrom16([16]byte(b[24:40])), Protocol: b[6]}
	rest := b[40:]
	for {
		size := 0
		switch p.Protocol {
		case hopByHop, routing, destOptions:
			if len(rest) > 1 {
				size = 8 + int(rest[1])*8
			}
		case fragment:
			size = 8
		case authHeader:
			if len(rest) > 1 {
				size = 8 + int(rest[1])*4
			}
		default:
			transport(&p, rest)
			return p, true
		}
		if size == 0 || len(rest) < size {
			return p, true
		}
		later := p.Protocol == fragment && binary.BigEndian.Uint16(rest[2:])>>3 != 0
		p.Protocol, rest = rest[0], rest[size:]
		if later {
			return p, true
		}
	}
}

// transport reads what rules look at behind the header of IP.
func transport(p *policy.Packet, b []byte) {
	switch {
	case len(b) < 4:
	case hasPorts(p.Protocol):
		p.SourcePort, p.DestinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case isICMP(p.Protocol):
		p.ICMPType, p.ICMPCode = b[0], b[1]
	}
}
