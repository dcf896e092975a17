package agent

import (
	"context"
	"testing"
	"time"
)

// waits tells whether gather waits for its time to come, which is an hour away, until the patience ends.
func (c *crowd) waits(patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.gather(ctx, time.Now().Add(time.Hour))
	return ctx.Err() != nil
}

func TestOnlyACrowdIsGathered(t *testing.T) {
	c := &crowd{limit: 2}
	c.enter()
	c.enter()
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

func TestGatheringEnds(t *testing.T) {
	c := &crowd{limit: 0}
	c.enter()
	last := time.Now()
	c.gather(t.Context(), last)
	if took := time.Since(last); took < crowdPause {
		t.Errorf("it took %v, less than the pause", took)
	}
	c.gather(t.Context(), time.Now().Add(-time.Hour)) // what lies so far back is not waited for: this returns
}
