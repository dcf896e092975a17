package probe

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Pace is how often paths are tested.
type Pace struct {
	Every time.Duration // between two tests of a path that is well, as long as there are no more peers than Peers
	Peers int           // that are tested within that time at most; more take turns
}

// The pace of what is not well, or not known.
const (
	settle      = time.Second          // from when a path is new or another one, for addresses and routes to follow
	spread      = 5 * time.Millisecond // for each peer: nobody is to be asked by everybody at once when it joins
	again       = 3 * time.Second      // until what looks bad is tested once more, before anybody is told
	whileBad    = 15 * time.Second     // until a path that is bad is tested once more
	firstRetry  = 2 * time.Second      // until a path is tested once more of which nothing is known; it doubles
	maxProblems = 20                   // that are said one by one
	maxFaults   = 200                  // that are published one by one: some 40 KB
)

// Ledger keeps what is known of each path, and says which are to be tested when. A fault counts once it was found twice in a row: a single
// lost packet, or a peer that is just being restarted, is none. It is for one goroutine.
type Ledger struct {
	pace    Pace
	entries map[Key]*entry
	sorted  []*entry // by their keys
	peers   int      // nodes that there are paths to
	found   int      // how often anything else was found, or expected
	tested  bool     // every path was tried once
}

// entry is what is known of a path.
type entry struct {
	target  Target
	found   Finding       // the zero Finding: nothing yet
	suspect api.PathFault // found by the last test and by none before; "": none
	due     time.Time
	misses  int // tests in a row that said nothing
}

// NewLedger returns a ledger without paths.
func NewLedger(p Pace) *Ledger { return &Ledger{pace: p, entries: map[Key]*entry{}} }

// Expect says which paths there are from now on. New ones are due in a moment, and so are those that are not what they were.
func (l *Ledger) Expect(targets []Target, now time.Time) {
	old := l.entries
	l.entries = make(map[Key]*entry, len(targets))
	var fresh []*entry
	for _, t := range targets {
		e := old[t.Key]
		if e == nil {
			e = &entry{}
		}
		if e.target != t {
			e.target, e.suspect, e.misses = t, "", 0
			fresh = append(fresh, e)
		}
		l.entries[t.Key] = e
	}
	l.count()
	l.schedule(fresh, now)
}

// count works out what follows from which paths there are. Everybody asks for it all the time, and it seldom changes.
func (l *Ledger) count() {
	l.found++
	l.sorted = slices.Collect(maps.Values(l.entries))
	slices.SortFunc(l.sorted, func(a, b *entry) int { return a.target.compare(b.target.Key) })
	names := map[string]struct{}{}
	for k := range l.entries {
		names[k.Peer] = struct{}{}
	}
	l.peers = len(names)
}

// Found is another number whenever Paths or Problems may say something else than before.
func (l *Ledger) Found() int { return l.found }

// schedule spreads new paths over time: as many peers as may be tested at once go first. The order is another one on each node.
func (l *Ledger) schedule(fresh []*entry, now time.Time) {
	slices.SortFunc(fresh, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.target.rank(), b.target.rank()), a.target.compare(b.target.Key))
	})
	delay := settle + time.Duration(l.rankOf(fresh))*time.Microsecond
	peers := map[string]int{}
	for _, e := range fresh {
		if _, known := peers[e.target.Peer]; !known {
			peers[e.target.Peer] = len(peers)
		}
		e.due = now.Add(delay + time.Duration(peers[e.target.Peer]/l.pace.Peers)*l.pace.Every)
	}
}

// rankOf is a delay in microseconds that is another one on each node, and the longer the more peers there are.
func (l *Ledger) rankOf(fresh []*entry) int64 {
	if len(fresh) == 0 {
		return 0
	}
	return int64(fresh[0].target.rank()) % max(1, int64(l.peers)*spread.Microseconds())
}

// rank orders the peers of a node.
func (t Target) rank() uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(t.Self + "\x00" + t.Peer)) // never fails
	return h.Sum32()
}

