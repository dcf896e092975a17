package why

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/internal/policy"
)

func header4(protocol byte, fragment uint16, rest ...byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, byte(fragment >> 8), byte(fragment), 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	return append(b, rest...)
}

func header6(next byte, rest ...byte) []byte {
	b := make([]byte, 40)
	b[0], b[6], b[8], b[23], b[24], b[39] = 0x60, next, 0xfd, 1, 0xfd, 2
	return append(b, rest...)
}

func TestPacketsHeadersAreRead(t *testing.T) {
	a4, b4 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	a6, b6 := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	options := header4(6, 0)
	options[0] = 0x46
	for name, c := range map[string]struct {
		in   []byte
		want policy.Packet
	}{
		"TCP":            {header4(6, 0, 0x10, 0, 0, 80), policy.Packet{Source: a4, Destination: b4, Protocol: 6, SourcePort: 4096, DestinationPort: 80}},
		"options":        {append(options, 1, 1, 1, 1, 0, 9, 0, 80), policy.Packet{Source: a4, Destination: b4, Protocol: 6, SourcePort: 9, DestinationPort: 80}},
		"cut off":        {header4(6, 0, 0x10), policy.Packet{Source: a4, Destination: b4, Protocol: 6}},
		"later fragment": {header4(17, 0x2001, 0, 1, 0, 2), policy.Packet{Source: a4, Destination: b4, Protocol: 17}},
		"ICMP":           {header4(1, 0, 3, 4, 0, 0), policy.Packet{Source: a4, Destination: b4, Protocol: 1, ICMPType: 3, ICMPCode: 4}},
		"other":          {header4(89, 0, 3, 4, 0, 0), policy.Packet{Source: a4, Destination: b4, Protocol: 89}},
		"UDP6":           {header6(17, 0, 1, 0, 53), policy.Packet{Source: a6, Destination: b6, Protocol: 17, SourcePort: 1, DestinationPort: 53}},
		"extensions": {
			header6(0, 44, 0, 0, 0, 0, 0, 0, 0, 58, 0, 0, 1, 0, 0, 0, 0, 128, 0, 0, 0),
			policy.Packet{Source: a6, Destination: b6, Protocol: 58, ICMPType: 128},
		},
		"later fragment6": {header6(44, 17, 0, 0, 9, 0, 0, 0, 0, 1, 1, 2, 2), policy.Packet{Source: a6, Destination: b6, Protocol: 17}},
		"cut extension":   {header6(0, 44), policy.Packet{Source: a6, Destination: b6}},
	} {
		got, ok := parse(c.in)
		if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || !ok {
			t.Errorf("%s: %v %s", name, ok, diff)
		}
	}
	for _, short := range [][]byte{nil, header4(6, 0)[:19], header6(6)[:39], make([]byte, 60)} {
		if p, ok := parse(short); ok {
			t.Errorf("% x is read as %+v", short, p)
		}
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(header4(6, 0, 0x10, 0, 0, 80))
	f.Add(header6(0, 44, 0, 0, 0, 0, 0, 0, 0, 58, 0, 0, 1, 0, 0, 0, 0, 128, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parse(b); ok != (p.Source.IsValid() && p.Destination.IsValid()) {
			t.Errorf("read: %v, as %+v", ok, p)
		}
	})
}
