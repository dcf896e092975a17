package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/bgp"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/internal/startup"
)

// leaveTime bounds how long peers are waited for that are to be told good-bye. Those that dial do so every few seconds, and without a word they would
// keep our routes two minutes from when they lost the session.
const leaveTime = 45 * time.Second

// spokeFile is there while peers may hold routes of this node's: from the first word of a speaker until the host starts anew or takeLeave has told them.
func spokeFile() string { return filepath.Join(filepath.Dir(attach.Socket), "bgp-spoken") }

// marked writes down that peers may hold our routes from now on.
func (b *speaker) marked() error {
	if b.mark == "" {
		return nil
	}
	return startup.WriteFile(b.mark, "BGP peers may hold routes of this node's\n")
}

// takeLeave is for a node whose backend is no longer BGP. The agent before this one fell silent, as an agent does that is to come back, and its peers
// keep its routes. They are told that it does not come back, once this agent's own routes are in the kernel.
func (a *Agent) takeLeave(ctx context.Context) error {
	if _, err := os.Stat(spokeFile()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-a.isUp:
	}
	b := newSpeaker(a.node, a.cfg.RouterID, a.rtnl, a.monitor.Host, a.log)
	if a.cluster != nil {
		b.kube = a.cluster
	}
	snap, _ := a.feed.Snapshot() // there is one, since the kernel was made by it
	told, of, err := b.leave(ctx, snap)
	switch {
	case ctx.Err() != nil:
		return nil // the next agent tries again
	case err != nil:
		a.log.Warn("BGP peers cannot be told that this node speaks no BGP any more; they drop its routes in their own time", "error", err)
	default:
		a.log.Info("BGP peers were told that this node speaks no BGP any more", "told", told, "of", of)
	}
	if err := os.Remove(spokeFile()); err != nil {
		a.log.Warn("forget that this node has spoken BGP", "error", err)
	}
	return nil
}

// leave has a session with every peer once more, in which nothing is announced, and ends each with a notification: then peers drop what they kept (RFC
// 4724 section 4.2). It waits for ctx and leaveTime, and says how many peers there were and how many of them came.
func (b *speaker) leave(ctx context.Context, snap feed.Snapshot) (told, of int, err error) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	m := b.model(snap)
	for b.tooEarly() {
		select {
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-time.After(kubeRetry):
			m = b.model(snap)
		}
	}
	mute := peering.Compute(b.node, m).Speaker
	for i := range mute.Sessions {
		nothing := []peering.Term{{Verdict: peering.Reject}}
		mute.Sessions[i].Import, mute.Sessions[i].Export = nothing, nothing
	}
	server := bgp.New(b.log, bgp.Options{})
	if err := server.Apply(ctx, mute); err != nil {
		return 0, len(mute.Sessions), errors.Join(err, end(server))
	}
	told, err = greeted(ctx, server, len(mute.Sessions))
	return told, len(mute.Sessions), errors.Join(err, end(server))
}

// greeted waits until so many peers have had a session, or ctx ends.
func greeted(ctx context.Context, server *bgp.Server, want int) (int, error) {
	met := map[netip.Addr]struct{}{}
	for {
		all, err := server.Status()
		if err != nil {
			return len(met), err
		}
		for _, s := range all {
			if s.Established() {
				met[s.Peer] = struct{}{}
			}
		}
		if len(met) == want {
			return want, nil
		}
		select {
		case <-ctx.Done():
			return len(met), nil
		case <-server.Changed():
		case <-time.After(time.Second):
		}
	}
}

// end ends every session with a notification.
func end(server *bgp.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), speakerTimeout)
	defer cancel()
	if err := errors.Join(server.Apply(ctx, peering.Speaker{}), server.Close(ctx)); err != nil {
		return fmt.Errorf("end BGP: %w", err)
	}
	return nil
}
