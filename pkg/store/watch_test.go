package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/store"
)

func watch(t *testing.T, c *store.Client, after int64) *store.Watcher {
	t.Helper()
	w, err := c.Watch(t.Context(), "/a/", "/a0", after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// drain reads batches up to a revision and checks that none splits a revision.
func drain(t *testing.T, w *store.Watcher, to int64) (changes []store.KV) {
	t.Helper()
	var last int64
	for last < to {
		b, err := w.Next()
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Changes) > 0 && b.Changes[0].Rev <= last {
			t.Fatalf("a batch begins with revision %d, though the one before went to %d", b.Changes[0].Rev, last)
		}
		changes, last = append(changes, b.Changes...), b.Rev
	}
	return changes
}

// history commits n transactions of several keys each and returns what a watch has to tell of them.
func history(t *testing.T, c *store.Client, n int) (want []store.KV) {
	t.Helper()
	prior := map[string]int64{}
	for i := range n {
		done := commit(t, c, func(x *store.Txn) {
			for k := range 5 {
				key := fmt.Sprintf("/a/%d", k)
				if (i+k)%3 == 0 && prior[key] != 0 {
					x.Delete(key, prior[key])
					prior[key] = 0
					continue
				}
				x.PutRaw(key, []byte{byte(i)}, prior[key])
				prior[key] = 1
			}
			x.PutRaw(fmt.Sprintf("/b/%d", i), nil, 0) // outside the range
		})
		for _, kv := range done[:5] {
			if prior[kv.Key] != 0 {
				prior[kv.Key] = kv.Rev
			}
		}
		want = append(want, done[:5]...)
	}
	return want
}

func byRevThenKey(kvs []store.KV) []store.KV {
	slices.SortFunc(kvs, func(a, b store.KV) int {
		if a.Rev != b.Rev {
			return int(a.Rev - b.Rev)
		}
		return slices.Compare([]byte(a.Key), []byte(b.Key))
	})
	return kvs
}

func TestWatchTellsWholeRevisionsLiveAndAfterwards(t *testing.T) {
	c := etcdtest.New(t).Store()
	start := commit(t, c, func(x *store.Txn) { x.PutRaw("/a/first", nil, 0) })[0].Rev
	live := watch(t, c, start)
	// More revisions than etcd sends to a late watcher at once (1000).
	want := history(t, c, 1100)
	end := want[len(want)-1].Rev
	for name, w := range map[string]*store.Watcher{"live": live, "late": watch(t, c, start)} {
		if diff := cmp.Diff(byRevThenKey(want), byRevThenKey(drain(t, w, end))); diff != "" {
			t.Errorf("%s watch (-want +got):\n%s", name, diff)
		}
	}
}

func TestWatchAdvancesWhenNothingHappensInItsRange(t *testing.T) {
	c := client(t, etcdtest.New(t).Endpoint(), short)
	w := watch(t, c, 1)
	rev := commit(t, c, func(x *store.Txn) { x.PutRaw("/elsewhere", nil, 0) })[0].Rev
	if got := drain(t, w, rev); len(got) != 0 {
		t.Errorf("changes = %v, want none", got)
	}
	rev = commit(t, c, func(x *store.Txn) { x.PutRaw("/else", nil, 0) })[0].Rev
	w.RequestProgress()
	if got := drain(t, w, rev); len(got) != 0 {
		t.Errorf("changes = %v, want none", got)
	}
}

func TestWatchOfACompactedRevisionSaysSo(t *testing.T) {
	s := etcdtest.New(t)
	c := s.Store()
	want := history(t, c, 10)
	end := want[len(want)-1].Rev
	if _, err := s.Etcd().Compact(t.Context(), end, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := watch(t, c, 1).Next(); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("error = %v, want ErrCompacted", err)
	}
	if b, err := nextAfterProgress(watch(t, c, end)); err != nil || b.Rev != end {
		t.Errorf("a watch from the compaction on: %+v, %v; want revision %d", b, err, end)
	}
}

func nextAfterProgress(w *store.Watcher) (store.Batch, error) {
	w.RequestProgress()
	return w.Next()
}

func TestWatchEndsWhenEtcdStops(t *testing.T) {
	s := etcdtest.New(t)
	w := watch(t, s.Store(), 1)
	s.Stop()
	if _, err := w.Next(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("error = %v, want ErrUnavailable", err)
	}
}

func TestWatchEndsWhenEtcdFallsSilent(t *testing.T) {
	p := newProxy(t, etcdtest.New(t).Endpoint())
	w := watch(t, client(t, "http://"+p.addr, short), 1)
	p.deaf.Store(true)
	if _, err := w.Next(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("error = %v, want ErrUnavailable", err)
	}
}

func TestWatchEndsWithItsContextOrClose(t *testing.T) {
	c := etcdtest.New(t).Store()
	ctx, cancel := context.WithCancel(t.Context())
	w, err := c.Watch(ctx, "/a/", "/a0", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cancel()
	if _, err := w.Next(); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want that of the context", err)
	}
	w = watch(t, c, 1)
	w.Close()
	w.Close()
	if b, err := w.Next(); err == nil || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("after Close: %v, %v; want an error of its own", b, err)
	}
}
