package probe

import (
	"testing"

	"pgregory.net/rapid"
)

func TestSearchFindsTheLargestInFewQuestions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		least := rapid.IntRange(64, 1280).Draw(t, "least")
		most := rapid.IntRange(least, 65535).Draw(t, "most")
		limit := rapid.IntRange(least, most).Draw(t, "limit")
		s, asked := NewSearch(least, most), 0
		for size, more := s.Next(); more; size, more = s.Next() {
			if size <= least || size > most {
				t.Fatalf("asks for %d, between %d and %d", size, least, most)
			}
			s.Tell(size, size <= limit)
			asked++
		}
		if s.Largest() != limit {
			t.Errorf("finds %d, want %d", s.Largest(), limit)
		}
		if limit == most && asked > 1 {
			t.Errorf("asks %d times though the largest gets through", asked)
		}
		if asked > 18 {
			t.Errorf("asks %d times", asked)
		}
	})
}

func TestAnswersAreNoLongerThanQuestions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := rapid.Uint64().Draw(t, "token")
		b := append(Question(token), make([]byte, rapid.IntRange(0, 1500).Draw(t, "filling"))...)
		reply, ok := Reply(b)
		if !ok || len(reply) > len(b) || !AnswersTo(token, reply) || AnswersTo(token+1, reply) {
			t.Fatalf("%d bytes are answered by %x, %v", len(b), reply, ok)
		}
		if _, ok := Reply(reply); ok {
			t.Error("an answer is answered: two nodes would never end")
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(Question(7))
	f.Add(Question(7)[:HeaderSize-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if reply, ok := Reply(b); ok && len(reply) > len(b) {
			t.Errorf("%x is answered by more: %x", b, reply)
		}
	})
}
