package agent

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/config"
)

// When one processor is too few for the agent, and when it is enough again, as its share of one processor's time between two looks.
const (
	processorsLook = time.Second
	processorsMany = 0.8
	processorsOne  = 0.4
)

// spareProcessors has the runtime use one processor for as long as that is enough, until ctx ends. While it has more, each goroutine that becomes ready
// wakes a thread to look for other work. A pod is hundreds of small steps, and nearly always there is none. A start and what keeps the agent busy for longer,
// such as a peer's full table, have all that there are. GOMAXPROCS in the environment is heeded as it is.
func spareProcessors(ctx context.Context, env config.Env) error {
	if env("GOMAXPROCS") != "" {
		return nil
	}
	tick := time.NewTicker(processorsLook)
	defer tick.Stop()
	defer runtime.SetDefaultGOMAXPROCS()
	b := business{at: time.Now(), many: true}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		used, err := processorTime()
		if err != nil {
			return err
		}
		if before := b.many; b.look(time.Now(), used) == before {
			continue
		}
		if b.many {
			runtime.SetDefaultGOMAXPROCS()
		} else {
			runtime.GOMAXPROCS(1)
		}
	}
}

// business tells whether one processor is enough.
type business struct {
	at   time.Time
	used time.Duration // of the processors by then, since the process started
	many bool          // it was not
}

// look takes over what was used up to now, and returns whether that was more than one processor should do.
func (b *business) look(now time.Time, used time.Duration) bool {
	limit := processorsMany
	if b.many {
		limit = processorsOne
	}
	b.many = (used - b.used).Seconds() > limit*now.Sub(b.at).Seconds()
	b.at, b.used = now, used
	return b.many
}

// processorTime is what this process has used of the processors since its start.
func processorTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("read this process's processor time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
