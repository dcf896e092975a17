package policy

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Engine keeps the model of one node while its inputs change. One caller at a time. It holds on to the objects that it is given.
//
// Everything with labels that stands for addresses is an item: endpoints of all nodes and network sets. What an item contributes to a set is
// not stored but found again from the object, before and after a change, so that an item that nobody asks for costs a pointer.
type Engine struct {
	node string

	items    []api.Object      // nil: free
	free     []uint32          // places in items that are free
	ids      map[string]uint32 // of items by etcd key
	profiles map[string]*profile
	policies map[string]*policy // by etcd key
	tiers    map[string]*api.Tier
	services map[string][]PortMember // by serviceKey

	endpoints map[uint32]*local   // of this node, by item
	selecting *registry[*policy]  // policies, to find those that select an endpoint
	resolving *registry[*set]     // sets, to find those that an item is in
	postings  *postings           // items, to find the members of a set
	sets      map[SetID]*set      // that compiled policies refer to
	shared    map[PolicyID]*share // compiled policies
	lists     map[ListID]*listing
	problems  map[string][]Problem // by etcd key of what they are about
	told      []Problem            // as of the last Apply

	before, after labelSet // working space
	changes       changes  // of the Apply in progress
}

// profile is a profile that is stored, or that an item names.
type profile struct {
	stored *api.Profile        // nil: it does not exist
	items  []uint32            // that have its labels, ascending
	users  map[uint32]struct{} // endpoints of this node that name it
	rules  directions          // while there are users
	from   *api.Profile        // what rules were compiled from
}

// policy is a policy as it is stored.
type policy struct {
	key      string
	source   *source
	home     home
	selected map[uint32]struct{} // endpoints of this node
	rules    directions
}

// directions are the two halves of a policy while somebody needs them; nil otherwise or where there is none.
type directions struct{ ingress, egress *compiled }

// local is an endpoint of this node.
type local struct {
	policies map[*policy]struct{} // that select it
	model    *Endpoint            // nil until the end of the first Apply
}

// share counts who has compiled one policy: two etcd keys may hold policies of one name, from before and after an upgrade.
type share struct {
	policy *Policy
	users  int
}

// listing counts the uses of a list by endpoints.
type listing struct {
	list  *List
	users int
}

// set is a set in use, and how many items stand for each of its members.
type set struct {
	want
	home    home
	users   int // compiled policies' directions that refer to it
	members map[member]uint32
}

// New is an engine for a node, which has no input yet. Its model is empty.
func New(node string) *Engine {
	return &Engine{
		node: node, ids: map[string]uint32{}, profiles: map[string]*profile{}, policies: map[string]*policy{},
		tiers: map[string]*api.Tier{}, services: map[string][]PortMember{}, endpoints: map[uint32]*local{},
		selecting: newRegistry[*policy](), resolving: newRegistry[*set](), postings: newPostings(),
		sets: map[SetID]*set{}, shared: map[PolicyID]*share{}, lists: map[ListID]*listing{}, problems: map[string][]Problem{},
	}
}

// Apply takes changes over and says how the model differs. The outcome depends only on the state of each key after all calls, not on how they
// were cut into calls. Unchanged objects cost little: passing everything again is right, too.
func (e *Engine) Apply(d Delta) Update {
	e.changes = newChanges()
	for _, class := range []class{tiers, profiles, policies, items} {
		for _, c := range d.Objects {
			if classOf(c) == class {
				e.take(class, c)
			}
		}
	}
	for _, s := range d.Services {
		e.takeService(s)
	}
	e.compileChanged()
	e.listChanged()
	return e.update()
}

// class groups the kinds by how they are taken over, in the order that saves most work when everything comes at once.
type class uint8

const (
	none class = iota
	tiers
	profiles
	policies
	items
)

// classOf finds the class of a change, by the key where the object is gone.
func classOf(c Change) class {
	switch c.Object.(type) {
	case *api.WorkloadEndpoint, *api.HostEndpoint, *api.NetworkSet, *api.GlobalNetworkSet:
		return items
	case *api.NetworkPolicy, *api.GlobalNetworkPolicy, *api.StagedNetworkPolicy, *api.StagedGlobalNetworkPolicy,
		*api.StagedKubernetesNetworkPolicy:
		return policies
	case *api.Profile:
		return profiles
	case *api.Tier:
		return tiers
	case nil:
		return classOfKey(c.Key)
	}
	return none
}

