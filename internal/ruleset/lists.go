package ruleset

import (
	"fmt"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// listState is a list that is laid out.
type listState struct {
	list   *policy.List
	chains []string
	uses   uses
}

func tierChain(list *policy.List, tier int) string {
	prefix := "ge"
	if list.Direction == api.Ingress {
		prefix = "gi"
	}
	return fmt.Sprintf("%s-%s-t%d", prefix, list.ID, tier)
}

// putList writes a list's chains.
func (l *Layout) putList(list *policy.List) {
	w := listWriter{l: l, list: list}
	w.begin(0)
	w.write()
	st := l.lists[list.ID]
	if st == nil {
		st = &listState{list: list}
		l.lists[list.ID] = st
	}
	l.acquire(w.uses)
	l.release(st.uses)
	st.uses = w.uses
	st.chains = st.chains[:0]
	for i, name := range w.names {
		st.chains = append(st.chains, name)
		l.ed.PutChain(nftable.NewChain(name, nftable.Base{}, w.rules[i]...))
	}
}

func (l *Layout) dropList(id policy.ListID) {
	st := l.lists[id]
	if st == nil {
		return
	}
	delete(l.lists, id)
	for _, name := range st.chains {
		l.ed.DropChain(name)
	}
	l.release(st.uses)
}

// listWriter writes the chains of a list. Who enters the first has cleared the marks. Whoever returns from them has been accepted if
// the mark says so; else nothing has decided.
type listWriter struct {
	l     *Layout
	list  *policy.List
	names []string
	rules [][]nftable.Rule // of each chain
	uses  uses
}

// begin begins the chain of a tier. Only where a Pass leads is one needed, and so the mark of it is cleared.
func (w *listWriter) begin(tier int) {
	w.names = append(w.names, tierChain(w.list, tier))
	w.rules = append(w.rules, nil)
	if tier > 0 {
		w.add("", nftable.SetMark{Clear: w.l.settings.pass()})
	}
}

func (w *listWriter) add(note string, stmts ...nftable.Stmt) {
	last := len(w.rules) - 1
	w.rules[last] = append(w.rules[last], nftable.Rule{Stmts: stmts, Note: note})
}

func (w *listWriter) write() {
	for i, tier := range w.list.Tiers {
		next := nftable.Verdict{Kind: nftable.Goto, Chain: tierChain(w.list, i+1)}
		passes := w.ask(tier.Policies, next)
		if tier.End == api.Deny {
			w.deny(tier.EndID, "end of tier "+tier.Tier)
		}
		switch {
		case passes && tier.End == api.Deny:
			w.begin(i + 1)
		case passes:
			w.add("", next)
			w.begin(i + 1)
		case tier.End == api.Deny:
			return // nothing leads further
		}
	}
	if w.list.End == api.Deny {
		w.ask(w.list.Profiles, nil) // a profile's Pass goes on with the next one, as does what it does not know
		w.deny(w.list.EndID, "no profile matched")
	}
}

// ask asks policies in order and leaves the list where one has accepted. Where one passes, next is done, if there is a next; passes tells
// whether one may.
func (w *listWriter) ask(ids []policy.PolicyID, next nftable.Stmt) (passes bool) {
	accept, pass := w.l.settings.accept(), w.l.settings.pass()
	for _, id := range ids {
		st := w.l.policies[id]
		if st == nil || len(st.policy.Rules) == 0 {
			continue
		}
		w.add(st.policy.String(), nftable.Verdict{Kind: nftable.Jump, Chain: policyChain(st.policy)})
		if st.accepts {
			w.add("", nftable.Mark{Mask: accept, Value: accept}, nftable.Verdict{Kind: nftable.Return})
		}
		if st.passes && next != nil {
			w.add("", nftable.Mark{Mask: pass, Value: pass}, next)
			passes = true
		}
	}
	return passes
}

func (w *listWriter) deny(id policy.RuleID, note string) {
	w.uses.counted = append(w.uses.counted, id)
	w.uses.denied = append(w.uses.denied, id)
	w.add(note, nftable.Verdict{Kind: nftable.Goto, Chain: denial(id)})
}
