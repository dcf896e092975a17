package modelcheck

import (
	"fmt"
	"strings"
)

// named is a scenario called by what its actors do.
func named(start string, s Scenario) Scenario {
	var all []string
	for _, a := range s.Actors {
		var ops []string
		for _, o := range a.Ops {
			ops = append(ops, o.Name)
		}
		who := a.Node
		if a.Memory {
			who += " (memory)"
		}
		all = append(all, fmt.Sprintf("%s: %s", who, strings.Join(ops, ", ")))
	}
	s.Name = start + " | " + strings.Join(all, " | ")
	return s
}

func agent(node string, ops ...Op) Actor { return Actor{Node: node, Memory: true, Ops: ops} }

func module(node string, ops ...Op) Actor { return Actor{Node: node, Ops: ops} }

// Short are the scenarios of `make test`.
func Short() []Scenario {
	empty := Start{}
	scarce := Start{Blocks: map[string]string{Low: "a", High: "b"}, Fill: map[string]int{Low: 3, High: 3}}
	idle := Start{Blocks: map[string]string{Low: "c", High: "b"}, Fill: map[string]int{High: 4}}
	return []Scenario{
		named("empty pool", Scenario{Start: empty, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("b", Add("y"), Del("y")), module("c", Add("z"), Del("z"))}}),
		named("two addresses left", Scenario{Start: scarce, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("b", Add("y"), Add("y2")), module("c", Add("z"), Del("z"))}}),
		named("one node", Scenario{Start: scarce, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("a", Add("y"), Del("y")), module("a", Add("x"), Del("y"))}}),
		named("an idle block", Scenario{Start: idle, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("b", Add("y"), Del("y")), module("c", ReturnBlocks(), Add("z"))}}),
		named("tunnels", Scenario{Start: Start{Tunnel: true}, Lost: 1, Actors: []Actor{module("a", Tunnels(), Add("x")), module("a", Add("y"), Del("y")), module("b", Tunnels(), ReleaseNode("c"))}}),
		named("an orphan", Scenario{Start: Start{Pods: map[string]string{"o": "a"}}, Lost: 1, Actors: []Actor{module("a", FreeOrphan("o"), Add("x")), module("a", Del("o"), Add("z")), module("b", Add("y"), Del("y"))}}),
		named("a node goes", Scenario{Start: Start{Pods: map[string]string{"o": "c"}, Blocks: map[string]string{Low: "b"}}, Lost: 1, Actors: []Actor{module("a", ReleaseNode("c"), Add("x")), module("b", Add("y"), Del("y")), module("c", Del("o"), Add("z"))}}),
		named("a pool goes", Scenario{Start: Start{Pods: map[string]string{"o": "a"}}, Lost: 1, Actors: []Actor{module("c", ReleasePool()), module("a", Del("o"), Add("x")), module("b", Add("y"), Del("y"))}}),
		named("Calico claims", Scenario{Start: empty, Lost: 1, Actors: []Actor{module("b", CalicoClaim(Low), CalicoReleaseAffinity(Low)), module("a", Add("x"), Del("x")), module("b", Add("y"), Del("y"))}}),
		named("Calico connects", Scenario{Start: scarce, Lost: 1, Actors: []Actor{module("b", CalicoAdd("k"), CalicoDel("k")), module("a", Add("x"), Del("x"))}}),
	}
}
