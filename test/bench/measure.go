package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// comparison is one floor and one subject, measured in alternation.
type comparison struct {
	name    string
	floor   []time.Duration // by round, per operation
	subject []time.Duration
}

// row is the comparison as a line of the page, with the ratio to aim for; "": none was set.
func (c comparison) row(aim string) row {
	return row{What: c.name, Floor: ms(median(c.floor)), Subject: ms(median(c.subject)), Ratio: fmt.Sprintf("%.2f", c.ratio()), Aim: aim}
}

// rate is the comparison as operations in a second.
func (c comparison) rate(aim string) row {
	per := func(ds []time.Duration) string {
		return fmt.Sprintf("%.0f/s", float64(time.Second)/float64(median(ds)))
	}
	return row{What: "rate of " + c.name, Floor: per(c.floor), Subject: per(c.subject), Ratio: fmt.Sprintf("%.2f", 1/c.ratio()), Aim: aim}
}

// rows are comparisons without an aim.
func rows(cs []comparison) (out []row) {
	for _, c := range cs {
		out = append(out, c.row(""))
	}
	return out
}

// ratio is the median of the rounds' own ratios: what else the machine did in a round weighs on both sides of it.
func (c comparison) ratio() float64 {
	var rs []float64
	for i := range c.floor {
		rs = append(rs, float64(c.subject[i])/float64(c.floor[i]))
	}
	return median(rs)
}

func median[T float64 | time.Duration](xs []T) T {
	s := slices.Sorted(slices.Values(xs))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

// side is one way to do a thing n times.
type side func(round, i int) error

// trial says how often two operations are done, and what they are called.
type trial struct {
	do, undo    string
	rounds      int
	n, parallel int                           // in a round, and at the same time
	meter       func() (time.Duration, error) // what is compared grows by what it says; nil: the time of day
}

// measure does one side of a round and returns what an operation took, by the clock or the meter.
func (t trial) measure(round int, f side) (time.Duration, error) {
	if t.meter == nil {
		return timed(round, t.n, t.parallel, f)
	}
	before, err := t.meter()
	if err != nil {
		return 0, err
	}
	if _, err := timed(round, t.n, t.parallel, f); err != nil {
		return 0, err
	}
	after, err := t.meter()
	return (after - before) / time.Duration(t.n), err
}

// attachTrial is ADD and DEL under some circumstance.
func (b bench) attachTrial(name string, n, parallel int) trial {
	return trial{do: "ADD " + name, undo: "DEL " + name, rounds: b.rounds, n: n, parallel: parallel}
}

// alternate measures two operations, floor and subject by turns, the one that begins changing each round. Each side undoes what it did
// before the other begins: by its second operation, or by its clean.
func alternate(t trial, floor, subject pair) (do, undo comparison, err error) {
	do, undo = comparison{name: t.do}, comparison{name: t.undo}
	for r := range t.rounds {
		sides := []struct {
			pair
			do, undo *[]time.Duration
		}{{floor, &do.floor, &undo.floor}, {subject, &do.subject, &undo.subject}}
		if r%2 == 1 {
			slices.Reverse(sides)
		}
		for _, s := range sides {
			d, err := t.measure(r, s.pair.do)
			if err != nil {
				return do, undo, fmt.Errorf("%s, round %d: %w", do.name, r, err)
			}
			u, err := t.measure(r, s.pair.undo)
			if err != nil {
				return do, undo, fmt.Errorf("%s, round %d: %w", undo.name, r, err)
			}
			if s.clean != nil {
				if err := s.clean(); err != nil {
					return do, undo, fmt.Errorf("clean up after round %d: %w", r, err)
				}
			}
			*s.do, *s.undo = append(*s.do, d), append(*s.undo, u)
		}
	}
	return do, undo, nil
}

// byTurns measures sides that take the times of their parts themselves, the one that begins changing each round.
func byTurns(rounds int, names []string, floor, subject func(round int) ([]time.Duration, error)) ([]comparison, error) {
	cs := make([]comparison, len(names))
	for i, name := range names {
		cs[i].name = name
	}
	for r := range rounds {
		for turn := range 2 {
			side, into := floor, func(c *comparison) *[]time.Duration { return &c.floor }
			if (r+turn)%2 == 1 {
				side, into = subject, func(c *comparison) *[]time.Duration { return &c.subject }
			}
			took, err := side(r)
			if err != nil {
				return cs, fmt.Errorf("%s, round %d: %w", names[0], r, err)
			}
			for i := range cs {
				*into(&cs[i]) = append(*into(&cs[i]), took[i])
			}
		}
	}
	return cs, nil
}

// pair is an operation and what is done after it: its inverse, or something to what it made.
type pair struct {
	do, undo side
	clean    func() error // after a round, untimed; nil: undo has left nothing
}

// timed runs f for 0 to n-1 by so many workers and returns the wall time per operation.
func timed(round, n, workers int, f side) (time.Duration, error) {
	work := make(chan int)
	errs := make(chan error, n)
	var wg sync.WaitGroup
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for i := range work {
				errs <- f(round, i)
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	took := time.Since(start) / time.Duration(n)
	close(errs)
	for err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }
