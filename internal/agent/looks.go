package agent

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

// spoiledPause is the least time between two lists of chains that events ask for: others may change the kernel's chains, in which our jumps
// stand, as often as they like.
const spoiledPause = time.Second

// looks says when which tables are to be listed: each class by its interval, and the chains soon after others have changed them.
type looks struct {
	every   config.Refresh // zero: never
	next    map[reconcile.Name]time.Time
	spoilt  []reconcile.Name // chains that others have changed
	allowed time.Time        // when they may be listed for that
}

func newLooks() looks { return looks{next: map[reconcile.Name]time.Time{}} }

// set changes the intervals. What is due by the old ones stays so if the interval is the same.
func (l *looks) set(every config.Refresh, now time.Time) {
	if every == l.every {
		return
	}
	old := l.every
	l.every = every
	for name := range classes() {
		if interval(old, name) != interval(every, name) {
			l.next[name] = now.Add(spread(interval(every, name)))
		}
	}
}

// classes says by which interval a table goes.
func classes() map[reconcile.Name]func(config.Refresh) time.Duration {
	routes := func(r config.Refresh) time.Duration { return r.Routes }
	interfaces := func(r config.Refresh) time.Duration { return r.Interfaces }
	chains := func(r config.Refresh) time.Duration { return r.Chains }
	return map[reconcile.Name]func(config.Refresh) time.Duration{
		reconcile.Routes: routes, reconcile.Rules: routes, reconcile.Neighs: routes, reconcile.FDB: routes,
		reconcile.Links: interfaces, reconcile.WGs: interfaces, reconcile.Peers: interfaces, reconcile.Addrs: interfaces, reconcile.Sysctls: interfaces,
		reconcile.Sets:   func(r config.Refresh) time.Duration { return r.Sets },
		reconcile.Chains: chains, reconcile.Chains6: chains, policyTable: chains,
	}
}

func interval(every config.Refresh, name reconcile.Name) time.Duration { return classes()[name](every) }

// spread lengthens an interval by up to a tenth, so that the nodes of a cluster do not look all at once.
func spread(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + rand.N(d/10+1)
}

// spoiled notes that others have changed chains.
func (l *looks) spoiled(v4, v6 bool) {
	if v4 {
		l.spoilt = append(l.spoilt, reconcile.Chains)
	}
	if v6 {
		l.spoilt = append(l.spoilt, reconcile.Chains6)
	}
}

// take returns the tables to list now, and counts them as listed.
func (l *looks) take(now time.Time) (out []reconcile.Name) {
	for name, at := range l.next {
		if interval(l.every, name) > 0 && !now.Before(at) {
			l.next[name] = now.Add(spread(interval(l.every, name)))
			out = append(out, name)
		}
	}
	if len(l.spoilt) > 0 && !now.Before(l.allowed) {
		out = append(out, l.spoilt...)
		l.spoilt, l.allowed = nil, now.Add(spoiledPause)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// due receives when take will have something to return; it is nil if that will never be.
func (l *looks) due(now time.Time) <-chan time.Time {
	var first time.Time
	sooner := func(at time.Time) {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	for name, at := range l.next {
		if interval(l.every, name) > 0 {
			sooner(at)
		}
	}
	if len(l.spoilt) > 0 {
		sooner(l.allowed)
	}
	if first.IsZero() {
		return nil
	}
	return time.After(first.Sub(now))
}
