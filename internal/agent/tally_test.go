package agent

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/muslin-cni/muslin/internal/health"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

func TestSumsOfCountersGrowThoughRulesComeAndGo(t *testing.T) {
	kernel := map[string]nftable.Counted{}
	var fails error
	c := newTally()
	c.read = func(context.Context) (map[string]nftable.Counted, error) { return maps.Clone(kernel), fails }
	p := &policy.Policy{Rules: []policy.Rule{{ID: "a", Action: api.Allow}, {ID: "d", Action: api.Deny}}}
	staged := &policy.Policy{Staged: true, Rules: []policy.Rule{{ID: "s", Action: api.Deny}}}
	allow, deny := health.Matched{Action: "allow"}, health.Matched{Action: "deny"}
	dry, spoof := health.Matched{Action: "deny", Staged: true}, health.Matched{Action: "deny", Reason: "spoof"}
	c.note([]*policy.Policy{p, staged}, nil)
	for _, step := range []struct {
		now   map[string]uint64
		went  bool
		fails error
		want  map[health.Matched]uint64
	}{
		{now: map[string]uint64{"r-a": 3, "r-d": 1, "r-s": 4, "r-spoof": 2, "r-end": 1}, want: map[health.Matched]uint64{allow: 3, deny: 2, dry: 4, spoof: 2}},
		{now: map[string]uint64{"r-a": 5, "r-d": 1, "r-s": 5, "r-spoof": 2, "r-end": 1}, want: map[health.Matched]uint64{allow: 5, deny: 2, dry: 5, spoof: 2}},
		{fails: errors.New("busy"), want: map[health.Matched]uint64{allow: 5, deny: 2, dry: 5, spoof: 2}},
		{now: map[string]uint64{"r-s": 5, "r-spoof": 3}, went: true, want: map[health.Matched]uint64{allow: 5, deny: 2, dry: 5, spoof: 3}},
		{now: map[string]uint64{"r-s": 1, "r-spoof": 3, "r-end": 1}, want: map[health.Matched]uint64{allow: 5, deny: 3, dry: 6, spoof: 3}},
	} {
		clear(kernel)
		for name, n := range step.now {
			kernel[name] = nftable.Counted{Packets: n}
		}
		if fails = step.fails; step.went {
			c.note(nil, []*policy.Policy{p})
		}
		if got := c.matched(); !maps.Equal(got, step.want) {
			t.Errorf("with %v: %v, want %v", step.now, got, step.want)
		}
	}
	if len(c.rules) != 1 {
		t.Errorf("%d rules are remembered, of which one is there", len(c.rules))
	}
}
