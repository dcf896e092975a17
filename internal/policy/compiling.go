package policy

import (
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// compileChanged compiles the policies and profiles that are needed and were not, or that are different now, and lets go of the others. What is new is
// taken hold of before anything is let go of, so that a set that both versions of a policy refer to keeps its members.
func (e *Engine) compileChanged() {
	var old []directions
	for p := range e.changes.policies {
		stored := e.policies[p.key] == p
		needed := stored && (len(p.selected) > 0 || p.source.everywhere)
		switch compiled := p.rules != (directions{}); {
		case needed && !compiled:
			p.rules = e.compile(p.source)
		case !needed && compiled:
			old = append(old, p.rules)
			p.rules = directions{}
		}
		if stored {
			e.sayOf(p, needed)
		}
	}
	for name := range e.changes.profiles {
		if was := e.compileProfile(name); was != (directions{}) {
			old = append(old, was)
		}
	}
	for _, d := range old {
		e.let(d)
	}
}

// sayOf notes what is wrong with a policy that can be read, while it is needed.
func (e *Engine) sayOf(p *policy, needed bool) {
	var out []Problem
	if needed {
		out = p.rules.problems()
		if t := e.tier(p.source.tier); t.missing {
			out = append(out, p.source.missingTier())
		}
	}
	e.say(p.key, out)
}

// compileProfile brings a profile up to date, and returns what it was compiled to before if that is not needed any more.
func (e *Engine) compileProfile(name string) (was directions) {
	p := e.profiles[name]
	if p == nil {
		return was
	}
	key := (*api.Profile)(nil).KindOf().Key("", name)
	compiled := p.rules != (directions{})
	switch {
	case len(p.users) == 0:
		was, p.rules, p.from = p.rules, directions{}, nil
		e.say(key, nil)
	case !compiled || p.from != p.stored:
		was, p.rules, p.from = p.rules, e.compile(profileSource(name, p.stored)), p.stored
		for id := range p.users {
			e.changes.endpoints[id] = struct{}{}
		}
		out := p.rules.problems()
		if p.stored == nil && name != api.DefaultAllowProfile {
			out = append(out, missingProfile(name))
		}
		e.say(key, out)
	}
	e.dropProfile(name)
	return was
}

// compile compiles both directions and takes hold of what they consist of.
func (e *Engine) compile(s *source) (d directions) {
	if s.ingress != nil {
		d.ingress = compile(s, api.Ingress, *s.ingress)
	}
	if s.egress != nil {
		d.egress = compile(s, api.Egress, *s.egress)
	}
	for _, c := range d.both() {
		id := c.policy.ID
		e.changes.hadPolicy(id, e.shared[id] != nil)
		if e.shared[id] == nil {
			e.shared[id] = &share{policy: c.policy}
		}
		e.shared[id].users++
		for i := range c.wants {
			e.use(c.wants[i])
		}
	}
	return d
}

// let lets go of a compiled policy.
func (e *Engine) let(d directions) {
	for _, c := range d.both() {
		id := c.policy.ID
		e.changes.hadPolicy(id, true)
		if s := e.shared[id]; s.users > 1 {
			s.users--
		} else {
			delete(e.shared, id)
		}
		for i := range c.wants {
			e.unuse(c.wants[i].id)
		}
	}
}

func (d directions) both() (out []*compiled) {
	if d.ingress != nil {
		out = append(out, d.ingress)
	}
	if d.egress != nil {
		out = append(out, d.egress)
	}
	return out
}

func (d directions) of(t api.PolicyType) *compiled {
	if t == api.Ingress {
		return d.ingress
	}
	return d.egress
}

func (d directions) problems() (out []Problem) {
	for _, c := range d.both() {
		out = append(out, c.problems...)
	}
	return out
}

// use makes a set have members, or notes one more user.
func (e *Engine) use(w want) {
	if s := e.sets[w.id]; s != nil {
		s.users++
		return
	}
	s := &set{want: w, users: 1, members: map[member]uint32{}}
	e.sets[w.id] = s
	e.changes.freshSets[w.id] = struct{}{}
	if w.service != "" {
		for _, m := range e.services[w.service] {
			s.members[serviceMember(w.kind, m)]++
		}
		s.home = home{never: true}
		return
	}
	s.home = homeOf(w.sel)
	e.resolving.add(s.home, s)
	e.postings.need(s.home, e.labelled())
	e.populate(s)
}

// populate finds all members of a new set.
func (e *Engine) populate(s *set) {
	count := func(m member) { s.members[m]++ }
	ids, some := e.postings.candidates(s.home)
	if !some {
		for id, l := range e.labelled() {
			if s.sel.Match(l) {
				s.contribute(e.items[id], count)
			}
		}
		return
	}
	for id := range ids {
		e.after.fill(e.items[id], e.labelsOf)
		if s.sel.Match(&e.after) {
			s.contribute(e.items[id], count)
		}
	}
}

func (e *Engine) unuse(id SetID) {
	s := e.sets[id]
	if s.users > 1 {
		s.users--
		return
	}
	delete(e.sets, id)
	e.resolving.remove(s.home, s)
	e.postings.release(s.home)
	delete(e.changes.members, s)
	if _, fresh := e.changes.freshSets[id]; fresh {
		delete(e.changes.freshSets, id)
		return
	}
	e.changes.goneSets[id] = struct{}{}
}

// add notes that one item more stands for a member.
func (e *Engine) add(s *set, m member) {
	e.changes.had(s, m)
	s.members[m]++
}

// subtract notes that one item less stands for a member.
func (e *Engine) subtract(s *set, m member) {
	e.changes.had(s, m)
	if s.members[m] > 1 {
		s.members[m]--
		return
	}
	delete(s.members, m)
}

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
