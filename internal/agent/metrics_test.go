package agent

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/health"
)

// The pool's blocks hold four addresses each.
func TestAddressesOfTheNodeAreCounted(t *testing.T) {
	h := newHost(t)
	for _, pod := range []string{"a", "b", "c", "d", "e"} {
		h.add(h.h, pod)
	}
	h.caughtUp()
	snap, _ := h.feed.Snapshot()
	if diff := cmp.Diff(health.Addresses{Blocks: 2, InUse: 5, Free: 3}, addressesOf(snap, "node-1")); diff != "" {
		t.Errorf("node-1 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(health.Addresses{}, addressesOf(snap, "node-2")); diff != "" {
		t.Errorf("node-2 (-want +got):\n%s", diff)
	}
}

func TestLagGrowsWhileEtcdIsAway(t *testing.T) {
	h := newHost(t)
	a := &Agent{store: h.c, feed: h.feed}
	if lag := a.lag(); lag >= lagTimeout {
		t.Errorf("with etcd there it is %v", lag)
	}
	h.etcd.Stop()
	for ctx := h.ctx(); a.feed.Connected(); { // a connection that breaks is noticed at once
		select {
		case <-ctx.Done():
			t.Fatal("the feed does not notice that etcd is gone")
		case <-time.After(time.Millisecond):
		}
	}
	first := a.lag()
	if second := a.lag(); first <= 0 || second <= first {
		t.Errorf("while etcd is away it went from %v to %v", first, second)
	}
}
