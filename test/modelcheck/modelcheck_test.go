package modelcheck_test

import (
	"context"
	"errors"
	"flag"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	mc "github.com/muslin-cni/muslin/test/modelcheck"
)

// long is set by `make modelcheck`.
var long = flag.Duration("long", 0, "explore the long list too, for so long at most, and make histories of a fifth of that length")

// maxStates bounds a scenario of the short list: one that grows beyond it belongs into the long one.
const maxStates = 60_000

func TestEveryOrderOfEventsKeepsTheInvariants(t *testing.T) {
	var total mc.Result
	for _, s := range mc.Short() {
		t.Run(s.Name, func(t *testing.T) {
			r, err := s.Explore(t.Context(), maxStates)
			report(t, r, err)
			total = total.Plus(r)
		})
	}
	t.Logf("%d scenarios: %d states, %d transitions, up to %d steps deep", len(mc.Short()), total.States, total.Transitions, total.Depth)
}

func report(t *testing.T, r mc.Result, err error) {
	t.Helper()
	t.Logf("%d states, %d transitions, up to %d steps deep, %d ends", r.States, r.Transitions, r.Depth, r.Ends)
	if err != nil {
		t.Error(err)
	}
	if r.Violation != nil {
		t.Error(r.Violation)
	}
}

// inPass is how far each scenario of the long list is explored before any of them is explored whole.
const inPass = 20_000

// TestLongListOfOrders tells how far it came where its time is up: what was not finished then has shown nothing wrong, and is no failure. All scenarios are
// explored to the same number of states first, which is all that can be reached in few steps.
func TestLongListOfOrders(t *testing.T) {
	if *long == 0 {
		t.Skip("`make modelcheck` runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), *long)
	defer cancel()
	left := mc.Long()
	for _, bound := range []int{inPass, 0} {
		began := len(left)
		var total mc.Result
		left, total = exploreAll(ctx, t, left, bound)
		t.Logf("bound %d: %d of %d scenarios whole: %d states, %d transitions, up to %d steps deep", bound, began-len(left), len(mc.Long()), total.States, total.Transitions, total.Depth)
	}
}

// exploreAll explores scenarios beside each other, and returns those that were not explored whole.
func exploreAll(ctx context.Context, t *testing.T, all []mc.Scenario, bound int) (left []mc.Scenario, total mc.Result) {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, s := range all {
		group.Go(func() error {
			r, err := s.Explore(ctx, bound)
			mu.Lock()
			defer mu.Unlock()
			total = total.Plus(r)
			switch {
			case r.Violation != nil:
				t.Errorf("%s: %v", s.Name, r.Violation)
			case errors.Is(err, context.DeadlineExceeded), errors.Is(err, mc.ErrTooMany):
				left = append(left, s)
			case err != nil:
				t.Errorf("%s: %v", s.Name, err)
			default:
				t.Logf("%d states, %d transitions, up to %d steps deep: %s", r.States, r.Transitions, r.Depth, s.Name)
			}
			return nil
		})
	}
	_ = group.Wait() // none returns an error
	return left, total
}
