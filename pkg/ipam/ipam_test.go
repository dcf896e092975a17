package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	blockKey    = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30"
	affinityKey = "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.0-30"
)

// world is an etcd with a ready cluster, node-1, and the pool 10.0.0.0/30 of a single block unless the test asks for others.
type world struct {
	t *testing.T
	e *etcdtest.Server
	c *store.Client
}

func newWorld(t *testing.T) *world {
	e := etcdtest.New(t)
	w := &world{t, e, e.Store()}
	w.put(ipam.ClusterKey(), `{"spec":{"datastoreReady":true}}`)
	w.put("/calico/resources/v3/projectcalico.org/nodes/node-1", `{"metadata":{"name":"node-1","labels":{"zone":"a"}},"spec":{}}`)
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"vxlanMode":"Always"`)
	return w
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) put(key, value string) {
	w.t.Helper()
	if _, err := w.e.Etcd().Put(w.ctx(), key, value); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pool(name, spec string) {
	w.t.Helper()
	w.put("/calico/resources/v3/projectcalico.org/ippools/"+name, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{%s}}`, name, spec))
}

// get is what a key holds; "" if it does not exist.
func (w *world) get(key string) string {
	w.t.Helper()
	got, _, err := w.c.Read(w.ctx(), store.Range{Key: key})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(got[0]) == 0 {
		return ""
	}
	return string(got[0][0].Value)
}

func (w *world) block(key string) *api.Block {
	w.t.Helper()
	e, err := store.Get[api.Block](w.ctx(), w.c, key)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := block.Validate(e.Value); err != nil {
		w.t.Error(err)
	}
	return e.Value
}

// plan starts a plan on etcd, with what it holds of the handle.
func (w *world) plan(node, handle string) (*ipam.Plan, store.Entry[api.Handle]) {
	w.t.Helper()
	src := ipam.Etcd{Client: w.c}
	facts, err := src.Facts(w.ctx(), node)
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := store.Get[api.Handle](w.ctx(), w.c, api.HandleKey(handle))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	return ipam.NewPlan(src, node, facts, time.Now()), h
}

func ask(handle string) ipam.Request {
	return ipam.Request{Handle: handle, Attrs: map[string]string{api.AttrNode: "node-1"}, Use: api.UseWorkload}
}

// assign takes one address for a handle in a transaction of its own.
func (w *world) assign(node string, r ipam.Request) (netip.Prefix, error) {
	w.t.Helper()
	p, h := w.plan(node, r.Handle)
	if _, err := p.Held(w.ctx(), h); err != nil {
		return netip.Prefix{}, err
	}
	a, err := p.Assign(w.ctx(), r)
	if err != nil {
		return a, err
	}
	_, err = w.c.Commit(w.ctx(), p.Txn())
	return a, err
}

func (w *world) mustAssign(handle string) netip.Prefix {
	w.t.Helper()
	a, err := w.assign("node-1", ask(handle))
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) release(handle string) []netip.Prefix {
	w.t.Helper()
	p, h := w.plan("node-1", handle)
	freed, err := p.Release(w.ctx(), h)
	if err != nil {
		w.t.Fatal(err)
	}
	if t := p.Txn(); !t.Empty() {
		if _, err := w.c.Commit(w.ctx(), t); err != nil {
			w.t.Fatal(err)
		}
	}
	return freed
}

// blockJSON is 10.0.0.0/30 with ordinal 0 held by a handle of another container.
func blockJSON(affinity string) string {
	return `{"cidr":"10.0.0.0/30","affinity":` + affinity + `,"allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":"other"}],"sequenceNumber":5,"sequenceNumberForAllocation":{"0":4},"deleted":false}`
}

