package sim

import (
	"context"
	"fmt"
	"sync"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/store"
)

// history is etcd's, as snapshots that all nodes share.
type history struct {
	first int64
	snaps []feed.Snapshot // of first, and of each revision after it
}

func (h *history) head() int64 { return h.first + int64(len(h.snaps)) - 1 }

// at is the snapshot of a revision. One that is forgotten is the oldest that is known, as for a node that has to list again.
func (h *history) at(rev int64) feed.Snapshot { return h.snaps[max(rev, h.first)-h.first] }

func (h *history) add(rev int64, changes []store.KV) {
	h.snaps = append(h.snaps, h.snaps[len(h.snaps)-1].Watched(rev, changes))
}

// forget drops what lies before a revision.
func (h *history) forget(before int64) {
	if n := min(before, h.head()) - h.first; n > 0 {
		h.snaps = append([]feed.Snapshot(nil), h.snaps[n:]...)
		h.first += n
	}
}

// follower is what a node knows of etcd.
type follower interface {
	Snapshot() (feed.Snapshot, bool)
	Commit([]store.KV)
	WaitFor(ctx context.Context, rev int64) error
}

// view is a follower that is told of revisions one by one, or of several at once, when the world says so. Nobody but the world delivers.
type view struct {
	history *history

	mu   sync.Mutex
	rev  int64      // 0: nothing was listed yet
	own  []store.KV // commits that were not told yet
	snap feed.Snapshot
	news chan struct{} // closed and replaced whenever something was told
}

func newView(h *history) *view { return &view{history: h, news: make(chan struct{})} }

// deliver tells of everything up to a revision.
func (v *view) deliver(rev int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rev = max(v.rev, rev, v.history.first)
	v.snap = v.history.at(v.rev)
	var ahead []store.KV
	for _, kv := range v.own {
		if kv.Rev > v.rev {
			ahead = append(ahead, kv)
		}
	}
	if v.own = ahead; len(ahead) > 0 {
		v.snap = v.snap.Committed(ahead)
	}
	close(v.news)
	v.news = make(chan struct{})
}

// told is the revision that was told of; 0: none.
func (v *view) told() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rev
}

// Snapshot implements follower.
func (v *view) Snapshot() (feed.Snapshot, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.snap, v.rev > 0
}

// Commit implements follower.
func (v *view) Commit(changes []store.KV) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.rev == 0 || len(changes) == 0 || changes[0].Rev <= v.rev {
		return
	}
	v.own = append(v.own, changes...)
	v.snap = v.snap.Committed(changes)
}

// WaitFor implements follower.
func (v *view) WaitFor(ctx context.Context, rev int64) error {
	for {
		v.mu.Lock()
		done, news := v.rev >= rev, v.news
		v.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("%w: wait for revision %d: %w", store.ErrUnavailable, rev, ctx.Err())
		}
	}
}

// listed is the snapshot of a datastore that holds just what was committed.
func listed(changes []store.KV) feed.Snapshot { return feed.Listed(changes[0].Rev, changes) }
