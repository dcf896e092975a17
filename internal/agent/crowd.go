package agent

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// crowd knows how many plugins are being served, and how many of them wait for the agent. Where there are more than processors, it is for processors that they wait. A transaction or a round
// for each of them would only make that worse, so those are begun further apart then, each for all that has come meanwhile. Once nobody is left who could come, nothing is waited for any
// more; and a plugin that finds no crowd waits for none of this. All methods may be called concurrently.
type crowd struct {
	limit int // how many are no crowd yet

	mu            sync.Mutex
	here, waiting int           // plugins being served; those of them that wait for the agent
	gathering     int           // calls of gather
	enough        chan struct{} // closed and replaced when these are to return
}

func newCrowd() *crowd { return &crowd{limit: runtime.NumCPU(), enough: make(chan struct{})} }

// enter counts one more that is served, until leave is called.
func (c *crowd) enter() (leave func()) {
	c.count(1, 0)
	return func() { c.count(-1, 0) }
}

// wait counts one more of those here that wait for the agent, until done is called.
func (c *crowd) wait() (done func()) {
	c.count(0, 1)
	return func() { c.count(0, -1) }
}

func (c *crowd) count(here, waiting int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.here, c.waiting = c.here+here, c.waiting+waiting
	if c.gathering > 0 && c.complete() {
		close(c.enough)
		c.enough = make(chan struct{})
	}
}

// complete reports whether there is no crowd, or nobody of it is still to come. c.mu is held.
func (c *crowd) complete() bool { return c.here <= c.limit || c.waiting >= c.here }

// gather waits until crowdPause after last, or until nobody is to come any more; not at all if there is no crowd, or ctx has ended.
func (c *crowd) gather(ctx context.Context, last time.Time) {
	enough := c.join()
	if enough == nil {
		return
	}
	defer c.part()
	pause := time.NewTimer(time.Until(last.Add(crowdPause)))
	defer pause.Stop()
	select {
	case <-ctx.Done():
	case <-enough:
	case <-pause.C:
	}
}

// join counts one more call of gather, and returns the channel that ends it; nil if it need not wait.
func (c *crowd) join() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.complete() {
		return nil
	}
	c.gathering++
	return c.enough
}

func (c *crowd) part() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathering--
}

// crowdPause is the most time from the begin of one transaction, or round, to that of the next, in a crowd that asks for it.
const crowdPause = 10 * time.Millisecond
