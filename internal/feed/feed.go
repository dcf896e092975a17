// Package feed follows etcd and yields snapshots on persistent maps, with what changed between them.
//
// The goals, and how each is met:
//
//  1. A snapshot is whole. The first one is a list at one revision, and each later one has whole revisions added to it: one watcher on
//     one key range, from which etcd never splits a revision. (The identity records, on which nothing else depends, have another.)
//  2. Readers never wait and never see less than the truth. The last snapshot stays while etcd is away; after a compaction
//     a new list is held against it, so that only what is really different changes.
//  3. Our own commits are visible at once. Commit adds them ahead of the watch, and each key's revision decides what is news, so that
//     the result is the same in whatever order the two arrive.
//  4. The snapshot depends only on what etcd holds, never on how it came there.
//  5. One bad value stops nothing: it is listed by Snapshot.Bad and the rest goes on.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	pageSize   = 256                    // keys a request: a full /26 block is 18 KB
	minBackOff = 50 * time.Millisecond  // after the first failure
	maxBackOff = 2 * time.Second        // after many
	minAsk     = 20 * time.Millisecond  // between two questions how far etcd is, at first
	maxAsk     = 500 * time.Millisecond // and at last
)

// Feed follows one etcd. Its methods may be called concurrently, Run once.
type Feed struct {
	client  *store.Client
	log     *slog.Logger
	draw    func(below time.Duration) time.Duration // a part of a pause
	route   *router
	page    int
	changed chan struct{}

	writing sync.Mutex // held from reading state until replacing it; taken before mu

	mu      sync.Mutex // guards what follows, for moments only
	state   *state
	heard   int64          // what the watch of the identity records has seen
	synced  bool           // a complete list was read
	stale   bool           // the watch cannot go on from where it was: list
	watcher *store.Watcher // nil while there is none
	since   time.Time      // when the watch was lost; zero while it is up
	told    []error        // the kinds of loss that are in the log
	advance chan struct{}  // closed and replaced whenever the state changes
	opening bool           // a list has succeeded, and the watch is about to be opened
}

// New prepares a feed; Run makes it follow.
func New(client *store.Client, log *slog.Logger) *Feed {
	return &Feed{
		client: client, log: log, draw: rand.N[time.Duration], route: prefixes(), page: pageSize, changed: make(chan struct{}, 1),
		state: newState(""), stale: true, since: time.Now(), advance: make(chan struct{}),
	}
}

// Local says of which node the endpoints are asked for, which then costs no more than these; otherwise it is as quick for every node, which makes each
// endpoint cost more. It is called before Run.
func (f *Feed) Local(node string) { f.state = newState(node) }

// DrawPauses has pauses between attempts drawn by draw, a time from 0 to below its argument: a simulation can repeat only what it has drawn itself.
// It is called before Run.
func (f *Feed) DrawPauses(draw func(below time.Duration) time.Duration) { f.draw = draw }

// Run follows etcd until ctx ends, whose error it returns. It outlives restarts and compactions of etcd, and is back at most about
// two seconds after etcd is.
func (f *Feed) Run(ctx context.Context) error {
	var again backOff
	for ctx.Err() == nil {
		began := time.Now()
		err := f.follow(ctx)
		if time.Since(began) > maxBackOff {
			again = 0
		}
		f.lost(ctx, err)
		again.wait(ctx, f.draw)
	}
	return fmt.Errorf("follow etcd: %w", ctx.Err())
}

// follow lists if need be and then watches until the watch ends.
func (f *Feed) follow(ctx context.Context) error {
	rev, err := f.catchUp(ctx)
	if err != nil {
		return err
	}
	w, err := f.client.Watch(ctx, rangeFrom, rangeEnd, rev)
	if err != nil {
		return err
	}
	defer w.Close()
	side, err := f.overhear(ctx, w)
	if err != nil {
		return err
	}
	defer side.stop()
	f.watching(w)
	for first := true; ; first = false {
		b, err := w.Lent()
		if err != nil {
			// A watch that never spoke may have had more history to search than it had time for; a list needs none.
			f.ended(errors.Is(err, store.ErrCompacted) || first && errors.Is(err, store.ErrUnavailable))
			return side.reason(err)
		}
		f.publish(func(w *writer) { w.watched(b.Rev, b.Changes) })
	}
}

// catchUp reads everything, unless the watch can go on from the revision that was reached, and returns the revision to watch from.
func (f *Feed) catchUp(ctx context.Context) (int64, error) {
	f.mu.Lock()
	stale, rev := f.stale, f.state.rev
	f.mu.Unlock()
	if !stale {
		now, err := f.client.Revision(ctx)
		if err != nil || now >= rev {
			return rev, err
		}
	}
	kvs, at, err := f.client.ReadAll(ctx, f.page, f.route.ranges()...)
	if err != nil {
		return 0, err
	}
	f.listed()
	f.take(at, kvs)
	return at, nil
}

// listed notes, before anybody sees a list, that etcd answers.
func (f *Feed) listed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opening = true
}

