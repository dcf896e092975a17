package health

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WireGuard is a device that encrypts.
type WireGuard struct {
	Name      string
	PublicKey string
	Port      uint16
	Peers     []WireGuardPeer
}

// WireGuardPeer is what its device says of a peer.
type WireGuardPeer struct {
	PublicKey      string
	Endpoint       netip.AddrPort // zero if none is known
	Received, Sent int64          // bytes
	Handshake      time.Time      // the latest; zero if there was none
}

// collect tells of a device under Calico's names.
func (w *WireGuard) collect(node string, out chan<- prometheus.Metric) {
	own := []string{"hostname", node, "public_key", w.PublicKey}
	out <- constant(prometheus.GaugeValue, "wireguard_meta", "A WireGuard device of this node: what there is to know of it stands in the labels.", 1,
		slices.Concat(own, []string{"interface_name", w.Name, "listening_port", strconv.Itoa(int(w.Port))})...)
	for _, p := range w.Peers {
		endpoint := ""
		if p.Endpoint.IsValid() {
			endpoint = p.Endpoint.String()
		}
		labels := slices.Concat(own, []string{"peer_key", p.PublicKey, "peer_endpoint", endpoint})
		out <- constant(prometheus.CounterValue, "wireguard_bytes_rcvd", "Bytes received from a WireGuard peer.", float64(p.Received), labels...)
		out <- constant(prometheus.CounterValue, "wireguard_bytes_sent", "Bytes sent to a WireGuard peer.", float64(p.Sent), labels...)
		latest := 0.0
		if !p.Handshake.IsZero() {
			latest = float64(p.Handshake.Unix())
		}
		out <- constant(prometheus.GaugeValue, "wireguard_latest_handshake_seconds", "When a WireGuard peer last shook hands, in seconds since 1970; 0 if it never has.", latest, labels...)
	}
}
