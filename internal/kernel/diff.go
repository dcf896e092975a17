package kernel

// Change is one step from what is to what should be. Exactly one of three: create (Old nil), replace, remove (New nil).
type Change[K comparable, V comparable] struct {
	Key K
	Old *V // nil: not there yet
	New *V // nil: remove
}

// Diff returns the changes that turn have into want, in no particular order. Diff(x, x) is empty.
func Diff[K comparable, V comparable](have, want map[K]V) []Change[K, V] {
	var out []Change[K, V]
	for k, w := range want {
		h, ok := have[k]
		switch {
		case !ok:
			out = append(out, Change[K, V]{Key: k, New: &w})
		case h != w:
			out = append(out, Change[K, V]{Key: k, Old: &h, New: &w})
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			out = append(out, Change[K, V]{Key: k, Old: &h})
		}
	}
	return out
}
