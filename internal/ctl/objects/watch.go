package objects

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Events are what can happen to an object.
const (
	Added    = "ADDED"
	Modified = "MODIFIED"
	Deleted  = "DELETED"
)

// Change is what happened to an object.
type Change struct {
	Event  string
	Object Stored // of a deleted one: as it was last
	Err    error  // it was written and cannot be read; the rest is zero
}

// Follow calls each for every object of a kind and then for every change, in order, until ctx ends, each fails, or etcd is away; that is
// its error. keys are those that count; nil: all of the namespace ("": of all namespaces). Where etcd has forgotten what happened, the
// objects are listed anew, and what is different from before is told.
func (c *Client) Follow(ctx context.Context, k api.Kind, namespace string, keys map[string]bool, each func(Change) error) error {
	f := follower{keys: keys, last: map[string]Stored{}, each: each}
	for {
		rev, err := f.list(ctx, c, k, namespace)
		if err == nil {
			err = f.watch(ctx, c, k, namespace, rev)
		}
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
}

// follower remembers what it has told.
type follower struct {
	keys map[string]bool // nil: all
	last map[string]Stored
	each func(Change) error
}

func (f *follower) wants(key string) bool { return f.keys == nil || f.keys[key] }

// list tells what is different from what was told, and returns the revision at which it was so.
func (f *follower) list(ctx context.Context, c *Client, k api.Kind, namespace string) (rev int64, err error) {
	all, err := c.List(ctx, k, namespace)
	if err != nil && all.Rev == 0 {
		return 0, err
	}
	if err != nil {
		if err := f.each(Change{Err: err}); err != nil {
			return 0, err
		}
	}
	there := map[string]bool{}
	for _, s := range all.Items {
		key := api.KeyOf(s.Object)
		there[key] = true
		if old, known := f.last[key]; known && old.Rev == s.Rev {
			continue
		}
		if err := f.put(key, s); err != nil {
			return 0, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(f.last)) {
		if there[key] {
			continue
		}
		if err := f.remove(key); err != nil {
			return 0, err
		}
	}
	return all.Rev, nil
}

func (f *follower) watch(ctx context.Context, c *Client, k api.Kind, namespace string, after int64) error {
	from := k.Prefix()
	if k.Namespaced && namespace != "" {
		from = k.Key(namespace, "")
	}
	w, err := c.Store.Watch(ctx, from, strings.TrimSuffix(from, "/")+"0", after) // 0 follows / in ASCII
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		batch, err := w.Next()
		if err != nil {
			return err
		}
		for _, kv := range batch.Changes {
			if err := f.changed(k, kv); err != nil {
				return err
			}
		}
	}
}

func (f *follower) changed(k api.Kind, kv store.KV) error {
	if kv.Value == nil {
		return f.remove(kv.Key)
	}
	s, err := Decode(k, kv)
	if err != nil && f.wants(kv.Key) {
		return f.each(Change{Err: err})
	}
	if err != nil {
		return nil
	}
	return f.put(kv.Key, s)
}

func (f *follower) put(key string, s Stored) error {
	if !f.wants(key) {
		return nil
	}
	event := Added
	if _, known := f.last[key]; known {
		event = Modified
	}
	f.last[key] = s
	return f.each(Change{Event: event, Object: s})
}

func (f *follower) remove(key string) error {
	old, known := f.last[key]
	if !known {
		return nil
	}
	delete(f.last, key)
	return f.each(Change{Event: Deleted, Object: old})
}
