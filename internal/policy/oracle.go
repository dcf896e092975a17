package policy

import (
	"maps"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// Compute returns the model of a node by one pass over all inputs, of which the last of a key counts: what an Engine comes to that has been given
// them. It is the engine's oracle in tests, and for whoever wants one model of inputs that do not change. It keeps no index, and
// looks at every item for every set.
func Compute(node string, all Delta) Model {
	c := &computation{
		node: node, profiles: map[string]*api.Profile{}, tiers: map[string]*api.Tier{}, services: map[string][]PortMember{},
		wants: map[SetID]want{},
		out: Model{
			Endpoints: map[EndpointKey]*Endpoint{}, Lists: map[ListID]*List{}, Policies: map[PolicyID]*Policy{}, Sets: map[SetID]*Set{},
		},
	}
	c.gather(all)
	for _, o := range c.items {
		c.problems(problemsOf(o, node))
		if e := endpointOf(o, node); e != nil {
			c.endpoint(e, o)
		}
	}
	for _, p := range c.policies {
		if p.source.everywhere {
			c.policy(p)
		}
	}
	for _, w := range c.wants {
		c.out.Sets[w.id] = c.set(w)
	}
	c.out.Problems = sortProblems(c.out.Problems)
	return c.out
}

// computation is the working state of one Compute.
type computation struct {
	node     string
	items    []api.Object
	policies []ranked // sorted
	profiles map[string]*api.Profile
	tiers    map[string]*api.Tier
	services map[string][]PortMember
	wants    map[SetID]want
	out      Model
}

func (c *computation) gather(all Delta) {
	last := map[string]api.Object{}
	for _, change := range all.Objects {
		last[change.Key] = change.Object
	}
	for _, key := range slices.Sorted(maps.Keys(last)) {
		switch o := last[key].(type) {
		case nil:
		case *api.Tier:
			c.tiers[o.Metadata.Name] = o
		case *api.Profile:
			c.profiles[o.Metadata.Name] = o
		case *api.WorkloadEndpoint, *api.HostEndpoint, *api.NetworkSet, *api.GlobalNetworkSet:
			c.items = append(c.items, o)
		default:
			c.read(key, o)
		}
	}
	for i := range c.policies {
		c.policies[i].tier = tierOf(c.policies[i].source.tier, c.tiers[c.policies[i].source.tier])
	}
	slices.SortFunc(c.policies, ranked.compare)
	for _, s := range all.Services {
		c.services[serviceKey(s.Namespace, s.Name)] = cleanMembers(s.Members)
	}
}

func (c *computation) read(key string, o api.Object) {
	s, err := read(o)
	if err != nil {
		c.problems([]Problem{unreadable(o, err)})
		return
	}
	if s != nil {
		c.policies = append(c.policies, ranked{policy: &policy{key: key, source: s}})
	}
}

func (c *computation) problems(list []Problem) { c.out.Problems = append(c.out.Problems, list...) }

// labels are all labels of an item in one map.
func (c *computation) labels(o api.Object) selector.Map {
	out := selector.Map{}
	names := slices.Clone(profilesOf(o))
	slices.Reverse(names)
	for _, name := range names {
		if p := c.profiles[name]; p != nil {
			maps.Copy(out, p.Spec.LabelsToApply)
		}
	}
	own := labelSet{namespace: o.Meta().Namespace}
	for key, value := range o.Meta().Labels {
		if !own.claims(key) {
			out[key] = value
		}
	}
	if ns := o.Meta().Namespace; ns != "" {
		out[api.LabelNamespace] = ns
	}
	if w, ok := o.(*api.WorkloadEndpoint); ok && w.Spec.ServiceAccountName != "" {
		out[labelAccount] = w.Spec.ServiceAccountName
	}
	return out
}

func (c *computation) endpoint(e *Endpoint, o api.Object) {
	labels := c.labels(o)
	var selecting []ranked
	for _, p := range c.policies {
		if p.source.concerns(e.Key.Kind) && p.source.applies.Match(labels) {
			selecting = append(selecting, p)
		}
	}
	for _, p := range selecting {
		c.policy(p)
	}
	profiles := profilesOf(o)
	e.Ingress = c.list(normal, api.Ingress, selecting, profiles)
	e.Egress = c.list(normal, api.Egress, selecting, profiles)
	if e.Key.Kind == Host {
		e.ForwardIngress = c.list(forward, api.Ingress, selecting, nil)
		e.ForwardEgress = c.list(forward, api.Egress, selecting, nil)
		e.UntrackedIngress = c.list(untracked, api.Ingress, selecting, nil)
		e.UntrackedEgress = c.list(untracked, api.Egress, selecting, nil)
		e.PreDNAT = c.list(preDNAT, api.Ingress, selecting, nil)
	}
	c.out.Endpoints[e.Key] = e
}

// policy adds a policy that is needed.
func (c *computation) policy(p ranked) {
	for _, d := range []api.PolicyType{api.Ingress, api.Egress} {
		c.compiled(p.source, d)
	}
	if p.tier.missing {
		c.problems([]Problem{p.source.missingTier()})
	}
}

// compiled adds one direction of a policy; "" if it has none.
func (c *computation) compiled(s *source, d api.PolicyType) PolicyID {
	rules := s.rules(d)
	if rules == nil {
		return ""
	}
	got := compile(s, d, *rules)
	c.out.Policies[got.policy.ID] = got.policy
	for _, w := range got.wants {
		c.wants[w.id] = w
	}
	c.problems(got.problems)
	return got.policy.ID
}

func (c *computation) profile(name string, d api.PolicyType) PolicyID {
	p := c.profiles[name]
	if p == nil && name != api.DefaultAllowProfile {
		c.problems([]Problem{missingProfile(name)})
	}
	return c.compiled(profileSource(name, p), d)
}

func (c *computation) list(u use, d api.PolicyType, selecting []ranked, profiles []string) ListID {
	l := List{Direction: d, End: api.Pass}
	for _, p := range selecting {
		id := c.compiled(p.source, d)
		if id == "" || !u.takes(p.source) {
			continue
		}
		if n := len(l.Tiers); n == 0 || l.Tiers[n-1].Tier != p.source.tier {
			l.Tiers = append(l.Tiers, TierPart{Tier: p.source.tier, End: api.Pass, EndID: EndOfTier(d, p.source.tier)})
		}
		part := &l.Tiers[len(l.Tiers)-1]
		if len(part.Policies) == 0 || part.Policies[len(part.Policies)-1] != id {
			part.Policies = append(part.Policies, id)
		}
		if (u == normal || u == forward) && !p.source.staged {
			part.End = p.tier.action
		}
	}
	if u != normal && len(l.Tiers) == 0 {
		return ""
	}
	if u == normal {
		l.End, l.EndID = api.Deny, EndOfList(d)
		for _, name := range profiles {
			l.Profiles = append(l.Profiles, c.profile(name, d))
		}
	}
	l.ID = listID(&l)
	c.out.Lists[l.ID] = &l
	return l.ID
}

func (c *computation) set(w want) *Set {
	members := map[member]struct{}{}
	if w.service != "" {
		for _, m := range c.services[w.service] {
			members[serviceMember(w.kind, m)] = struct{}{}
		}
	} else {
		for _, o := range c.items {
			if w.sel.Match(c.labels(o)) {
				w.contribute(o, func(m member) { members[m] = struct{}{} })
			}
		}
	}
	s := w.set()
	for m := range members {
		s.collect(m)
	}
	s.sort()
	return s
}
