package sim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// pick draws a pod of a node that is in a state; nil if none is.
func (w *World) pick(n *node, s state) *pod {
	pods := n.live(s)
	if len(pods) == 0 || n.off {
		return nil
	}
	return pods[w.rnd.IntN(len(pods))]
}

// addPod begins an ADD. Without an agent it fails before it allocates, and nobody binds a pod to a node that Kubernetes has not.
func (w *World) addPod(n *node) bool {
	p := w.pick(n, absent)
	if p == nil || n.agent == nil || !n.agent.up || w.kube.now.nodes[n.name] == nil {
		return false
	}
	w.made++
	p.former, p.container = p.container, fmt.Sprintf("c%d", w.made)
	p.state, p.routed = begun, false
	w.bound(p)
	var life context.Context
	life, p.kill = context.WithCancel(n.agent.ctx)
	c := p.command(life, p.container)
	w.spawn(life, n, func(ctx context.Context) func() {
		reply, err := c.add(ctx)
		return func() {
			c.end()
			w.added(p, c.req.ContainerID, reply.Addrs, err)
		}
	})
	return true
}

// added takes in the end of an ADD.
func (w *World) added(p *pod, container string, addrs []netip.Addr, err error) {
	if p.state != begun || p.container != container {
		return // its host has lost power meanwhile
	}
	w.note("%s: add of %s ends: %v %s", p.n.name, container, addrs, kindOf(err))
	if err != nil {
		p.state = broken
		return
	}
	p.state, p.addrs = running, slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	w.running[container] = p
	for _, a := range p.addrs {
		if other := w.users[a]; other != nil {
			w.broke("%v is given to pod %s, and pod %s has it", a, p.name(), other.name())
		}
		w.users[a] = p
	}
	if !slices.Equal(w.books.addrsOf(container), p.addrs) {
		w.broke("pod %s (container %s) is told %v, and its endpoint has %v", p.name(), container, p.addrs, w.books.addrsOf(container))
	}
}

// kindOf says why a command failed, in words that are the same each time.
func kindOf(err error) string {
	for _, k := range []struct {
		is   error
		text string
	}{
		{nil, "done"}, {store.ErrUnknown, "nobody knows whether"}, {store.ErrUnavailable, "etcd is away"}, {ipam.ErrNotReady, "locked"},
		{ipam.ErrNoAddress, "no address"}, {ipam.ErrNoNode, "no node"}, {ipam.ErrNotHolder, "another's name"}, {context.Canceled, "killed"}, {context.DeadlineExceeded, "too late"},
	} {
		if errors.Is(err, k.is) {
			return k.text
		}
	}
	return "failed"
}

// leave notes that a pod uses its addresses no longer.
func (w *World) leave(p *pod) {
	for _, a := range p.addrs {
		if w.users[a] == p {
			delete(w.users, a)
		}
	}
	delete(w.running, p.container)
	p.addrs, p.routed = nil, false
}

// delPod begins a DEL, of a pod that runs or of one whose last command failed.
func (w *World) delPod(n *node) bool {
	p := w.pick(n, broken)
	if p == nil {
		p = w.pick(n, running)
	}
	if p == nil {
		return false
	}
	w.beginDel(p)
	return true
}

func (w *World) beginDel(p *pod) {
	w.leave(p)
	if w.chance(300) {
		w.unbound(p.name()) // by force: before its host knows
	}
	p.state = begun
	var life context.Context
	life, p.kill = context.WithCancel(p.n.life)
	c := p.command(life, p.container)
	w.spawn(life, p.n, func(ctx context.Context) func() {
		err := c.del(ctx, true)
		return func() {
			c.end()
			w.deleted(p, c.req.ContainerID, err)
		}
	})
}

// deleted takes in the end of a DEL.
func (w *World) deleted(p *pod, container string, err error) {
	if p.state != begun || p.container != container {
		return
	}
	w.note("%s: del of %s ends: %s", p.n.name, container, kindOf(err))
	p.state = absent
	if err != nil {
		p.state = broken
		return
	}
	if has := w.books.addrsOf(container); has != nil {
		w.broke("the DEL of pod %s (container %s) has succeeded, and its endpoint still has %v", p.name(), container, has)
	}
	w.over[container] = true
	if w.chance(700) { // else its kubelet comes to that later
		w.unbound(p.name())
	}
}

// repeatAdd calls ADD once more for a container that runs, which must change nothing.
func (w *World) repeatAdd(n *node) bool {
	p := w.pick(n, running)
	if p == nil || n.agent == nil || !n.agent.up {
		return false
	}
	c := p.command(n.agent.ctx, p.container)
	w.spawn(n.agent.ctx, n, func(ctx context.Context) func() {
		reply, err := c.again(ctx)
		return func() {
			c.end()
			got := slices.SortedFunc(slices.Values(reply.Addrs), netip.Addr.Compare)
			if err == nil && w.running[c.req.ContainerID] == p && !slices.Equal(got, p.addrs) {
				w.broke("ADD is repeated for container %s, and gives it %v after %v", c.req.ContainerID, got, p.addrs)
			}
		}
	})
	return true
}

// lateDel calls DEL for a pod's former container, which must leave the present one alone.
func (w *World) lateDel(n *node) bool {
	p := w.pick(n, running)
	if p == nil || p.former == "" {
		return false
	}
	c := p.command(n.life, p.former)
	w.spawn(n.life, n, func(ctx context.Context) func() {
		_ = c.del(ctx, false) // it may fail: what it frees is freed already
		return c.end
	})
	return true
}

// killPlugin kills the plugin of a pod that is coming or going.
func (w *World) killPlugin(n *node) bool {
	p := w.pick(n, begun)
	if p == nil {
		return false
	}
	w.kill(n, p.kill)
	return true
}
