package sim

import (
	"context"
	"errors"

	"github.com/muslin-cni/muslin/pkg/ipam"
)

// operation is something that may be begun. do reports whether it could be: a pod that runs is not added once more.
type operation struct {
	name   string
	weight int
	do     func(*World, *node) bool
}

// operations are those of a run, by how often they are drawn. Some are for clusters only in which each node's share of the work is small.
func operations() []operation {
	return []operation{
		{"add", 300, (*World).addPod},
		{"del", 240, (*World).delPod},
		{"round", 200, (*World).roundOn},
		{"repeat an add", 15, (*World).repeatAdd},
		{"late del", 15, (*World).lateDel},
		{"audit", 20, (*World).auditOn},
		{"tunnels", 20, (*World).tunnelsOn},
		{"kill a plugin", 15, (*World).killPlugin},
		{"kill an agent", 12, (*World).killAgent},
		{"start an agent", 150, (*World).startAgent},
		{"reboot a host", 4, (*World).reboot},
		{"cut a node off", 6, (*World).cutOff},
		{"connect a node", 60, (*World).connect},
		{"change a route", 15, (*World).meddle},
		{"change a policy", 12, (*World).changePolicy},
		{"change a host's rules", 3, (*World).changeRules},
		{"break a kernel", 5, (*World).breakKernel},
		{"mend a kernel", 40, (*World).mendKernel},
		{"let time pass", 25, (*World).letPass},
		{"take etcd away", 1, (*World).takeEtcd},
		{"give etcd back", 40, (*World).giveEtcd},
		{"compact etcd", 3, (*World).compact},
		{"lock the datastore", 1, (*World).lock},
		{"unlock the datastore", 30, (*World).unlock},
		{"change strictness", 8, (*World).changeStrictness},
		{"change a pool", 2, (*World).changePool},
		{"delete a pool", 2, (*World).deletePool},
		{"make the pools", 6, (*World).makePool},
		{"delete a node", 1, (*World).deleteNode},
		{"go on with a deletion", 20, (*World).resumeDeletion},
		{"lose a host", 1, (*World).loseHost},
		{"find a host that was lost", 8, (*World).findHost},
		{"release an affinity as Calico does", 4, (*World).releaseAffinity},
		{"delete a Node and nothing else", 10, (*World).deleteBarely},
		{"delete a node of Kubernetes", 8, (*World).dropNode},
		{"make a node of Kubernetes", 60, (*World).makeNode},
		{"forget a pod in Kubernetes", 20, (*World).forgetPod},
		{"tell the controllers", 30, (*World).tellManager},
		{"wake the controllers' watch", 6, (*World).wakeManager},
		{"restart the controllers", 1, (*World).restartManager},
		{"controllers' audit", 8, (*World).auditAll},
		{"controllers look at a node", 30, (*World).lookAt},
	}
}

// maxBusy is how many commands, rounds and looks are under way at most.
const maxBusy = 40

// step draws what happens next.
func (w *World) step() {
	w.out.Steps++
	if len(w.adrift) > 0 && w.chance(8) {
		w.land(w.rnd.IntN(len(w.adrift)))
		w.settle()
	}
	for _, n := range w.nodes {
		if n.lost && w.rules.leaving[n.name] && w.chance(30) && w.findHost(n) {
			w.note("%s: it is found while it is taken back", n.name)
		}
	}
	draw := w.rnd.IntN(100)
	switch {
	case len(w.waiting) > 0 && (draw < 45 || w.busy >= maxBusy && draw < 80):
		c := w.take(w.rnd.IntN(len(w.waiting)))
		w.serve(c, w.fate(c))
	case draw < 62:
		w.deliver()
	case w.busy >= maxBusy:
		w.pass(1)
	default:
		w.operate()
	}
	w.settle()
	if len(w.history.snaps) > maxHistory {
		w.compactTo(w.history.head() - maxHistory/2)
	}
}

