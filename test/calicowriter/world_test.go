package calicowriter_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/ipamtest"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
	"github.com/muslin-cni/muslin/test/calicowriter"
)

const network = "net"

// The nodes: Calico's sequences work for the first.
const (
	node1 = "node-1"
	node2 = "node-2"
)

// tb is what a test and a property have in common.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// rig is an etcd with a feed on it, for many worlds one after the other.
type rig struct {
	ctx  context.Context
	etcd *clientv3.Client
	c    *store.Client
	feed *feed.Feed
}

func newRig(t *testing.T) *rig {
	t.Helper()
	e := etcdtest.New(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	r := &rig{ctx: ctx, etcd: e.Etcd(), c: e.Store()}
	r.feed = feed.New(r.c, slog.New(slog.DiscardHandler))
	var done sync.WaitGroup
	done.Go(func() {
		if err := r.feed.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("feed: %v", err)
		}
	})
	t.Cleanup(done.Wait)
	t.Cleanup(cancel)
	return r
}

// world is one cluster of two nodes and a pool of four blocks of four, and what everybody was told.
type world struct {
	*rig
	t       tb
	told    map[string][]netip.Addr // by container ID: what its ADD returned
	dead    map[string]bool         // container IDs that were deleted once
	touched map[string]bool         // container IDs that there may be
	source  func() register.Source  // of our handlers
	now     time.Time               // of everybody
}

var pool = netip.MustParsePrefix("10.0.0.0/28")

const blockBits = 30

// blockAt is the n-th of the pool's.
func blockAt(n int) netip.Prefix {
	a := pool.Addr().As4()
	a[3] += byte(n << (32 - blockBits))
	return netip.PrefixFrom(netip.AddrFrom4(a), blockBits)
}

// blocks is how many there are.
const blocks = 4

// scene is a cluster as it was once, to begin from again.
type scene struct {
	puts []clientv3.Op
	told map[string][]netip.Addr
	now  time.Time
}

// play puts the scene on, in the place of whatever there is.
func (r *rig) play(t tb, s scene) *world {
	t.Helper()
	w := &world{rig: r, t: t, told: maps.Clone(s.told), dead: map[string]bool{}, touched: map[string]bool{}, now: s.now}
	for id := range s.told {
		w.touched[id] = true
	}
	_, err := r.etcd.Delete(r.ctx, "/", clientv3.WithPrefix())
	w.must(err)
	_, err = r.etcd.Txn(r.ctx).Then(s.puts...).Commit()
	w.must(err)
	return w
}

// empty is a cluster without a container.
func (r *rig) empty(t tb) *world {
	t.Helper()
	w := &world{t: t}
	ready := true
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: &ready}}
	info.Metadata.Name = "default"
	cfg := api.DefaultIPAMConfig()
	return r.play(t, scene{now: time.Now(), told: map[string][]netip.Addr{}, puts: []clientv3.Op{
		clientv3.OpPut(ipam.ClusterKey(), encode(w, info)), clientv3.OpPut(api.IPAMConfigKey, encode(w, &cfg)),
		clientv3.OpPut(api.NodeKey(node1), encode(w, node(node1))), clientv3.OpPut(api.NodeKey(node2), encode(w, node(node2))),
		clientv3.OpPut(poolKey, encode(w, poolOf(api.Always))),
	}})
}

// scene is how things are now.
func (w *world) scene() scene {
	w.t.Helper()
	got, err := w.etcd.Get(w.ctx, "/", clientv3.WithPrefix())
	w.must(err)
	s := scene{told: maps.Clone(w.told), now: w.now}
	for _, kv := range got.Kvs {
		s.puts = append(s.puts, clientv3.OpPut(string(kv.Key), string(kv.Value)))
	}
	return s
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v", err)
	}
}

func encode[T api.Value](w *world, v *T) string {
	raw, err := api.Encode(v, nil)
	w.must(err)
	return string(raw)
}

