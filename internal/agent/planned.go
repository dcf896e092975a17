package agent

import (
	"reflect"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
)

// planInputs are the kinds that a plan is computed from; settings are compared for themselves.
const planInputs = feed.Pools | feed.Nodes | feed.Blocks | feed.Endpoints

// planned is a plan and what it was computed from: computing it again takes time on a large cluster's node, and most events, such as
// those of our own writes, are about none of this. The zero value is no plan.
type planned struct {
	snap     feed.Snapshot
	settings plan.Settings
	facts    uint64 // number of the host facts
	planner  plan.Planner
	result   plan.Result
}

// compute returns the plan, and whether it is the one that was returned last.
func (p *planned) compute(snap feed.Snapshot, node string, s plan.Settings, host kernel.Host, facts uint64) (result plan.Result, again bool) {
	changed := snap.Since(p.snap)
	p.snap = snap
	if !changed.Kinds.Has(planInputs) && facts == p.facts && reflect.DeepEqual(s, p.settings) {
		return p.result, true
	}
	p.settings, p.facts, p.result = s, facts, p.planner.Compute(model(snap, node), s, host)
	return p.result, false
}
