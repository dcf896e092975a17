package policyjudge

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/internal/policy"
)

// clusters says how many clusters TestEvaluatorAndModelsAgree makes from seeds of the day; eight packets each.
var clusters = flag.Int("clusters", 250, "clusters with random seeds, beside the fixed ones")

// firstSeed is the first of the seeds of the day.
var firstSeed = flag.Uint64("seed", 0, "first random seed; 0: anyone")

const (
	fixedClusters     = 1250
	packetsPerCluster = 8
)

// TestEvaluatorAndModelsAgree holds the compiled model, by the oracle and by the engine, against the evaluator: 10,000 cases with fixed seeds, and others
// each time.
func TestEvaluatorAndModelsAgree(t *testing.T) {
	first := *firstSeed
	if first == 0 {
		first = rand.Uint64()
	}
	t.Logf("random seeds from -seed=%d", first)
	var n tally
	for seed := range uint64(fixedClusters) {
		n.hold(t, seed)
	}
	for i := range uint64(*clusters) {
		n.hold(t, first+i)
	}
	t.Logf("%d cases, %d of them allowed; policy alone decides of %d", n.cases, n.allowed, n.byPolicy)
	if n.allowed*5 < n.cases || n.allowed*5 > n.cases*4 || n.byPolicy*3 < n.cases {
		t.Error("the cases are lopsided")
	}
}

type tally struct{ cases, allowed, byPolicy int }

func (n *tally) hold(t *testing.T, seed uint64) {
	c := Generate(seed)
	oracle, engine := compiled(c)
	if d := cmp.Diff(oracle, engine, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("seed %d: oracle and engine differ: %s", seed, d)
	}
	for _, p := range Packets(seed, packetsPerCluster) {
		n.cases++
		want := Evaluate(c, p)
		if want.Allowed {
			n.allowed++
		}
		if !ByPolicy(c, p) {
			continue
		}
		n.byPolicy++
		if got, _ := WalkModel(c, engine, p); got.Allowed != want.Allowed {
			t.Fatal(disagreement(seed, c, p))
		}
	}
}

// compiled is the model by the oracle, and by an engine that is given the objects one by one.
func compiled(c *Cluster) (oracle, engine policy.Model) {
	in := c.Input()
	e := policy.New(c.Node)
	for _, o := range in.Objects {
		e.Apply(policy.Delta{Objects: []policy.Change{o}})
	}
	e.Apply(policy.Delta{Services: in.Services})
	return policy.Compute(c.Node, in), e.Model()
}

// disagreement says what evaluator and model disagree about, in as small a cluster as does.
func disagreement(seed uint64, c *Cluster, p Packet) string {
	small := Shrink(c, func(c *Cluster) bool {
		got, _ := WalkModel(c, policy.Compute(c.Node, c.Input()), p)
		return ByPolicy(c, p) && got.Allowed != Evaluate(c, p).Allowed
	})
	_, walked := WalkModel(small, policy.Compute(small.Node, small.Input()), p)
	return fmt.Sprintf("seed %d, packet %+v\nevaluator: %+v\nmodel: %s\n%s", seed, p, Evaluate(small, p), describe(walked), small)
}

func describe(w policy.Walked) string {
	out := string(w.Verdict)
	for _, s := range w.Sides {
		out += fmt.Sprintf("\n  %v %s %s: %s by %s", s.Endpoint.Key, s.Use, s.List.Direction, s.Verdict, s.By)
		for _, step := range s.Steps {
			out += fmt.Sprintf("\n    tier %q %v %s unmet %q", step.Tier, step.Policy, step.Action, step.Unmet)
		}
	}
	return out
}
