package feed

import (
	"fmt"
	"iter"
	"math/bits"
	"strings"

	"github.com/tidwall/btree"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// table holds the values of one kind by etcd key. A table that a snapshot holds is never changed: copy it first.
type table interface {
	put(store.KV) error // an error leaves the table without the key
	drop(key string)
	rev(key string) int64 // 0 if the key is not there
	copy() table
	keys() iter.Seq[string]
	object(key string) api.Object // nil if the key is not there, or its value has no envelope
}

// tables is one table of each kind.
type tables [kinds]table

func (t *tables) at(k Kinds) *table { return &t[bits.TrailingZeros32(uint32(k))] }

// of is the table of one kind.
func (t *tables) of(k Kinds) table { return *t.at(k) }

// entries holds pointers, since every change copies a part of the tree.
type entries[T api.Value] = btree.Map[string, *store.Entry[T]]

// values is the table of most kinds.
type values[T api.Value] struct {
	byKey entries[T]
	check func(key string, v *T) error // whether the value belongs under the key
}

// decode reads a value, which may share with another one.
func (t *values[T]) decode(kv store.KV, like store.Entry[T]) (store.Entry[T], error) {
	e, err := store.DecodeAfter(kv, like)
	if err != nil {
		return e, err
	}
	if err := t.check(kv.Key, e.Value); err != nil {
		return e, fmt.Errorf("read %s: %w", kv.Key, err)
	}
	return e, nil
}

func (t *values[T]) put(kv store.KV) error {
	e, err := t.decode(kv, t.get(kv.Key))
	if err != nil {
		t.drop(kv.Key)
		return err
	}
	t.byKey.Set(kv.Key, &e)
	return nil
}

// drop leaves the map alone where the key is not in it: to delete is to copy what snapshots share.
func (t *values[T]) drop(key string) {
	if t.get(key).Exists() {
		t.byKey.Delete(key)
	}
}

func (t *values[T]) rev(key string) int64 { return t.get(key).Rev }

func (t *values[T]) copy() table { return &values[T]{byKey: *t.byKey.Copy(), check: t.check} }

func (t *values[T]) keys() iter.Seq[string] {
	return func(yield func(string) bool) {
		t.byKey.Scan(func(key string, _ *store.Entry[T]) bool { return yield(key) })
	}
}

func (t *values[T]) object(key string) api.Object {
	e, ok := t.byKey.Get(key)
	if !ok {
		return nil
	}
	o, _ := any(e.Value).(api.Object)
	return o
}

// get is an entry that does not exist if the key is not there.
func (t *values[T]) get(key string) store.Entry[T] {
	e, ok := t.byKey.Get(key)
	if !ok {
		return store.Entry[T]{Key: key}
	}
	return *e
}

func (t *values[T]) below(prefix string) iter.Seq2[string, store.Entry[T]] {
	return below(&t.byKey, prefix)
}

// below yields what stands under keys with a prefix, in key order.
func below[T api.Value](m *entries[T], prefix string) iter.Seq2[string, store.Entry[T]] {
	return func(yield func(string, store.Entry[T]) bool) {
		m.Ascend(prefix, func(key string, e *store.Entry[T]) bool { return strings.HasPrefix(key, prefix) && yield(key, *e) })
	}
}

// endpoints is the table of WorkloadEndpoints, with an index of the local node's, or of all nodes'.
type endpoints struct {
	values[api.WorkloadEndpoint]
	local  string                            // node; "": all nodes are in the index
	byNode *btree.BTreeG[endpoint]           // by node, and etcd key
	last   store.Entry[api.WorkloadEndpoint] // that was read: the next one is often of the same kind
}

type endpoint = *store.Entry[api.WorkloadEndpoint]

func newEndpoints(local string) *endpoints {
	before := func(a, b endpoint) bool {
		if n := strings.Compare(a.Value.Spec.Node, b.Value.Spec.Node); n != 0 {
			return n < 0
		}
		return a.Key < b.Key
	}
	return &endpoints{
		values: *object(func(v *api.WorkloadEndpoint) api.Object { return v }),
		local:  local,
		byNode: btree.NewBTreeGOptions(before, btree.Options{NoLocks: true}), // what is shared is not changed
	}
}

// on yields the endpoints of a node with their etcd keys.
func (t *endpoints) on(node string) iter.Seq2[string, store.Entry[api.WorkloadEndpoint]] {
	return func(yield func(string, store.Entry[api.WorkloadEndpoint]) bool) {
		if !t.indexes(node) {
			t.byKey.Scan(func(key string, e endpoint) bool { return e.Value.Spec.Node != node || yield(key, *e) })
			return
		}
		first := &store.Entry[api.WorkloadEndpoint]{Value: &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{Node: node}}}
		t.byNode.Ascend(first, func(e endpoint) bool { return e.Value.Spec.Node == node && yield(e.Key, *e) })
	}
}

func (t *endpoints) put(kv store.KV) error {
	e, err := t.decode(kv, t.last)
	if err != nil {
		t.drop(kv.Key)
		return err
	}
	t.last = e
	was, ok := t.byKey.Set(kv.Key, &e)
	if ok && was.Value.Spec.Node != e.Value.Spec.Node && t.indexes(was.Value.Spec.Node) {
		t.byNode.Delete(was)
	}
	if t.indexes(e.Value.Spec.Node) {
		t.byNode.Set(&e)
	}
	return nil
}

func (t *endpoints) drop(key string) {
	was, ok := t.byKey.Get(key)
	if !ok {
		return
	}
	t.byKey.Delete(key)
	if t.indexes(was.Value.Spec.Node) {
		t.byNode.Delete(was)
	}
}

// indexes reports whether the node's endpoints are in the index.
func (t *endpoints) indexes(node string) bool { return t.local == "" || t.local == node }

func (t *endpoints) copy() table {
	return &endpoints{
		values: values[api.WorkloadEndpoint]{byKey: *t.byKey.Copy(), check: t.check},
		local:  t.local,
		byNode: t.byNode.Copy(),
		last:   t.last,
	}
}

// object is the table of a kind that is stored as an envelope, which must name itself as its key does.
func object[T api.Value](as func(*T) api.Object) *values[T] {
	return &values[T]{check: func(key string, v *T) error {
		if own := api.KeyOf(as(v)); own != key {
			return fmt.Errorf("its metadata belong under %s", own)
		}
		return nil
	}}
}

// policies is object for policies. Releases before v3.30 stored those of the default tier under names that begin with "default.", which api.Decode
// takes off: they stay where they are.
func policies[T api.Value](as func(*T) api.Object) *values[T] {
	plain := object(as).check
	return &values[T]{check: func(key string, v *T) error {
		o := as(v)
		if key == o.KindOf().Key(o.Meta().Namespace, api.DefaultTier+"."+o.Meta().Name) {
			return nil
		}
		return plain(key, v)
	}}
}

func checkAffinity(key string, _ *api.Affinity) error {
	_, _, err := api.ParseAffinityKey(key)
	return err
}

func noCheck[T api.Value](string, *T) error { return nil }
