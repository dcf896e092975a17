package agent

import (
	"iter"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// planInputs are the kinds that a plan is computed from.
const planInputs = feed.Pools | feed.Nodes | feed.Blocks | feed.Endpoints

// seen is what a plan is computed from.
type seen struct {
	snap     feed.Snapshot
	settings plan.Settings
	learned  *plan.Learned // by BGP; nil without
	host     kernel.Host
}

// planned is a plan and what it was computed from: most events, such as those of our own writes, are about none of this. The zero value is no plan.
type planned struct {
	snap    feed.Snapshot
	model   plan.Model // of snap
	planner plan.Planner
	result  plan.Result
}

// compute returns the plan, and whether it is the one that was returned last.
func (p *planned) compute(now seen) (result plan.Result, again bool) {
	renew(&p.model, now.snap, now.settings.Node, now.snap.Since(p.snap).Kinds)
	p.snap, p.model.Learned = now.snap, now.learned
	p.result, again = p.planner.Compute(p.model, now.settings, now.host)
	return p.result, again
}

// model is the part of a snapshot that the plan of this node is computed from.
func model(snap feed.Snapshot, node string, learned *plan.Learned) plan.Model {
	m := plan.Model{Learned: learned}
	renew(&m, snap, node, planInputs)
	return m
}

// renew makes the lists of these kinds those of a snapshot.
func renew(m *plan.Model, snap feed.Snapshot, node string, kinds feed.Kinds) {
	if kinds.Has(feed.Pools) {
		m.Pools = values(snap.Pools())
	}
	if kinds.Has(feed.Nodes) {
		m.Nodes = values(snap.Nodes())
	}
	if kinds.Has(feed.Blocks) {
		m.Blocks = values(snap.Blocks())
	}
	if kinds.Has(feed.Endpoints) {
		m.Endpoints = values(snap.EndpointsOn(node))
	}
}

func values[T api.Value](entries iter.Seq2[string, store.Entry[T]]) (out []*T) {
	for _, e := range entries {
		out = append(out, e.Value)
	}
	return out
}
