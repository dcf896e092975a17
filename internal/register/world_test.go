package register_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// world is an etcd with a cluster in it.
type world struct {
	t    *testing.T
	etcd *etcdtest.Server
	c    *store.Client
}

// newWorld holds a ready cluster, and nothing else.
func newWorld(t *testing.T) *world {
	etcd := etcdtest.New(t)
	w := &world{t, etcd, etcd.Store()}
	w.lock(false)
	return w
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	w.t.Cleanup(cancel)
	return ctx
}

// put writes objects over whatever there is.
func put[T api.Value](w *world, key string, v *T) {
	w.t.Helper()
	raw, err := api.Encode(v, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.putRaw(key, string(raw))
}

func (w *world) putRaw(key, value string) {
	w.t.Helper()
	if _, err := w.etcd.Etcd().Put(w.ctx(), key, value); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(key string) {
	w.t.Helper()
	if _, err := w.etcd.Etcd().Delete(w.ctx(), key); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) lock(locked bool) {
	ready := !locked
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: &ready}}
	info.Metadata.Name = "default"
	put(w, ipam.ClusterKey(), info)
}

func (w *world) node(name string, labels map[string]string) {
	n := &api.Node{}
	n.Metadata.Name, n.Metadata.Labels = name, labels
	put(w, api.KeyOf(n), n)
}

func (w *world) pool(name, cidr string, blockSize int, with ...func(*api.IPPoolSpec)) {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix(cidr), BlockSize: blockSize}}
	p.Metadata.Name = name
	for _, f := range with {
		f(&p.Spec)
	}
	put(w, api.KeyOf(p), p)
}

func disabled(s *api.IPPoolSpec) { s.Disabled = true }

func (w *world) handler(node string) *register.Handler {
	return register.New(register.Config{Client: w.c, Node: node, Log: slog.New(slog.DiscardHandler)})
}

// dump is everything in etcd.
func (w *world) dump() map[string]string {
	w.t.Helper()
	got, _, err := w.c.Read(w.ctx(), store.Range{Key: "/", Prefix: true})
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range got[0] {
		out[kv.Key] = string(kv.Value)
	}
	return out
}

func (w *world) revision() int64 {
	w.t.Helper()
	rev, err := w.c.Revision(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	return rev
}

func listOf[T api.Value](w *world, prefix string) []store.Entry[T] {
	w.t.Helper()
	out, _, err := store.List[T](w.ctx(), w.c, prefix)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) endpoints() []store.Entry[api.WorkloadEndpoint] {
	return listOf[api.WorkloadEndpoint](w, (*api.WorkloadEndpoint)(nil).KindOf().Prefix())
}

// consistent fails the test unless blocks, handles, affinities and endpoints tell the same story. It returns the number of
// addresses that handles hold.
func (w *world) consistent() int {
	w.t.Helper()
	held := map[string][]string{} // addresses by handle, as the blocks say
	counts := map[string]map[string]int{}
	for _, e := range slices.Concat(listOf[api.Block](w, api.BlocksPrefix(false)), listOf[api.Block](w, api.BlocksPrefix(true))) {
		if err := block.Validate(e.Value); err != nil {
			w.t.Error(err)
		}
		if host, ok := e.Value.Host(); ok {
			a, err := store.Get[api.Affinity](w.ctx(), w.c, api.AffinityKey(host, e.Value.CIDR))
			if err != nil || !a.Value.Confirmed() {
				w.t.Errorf("block %v of %s: affinity %v, %v", e.Value.CIDR, host, a.Value, err)
			}
		}
		for n := range block.Size(e.Value.CIDR) {
			a := block.Addr(e.Value.CIDR, n)
			o, ok := block.OwnerOf(e.Value, a)
			if !ok {
				continue
			}
			id := *o.HandleID
			held[id] = append(held[id], a.String())
			if counts[id] == nil {
				counts[id] = map[string]int{}
			}
			counts[id][e.Value.CIDR.String()]++
		}
	}
	handles := listOf[api.Handle](w, api.HandlesRoot)
	if len(handles) != len(held) {
		w.t.Errorf("%d handles, and blocks name %d", len(handles), len(held))
	}
	for _, h := range handles {
		id := strings.TrimPrefix(h.Key, api.HandlesRoot)
		if got, want := fmt.Sprint(h.Value.Block), fmt.Sprint(counts[id]); got != want {
			w.t.Errorf("handle %s counts %s, blocks hold %s", id, got, want)
		}
	}
	w.endpointsAgree(held)
	return len(slices.Concat(slices.Collect(valuesOf(held))...))
}

func valuesOf(m map[string][]string) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

func (w *world) endpointsAgree(held map[string][]string) {
	w.t.Helper()
	seen := map[string]string{}
	for _, e := range w.endpoints() {
		var have []string
		for _, n := range e.Value.Spec.IPNetworks {
			a := n.Addr().String()
			if other := seen[a]; other != "" {
				w.t.Errorf("%s is given to %s and %s", a, other, e.Key)
			}
			seen[a] = e.Key
			have = append(have, a)
		}
		if got, want := fmt.Sprint(have), fmt.Sprint(held[api.PodHandle("net", e.Value.Spec.ContainerID)]); got != want {
			w.t.Errorf("endpoint %s has %s, its handle %s", e.Key, got, want)
		}
	}
}

// request is what the plugin asks for a container, which is not a pod.
func request(container string) attach.Request {
	return attach.Request{Network: "net", ContainerID: container, IfName: "eth0", HostIf: "cali" + container, MAC: "02:00:00:00:00:01"}
}

// podRequest is the same for a container of a pod.
func podRequest(container, pod string) attach.Request {
	r := request(container)
	r.Pod = attach.Pod{Namespace: "default", Name: pod}
	return r
}

func (w *world) add(h *register.Handler, req attach.Request) attach.Reply {
	w.t.Helper()
	reply, err := h.Add(w.ctx(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply
}

func (w *world) del(h *register.Handler, req attach.Request) {
	w.t.Helper()
	if err := h.Del(w.ctx(), req); err != nil {
		w.t.Fatal(err)
	}
}

// follow is a feed that has seen what etcd holds now, and goes on following until the test ends.
func (w *world) follow() *feed.Feed {
	w.t.Helper()
	f := feed.New(w.c, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(w.ctx())
	var done sync.WaitGroup
	done.Go(func() {
		if err := f.Run(ctx); !errors.Is(err, context.Canceled) {
			w.t.Errorf("feed: %v", err)
		}
	})
	w.t.Cleanup(done.Wait)
	w.t.Cleanup(cancel)
	if err := f.WaitFor(ctx, w.revision()); err != nil {
		w.t.Fatal(err)
	}
	return f
}

// picture is what etcd holds now, and stays like that.
func (w *world) picture() register.Source {
	w.t.Helper()
	s, ok := w.follow().Snapshot()
	if !ok {
		w.t.Fatal("the feed has no snapshot")
	}
	return register.Picture(s)
}

func always(s register.Source) func() register.Source {
	return func() register.Source { return s }
}
