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
	full := Start{Blocks: map[string]string{Low: "a", High: "b"}, Fill: map[string]int{Low: 2, High: 4}}
	idle := Start{Blocks: map[string]string{Low: "c", High: "b"}, Fill: map[string]int{High: 4}}
	return []Scenario{
		named("empty pool", Scenario{Start: empty, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("b", Add("y"), Del("y")), module("c", Add("z"))}}),
		named("two addresses left", Scenario{Start: scarce, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("b", Add("y"), Add("y2")), module("c", Add("z"), Del("z"))}}),
		named("one node", Scenario{Start: scarce, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("a", Add("y")), module("a", Add("x"), Del("y"))}}),
		named("an idle block", Scenario{Start: idle, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("b", Add("y")), module("c", ReturnBlocks(), Add("z"))}}),
		named("tunnels", Scenario{Start: Start{Tunnel: true}, Lost: 1, Actors: []Actor{module("a", Tunnels(), Add("x")), module("a", Add("y"), Del("y")), module("b", Tunnels(), ReleaseNode("c"))}}),
		named("an orphan", Scenario{Start: Start{Pods: map[string]string{"o": "a"}}, Lost: 1, Actors: []Actor{module("a", FreeOrphan("o"), Add("x")), module("a", Del("o"), Add("z")), module("b", Add("y"), Del("y"))}}),
		named("a node goes", Scenario{Start: Start{Pods: map[string]string{"o": "c"}, Blocks: map[string]string{Low: "b"}}, Lost: 1, Actors: []Actor{module("a", ReleaseNode("c"), Add("x")), module("b", Add("y")), module("c", Del("o"), Add("z"))}}),
		named("a pool goes", Scenario{Start: Start{Pods: map[string]string{"o": "a"}}, Lost: 1, Actors: []Actor{module("c", ReleasePool()), module("a", Del("o")), module("b", Add("y"))}}),
		named("late", Scenario{Start: scarce, Lost: 1, Late: 1, Actors: []Actor{agent("a", AddOnce("x"), Del("x")), module("b", AddOnce("y"), Del("y"))}}),
		named("late, and an operator", Scenario{Start: idle, Lost: 1, Late: 1, Actors: []Actor{agent("a", AddOnce("x"), Del("x")), operator(Lock(), Unlock(), BeStrict())}}),
		named("late, and an idle block", Scenario{Start: idle, Lost: 1, Late: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("a", ReturnBlocks())}}),
		named("Calico claims", Scenario{Start: empty, Lost: 1, Actors: []Actor{module("b", CalicoClaim(Low), CalicoReleaseAffinity(Low)), module("a", Add("x"), Del("x")), module("b", Add("y"), Del("y"))}}),
		named("Calico connects", Scenario{Start: full, Lost: 1, Actors: []Actor{module("b", CalicoAdd("k"), CalicoDel("k")), agent("a", Add("x"), Del("x"))}}),
	}
}

// Long is every pair of roles beside an agent that connects and disconnects a container, from each of two starts. One commit of them may be carried out late.
func Long() []Scenario {
	starts := []struct {
		name  string
		start Start
	}{
		{"one address left", Start{Blocks: map[string]string{Low: "a", High: "c"}, Fill: map[string]int{Low: 3, High: 3}, Pods: map[string]string{"o": "c"}}},
		{"an idle block", Start{Blocks: map[string]string{Low: "b", High: "c"}, Fill: map[string]int{High: 2}, Pods: map[string]string{"o": "c"}}},
	}
	var out []Scenario
	for _, from := range starts {
		all := roles()
		for i, one := range all {
			for _, other := range all[i:] {
				start := from.start
				start.Tunnel = one.tunnel || other.tunnel
				s := Scenario{Start: start, Lost: 1, Late: 1, Actors: []Actor{agent("a", AddOnce("x"), Del("x")), one.of("y"), other.of("z")}}
				out = append(out, named(from.name, s))
			}
		}
	}
	return out
}

// role is an actor's part, in which it connects a container of that name.
type role struct {
	of     func(container string) Actor
	tunnel bool // it gives tunnels addresses
}

func roles() []role {
	return []role{
		{of: func(c string) Actor { return module("b", AddOnce(c), Del(c)) }},
		{of: func(c string) Actor { return agent("c", Add(c), Del(c)) }},
		{of: func(c string) Actor { return module("a", Add(c), Add(c+"2")) }},
		{of: func(c string) Actor { return module("c", Del("o"), Add(c)) }},
		{of: func(c string) Actor { return module("c", FreeOrphan("o"), Add(c)) }},
		{of: func(c string) Actor { return module("b", ReturnBlocks(), Add(c)) }},
		{of: func(c string) Actor { return module("a", ReleaseNode("b"), Add(c)) }},
		{of: func(c string) Actor { return module("b", Tunnels(), Add(c)) }, tunnel: true},
		{of: func(string) Actor { return module("b", ReleasePool()) }},
		{of: func(string) Actor { return operator(Lock(), Unlock()) }},
		{of: func(string) Actor { return operator(DisablePool(), BeStrict(), Adopt("a")) }},
		{of: func(string) Actor { return module("b", CalicoClaim(Low), CalicoReleaseAffinity(Low)) }},
		{of: func(c string) Actor { return module("b", CalicoAdd(c), CalicoDel(c)) }},
	}
}
