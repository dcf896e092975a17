package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// table is a Table with what is known of it.
type table[K, V comparable] struct {
	name   Name
	t      Table[K, V] // nil: the table is left out
	pick   func(kernel.State) map[K]V
	words  words[K, V]
	points points
	noted  func([]kernel.Change[K, V]) // nil, or who is to know of changes that were made
	group  func(K) any                 // nil, or what a failed addition shares with removals that must wait for it
	missed func([]K)                   // nil, or who is to know which additions have failed; of none too
	waits  func(K) bool                // nil, or which additions wait for those of another table
	held   func(kernel.State) map[K]V  // nil, or where what is not wanted stays all the same, and what is put there if there is nothing

	confirmed map[K]V
	believed  map[K]V // of a table that a list does not show: what was confirmed until it is read anew
	equal     map[K]V // what was wanted and found to be confirmed, while that has not changed since; nil: nothing
	listed    bool    // a list has succeeded at least once
	dirty     bool    // confirmed may be wrong
	removals  []kernel.Change[K, V]
	suspects  suspects[K, V]
}

// points are where a table's apply can be cut off: after additions, and after removals, of which a table may have none.
type points struct{ put, removed fault.Point }

// outcome is what was done to a table.
type outcome struct {
	changed  int
	repaired int
	repairs  []Repair // the first of them
}

func newTable[K, V comparable](name Name, t Table[K, V], pick func(kernel.State) map[K]V, w words[K, V], p points) table[K, V] {
	return table[K, V]{name: name, t: t, pick: pick, words: w, points: p, confirmed: map[K]V{}, dirty: t != nil, suspects: suspects[K, V]{}}
}

func (x *table[K, V]) id() Name      { return x.name }
func (x *table[K, V]) absent() bool  { return x.t == nil }
func (x *table[K, V]) markDirty()    { x.dirty = true }
func (x *table[K, V]) doubted() bool { return x.dirty }

func (x *table[K, V]) refresh(ctx context.Context) (listed bool, err error) {
	if !x.dirty {
		return false, nil
	}
	have, err := x.t.List(ctx)
	if err != nil {
		return false, fmt.Errorf("list %s: %w", x.name, err)
	}
	switch {
	case x.reader() != nil:
		x.believed = x.confirmed
	case x.listed:
		x.compare(have)
	}
	x.confirmed, x.equal, x.listed, x.dirty = have, nil, true, false
	if x.confirmed == nil {
		x.confirmed = map[K]V{}
	}
	return true, nil
}

// put makes the additions and replacements, and keeps the removals for later.
func (x *table[K, V]) put(ctx context.Context, s kernel.State) (outcome, error) {
	held := x.places(s)
	want := x.wanted(s, held)
	if x.met(want) {
		x.removals = nil
		return outcome{}, nil
	}
	if err := x.readUnknown(ctx, want); err != nil {
		x.dirty = true
		return outcome{}, err
	}
	var puts []kernel.Change[K, V]
	x.removals = nil
	changes := kernel.DiffFunc(x.confirmed, want, x.same())
	if len(changes) == 0 {
		x.equal = want
	}
	for _, c := range ordered(changes) {
		switch {
		case c.New != nil:
			puts = append(puts, c)
		case x.reader() != nil:
			delete(x.confirmed, c.Key)
			x.equal = nil
		case x.listed:
			if _, stays := held[c.Key]; !stays {
				x.removals = append(x.removals, c)
			}
		}
	}
	if x.waits != nil {
		puts = slices.DeleteFunc(puts, func(c kernel.Change[K, V]) bool { return x.waits(c.Key) })
	}
	slices.Reverse(x.removals)
	failed, done, err := x.apply(ctx, puts, x.points.put)
	x.hold(failed)
	if x.missed != nil {
		x.missed(failed)
	}
	return done, err
}

// places are where what is not wanted stays.
func (x *table[K, V]) places(s kernel.State) map[K]V {
	if x.held == nil {
		return nil
	}
	return x.held(s)
}

// wanted is what the state asks for, with what it has for places that are empty. Before the first list nobody knows which are.
func (x *table[K, V]) wanted(s kernel.State, held map[K]V) map[K]V {
	want := x.pick(s)
	if !x.listed {
		return want
	}
	var none V
	shared := true
	for k, v := range held {
		if _, there := x.confirmed[k]; there || v == none {
			continue
		}
		if shared {
			want, shared = maps.Clone(want), false
		}
		want[k] = v
	}
	return want
}

// hold leaves out the removals that must wait for an addition that failed.
func (x *table[K, V]) hold(failed []K) {
	if x.group == nil {
		return
	}
	waiting := map[any]bool{}
	for _, k := range failed {
		waiting[x.group(k)] = true
	}
	x.removals = slices.DeleteFunc(x.removals, func(c kernel.Change[K, V]) bool { return waiting[x.group(c.Key)] })
}

// remove makes the removals that the last put has found.
func (x *table[K, V]) remove(ctx context.Context) (outcome, error) {
	removals := x.removals
	x.removals = nil
	_, done, err := x.apply(ctx, removals, x.points.removed)
	x.expire()
	return done, err
}

