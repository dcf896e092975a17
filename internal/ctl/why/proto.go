package why

import (
	"strconv"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Numbers of protocols (IANA, Protocol Numbers).
const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

func isICMP(protocol uint8) bool { return protocol == protoICMP || protocol == protoICMPv6 }

// hasPorts tells whether the first four bytes of a protocol's header are ports.
func hasPorts(protocol uint8) bool {
	return protocol == protoTCP || protocol == protoUDP || protocol == protoSCTP || protocol == protoUDPLite
}

// number is the number of a protocol that is given by name or number; 0 if it is not known.
func number(name string) uint8 {
	p := api.ProtocolNamed(name)
	for n := 1; n < 256; n++ {
		if protocolName(uint8(n)) == p.String() || p.Name == "" && int(p.Number) == n {
			return uint8(n)
		}
	}
	return 0
}

// protocolName is how policies call a protocol.
func protocolName(n uint8) string {
	for _, name := range []string{"TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite"} {
		if (api.Protocol{Number: n}).Is(name) {
			return name
		}
	}
	return strconv.Itoa(int(n))
}
