package agent

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// tunnels keeps the node's tunnel addresses as the pools say. It works beside the loop, since it waits for etcd.
//
// The address of an encapsulation that no pool asks for any more is given back only when its device goes: what the host has asked pods
// from it is answered to it, whatever way the answer takes, and as long as the device has it nobody else may.
//
// An address is given only when the loop has made the device and let in what comes through it: by the address other nodes see that they may send.
type tunnels struct {
	store  *store.Client
	node   string
	commit func([]store.KV) // shows a commit to the feed at once
	log    *slog.Logger

	look    chan wish     // cap 1: look again
	seen    feed.Snapshot // what the last look was about; owned by the loop
	wished  wish          // likewise
	failing string        // why the last look failed, as logged; owned by run
}

func newTunnels(c *store.Client, node string, commit func([]store.KV), log *slog.Logger) *tunnels {
	return &tunnels{store: c, node: node, commit: commit, log: log, look: make(chan wish, 1)}
}

// consider asks for another look if the pools, our own Node or the wish changed since the last time. The loop calls it.
func (t *tunnels) consider(snap feed.Snapshot, w wish) {
	changed := snap.Since(t.seen)
	news := changed.All || changed.Kinds.Has(feed.Pools) || slices.Contains(changed.Keys, snap.Node(t.node).Key) || !w.equal(t.wished)
	t.seen, t.wished = snap, w
	if !news {
		return
	}
	select {
	case <-t.look: // nobody has begun on it
	default:
	}
	t.look <- w
}

// run looks whenever it is asked to, and again until it succeeds, until ctx ends.
func (t *tunnels) run(ctx context.Context) error {
	retry := backoff{}
	var w wish
	for {
		select {
		case <-ctx.Done():
			return nil
		case w = <-t.look:
		case <-retry.due():
			retry.fired()
		}
		if t.ensure(ctx, w) {
			retry.reset()
		} else {
			retry.next()
		}
	}
}

// ensure looks once. What goes wrong is logged once, and tried again after a while.
func (t *tunnels) ensure(ctx context.Context, w wish) (ok bool) {
	have, changed, err := ipam.EnsureWish(ctx, t.store, t.node, time.Now, w.asked())
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

// kinds are the encapsulations as pkg/ipam names their addresses.
func kinds(m plan.Modes) (out []string) {
	if m.IPIP {
		out = append(out, ipam.TunnelIPIP)
	}
	if m.VXLAN {
		out = append(out, ipam.TunnelVXLAN)
	}
	if m.VXLAN6 {
		out = append(out, ipam.TunnelVXLAN6)
	}
	if m.WireGuard {
		out = append(out, ipam.TunnelWireGuard)
	}
	if m.WireGuard6 {
		out = append(out, ipam.TunnelWireGuard6)
	}
	return out
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
