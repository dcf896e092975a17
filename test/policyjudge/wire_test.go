package policyjudge

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// frame is a packet as it goes over a link, without the link's own header. Its last four bytes are the id, whatever protocol it is of, and it is
// one that connection tracking takes for the first of a flow.
func frame(p Packet, id uint32) []byte {
	body := transport(p, id)
	if p.Source.Is4() {
		head := make([]byte, 20, 20+len(body))
		head[0], head[8], head[9] = 0x45, 64, p.Protocol
		binary.BigEndian.PutUint16(head[2:], uint16(20+len(body)))
		copy(head[12:], p.Source.AsSlice())
		copy(head[16:], p.Destination.AsSlice())
		binary.BigEndian.PutUint16(head[10:], checksum(head))
		return append(head, body...)
	}
	head := make([]byte, 40, 40+len(body))
	head[0], head[6], head[7] = 0x60, p.Protocol, 64
	binary.BigEndian.PutUint16(head[4:], uint16(len(body)))
	copy(head[8:], p.Source.AsSlice())
	copy(head[24:], p.Destination.AsSlice())
	return append(head, body...)
}

// transport is what follows the IP header: a datagram, a SYN, an INIT, an echo or timestamp request, or a few bytes.
func transport(p Packet, id uint32) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SourcePort), p.DestinationPort)
	at := 0 // of the checksum
	switch p.Protocol {
	case udp:
		b, at = append(b, 0, 12, 0, 0), 6
	case tcp:
		b, at = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0), 16
	case icmp, icmp6:
		b, at = []byte{p.Type, p.Code, 0, 0, byte(id >> 8), byte(id), 0, 1}, 2
		if p.Type == 13 {
			b = append(b, make([]byte, 8)...) // two of three timestamps
		}
	case sctp:
		b = append(b, make([]byte, 8)...) // verification tag, checksum
		b = append(b, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1)
		b = binary.BigEndian.AppendUint32(b, id)
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	default: // of GRE: no options, an unassigned payload
		return binary.BigEndian.AppendUint32([]byte{0, 0, 0x88, 0xb5}, id)
	}
	b = binary.BigEndian.AppendUint32(b, id)
	sum := b
	if p.Protocol != icmp {
		sum = append(pseudoHeader(p, len(b)), b...)
	}
	binary.BigEndian.PutUint16(b[at:], checksum(sum))
	return b
}

// pseudoHeader is what checksums cover besides (RFC 9293 section 3.1, RFC 8200 section 8.1). The order of its fields does not matter for the sum.
func pseudoHeader(p Packet, length int) []byte {
	b := append(p.Source.AsSlice(), p.Destination.AsSlice()...)
	return append(b, 0, p.Protocol, byte(length>>8), byte(length))
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parse reads what frame has made: its ends, protocol and id.
func parse(b []byte) (source, destination netip.Addr, protocol uint8, id uint32, ok bool) {
	switch {
	case len(b) >= 24 && b[0]>>4 == 4:
		source, destination, protocol = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9]
	case len(b) >= 44 && b[0]>>4 == 6:
		source, destination, protocol = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6]
	default:
		return source, destination, 0, 0, false
	}
	return source, destination, protocol, binary.BigEndian.Uint32(b[len(b)-4:]), true
}
