package policy

import (
	"math"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Limits are what a workload's traffic may not go beyond, seen from the workload, and how what it sends is marked. The zero value limits nothing and
// marks nothing. A limit that no kernel could count to is none.
type Limits struct {
	Ingress, Egress Limit
	Marked          bool // what the workload sends out of the cluster bears DSCP
	DSCP            uint8
}

// Limit is of one direction.
type Limit struct {
	Connections uint32 // at a time; 0: any number
	Packets     Rate
	Bytes       Rate
	Peak        Rate // of bytes too, for moments: Bytes has a burst, which goes no faster than this
}

// Rate is so much a second, and after a pause as much at once as Burst says: of packets so many, of bytes so many beyond the second's worth that is let through
// anyway. The zero value is no limit.
type Rate struct {
	PerSecond uint64
	Burst     uint32
}

// What the kernel can count to: its limits go by nanoseconds in 64 bits (nft_limit of Linux), and more than that no host forwards.
const (
	maxPackets     = 100_000_000
	maxBytes       = 10_000_000_000
	maxConnections = math.MaxInt32
)

// Bursts. Who says nothing gets what comes in a tenth of a second of packets, and no more than the second's worth of bytes. A packet that the host takes in one piece, from its
// own pods most of all, has up to 64 KiB before it is segmented; less at once would let none through.
const (
	leastPacketBurst = 5
	packetBurstShare = 10
	leastBytes       = 128 << 10
)

func limitsOf(w *api.WorkloadEndpoint) (l Limits) {
	q := w.Spec.QoSControls
	if q == nil {
		return l
	}
	l.Ingress = Limit{
		Connections: connections(q.IngressMaxConnections), Packets: packets(q.IngressPacketRate, q.IngressPacketBurst),
		Bytes: bits(q.IngressBandwidth, q.IngressBurst), Peak: bits(q.IngressPeakrate, q.IngressMinburst),
	}
	l.Egress = Limit{
		Connections: connections(q.EgressMaxConnections), Packets: packets(q.EgressPacketRate, q.EgressPacketBurst),
		Bytes: bits(q.EgressBandwidth, q.EgressBurst), Peak: bits(q.EgressPeakrate, q.EgressMinburst),
	}
	for _, direction := range strings.Split(w.Metadata.Annotations[api.AnnotationPluginLimits], ",") {
		switch direction {
		case "ingress":
			l.Ingress.Bytes = Rate{}
		case "egress":
			l.Egress.Bytes = Rate{}
		}
	}
	if q.DSCP != nil && *q.DSCP <= maxDSCP {
		l.Marked, l.DSCP = true, *q.DSCP
	}
	return l
}

const maxDSCP = 63

func connections(n int64) uint32 {
	if n <= 0 || n > maxConnections {
		return 0
	}
	return uint32(n)
}

func packets(rate, burst int64) Rate {
	if rate <= 0 || rate > maxPackets {
		return Rate{}
	}
	if burst <= 0 {
		burst = max(rate/packetBurstShare, leastPacketBurst)
	}
	return Rate{PerSecond: uint64(rate), Burst: uint32(min(burst, math.MaxUint32))}
}

// bits is a rate of bytes, of bits a second.
func bits(rate, burst int64) Rate {
	rate, burst = rate/8, burst/8
	if rate <= 0 || rate > maxBytes {
		return Rate{}
	}
	beyond := max(burst, leastBytes) - rate
	return Rate{PerSecond: uint64(rate), Burst: uint32(min(max(beyond, 0), math.MaxUint32))}
}

// oddLimits says which limits cannot be meant. They limit nothing.
func oddLimits(q *api.QoSControls, say func(string, ...any)) {
	if q == nil {
		return
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"ingressBandwidth", q.IngressBandwidth}, {"egressBandwidth", q.EgressBandwidth}, {"ingressPeakrate", q.IngressPeakrate}, {"egressPeakrate", q.EgressPeakrate},
		{"ingressPacketRate", q.IngressPacketRate}, {"egressPacketRate", q.EgressPacketRate},
		{"ingressMaxConnections", q.IngressMaxConnections}, {"egressMaxConnections", q.EgressMaxConnections},
	} {
		if f.value < 0 {
			say("spec.qosControls.%s: %d is no limit and is ignored", f.name, f.value)
		}
	}
	if q.DSCP != nil && *q.DSCP > maxDSCP {
		say("spec.qosControls.dscp: %d is above %d and is ignored", *q.DSCP, maxDSCP)
	}
}
