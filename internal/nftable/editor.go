package nftable

// Editor changes a table and keeps account of what that comes to. It is for one goroutine.
//
// What is changed and changed back is no change: Take returns what differs, whatever led there.
type Editor struct {
	t        *Table
	chains   map[string]*Chain        // as they were at the last Take; nil for those that were not there
	sets     map[string]*Set          // likewise
	elems    map[string]map[Elem]bool // by set: whether they were in it
	counters map[string]bool          // whether they were there
}

// NewEditor returns an editor of an empty table.
func NewEditor(name string) *Editor {
	e := &Editor{t: NewTable(name)}
	e.forget()
	return e
}

func (e *Editor) forget() {
	e.chains, e.sets = map[string]*Chain{}, map[string]*Set{}
	e.elems, e.counters = map[string]map[Elem]bool{}, map[string]bool{}
}

// Table returns the table as it stands. It is the editor's own: the next change changes it, nobody else may.
func (e *Editor) Table() *Table { return e.t }

// PutChain adds a chain or replaces the one of its name.
func (e *Editor) PutChain(c *Chain) {
	e.noteChain(c.Name)
	e.t.Chains[c.Name] = c
}

// DropChain removes a chain.
func (e *Editor) DropChain(name string) {
	e.noteChain(name)
	delete(e.t.Chains, name)
}

func (e *Editor) noteChain(name string) {
	if _, noted := e.chains[name]; !noted {
		e.chains[name] = e.t.Chains[name]
	}
}

// PutSet adds a set, whose elements are the editor's from then on. One of its name that is there gets these elements. If it is of another
// kind, what Take returns next builds the whole table anew, for a set's kind cannot be changed: use another name.
func (e *Editor) PutSet(s *Set) {
	old, ok := e.t.Sets[s.Name]
	if !ok || !old.Alike(s) {
		e.noteSet(s.Name)
		e.t.Sets[s.Name] = s
		return
	}
	for _, el := range missing(old.Elems, s.Elems) {
		e.DropElem(s.Name, el)
	}
	for _, el := range missing(s.Elems, old.Elems) {
		e.PutElem(s.Name, el)
	}
}

// DropSet removes a set or map.
func (e *Editor) DropSet(name string) {
	e.noteSet(name)
	delete(e.t.Sets, name)
}

func (e *Editor) noteSet(name string) {
	if _, noted := e.sets[name]; noted {
		return
	}
	old := e.t.Sets[name]
	if old != nil && len(e.elems[name]) > 0 { // as it was, before elements were changed
		was := *old
		was.Elems = make(map[Elem]struct{}, len(old.Elems))
		for el := range old.Elems {
			was.Elems[el] = struct{}{}
		}
		for el, present := range e.elems[name] {
			delete(was.Elems, el)
			if present {
				was.Elems[el] = struct{}{}
			}
		}
		old = &was
	}
	delete(e.elems, name)
	e.sets[name] = old
}

// PutElem adds an element to a set that is there.
func (e *Editor) PutElem(set string, el Elem) {
	s := e.t.Sets[set]
	if s == nil {
		return
	}
	e.noteElem(s, el)
	s.Elems[el] = struct{}{}
}

// DropElem removes an element from a set.
func (e *Editor) DropElem(set string, el Elem) {
	s := e.t.Sets[set]
	if s == nil {
		return
	}
	e.noteElem(s, el)
	delete(s.Elems, el)
}

func (e *Editor) noteElem(s *Set, el Elem) {
	if _, noted := e.sets[s.Name]; noted {
		return // the set is new, or will be compared as a whole
	}
	m := e.elems[s.Name]
	if m == nil {
		m = map[Elem]bool{}
		e.elems[s.Name] = m
	}
	if _, noted := m[el]; !noted {
		_, m[el] = s.Elems[el]
	}
}

// PutCounter adds a counter.
func (e *Editor) PutCounter(name string) {
	e.noteCounter(name)
	e.t.Counters[name] = struct{}{}
}

// DropCounter removes a counter.
func (e *Editor) DropCounter(name string) {
	e.noteCounter(name)
	delete(e.t.Counters, name)
}

func (e *Editor) noteCounter(name string) {
	if _, noted := e.counters[name]; !noted {
		_, e.counters[name] = e.t.Counters[name]
	}
}

// Take returns what has changed since the last call, in the order of names.
func (e *Editor) Take() Delta {
	var d Delta
	for name, had := range e.counters {
		switch _, has := e.t.Counters[name]; {
		case has && !had:
			d.AddCounters = append(d.AddCounters, name)
		case had && !has:
			d.DelCounters = append(d.DelCounters, name)
		}
	}
	e.takeChains(&d)
	e.takeSets(&d)
	if d.Whole {
		d = Build(e.t)
	}
	e.forget()
	d.sort()
	return d
}

func (e *Editor) takeChains(d *Delta) {
	for name, had := range e.chains {
		switch has := e.t.Chains[name]; {
		case had == nil && has != nil:
			d.AddChains = append(d.AddChains, has)
		case had != nil && has == nil:
			d.DelChains = append(d.DelChains, name)
		case had != nil && had.Base != has.Base:
			d.Whole = true
		case had != nil && !had.Equal(has):
			d.SetChains = append(d.SetChains, has)
		}
	}
}

func (e *Editor) takeSets(d *Delta) {
	for name, had := range e.sets {
		switch has := e.t.Sets[name]; {
		case had == nil && has != nil:
			d.AddSets = append(d.AddSets, has)
		case had != nil && has == nil:
			d.DelSets = append(d.DelSets, name)
		case had != nil && had.Alike(has):
			d.addElems(ElemDelta{Set: has, Add: missing(has.Elems, had.Elems), Del: missing(had.Elems, has.Elems)})
		case had != nil: // one name, two kinds: see PutSet
			d.Whole = true
		}
	}
	for name, noted := range e.elems {
		s := e.t.Sets[name]
		delta := ElemDelta{Set: s}
		for el, had := range noted {
			switch _, has := s.Elems[el]; {
			case has && !had:
				delta.Add = append(delta.Add, el)
			case had && !has:
				delta.Del = append(delta.Del, el)
			}
		}
		d.addElems(delta)
	}
}

func (d *Delta) addElems(e ElemDelta) {
	if len(e.Add)+len(e.Del) > 0 {
		d.Elems = append(d.Elems, e)
	}
}
