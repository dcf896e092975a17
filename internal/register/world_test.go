package register_test

import (
	"context"
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
	reply, _, err := h.Add(w.ctx(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply
}

func (w *world) del(h *register.Handler, req attach.Request) {
	w.t.Helper()
	if _, err := h.Del(w.ctx(), req); err != nil {
		w.t.Fatal(err)
	}
}

// memory is a picture of etcd, like the agent's feed: it knows what it has been shown.
type memory struct {
	mu  sync.Mutex
	kvs map[string]store.KV
}

// picture is what etcd holds now.
func (w *world) picture() *memory {
	w.t.Helper()
	got, _, err := w.c.Read(w.ctx(), store.Range{Key: "/", Prefix: true})
	if err != nil {
		w.t.Fatal(err)
	}
	m := &memory{kvs: map[string]store.KV{}}
	m.show(got[0])
	return m
}

func (m *memory) show(kvs []store.KV) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, kv := range kvs {
		if kv.Value == nil {
			delete(m.kvs, kv.Key)
			continue
		}
		m.kvs[kv.Key] = kv
	}
}

func entry[T api.Value](m *memory, key string) store.Entry[T] {
	m.mu.Lock()
	defer m.mu.Unlock()
	kv := m.kvs[key]
	kv.Key = key
	e, err := store.Decode[T](kv)
	if err != nil {
		panic(err)
	}
	return e
}

func entries[T api.Value](m *memory, prefix string) []store.Entry[T] {
	m.mu.Lock()
	var keys []string
	for k := range m.kvs {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	m.mu.Unlock()
	slices.Sort(keys)
	var out []store.Entry[T]
	for _, k := range keys {
		out = append(out, entry[T](m, k))
	}
	return out
}

func (m *memory) Facts(_ context.Context, node string) (ipam.Facts, error) {
	return ipam.Facts{
		Node:       entry[api.Node](m, (*api.Node)(nil).KindOf().Key("", node)),
		Cluster:    entry[api.ClusterInformation](m, ipam.ClusterKey()),
		Config:     entry[api.IPAMConfig](m, api.IPAMConfigKey),
		Pools:      entries[api.IPPool](m, (*api.IPPool)(nil).KindOf().Prefix()),
		Affinities: entries[api.Affinity](m, api.AffinitiesPrefix(node)),
	}, nil
}

func (m *memory) Blocks(_ context.Context, cidrs ...netip.Prefix) ([]store.Entry[api.Block], error) {
	var out []store.Entry[api.Block]
	for _, c := range cidrs {
		out = append(out, entry[api.Block](m, api.BlockKey(c)))
	}
	return out, nil
}

func (m *memory) AllBlocks(_ context.Context, v6 bool) ([]store.Entry[api.Block], error) {
	return entries[api.Block](m, api.BlocksPrefix(v6)), nil
}

func (m *memory) Endpoint(key string) store.Entry[api.WorkloadEndpoint] {
	return entry[api.WorkloadEndpoint](m, key)
}

func (m *memory) Profile(key string) store.Entry[api.Profile] { return entry[api.Profile](m, key) }