// Concerns reports whether what stands under an etcd key is of a kind that policy depends on.
func Concerns(key string) bool { return classOfKey(key) != none }

func classOfKey(key string) class {
	rest, ok := strings.CutPrefix(key, api.ResourcesRoot)
	if !ok {
		return none
	}
	plural, _, _ := strings.Cut(rest, "/")
	switch plural {
	case "workloadendpoints", "hostendpoints", "networksets", "globalnetworksets":
		return items
	case "networkpolicies", "globalnetworkpolicies", "stagednetworkpolicies", "stagedglobalnetworkpolicies",
		"stagedkubernetesnetworkpolicies":
		return policies
	case "profiles":
		return profiles
	case "tiers":
		return tiers
	}
	return none
}

func (e *Engine) take(of class, c Change) {
	switch of {
	case tiers:
		t, _ := c.Object.(*api.Tier)
		e.takeTier(strings.TrimPrefix(c.Key, (*api.Tier)(nil).KindOf().Prefix()), t)
	case profiles:
		p, _ := c.Object.(*api.Profile)
		e.takeProfile(strings.TrimPrefix(c.Key, (*api.Profile)(nil).KindOf().Prefix()), p)
	case policies:
		e.takePolicy(c.Key, c.Object)
	case items:
		e.takeItem(c.Key, c.Object)
	}
}

// takeTier notes a tier; every endpoint that a policy of it selects gets its lists anew.
func (e *Engine) takeTier(name string, t *api.Tier) {
	if t == nil {
		delete(e.tiers, name)
	} else {
		e.tiers[name] = t
	}
	for _, p := range e.policies {
		if p.source.tier != name {
			continue
		}
		e.changes.policies[p] = struct{}{}
		for id := range p.selected {
			e.changes.endpoints[id] = struct{}{}
		}
	}
}

func (e *Engine) tier(name string) tierInfo { return tierOf(name, e.tiers[name]) }

// takeProfile notes a profile, and the labels that items have from it.
func (e *Engine) takeProfile(name string, stored *api.Profile) {
	p := e.profile(name)
	was := p.stored
	if !maps.Equal(appliedBy(was), appliedBy(stored)) {
		for _, id := range p.items {
			p.stored = was
			e.before.fill(e.items[id], e.labelsOf)
			p.stored = stored
			e.after.fill(e.items[id], e.labelsOf)
			e.move(id, e.items[id], e.items[id])
		}
	}
	p.stored = stored
	e.changes.profiles[name] = struct{}{}
	e.dropProfile(name)
}

func appliedBy(p *api.Profile) map[string]string {
	if p == nil {
		return nil
	}
	return p.Spec.LabelsToApply
}

func (e *Engine) labelsOf(name string) map[string]string {
	if p := e.profiles[name]; p != nil {
		return appliedBy(p.stored)
	}
	return nil
}

func (e *Engine) profile(name string) *profile {
	p := e.profiles[name]
	if p == nil {
		p = &profile{}
		e.profiles[name] = p
	}
	return p
}

// dropProfile forgets a profile that is neither stored nor named.
func (e *Engine) dropProfile(name string) {
	if p := e.profiles[name]; p != nil && p.stored == nil && len(p.items) == 0 && len(p.users) == 0 && p.rules == (directions{}) {
		delete(e.profiles, name)
	}
}

// takePolicy notes a policy, and which endpoints of this node it selects.
func (e *Engine) takePolicy(key string, o api.Object) {
	old := e.policies[key]
	if old != nil {
		e.selecting.remove(old.home, old)
		delete(e.policies, key)
	}
	e.say(key, nil)
	fresh := e.readPolicy(key, o)
	if fresh != nil {
		e.policies[key] = fresh
		e.selecting.add(fresh.home, fresh)
		e.selectFor(fresh)
		e.changes.policies[fresh] = struct{}{}
	}
	if old == nil {
		return
	}
	for id := range old.selected {
		delete(e.endpoints[id].policies, old)
		e.changes.endpoints[id] = struct{}{}
	}
	old.selected = nil
	e.changes.policies[old] = struct{}{}
}

