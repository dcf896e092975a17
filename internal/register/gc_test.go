package register_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

func (w *world) stale(h *register.Handler, valid ...string) []attach.Stale {
	w.t.Helper()
	req := attach.Request{Network: "net"}
	for _, id := range valid {
		req.Valid = append(req.Valid, attach.Attachment{ContainerID: id, IfName: "eth0"})
	}
	out, err := h.Stale(w.ctx(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func containers(stale []attach.Stale) (out []string) {
	for _, s := range stale {
		out = append(out, s.ContainerID)
	}
	return out
}

func TestManyStaleContainersAreFreedInFewTransactions(t *testing.T) {
	const count = 100
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("blue", "10.0.0.0/16", 26)
	h := w.handler("node-1")
	for i := range count {
		w.add(h, podRequest(fmt.Sprintf("c%d", i), fmt.Sprintf("pod-%d", i)))
	}
	stale := w.stale(h, "c7")
	if len(stale) != count-1 {
		t.Fatalf("%d are stale, want %d", len(stale), count-1)
	}
	before := w.revision()
	if err := h.Free(w.ctx(), attach.Request{Network: "net", Stale: stale}); err != nil {
		t.Fatal(err)
	}
	if used := w.revision() - before; used > count/4 {
		t.Errorf("%d transactions for %d containers", used, count-1)
	}
	if left := w.consistent(); left != 1 || len(w.endpoints()) != 1 {
		t.Errorf("%d addresses and %d endpoints are left, want those of c7", left, len(w.endpoints()))
	}
}

func TestStaleIsTheSameFromMemoryAndFromEtcd(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.node("node-2", nil)
	w.pool("blue", "10.0.0.0/16", 26)
	for _, node := range []string{"node-1", "node-2"} {
		w.add(w.handler(node), podRequest("of-"+node, "pod-"+node))
	}
	if _, err := w.handler("node-1").Allocate(w.ctx(), request("bare")); err != nil {
		t.Fatal(err)
	}
	w.putRaw(api.ResourcesRoot+"workloadendpoints/default/node--1-cni-foreign-eth0",
		`{"kind":"WorkloadEndpoint","metadata":{"name":"node--1-cni-foreign-eth0","namespace":"default"},"spec":{"orchestrator":"cni","node":"node-1","containerID":"foreign","endpoint":"eth0","profiles":["net"],"interfaceName":"califoreign","ipNetworks":["192.0.2.9/32"]}}`)
	fromEtcd := w.stale(w.handler("node-1"))
	fromMemory := w.stale(register.New(register.Config{Client: w.c, Node: "node-1", Source: register.FromFeed(w.follow())}))
	if diff := cmp.Diff(fromEtcd, fromMemory); diff != "" {
		t.Errorf("(-etcd +memory):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"bare", "foreign", "of-node-1"}, containers(fromEtcd)); diff != "" {
		t.Errorf("stale (-want +got):\n%s", diff)
	}
	if err := w.handler("node-1").Free(w.ctx(), attach.Request{Network: "net", Stale: fromEtcd}); err != nil {
		t.Fatal(err)
	}
	if left := w.consistent(); left != 1 || len(w.endpoints()) != 1 {
		t.Errorf("%d addresses and %d endpoints are left, want those of node-2", left, len(w.endpoints()))
	}
}

// TestBroughtAddressesAreStaleForTheirNetworkAlone is about endpoints that neither a handle nor a profile attributes to a network.
func TestBroughtAddressesAreStaleForTheirNetworkAlone(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	h := register.New(register.Config{Client: w.c, Node: "node-1", PodFacts: func(context.Context, attach.Pod) (register.Pod, error) {
		return register.Pod{Profiles: []string{"kns.default", "ksa.default.default"}}, nil
	}})
	for _, network := range []string{"net", "other"} {
		req := podRequest("of-"+network, "pod-"+network)
		req.Network, req.PolicyType, req.ForeignIPAM, req.Addrs = network, "k8s", "host-local", []netip.Addr{netip.MustParseAddr("10.7.0.5")}
		w.add(h, req)
	}
	stale := w.stale(h)
	if diff := cmp.Diff([]string{"of-net"}, containers(stale)); diff != "" {
		t.Fatalf("stale (-want +got):\n%s", diff)
	}
	if err := h.Free(w.ctx(), attach.Request{Network: "net", Stale: stale}); err != nil {
		t.Fatal(err)
	}
	if left := w.endpoints(); len(left) != 1 || left[0].Value.Spec.ContainerID != "of-other" {
		t.Errorf("endpoints %+v are left, want the other network's", left)
	}
}

// meanwhile is a Source during whose reading something happens.
type meanwhile struct {
	register.Source
	client *store.Client
	do     func()
}

func (m meanwhile) AllBlocks(ctx context.Context, v6 bool) ([]store.Entry[api.Block], error) {
	if !v6 {
		m.do()
	}
	return ipam.Etcd{Client: m.client}.AllBlocks(ctx, v6)
}

func TestWhatIsAddedWhileGCLooksIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("blue", "10.0.0.0/16", 26)
	w.add(w.handler("node-1"), podRequest("old", "old"))
	source := meanwhile{w.picture(), w.c, func() { w.add(w.handler("node-1"), podRequest("new", "new")) }}
	h := register.New(register.Config{Client: w.c, Node: "node-1", Source: always(source)})
	if diff := cmp.Diff([]string{"old"}, containers(w.stale(h))); diff != "" {
		t.Errorf("stale (-want +got):\n%s", diff)
	}
}

func TestWhatChangedSinceIsNotFreed(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("blue", "10.0.0.0/16", 26)
	h := w.handler("node-1")
	w.add(h, podRequest("c1", "nginx"))
	stale := w.stale(h)
	w.del(h, podRequest("c1", "nginx"))
	w.add(h, podRequest("c1", "nginx"))
	before := w.dump()
	if err := h.Free(w.ctx(), attach.Request{Network: "net", Stale: stale}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Errorf("etcd (-before +after):\n%s", diff)
	}
}

func TestFailureOfOneDoesNotKeepTheOthersFromBeingFreed(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("blue", "10.0.0.0/16", 30) // four addresses a block
	h := w.handler("node-1")
	blocks := map[string]string{} // by container
	for i := range 8 {
		id := fmt.Sprintf("c%d", i)
		a := w.add(h, podRequest(id, "pod-"+id)).Addrs[0]
		p, err := a.Prefix(30)
		if err != nil {
			t.Fatal(err)
		}
		blocks[id] = api.BlockKey(p)
	}
	stale := w.stale(h)
	w.putRaw(blocks["c7"], "{")
	err := h.Free(w.ctx(), attach.Request{Network: "net", Stale: stale})
	if err == nil || !strings.Contains(err.Error(), "c7") || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v, want an error that names what could not be freed", err)
	}
	for _, e := range w.endpoints() {
		if id := e.Value.Spec.ContainerID; blocks[id] != blocks["c7"] {
			t.Errorf("%s was not freed", id)
		}
	}
}

func TestHandleThatMayBeAnotherNetworksIsNotStale(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("blue", "10.0.0.0/16", 26)
	h := w.handler("node-1")
	dotted := podRequest("c1", "one")
	dotted.Network = "net.a"
	w.add(h, dotted)                      // net.a.c1, of net.a as its endpoint says
	w.add(h, podRequest("a.c2", "two"))   // net.a.c2, of net as its endpoint says
	w.add(h, podRequest("a.c3", "three")) // net.a.c3, and now both might be meant
	both := podRequest("c3", "four")
	both.Network = "other"
	w.add(h, both)
	if diff := cmp.Diff([]string{"a.c2"}, containers(w.stale(h))); diff != "" {
		t.Errorf("stale (-want +got):\n%s", diff)
	}
}
