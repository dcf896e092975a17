package agent

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// tunnels keeps the node's tunnel addresses as the pools say. It works beside the loop, since it waits for etcd.
type tunnels struct {
	store  *store.Client
	node   string
	commit func([]store.KV) // shows a commit to the feed at once
	log    *slog.Logger

	look    chan struct{} // cap 1: look again
	seen    feed.Snapshot // what the last look was about; owned by the loop
	failing string        // why the last look failed, as logged; owned by run, and by start before it
}

func newTunnels(c *store.Client, node string, commit func([]store.KV), log *slog.Logger) *tunnels {
	return &tunnels{store: c, node: node, commit: commit, log: log, look: make(chan struct{}, 1)}
}

// consider asks for another look if the pools or our own Node changed since the last time. The loop calls it.
func (t *tunnels) consider(snap feed.Snapshot) {
	changed := snap.Since(t.seen)
	t.seen = snap
	if !changed.All && !changed.Kinds.Has(feed.Pools) && !slices.Contains(changed.Keys, snap.Node(t.node).Key) {
		return
	}
	select {
	case t.look <- struct{}{}:
	default:
	}
}

// run looks whenever it is asked to, and again until it succeeds, until ctx ends.
func (t *tunnels) run(ctx context.Context) error {
	retry := backoff{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.look:
		case <-retry.due():
			retry.fired()
		}
		if t.ensure(ctx) {
			retry.reset()
		} else {
			retry.next()
		}
	}
}

// ensure looks once. What goes wrong is logged once, and tried again after a while.
func (t *tunnels) ensure(ctx context.Context) (ok bool) {
	have, changed, err := ipam.EnsureTunnels(ctx, t.store, t.node, time.Now)
	t.commit(changed)
	if len(changed) > 0 {
		t.log.Info("tunnel addresses", "node", t.node, "addresses", shown(have))
	}
	if err != nil {
		if err.Error() != t.failing {
			t.failing = err.Error()
			t.log.Warn("the tunnel addresses are not settled; it is tried again", "error", err)
		}
		return false
	}
	t.failing = ""
	return true
}

// shown is the addresses with their kinds, or "none".
func shown(have []ipam.TunnelAddr) string {
	var out []string
	for _, a := range have {
		out = append(out, a.Kind+" "+a.Addr.String())
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
