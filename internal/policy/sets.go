package policy

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
