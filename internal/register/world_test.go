package register_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/ipamtest"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
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
// addresses that are held.
func (w *world) consistent() int {
	w.t.Helper()
	v := w.view()
	if err := v.Exact("net"); err != nil {
		w.t.Error(err)
	}
	return v.Allocated()
}

// view is what etcd says of addresses.
func (w *world) view() ipamtest.View {
	w.t.Helper()
	v, err := ipamtest.Read(w.ctx(), w.c)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
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