// readPolicy is nil if the policy does not count.
func (e *Engine) readPolicy(key string, o api.Object) *policy {
	if o == nil {
		return nil
	}
	s, err := read(o)
	if err != nil {
		e.say(key, []Problem{unreadable(o, err)})
		return nil
	}
	if s == nil {
		return nil
	}
	return &policy{key: key, source: s, home: homeOf(s.applies)}
}

// unreadable says that a policy does not say readably whom it selects.
func unreadable(o api.Object, err error) Problem {
	return Problem{nameOf(o), err.Error() + "; the policy is left out until it is corrected"}
}

// selectFor finds the endpoints of this node that a new policy selects.
func (e *Engine) selectFor(p *policy) {
	for id, l := range e.endpoints {
		e.after.fill(e.items[id], e.labelsOf)
		if p.source.concerns(kindOf(e.items[id])) && p.source.applies.Match(&e.after) {
			e.link(id, l, p)
		}
	}
}

func (e *Engine) link(id uint32, l *local, p *policy) {
	if p.selected == nil {
		p.selected = map[uint32]struct{}{}
	}
	p.selected[id], l.policies[p] = struct{}{}, struct{}{}
	e.changes.endpoints[id], e.changes.policies[p] = struct{}{}, struct{}{}
}

func (e *Engine) unlink(id uint32, l *local, p *policy) {
	delete(p.selected, id)
	delete(l.policies, p)
	e.changes.endpoints[id], e.changes.policies[p] = struct{}{}, struct{}{}
}

func kindOf(o api.Object) EndpointKind {
	if _, ok := o.(*api.HostEndpoint); ok {
		return Host
	}
	return Workload
}

// takeItem notes an endpoint or network set.
func (e *Engine) takeItem(key string, o api.Object) {
	id, known := e.ids[key]
	if !known && o == nil {
		return
	}
	if !known {
		id = e.place(key)
	}
	was := e.items[id]
	e.before.fill(was, e.labelsOf)
	e.inherit(id, was, o)
	e.after.fill(o, e.labelsOf)
	e.items[id] = o
	if isLocal(was, e.node) || isLocal(o, e.node) {
		e.takeLocal(id, was, o)
	}
	e.move(id, was, o)
	if e.endpoints[id] != nil && !isLocal(o, e.node) {
		e.dropLocal(id)
	}
	e.say(key, problemsOf(o, e.node))
	if o == nil {
		delete(e.ids, key)
		e.free = append(e.free, id)
	}
	if len(e.ids) == 0 {
		e.items, e.free = nil, nil
	}
}

// place is a free place for an item.
func (e *Engine) place(key string) uint32 {
	var id uint32
	if n := len(e.free); n > 0 {
		id, e.free = e.free[n-1], e.free[:n-1]
	} else {
		id = uint32(len(e.items))
		e.items = append(e.items, nil)
	}
	e.ids[key] = id
	return id
}

// inherit notes which profiles an item has its labels from. Most items keep theirs.
func (e *Engine) inherit(id uint32, was, is api.Object) {
	old, fresh := profilesOf(was), profilesOf(is)
	if slices.Equal(old, fresh) {
		return
	}
	for _, name := range fresh {
		p := e.profile(name)
		p.items = with(p.items, id)
	}
	for _, name := range old {
		if slices.Contains(fresh, name) {
			continue
		}
		if p := e.profiles[name]; p != nil {
			p.items = without(p.items, id)
			e.changes.profiles[name] = struct{}{}
		}
	}
}

// takeLocal notes what an endpoint of this node is by itself, and the profiles that it names.
func (e *Engine) takeLocal(id uint32, was, is api.Object) {
	var old, fresh []string
	if isLocal(was, e.node) {
		old = profilesOf(was)
	}
	if isLocal(is, e.node) {
		fresh = profilesOf(is)
		if e.endpoints[id] == nil {
			e.endpoints[id] = &local{policies: map[*policy]struct{}{}}
		}
	}
	for _, name := range old {
		if p := e.profiles[name]; p != nil {
			delete(p.users, id)
		}
		e.changes.profiles[name] = struct{}{}
	}
	for _, name := range fresh {
		p := e.profile(name)
		if p.users == nil {
			p.users = map[uint32]struct{}{}
		}
		p.users[id] = struct{}{}
		e.changes.profiles[name] = struct{}{}
	}
	e.changes.endpoints[id] = struct{}{}
}

