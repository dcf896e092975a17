package agent

import (
	"math/rand/v2"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

// refresher knows when tables are to be listed without a reason. Each kind has an interval of its own. It belongs to the loop.
type refresher struct {
	timer *time.Timer
	kinds [4]refreshed
}

// refreshed is a kind of tables.
type refreshed struct {
	tables []reconcile.Name
	every  time.Duration // 0: never
	due    time.Time
}

func newRefresher() *refresher {
	return &refresher{timer: time.NewTimer(time.Hour), kinds: [4]refreshed{
		{tables: []reconcile.Name{reconcile.Chains, reconcile.Chains6}},
		{tables: []reconcile.Name{reconcile.Sets}},
		{tables: []reconcile.Name{reconcile.Routes}},
		{tables: []reconcile.Name{reconcile.Sysctls, reconcile.Links, reconcile.Addrs, reconcile.Neighs, reconcile.FDB}},
	}}
}

// arm makes the timer fire when the next kind is due. A kind whose interval has changed begins anew.
func (r *refresher) arm(now time.Time, every config.Refresh) {
	var next time.Time
	for i, e := range [...]time.Duration{every.Chains, every.Sets, every.Routes, every.Interfaces} {
		k := &r.kinds[i]
		if k.every != e {
			k.every, k.due = e, now.Add(spread(e))
		}
		if e > 0 && (next.IsZero() || k.due.Before(next)) {
			next = k.due
		}
	}
	if next.IsZero() {
		r.timer.Stop()
		return
	}
	r.timer.Reset(max(0, next.Sub(now)))
}

// take returns the tables that are due, and sets when they will be so again.
func (r *refresher) take(now time.Time) []reconcile.Name {
	var out []reconcile.Name
	for i := range r.kinds {
		k := &r.kinds[i]
		if k.every > 0 && !k.due.After(now) {
			out = append(out, k.tables...)
			k.due = now.Add(spread(k.every))
		}
	}
	return out
}

// spread adds up to a tenth, so that nodes and kinds drift apart.
func spread(d time.Duration) time.Duration {
	if d <= 0 {
		return d
	}
	return d + rand.N(d/10+1)
}
