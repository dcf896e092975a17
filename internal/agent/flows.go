package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// flows has the kernel forget the connections of workloads that are gone: whoever gets such an address next must not inherit
// what was allowed to the one before. Going through all connections of a host takes a while, so it is not done in the loop, and for all
// addresses that come meanwhile at once.
type flows struct {
	forget func(map[netip.Addr]struct{}) (int, error)
	log    *slog.Logger

	mu      sync.Mutex
	pending map[netip.Addr]struct{}
	wake    chan struct{}
}

func newFlows(forget func(map[netip.Addr]struct{}) (int, error), log *slog.Logger) *flows {
	return &flows{forget: forget, log: log, pending: map[netip.Addr]struct{}{}, wake: make(chan struct{}, 1)}
}

// released asks for the connections of some addresses to be forgotten. It does not wait.
func (f *flows) released(addrs []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addrs {
		f.pending[a] = struct{}{}
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run does what is asked for until ctx ends. What fails is not tried again: by then the address may be another workload's.
func (f *flows) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		f.mu.Lock()
		addrs := f.pending
		f.pending = map[netip.Addr]struct{}{}
		f.mu.Unlock()
		start := time.Now()
		n, err := f.forget(addrs)
		if err != nil {
			f.log.Warn("forget the connections of pods that are gone", "addresses", len(addrs), "error", err)
			continue
		}
		f.log.Debug("forgot the connections of pods that are gone", "addresses", len(addrs), "connections", n, "took", time.Since(start))
	}
}
