// Package health serves what monitoring systems ask a node: whether it is ready, whether it lives, and how it fares in numbers.
package health

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Part is something that has to have happened once before the node is ready.
type Part struct {
	Name string
	Why  string // what it waits for
}

// Pulse knows whether the agent is ready and lives. Its methods may be called concurrently, and none blocks.
type Pulse struct {
	now func() time.Time

	mu      sync.Mutex
	waiting []Part
	since   time.Time     // of the work that goes on; zero: none does
	limit   time.Duration // after which work counts as stuck; 0: never
}

// NewPulse returns the pulse of an agent that is idle and waits for all parts.
func NewPulse(now func() time.Time, parts ...Part) *Pulse { return &Pulse{now: now, waiting: parts} }

// Ready says that a part has happened. It stays so.
func (p *Pulse) Ready(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var left []Part
	for _, w := range p.waiting {
		if w.Name != name {
			left = append(left, w)
		}
	}
	p.waiting = left
}

// Begin says that a piece of work begins, and End that it is done.
func (p *Pulse) Begin() { p.set(p.now()) }

// End says that the work is done: being idle is being alive.
func (p *Pulse) End() { p.set(time.Time{}) }

func (p *Pulse) set(since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = since
}

// Limit sets how long a piece of work may take. 0 is for ever.
func (p *Pulse) Limit(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = d
}

// NotReady says what the node waits for, a line for each part; "" if it is ready.
func (p *Pulse) NotReady() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, w := range p.waiting {
		fmt.Fprintf(&b, "%s: not yet %s\n", w.Name, w.Why)
	}
	return b.String()
}

// Dead says why the agent counts as stuck; "" if it does not.
func (p *Pulse) Dead() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() || p.limit == 0 {
		return ""
	}
	if took := p.now().Sub(p.since); took > p.limit {
		return fmt.Sprintf("dataplane: one round has been going on for %v, more than the %v of dataplaneWatchdogTimeout\n", took.Round(time.Second), p.limit)
	}
	return ""
}

// Condition is something else that may be asked for, and on which neither being ready nor being alive depends.
type Condition struct {
	Name  string
	Wrong func() string // a line for each thing that is wrong; "": nothing is
	Well  string        // what is answered if nothing is
}

// Handler answers GET /readiness, GET /liveness and GET /<name> of the conditions with 200, or with 503 and what is wrong.
func (p *Pulse) Handler(others ...Condition) http.Handler {
	answer := func(wrong func() string, well string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			if text := wrong(); text != "" {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprint(w, text)
				return
			}
			fmt.Fprintln(w, well)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readiness", answer(p.NotReady, "ready"))
	mux.HandleFunc("GET /liveness", answer(p.Dead, "live"))
	for _, c := range others {
		mux.HandleFunc("GET /"+c.Name, answer(c.Wrong, c.Well))
	}
	return mux
}