var poolKey = (*api.IPPool)(nil).KindOf().Key("", "pool")

func node(name string) *api.Node {
	n := &api.Node{}
	n.Metadata.Name = name
	return n
}

func poolOf(vxlan api.EncapMode) *api.IPPool {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: pool, BlockSize: blockBits, VXLANMode: vxlan}}
	p.Metadata.Name = "pool"
	return p
}

// exists reports whether a key is there.
func (w *world) exists(key string) bool {
	w.t.Helper()
	got, err := w.etcd.Get(w.ctx, key, clientv3.WithCountOnly())
	w.must(err)
	return got.Count > 0
}

// restore puts back the nodes and the pool that somebody deleted or disabled.
func (w *world) restore(vxlan api.EncapMode) {
	w.t.Helper()
	var t []clientv3.Op
	for _, n := range []string{node1, node2} {
		absent := clientv3.Compare(clientv3.Version(api.NodeKey(n)), "=", 0)
		t = append(t, clientv3.OpTxn([]clientv3.Cmp{absent}, []clientv3.Op{clientv3.OpPut(api.NodeKey(n), encode(w, node(n)))}, nil))
	}
	_, err := w.etcd.Txn(w.ctx).Then(append(t, clientv3.OpPut(poolKey, encode(w, poolOf(vxlan))))...).Commit()
	w.must(err)
}

// remember makes our handlers work on what etcd holds now, as an agent does whose watch lags behind.
func (w *world) remember() {
	w.t.Helper()
	rev, err := w.c.Revision(w.ctx)
	w.must(err)
	w.must(w.feed.WaitFor(w.ctx, rev))
	s, _ := w.feed.Snapshot()
	picture := register.Picture(s)
	w.source = func() register.Source { return picture }
}

// live makes our handlers follow the feed, as an agent does.
func (w *world) live() { w.source = register.FromFeed(w.feed) }

func (w *world) handler(node string) *register.Handler {
	return register.New(register.Config{Client: w.c, Node: node, Source: w.source, Committed: w.feed.Commit, Now: w.clock})
}

func (w *world) clock() time.Time { return w.now }

func (w *world) writer(node string) calicowriter.Writer {
	return calicowriter.Writer{Etcd: w.etcd, Node: node, Now: w.clock}
}

// nodeOf is where a container lives.
func nodeOf(id string) string {
	if strings.HasPrefix(id, far) {
		return node2
	}
	return node1
}

// podOf is the pod of a container; "" for most, which have none.
func podOf(id string) string {
	if strings.HasPrefix(id, "pod") {
		return "web-" + id
	}
	return ""
}

// calicos is a container as Calico's plugin is asked for it.
func calicos(id string) calicowriter.Container {
	return calicowriter.Container{Network: network, ID: id, Pod: podOf(id)}
}

func handleOf(id string) string { return api.PodHandle(network, id) }

// run carries a sequence out that nobody disturbs.
func (w *world) run(s *calicowriter.Sequence) {
	w.t.Helper()
	w.must(s.Finish(w.ctx))
}

// calicoAdd has Calico connect a container, undisturbed.
func (w *world) calicoAdd(node, id string) {
	w.t.Helper()
	s := w.writer(node).Add(calicos(id))
	w.run(s)
	w.told[id], w.touched[id] = s.Addrs(), true
}

func request(id string) attach.Request {
	r := attach.Request{Network: network, ContainerID: id, IfName: "eth0", HostIf: "cali" + id, MAC: "02:00:00:00:00:01"}
	if pod := podOf(id); pod != "" {
		r.Pod = attach.Pod{Namespace: "default", Name: pod}
	}
	return r
}

// add has ours connect a container.
func (w *world) add(node, id string) error {
	w.t.Helper()
	w.touched[id] = true
	reply, err := w.handler(node).Add(w.ctx, request(id))
	if err != nil {
		return err
	}
	if before, known := w.told[id]; known && !w.dead[id] && !slices.Equal(before, reply.Addrs) {
		return fmt.Errorf("repeated ADD of %s returns %v, it was told %v", id, reply.Addrs, before)
	}
	w.told[id] = reply.Addrs
	return nil
}

