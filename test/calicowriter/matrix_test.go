package calicowriter_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
	"github.com/muslin-cni/muslin/test/calicowriter"
)

// Containers: Calico's sequence is about the subject; before, there are old on the first node and far on the second.
const (
	subject = "subject"
	podded  = "pod-subject" // the subject, where it is a pod's
	old     = "old"
	far     = "far"
)

// theirs is one of Calico's sequences, with what there is before.
type theirs struct {
	name    string
	given   func(*world)
	begin   func(*world) *calicowriter.Sequence
	pod     bool // the subject is a pod's
	adds    bool // the subject's ADD
	dels    bool // the subject's end
	removes bool // takes the node or the pool away: ours may be refused
}

// subject is the container that the sequence is about.
func (s theirs) subject() string {
	if s.pod {
		return podded
	}
	return subject
}

func someContainers(w *world) {
	w.calicoAdd(node1, old)
	w.calicoAdd(node2, far)
}

func withSubject(w *world) {
	someContainers(w)
	w.calicoAdd(node1, subject)
}

// fullPool is a first node whose only block is full, and a second one that has the others.
func fullPool(w *world) {
	for _, id := range []string{old, "old2", "old3", "old4"} {
		w.calicoAdd(node1, id)
	}
	w.calicoAdd(node2, far)
	for n := range blocks {
		if !w.exists(api.BlockKey(blockAt(n))) {
			w.run(w.writer(node2).Claim(blockAt(n)))
		}
	}
}

// unclaimed is a range without a block.
func (w *world) unclaimed() int {
	for n := range blocks {
		if !w.exists(api.BlockKey(blockAt(n))) && !w.exists(api.AffinityKey(node1, blockAt(n))) {
			return n
		}
	}
	w.t.Fatalf("every range has a block")
	return 0
}

// spare is an empty block of the first node.
func spare(w *world) {
	withSubject(w)
	w.run(w.writer(node1).Claim(blockAt(w.unclaimed())))
}

// emptyBlock is the node's block that nobody uses.
func (w *world) emptyBlock(node string) (n int) {
	v := w.view()
	for cidr, b := range v.Blocks {
		if host, _ := b.Host(); host != node || len(b.Unallocated) < len(b.Allocation) {
			continue
		}
		for n := range blocks {
			if blockAt(n) == cidr {
				return n
			}
		}
	}
	w.t.Fatalf("%s has no empty block", node)
	return 0
}

// blockOf is where a container's address lies.
func (w *world) blockOf(id string) (n int) {
	for n := range blocks {
		if blockAt(n).Contains(w.told[id][0]) {
			return n
		}
	}
	w.t.Fatalf("%s has no address of the pool", id)
	return 0
}

// leak is the subject's allocation as a collector of garbage sees it.
func (w *world) leak() calicowriter.Allocation {
	cidr, a := blockAt(w.blockOf(subject)), w.told[subject][0]
	b := w.view().Blocks[cidr]
	ordinal := int(a.As4()[3]) - int(cidr.Addr().As4()[3])
	return calicowriter.Allocation{Addr: a, Block: cidr, Handle: handleOf(subject), Seq: b.SequenceNumberForAllocation[fmt.Sprint(ordinal)]}
}

func addSubject(w *world) *calicowriter.Sequence { return w.writer(node1).Add(calicos(subject)) }

const deleteNode = "delete node"

var sequences = []theirs{
	{name: "ADD that claims a block", adds: true, given: func(w *world) { w.calicoAdd(node2, far) }, begin: addSubject},
	{name: "ADD into a block", adds: true, given: someContainers, begin: addSubject},
	{name: "ADD that finishes a claim", adds: true, begin: addSubject, given: func(w *world) {
		s := w.writer(node1).Claim(blockAt(2))
		_, err := s.Next(w.ctx)
		w.must(err)
		s.Abandon()
	}},
	{name: "ADD that confirms a claim", adds: true, begin: addSubject, given: func(w *world) {
		s := w.writer(node1).Claim(blockAt(2))
		for range 2 {
			_, err := s.Next(w.ctx)
			w.must(err)
		}
		s.Abandon()
	}},
	{name: "ADD that borrows", adds: true, given: fullPool, begin: addSubject},
	{name: "ADD that takes an empty block away", adds: true, begin: addSubject, given: func(w *world) {
		fullPool(w)
		w.now = w.now.Add(2 * time.Minute)
	}},
	{name: "ADD of a pod", adds: true, pod: true, given: someContainers, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).Add(calicos(podded))
	}},
	{name: "DEL", dels: true, given: withSubject, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).Del(calicos(subject))
	}},
	{name: "DEL of a pod", dels: true, pod: true, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).Del(calicos(podded))
	}, given: func(w *world) {
		someContainers(w)
		w.calicoAdd(node1, podded)
	}},
	{name: "claim", given: withSubject, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).Claim(blockAt(w.unclaimed()))
	}},
	{name: "release of an empty block", given: spare, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).ReleaseAffinity(blockAt(w.emptyBlock(node1)), true)
	}},
	{name: "release of a block in use", given: withSubject, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).ReleaseAffinity(blockAt(w.blockOf(subject)), false)
	}},
	{name: "tunnel address", given: withSubject, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).Tunnel()
	}},
	{name: "delete pool", removes: true, given: spare, begin: func(w *world) *calicowriter.Sequence {
		return w.writer(node1).DeletePool("pool")
	}},
	{name: deleteNode, dels: true, removes: true, given: func(w *world) {
		spare(w)
		w.run(w.writer(node1).Tunnel())
	}, begin: func(w *world) *calicowriter.Sequence { return w.writer(node1).DeleteNode() }},
	{name: "collect garbage", dels: true, given: func(w *world) {
		spare(w)
		_, err := w.etcd.Delete(w.ctx, endpointKey(node1, subject))
		w.must(err)
	}, begin: func(w *world) *calicowriter.Sequence { return w.writer(node1).CollectGarbage(w.leak()) }},
}

