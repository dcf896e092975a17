package sim

import (
	"context"
	"errors"
	"net/netip"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/memkernel"
	"github.com/muslin-cni/muslin/internal/reconcile"
)

// isDown reports whether etcd is away.
func (w *World) isDown() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.down
}

// stop ends an agent's process.
func (n *node) stop() {
	p, w := n.agent, n.w
	n.agent = nil
	w.kill(n, p.kill)
	for _, x := range p.wires() {
		x.connected(true, false)
		w.hangUp(x, lostAnswer, lost)
	}
	p.feeding.Wait()
}

// kill ends what a node's processes are at.
func (w *World) kill(n *node, how context.CancelFunc) {
	w.stir(n)
	how()
	w.still()
}

func (w *World) killAgent(n *node) bool {
	if n.agent == nil {
		return false
	}
	n.stop()
	return true
}

func (w *World) startAgent(n *node) bool {
	if n.agent != nil && n.agent.up || n.off {
		return false
	}
	if n.agent == nil {
		n.agent = n.start()
	}
	w.joinOf(n)
	return true
}

// joinOf has an agent register its node. It serves pods from then on.
func (w *World) joinOf(n *node) {
	p := n.agent
	if n.joins || p == nil || p.up {
		return
	}
	n.joins = true
	uuid := w.uuids(n.name)()
	w.spawn(p.ctx, n, func(ctx context.Context) func() {
		err := n.join(ctx, p.client, uuid)
		return func() {
			n.joins = false
			p.up = err == nil && n.agent == p
			n.back = n.back && !p.up
		}
	})
}

// reboot takes a host's power, and gives it back. The runtime has forgotten some of its pods; the others it takes down.
func (w *World) reboot(n *node) bool {
	if n.off {
		return false
	}
	w.powerOff(n)
	n.boot()
	return true
}

func (w *World) powerOff(n *node) {
	if n.agent != nil {
		n.stop()
	}
	w.kill(n, n.halt)
	for _, p := range n.pods {
		if p.state == absent {
			continue
		}
		w.leave(p)
		p.state = broken
		if w.chance(500) { // it will never be asked for again
			p.state, p.gen, p.container, p.former = absent, p.gen+1, "", ""
		}
	}
	n.meddled = false
}

// cutOff takes etcd from a node: connections are refused, or say nothing any more.
func (w *World) cutOff(n *node) bool {
	if n.cut || n.deaf {
		return false
	}
	n.cut = w.chance(500)
	n.deaf = !n.cut
	n.wired()
	if n.agent != nil {
		for _, x := range n.agent.wires() {
			w.hangUp(x, lostAnswer, lost)
		}
	}
	return true
}

// wired tells a node's agent how it is connected now.
func (n *node) wired() {
	if n.agent == nil {
		return
	}
	for _, x := range n.agent.wires() {
		x.connected(n.cut, n.deaf)
	}
}

func (w *World) connect(n *node) bool {
	if !n.cut && !n.deaf {
		return false
	}
	n.cut, n.deaf = false, false
	n.wired()
	return true
}

// meddle changes something in a host's kernel as another program would.
func (w *World) meddle(n *node) bool {
	routes := n.kernel.Routes()
	keys := sortedRoutes(routes)
	if len(keys) == 0 || w.cfg.Nodes > keepPlans && w.chance(900) {
		return false
	}
	key := keys[w.rnd.IntN(len(keys))]
	switch w.rnd.IntN(3) {
	case 0:
		n.kernel.MeddleRoute(key, nil)
	case 1:
		n.kernel.MeddleRoute(key, &kernel.Route{Type: kernel.Blackhole, Protocol: kernel.RouteProtocol})
	case 2:
		key = kernel.RouteKey{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(w.rnd.IntN(256)), 0}), 24)}
		n.kernel.MeddleRoute(key, &kernel.Route{Type: kernel.Blackhole, Protocol: kernel.RouteProtocol})
	}
	for _, p := range n.pods {
		p.routed = false
	}
	if w.chance(300) {
		n.kernel.MeddleSet(kernel.SetKey(kernel.SetPrefix+"masq-ipam-pools"), kernel.Set{Members: "192.0.2.0/24"})
		n.meddled = true
	}
	return true
}

var errRefused = errors.New("refused by the simulation")

// breakKernel makes a host's kernel refuse every so many of the objects that it is asked to hold, or all rules of policy and nothing else.
func (w *World) breakKernel(n *node) bool {
	every, count, rules := 1+w.rnd.IntN(5), 0, w.chance(300)
	n.kernel.Refuse(func(table reconcile.Name, _ string) error {
		if rules && table == memkernel.PolicyRules {
			return errRefused
		}
		if rules {
			return nil
		}
		if count++; count%every == 0 {
			return errRefused
		}
		return nil
	})
	return true
}

func (w *World) mendKernel(n *node) bool {
	n.kernel.Refuse(nil)
	if n.agent != nil && w.chance(300) {
		n.agent.dirty = true // the refresh, which comes every 90 seconds
	}
	return true
}

func (w *World) letPass(*node) bool {
	w.pass(1 + w.rnd.IntN(3)*w.rnd.IntN(6))
	return true
}

func (w *World) takeEtcd(*node) bool {
	if w.isDown() {
		return false
	}
	w.setDown(true)
	for i := 0; i < len(w.waiting); {
		if w.waiting[i].door {
			i++
			continue
		}
		f := lost
		switch {
		case w.waiting[i].writes && w.chance(300):
			f = late // it lies in the socket of an etcd that is paused
		case w.chance(300):
			f = lostAnswer
		}
		w.serve(w.take(i), f)
		w.still()
	}
	return true
}

func (w *World) setDown(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
}

func (w *World) giveEtcd(*node) bool {
	if !w.isDown() {
		return false
	}
	w.setDown(false)
	return true
}

// compact has etcd forget. A node that has not seen what is forgotten lists again: it is told of all at once.
func (w *World) compact(*node) bool {
	w.compactTo(w.history.head() - w.rnd.Int64N(int64(len(w.history.snaps))))
	return true
}

func (w *World) compactTo(to int64) {
	if err := w.etcd.Client().Compact(context.Background(), to); err != nil {
		w.broke("compact etcd: %v", err)
	}
	w.history.forget(to)
}