// take makes a list what is known.
func (f *Feed) take(at int64, kvs []store.KV) {
	f.writing.Lock()
	defer f.writing.Unlock()
	base := f.current()
	seq := base.seq
	if at < base.rev {
		f.log.Warn("etcd went back to an older revision, as after a restored backup; its contents replace what was known",
			"revision", at, "had", base.rev)
		fresh := newState(base.endpoints().local)
		fresh.seq = seq + 1 // nothing in the log leads here, so that readers look at everything
		base = fresh
	}
	w := edit(base, f.route)
	w.listed(at, kvs)
	f.mu.Lock()
	first := !f.synced
	f.synced, f.stale, f.heard = true, false, at
	f.mu.Unlock()
	f.install(w.next, first || w.changed() || base.seq != seq)
}

// publish makes an edited state the current one.
func (f *Feed) publish(change func(*writer)) {
	f.writing.Lock()
	defer f.writing.Unlock()
	w := edit(f.current(), f.route)
	change(w)
	f.install(w.next, w.changed())
}

func (f *Feed) install(next *state, news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = next
	close(f.advance)
	f.advance = make(chan struct{})
	if !news || !f.synced {
		return
	}
	select {
	case f.changed <- struct{}{}:
	default: // whoever has not yet read the last one sees this state too
	}
}

func (f *Feed) current() *state {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// watching notes that etcd is followed.
func (f *Feed) watching(w *store.Watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.told) > 0 {
		f.log.Info("etcd is back", "away", time.Since(f.since).Round(time.Millisecond))
	}
	f.watcher, f.since, f.told = w, time.Time{}, nil
}

// ended notes that the watch broke off, and whether it can not go on from where it was.
func (f *Feed) ended(stale bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale = f.stale || stale
}

// kindOfLoss tells losses apart that take different hands to mend.
func kindOfLoss(err error) error {
	for _, kind := range []error{store.ErrHandshake, store.ErrUnauthorized} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return store.ErrUnavailable
}

// lost notes that etcd is not followed, and says so once for each kind of reason.
func (f *Feed) lost(ctx context.Context, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watcher, f.opening = nil, false
	if f.since.IsZero() {
		f.since = time.Now()
	}
	switch {
	case ctx.Err() != nil || slices.Contains(f.told, kindOfLoss(err)):
	case errors.Is(err, store.ErrCompacted):
		f.log.Info("etcd forgot the history that was missed; everything is read again", "error", err)
	default:
		f.told = append(f.told, kindOfLoss(err))
		f.log.Warn("etcd cannot be followed; what was known stays, and it is tried again", "error", err)
	}
}

// Snapshot is what is known now, and whether a complete list was read yet. Before that the snapshot is of no use. It does not block.
func (f *Feed) Snapshot() (Snapshot, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Snapshot{Rev: f.state.rev, s: f.state}, f.synced
}

// Changed receives a value after the snapshot's contents changed, one for any number of changes. It is for one reader.
func (f *Feed) Changed() <-chan struct{} { return f.changed }

// Connected reports whether etcd answers: it is being followed now, or has just been listed and is about to be.
func (f *Feed) Connected() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answers()
}

// answers is Connected for who holds the lock.
func (f *Feed) answers() bool { return f.since.IsZero() || f.synced && f.opening }

// Stale reports whether the snapshot may be behind since etcd is not followed, and since when that is so: at first, since New. A connection
// that went silent is noticed within a quarter of a minute.
func (f *Feed) Stale() (stale bool, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.since.IsZero(), f.since
}

// Commit makes our own commit visible at once: changed is what store.Client.Commit returned, perhaps nothing; or what a refused one has shown
// (store.ConflictError). Keys that are not followed are ignored, and so is what is not newer than what is known.
func (f *Feed) Commit(changed []store.KV) {
	if len(changed) == 0 {
		return
	}
	f.publish(func(w *writer) { w.committed(changed) })
}

// WaitFor returns when the snapshot is complete and its Rev is at least rev. It asks etcd how far it is, so that it does not hang when nothing
// changes. When ctx ends first, the error says so, and is ErrUnavailable too if etcd cannot be followed.
func (f *Feed) WaitFor(ctx context.Context, rev int64) error {
	for ask := minAsk; ; ask = min(2*ask, maxAsk) {
		f.mu.Lock()
		done, have, advance, w, answers := f.synced && f.state.rev >= rev, f.state.rev, f.advance, f.watcher, f.answers()
		f.mu.Unlock()
		if done {
			return nil
		}
		if w != nil {
			w.RequestProgress()
		}
		select {
		case <-advance:
		case <-time.After(ask):
		case <-ctx.Done():
			err := fmt.Errorf("wait for etcd's revision %d, having seen %d: %w", rev, have, ctx.Err())
			if !answers {
				return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
			}
			return err
		}
	}
}

// backOff is how long the last wait was at most.
type backOff time.Duration

// wait waits longer each time, and never for the same time as the other nodes.
func (b *backOff) wait(ctx context.Context, draw func(time.Duration) time.Duration) {
	*b = min(max(2**b, backOff(minBackOff)), backOff(maxBackOff))
	t := time.NewTimer(time.Duration(*b)/2 + draw(time.Duration(*b)/2))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
