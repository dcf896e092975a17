package probe

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
)

var start = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func pace() Pace { return Pace{Every: 90 * time.Second, Peers: 100} }

// many are targets to so many peers.
func many(n int) []Target {
	out := make([]Target, n)
	for i := range out {
		out[i] = Target{Key: Key{Peer: fmt.Sprintf("node-%04d", i+2), Kind: api.PathVXLAN}, Self: "node-1", MTU: 1450}
	}
	return out
}

var (
	ok   = Finding{State: api.PathOK, Largest: 1450}
	dead = Finding{State: api.PathBad, Fault: api.FaultNoAnswer, Text: "no answer; open it"}
)

// test tests all that is due until the ledger has nothing more before then, and returns how often each peer was.
func test(l *Ledger, until time.Time, find func(Target) Finding) map[string]int {
	times := map[string]int{}
	for at, ok := l.Next(); ok && !at.After(until); at, ok = l.Next() {
		for _, t := range l.Due(at) {
			times[t.Peer]++
			l.Note(t, find(t), at)
		}
	}
	return times
}

func TestFaultIsToldOnceItWasFoundTwice(t *testing.T) {
	l := NewLedger(pace())
	l.Expect(many(1), start)
	target := many(1)[0]
	l.Note(target, dead, start)
	if got := l.Problems(); len(got) > 0 {
		t.Errorf("told at once: %q", got)
	}
	if at, _ := l.Next(); at.After(start.Add(again)) {
		t.Errorf("looked at again only after %v", at.Sub(start))
	}
	l.Note(target, dead, start)
	if d := cmp.Diff([]string{"path node-1 to node-0002 by VXLAN: no answer; open it"}, l.Problems()); d != "" {
		t.Error(d)
	}
	l.Note(target, dead, start)
	if got := l.Problems(); len(got) != 1 {
		t.Errorf("still bad, and the problems are %q", got)
	}
	l.Note(target, ok, start)
	if got := l.Problems(); len(got) > 0 {
		t.Errorf("well again, and the problems are %q", got)
	}
	l.Note(target, dead, start)
	l.Note(target, ok, start)
	l.Note(target, dead, start)
	if got := l.Problems(); len(got) > 0 {
		t.Errorf("two faults with a success between them: %q", got)
	}
}

func TestUnknownIsNoProblemAndLookedAtLessAndLess(t *testing.T) {
	l := NewLedger(pace())
	l.Expect(many(1), start)
	n := test(l, start.Add(time.Hour), func(Target) Finding { return Absent() })
	if l.Problems() != nil || n["node-0002"] > 3600/90+8 || n["node-0002"] < 3600/90 {
		t.Errorf("tested %d times in an hour, problems %q", n["node-0002"], l.Problems())
	}
	if r := l.Record(); !r.Tested || len(r.Faults) > 0 {
		t.Errorf("the others are told %+v", r)
	}
	if p := l.Paths(); len(p) != 1 || p[0].State != api.PathUnknown || p[0].Text == "" {
		t.Errorf("it is shown as %+v", p)
	}
}

func TestLargeClustersTakeTurns(t *testing.T) {
	l := NewLedger(pace())
	l.Expect(many(950), start)
	settled := start.Add(settle + 950*spread)
	if n := len(test(l, settled, func(Target) Finding { return ok })); n != 100 {
		t.Errorf("at first %d peers are tested, want 100", n)
	}
	rest := test(l, settled.Add(10*90*time.Second), func(Target) Finding { return ok })
	if len(rest) != 950 {
		t.Errorf("in ten rounds %d peers are tested, want 950", len(rest))
	}
	for peer, n := range rest {
		if n > 2 {
			t.Errorf("%s was tested %d times", peer, n)
		}
	}
	if r := l.Record(); !r.Tested {
		t.Error("the others are not told that all were tested")
	}
}

func TestNewAndChangedPathsAreTestedInAMoment(t *testing.T) {
	l := NewLedger(pace())
	targets := many(3)
	l.Expect(targets, start)
	test(l, start.Add(time.Minute), func(Target) Finding { return ok })
	targets[1].MTU = 1400
	now := start.Add(time.Minute)
	l.Expect(append(targets[:2:2], many(4)[3]), now)
	got := map[string]bool{}
	for _, x := range l.Due(now.Add(settle + 3*spread)) {
		got[x.Peer] = true
	}
	if d := cmp.Diff(map[string]bool{"node-0003": true, "node-0005": true}, got); d != "" {
		t.Error(d)
	}
	l.Note(many(3)[1], dead, now) // of what it was before
	l.Note(many(3)[2], dead, now) // of one that is gone
	l.Note(many(3)[1], dead, now)
	if got := l.Problems(); len(got) > 0 {
		t.Errorf("problems %q", got)
	}
}

func TestManyFaultsAreToldInSum(t *testing.T) {
	l := NewLedger(pace())
	l.Expect(many(500), start)
	for range 2 {
		for _, x := range many(500) {
			l.Note(x, dead, start)
		}
	}
	got := l.Problems()
	if len(got) != maxProblems+1 || !strings.Contains(got[maxProblems], "muslinctl node paths") {
		t.Errorf("%d problems, the last is %q", len(got), got[len(got)-1])
	}
	if r := l.Record(); len(r.Faults) != maxFaults || r.More != 500-maxFaults {
		t.Errorf("published are %d, and %d more", len(r.Faults), r.More)
	}
}

func TestWhatTheOthersAreToldDoesNotDependOnTheWayThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		end := map[string]Finding{}
		a, b := NewLedger(pace()), NewLedger(pace())
		for _, l := range []*Ledger{a, b} {
			l.Expect(many(4), start)
		}
		for i, x := range many(4) {
			end[x.Peer] = rapid.SampledFrom([]Finding{ok, dead, Absent()}).Draw(t, fmt.Sprint(i))
			for range rapid.IntRange(0, 5).Draw(t, "turns") {
				a.Note(x, rapid.SampledFrom([]Finding{ok, dead, Absent()}).Draw(t, "before"), start)
			}
		}
		for _, l := range []*Ledger{a, b} {
			for range 2 {
				for _, x := range many(4) {
					l.Note(x, end[x.Peer], start)
				}
			}
		}
		if d := cmp.Diff(a.Record(), b.Record()); d != "" {
			t.Error(d)
		}
	})
}