// dropLocal forgets an endpoint that is not of this node any more; no policy selects it by now.
func (e *Engine) dropLocal(id uint32) {
	if m := e.endpoints[id].model; m != nil {
		e.changes.hadEndpoint(m.Key, m)
		e.releaseLists(m)
	}
	delete(e.endpoints, id)
	delete(e.changes.endpoints, id)
}

func isLocal(o api.Object, node string) bool {
	switch v := o.(type) {
	case *api.WorkloadEndpoint:
		return v.Spec.Node == node
	case *api.HostEndpoint:
		return v.Spec.Node == node
	}
	return false
}

// move does what follows from an item's change, whose labels are in e.before and e.after; nil is no item.
func (e *Engine) move(id uint32, was, is api.Object) {
	e.postings.move(id, &e.before, &e.after)
	if l := e.endpoints[id]; l != nil {
		e.reselect(id, l, is)
	}
	same := was == is // the labels alone changed
	if is != nil {
		e.resolving.candidates(&e.after, func(s *set) {
			if s.sel.Match(&e.after) && !(same && s.sel.Match(&e.before)) {
				s.contribute(is, func(m member) { e.add(s, m) })
			}
		})
	}
	if was != nil {
		e.resolving.candidates(&e.before, func(s *set) {
			if s.sel.Match(&e.before) && !(same && s.sel.Match(&e.after)) {
				s.contribute(was, func(m member) { e.subtract(s, m) })
			}
		})
	}
}

// reselect finds the policies that select an endpoint of this node, whose labels are in e.after.
func (e *Engine) reselect(id uint32, l *local, is api.Object) {
	matching := map[*policy]struct{}{}
	if isLocal(is, e.node) {
		e.selecting.candidates(&e.after, func(p *policy) {
			if p.source.concerns(kindOf(is)) && p.source.applies.Match(&e.after) {
				matching[p] = struct{}{}
			}
		})
	}
	for p := range matching {
		if _, had := l.policies[p]; !had {
			e.link(id, l, p)
		}
	}
	for p := range l.policies {
		if _, has := matching[p]; !has {
			e.unlink(id, l, p)
		}
	}
}

// takeService notes where a service is.
func (e *Engine) takeService(s Service) {
	key := serviceKey(s.Namespace, s.Name)
	was, is := e.services[key], cleanMembers(s.Members)
	delete(e.services, key)
	if len(is) > 0 {
		e.services[key] = is
	}
	for _, kind := range []SetKind{Addresses, Ports} {
		users := e.sets[wantService(kind, s.Namespace, s.Name).id]
		if users == nil {
			continue
		}
		for _, m := range is {
			e.add(users, serviceMember(kind, m))
		}
		for _, m := range was {
			e.subtract(users, serviceMember(kind, m))
		}
	}
}

// cleanMembers sorts the members of a service.
func cleanMembers(in []PortMember) []PortMember {
	var out []PortMember
	for _, m := range in {
		if m.Addr.IsValid() && m.Addr.Zone() == "" && hasPorts(m.Protocol) {
			out = append(out, PortMember{m.Addr.Unmap(), m.Protocol, m.Port})
		}
	}
	slices.SortFunc(out, PortMember.compare)
	return slices.Compact(out)
}

func serviceMember(kind SetKind, p PortMember) member {
	if kind == Addresses {
		return addrMember(p.Addr)
	}
	return portMember(p)
}

// labelled yields all items with their labels.
func (e *Engine) labelled() iter.Seq2[uint32, *labelSet] {
	return func(yield func(uint32, *labelSet) bool) {
		for id, o := range e.items {
			if o == nil {
				continue
			}
			e.after.fill(o, e.labelsOf)
			if !yield(uint32(id), &e.after) {
				return
			}
		}
	}
}

// say notes what is wrong with an object, under its key.
func (e *Engine) say(key string, problems []Problem) {
	if len(problems) == 0 && len(e.problems[key]) == 0 {
		return
	}
	e.changes.problems = e.changes.problems || !slices.Equal(e.problems[key], problems)
	delete(e.problems, key)
	if len(problems) > 0 {
		e.problems[key] = problems
	}
}
