package agent

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"
)

// crowd counts the plugins that are being served. Where there are more of them than processors, it is for processors that they wait. A transaction or a round for each of them would only
// make that worse, so those are begun further apart then, each for all that has come meanwhile. A plugin that finds no crowd waits for none of this.
type crowd struct {
	here  atomic.Int64
	limit int64 // how many are no crowd yet
}

func newCrowd() *crowd { return &crowd{limit: int64(runtime.NumCPU())} }

// enter counts one more, until leave is called.
func (c *crowd) enter() (leave func()) {
	c.here.Add(1)
	return func() { c.here.Add(-1) }
}

// gather waits until crowdPause after last, if there is a crowd, and not at all if there is none or ctx has ended.
func (c *crowd) gather(ctx context.Context, last time.Time) {
	if c.here.Load() <= c.limit {
		return
	}
	pause := time.NewTimer(time.Until(last.Add(crowdPause)))
	defer pause.Stop()
	select {
	case <-ctx.Done():
	case <-pause.C:
	}
}

// crowdPause is the least time from the begin of one transaction, or round, to that of the next, in a crowd.
const crowdPause = 10 * time.Millisecond
