package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// flows has the kernel forget the connections of workloads that are gone: whoever gets such an address next must not inherit what was allowed to the
// one before, and has no route until that is so (see guard.admit). Going through all connections of a host takes milliseconds however few they are, so it is
// not done in the loop, and for all addresses of a while at once; but at once where one of them has a new owner already.
type flows struct {
	forget func(map[netip.Addr]struct{}) (int, error)
	log    *slog.Logger

	mu      sync.Mutex
	pending map[netip.Addr]struct{} // to be forgotten
	current map[netip.Addr]struct{} // being forgotten

	came   chan struct{} // cap 1: there is something to do
	urgent chan struct{} // cap 1: and somebody waits for it
	done   chan struct{} // cap 1: something was done
}

// gatherFlows is how long addresses wait for others. It is short, for an agent that is killed meanwhile forgets what it was to do.
const gatherFlows = 250 * time.Millisecond

func newFlows(forget func(map[netip.Addr]struct{}) (int, error), log *slog.Logger) *flows {
	return &flows{
		forget: forget, log: log, pending: map[netip.Addr]struct{}{},
		came: make(chan struct{}, 1), urgent: make(chan struct{}, 1), done: make(chan struct{}, 1),
	}
}

// released asks for the connections of some addresses to be forgotten. It does not wait.
func (f *flows) released(addrs []netip.Addr) {
	f.mu.Lock()
	for _, a := range addrs {
		f.pending[a] = struct{}{}
	}
	f.mu.Unlock()
	poke(f.came)
}

// remembered tells whether the kernel may still track connections of an address's last owner. If so they are forgotten without delay, and changed
// receives afterwards.
func (f *flows) remembered(a netip.Addr) bool {
	f.mu.Lock()
	_, waits := f.pending[a]
	_, begun := f.current[a]
	f.mu.Unlock()
	if waits {
		poke(f.urgent)
	}
	return waits || begun
}

// changed receives when less is remembered than before.
func (f *flows) changed() <-chan struct{} { return f.done }

// run does what is asked for until ctx ends, and then what is still to be done. What fails is not tried again: by then the address may be another
// workload's.
func (f *flows) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			f.clear()
			return nil
		case <-f.came:
		}
		select {
		case <-ctx.Done():
		case <-f.urgent:
		case <-time.After(gatherFlows):
		}
		f.clear()
	}
}

// clear forgets what is pending.
func (f *flows) clear() {
	f.mu.Lock()
	addrs := f.pending
	f.pending, f.current = map[netip.Addr]struct{}{}, addrs
	f.mu.Unlock()
	if len(addrs) == 0 {
		return
	}
	start := time.Now()
	n, err := f.forget(addrs)
	if err != nil {
		f.log.Warn("forget the connections of pods that are gone", "addresses", len(addrs), "error", err)
	} else {
		f.log.Debug("forgot the connections of pods that are gone", "addresses", len(addrs), "connections", n, "took", time.Since(start))
	}
	f.mu.Lock()
	f.current = nil
	f.mu.Unlock()
	poke(f.done)
}
