package ruleset

import (
	"fmt"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// snaplen is how many bytes of a packet are reported: its headers, and little of what it carries.
const snaplen = 128

// policyState is a policy that is laid out.
type policyState struct {
	policy          *policy.Policy
	accepts, passes bool // some rule of it does
	uses            uses
}

// uses names what a chain refers to and shares with others.
type uses struct {
	counted  []policy.RuleID // by their counters
	denied   []policy.RuleID // by their denials
	constant []*nftable.Set
}

func policyChain(p *policy.Policy) string {
	if p.Direction == api.Ingress {
		return "pi-" + string(p.ID)
	}
	return "pe-" + string(p.ID)
}

func (l *Layout) putPolicy(p *policy.Policy) {
	if l.policies[p.ID] != nil {
		return // what stands under a name never changes
	}
	st := &policyState{policy: p}
	for _, r := range p.Rules {
		st.accepts = st.accepts || r.Action == api.Allow && !p.Staged
		st.passes = st.passes || r.Action == api.Pass && !p.Staged
		for _, id := range r.Sets() {
			if s := l.sets[id]; s != nil {
				s.users[p.ID] = true
			}
		}
	}
	l.policies[p.ID] = st
	l.render(st)
}

// render writes a policy's chain.
func (l *Layout) render(st *policyState) {
	p := st.policy
	var rules []nftable.Rule
	var u uses
	for _, r := range p.Rules {
		u.counted = append(u.counted, r.ID)
		if r.Action == api.Deny && !p.Staged {
			u.denied = append(u.denied, r.ID)
		}
		note := fmt.Sprintf("%s rule %d", p, r.Index)
		for _, cond := range l.conditions(r, &u) {
			rules = append(rules, nftable.Rule{Stmts: append(cond, l.action(p, r)...), Note: note})
		}
	}
	l.acquire(u)
	l.ed.PutChain(nftable.NewChain(policyChain(p), nftable.Base{}, rules...))
	l.release(st.uses)
	st.uses = u
}

func (l *Layout) dropPolicy(id policy.PolicyID) {
	st := l.policies[id]
	if st == nil {
		return
	}
	delete(l.policies, id)
	l.ed.DropChain(policyChain(st.policy))
	l.release(st.uses)
	for _, r := range st.policy.Rules {
		for _, set := range r.Sets() {
			if s := l.sets[set]; s != nil {
				delete(s.users, id)
			}
		}
	}
}

// action returns what a rule does with a packet that meets its conditions.
func (l *Layout) action(p *policy.Policy, r policy.Rule) []nftable.Stmt {
	count, leave := nftable.Count{Name: counter(r.ID)}, nftable.Verdict{Kind: nftable.Return}
	switch {
	case r.Action == api.Log && p.Staged:
		return []nftable.Stmt{count}
	case r.Action == api.Log:
		return l.logging(count, "L:"+string(r.ID))
	case p.Staged:
		return []nftable.Stmt{count, leave}
	case r.Action == api.Allow:
		return []nftable.Stmt{count, nftable.SetMark{Set: l.settings.accepting()}, leave}
	case r.Action == api.Pass:
		return []nftable.Stmt{count, nftable.SetMark{Set: l.settings.pass()}, leave}
	default:
		return []nftable.Stmt{nftable.Verdict{Kind: nftable.Goto, Chain: denial(r.ID)}}
	}
}

func (l *Layout) logging(count nftable.Stmt, prefix string) []nftable.Stmt {
	out := []nftable.Stmt{count}
	if rate := l.settings.logging(); rate.Rate > 0 {
		out = append(out, rate)
	}
	out = append(out, nftable.Log{Prefix: prefix, Group: l.settings.LogGroup, Snaplen: snaplen})
	if l.settings.Syslog {
		out = append(out, nftable.Syslog{Prefix: l.settings.LogPrefix, Level: 5})
	}
	return out
}

func counter(id policy.RuleID) string { return "r-" + string(id) }

func denial(id policy.RuleID) string { return "d-" + string(id) }

func (l *Layout) acquire(u uses) {
	for _, id := range u.counted {
		if l.counted.take(string(id)) {
			l.ed.PutCounter(counter(id))
		}
	}
	for _, id := range u.denied {
		if l.denied.take(string(id)) {
			l.putDenial(id)
		}
	}
	for _, s := range u.constant {
		if l.constant.take(s.Name) {
			l.ed.PutSet(s)
		}
	}
}

func (l *Layout) release(u uses) {
	for _, id := range u.counted {
		if l.counted.release(string(id)) {
			l.ed.DropCounter(counter(id))
		}
	}
	for _, id := range u.denied {
		if l.denied.release(string(id)) {
			l.ed.DropChain(denial(id))
		}
	}
	for _, s := range u.constant {
		if l.constant.release(s.Name) {
			l.ed.DropSet(s.Name)
		}
	}
}

// putDenial writes the chain of a rule that denies: it reports, as often as it may, and drops.
func (l *Layout) putDenial(id policy.RuleID) {
	var end nftable.Stmt = nftable.Verdict{Kind: nftable.Drop}
	if l.settings.Reject {
		end = nftable.Reject{}
	}
	l.ed.PutChain(nftable.NewChain(denial(id), nftable.Base{}, l.denying("D:"+string(id), counter(id), end)...))
}

func (l *Layout) denying(prefix, counter string, end nftable.Stmt) []nftable.Rule {
	var report []nftable.Stmt
	if l.settings.LogRate > 0 {
		report = append(report, nftable.Limit{Rate: l.settings.LogRate, Burst: l.settings.LogRate})
	}
	report = append(report, nftable.Log{Prefix: prefix, Group: l.settings.LogGroup, Snaplen: snaplen})
	return []nftable.Rule{{Stmts: report}, {Stmts: []nftable.Stmt{nftable.Count{Name: counter}, end}}}
}
