package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/pkg/store"
)

// bareMembers is how many operations a bare client carries out together at the most, as an agent does.
const bareMembers = 30

// bareFleet is as many clients of etcd as there would be agents. Each follows what all of them write, and reads none of it; and writes what
// an agent would, one transaction in flight, with all that came meanwhile in the next one. They know beforehand what to write, and compare what they write.
type bareFleet struct {
	clients []*bareClient
	end     context.CancelFunc
	running sync.WaitGroup
}

// bareClient is one of them.
type bareClient struct {
	bench *addressBench
	etcd  *clientv3.Client
	block string // key
	come  chan bareCall
}

// bareCall is an operation that waits for its outcome.
type bareCall struct {
	i    int
	ops  []clientv3.Op // but for the block's
	done chan error
}

// bareFleet connects. The caller stops what is returned, with an error too.
func (b *addressBench) bareFleet(ctx context.Context) (*bareFleet, error) {
	ctx, end := context.WithCancel(ctx)
	f := &bareFleet{end: end}
	for n := range manyNodes {
		c := &bareClient{bench: b, block: fmt.Sprintf("/bare/block/%d", n), come: make(chan bareCall, fleetCallers)}
		var err error
		if c.etcd, err = b.server.client(); err != nil {
			return f, err
		}
		f.clients = append(f.clients, c)
		if err := f.follow(ctx, b.server.endpoint); err != nil {
			return f, err
		}
		f.running.Go(func() { c.serve(ctx) })
	}
	return f, nil
}

// follow has a watch read and forgotten until ctx ends.
func (f *bareFleet) follow(ctx context.Context, endpoint string) error {
	c, err := store.New(store.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	w, err := watchBare(ctx, c)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	f.running.Go(func() {
		defer func() { _ = c.Close() }()
		defer w.Close()
		for {
			if _, err := w.Lent(); err != nil {
				return // with ctx
			}
		}
	})
	return nil
}

func watchBare(ctx context.Context, c *store.Client) (*store.Watcher, error) {
	rev, err := c.Revision(ctx)
	if err != nil {
		return nil, err
	}
	return c.Watch(ctx, "/bare/", "/bare0", rev)
}

func (f *bareFleet) stop() (err error) {
	f.end()
	f.running.Wait()
	for _, c := range f.clients {
		err = errors.Join(err, c.etcd.Close())
	}
	return err
}

// serve carries out what comes.
func (c *bareClient) serve(ctx context.Context) {
	for {
		select {
		case first := <-c.come:
			c.commit(ctx, c.gather(first))
		case <-ctx.Done():
			return
		}
	}
}

// gather is the call and all others that wait.
func (c *bareClient) gather(first bareCall) []bareCall {
	calls := []bareCall{first}
	for len(calls) < bareMembers {
		select {
		case next := <-c.come:
			calls = append(calls, next)
		default:
			return calls
		}
	}
	return calls
}

func (c *bareClient) commit(ctx context.Context, calls []bareCall) {
	ops := []clientv3.Op{clientv3.OpPut(c.block, c.bench.blocks[calls[0].i/manyNodes%len(c.bench.blocks)])}
	for _, call := range calls {
		ops = append(ops, call.ops...)
	}
	var compares []clientv3.Cmp
	for _, op := range ops {
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(string(op.KeyBytes())), ">", -1))
	}
	_, err := c.etcd.Txn(ctx).If(compares...).Then(ops...).Commit()
	for _, call := range calls {
		call.done <- err
	}
}

// pair has the clients by turns do what the agents would.
func (f *bareFleet) pair() pair {
	do := func(i int, ops ...clientv3.Op) error {
		call := bareCall{i: i, ops: ops, done: make(chan error, 1)}
		f.clients[i%manyNodes].come <- call
		return <-call.done
	}
	return pair{
		do: func(round, i int) error {
			b, k := f.clients[0].bench, bareKeys(round, i)
			return do(i, clientv3.OpPut(k[0], b.handle), clientv3.OpPut(k[1], b.endpoint))
		},
		undo: func(round, i int) error {
			k := bareKeys(round, i)
			return do(i, clientv3.OpDelete(k[0]), clientv3.OpDelete(k[1]))
		},
	}
}

func bareKeys(round, i int) [2]string {
	return [2]string{fmt.Sprintf("/bare/handle/%d.%d", round, i), fmt.Sprintf("/bare/endpoint/%d.%d", round, i)}
}
