package agent

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/muslin-cni/muslin/internal/config"
)

// How far the heap grows before garbage is collected, as a share of what lives, in percent: what the runtime does by itself, and at most.
const (
	growthUsual = 100
	growthMost  = 400
	growthStep  = 50
)

// heapRoom is what a heap may grow to in any case, in bytes: with 1,000 nodes it does so anyway.
const heapRoom = 16 << 20

// spareCollections has the runtime let a small heap grow to heapRoom before it collects garbage, until ctx ends. By itself it collects whenever as much
// was allocated as lives, and on most nodes little does: pods that come one upon the other would have it do so several times a second. What is over when they are done
// is given back by tidy. GOGC and GOMEMLIMIT in the environment are heeded as they are.
func spareCollections(ctx context.Context, env config.Env) error {
	if env("GOGC") != "" || env("GOMEMLIMIT") != "" {
		return nil
	}
	c := &collections{}
	before := debug.SetGCPercent(growthUsual)
	c.await()
	<-ctx.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	debug.SetGCPercent(before)
	return nil
}

// collections sets after each collection how far the heap may grow until the next.
type collections struct {
	mu   sync.Mutex
	over bool
}

// await has the end of the next collection seen to, and of those after it.
func (c *collections) await() {
	runtime.AddCleanup(new([2]*collections), (*collections).ended, c) // nobody holds on to it: the next collection finds that
}

func (c *collections) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if p := growth(measured("/gc/heap/live:bytes")); p != int(measured("/gc/gogc:percent")) { // to set it stops the world, also to what it is
		debug.SetGCPercent(p)
	}
	c.await()
}

// growth is how far a heap may grow of which so many bytes live, in percent of them, in coarse steps.
func growth(live uint64) int {
	if live >= heapRoom {
		return growthUsual
	}
	percent := (heapRoom - live) * 100 / max(live, 1)
	return int(min(growthMost, max(growthUsual, percent-percent%growthStep)))
}
