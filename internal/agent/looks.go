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
	for _, name := range looked() {
		if interval(old, name) != interval(every, name) {
			l.next[name] = now.Add(spread(interval(every, name)))
		}
	}
}

// looked are the tables that are listed at intervals.
func looked() []reconcile.Name {
	return []reconcile.Name{
		reconcile.Routes, reconcile.Rules, reconcile.Neighs, reconcile.FDB, reconcile.Links, reconcile.WGs, reconcile.Peers, reconcile.Addrs, reconcile.Sysctls, reconcile.Sets,
		reconcile.Chains, reconcile.Chains6, policyTable,
	}
}

// interval is the one by which a table goes. It is asked for several times in every round.
func interval(every config.Refresh, name reconcile.Name) time.Duration {
	switch name {
	case reconcile.Routes, reconcile.Rules, reconcile.Neighs, reconcile.FDB:
		return every.Routes
	case reconcile.Links, reconcile.WGs, reconcile.Peers, reconcile.Addrs, reconcile.Sysctls:
		return every.Interfaces
	case reconcile.Sets:
		return every.Sets
	}
	return every.Chains
}

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
