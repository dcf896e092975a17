package health

import "github.com/prometheus/client_golang/prometheus"

// Paths says how the paths to other nodes fare.
type Paths struct {
	Count map[string]int // by state: ok, bad or unknown
	Known []Path         // those that are ok or bad, as many as there are to be series of
}

// Path is one of them.
type Path struct {
	Peer, Family, Kind string
	OK                 bool
	Largest            int // bytes of the largest packet that got through; 0: not known
}

func (p *Paths) collect(out chan<- prometheus.Metric) {
	if p == nil {
		return
	}
	for state, n := range p.Count {
		out <- constant(prometheus.GaugeValue, "muslin_paths", "Paths of pods' packets to other nodes, by family and encapsulation. Unknown are those to nodes that answer no tests.", float64(n), "state", state)
	}
	for _, k := range p.Known {
		labels := []string{"peer", k.Peer, "family", k.Family, "kind", k.Kind}
		out <- constant(prometheus.GaugeValue, "muslin_path_ok", "1 if a path to another node passes what pods send, else 0. The log says what is wrong. Of many paths only some are here, the bad ones first.", oneIf(k.OK), labels...)
		if k.Largest > 0 {
			out <- constant(prometheus.GaugeValue, "muslin_path_largest_packet_bytes", "The largest packet that gets through without being fragmented, up to what pods send.", float64(k.Largest), labels...)
		}
	}
}
