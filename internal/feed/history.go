package feed

// historyLength is how many changes a snapshot can name at the most, and half of it what it can always name; a reader that is further behind looks
// at everything.
const historyLength = 8192

// change is a key that changed.
type change struct {
	kind Kinds
	key  string
}

// history is the last changes, in pieces: each state adds one of its own to those before, which it shares. A piece is not changed once the next state
// begins.
type history struct {
	before *history // nil: what was before is forgotten
	first  uint64   // number of the first change here
	oldest uint64   // number of the first change that is remembered
	here   []change
}

// then is a new piece for the changes from one number on. Once there are many, they are put into one piece, half of them forgotten.
func (h *history) then(first uint64) *history {
	if h != nil && first-h.oldest >= historyLength {
		h = h.newest(historyLength / 2)
	}
	next := &history{before: h, first: first, oldest: first}
	if h != nil {
		next.oldest = h.oldest
	}
	return next
}

// newest is so many of the last changes as one piece.
func (h *history) newest(n uint64) *history {
	end := h.first + uint64(len(h.here))
	out := &history{first: end - n, oldest: end - n, here: make([]change, n)}
	for at := range h.since(end - n) {
		out.here[at.number-out.first] = at.change
	}
	return out
}

// numbered is a change with its number.
type numbered struct {
	number uint64
	change change
}

// since yields the changes from a number on, the newest piece first.
func (h *history) since(first uint64) func(yield func(numbered) bool) {
	return func(yield func(numbered) bool) {
		for p := h; p != nil && p.first+uint64(len(p.here)) > first; p = p.before {
			for i, c := range p.here {
				if n := p.first + uint64(i); n >= first && !yield(numbered{n, c}) {
					return
				}
			}
		}
	}
}
