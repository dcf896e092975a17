package agent

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/nettest"
)

// waits tells whether gather waits for its time to come, which is an hour away, until the patience ends.
func (c *crowd) waits(patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.gather(ctx, time.Now().Add(time.Hour))
	return ctx.Err() != nil
}

// crowdOf has that many plugins, and so many are no crowd yet.
func crowdOf(limit, n int) *crowd {
	c := newCrowd()
	c.limit = limit
	for range n {
		c.enter()
	}
	return c
}

func TestOnlyACrowdIsGathered(t *testing.T) {
	c := crowdOf(2, 2)
	if c.waits(time.Minute) {
		t.Error("it waits although there is no crowd")
	}
	leave := c.enter()
	if !c.waits(10 * time.Millisecond) {
		t.Error("it does not wait although there is one more than processors")
	}
	leave()
	if c.waits(time.Minute) {
		t.Error("it waits for one that has left")
	}
}

func TestNobodyIsWaitedForWhoIsThere(t *testing.T) {
	c := crowdOf(2, 3)
	c.wait()
	c.wait()
	if !c.waits(10 * time.Millisecond) {
		t.Error("it does not wait for the third, which is at work")
	}
	done := c.wait()
	if c.waits(time.Minute) {
		t.Error("it waits although all of them do")
	}
	done()
	if !c.waits(10 * time.Millisecond) {
		t.Error("it does not wait for one that has been answered and is at work again")
	}
}

// TestGatheringEnds has calls under way, as the loop's and the handler's are, when what they wait for happens.
func TestGatheringEnds(t *testing.T) {
	for name, happens := range map[string]func(c *crowd, leave func()){
		"the last one waits": func(c *crowd, _ func()) { c.wait() },
		"one leaves":         func(_ *crowd, leave func()) { leave() },
	} {
		t.Run(name, func(t *testing.T) {
			c := crowdOf(2, 2)
			leave := c.enter()
			c.wait()
			c.wait()
			var calls sync.WaitGroup
			for range 2 {
				calls.Go(func() {
					if c.waits(time.Minute) {
						t.Error("it did not end")
					}
				})
			}
			nettest.Eventually(t, func() error {
				if n := c.gatherers(); n < 2 {
					return fmt.Errorf("%d calls wait", n)
				}
				return nil
			})
			happens(c, leave)
			calls.Wait()
			if n := c.gatherers(); n != 0 {
				t.Errorf("%d calls are still counted", n)
			}
		})
	}
}

func (c *crowd) gatherers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gathering
}

func TestGatheringTakesItsTimeAndNoMore(t *testing.T) {
	c := crowdOf(0, 1)
	last := time.Now()
	c.gather(t.Context(), last)
	if took := time.Since(last); took < crowdPause {
		t.Errorf("it took %v, less than the pause", took)
	}
	c.gather(t.Context(), time.Now().Add(-time.Hour)) // what lies so far back is not waited for: this returns
}
