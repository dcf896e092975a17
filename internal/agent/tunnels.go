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

	look    chan plan.Modes // cap 1: look again, and let these keep their addresses
	seen    feed.Snapshot   // what the last look was about; owned by the loop
	kept    plan.Modes      // likewise
	failing string          // why the last look failed, as logged; owned by run
}

func newTunnels(c *store.Client, node string, commit func([]store.KV), log *slog.Logger) *tunnels {
	return &tunnels{store: c, node: node, commit: commit, log: log, look: make(chan plan.Modes, 1)}
}

// consider asks for another look if the pools, our own Node or what is kept changed since the last time. The loop calls it.
func (t *tunnels) consider(snap feed.Snapshot, keep plan.Modes) {
	changed := snap.Since(t.seen)
	news := changed.All || changed.Kinds.Has(feed.Pools) || slices.Contains(changed.Keys, snap.Node(t.node).Key) || keep != t.kept
	t.seen, t.kept = snap, keep
	if !news {
		return
	}
	select {
	case <-t.look: // nobody has begun on it
	default:
	}
	t.look <- keep
}

// run looks whenever it is asked to, and again until it succeeds, until ctx ends.
func (t *tunnels) run(ctx context.Context) error {
	retry := backoff{}
	var keep plan.Modes
	for {
		select {
		case <-ctx.Done():
			return nil
		case keep = <-t.look:
		case <-retry.due():
			retry.fired()
		}
		if t.ensure(ctx, keep) {
			retry.reset()
		} else {
			retry.next()
		}
	}
}

// ensure looks once. Modes that are to keep their addresses do so though no pool uses them. What goes wrong is logged once, and tried again after a while.
func (t *tunnels) ensure(ctx context.Context, keep plan.Modes) (ok bool) {
	have, changed, err := ipam.EnsureTunnels(ctx, t.store, t.node, time.Now, kinds(keep)...)
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
