package register_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// BenchmarkPod measures one ADD and one DEL of an agent whose block is nearly full, one by one, with the feeds of so many agents
// following. The allocations are those of the agents, of etcd and of its client, which are all in this process.
func BenchmarkPod(b *testing.B) {
	for _, nodes := range []int{1, 10} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) { benchPod(b, nodes) })
	}
}

func benchPod(b *testing.B, nodes int) {
	etcd := etcdtest.New(b)
	stock(b, etcd.Store())
	var handlers []*register.Handler
	for n := range nodes {
		c := etcd.Store()
		f := feed.New(c, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(b.Context())
		var done sync.WaitGroup
		done.Go(func() { _ = f.Run(ctx) }) // ends with ctx, and with its error
		b.Cleanup(func() { cancel(); done.Wait() })
		rev, err := c.Revision(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if err := f.WaitFor(ctx, rev); err != nil {
			b.Fatal(err)
		}
		handlers = append(handlers, register.New(register.Config{
			Client: c, Node: fmt.Sprint("node-", n), Source: register.FromFeed(f), Committed: f.Commit,
		}))
	}
	for i := range 60 * nodes {
		if _, err := handlers[i%nodes].Add(b.Context(), benchRequest(i)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for i := 60 * nodes; b.Loop(); i++ {
		h, req := handlers[i%nodes], benchRequest(i)
		if _, err := h.Add(b.Context(), req); err != nil {
			b.Fatal(err)
		}
		if err := h.Del(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRequest(i int) attach.Request {
	id := fmt.Sprintf("b%063d", i) // as long as a container runtime's
	return attach.Request{Network: "bench", ContainerID: id, IfName: "eth0", HostIf: "cali" + id[53:], MAC: "02:00:00:00:00:01",
		Pod: attach.Pod{Namespace: "default", Name: fmt.Sprint("bench-", i)}}
}

// stock is a ready cluster with ten nodes and a pool.
func stock(b *testing.B, c *store.Client) {
	b.Helper()
	ready := true
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: &ready}}
	info.Metadata.Name = "default"
	pool := &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix("10.244.0.0/16"), BlockSize: 26}}
	pool.Metadata.Name = "default-ipv4-ippool"
	var t store.Txn
	store.Put(&t, store.Entry[api.ClusterInformation]{Key: ipam.ClusterKey()}, info)
	store.Put(&t, store.Entry[api.IPPool]{Key: api.KeyOf(pool)}, pool)
	for n := range 10 {
		node := &api.Node{}
		node.Metadata.Name = fmt.Sprint("node-", n)
		store.Put(&t, store.Entry[api.Node]{Key: api.KeyOf(node)}, node)
	}
	if _, err := c.Commit(b.Context(), &t); err != nil {
		b.Fatal(err)
	}
}
