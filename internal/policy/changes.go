package policy

import (
	"slices"
)

// changes notes what an Apply touched, and how it was before.
type changes struct {
	endpoints map[uint32]struct{} // whose lists are to be made anew
	policies  map[*policy]struct{}
	profiles  map[string]struct{}
	problems  bool

	endpointsBefore map[EndpointKey]*Endpoint
	listsBefore     map[ListID]bool // whether it was there
	policiesBefore  map[PolicyID]bool
	freshSets       map[SetID]struct{}
	goneSets        map[SetID]struct{}
	members         map[*set]map[member]bool // whether it was one
}

func newChanges() changes {
	return changes{
		endpoints: map[uint32]struct{}{}, policies: map[*policy]struct{}{}, profiles: map[string]struct{}{},
		endpointsBefore: map[EndpointKey]*Endpoint{}, listsBefore: map[ListID]bool{}, policiesBefore: map[PolicyID]bool{},
		freshSets: map[SetID]struct{}{}, goneSets: map[SetID]struct{}{}, members: map[*set]map[member]bool{},
	}
}

func (c *changes) hadEndpoint(k EndpointKey, e *Endpoint) { setOnce(c.endpointsBefore, k, e) }
func (c *changes) hadList(id ListID, was bool)            { setOnce(c.listsBefore, id, was) }
func (c *changes) hadPolicy(id PolicyID, was bool)        { setOnce(c.policiesBefore, id, was) }

// had notes whether m is a member, before that may change. What a new set holds is all new.
func (c *changes) had(s *set, m member) {
	if _, fresh := c.freshSets[s.id]; fresh {
		return
	}
	if c.members[s] == nil {
		c.members[s] = map[member]bool{}
	}
	setOnce(c.members[s], m, s.members[m] > 0)
}

func setOnce[K comparable, V any](m map[K]V, k K, v V) {
	if _, set := m[k]; !set {
		m[k] = v
	}
}

// update says what the Apply in progress has come to.
func (e *Engine) update() Update {
	u := Update{
		Endpoints: map[EndpointKey]*Endpoint{}, Lists: map[ListID]*List{}, Policies: map[PolicyID]*Policy{}, Sets: e.setChanges(),
	}
	now := map[EndpointKey]*Endpoint{}
	for id := range e.changes.endpoints {
		if l := e.endpoints[id]; l != nil {
			now[l.model.Key] = l.model
		}
	}
	for k, was := range e.changes.endpointsBefore {
		if is := now[k]; !is.equal(was) {
			u.Endpoints[k] = is
		}
	}
	for id, was := range e.changes.listsBefore {
		switch l := e.lists[id]; {
		case l != nil && !was:
			u.Lists[id] = l.list
		case l == nil && was:
			u.Lists[id] = nil
		}
	}
	for id, was := range e.changes.policiesBefore {
		switch s := e.shared[id]; {
		case s != nil && !was:
			u.Policies[id] = s.policy
		case s == nil && was:
			u.Policies[id] = nil
		}
	}
	if e.changes.problems {
		e.tell(&u)
	}
	e.changes = changes{}
	return u
}

// tell adds the problems, if they are others than before.
func (e *Engine) tell(u *Update) {
	now := e.allProblems()
	if !slices.Equal(now, e.told) {
		u.Problems, u.Solved = now, len(now) == 0
	}
	e.told = now
}

func (e *Engine) setChanges() map[SetID]SetChange {
	out := map[SetID]SetChange{}
	for id := range e.changes.goneSets {
		out[id] = SetChange{Gone: true}
	}
	for id := range e.changes.freshSets {
		s := e.sets[id]
		out[id] = SetChange{Set: s.set(), Added: s.all()}
	}
	for s, touched := range e.changes.members {
		var c SetChange
		for m, was := range touched {
			switch is := s.members[m] > 0; {
			case is && !was:
				c.Added.collect(m)
			case was && !is:
				c.Removed.collect(m)
			}
		}
		if c.Added.Len()+c.Removed.Len() > 0 {
			c.Added.sort()
			c.Removed.sort()
			out[s.id] = c
		}
	}
	return out
}

// all are the members of a set.
func (s *set) all() (out Members) {
	for m := range s.members {
		out.collect(m)
	}
	out.sort()
	return out
}

func (e *Engine) allProblems() []Problem {
	var out []Problem
	for _, list := range e.problems {
		out = append(out, list...)
	}
	return sortProblems(out)
}

func sortProblems(list []Problem) []Problem {
	slices.SortFunc(list, Problem.compare)
	return slices.Compact(list)
}

// Model is the whole model. It costs time and memory in proportion to the model's size, sets' members included; everything but the members is
// shared with the engine.
func (e *Engine) Model() Model {
	m := Model{
		Endpoints: map[EndpointKey]*Endpoint{}, Lists: map[ListID]*List{}, Policies: map[PolicyID]*Policy{},
		Sets: map[SetID]*Set{}, Problems: e.allProblems(),
	}
	for _, l := range e.endpoints {
		m.Endpoints[l.model.Key] = l.model
	}
	for id, l := range e.lists {
		m.Lists[id] = l.list
	}
	for id, s := range e.shared {
		m.Policies[id] = s.policy
	}
	for id, s := range e.sets {
		m.Sets[id] = s.set()
		m.Sets[id].Members = s.all()
	}
	return m
}