func endpointKey(node, id string) string {
	s := api.WorkloadEndpointSpec{Orchestrator: "cni", Node: node, ContainerID: id, Endpoint: "eth0"}
	return (*api.WorkloadEndpoint)(nil).KindOf().Key("default", api.WorkloadEndpointName(s))
}

// ours is what one of ours does while Calico's sequence stands still. To cover another operation, add a row.
type ours struct {
	name string
	do   func(w *world, subject string) error
	then func(*world) error // what it does when it looks again; nil: nothing
	skip func(theirs) bool  // nil: meets all
}

var operations = []ours{
	{name: "ADD on the same node", do: func(w *world, _ string) error { return w.add(node1, "new") }},
	{name: "ADD on another node", do: func(w *world, _ string) error { return w.add(node2, "far2") }},
	{name: "five ADDs, so that a block is claimed", do: func(w *world, _ string) error {
		for _, id := range []string{"new", "new2", "new3", "new4", "new5"} {
			if err := w.add(node1, id); err != nil {
				return err
			}
		}
		return nil
	}},
	{name: "ADD again", do: func(w *world, _ string) error { return w.add(node1, old) },
		skip: func(s theirs) bool { return s.name == deleteNode }}, // whose containers are gone
	{name: "ADD of the same container", do: func(w *world, subject string) error { return w.add(node1, subject) },
		skip: func(s theirs) bool { return !s.adds }}, // a container that is gone does not come back
	{name: "DEL of the same container", do: func(w *world, subject string) error { return w.del(node1, subject) }},
	{name: "DEL of another container", do: func(w *world, _ string) error { return w.del(node1, old) }},
	{name: "DEL on another node", do: func(w *world, _ string) error { return w.del(node2, far) }},
	{name: "tunnel address", do: func(w *world, _ string) error { return w.tunnel(node1) },
		then: func(w *world) error { return w.tunnel(node1) },
		skip: func(s theirs) bool { return s.name == "tunnel address" }}, // only one agent runs on a node
	{name: "tunnel address of another node", do: func(w *world, _ string) error { return w.tunnel(node2) }},
	{name: "ADDs on another node when empty blocks may be taken", do: func(w *world, _ string) error {
		w.now = w.now.Add(2 * time.Minute)
		for _, id := range []string{"far2", "far3", "far4", "far5"} {
			if err := w.add(node2, id); err != nil {
				return err
			}
		}
		return nil
	}},
	{name: "give an empty block back", do: func(w *world, _ string) error {
		blocks, _, err := store.List[api.Block](w.ctx, w.c, api.BlocksPrefix(false))
		for _, b := range blocks {
			if host, ok := b.Value.Host(); !ok || host != node1 || !block.Empty(b.Value) {
				continue
			}
			aff, affErr := ipam.Etcd{Client: w.c}.Affinity(w.ctx, node1, b.Value.CIDR)
			cluster, failed := store.Get[api.ClusterInformation](w.ctx, w.c, ipam.ClusterKey())
			if failed = errors.Join(affErr, failed); failed == nil {
				u := ipam.Unused{Block: b, Affinity: aff, Identity: store.Entry[api.NodeIdentity]{Key: api.IdentityKey(node1)}, Cluster: cluster}
				_, failed = ipam.ReturnBlock(w.ctx, w.c, u)
			}
			if !errors.Is(failed, store.ErrConflict) { // somebody else's turn came first
				err = errors.Join(err, failed)
			}
		}
		return err
	}},
	{name: "release of the pool", do: func(w *world, _ string) error {
		p := poolOf(api.Always)
		p.Spec.Disabled = true
		_, err := w.etcd.Put(w.ctx, poolKey, encode(w, p))
		w.must(err)
		_, err = ipam.ReleasePool(w.ctx, w.c, pool)
		w.restore(api.Always) // under the same name again
		return err
	}},
	{name: "release of another node", do: func(w *world, _ string) error {
		gone, err := ipam.DepartAnyway(w.ctx, w.c, node2)
		w.must(err)
		_, err = ipam.ReleaseNode(w.ctx, w.c, gone, w.clock)
		return err
	}},
}

