package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Sizes of the runs for addresses alone.
const (
	addresses    = 1000
	manyNodes    = 10
	manyCallers  = 16
	fleetCallers = 64
	addrNetwork  = "bench"
)

// addressBench measures what handing out addresses costs against an etcd that does nothing else.
//
// The subject is the handler of the agent with its feed, called in this process: no plugin, no kernel, no socket. The floor is one client of the
// same etcd that makes transactions, each of which compares and writes three keys of its own, with values of the sizes of those that the
// subject writes for the same container: the block that holds as many addresses as it does by then, handle and endpoint. (An ADD of the
// subject compares six keys more, on which its choice rests. Neither side reads anything.) Floor and subject have the same number of
// callers in flight. The handler carries out together what waits at the same time, and the floor does
// not: with several callers the ratio may be below 1. The agents of several nodes, each of which decodes what all of them write, share
// this machine's processors with etcd and each other, as they would not in a cluster.
type addressBench struct {
	bench
	server   *etcdProcess
	etcd     *clientv3.Client
	nodes    []*register.Handler
	stop     func() error
	blocks   []string // by how many addresses a block holds, less one
	handle   string
	endpoint string
}

// runAddresses measures one node and ten, on an etcd of its own without fsync, as the lab's.
func runAddresses(ctx context.Context, at bench) (out []row, err error) {
	err = withAddresses(ctx, at, unlimited, func(b *addressBench) error {
		for _, r := range []struct {
			name           string
			nodes, callers int
		}{
			{"1,000 addresses, one node, one by one", 1, 1},
			{fmt.Sprintf("1,000 addresses, one node, %d in parallel", manyCallers), 1, manyCallers},
			{fmt.Sprintf("1,000 addresses, %d nodes at once, each one by one", manyNodes), manyNodes, manyNodes},
		} {
			do, undo, err := b.compare(ctx, b.attachTrial(r.name, addresses, r.callers), r.nodes)
			if err != nil {
				return err
			}
			out = append(out, do.row(""), undo.row(""))
		}
		return nil
	})
	return out, err
}

// fleetTrial is so many allocations, that the floor has as many transactions in flight as the nodes have callers.
func (b *addressBench) fleetTrial() trial {
	return b.attachTrial(fmt.Sprintf("%d nodes on one etcd, %d in parallel", manyNodes, fleetCallers), addresses, fleetCallers)
}

// runFleet measures how many addresses ten nodes give out in a second, and what that costs etcd, where ten agents, etcd and the floor's client have
// the same processors, all that there are. What the agents take, all ten together, is told beside it, and how far ten clients come that do nothing but
// follow etcd and write as the agents do: these processors allow no more.
func runFleet(ctx context.Context, at bench) (out []row, err error) {
	err = withAddresses(ctx, at, unlimited, func(b *addressBench) error {
		t := b.fleetTrial()
		do, undo, err := b.compare(ctx, t, manyNodes)
		if err != nil {
			return err
		}
		out = []row{do.rate(""), undo.rate("")}
		for _, who := range []struct {
			name string
			pid  int
		}{{"etcd's", b.server.pid}, {"clients'", os.Getpid()}} {
			t := t
			t.do, t.undo = who.name+" processor time: "+t.do, who.name+" processor time: "+t.undo
			t.meter = func() (time.Duration, error) { return processorTime(who.pid) }
			do, undo, err := b.compare(ctx, t, manyNodes)
			if err != nil {
				return err
			}
			out = append(out, do.row(""), undo.row(""))
		}
		bare := b.attachTrial(fmt.Sprintf("%d bare clients in place of the agents", manyNodes), addresses, fleetCallers)
		if do, undo, err = b.compareBare(ctx, bare); err != nil {
			return err
		}
		out = append(out, do.rate(""), undo.rate(""))
		return nil
	})
	return out, err
}

// etcdShare is the part of a processor that etcd has where it is what bounds a fleet: so little that the rest of this machine is more than ten agents need,
// as ten machines are.
const etcdShare = 0.4

// runBound is runFleet's rate where neither side runs short of processors before etcd does.
func runBound(ctx context.Context, at bench) (out []row, err error) {
	err = withAddresses(ctx, at, etcdShare, func(b *addressBench) error {
		do, undo, err := b.compare(ctx, b.fleetTrial(), manyNodes)
		if err != nil {
			return err
		}
		out = []row{do.rate("≥ 1"), undo.rate("")}
		return nil
	})
	return out, err
}

// withAddresses measures on an etcd of its own, which has so much of a processor.
func withAddresses(ctx context.Context, at bench, share float64, measure func(*addressBench) error) (err error) {
	b := &addressBench{bench: at}
	if b.server, err = startEtcd(ctx, share); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.stop()) }()
	if b.etcd, err = b.server.client(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.etcd.Close()) }()
	if err := b.cluster(ctx); err != nil {
		return err
	}
	return measure(b)
}

// compare measures with the agents of so many nodes, which share this machine, and no others.
func (b *addressBench) compare(ctx context.Context, t trial, nodes int) (do, undo comparison, err error) {
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.agents(ctx, nodes); err != nil {
		return do, undo, err
	}
	if err := b.values(ctx); err != nil {
		return do, undo, err
	}
	return alternate(t, b.floor(nodes), b.subject(ctx))
}

// compareBare measures with bare clients in place of agents.
func (b *addressBench) compareBare(ctx context.Context, t trial) (do, undo comparison, err error) {
	fleet, err := b.bareFleet(ctx)
	defer func() { err = errors.Join(err, fleet.stop()) }()
	if err != nil {
		return do, undo, err
	}
	return alternate(t, b.floor(manyNodes), fleet.pair())
}

