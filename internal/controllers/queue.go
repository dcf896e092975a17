package controllers

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/workqueue"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	retryFirst = 50 * time.Millisecond // after a key's first failure; doubled with each that follows
	retryLast  = time.Minute
	putTimeout = time.Minute // for one key: a node with many endpoints takes some hundred transactions
)

// subject is what a queue keeps right, key by key. The keys are those of etcd.
type subject interface {
	// all lists the keys of all that there is to compare, on either side.
	all(snap feed.Snapshot) []string
	// concerned lists the keys that a change of one key in etcd concerns.
	concerned(snap feed.Snapshot, key string) []string
	// put makes one key as it should be, if it is not. It returns an error where it could not; again is when to look anew although nothing failed,
	// 0 for when something changes.
	put(ctx context.Context, key string) (again time.Duration, err error)
}

// queue hands the keys of a subject to its workers, each to one at a time, and failed ones again after a while.
type queue struct {
	name    string // of the controller
	subject subject
	workers int
	period  time.Duration // between two looks at all keys
	meters  *meters
	log     *slog.Logger

	mu     sync.Mutex
	keys   workqueue.TypedRateLimitingInterface[string] // nil: it does not run
	failed map[string]string                            // by key: why, as said
	away   bool                                         // etcd was, as said
}

func newQueue(name string, s subject, workers int, period time.Duration, m *meters, log *slog.Logger) *queue {
	return &queue{
		name: name, subject: s, workers: workers, period: period, meters: m, log: log, failed: map[string]string{},
	}
}

// look asks for keys to be looked at. It does not wait. What is asked for while the queue does not run is forgotten: it begins with all keys.
func (q *queue) look(keys ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.keys == nil {
		return
	}
	for _, k := range keys {
		q.keys.Add(k)
	}
}

// open makes the queue take keys.
func (q *queue) open() workqueue.TypedRateLimitingInterface[string] {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.keys = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryLast))
	return q.keys
}

// shut makes it take none.
func (q *queue) shut() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.keys.ShutDown()
	q.keys = nil
}

// follow asks for what a change in etcd concerns to be looked at.
func (q *queue) follow(snap feed.Snapshot, d feed.Delta) {
	if d.All || d.Kinds.Has(feed.Cluster) { // locked, unlocked
		q.look(q.subject.all(snap)...)
		return
	}
	for _, key := range d.Keys {
		q.look(q.subject.concerned(snap, key)...)
	}
}

// run works until ctx ends, and returns when no worker is at work. What snapshot yields must be complete, and so must Kubernetes' caches. One
// caller at a time.
func (q *queue) run(ctx context.Context, snapshot func() feed.Snapshot) error {
	var g errgroup.Group
	keys := q.open()
	for range q.workers {
		g.Go(func() error {
			for q.next(ctx, keys) {
			}
			return nil
		})
	}
	g.Go(func() error {
		defer q.shut()
		every := time.NewTicker(q.period)
		defer every.Stop()
		for {
			q.look(q.subject.all(snapshot())...)
			select {
			case <-ctx.Done():
				return nil
			case <-every.C:
			}
		}
	})
	return g.Wait()
}

// next takes one key through; false: the queue is shut down.
func (q *queue) next(ctx context.Context, keys workqueue.TypedRateLimitingInterface[string]) bool {
	key, down := keys.Get()
	if down {
		return false
	}
	defer keys.Done(key)
	if ctx.Err() != nil {
		return true // what is left is dropped: the next run begins with all keys
	}
	within, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	again, err := q.subject.put(within, key)
	if ctx.Err() != nil {
		return true
	}
	q.meters.looked(q.name, err)
	q.say(key, err)
	if err != nil {
		keys.AddRateLimited(key)
		return true
	}
	keys.Forget(key)
	if again > 0 {
		keys.AddAfter(key, again)
	}
	return true
}

// say logs a failure when it is new, and when it is over. That others write the same keys is none, and that etcd is away is one for all keys.
func (q *queue) say(key string, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	away := errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
	switch {
	case errors.Is(err, store.ErrConflict), errors.Is(err, errStale):
	case away && !q.away:
		q.away = true
		q.log.Warn("cannot write to etcd; it is tried again", "controller", q.name, "error", err)
	case away:
	case err != nil && q.failed[key] != err.Error():
		q.failed[key] = err.Error()
		q.log.Error("an object is not in etcd as it should be; it is tried again", "controller", q.name, "key", key, "error", err)
	case err == nil:
		if _, was := q.failed[key]; was {
			delete(q.failed, key)
			q.log.Info("an object is in etcd as it should be again", "controller", q.name, "key", key)
		}
		if q.away {
			q.away = false
			q.log.Info("etcd takes writes again", "controller", q.name)
		}
	}
}

// errStale says that a cache is behind the API server: it is looked at again, and by then the cache has caught up.
var errStale = errors.New("the cache of the API server's objects is behind")