// TestOursInEveryGapOfCalicos holds each of Calico's sequences still in front of and behind each of its writes, has ours work meanwhile, and
// lets the sequence go on to its end or die there.
func TestOursInEveryGapOfCalicos(t *testing.T) {
	for _, s := range sequences {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			w := r.empty(t)
			s.given(w)
			given := w.scene()
			for _, o := range operations {
				if o.skip != nil && o.skip(s) {
					continue
				}
				t.Run(o.name, func(t *testing.T) { gaps(t, r, given, s, o) })
			}
		})
	}
}

// gaps goes through the gaps of one sequence. What was read leaves no trace when the sequence dies, and a lagging picture is out of date
// in any gap: some of them do for both.
func gaps(t *testing.T, r *rig, given scene, s theirs, o ours) {
	t.Helper()
	for gap, more := 0, true; more && !t.Failed(); gap++ {
		for _, at := range []encounter{{gap: gap}, {gap: gap, dies: true}, {gap: gap, lagging: true}} {
			if at.dies && (gap%2 == 1 || gap == 0) || at.lagging && gap%4 != 0 {
				continue
			}
			more = meet(r.play(t, given), s, o, at)
			if t.Failed() {
				t.Fatalf("that was %+v", at)
			}
		}
	}
}

// encounter says where the sequence stands still and what comes of it.
type encounter struct {
	gap     int  // even: behind the (gap/2)th write; odd: in front of the next one
	dies    bool // and does not go on
	lagging bool // ours work on what was there when the sequence began
}

// meet plays one encounter. It reports whether the sequence reached the gap.
func meet(w *world, s theirs, o ours, at encounter) bool {
	w.t.Helper()
	calicosOwn := slices.Sorted(maps.Keys(w.told))
	w.touched[s.subject()] = true
	seq := s.begin(w)
	defer seq.Abandon()
	if at.lagging {
		w.remember()
	}
	if w.goTo(seq, at.gap); seq.Done() {
		return false
	}
	w.oursDo(s, o)
	if !at.dies {
		w.theirsEnd(s, seq)
	}
	if s.adds && (at.dies || w.dead[s.subject()]) || s.dels {
		w.must(w.del(node1, s.subject())) // an ADD that was given up, and a DEL that broke off, are followed by a DEL
	}
	if s.name == deleteNode {
		w.evict(node1)
	}
	if o.then != nil {
		w.restore(api.Always)
		w.must(o.then(w))
	}
	w.sound()
	if at != (encounter{}) {
		calicosOwn = nil // once is enough
	}
	w.clear(calicosOwn)
	return true
}

// goTo lets the sequence go on to a gap.
func (w *world) goTo(seq *calicowriter.Sequence, gap int) {
	w.t.Helper()
	var err error
	for range gap / 2 {
		_, err = seq.Next(w.ctx)
	}
	if gap%2 == 1 {
		_, err = seq.Read(w.ctx)
	}
	w.must(err)
}

// oursDo has ours do its work. It may be refused where there is reason to.
func (w *world) oursDo(s theirs, o ours) {
	w.t.Helper()
	err := o.do(w, s.subject())
	if err == nil || s.removes && refusedFor(err, ipam.ErrNoNode, ipam.ErrNoPool, ipam.ErrNoAddress) {
		return
	}
	w.t.Errorf("%s in a gap of %s: %v", o.name, s.name, err)
}

func refusedFor(err error, reasons ...error) bool {
	return slices.ContainsFunc(reasons, func(r error) bool { return errors.Is(err, r) })
}

// theirsEnd lets the sequence go on to its end, and notes what it was told. An ADD that fails is followed by a DEL.
func (w *world) theirsEnd(s theirs, seq *calicowriter.Sequence) {
	w.t.Helper()
	err := seq.Finish(w.ctx)
	switch {
	case s.adds && err != nil:
		w.must(w.del(node1, s.subject()))
	case s.adds && !w.dead[s.subject()]:
		w.told[s.subject()] = seq.Addrs()
	}
}

// evict has all containers of a node deleted.
func (w *world) evict(node string) {
	w.t.Helper()
	w.delAll(func(id string) bool { return nodeOf(id) == node })
}
