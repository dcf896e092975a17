package why

import (
	"fmt"
	"strings"

	"github.com/muslin-cni/muslin/internal/policy"
)

// limits say what holds for a flow beside policies: what the pods at its ends may not go beyond, of what they send and of what they get. What a host sends to its
// own pods is not limited.
func (w *walker) limits(from, to party) (out []string) {
	if e := w.endpointOf(from); e != nil {
		out = append(out, limitsOf(from, "sends", e.Limits.Egress)...)
		if e.Limits.Egress.Connections == 0 {
			out = append(out, fmt.Sprintf("%s begins: as many connections at a time as MUSLIN_POD_MAX_CONNECTIONS says on %s, three quarters of its table unless set", from.name(), from.node))
		}
		if e.Limits.Marked && to.workload == nil {
			out = append(out, fmt.Sprintf("%s sends: what leaves the cluster bears DSCP %d", from.name(), e.Limits.DSCP))
		}
	}
	if from.workload == nil && from.node == to.node {
		return out
	}
	if e := w.endpointOf(to); e != nil {
		out = append(out, limitsOf(to, "gets", e.Limits.Ingress)...)
	}
	return out
}

// endpointOf is a pod's endpoint; nil of what is none.
func (w *walker) endpointOf(p party) *policy.Endpoint {
	if p.workload == nil {
		return nil
	}
	return w.endpoint(p)
}

// limitsOf are those of a pod in one direction.
func limitsOf(p party, does string, l policy.Limit) (out []string) {
	var rates []string
	add := func(r policy.Rate, unit string) {
		if r.PerSecond == 0 {
			return
		}
		text := fmt.Sprintf("%d %s a second", r.PerSecond, unit)
		if r.Burst > 0 {
			text += fmt.Sprintf(" (burst %d)", r.Burst)
		}
		rates = append(rates, text)
	}
	add(l.Packets, "packets")
	add(l.Bytes, "bytes")
	add(l.Peak, "bytes of a burst")
	if len(rates) > 0 {
		out = append(out, fmt.Sprintf("%s %s: at most %s", p.name(), does, strings.Join(rates, ", ")))
	}
	if l.Connections > 0 {
		verb := map[string]string{"sends": "begins", "gets": "gets"}[does]
		out = append(out, fmt.Sprintf("%s %s: at most %d connections at a time; those from before the limit was set do not count", p.name(), verb, l.Connections))
	}
	return out
}