// del has ours disconnect a container.
func (w *world) del(node, id string) error {
	w.t.Helper()
	delete(w.told, id)
	w.dead[id] = true
	return w.handler(node).Del(w.ctx, request(id))
}

// delAll has ours disconnect all those containers, at once.
func (w *world) delAll(which func(id string) bool) {
	w.t.Helper()
	handlers := map[string]*register.Handler{node1: w.handler(node1), node2: w.handler(node2)}
	var all errgroup.Group
	for id := range w.touched {
		if which(id) {
			delete(w.told, id)
			w.dead[id] = true
			all.Go(func() error { return handlers[nodeOf(id)].Del(w.ctx, request(id)) })
		}
	}
	w.must(all.Wait())
}

// tunnel has ours give the node its tunnel address, or take it back.
func (w *world) tunnel(node string) error {
	_, _, err := ipam.EnsureTunnels(w.ctx, w.c, node, w.clock)
	return err
}

// view is what etcd says now.
func (w *world) view() ipamtest.View {
	w.t.Helper()
	v, err := ipamtest.Read(w.ctx, w.c)
	w.must(err)
	return v
}

// ofWriters is what the audit finds between two steps of a Calico writer, and where one died there: each step is put right by a later one, or by
// ours when they come there.
var ofWriters = []ipam.FindingKind{
	ipam.HandleOvercounts, ipam.NoEndpoint, ipam.NoAllocation, ipam.TunnelUnallocated,
	ipam.AffinityUnfinished, ipam.AffinityWithout, ipam.AffinityStale, ipam.NoAffinity, ipam.NoPool,
}

// audited fails the test if the audit finds anything but these kinds.
func (w *world) audited(but ...ipam.FindingKind) {
	w.t.Helper()
	v, err := ipam.LoadView(w.ctx, w.c)
	w.must(err)
	for _, f := range ipam.Audit(v) {
		if !slices.Contains(but, f.Kind) {
			w.t.Errorf("%v", f)
		}
	}
}

// sound fails the test unless everybody has what they were told, alone.
func (w *world) sound() {
	w.t.Helper()
	v := w.view()
	if err := v.Sound(); err != nil {
		w.t.Errorf("unsound: %v", err)
	}
	w.audited(ofWriters...)
	seen := map[netip.Addr]string{}
	for id, addrs := range w.told {
		for _, a := range addrs {
			if other := seen[a]; other != "" {
				w.t.Errorf("%v was given to %s and to %s", a, other, id)
			}
			seen[a] = id
			if got := v.Holder(a); got != handleOf(id) {
				w.t.Errorf("%s was given %v, which belongs to %q", id, a, got)
			}
		}
	}
}

// clear has everything deleted, by Calico what Calico made and by ours everything, and fails the test unless nothing is left, an ADD succeeds on
// each node, and then nothing is wrong; but a claim that was not finished, or that was lost, waits until its node needs the block.
func (w *world) clear(byCalico []string) {
	w.t.Helper()
	for _, id := range byCalico {
		w.run(w.writer(nodeOf(id)).Del(calicos(id)))
	}
	w.delAll(func(string) bool { return true })
	w.restore(api.Never)
	for _, n := range []string{node1, node2} {
		w.must(w.tunnel(n))
	}
	if err := w.view().Nothing(); err != nil {
		w.t.Errorf("after every DEL: %v", err)
	}
	for node, id := range map[string]string{node1: "next", node2: far + "-next"} {
		w.must(w.add(node, id))
		w.sound()
		w.must(w.del(node, id))
	}
	if err := w.view().Nothing(); err != nil {
		w.t.Errorf("after the last DEL: %v", err)
	}
	w.audited(ipam.NoAffinity, ipam.AffinityUnfinished)
}