// Due lists the paths that are to be tested now, of at most as many peers as the pace says: those that have waited longest.
func (l *Ledger) Due(now time.Time) []Target {
	var due []*entry
	for _, e := range l.entries {
		if !e.due.After(now) {
			due = append(due, e)
		}
	}
	slices.SortFunc(due, func(a, b *entry) int { return cmp.Or(a.due.Compare(b.due), a.target.compare(b.target.Key)) })
	var out []Target
	peers := map[string]struct{}{}
	for _, e := range due {
		if _, in := peers[e.target.Peer]; !in && len(peers) == l.pace.Peers {
			continue
		}
		peers[e.target.Peer] = struct{}{}
		out = append(out, e.target)
	}
	return out
}

// Next is when a path is due next; ok is false where there is none.
func (l *Ledger) Next() (at time.Time, ok bool) {
	for _, e := range l.entries {
		if !ok || e.due.Before(at) {
			at, ok = e.due, true
		}
	}
	return at, ok
}

// Note takes over what a test found. A target that is not the path's any more says nothing.
func (l *Ledger) Note(t Target, f Finding, now time.Time) {
	e := l.entries[t.Key]
	if e == nil || e.target != t {
		return
	}
	defer func(before Finding) {
		if e.found != before {
			l.found++
		}
	}(e.found)
	turns := time.Duration((l.peers + l.pace.Peers - 1) / l.pace.Peers)
	wait := l.pace.Every * turns // until it is tested again, if all is well
	switch {
	case f.State == api.PathUnknown:
		wait = min(wait, firstRetry<<min(e.misses, 10))
		e.found, e.suspect = f, ""
		e.misses++
		e.due = now.Add(wait)
		return
	case f.State == api.PathBad && e.suspect != f.Fault && !(e.found.State == api.PathBad && e.found.Fault == f.Fault):
		e.suspect = f.Fault
		wait = min(wait, again)
	case f.State == api.PathBad:
		e.found, e.suspect = f, ""
		wait = min(wait, whileBad*turns)
	default:
		e.found, e.suspect = f, ""
	}
	e.misses = 0
	e.due = now.Add(wait)
}

// Paths lists every path, sorted. One that was not tested yet is unknown.
func (l *Ledger) Paths() []api.Path {
	out := make([]api.Path, 0, len(l.entries))
	for _, e := range l.sorted {
		out = append(out, e.path())
	}
	return out
}

func (e *entry) path() api.Path {
	f := e.found
	if f.State == "" {
		f = Unknown("not tested yet")
	}
	return api.Path{
		Peer: e.target.Peer, Family: e.target.Family(), Kind: e.target.Kind,
		State: f.State, Fault: f.Fault, Largest: f.Largest, Wanted: e.target.MTU, Text: f.Text,
	}
}

// Problems says of each path that is bad which one it is, what is wrong, and what to do. Of very many only the first are named.
func (l *Ledger) Problems() []string {
	var out []string
	more := 0
	for _, e := range l.sorted {
		switch {
		case e.found.State != api.PathBad:
		case len(out) == maxProblems:
			more++
		default:
			out = append(out, e.target.String()+": "+e.found.Text)
		}
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("more paths from %s are bad than are named here: `muslinctl node paths` shows all", l.self()))
	}
	return out
}

func (l *Ledger) self() string {
	for _, e := range l.entries {
		return e.target.Self
	}
	return ""
}

// Record is what the other nodes are told. Tested once is tested for good: who joins later is tried in a moment.
func (l *Ledger) Record() api.NodePaths {
	r := api.NodePaths{}
	all := true
	for _, e := range l.sorted {
		all = all && e.found.State != "" && e.suspect == ""
		switch {
		case e.found.State != api.PathBad && (e.found.State != api.PathUnknown || e.found.Absent):
		case len(r.Faults) == maxFaults:
			r.More++
		default:
			r.Faults = append(r.Faults, e.path())
		}
	}
	l.tested = l.tested || all
	r.Tested = l.tested
	return r
}
