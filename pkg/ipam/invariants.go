package ipam

import "slices"

// Invariant is a sentence about a datastore that is true at every revision where Muslin alone writes, whoever dies in the middle of
// whatever. test/modelcheck holds Muslin's transactions to all of them, in every order that a small cluster allows.
type Invariant struct {
	Name   string        // for flags and reports: one-owner
	Holds  string        // the sentence
	Broken []FindingKind // what Audit calls its violations
	// Meanwhile says who else may rightly break it, and for how long. "": nobody, ever.
	Meanwhile string
}

// Reasons of Invariant.Meanwhile.
const (
	betweenSteps  = "Calico's own programs, between two of their steps"
	otherPlugins  = "Calico's own programs, between two of their steps; and for good, containers of other main plugins (bridge, macvlan) that use muslin-ipam"
	whilePoolGoes = "a pool that was deleted while pods have its addresses, until they are gone"
)

// Invariants lists them all, the gravest first. Each FindingKind breaks exactly one.
func Invariants() []Invariant {
	return []Invariant{
		{Name: "one-owner", Holds: "no address has two owners", Broken: []FindingKind{EndpointsShare, ForeignAllocation}},
		{Name: "ranges-apart", Holds: "no two blocks overlap", Broken: []FindingKind{BlocksOverlap}},
		{Name: "owner-known", Holds: "every allocated address has a handle that exists", Broken: []FindingKind{NoHandle}},
		{Name: "found-by-handle", Holds: "no handle counts fewer addresses than the blocks hold for it", Broken: []FindingKind{HandleUndercounts}},
		{Name: "whole", Holds: "every value can be read, and no block contradicts itself", Broken: []FindingKind{BlockDamaged, Unreadable}},
		{Name: "endpoint-holds", Holds: "every endpoint's address of a pool is allocated", Broken: []FindingKind{NoAllocation}, Meanwhile: betweenSteps},
		{Name: "tunnel-holds", Holds: "every node's tunnel address is allocated to it", Broken: []FindingKind{TunnelUnallocated}, Meanwhile: betweenSteps},
		{Name: "no-leak", Holds: "every container that holds an address has an endpoint with it", Broken: []FindingKind{NoEndpoint}, Meanwhile: otherPlugins},
		{Name: "counts-agree", Holds: "no handle counts more addresses than the blocks hold for it", Broken: []FindingKind{HandleOvercounts}, Meanwhile: betweenSteps},
		{
			Name: "affinities-agree", Holds: "a node has a confirmed affinity to just the blocks that are its own",
			Broken: []FindingKind{AffinityUnfinished, AffinityWithout, AffinityStale, NoAffinity}, Meanwhile: betweenSteps,
		},
		{Name: "pooled", Holds: "every block lies in a pool", Broken: []FindingKind{NoPool}, Meanwhile: whilePoolGoes},
	}
}

// Verdict is what a view says of one invariant: it holds if there are no violations.
type Verdict struct {
	Invariant
	Violations []Finding
}

// Verify holds a view against every invariant, in their order. It computes and does nothing else, and finds what Audit finds.
func Verify(v View) []Verdict {
	found := Audit(v)
	out := make([]Verdict, 0, len(Invariants()))
	for _, i := range Invariants() {
		verdict := Verdict{Invariant: i}
		for _, f := range found {
			if slices.Contains(i.Broken, f.Kind) {
				verdict.Violations = append(verdict.Violations, f)
			}
		}
		out = append(out, verdict)
	}
	return out
}