// TestStatesThatCalicosWritersLeave holds each state of an affinity, with each state of its block, against what must come of it.
func TestStatesThatCalicosWritersLeave(t *testing.T) {
	const ours, theirs, nobodys = `"host:node-1"`, `"host:node-2"`, `null`
	for _, state := range []string{`{"state":"pending","deleted":false}`, `{"state":"pendingDeletion","deleted":false}`, `{"state":"confirmed","deleted":false}`, `{}`, ``} {
		for _, c := range []struct {
			name, block string
			want        string // the address; "": none is left
		}{
			{"no block", "", "10.0.0.0"},
			{"block is ours", blockJSON(ours), "10.0.0.1"},
			{"block is another node's", blockJSON(theirs), ""},
			{"block is nobody's", blockJSON(nobodys), ""},
			{"block is a virtual owner's", blockJSON(`"virtual:load-balancer"`), ""},
		} {
			t.Run(state+" "+c.name, func(t *testing.T) {
				w := newWorld(t)
				w.put(api.IPAMConfigKey, `{"strict_affinity":true,"auto_allocate_blocks":true}`)
				w.put(affinityKey, state)
				if c.block != "" {
					w.put(blockKey, c.block)
				}
				a, err := w.assign("node-1", ask("mine"))
				if c.want == "" {
					if !errors.Is(err, ipam.ErrNoAddress) || w.get(blockKey) != c.block {
						t.Errorf("got %v, %v and block %s", a, err, w.get(blockKey))
					}
					return
				}
				if err != nil || a.Addr().String() != c.want {
					t.Fatalf("got %v, %v, want %s", a, err, c.want)
				}
				if host, _ := w.block(blockKey).Host(); host != "node-1" {
					t.Errorf("the block belongs to %q", host)
				}
				aff, err := store.Get[api.Affinity](w.ctx(), w.c, affinityKey)
				if err != nil || !aff.Value.Confirmed() {
					t.Errorf("affinity %v, %v; want confirmed", aff.Value, err)
				}
			})
		}
	}
}

func TestStaleAffinityGoesWithTheNextAllocation(t *testing.T) {
	w := newWorld(t)
	w.put(affinityKey, `{"state":"confirmed","deleted":false}`)
	w.put(blockKey, blockJSON(`"host:node-2"`))
	w.pool("pool2", `"cidr":"10.1.0.0/30","blockSize":30`)
	if a := w.mustAssign("mine"); a.Addr().String() != "10.1.0.0" {
		t.Errorf("address %v", a)
	}
	if got := w.get(affinityKey); got != "" {
		t.Errorf("the stale affinity is still %s", got)
	}
	if got := w.get(blockKey); got != blockJSON(`"host:node-2"`) {
		t.Errorf("the other node's block is now %s", got)
	}
}

func TestBlockOfOursWithoutAffinityIsTakenUpAgain(t *testing.T) {
	w := newWorld(t)
	w.put(blockKey, blockJSON(`"host:node-1"`))
	if a := w.mustAssign("mine"); a.Addr().String() != "10.0.0.1" {
		t.Errorf("address %v", a)
	}
	if got := w.get(affinityKey); got != `{"state":"confirmed","deleted":false}` {
		t.Errorf("affinity %q", got)
	}
}

func TestOverCountingHandleIsPutRight(t *testing.T) {
	w := newWorld(t)
	w.mustAssign("mine")
	w.put(api.HandleKey("mine"), `{"block":{"10.0.0.0/30":2,"10.9.0.0/30":1},"deleted":false,"unknown":7}`)
	w.mustAssign("mine")
	if got := w.get(api.HandleKey("mine")); got != `{"block":{"10.0.0.0/30":2},"deleted":false,"unknown":7}` {
		t.Errorf("handle %s", got)
	}
	w.put(api.HandleKey("ghost"), `{"block":{"10.0.0.0/30":1},"deleted":false}`)
	if freed := w.release("ghost"); freed != nil || w.get(api.HandleKey("ghost")) != "" {
		t.Errorf("a handle without addresses freed %v and is %q", freed, w.get(api.HandleKey("ghost")))
	}
	if freed := w.release("mine"); len(freed) != 2 || w.get(api.HandleKey("mine")) != "" {
		t.Errorf("freed %v, want both", freed)
	}
	if got := block.Free(w.block(blockKey)); got != 4 {
		t.Errorf("%d addresses free, want 4", got)
	}
}

