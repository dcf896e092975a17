package agent

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	tidyEvery = 20 * time.Second
	tidyAfter = 4 << 20 // bytes allocated since the last time; an agent at rest allocates less
)

// tidy gives the system back what work has left over, until ctx ends. Reading a large cluster leaves as much garbage again as it leaves data, and the
// runtime by itself collects only when as much is allocated anew, or after two minutes: on a quiet node the peak would stay.
func tidy(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	var tidied uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if now := allocated(); now-tidied > tidyAfter {
			debug.FreeOSMemory()
			tidied = now
		}
	}
}

// allocated is how much this process has allocated since its start, in bytes.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
