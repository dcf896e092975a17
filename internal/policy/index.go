package policy

import (
	"iter"
	"maps"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// home is the one demand of a selector under which an index keeps it.
type home struct {
	key    string   // "": the selector demands nothing that can be looked up
	values []string // one of these; nil: any value
	never  bool     // the selector matches nothing
}

// homeOf picks the demand that the fewest label sets are likely to meet: being in one of some namespaces, else the label of which the
// fewest values will do, else a label that must be there. Nearly all endpoints are of one orchestrator, so that this label comes last.
func homeOf(s selector.Selector) home {
	demands := s.Restrictions()
	var best home
	for _, key := range slices.Sorted(maps.Keys(demands)) {
		r := demands[key]
		if r.MustBePresent && r.MustBeAbsent || r.MustHaveOneOf != nil && len(r.MustHaveOneOf) == 0 {
			return home{never: true}
		}
		if r.MustBePresent && better(key, r.MustHaveOneOf, best) {
			best = home{key: key, values: r.MustHaveOneOf}
		}
	}
	return best
}

func better(key string, values []string, than home) bool {
	switch {
	case than.key == "" || values == nil || than.values == nil:
		return than.key == "" || values != nil && than.values == nil
	case than.key == api.LabelNamespace || key == api.LabelNamespace:
		return key == api.LabelNamespace
	case than.key == api.LabelOrchestrator || key == api.LabelOrchestrator:
		return than.key == api.LabelOrchestrator
	}
	return len(values) < len(than.values)
}

// registry finds the selectors that may match a label set. S tells selectors apart.
type registry[S comparable] struct {
	byKey map[string]*byValue[S]
	rest  map[S]struct{} // that demand nothing
}

// byValue holds the selectors that demand something of one label.
type byValue[S comparable] struct {
	values  map[string]map[S]struct{}
	present map[S]struct{} // to which any value will do
}

func newRegistry[S comparable]() *registry[S] {
	return &registry[S]{byKey: map[string]*byValue[S]{}, rest: map[S]struct{}{}}
}

func (r *registry[S]) add(h home, s S) {
	switch {
	case h.never:
		return
	case h.key == "":
		r.rest[s] = struct{}{}
		return
	}
	b := r.byKey[h.key]
	if b == nil {
		b = &byValue[S]{values: map[string]map[S]struct{}{}, present: map[S]struct{}{}}
		r.byKey[h.key] = b
	}
	if h.values == nil {
		b.present[s] = struct{}{}
	}
	for _, v := range h.values {
		if b.values[v] == nil {
			b.values[v] = map[S]struct{}{}
		}
		b.values[v][s] = struct{}{}
	}
}

func (r *registry[S]) remove(h home, s S) {
	delete(r.rest, s)
	b := r.byKey[h.key]
	if b == nil {
		return
	}
	delete(b.present, s)
	for _, v := range h.values {
		delete(b.values[v], s)
		if len(b.values[v]) == 0 {
			delete(b.values, v)
		}
	}
	if len(b.present)+len(b.values) == 0 {
		delete(r.byKey, h.key)
	}
}

// candidates calls visit for every selector that may match the labels, each once, in no order.
func (r *registry[S]) candidates(l *labelSet, visit func(S)) {
	for s := range r.rest {
		visit(s)
	}
	if len(r.byKey) == 0 {
		return
	}
	l.each(func(key, value string) {
		b := r.byKey[key]
		if b == nil {
			return
		}
		for s := range b.present {
			visit(s)
		}
		for s := range b.values[value] {
			visit(s)
		}
	})
}

// postings finds the items that may match a selector: by namespace always, by other labels from when a selector asks for one until no
// selector does.
type postings struct {
	keys map[string]*posting
}

// posting holds the items by the values of one label.
type posting struct {
	users  int                 // selectors that need it
	values map[string][]uint32 // items in ascending order
}

func newPostings() *postings {
	return &postings{keys: map[string]*posting{api.LabelNamespace: {users: 1, values: map[string][]uint32{}}}}
}

// need makes sure that the label of h is indexed; items yields all items with their labels, which are good until the next.
func (p *postings) need(h home, items iter.Seq2[uint32, *labelSet]) {
	if h.key == "" || h.never {
		return
	}
	if at := p.keys[h.key]; at != nil {
		at.users++
		return
	}
	at := &posting{users: 1, values: map[string][]uint32{}}
	for id, l := range items {
		if v, ok := l.Get(h.key); ok {
			at.values[v] = append(at.values[v], id)
		}
	}
	p.keys[h.key] = at
}

func (p *postings) release(h home) {
	if at := p.keys[h.key]; at != nil {
		if at.users--; at.users == 0 {
			delete(p.keys, h.key)
		}
	}
}

// candidates yields the items that may match a selector with that home, which is needed; false if any item may.
func (p *postings) candidates(h home) (iter.Seq[uint32], bool) {
	if h.never {
		return func(func(uint32) bool) {}, true
	}
	at := p.keys[h.key]
	if h.key == "" || at == nil {
		return nil, false
	}
	return func(yield func(uint32) bool) {
		if h.values == nil {
			for _, ids := range at.values {
				for _, id := range ids {
					if !yield(id) {
						return
					}
				}
			}
			return
		}
		for _, v := range h.values {
			for _, id := range at.values[v] {
				if !yield(id) {
					return
				}
			}
		}
	}, true
}

// move notes that the labels of an item changed.
func (p *postings) move(id uint32, before, after *labelSet) {
	for key, at := range p.keys {
		was, had := before.Get(key)
		is, has := after.Get(key)
		if had == has && was == is {
			continue
		}
		if had {
			if at.values[was] = without(at.values[was], id); len(at.values[was]) == 0 {
				delete(at.values, was)
			}
		}
		if has {
			at.values[is] = with(at.values[is], id)
		}
	}
}

// with inserts an item into an ascending list, and without takes it out. Both change the list.
func with(list []uint32, id uint32) []uint32 {
	if len(list) == 0 || list[len(list)-1] < id {
		return append(list, id)
	}
	if i, found := slices.BinarySearch(list, id); !found {
		list = slices.Insert(list, i, id)
	}
	return list
}

func without(list []uint32, id uint32) []uint32 {
	if i, found := slices.BinarySearch(list, id); found {
		list = slices.Delete(list, i, i+1)
	}
	return list
}
