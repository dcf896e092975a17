package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

func TestKindsOfTablesAreListedAtTheirOwnPace(t *testing.T) {
	r := newRefresher()
	defer r.timer.Stop()
	now := time.Unix(1000, 0)
	every := config.Refresh{Chains: 100 * time.Second, Sets: 20 * time.Second, Interfaces: 20 * time.Second} // routes never
	r.arm(now, every)
	if due := r.take(now.Add(19 * time.Second)); due != nil {
		t.Errorf("%v are due too early", due)
	}
	now = now.Add(23 * time.Second)
	due := r.take(now)
	slices.Sort(due)
	want := []reconcile.Name{reconcile.Sets, reconcile.Sysctls, reconcile.Links, reconcile.Addrs, reconcile.Neighs, reconcile.FDB}
	slices.Sort(want)
	if d := cmp.Diff(want, due); d != "" {
		t.Errorf("due after 23 s (-want +got):\n%s", d)
	}
	if again := r.take(now); again != nil {
		t.Errorf("%v are due again at once", again)
	}
	every.Chains, every.Sets, every.Interfaces = 10*time.Second, 0, 0
	r.arm(now, every)
	if d := cmp.Diff([]reconcile.Name{reconcile.Chains, reconcile.Chains6}, r.take(now.Add(12*time.Second))); d != "" {
		t.Errorf("due after the change (-want +got):\n%s", d)
	}
}
