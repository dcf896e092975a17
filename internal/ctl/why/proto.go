package why

import "github.com/muslin-cni/muslin/pkg/api"

func isICMP(protocol uint8) bool { return protocol == api.ProtoICMP || protocol == api.ProtoICMPv6 }

// hasPorts tells whether the first four bytes of a protocol's header are ports.
func hasPorts(protocol uint8) bool {
	switch protocol {
	case api.ProtoTCP, api.ProtoUDP, api.ProtoSCTP, api.ProtoUDPLite:
		return true
	}
	return false
}

// protocolName is how policies call a protocol.
func protocolName(n uint8) string { return api.ProtocolNumbered(n).String() }
