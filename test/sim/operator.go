package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// edit changes an object as an operator does.
func edit[T api.Value](w *World, key string, change func(*T)) {
	c := w.admin.client()
	w.spawn(w.life, w.admin, func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, commandTime)
		defer cancel()
		_, _ = store.Mutate(ctx, c, key, func(v *T, exists bool) (bool, error) {
			change(v)
			return exists, nil
		})
		return nil
	})
	w.still()
}

func (w *World) setReady(ready bool) {
	w.locked = !ready
	edit(w, ipam.ClusterKey(), func(c *api.ClusterInformation) { c.Spec.DatastoreReady = &ready })
}

func (w *World) lock(*node) bool {
	if w.locked || w.isDown() {
		return false
	}
	w.setReady(false)
	return true
}

func (w *World) unlock(*node) bool {
	if !w.locked {
		return false
	}
	w.setReady(true)
	return true
}

// changeStrictness has nodes lend each other addresses, or not.
func (w *World) changeStrictness(*node) bool {
	strict := w.chance(400)
	edit(w, api.IPAMConfigKey, func(c *api.IPAMConfig) { c.StrictAffinity = strict })
	return true
}

// changePool has a pool's packets go another way, or takes it out of use, or back in.
func (w *World) changePool(*node) bool {
	w.pool++
	vxlan, ipip := api.Never, api.Never
	switch mode := []api.EncapMode{api.Always, api.Never, api.CrossSubnet}[w.rnd.IntN(3)]; {
	case len(w.nodes) > keepPlans:
	case w.chance(500):
		vxlan = mode
	default:
		ipip = mode
	}
	disabled := w.chance(300)
	edit(w, poolKey(w.rnd.IntN(len(w.ranges()))), func(p *api.IPPool) {
		if p.Spec.CIDR.Addr().Is6() && ipip != api.Never {
			vxlan, ipip = ipip, api.Never // there is none for IPv6
		}
		p.Spec.VXLANMode, p.Spec.IPIPMode, p.Spec.Disabled = vxlan, ipip, disabled
	})
	return true
}

func poolKey(i int) string { return (*api.IPPool)(nil).KindOf().Key("", poolName(i)) }

// deletePool deletes the second pool as an operator does: its blocks are taken from the nodes, and pods keep their addresses.
func (w *World) deletePool(*node) bool {
	w.pool++
	c := &objects.Client{Store: w.admin.client(), UUID: w.uuids("operator"), Now: w.now}
	w.spawn(w.life, w.admin, func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, 4*time.Minute+tick/4)
		defer cancel()
		target := &api.IPPool{}
		target.Metadata.Name = poolName(1)
		_ = c.Delete(ctx, target) // an operator who fails tries again, when it is drawn
		return nil
	})
	return true
}

// makePool makes the pools that there are not.
func (w *World) makePool(*node) bool {
	w.pool++
	c := w.admin.client()
	for i := range w.ranges() {
		p := w.newPool(i)
		w.spawn(w.life, w.admin, func(ctx context.Context) func() {
			ctx, cancel := context.WithTimeout(ctx, commandTime)
			defer cancel()
			_, _ = store.Create(ctx, c, api.KeyOf(p), p) // it may exist
			return nil
		})
		w.settle()
	}
	return true
}

// deleteNode takes a host's power for good, and deletes its Node as an operator does. Another host comes under its name.
func (w *World) deleteNode(n *node) bool {
	if n.off || len(w.nodes) > keepPlans && w.chance(900) {
		return false
	}
	w.powerOff(n)
	n.off = true
	w.deletion(n)
	return true
}

// resumeDeletion is the operator, who has seen that a deletion failed.
func (w *World) resumeDeletion(n *node) bool {
	if !n.off || n.lost || n.deletes {
		return false
	}
	w.deletion(n)
	return true
}

// deletion tries once to delete the Node of a host that is off.
func (w *World) deletion(n *node) {
	if n.deletes {
		return
	}
	n.deletes = true
	c := &objects.Client{Store: w.admin.client(), UUID: w.uuids("operator"), Now: w.now}
	w.spawn(w.life, w.admin, func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, 4*time.Minute+tick/4)
		defer cancel()
		target := &api.Node{}
		target.Metadata.Name = n.name
		err := c.Delete(ctx, target)
		var none *objects.NotFoundError
		return func() {
			n.deletes = false
			if err == nil || errors.As(err, &none) {
				w.replace(n)
			}
		}
	})
	w.still()
}

// replace puts another host in the place of one whose Node was deleted.
func (w *World) replace(n *node) {
	w.note("%s: another machine takes its place", n.name)
	w.made++
	n.machine, n.off = fmt.Sprintf("machine-%s-%d", n.name, w.made), false
	n.lost, n.back = false, false
	w.registers(n, corev1.ConditionTrue)
	for _, p := range n.pods {
		p.state, p.gen, p.container, p.former = absent, p.gen+1, "", ""
	}
	n.boot()
}
