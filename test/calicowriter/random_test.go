package calicowriter_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/test/calicowriter"
)

// TestAnyInterleavingEndsWell lets several of Calico's sequences and operations of ours take turns at random, some of the sequences dying
// on the way.
func TestAnyInterleavingEndsWell(t *testing.T) {
	r := newRig(t)
	w := r.empty(t)
	someContainers(w)
	given := w.scene()
	rapid.Check(t, func(t *rapid.T) {
		m := &mix{world: r.play(t, given), rt: t}
		m.live()
		for range rapid.IntRange(5, 40).Draw(t, "turns") {
			m.turn()
		}
		for len(m.under) > 0 {
			m.step(0, (*calicowriter.Sequence).Next)
		}
		m.again()
		m.sound()
		m.clear(nil)
	})
}

// mix is a world with sequences under way.
type mix struct {
	*world
	rt     *rapid.T
	under  []underway
	serial int
	redo   []string // containers whose ADD or DEL did not end: the runtime deletes them once more
}

// underway is a sequence that is not done, and the container that it is about, if any.
type underway struct {
	*calicowriter.Sequence
	id   string
	adds bool
}

// turn is one thing that happens.
func (m *mix) turn() {
	if n := len(m.under); n > 0 && rapid.IntRange(0, 2).Draw(m.rt, "goes on") > 0 {
		i := rapid.IntRange(0, n-1).Draw(m.rt, "which")
		switch rapid.IntRange(0, 9).Draw(m.rt, "how") {
		case 0:
			m.die(i)
		case 1, 2, 3, 4:
			m.step(i, (*calicowriter.Sequence).Read)
		default:
			m.step(i, (*calicowriter.Sequence).Next)
		}
		return
	}
	if len(m.under) < 4 && rapid.Bool().Draw(m.rt, "Calico's") {
		m.start()
		return
	}
	m.ours()
}

// fresh is a new container.
func (m *mix) fresh() string {
	m.serial++
	id := fmt.Sprint(rapid.SampledFrom([]string{"near", far, "pod"}).Draw(m.rt, "kind"), "-", m.serial)
	m.touched[id] = true
	return id
}

// living picks a container that was told its addresses, and tells that it has them no more.
func (m *mix) living() (string, bool) {
	var ids []string
	for id := range m.told {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return "", false
	}
	slices.Sort(ids)
	id := rapid.SampledFrom(ids).Draw(m.rt, "container")
	delete(m.told, id)
	m.dead[id] = true
	return id, true
}

// start begins one of Calico's sequences.
func (m *mix) start() {
	node := rapid.SampledFrom([]string{node1, node2}).Draw(m.rt, "node")
	cidr := blockAt(rapid.IntRange(0, blocks-1).Draw(m.rt, "block"))
	switch rapid.IntRange(0, 5).Draw(m.rt, "sequence") {
	case 0, 1:
		id := m.fresh()
		m.under = append(m.under, underway{m.writer(nodeOf(id)).Add(calicos(id)), id, true})
	case 2:
		if id, ok := m.living(); ok {
			m.under = append(m.under, underway{m.writer(nodeOf(id)).Del(calicos(id)), id, false})
		}
	case 3:
		m.under = append(m.under, underway{Sequence: m.writer(node).Claim(cidr)})
	case 4:
		m.under = append(m.under, underway{Sequence: m.writer(node).ReleaseAffinity(cidr, rapid.Bool().Draw(m.rt, "only if empty"))})
	case 5:
		m.under = append(m.under, underway{Sequence: m.writer(node).CollectGarbage()})
	}
}

// step lets a sequence go on, and notes what comes of it if that is its end.
func (m *mix) step(i int, on func(*calicowriter.Sequence, context.Context) (bool, error)) {
	u := m.under[i]
	done, err := on(u.Sequence, m.ctx)
	if !done {
		return
	}
	m.under = slices.Delete(m.under, i, i+1)
	switch {
	case u.id != "" && err != nil:
		m.redo = append(m.redo, u.id)
	case u.adds:
		m.told[u.id] = u.Addrs()
	}
}

// die ends a sequence in the middle.
func (m *mix) die(i int) {
	u := m.under[i]
	u.Abandon()
	m.under = slices.Delete(m.under, i, i+1)
	if u.id != "" {
		m.redo = append(m.redo, u.id)
	}
}

// ours does one of our operations.
func (m *mix) ours() {
	switch rapid.IntRange(0, 4).Draw(m.rt, "ours") {
	case 0, 1:
		id := m.fresh()
		m.refusable(m.add(nodeOf(id), id))
	case 2:
		if id, ok := m.living(); ok {
			m.must(m.del(nodeOf(id), id))
		}
	case 3:
		m.refusable(m.tunnel(rapid.SampledFrom([]string{node1, node2}).Draw(m.rt, "node")))
	case 4:
		m.again()
	}
}

// again deletes what did not end, as the runtime does.
func (m *mix) again() {
	for _, id := range m.redo {
		m.must(m.del(nodeOf(id), id))
	}
	m.redo = nil
}

// refusable passes over the refusals that a small pool is good for.
func (m *mix) refusable(err error) {
	if err != nil && !refusedFor(err, ipam.ErrNoAddress) {
		m.rt.Fatalf("%v", err)
	}
}
