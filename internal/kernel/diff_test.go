package kernel

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func smallMap() *rapid.Generator[map[int]string] {
	return rapid.MapOf(rapid.IntRange(0, 8), rapid.StringMatching("[ab]?"))
}

func TestDiffOfEqualMapsIsEmpty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := smallMap().Draw(t, "m")
		if got := Diff(m, m); len(got) != 0 {
			t.Fatalf("got %v", got)
		}
	})
}

func TestDiffTurnsOneMapIntoTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := smallMap().Draw(t, "a"), smallMap().Draw(t, "b")
		changes := Diff(a, b)
		patched := maps.Clone(a)
		Patch(patched, changes)
		if diff := cmp.Diff(b, patched); diff != "" {
			t.Fatal(diff)
		}
		for _, c := range changes {
			if old, ok := a[c.Key]; ok != (c.Old != nil) || ok && old != *c.Old {
				t.Fatalf("change of %d has the wrong old value", c.Key)
			}
			if c.Old == nil && c.New == nil || c.Old != nil && c.New != nil && *c.Old == *c.New {
				t.Fatalf("change of %d changes nothing", c.Key)
			}
		}
	})
}

func TestDiffFuncBelievesSame(t *testing.T) {
	have, want := map[int]string{1: "a b"}, map[int]string{1: "b a"}
	same := func(_ int, a, b string) bool { return len(a) == len(b) }
	if got := DiffFunc(have, want, same); len(got) != 0 {
		t.Fatalf("got %v", got)
	}
}

func TestEachGoesOnPastFailuresAndRemovesLast(t *testing.T) {
	one, broken := "1", errors.New("broken")
	changes := []Change[string, string]{
		{Key: "remove", Old: &one}, {Key: "bad", New: &one}, {Key: "add", New: &one},
	}
	var order []string
	err := Each(changes, func(c Change[string, string]) error {
		order = append(order, c.Key)
		if c.Key == "bad" {
			return broken
		}
		return nil
	})
	if want := []string{"bad", "add", "remove"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	keys, all := Failed[string](err)
	if !errors.Is(err, broken) || !all || !slices.Equal(keys, []string{"bad"}) {
		t.Errorf("err %v, failed %v, all %v", err, keys, all)
	}
}

func TestFailedKnowsWhenAnErrorNamesNoKey(t *testing.T) {
	err := errors.Join(&Failure[int]{Key: 3, Err: errors.New("x")}, errors.New("socket closed"))
	keys, all := Failed[int](err)
	if all || !slices.Equal(keys, []int{3}) {
		t.Fatalf("failed %v, all %v", keys, all)
	}
	if keys, all := Failed[int](nil); !all || len(keys) != 0 {
		t.Fatalf("of nil: failed %v, all %v", keys, all)
	}
}

func TestNewEventsAreEmpty(t *testing.T) {
	e := NewEvents()
	if !e.Empty() {
		t.Fatal("new events say something")
	}
	e.Routes[RouteKey{}] = nil
	if e.Empty() {
		t.Fatal("a removed route says nothing")
	}
}
