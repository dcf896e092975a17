package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// use is what a list is for.
type use uint8

const (
	normal use = iota
	forward
	untracked
	preDNAT
)

// takes reports whether a policy is asked in lists of that use; the policy concerns the endpoint.
func (u use) takes(s *source) bool {
	switch u {
	case normal:
		return !s.untracked && !s.preDNAT
	case forward:
		return !s.untracked && !s.preDNAT && s.forward
	case untracked:
		return s.untracked
	case preDNAT:
		return s.preDNAT
	}
	return false
}

// ends reports whether what a tier's policies do not decide falls to the tier's action.
func (u use) ends() bool { return u == normal || u == forward }

// ranked is a policy of an endpoint with its tier, to be sorted.
type ranked struct {
	*policy
	tier tierInfo
}

func (r ranked) compare(o ranked) int {
	return cmp.Or(r.tier.compare(o.tier), r.source.compare(o.source), strings.Compare(r.key, o.key))
}

// listChanged makes the lists of endpoints that something changed for.
func (e *Engine) listChanged() {
	for id := range e.changes.endpoints {
		l := e.endpoints[id]
		fresh := endpointOf(e.items[id], e.node)
		e.list(fresh, profilesOf(e.items[id]), e.rank(l))
		if was := l.model; was != nil {
			e.changes.hadEndpoint(was.Key, was)
			e.releaseLists(was)
		}
		e.changes.hadEndpoint(fresh.Key, nil)
		l.model = fresh
	}
}

// rank sorts the policies that select an endpoint.
func (e *Engine) rank(l *local) []ranked {
	out := make([]ranked, 0, len(l.policies))
	for p := range l.policies {
		out = append(out, ranked{p, e.tier(p.source.tier)})
	}
	slices.SortFunc(out, ranked.compare)
	return out
}

// list gives an endpoint its lists.
func (e *Engine) list(to *Endpoint, profiles []string, policies []ranked) {
	to.Ingress = e.hold(e.build(normal, api.Ingress, profiles, policies))
	to.Egress = e.hold(e.build(normal, api.Egress, profiles, policies))
	if to.Key.Kind != Host {
		return
	}
	to.ForwardIngress = e.hold(e.build(forward, api.Ingress, nil, policies))
	to.ForwardEgress = e.hold(e.build(forward, api.Egress, nil, policies))
	to.UntrackedIngress = e.hold(e.build(untracked, api.Ingress, nil, policies))
	to.UntrackedEgress = e.hold(e.build(untracked, api.Egress, nil, policies))
	to.PreDNAT = e.hold(e.build(preDNAT, api.Ingress, nil, policies))
}

// build makes a list; nil if nobody says anything.
func (e *Engine) build(u use, d api.PolicyType, profiles []string, policies []ranked) *List {
	l := &List{Direction: d, End: api.Pass}
	for _, p := range policies {
		if rules := p.rules.of(d); rules != nil && u.takes(p.source) {
			l.append(p, rules.policy.ID, u.ends())
		}
	}
	if u == normal {
		l.End, l.EndID = api.Deny, EndOfList(d)
		for _, name := range profiles {
			l.Profiles = append(l.Profiles, e.profiles[name].rules.of(d).policy.ID)
		}
	} else if len(l.Tiers) == 0 {
		return nil
	}
	l.ID = listID(l)
	return l
}

// append adds the next policy.
func (l *List) append(p ranked, id PolicyID, ends bool) {
	last := len(l.Tiers) - 1
	if last < 0 || l.Tiers[last].Tier != p.tier.name {
		l.Tiers = append(l.Tiers, TierPart{Tier: p.tier.name, End: api.Pass, EndID: EndOfTier(l.Direction, p.tier.name)})
		last++
	}
	t := &l.Tiers[last]
	if n := len(t.Policies); n == 0 || t.Policies[n-1] != id {
		t.Policies = append(t.Policies, id)
	}
	if ends && !p.source.staged {
		t.End = p.tier.action
	}
}

// hold takes hold of a list, which may be nil.
func (e *Engine) hold(l *List) ListID {
	if l == nil {
		return ""
	}
	held := e.lists[l.ID]
	e.changes.hadList(l.ID, held != nil)
	if held == nil {
		held = &listing{list: l}
		e.lists[l.ID] = held
	}
	held.users++
	return l.ID
}

func (e *Engine) releaseLists(of *Endpoint) {
	for _, id := range of.lists() {
		held := e.lists[id]
		if held == nil {
			continue
		}
		e.changes.hadList(id, true)
		if held.users--; held.users == 0 {
			delete(e.lists, id)
		}
	}
}