// fate draws what becomes of a request: mostly it is answered. Of a stream no message is lost but with all that follow.
func (w *World) fate(c *call) fate {
	switch {
	case c.door:
		return answered
	case c.watch && w.chance(10):
		return lost
	case c.watch:
		return answered
	}
	switch draw := w.rnd.IntN(1000); {
	case draw < 8:
		return lostAnswer
	case draw < 16:
		return lost
	case draw < 20:
		return silent
	case draw < 24:
		return swallowed
	case draw < 54 && c.writes, draw < 150 && c.writes && c.from.name == controllersName: // they write seldom
		return late
	}
	return answered
}

// operate begins an operation on a node, both drawn.
func (w *World) operate() {
	all, total := operations(), 0
	for _, o := range all {
		total += o.weight
	}
	draw := w.rnd.IntN(total)
	for _, o := range all {
		if draw -= o.weight; draw >= 0 {
			continue
		}
		n := w.nodes[w.rnd.IntN(len(w.nodes))]
		if o.do(w, n) {
			w.note("%s: %s", n.name, o.name)
			w.out.Ops++
			w.out.Seen[o.name]++
		}
		return
	}
}

// deliver tells some nodes of what they have not seen, all of it or a part.
func (w *World) deliver() {
	head := w.history.head()
	for range max(1, len(w.nodes)/50) {
		n := w.nodes[w.rnd.IntN(len(w.nodes))]
		if n.agent == nil || n.agent.view == nil || n.cut || n.deaf || w.isDown() {
			continue
		}
		told := n.agent.view.told()
		if told == head {
			continue
		}
		to := head
		if told > 0 && head-told > 1 && w.chance(500) {
			to = told + 1 + w.rnd.Int64N(head-told)
		}
		w.note("%s is told up to %d", n.name, to)
		w.deliverTo(n, to)
		w.still()
	}
}

// deliverTo tells a node's view.
func (w *World) deliverTo(n *node, rev int64) {
	w.stir(n)
	n.agent.view.deliver(rev)
}

// roundOn has an agent do a round.
func (w *World) roundOn(n *node) bool {
	p := n.agent
	if p == nil || p.rounding || !p.up {
		return false
	}
	w.beginRound(p)
	return true
}

func (w *World) beginRound(p *process) {
	p.rounding = true
	if p.dirty {
		p.kernel.MarkDirty()
		p.dirty = false
	}
	before, bared := p.n.kernel.Writes(), p.n.bared
	w.spawn(p.ctx, p.n, func(ctx context.Context) func() {
		acted, err := p.round(ctx)
		return func() {
			if acted && err == nil {
				p.n.clad = bared
			}
			w.rounded(p, before, acted, err)
		}
	})
}

// rounded takes in the end of a round.
func (w *World) rounded(p *process, before int, acted bool, err error) {
	n := p.n
	p.rounding, p.failed = false, err
	if n.agent != p {
		return
	}
	if wrote := n.kernel.Writes() - before; !acted && wrote != 0 {
		w.broke("%s writes to its kernel %d times, without a snapshot that it may act on", n.name, wrote)
	}
	routes := n.kernel.Routes()
	if acted && n.clad == n.bared && p.guard != nil {
		if err := n.policed(routes); err != nil {
			w.broke("%s: %w", n.name, err)
		}
	}
	for _, pod := range n.live(running) {
		has := pod.hasRoutes(routes)
		if pod.routed && !has {
			w.broke("pod %s lives, and %s has taken its route to %v away", pod.name(), n.name, pod.addrs)
		}
		pod.routed = has
	}
}

// auditOn has an agent look for what pods left behind.
func (w *World) auditOn(n *node) bool {
	p := n.agent
	if p == nil || p.auditing || !p.up {
		return false
	}
	p.auditing = true
	w.spawn(p.ctx, n, func(ctx context.Context) func() {
		p.audit.Look(ctx)
		return func() { p.auditing = false }
	})
	return true
}

// tunnelsOn has an agent see to its tunnel addresses, where pools have changed since it did so last.
func (w *World) tunnelsOn(n *node) bool {
	p := n.agent
	if p == nil || p.settling || !p.up {
		return false
	}
	p.settling = true
	pools := w.pool
	w.spawn(p.ctx, n, func(ctx context.Context) func() {
		err := p.ensureTunnels(ctx)
		return func() {
			p.settling = false
			if err == nil || errors.Is(err, ipam.ErrNoAddress) { // pods may have taken them all
				p.pools = pools
			}
		}
	})
	return true
}
