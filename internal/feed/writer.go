package feed

import (
	"github.com/tidwall/btree"

	"github.com/muslin-cni/muslin/pkg/store"
)

// writer builds the state that follows another one. It merges three sources that tell of the same history, each in its own time: the
// watch (in order), lists (all at one revision), and our own commits (early). A key's revision decides: what is not newer than
// what is known of the key is old news. So the outcome does not depend on who spoke first.
type writer struct {
	next   *state
	route  *router
	copied Kinds
	had    uint64 // number of the last change of the state before
	upto   int64  // the revision up to which everything is being told
}

func edit(s *state, r *router) *writer {
	next := &state{rev: s.rev, tables: s.tables, route: s.route, seq: s.seq, bad: *s.bad.Copy(), graves: *s.graves.Copy(), log: s.log}
	return &writer{next: next, route: r, had: s.seq}
}

// changed reports whether anything but the revision is different.
func (w *writer) changed() bool { return w.next.seq != w.had }

// watched adds what the watch told, up to and including rev.
func (w *writer) watched(rev int64, changes []store.KV) {
	w.upto = rev
	w.overheard(changes)
	w.reach(rev)
}

// overheard adds what another watch told, which says nothing of how far this one is. Its changes come in order.
func (w *writer) overheard(changes []store.KV) {
	for _, kv := range changes {
		w.apply(kv)
	}
}

// committed adds what we wrote ourselves.
func (w *writer) committed(changes []store.KV) {
	for _, kv := range changes {
		if kv.Rev > w.next.rev { // else the watch has told it, and what came after
			w.apply(kv)
		}
	}
}

// listed replaces everything by what etcd held at rev, but for what is known to be newer.
func (w *writer) listed(rev int64, kvs []store.KV) {
	present := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		present[kv.Key] = true
		w.apply(kv)
	}
	for _, key := range w.keys() {
		if !present[key] {
			w.apply(store.KV{Key: key, Rev: rev}) // which leaves alone what is newer
		}
	}
	w.reach(rev)
}

// apply takes over one change, unless as much or more is known of its key.
func (w *writer) apply(kv store.KV) {
	kind := w.route.kind(kv.Key)
	if kind == 0 || kv.Rev <= w.known(kind, kv.Key) {
		return
	}
	t := w.table(kind)
	w.next.bad.Delete(kv.Key)
	w.next.graves.Delete(kv.Key)
	if kv.Value == nil {
		t.drop(kv.Key)
		w.bury(kv)
	} else if err := t.put(kv); err != nil {
		w.next.bad.Set(kv.Key, Bad{Key: kv.Key, Rev: kv.Rev, Err: err})
	}
	w.note(change{kind: kind, key: kv.Key})
}

// bury remembers a deletion that is newer than what the watch will have told by the end of this edit.
func (w *writer) bury(kv store.KV) {
	if kv.Rev > w.upto {
		w.next.graves.Set(kv.Key, kv.Rev)
	}
}

// reach notes how far the watch is, which makes the graves up to there superfluous.
func (w *writer) reach(rev int64) {
	w.next.rev = max(w.next.rev, rev)
	for key, dead := range pairs(&w.next.graves) {
		if dead <= w.next.rev {
			w.next.graves.Delete(key)
		}
	}
}

// known is the newest revision at which something is known of the key; 0 if nothing is.
func (w *writer) known(kind Kinds, key string) int64 {
	if rev, ok := w.next.graves.Get(key); ok {
		return rev
	}
	if bad, ok := w.next.bad.Get(key); ok {
		return bad.Rev
	}
	return w.next.tables.of(kind).rev(key)
}

// keys are those of all values, bad ones included.
func (w *writer) keys() (out []string) {
	for _, t := range w.next.tables {
		for key := range t.keys() {
			out = append(out, key)
		}
	}
	return append(out, w.next.bad.Keys()...)
}

// table is the kind's table, for changing.
func (w *writer) table(k Kinds) table {
	if !w.copied.Has(k) {
		w.copied |= k
		*w.next.tables.at(k) = w.next.tables.of(k).copy()
	}
	return w.next.tables.of(k)
}

func (w *writer) note(c change) {
	if !w.changed() {
		w.next.log = w.next.log.then(w.had + 1)
	}
	w.next.seq++
	w.next.log.here = append(w.next.log.here, c)
}

// pairs is a copy of a map's contents, so that the map may be changed meanwhile.
func pairs(m *btree.Map[string, int64]) map[string]int64 {
	out := make(map[string]int64, m.Len())
	m.Scan(func(key string, v int64) bool { out[key] = v; return true })
	return out
}
