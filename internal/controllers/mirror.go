package controllers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// id names an object of Kubernetes.
type id struct{ namespace, name string }

// mirror keeps the resources in etcd that objects of one kind of Kubernetes' become.
type mirror[T api.Value, P object[T]] struct {
	*tools
	kinds  feed.Kinds
	parse  func(key string) (id, bool)                    // the object that a key is for; false: the key is not ours
	key    func(id) string                                // where it stands
	wanted func() ([]id, error)                           // all objects, as the cache has them
	want   func(id) (P, error)                            // what one becomes; nil: there is none
	exists func(ctx context.Context, of id) (bool, error) // as the API server itself says
	merge  func(have, want P) P                           // have, with what is ours in it as in want; neither is modified
}

// all implements subject.
func (m *mirror[T, P]) all(snap feed.Snapshot) (keys []string) {
	ids, err := m.wanted()
	if err != nil {
		m.log.Error("a cache cannot be listed", "error", err) // only an index that does not exist does that
	}
	for _, i := range ids {
		keys = append(keys, m.key(i))
	}
	for key := range snap.Objects(m.kinds) {
		keys = append(keys, m.concerned(snap, key)...)
	}
	for _, bad := range snap.Bad() {
		keys = append(keys, m.concerned(snap, bad.Key)...)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// concerned implements subject.
func (m *mirror[T, P]) concerned(_ feed.Snapshot, key string) []string {
	if _, ours := m.parse(key); ours {
		return []string{key}
	}
	return nil
}

// put implements subject.
func (m *mirror[T, P]) put(ctx context.Context, key string) (time.Duration, error) {
	of, ours := m.parse(key)
	snap, _ := m.feed.Snapshot()
	if !ours || locked(snap) {
		return 0, nil
	}
	if m.key(of) != key {
		return 0, m.retire(ctx, snap, key, of)
	}
	want, err := m.want(of)
	if err != nil {
		return 0, err
	}
	have, _ := snap.Object(key).(P)
	_, bad := snap.BadAt(key)
	switch {
	case want == nil && have == nil && !bad:
		return 0, nil
	case want == nil:
		return 0, m.remove(ctx, snap, key, of)
	case have != nil && same(have, m.merge(have, want)):
		return 0, nil
	}
	return 0, write(ctx, m.tools, key, want, have == nil && !bad, m.merge)
}

// retire deletes what releases of Calico before 3.30 wrote under another name, once its successor is there.
func (m *mirror[T, P]) retire(ctx context.Context, snap feed.Snapshot, key string, of id) error {
	want, err := m.want(of)
	if err != nil {
		return err
	}
	if want == nil {
		return m.remove(ctx, snap, key, of)
	}
	if snap.Object(m.key(of)) == nil {
		return errStale // it is being written
	}
	return m.drop(ctx, key)
}

// remove deletes a key whose object is gone, if the API server says so too. The revision is read before that: what is written afterwards, for an object
// that came back, stays.
func (m *mirror[T, P]) remove(ctx context.Context, snap feed.Snapshot, key string, of id) error {
	if !settled(snap) {
		return nil // looked at again when that changes
	}
	got, _, err := m.store.Read(ctx, store.Range{Key: key})
	if err != nil || len(got[0]) == 0 {
		return err
	}
	there, err := m.exists(ctx, of)
	if err != nil {
		return err
	}
	if there {
		return errStale
	}
	return m.dropAt(ctx, got[0][0])
}

func (m *mirror[T, P]) drop(ctx context.Context, key string) error {
	got, _, err := m.store.Read(ctx, store.Range{Key: key})
	if err != nil || len(got[0]) == 0 {
		return err
	}
	return m.dropAt(ctx, got[0][0])
}

// dropAt deletes a key that still is as it was read.
func (t *tools) dropAt(ctx context.Context, kv store.KV) error {
	if err := t.limit.Wait(ctx); err != nil {
		return err
	}
	var txn store.Txn
	txn.Delete(kv.Key, kv.Rev)
	changed, err := t.store.Commit(ctx, &txn)
	if err != nil {
		return fmt.Errorf("delete %s: %w", kv.Key, err)
	}
	t.feed.Commit(changed)
	t.meters.wrote("delete")
	return nil
}

// same reports whether two objects are stored as the same text.
func same(a, b api.Object) bool {
	x, errX := api.EncodeObject(a, nil)
	y, errY := api.EncodeObject(b, nil)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// write creates a key, or merges into what it holds. What cannot be read there is replaced: the key is ours.
func write[T api.Value, P object[T]](ctx context.Context, t *tools, key string, want P, create bool, merge func(have, want P) P) error {
	if err := t.limit.Wait(ctx); err != nil {
		return err
	}
	fresh := *want
	api.Created(P(&fresh), t.uuid(), t.now())
	if create {
		e, err := store.Create(ctx, t.store, key, &fresh)
		if err == nil {
			t.wrote(e.Key, e.Raw(), e.Rev)
			return nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	e, err := store.Mutate(ctx, t.store, key, func(v *T, exists bool) (bool, error) {
		if !exists {
			*v = fresh
			return true, nil
		}
		next := merge(v, want)
		if same(P(v), next) {
			return false, nil
		}
		*v = *next
		return true, nil
	})
	var bad *store.UnreadableError
	if errors.As(err, &bad) {
		return replace(ctx, t, key, &fresh)
	}
	if err != nil {
		return err
	}
	t.wrote(e.Key, e.Raw(), e.Rev)
	return nil
}

func (t *tools) wrote(key string, raw []byte, rev int64) {
	t.meters.wrote("put")
	if raw != nil {
		t.feed.Commit([]store.KV{{Key: key, Value: raw, Rev: rev}})
	}
}

// replace writes over a value that nobody can read.
func replace[T api.Value](ctx context.Context, t *tools, key string, v *T) error {
	got, _, err := t.store.Read(ctx, store.Range{Key: key})
	if err != nil {
		return err
	}
	var e store.Entry[T]
	e.Key = key
	if len(got[0]) > 0 {
		e.Rev = got[0][0].Rev
	}
	var txn store.Txn
	store.Put(&txn, e, v)
	changed, err := t.store.Commit(ctx, &txn)
	if err != nil {
		return fmt.Errorf("replace %s: %w", key, err)
	}
	t.feed.Commit(changed)
	t.meters.wrote("put")
	t.log.Warn("replaced a value that could not be read", "key", key)
	return nil
}

// under makes a function that reads the rest of a key below a prefix.
func under(key, prefix string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(key, prefix)
	return rest, ok && rest != ""
}
