package agent

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/internal/health"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// tally sums up the kernel's counters of rules by what the rules do. A series for each rule would be as many as people write rules; who wants them one by one
// asks `muslinctl node drops --all`. A rule's counter ends with the rule, and what it had counted at the last look stays in the sum, so that
// sums only grow.
type tally struct {
	read func(context.Context) (map[string]nftable.Counted, error)

	mu    sync.Mutex
	rules map[policy.RuleID]*tallied
	last  map[string]uint64 // packets by counter, at the last look
	sums  map[health.Matched]uint64
}

// tallied is what a rule is, and in how many policies of the model it is: two versions of a policy share their rules while one replaces the other.
type tallied struct {
	as    health.Matched
	users int
}

// countersTimeout bounds how long somebody who asks for metrics waits for the kernel.
const countersTimeout = 2 * time.Second

func newTally() *tally {
	return &tally{read: readCounters, rules: map[policy.RuleID]*tallied{}, last: map[string]uint64{}, sums: map[health.Matched]uint64{}}
}

// note takes over which policies came; old are those that went.
func (t *tally) note(came, went []*policy.Policy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range came {
		for _, r := range p.Rules {
			if t.rules[r.ID] == nil {
				t.rules[r.ID] = &tallied{as: health.Matched{Action: strings.ToLower(string(r.Action)), Staged: p.Staged}}
			}
			t.rules[r.ID].users++
		}
	}
	for _, p := range went {
		for _, r := range p.Rules {
			if t.rules[r.ID].users--; t.rules[r.ID].users == 0 {
				delete(t.rules, r.ID)
			}
		}
	}
}

// matched is how many packets rules have matched since the agent started to count, or since their counters were made if they outlived the agent before. It asks
// the kernel; if that does not answer, it is as of the last time.
func (t *tally) matched() map[health.Matched]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), countersTimeout)
	defer cancel()
	if now, err := t.read(ctx); err == nil {
		t.add(now)
	}
	out := make(map[health.Matched]uint64, len(t.sums))
	for k, n := range t.sums {
		out[k] = n
	}
	return out
}

func (t *tally) add(now map[string]nftable.Counted) {
	fresh := make(map[string]uint64, len(now))
	for name, n := range now {
		told, ok := ruleset.Counter(name)
		if !ok {
			continue
		}
		as := health.Matched{Action: strings.ToLower(string(api.Deny)), Reason: told.Reason} // the end of a tier, or no rule's
		if r := t.rules[told.Rule]; r != nil {
			as = r.as
		}
		grown := n.Packets
		if before := t.last[name]; before <= grown {
			grown -= before // else the counter was made anew
		}
		fresh[name] = n.Packets
		t.sums[as] += grown
	}
	t.last = fresh
}

// readCounters lists the counters of the kernel's table. It has a connection of its own: the agent's may be busy with a large transaction.
func readCounters(ctx context.Context) (map[string]nftable.Counted, error) {
	conn, err := nft.OpenToRead()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Counters(ctx, ruleset.Table)
}
