package objects

import (
	"context"
	"errors"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// What a transaction of several objects holds at most. etcd takes 128 keys and 1.5 MB by default; fewer keys keep others' requests short.
const (
	batchKeys  = 100
	batchBytes = 512 << 10
)

// Verb is what is done to each of many objects.
type Verb string

// The verbs, each as the method of its name.
const (
	VerbCreate Verb = "create"
	VerbApply  Verb = "apply"
	VerbUpdate Verb = "replace"
)

// Write does a verb to objects in their order, and tells done of each what the verb's own method would have returned, also in their
// order. Where done returns false, no object behind that one is touched that was not committed with it.
//
// Objects share transactions. One that refers to another, or stands for the same key, waits until that is committed; a pool, which is
// held against all others, is written alone. Where a shared transaction is refused, which changes nothing, its objects are written one by
// one; only if its outcome is unknown, or etcd away or full, that is the outcome of each.
func (c *Client) Write(ctx context.Context, verb Verb, all []api.Object, done func(i int, err error) bool) {
	b := &batch{c: c, verb: verb, all: all, done: done}
	for from := 0; from < len(all); from += batchKeys {
		if !b.stretch(ctx, from, min(from+batchKeys, len(all))) {
			return
		}
	}
}

// batch is the objects that await the next commit.
type batch struct {
	c     *Client
	verb  Verb
	all   []api.Object
	done  func(i int, err error) bool
	known map[string]store.KV // what is stored of the objects at hand, as far as it was read and not used yet

	first  int // of the objects that wait, which are neighbours
	writes []write
	keys   map[string]bool
	size   int
}

// stretch does the verb to as many objects as one request may name. As all methods here, it returns false if the caller wants no more.
func (b *batch) stretch(ctx context.Context, from, to int) bool {
	if err := b.foresee(ctx, b.all[from:to]); err != nil {
		for i := from; i < to; i++ {
			if !b.done(i, err) {
				return false
			}
		}
		return true
	}
	for i := from; i < to; i++ {
		if !b.take(ctx, i) {
			return false
		}
	}
	return b.flush(ctx)
}

// foresee reads what is stored of objects that may be there.
func (b *batch) foresee(ctx context.Context, some []api.Object) error {
	if b.verb == VerbCreate {
		return nil
	}
	ranges := make([]store.Range, len(some))
	for i, o := range some {
		ranges[i].Key = api.KeyOf(o)
	}
	got, _, err := b.c.Store.Read(ctx, ranges...)
	if err != nil {
		return err
	}
	b.known = make(map[string]store.KV, len(some))
	for _, kvs := range got {
		for _, kv := range kvs {
			b.known[kv.Key] = kv
		}
	}
	return nil
}

// take adds an object to those that wait, or does the verb to it if it cannot wait.
func (b *batch) take(ctx context.Context, i int) bool {
	o := b.all[i]
	key := api.KeyOf(o)
	if b.dependsOnWaiting(o, key) && !b.flush(ctx) {
		return false
	}
	_, pool := o.(*api.IPPool)
	current := b.known[key]
	delete(b.known, key) // the next object of that key finds what this one makes
	if pool || b.verb == VerbUpdate && current.Rev == 0 {
		return b.flush(ctx) && b.done(i, b.alone(ctx, o))
	}
	w, err := b.prepare(ctx, o, current)
	if err != nil {
		return b.flush(ctx) && b.done(i, err)
	}
	if b.size+len(w.raw) > batchBytes && !b.flush(ctx) {
		return false
	}
	if len(b.writes) == 0 {
		b.first, b.keys = i, map[string]bool{}
	}
	b.writes, b.size, b.keys[key] = append(b.writes, w), b.size+len(w.raw), true
	return true
}

func (b *batch) dependsOnWaiting(o api.Object, key string) bool {
	if b.keys[key] {
		return true
	}
	for _, r := range api.References(o) {
		if b.keys[r.Kind.Key("", r.Name)] {
			return true
		}
	}
	return false
}

func (b *batch) prepare(ctx context.Context, o api.Object, current store.KV) (write, error) {
	if current.Rev == 0 {
		return b.c.creation(ctx, string(b.verb), o)
	}
	return b.c.replacement(ctx, string(b.verb), o, current)
}

// flush commits what waits.
func (b *batch) flush(ctx context.Context) bool {
	first, writes := b.first, b.writes
	b.writes, b.keys, b.size = nil, nil, 0
	if len(writes) == 0 {
		return true
	}
	err := b.c.commit(ctx, writes...)
	shared := err == nil || ctx.Err() != nil || errors.Is(err, store.ErrUnknown) || errors.Is(err, store.ErrUnavailable) ||
		errors.Is(err, store.ErrFull)
	for i := first; i < first+len(writes); i++ {
		if !shared {
			err = b.alone(ctx, b.all[i])
		}
		if !b.done(i, err) {
			return false
		}
	}
	return true
}

// alone does the verb to one object.
func (b *batch) alone(ctx context.Context, o api.Object) error {
	switch b.verb {
	case VerbCreate:
		return b.c.Create(ctx, o)
	case VerbApply:
		return b.c.Apply(ctx, o)
	}
	return b.c.Update(ctx, o)
}
