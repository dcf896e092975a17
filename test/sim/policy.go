package sim

import (
	"context"
	"fmt"
	"strings"

	"github.com/muslin-cni/muslin/internal/agent"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// guarded tells whether policy is kept in force on a host: on those that have a real feed, since it goes by what a feed says that has changed.
func (n *node) guarded() bool { return n.watches && len(n.w.nodes) <= keepPlans }

// rules are the kernel's, unless the world is wrong on purpose.
func (n *node) rules() nft.Rules {
	if spoil := n.w.cfg.Spoil.Rules; spoil != nil {
		return spoil(n.kernel.Rules())
	}
	return n.kernel.Rules()
}

// policySettings are what the table of policy depends on besides policy.
func (n *node) policySettings(snap feed.Snapshot, t plan.Tunnels) ruleset.Settings {
	return ruleset.Settings{
		Prefixes: []string{kernel.WorkloadPrefix}, MarkMask: 0xf0000, ToHost: ruleset.ReturnToHost, LogGroup: 1, LogRate: 10,
		VXLAN: t.VXLAN, VXLAN6: t.VXLAN6, IPIP: t.IPIP, VXLANPort: n.settings().VXLANPort, VXLANPeers: t.VXLANPeers, IPIPPeers: t.IPIPPeers,
		PodConnections: 1000, Pools: agent.Pooled(snap),
	}
}

// How many there are at the most of each.
const (
	policiesMost = 5
	setsMost     = 3
)

// roles are values of the label that pods and sets of networks have.
func roles() []string { return []string{"web", "database", "client"} }

// labels are those of a pod.
func (p *pod) labels() map[string]string {
	return map[string]string{"role": roles()[(p.slot+p.gen)%len(roles())]}
}

// changePolicy writes or deletes a policy, or a set of networks that policies select.
func (w *World) changePolicy(*node) bool {
	if w.cfg.Nodes > keepPlans {
		return false
	}
	keep := w.chance(700)
	if w.chance(600) {
		p := w.newPolicy()
		put(w, api.KeyOf(p), p, keep)
	} else {
		s := w.newNetworks()
		put(w, api.KeyOf(s), s, keep)
	}
	return true
}

// put writes an object as an operator does, or deletes it.
func put[T api.Value](w *World, key string, o *T, keep bool) {
	c := w.admin.client()
	w.spawn(w.life, w.admin, func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, commandTime)
		defer cancel()
		if keep {
			_, _ = store.Mutate(ctx, c, key, func(v *T, _ bool) (bool, error) {
				*v = *o
				return true, nil
			})
		} else if is, err := store.Get[T](ctx, c, key); err == nil {
			_ = remove(ctx, c, key, is.Rev)
		}
		return nil // an operator who fails tries again, when it is drawn
	})
	w.still()
}

// newPolicy draws a policy.
func (w *World) newPolicy() *api.GlobalNetworkPolicy {
	role := func() string { return fmt.Sprintf("role == '%s'", roles()[w.rnd.IntN(len(roles()))]) }
	entity := func() (e api.EntityRule) {
		switch w.rnd.IntN(4) {
		case 0:
			e.Selector = role()
		case 1:
			e.Selector, e.NotSelector = "all()", role()
		case 2:
			e.Nets = []string{fmt.Sprintf("198.51.%d.0/24", w.rnd.IntN(4))}
		}
		return e
	}
	rules := func() (out []api.Rule) {
		for range w.rnd.IntN(3) {
			out = append(out, api.Rule{Action: []api.Action{api.Allow, api.Deny, api.Pass}[w.rnd.IntN(3)], Source: entity(), Destination: entity()})
		}
		return out
	}
	p := &api.GlobalNetworkPolicy{}
	p.Metadata.Name = fmt.Sprintf("policy-%d", w.rnd.IntN(policiesMost))
	order := float64(w.rnd.IntN(3))
	p.Spec.Order, p.Spec.Selector, p.Spec.Ingress, p.Spec.Egress = &order, []string{"all()", role(), "has(nothing)"}[w.rnd.IntN(3)], rules(), rules()
	p.Spec.Types = []api.PolicyType{api.Ingress, api.Egress}
	p.Default()
	api.Created(p, w.uuids("operator")(), w.now())
	return p
}

// newNetworks draws a set of networks.
func (w *World) newNetworks() *api.GlobalNetworkSet {
	s := &api.GlobalNetworkSet{}
	s.Metadata.Name = fmt.Sprintf("networks-%d", w.rnd.IntN(setsMost))
	s.Metadata.Labels = map[string]string{"role": roles()[w.rnd.IntN(len(roles()))]}
	for range w.rnd.IntN(4) {
		s.Spec.Nets = append(s.Spec.Nets, fmt.Sprintf("203.0.%d.%d/%d", w.rnd.IntN(3), 16*w.rnd.IntN(16), 28+4*w.rnd.IntN(2)))
	}
	api.Created(s, w.uuids("operator")(), w.now())
	return s
}

// changeRules takes away, as another program would, what leads pods' packets to their policies. No event tells of it here: the next refresh finds it, which comes soon.
func (w *World) changeRules(n *node) bool {
	if !n.guarded() || n.agent == nil {
		return false
	}
	n.kernel.MeddleRules(ruleset.Table, dispatches()[w.rnd.IntN(len(dispatches()))])
	n.agent.dirty = true
	n.bared++
	return true
}

// dispatches are the maps from pods' interfaces to their policies.
func dispatches() []string { return []string{"wl-from", "wl-to"} }

// policed says what is wrong with a host that has just had a round, whether or not that has failed: a pod has a route, and its packets would not meet its policies.
func (n *node) policed(routes map[kernel.RouteKey]kernel.Route) error {
	table, _, err := n.kernel.Rules().List(context.Background(), ruleset.Table)
	if err != nil {
		return err
	}
	for _, key := range sortedRoutes(routes) {
		dev := routes[key].Dev.Name
		if !strings.HasPrefix(dev, kernel.WorkloadPrefix) {
			continue
		}
		for _, name := range dispatches() {
			if !leads(table.Sets[name], dev) {
				return fmt.Errorf("%v leads to %s, and the map %s does not lead to its policy", key.Dst, dev, name)
			}
		}
	}
	return nil
}

func leads(m *nftable.Set, dev string) bool {
	if m == nil {
		return false
	}
	for e := range m.Elems {
		if e.Key == nftable.IfaceKey(dev) {
			return true
		}
	}
	return false
}

// unpoliced says in what a host's table of policy is not what the datastore asks for, given the tunnels that it asks for.
func (p *process) unpoliced(snap feed.Snapshot, t plan.Tunnels) error {
	if p.guard == nil {
		return nil
	}
	have, _, err := p.n.kernel.Rules().List(context.Background(), ruleset.Table)
	if err != nil {
		return err
	}
	host, _ := p.n.kernel.Host()
	if d := nftable.Diff(have, agent.PolicyTable(p.n.name, snap, p.n.policySettings(snap, t), host)); !d.Empty() {
		return fmt.Errorf("the table of policy differs: %+v", d)
	}
	return nil
}
