package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

func TestTablesAreListedByTheirIntervals(t *testing.T) {
	start := time.Unix(0, 0)
	l := newLooks()
	l.set(config.Refresh{Routes: 90 * time.Second, Interfaces: 90 * time.Second, Sets: 90 * time.Second, Chains: 180 * time.Second}, start)
	if got := l.take(start.Add(89 * time.Second)); len(got) > 0 {
		t.Errorf("too early: %v", got)
	}
	rest := []reconcile.Name{reconcile.Addrs, reconcile.FDB, reconcile.Links, reconcile.Neighs, reconcile.Peers, reconcile.Routes, reconcile.Rules, reconcile.Sets,
		reconcile.Sysctls, reconcile.WGs}
	slices.Sort(rest)
	if d := cmp.Diff(rest, l.take(start.Add(100*time.Second))); d != "" {
		t.Errorf("after 100 s (-want +got):\n%s", d)
	}
	if got := l.take(start.Add(100 * time.Second)); len(got) > 0 {
		t.Errorf("twice: %v", got)
	}
	chains := []reconcile.Name{reconcile.Chains, reconcile.Chains6}
	slices.Sort(chains)
	if got := l.take(start.Add(200 * time.Second)); !slices.Contains(got, reconcile.Chains) || !slices.Contains(got, reconcile.Chains6) {
		t.Errorf("after 200 s: %v, want %v in it", got, chains)
	}
	l.set(config.Refresh{}, start)
	if got := l.take(start.Add(time.Hour)); len(got) > 0 || l.due(start) != nil {
		t.Errorf("with no interval: %v", got)
	}
}

func TestSpoiledChainsAreListedAtOnceAndThenInPeace(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLooks()
	l.spoiled(true, false)
	l.spoiled(true, true)
	if d := cmp.Diff([]reconcile.Name{reconcile.Chains6, reconcile.Chains}, l.take(now)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	l.spoiled(true, false)
	if got := l.take(now.Add(spoiledPause / 2)); len(got) > 0 || l.due(now) == nil {
		t.Errorf("within the pause: %v", got)
	}
	if d := cmp.Diff([]reconcile.Name{reconcile.Chains}, l.take(now.Add(spoiledPause))); d != "" {
		t.Errorf("after the pause (-want +got):\n%s", d)
	}
	if got := l.take(now.Add(2 * spoiledPause)); len(got) > 0 {
		t.Errorf("with no news: %v", got)
	}
}