func TestReleaseDependsOnTheBlocksItSaw(t *testing.T) {
	w := newWorld(t)
	w.mustAssign("mine")
	p, h := w.plan("node-1", "mine")
	if _, err := p.Release(w.ctx(), h); err != nil {
		t.Fatal(err)
	}
	w.mustAssign("other")
	if _, err := w.c.Commit(w.ctx(), p.Txn()); !errors.Is(err, store.ErrConflict) {
		t.Errorf("commit on a block that changed: %v", err)
	}
}

func TestLastReleaseDeletesABlockOfNobody(t *testing.T) {
	w := newWorld(t)
	w.put(blockKey, blockJSON(`null`))
	w.put(api.HandleKey("other"), `{"block":{"10.0.0.0/30":1},"deleted":false}`)
	w.release("other")
	if got := w.get(blockKey); got != "" {
		t.Errorf("block %s", got)
	}
}

func TestLastReleaseKeepsTheNodesBlock(t *testing.T) {
	w := newWorld(t)
	w.mustAssign("mine")
	w.release("mine")
	if host, _ := w.block(blockKey).Host(); host != "node-1" {
		t.Errorf("the empty block belongs to %q", host)
	}
}

func TestDamagedBlockStopsOnlyItself(t *testing.T) {
	for _, damaged := range []string{`{"cidr":7}`, strings.Replace(blockJSON(`"host:node-1"`), "10.0.0.0/30", "10.1.0.0/30", 1)} {
		w := newWorld(t)
		w.mustAssign("mine")
		w.put(blockKey, damaged)
		w.pool("pool2", `"cidr":"10.1.0.0/30","blockSize":30`)
		if a := w.mustAssign("next"); a.Addr().String() != "10.1.0.0" {
			t.Errorf("address %v", a)
		}
		if got := w.get(blockKey); got != damaged {
			t.Errorf("the damaged block was changed to %s", got)
		}
		p, h := w.plan("node-1", "mine")
		if _, err := p.Release(w.ctx(), h); err == nil || !strings.Contains(err.Error(), blockKey) {
			t.Errorf("release from a damaged block: %v", err)
		}
	}
}

func TestAffinityThatCannotBeReadIsWrittenOver(t *testing.T) {
	for _, garbage := range []string{`[]`, `{"state"`} {
		for _, b := range []string{"", blockJSON(`"host:node-1"`)} {
			w := newWorld(t)
			w.put(affinityKey, garbage)
			if b != "" {
				w.put(blockKey, b)
			}
			w.mustAssign("mine")
			if got := w.get(affinityKey); got != `{"state":"confirmed","deleted":false}` {
				t.Errorf("affinity %s after %s", got, garbage)
			}
		}
	}
}

func TestBlocksOfOneNodeAreBounded(t *testing.T) {
	for _, c := range []struct {
		config string
		want   int
	}{
		{"", 20},
		{`{"auto_allocate_blocks":true,"strict_affinity":true,"maxBlocksPerHost":3}`, 3},
		{`{"auto_allocate_blocks":true}`, 20},
	} {
		w := newWorld(t)
		w.pool("pool", `"cidr":"10.0.0.0/24","blockSize":32`)
		if c.config != "" {
			w.put(api.IPAMConfigKey, c.config)
		}
		p, _ := w.plan("node-1", "many")
		n := 0
		var err error
		for ; err == nil && n < 30; n++ {
			trial := p.Clone()
			if _, err = trial.Assign(w.ctx(), ask("many")); err != nil {
				break
			}
			p = trial
		}
		if n != c.want || !errors.Is(err, ipam.ErrNoAddress) || !strings.Contains(fmt.Sprint(err), "cannot allocate new block due to per host block limit") {
			t.Errorf("config %s: %d blocks, then %v; want %d", c.config, n, err, c.want)
		}
		if _, err := w.c.Commit(w.ctx(), p.Txn()); err != nil {
			t.Errorf("commit of %d claims at once: %v", n, err)
		}
	}
}

func TestPoolsAreUsedInTheOrderOfTheirNames(t *testing.T) {
	w := newWorld(t)
	w.pool("a-pool", `"cidr":"10.2.0.0/31","blockSize":31`)
	var got []string
	for i := range 3 {
		got = append(got, w.mustAssign(fmt.Sprint("h", i)).String())
	}
	if want := []string{"10.2.0.0/31", "10.2.0.1/31", "10.0.0.0/30"}; !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
}

