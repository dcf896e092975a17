package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	poolKey     = "/calico/resources/v3/projectcalico.org/ippools/pool"
	unselecting = `"cidr":"10.0.0.0/30","blockSize":30,"nodeSelector":"zone == \"b\""`
)

// TestEmptyBlockGoesOnceItsPoolDoesNotServeTheNode looks at both moments at which a node gives back: an allocation from another
// pool, and a release.
func TestEmptyBlockGoesOnceItsPoolDoesNotServeTheNode(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*world)
		goes   bool
	}{
		{"pool selects other nodes", func(w *world) { w.pool("pool", unselecting) }, true},
		{"node is labelled anew", func(w *world) {
			w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"nodeSelector":"zone == \"a\""`)
			w.node("node-1", `"zone":"b"`)
		}, true},
		{"pool is gone", func(w *world) { w.delete(poolKey) }, true},
		{"pool is being deleted", func(w *world) {
			w.put(poolKey, `{"metadata":{"name":"pool","deletionTimestamp":"2026-01-01T00:00:00Z"},"spec":{"cidr":"10.0.0.0/30","blockSize":30}}`)
		}, true},
		{"pool is disabled", func(w *world) { w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"disabled":true`) }, false},
		{"pool cannot be read", func(w *world) { w.put(poolKey, `{"spec":7}`) }, false},
		{"selector cannot be read", func(w *world) { w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"nodeSelector":"((("`) }, false},
		{"nothing changed", func(*world) {}, false},
	} {
		for _, at := range []string{"assign", "release"} {
			t.Run(c.name+" "+at, func(t *testing.T) {
				w := newWorld(t)
				w.pool("spare", `"cidr":"10.7.0.0/30","blockSize":30,"assignmentMode":"Manual"`)
				w.mustAssign("pod")
				if at == "release" {
					c.change(w)
					w.release("pod")
				} else {
					w.release("pod")
					c.change(w)
					r := ask("other")
					r.Pools = []string{"spare"}
					if _, err := w.assign("node-1", r); err != nil {
						t.Fatal(err)
					}
				}
				if block, aff := w.get(blockKey), w.get(affinityKey); (block == "") != c.goes || (aff == "") != c.goes {
					t.Errorf("block %q, affinity %q; want them gone: %v", block, aff, c.goes)
				}
			})
		}
	}
}

func TestBlockWithAddressesStaysWhateverThePoolSelects(t *testing.T) {
	w := newWorld(t)
	w.node("node-2", "")
	w.mustAssign("own")
	if _, err := w.assign("node-2", askFor("node-2", "guest")); err != nil {
		t.Fatal(err)
	}
	w.pool("pool", unselecting)
	w.release("own")
	if host, _ := w.block(blockKey).Host(); host != "node-1" {
		t.Errorf("the block that node-2 has an address of belongs to %q", host)
	}
}

func TestBlockThatIsAskedForByPoolIsKept(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", unselecting)
	r := ask("pod")
	r.Pools = []string{"pool"}
	if _, err := w.assign("node-1", r); err != nil {
		t.Fatal(err)
	}
	seq := w.block(blockKey).SequenceNumber
	r.Handle = "next"
	if _, err := w.assign("node-1", r); err != nil {
		t.Fatal(err)
	}
	if got := w.block(blockKey).SequenceNumber; got != seq+1 {
		t.Errorf("sequence number %d after %d: the block was made anew", got, seq)
	}
}

func TestManyBlocksAreGivenBackAFewAtATime(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/24","blockSize":32`)
	const n = 19
	for i := range n {
		w.mustAssign(fmt.Sprint("h", i))
	}
	p, _ := w.plan("node-1", "")
	for i := range n {
		h, err := store.Get[api.Handle](w.ctx(), w.c, api.HandleKey(fmt.Sprint("h", i)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Release(w.ctx(), h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.c.Commit(w.ctx(), p.Txn()); err != nil {
		t.Fatal(err)
	}
	w.pool("pool", `"cidr":"10.0.0.0/24","blockSize":32,"nodeSelector":"zone == \"b\""`)
	for left := n; left > 0; {
		w.release("nobody")
		now := len(w.blocks())
		if now >= left || left-now > 8 {
			t.Fatalf("%d blocks, were %d", now, left)
		}
		left = now
	}
}

func TestBlockIsReturnedOnlyAsItWasSeen(t *testing.T) {
	const record = `{"machineID":"m","nodeUID":"u"}`
	for _, c := range []struct {
		name   string
		change func(*world)
		goes   bool
	}{
		{"unchanged", func(*world) {}, true},
		{"used and left again", func(w *world) { w.mustAssign("x"); w.release("x") }, false},
		{"in use", func(w *world) { w.mustAssign("x") }, false},
		{"affinity gone", func(w *world) { w.delete(affinityKey) }, false},
		{"the datastore is locked", func(w *world) { w.lock() }, false},
		{"the name is another machine's", func(w *world) { w.put(api.IdentityKey("node-1"), record) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.mustAssign("pod")
			w.release("pod")
			u := w.unused()
			c.change(w)
			before := w.get(blockKey)
			changed, err := ipam.ReturnBlock(w.ctx(), w.c, u)
			switch {
			case c.goes && (err != nil || len(changed) != 2 || w.get(blockKey) != "" || w.get(affinityKey) != ""):
				t.Errorf("changed %v, %v; block %q, affinity %q", changed, err, w.get(blockKey), w.get(affinityKey))
			case !c.goes && (!errors.Is(err, store.ErrConflict) || w.get(blockKey) != before):
				t.Errorf("changed %v, %v; block %q", changed, err, w.get(blockKey))
			}
		})
	}
}

// lock locks the datastore.
func (w *world) lock() { w.put(ipam.ClusterKey(), `{"spec":{"datastoreReady":false}}`) }

func TestNothingIsReleasedFromALockedDatastore(t *testing.T) {
	w := twoNodes(t)
	p, h := w.plan("node-1", "own")
	if _, err := p.Release(w.ctx(), h); err != nil {
		t.Fatal(err)
	}
	w.lock() // since it was planned
	before := w.shape()
	if _, err := w.c.Commit(w.ctx(), p.Txn()); !errors.Is(err, store.ErrConflict) {
		t.Errorf("what was planned before: %v", err)
	}
	p, h = w.plan("node-1", "own")
	_, released := p.Release(w.ctx(), h)
	_, poolErr := ipam.ReleasePool(w.ctx(), w.c, prefix("10.0.0.0/28"))
	_, nodeErr := w.releaseNode(w.ctx())
	_, _, tunnelErr := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now)
	_, returned := ipam.ReturnBlock(w.ctx(), w.c, w.unused())
	for what, err := range map[string]error{"a handle": released, "a pool": poolErr, "a node": nodeErr, "tunnels": tunnelErr, "a block": returned} {
		var refusal *ipam.Refusal
		if !errors.Is(err, ipam.ErrNotReady) || !errors.As(err, &refusal) || !strings.Contains(refusal.Remedy, "migrate unlock") {
			t.Errorf("release of %s: %v", what, err)
		}
	}
	if diff := cmp.Diff(before, w.shape()); diff != "" {
		t.Errorf("it was changed:\n%s", diff)
	}
}

func TestBlockInUseIsNotReturned(t *testing.T) {
	w := newWorld(t)
	w.mustAssign("pod")
	if changed, err := ipam.ReturnBlock(w.ctx(), w.c, w.unused()); changed != nil || err == nil || errors.Is(err, store.ErrConflict) {
		t.Errorf("changed %v, %v", changed, err)
	}
}

// unused is the block of node-1 as it is now, with what makes it the node's.
func (w *world) unused() ipam.Unused {
	w.t.Helper()
	b, blockErr := store.Get[api.Block](w.ctx(), w.c, blockKey)
	a, affErr := store.Get[api.Affinity](w.ctx(), w.c, affinityKey)
	c, clusterErr := store.Get[api.ClusterInformation](w.ctx(), w.c, ipam.ClusterKey())
	if err := errors.Join(blockErr, affErr, clusterErr); err != nil {
		w.t.Fatal(err)
	}
	return ipam.Unused{Block: b, Affinity: a, Identity: store.Entry[api.NodeIdentity]{Key: api.IdentityKey("node-1")}, Cluster: c}
}

// held is the addresses of a Remains with their handles.
func held(r ipam.Remains) []string {
	var out []string
	for _, h := range r.Held {
		out = append(out, h.Addr.String()+" "+h.Handle)
	}
	return out
}

func names[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// twoNodes has a pool of four blocks: one of node-1 with a pod and with one borrowed by node-2, one of node-1 that is empty, one
// of node-2 with a pod, one that nobody can read.
func twoNodes(t *testing.T) *world {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/28","blockSize":30,"vxlanMode":"Always"`)
	block := func(cidr, host, allocations, free, owners string) {
		key := strings.Replace(cidr, "/", "-", 1)
		w.put("/calico/ipam/v2/assignment/ipv4/block/"+key, fmt.Sprintf(`{"cidr":%q,"affinity":"host:%s","allocations":[%s],"unallocated":[%s],"attributes":[%s],"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}`, cidr, host, allocations, free, owners))
		w.put("/calico/ipam/v2/host/"+host+"/ipv4/block/"+key, confirmed)
	}
	owner := func(handle, node string) string {
		w.put(api.HandleKey(handle), `{"block":{},"deleted":false}`)
		return fmt.Sprintf(`{"handle_id":%q,"secondary":{"node":%q}}`, handle, node)
	}
	block("10.0.0.0/30", "node-1", "0,1,null,null", "2,3", owner("net.own", "node-1")+","+owner("net.guest", "node-2"))
	block("10.0.0.4/30", "node-1", "null,null,null,null", "0,1,2,3", "")
	block("10.0.0.8/30", "node-2", "0,null,null,null", "1,2,3", owner("net.other", "node-2"))
	w.put("/calico/ipam/v2/assignment/ipv4/block/10.0.0.12-30", `{`)
	w.put("/calico/ipam/v2/host/node-1/ipv4/block/10.9.9.0-30", `{"state":"pending","deleted":false}`)
	w.put("/calico/ipam/v2/host/node-1", `{}`)
	return w
}

func TestPoolIsTakenFromItsNodes(t *testing.T) {
	w := twoNodes(t)
	w.put("/calico/ipam/v2/host/node-3/ipv4/block/10.0.0.8-30", `{"state":"pending","deleted":false}`)
	got, err := ipam.ReleasePool(w.ctx(), w.c, prefix("10.0.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"deleted": {"10.0.0.4/30"}, "disowned": {"10.0.0.0/30", "10.0.0.8/30"},
		"claims":  {"/calico/ipam/v2/host/node-3/ipv4/block/10.0.0.8-30"},
		"damaged": {"/calico/ipam/v2/assignment/ipv4/block/10.0.0.12-30"},
		"held":    {"10.0.0.0 net.own", "10.0.0.1 net.guest", "10.0.0.8 net.other"},
	}
	have := map[string][]string{"deleted": names(got.Deleted), "disowned": names(got.Disowned), "claims": got.Claims, "damaged": got.Damaged, "held": held(got)}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, key := range []string{affinityKey, "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.4-30", "/calico/ipam/v2/host/node-2/ipv4/block/10.0.0.8-30"} {
		if w.get(key) != "" {
			t.Errorf("%s is left", key)
		}
	}
	if w.get("/calico/ipam/v2/host/node-1/ipv4/block/10.9.9.0-30") == "" {
		t.Error("a claim in another pool is gone")
	}
	again, err := ipam.ReleasePool(w.ctx(), w.c, prefix("10.0.0.0/28"))
	if err != nil || len(again.Deleted)+len(again.Disowned)+len(again.Claims) != 0 || len(again.Held) != 3 {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	w.put(api.HandleKey("net.own"), `{"block":{"10.0.0.0/30":1},"deleted":false}`)
	w.put(api.HandleKey("net.guest"), `{"block":{"10.0.0.0/30":1},"deleted":false}`)
	w.release("net.own")
	w.release("net.guest")
	if got := w.get(blockKey); got != "" {
		t.Errorf("nobody's block outlived its last address: %s", got)
	}
}

// releaseNode takes from node-1 what it has, as an operator does.
func (w *world) releaseNode(ctx context.Context) (ipam.Remains, error) {
	gone, err := ipam.DepartAnyway(ctx, w.c, "node-1")
	if err != nil {
		return ipam.Remains{}, err
	}
	return ipam.ReleaseNode(ctx, w.c, gone, time.Now)
}

func TestNodeThatIsGoneLeavesOnlyWhatIsInUse(t *testing.T) {
	w := twoNodes(t)
	if _, _, err := ipam.EnsureTunnels(w.ctx(), w.c, "node-1", time.Now); err != nil {
		t.Fatal(err)
	}
	got, err := w.releaseNode(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.0.0.0 net.own"}, held(got)); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]string{{"10.0.0.4/30"}, {"10.0.0.0/30"}}, [][]string{names(got.Deleted), names(got.Disowned)}); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
	left, _, err := w.c.Read(w.ctx(), store.Range{Key: "/calico/ipam/v2/host/node-1", Prefix: true})
	if err != nil || len(left[0]) != 0 {
		t.Errorf("below the node's marker: %v, %v", left, err)
	}
	if n := w.get(nodeKey); strings.Contains(n, "TunnelAddr") || w.get(api.HandleKey(api.VXLANHandle("node-1", false))) != "" {
		t.Errorf("the tunnel address is left: %s", n)
	}
	if host, _ := w.block("/calico/ipam/v2/assignment/ipv4/block/10.0.0.8-30").Host(); host != "node-2" {
		t.Errorf("the other node's block belongs to %q", host)
	}
	w.delete(nodeKey)
	if again, err := w.releaseNode(w.ctx()); err != nil || len(again.Deleted)+len(again.Disowned)+len(again.Claims) != 0 {
		t.Errorf("a second time, without the Node: %+v, %v", again, err)
	}
}

// TestTeardownGoesOnWhereItWasInterrupted ends the procedure's context after each of its writes.
func TestTeardownGoesOnWhereItWasInterrupted(t *testing.T) {
	for _, procedure := range []struct {
		name string
		run  func(context.Context, *world) (ipam.Remains, error)
	}{
		{"pool", func(ctx context.Context, w *world) (ipam.Remains, error) {
			return ipam.ReleasePool(ctx, w.c, prefix("10.0.0.0/28"))
		}},
		{"node", func(ctx context.Context, w *world) (ipam.Remains, error) {
			return w.releaseNode(ctx)
		}},
	} {
		whole := twoNodes(t)
		if _, err := procedure.run(whole.ctx(), whole); err != nil {
			t.Fatal(err)
		}
		for stop := int64(1); stop <= 6; stop++ {
			w := twoNodes(t)
			ctx, cancel := context.WithCancel(w.ctx())
			start := w.revision()
			watch := w.e.Etcd().Watch(ctx, "/calico/", clientv3.WithPrefix())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for r := range watch {
					if r.Header.Revision >= start+stop {
						cancel()
					}
				}
			}()
			_, _ = procedure.run(ctx, w) // it may have been faster
			cancel()
			<-done
			if _, err := procedure.run(w.ctx(), w); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(whole.shape(), w.shape()); diff != "" {
				t.Errorf("%s interrupted after %d writes (-whole +resumed):\n%s", procedure.name, stop, diff)
			}
		}
	}
}
