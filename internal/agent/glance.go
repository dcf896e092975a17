package agent

import (
	"context"
	"time"

	"github.com/muslin-cni/muslin/internal/plan"
)

// glanceEvery is how often WireGuard's devices are looked at between two refreshes. The kernel reports nothing of what others do to them, and a peer that is
// taken away is a node that no pod reaches. A look reads what a refresh would and makes nothing of it unless something has changed, so it costs no round.
const glanceEvery = 10 * time.Second

// glances says when to look. The zero value is ready. It is for one goroutine.
type glances struct{ next time.Time }

// due receives when it is time, and never while nothing is encrypted.
func (g *glances) due(m plan.Modes, now time.Time) <-chan time.Time {
	if !m.WireGuard && !m.WireGuard6 {
		g.next = time.Time{}
		return nil
	}
	if g.next.IsZero() {
		g.next = now.Add(glanceEvery)
	}
	return time.After(g.next.Sub(now))
}

// glance looks, if it is time.
func (a *Agent) glance(ctx context.Context, now time.Time) {
	if a.glances.next.IsZero() || now.Before(a.glances.next) {
		return
	}
	a.glances.next = now.Add(glanceEvery)
	a.kernel.Glance(ctx)
}
