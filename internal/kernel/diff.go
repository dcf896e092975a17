package kernel

import (
	"errors"
	"slices"
)

// Change is one step from what is to what should be. Exactly one of three: create (Old nil), replace, remove (New nil).
type Change[K comparable, V comparable] struct {
	Key K
	Old *V // nil: not there yet
	New *V // nil: remove
}

// Diff returns the changes that turn have into want, in no particular order. Diff(x, x) is empty.
func Diff[K comparable, V comparable](have, want map[K]V) []Change[K, V] {
	return DiffFunc(have, want, func(_ K, a, b V) bool { return a == b })
}

// DiffFunc is Diff for values that may say the same in different words: same tells.
func DiffFunc[K comparable, V comparable](have, want map[K]V, same func(key K, have, want V) bool) []Change[K, V] {
	var out []Change[K, V]
	met := 0
	for k, w := range want {
		h, ok := have[k]
		if ok {
			met++
		}
		switch {
		case !ok:
			out = append(out, Change[K, V]{Key: k, New: ptr(w)})
		case !same(k, h, w):
			out = append(out, Change[K, V]{Key: k, Old: ptr(h), New: ptr(w)})
		}
	}
	if met == len(have) { // as in most rounds: there is nothing to remove, and no need to look for it
		return out
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			out = append(out, Change[K, V]{Key: k, Old: ptr(h)})
		}
	}
	return out
}

// ptr is a pointer to a copy, made only where there is a change: the address of a loop's variable would be allocated for each object.
func ptr[V any](v V) *V { return &v }

// Patch makes the changes in have, which must not be nil.
func Patch[K comparable, V comparable](have map[K]V, changes []Change[K, V]) {
	for _, c := range changes {
		if c.New == nil {
			delete(have, c.Key)
			continue
		}
		have[c.Key] = *c.New
	}
}

// Failure is a change that could not be made, and why.
type Failure[K comparable] struct {
	Key K
	Err error
}

// Error is the reason. It names the object.
func (f *Failure[K]) Error() string { return f.Err.Error() }

// Unwrap returns the reason.
func (f *Failure[K]) Unwrap() error { return f.Err }

// Each calls do for every change: those that create or replace in their order, then those that remove. It goes on past
// failures and returns them joined, each as a *Failure[K].
func Each[K comparable, V comparable](changes []Change[K, V], do func(Change[K, V]) error) error {
	var errs []error
	for _, removal := range []bool{false, true} {
		for _, c := range changes {
			if (c.New == nil) != removal {
				continue
			}
			if err := do(c); err != nil {
				errs = append(errs, &Failure[K]{Key: c.Key, Err: err})
			}
		}
	}
	return errors.Join(errs...)
}

// Failed returns the keys of the failures that err consists of. If it holds anything else, all is false: then nothing is known
// about the changes that it does not name.
func Failed[K comparable](err error) (keys []K, all bool) {
	switch e := err.(type) { //nolint:errorlint // the shape of a joined error is what is looked at, level by level
	case nil:
		return nil, true
	case *Failure[K]:
		return []K{e.Key}, true
	case interface{ Unwrap() []error }:
		all = true
		for _, inner := range e.Unwrap() {
			k, ok := Failed[K](inner)
			keys, all = slices.Concat(keys, k), all && ok
		}
		return keys, all
	default:
		return nil, false
	}
}
