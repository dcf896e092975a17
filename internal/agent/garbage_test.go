package agent

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/muslin-cni/muslin/internal/nettest"
)

func TestSmallHeapGrowsFurther(t *testing.T) {
	for _, c := range []struct {
		live    uint64
		percent int
	}{
		{0, 400}, {1 << 20, 400}, {3 << 20, 400}, {4 << 20, 300}, {5 << 20, 200}, {6 << 20, 150}, {8 << 20, 100}, {10 << 20, 100}, {16 << 20, 100}, {1 << 40, 100},
	} {
		if got := growth(c.live); got != c.percent {
			t.Errorf("%d bytes live: %d %%, want %d", c.live, got, c.percent)
		}
	}
}

func TestHeapMayGrowAsFarAsWhatLivesInItSays(t *testing.T) {
	usual := percentBecomes(t, func(uint64) bool { return true })
	if err := spareCollections(t.Context(), func(name string) string { return map[string]string{"GOGC": "50"}[name] }); err != nil {
		t.Fatal(err)
	}
	if err := spareCollections(t.Context(), func(name string) string { return map[string]string{"GOMEMLIMIT": "1GiB"}[name] }); err != nil {
		t.Fatal(err)
	}
	percentBecomes(t, func(p uint64) bool { return p == usual })

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- spareCollections(ctx, func(string) string { return "" }) }()
	percentBecomes(t, func(p uint64) bool { return p > growthUsual })
	much := make([]byte, 2*heapRoom)
	percentBecomes(t, func(p uint64) bool { return p == growthUsual })
	runtime.KeepAlive(much)
	percentBecomes(t, func(p uint64) bool { return p > growthUsual })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	percentBecomes(t, func(p uint64) bool { return p == usual })
}

// percentBecomes collects garbage until the heap may grow as is wished.
func percentBecomes(t *testing.T, wished func(uint64) bool) (p uint64) {
	t.Helper()
	nettest.Eventually(t, func() error {
		runtime.GC()
		if p = measured("/gc/gogc:percent"); !wished(p) {
			return fmt.Errorf("the heap may grow by %d %%, with %d bytes live", p, measured("/gc/heap/live:bytes"))
		}
		return nil
	})
	return p
}