func nodeName(n int) string { return fmt.Sprintf("node-%d", n+1) }

// cluster makes what an ADD needs: the nodes, and a pool of the default size.
func (b *addressBench) cluster(ctx context.Context) error {
	ready := true
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: &ready}}
	info.Metadata.Name = "default"
	pool := &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix("10.244.0.0/16"), BlockSize: 26}}
	pool.Metadata.Name = "default-ipv4-ippool"
	errs := []error{put(ctx, b.etcd, ipam.ClusterKey(), info), put(ctx, b.etcd, api.KeyOf(pool), pool)}
	for n := range manyNodes {
		node := &api.Node{}
		node.Metadata.Name = nodeName(n)
		errs = append(errs, put(ctx, b.etcd, api.KeyOf(node), node))
	}
	return errors.Join(errs...)
}

func put[T api.Value](ctx context.Context, c *clientv3.Client, key string, v *T) error {
	raw, err := api.Encode(v, nil)
	if err != nil {
		return err
	}
	_, err = c.Put(ctx, key, string(raw))
	return err
}

// agents gives each of the nodes a client, a feed that follows etcd, and a handler, as its agent does. stop ends them.
func (b *addressBench) agents(ctx context.Context, nodes int) error {
	run, cancel := context.WithCancel(ctx)
	var feeds sync.WaitGroup
	var clients []*store.Client
	b.stop = func() (err error) {
		cancel()
		feeds.Wait()
		for _, c := range clients {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	b.nodes = nil
	for n := range nodes {
		c, err := store.New(store.Config{Endpoints: []string{b.server.endpoint}})
		if err != nil {
			return err
		}
		clients = append(clients, c)
		f := feed.New(c, slog.New(slog.DiscardHandler))
		f.Local(nodeName(n))
		feeds.Go(func() { _ = f.Run(run) }) // ends with run, and with its error
		rev, err := c.Revision(ctx)
		if err != nil {
			return err
		}
		if err := f.WaitFor(ctx, rev); err != nil {
			return err
		}
		b.nodes = append(b.nodes, register.New(register.Config{Client: c, Node: nodeName(n), Source: register.FromFeed(f), Committed: f.Commit, Refused: f.Commit}))
	}
	return nil
}

// addressRequest is the ADD or DEL of the i-th container of a round.
func addressRequest(round, i int) attach.Request {
	id := fmt.Sprintf("b%02d%060d", round, i) // as long as a container runtime's
	return attach.Request{Network: addrNetwork, ContainerID: id, IfName: "eth0", HostIf: "cali" + id[52:], MAC: "02:00:00:00:00:01",
		Pod: attach.Pod{Namespace: "default", Name: fmt.Sprintf("bench-%04d", i)}}
}

// values learns what one ADD writes, and makes of it every block up to a full one.
func (b *addressBench) values(ctx context.Context) error {
	if len(b.blocks) > 0 {
		return nil
	}
	req := addressRequest(0, 0)
	if _, err := b.nodes[0].Add(ctx, req); err != nil {
		return err
	}
	var raw string
	for prefix, into := range map[string]*string{
		api.BlocksPrefix(false): &raw, api.HandlesRoot: &b.handle, (*api.WorkloadEndpoint)(nil).KindOf().Prefix(): &b.endpoint,
	} {
		got, err := b.etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1))
		if err != nil {
			return err
		}
		if len(got.Kvs) == 0 {
			return fmt.Errorf("an ADD wrote nothing below %s", prefix)
		}
		*into = string(got.Kvs[0].Value)
	}
	if err := b.fillBlocks([]byte(raw)); err != nil {
		return err
	}
	return b.nodes[0].Del(ctx, req)
}

// fillBlocks adds one address after the other, each with a handle and attributes as long as the first one's.
func (b *addressBench) fillBlocks(raw []byte) error {
	next, err := api.Decode[api.Block](raw)
	if err != nil {
		return err
	}
	first := next.Attributes[0]
	for i := 1; ; i++ {
		raw, err := api.Encode(next, nil)
		if err != nil {
			return err
		}
		b.blocks = append(b.blocks, string(raw))
		if block.Free(next) == 0 {
			return nil
		}
		_, next = block.Assign(next, 1, block.Owner{HandleID: api.PodHandle(addrNetwork, addressRequest(0, i).ContainerID), Attrs: first.Secondary})
	}
}

// subject is the handlers of the nodes, by turns.
func (b *addressBench) subject(ctx context.Context) pair {
	nodes := len(b.nodes)
	return pair{
		do: func(round, i int) error {
			_, err := b.nodes[i%nodes].Add(ctx, addressRequest(round, i))
			return err
		},
		undo: func(round, i int) error { return b.nodes[i%nodes].Del(ctx, addressRequest(round, i)) },
	}
}

// floor is three-key transactions with the values of as many nodes, who fill their blocks one after the other.
func (b *addressBench) floor(nodes int) pair {
	write := func(round, i int, rest func(k [3]string) []clientv3.Op) error {
		k := keys(round, i)
		return commit(b.etcd, k, append(rest(k), clientv3.OpPut(k[0], b.blocks[i/nodes%len(b.blocks)]))...)
	}
	return pair{
		do: func(round, i int) error {
			return write(round, i, func(k [3]string) []clientv3.Op {
				return []clientv3.Op{clientv3.OpPut(k[1], b.handle), clientv3.OpPut(k[2], b.endpoint)}
			})
		},
		undo: func(round, i int) error {
			return write(round, i, func(k [3]string) []clientv3.Op {
				return []clientv3.Op{clientv3.OpDelete(k[1]), clientv3.OpDelete(k[2])}
			})
		},
	}
}
