package agent

import (
	"fmt"
	"strings"

	"github.com/muslin-cni/muslin/internal/bgp"
	"github.com/muslin-cni/muslin/internal/health"
)

// status is how the sessions are doing, sorted by peer; none without BGP. It waits while the speaker is being changed.
func (b *speaker) status() ([]bgp.Status, error) {
	if b == nil {
		return nil, nil
	}
	server := b.speaking()
	if server == nil {
		return nil, nil
	}
	return server.Status()
}

// numbers are the sessions in numbers; nil without BGP. Every state is among them, so that none is missing from a graph when it is not in use.
func (b *speaker) numbers() *health.BGP {
	if b == nil {
		return nil
	}
	all, err := b.status()
	if err != nil {
		b.log.Debug("count BGP's sessions", "error", err)
	}
	out := &health.BGP{Sessions: map[string]int{}}
	for _, state := range bgp.States() {
		out.Sessions[state] = 0
	}
	for _, s := range all {
		out.Sessions[s.State]++
		out.Received, out.Accepted, out.Advertised = out.Received+s.Received, out.Accepted+s.Accepted, out.Advertised+s.Advertised
	}
	return out
}

// lacking names the sessions that are not established, and why, a line for each; "" if all are. The node is ready all the same: its
// pods reach each other by what the kernel holds, and an agent that is not ready keeps Kubernetes from putting it right.
func (b *speaker) lacking() string {
	all, err := b.status()
	if err != nil {
		return err.Error() + "\n"
	}
	var text strings.Builder
	for _, s := range all {
		if !s.Established() {
			fmt.Fprintf(&text, "%v (%s): %s\n", s.Peer, s.Kind, strings.TrimSpace(s.State+" "+s.LastError))
		}
	}
	return text.String()
}
