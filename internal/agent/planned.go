package agent

import (
	"reflect"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
)

// planInputs are the kinds that a plan is computed from; settings are compared for themselves.
const planInputs = feed.Pools | feed.Nodes | feed.Blocks | feed.Endpoints

// seen is what a plan is computed from.
type seen struct {
	snap     feed.Snapshot
	settings plan.Settings
	learned  *plan.Learned // by BGP; nil without
	host     kernel.Host
	facts    uint64 // number of host
}

// planned is a plan and what it was computed from: computing it again takes time on a large cluster's node, and most events, such as
// those of our own writes, are about none of this. The zero value is no plan.
type planned struct {
	from    seen
	planner plan.Planner
	result  plan.Result
}

// compute returns the plan, and whether it is the one that was returned last.
func (p *planned) compute(now seen) (result plan.Result, again bool) {
	changed := now.snap.Since(p.from.snap)
	again = !changed.Kinds.Has(planInputs) && now.facts == p.from.facts && now.learned == p.from.learned &&
		reflect.DeepEqual(now.settings, p.from.settings)
	p.from = now
	if !again {
		p.result = p.planner.Compute(model(now.snap, now.settings.Node, now.learned), now.settings, now.host)
	}
	return p.result, again
}
