package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
)

// settleTime is how long a change of the host's addresses may go on before it is looked at: a DHCP client takes an address away and puts the
// next one there.
const settleTime = time.Second

// addresses keeps the node's addresses in its Node as the host has them: it looks when the host's addresses have changed, and now and then.
// It works beside the loop, since it waits for etcd.
type addresses struct {
	every time.Duration
	find  func(context.Context) (problems []string, err error)
	gone  func(func(netip.Addr) bool) // told at once which addresses the host has no more
	log   *slog.Logger

	look  chan struct{}  // cap 1: look again
	facts uint64         // number of the host's facts that were considered last; owned by the loop
	seen  []netip.Prefix // what the last look was about; owned by the loop
	said  []string       // problems that were logged and are still there; owned by start, and then by run
}

func newAddresses(every time.Duration, find func(context.Context) ([]string, error), gone func(func(netip.Addr) bool), log *slog.Logger) *addresses {
	return &addresses{every: every, find: find, gone: gone, log: log, look: make(chan struct{}, 1)}
}

// consider asks for another look if the host's addresses are not those of the last time. The loop calls it.
func (a *addresses) consider(h kernel.Host, facts uint64) {
	if facts == a.facts {
		return
	}
	a.facts = facts
	now := startup.Candidates(h)
	if slices.Equal(now, a.seen) {
		return
	}
	before := a.seen
	a.seen = now
	a.gone(func(was netip.Addr) bool { return has(before, was) && !has(now, was) })
	poke(a.look)
}

func has(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr() == a })
}

// run looks whenever it is asked to, at intervals, and again until it succeeds, until ctx ends.
func (a *addresses) run(ctx context.Context) error {
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	retry := backoff{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-retry.due():
			retry.fired()
		case <-a.look:
			if !pause(ctx, settleTime) {
				return nil
			}
		}
		if a.once(ctx) {
			retry.reset()
		} else {
			retry.next()
		}
	}
}

// once looks.
func (a *addresses) once(ctx context.Context) (ok bool) {
	problems, err := a.find(ctx)
	if ctx.Err() != nil {
		return true
	}
	if err != nil {
		problems = append(problems, fmt.Sprintf("look after the node's addresses: %v", err))
	}
	a.say(problems)
	return err == nil
}

// say logs each problem when it appears and when it is gone.
func (a *addresses) say(problems []string) {
	for _, p := range problems {
		if !slices.Contains(a.said, p) {
			a.log.Warn("problem", "what", p)
		}
	}
	for _, p := range a.said {
		if !slices.Contains(problems, p) {
			a.log.Info("problem gone", "what", p)
		}
	}
	a.said = problems
}

// pause waits for a while; it reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// readdress looks for the node's addresses by what the feed knows of all nodes. Where nothing on this node may change, it does nothing.
func (a *Agent) readdress(ctx context.Context) ([]string, error) {
	snap, ok := a.feed.Snapshot()
	if !ok || frozen(snap, a.node, a.machine) != "" {
		return nil, nil
	}
	var nodes []*api.Node
	for _, e := range snap.Nodes() {
		nodes = append(nodes, e.Value)
	}
	return startup.Readdress(ctx, a.node, a.cfg, a.startupDeps(), nodes)
}
