package probe

// Search finds the largest packet that gets through, by halving: it asks first for the largest that is wanted, which is the only question where all is
// well. It ends after at most log2(most-least)+2 questions.
type Search struct {
	passed int // the largest that is known to get through
	lost   int // the smallest that is known not to
	asked  bool
}

// NewSearch begins a search up to a size. least is known to get through.
func NewSearch(least, most int) *Search { return &Search{passed: least, lost: most + 1} }

// Next is the size to ask for, in bytes; more is false once the search is over.
func (s *Search) Next() (size int, more bool) {
	if s.lost-s.passed <= 1 {
		return 0, false
	}
	if !s.asked {
		return s.lost - 1, true
	}
	return s.passed + (s.lost-s.passed)/2, true
}

// Tell takes over what came of a question for a size that Next has named.
func (s *Search) Tell(size int, got bool) {
	s.asked = true
	if got {
		s.passed = size
	} else {
		s.lost = size
	}
}

// Largest is the largest that is known to get through.
func (s *Search) Largest() int { return s.passed }
