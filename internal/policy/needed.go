package policy

import (
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