func TestNamespaceSelectorsLookAtTheNamespace(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"namespaceSelector":"team == \"a\""`)
	if _, err := w.assign("node-1", ask("h")); !errors.Is(err, ipam.ErrNoPool) {
		t.Errorf("without a namespace: %v", err)
	}
	r := ask("h")
	r.Namespace = map[string]string{"team": "a"}
	if _, err := w.assign("node-1", r); err != nil {
		t.Errorf("in the namespace: %v", err)
	}
}

func TestUseMustBeSaid(t *testing.T) {
	w := newWorld(t)
	r := ask("h")
	r.Use = ""
	if _, err := w.assign("node-1", r); !errors.Is(err, ipam.ErrRequest) {
		t.Errorf("without a use: %v", err)
	}
}

func TestBrokenSelectorSpoilsOnlyItsPool(t *testing.T) {
	w := newWorld(t)
	w.pool("broken", `"cidr":"10.3.0.0/30","blockSize":30,"nodeSelector":"((("`)
	w.mustAssign("h")
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"disabled":true`)
	if _, err := w.assign("node-1", ask("h2")); !errors.Is(err, ipam.ErrNoPool) || !strings.Contains(err.Error(), "pool broken: nodeSelector") {
		t.Errorf("only the broken pool is left: %v", err)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	w := newWorld(t)
	p, _ := w.plan("node-1", "h")
	c := p.Clone()
	if _, err := c.Assign(w.ctx(), ask("h")); err != nil {
		t.Fatal(err)
	}
	if !p.Txn().Empty() || c.Txn().Empty() {
		t.Errorf("original empty %v, clone empty %v; want true and false", p.Txn().Empty(), c.Txn().Empty())
	}
}

func TestRetryGivesUp(t *testing.T) {
	n := 0
	err := ipam.Retry(t.Context(), func(int) error { n++; return store.ErrConflict })
	if !errors.Is(err, ipam.ErrBusy) || n < 10 {
		t.Errorf("after %d attempts: %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = ipam.Retry(ctx, func(int) error { cancel(); return store.ErrConflict })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("after the context ended: %v", err)
	}
}

func TestHandleWithoutCountsIsCountedAnew(t *testing.T) {
	for _, stored := range []string{`{}`, `{"block":null,"deleted":false}`, ``} {
		w := newWorld(t)
		w.put(api.HandleKey("mine"), stored)
		w.mustAssign("mine")
		if got := w.get(api.HandleKey("mine")); got != `{"block":{"10.0.0.0/30":1},"deleted":false}` {
			t.Errorf("handle %s after %q", got, stored)
		}
	}
}

func TestAllocationDependsOnTheNodeThatPoolsSelect(t *testing.T) {
	w := newWorld(t)
	p, _ := w.plan("node-1", "mine")
	if _, err := p.Assign(w.ctx(), ask("mine")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.e.Etcd().Delete(w.ctx(), nodeKey); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.Commit(w.ctx(), p.Txn()); !errors.Is(err, store.ErrConflict) {
		t.Errorf("commit for a node that was deleted meanwhile: %v", err)
	}
}

func TestPoolThatIsBeingDeletedIsNotUsed(t *testing.T) {
	w := newWorld(t)
	w.put("/calico/resources/v3/projectcalico.org/ippools/pool",
		`{"metadata":{"name":"pool","deletionTimestamp":"2026-01-01T00:00:00Z"},"spec":{"cidr":"10.0.0.0/30","blockSize":30}}`)
	if a, err := w.assign("node-1", ask("mine")); !errors.Is(err, ipam.ErrNoPool) {
		t.Errorf("got %v, %v", a, err)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func (w *world) revision() int64 {
	w.t.Helper()
	rev, err := w.c.Revision(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	return rev
}

// shape is everything below the IPAM root, without what depends on the time.
func (w *world) shape() map[string]string {
	w.t.Helper()
	got, _, err := w.c.Read(w.ctx(), store.Range{Key: api.IPAMRoot, Prefix: true})
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range got[0] {
		out[kv.Key] = string(kv.Value)
	}
	return out
}