// apply makes changes and confirms those that succeeded. failed are the keys of those that may not have.
func (x *table[K, V]) apply(ctx context.Context, changes []kernel.Change[K, V], after fault.Point) (failed []K, out outcome, err error) {
	if len(changes) == 0 {
		return nil, outcome{}, nil
	}
	if err = fault.At(fault.ApplyBegun); err == nil {
		err = x.t.Apply(ctx, changes)
	}
	if err == nil && after != fault.Nowhere {
		err = fault.At(after)
	}
	if err == nil {
		return nil, x.confirm(changes), nil
	}
	x.dirty = true
	failed, all := kernel.Failed[K](err)
	if !all {
		failed = nil
		for _, c := range changes {
			failed = append(failed, c.Key)
		}
	}
	bad := map[K]bool{}
	for _, k := range failed {
		bad[k] = true
	}
	done := slices.DeleteFunc(slices.Clone(changes), func(c kernel.Change[K, V]) bool { return bad[c.Key] })
	return failed, x.confirm(done), err
}

// confirm takes changes for made.
func (x *table[K, V]) confirm(done []kernel.Change[K, V]) outcome {
	kernel.Patch(x.confirmed, done)
	x.equal = nil
	if x.noted != nil {
		x.noted(done)
	}
	return x.judge(done)
}

// readUnknown confirms what is wanted and not yet known, in tables that a list does not show in full, after each list. What is wanted later, as with a pod's new
// device, is written and not read first: to write what is there already costs as much as to read it, and changes nothing.
func (x *table[K, V]) readUnknown(ctx context.Context, want map[K]V) error {
	r := x.reader()
	if r == nil || x.believed == nil {
		return nil
	}
	var unknown []K
	for k := range want {
		if _, ok := x.confirmed[k]; !ok {
			unknown = append(unknown, k)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	have, err := r.Read(ctx, unknown)
	if err != nil {
		return fmt.Errorf("read %s: %w", x.name, err)
	}
	for k, now := range have {
		if was, ok := x.believed[k]; ok && was != now {
			x.doubt(k, &was, &now)
		}
	}
	x.believed, x.equal = nil, nil
	maps.Copy(x.confirmed, have)
	return nil
}

// reader is a table whose objects carry no mark.
type reader[K, V comparable] interface {
	Read(context.Context, []K) (map[K]V, error)
}

func (x *table[K, V]) reader() reader[K, V] {
	r, _ := x.t.(reader[K, V])
	return r
}

func (x *table[K, V]) same() func(K, V, V) bool {
	if s, ok := x.t.(interface{ Same(K, V, V) bool }); ok {
		return s.Same
	}
	return func(_ K, have, want V) bool { return have == want }
}

// forget confirms objects no longer that the kernel has dropped with their device.
func (x *table[K, V]) forget(gone func(K, V) bool) (some bool) {
	for k, v := range x.confirmed {
		if gone(k, v) {
			x.doubt(k, &v, nil)
			delete(x.confirmed, k)
			x.equal, some = nil, true
		}
	}
	return some
}

// drop confirms objects no longer that the kernel has dropped because of what we did.
func (x *table[K, V]) drop(gone func(K, V) bool) {
	maps.DeleteFunc(x.confirmed, gone)
	x.equal = nil
}

// met tells whether the very map of wanted objects is the one that was found to be confirmed before. A plan gives the same map again for what has not changed,
// and most of a large cluster's objects do not: to go through them for each pod that comes would cost more than the pod.
func (x *table[K, V]) met(want map[K]V) bool {
	return x.equal != nil && reflect.ValueOf(want).Pointer() == reflect.ValueOf(x.equal).Pointer()
}

// reread confirms objects no longer that an event contradicts. Of a table that a list does not show, they are read again.
func (x *table[K, V]) reread(events map[K]V) (some bool) {
	for k, now := range events {
		if was, ok := x.confirmed[k]; ok && was != now {
			x.doubt(k, &was, &now)
			delete(x.confirmed, k)
			x.equal, some = nil, true
		}
	}
	return some
}

// observe makes the table dirty if an object is not as it is confirmed to be.
func (x *table[K, V]) observe(events map[K]*V) {
	if x.t == nil {
		return
	}
	for k, now := range events {
		have, ok := x.confirmed[k]
		if ok != (now != nil) || ok && have != *now {
			x.dirty = true
			return
		}
	}
}

// glance makes the table dirty if a list shows it otherwise than confirmed, or fails: the next refresh finds out what it is.
func (x *table[K, V]) glance(ctx context.Context, same func(have, confirmed V) bool) {
	if x.t == nil || !x.listed || x.dirty {
		return
	}
	have, err := x.t.List(ctx)
	x.dirty = err != nil || !maps.EqualFunc(have, x.confirmed, same)
}

// ordered sorts changes by their keys' text, so that the same change is always made in the same order.
func ordered[K, V comparable](changes []kernel.Change[K, V]) []kernel.Change[K, V] {
	type keyed struct {
		text string
		c    kernel.Change[K, V]
	}
	list := make([]keyed, len(changes))
	for i, c := range changes {
		list[i] = keyed{text: fmt.Sprint(c.Key), c: c}
	}
	slices.SortFunc(list, func(a, b keyed) int { return cmp.Compare(a.text, b.text) })
	out := make([]kernel.Change[K, V], len(list))
	for i, k := range list {
		out[i] = k.c
	}
	return out
}
