package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/pkg/api"
)

// singleChanges is how many single changes are made in a round.
const singleChanges = 10

// routeBench measures how long a change of the datastore takes to the kernel's routes, on one lab node without encapsulation.
//
// The remote nodes exist only in etcd: each has a Node on our subnet and a block, which is one route. Many: the Nodes and then the blocks
// of all are written, in transactions as large as etcd takes, one after the other. Two times end with the event of the last route: one
// begins before the first write, and one with the answer to the last. The agent works while the writer does, so that the second may be
// short where the first is not. Single: among so many nodes one more block appears; the time begins before it is written.
//
// The floor is one batch of netlink messages with the same routes, encoded beforehand and sent by one system call, in a network namespace of
// its own where nobody else listens, after the same writes under keys that nobody watches. Both sides end with the event of
// the last route, and undo untimed what they did.
type routeBench struct {
	bench
	subject, floor routeSide
}

// routeSide is one of the two ways from etcd to the kernel.
type routeSide struct {
	cluster
	watch *routeWatch
	host  *floorHost // that makes the routes; nil: the agent does
}

// crowded are the options of a lab whose one node has a subnet and a pool in which there is room for many others.
func crowded(mode lab.Mode) lab.Options {
	o := lab.Defaults()
	o.Nodes, o.Mode, o.Pool = 1, mode, netip.MustParsePrefix("10.0.0.0/8")
	o.AgentEnv = []string{"IP=" + remoteSubnet}
	return o
}

// runRoutesPart makes a lab of one node and measures inside it.
func runRoutesPart(ctx context.Context, b bench) (rows []row, err error) {
	err = withLab(ctx, b.bin, crowded(lab.Direct), func(l *lab.Lab, work string) (err error) {
		rows, err = b.inside(ctx, l, work, "routes")
		return err
	})
	return rows, err
}

// runRoutes measures from inside the node.
func runRoutes(ctx context.Context, at bench) (_ []row, err error) {
	etcd, err := dialEtcd()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, etcd.Close()) }()
	host, err := newFloorHost(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, host.close()) }()
	here, err := watchRoutes()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, here.close()) }()
	b := routeBench{
		bench:   at,
		subject: routeSide{cluster: cluster{etcd: etcd, pods: 1}, watch: here},
		floor:   routeSide{cluster: cluster{etcd: etcd, pods: 1, root: "/bench"}, watch: host.watch, host: host},
	}
	var cs []comparison
	for _, n := range []int{1, 200, 1000, 5000} {
		more, err := b.measure(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("%d remote nodes: %w", n, err)
		}
		cs = append(cs, more...)
	}
	return rows(cs), nil
}

// measure compares the sides with so many remote nodes.
func (b *routeBench) measure(ctx context.Context, n int) ([]comparison, error) {
	ops, err := b.subject.writes(n)
	if err != nil {
		return nil, err
	}
	floorOps, err := b.floor.writes(n)
	if err != nil {
		return nil, err
	}
	title := func(what string) string { return fmt.Sprintf("%d remote nodes, %s", n, what) }
	many, err := byTurns(b.rounds, []string{title("from the first write"), title("from the last write")},
		func(int) ([]time.Duration, error) { return b.floor.many(ctx, floorOps) },
		func(int) ([]time.Duration, error) { return b.subject.many(ctx, ops) })
	if err != nil {
		return nil, err
	}
	if _, err := b.subject.appear(ctx, ops); err != nil {
		return nil, err
	}
	single, err := byTurns(b.rounds, []string{title("one more block")},
		func(int) ([]time.Duration, error) { return b.floor.singles(ctx, n) },
		func(int) ([]time.Duration, error) { return b.subject.singles(ctx, n) })
	return append(many, single...), errors.Join(err, b.subject.vanish(ctx, n))
}

// many makes the nodes appear and vanish again.
func (s *routeSide) many(ctx context.Context, ops []clientv3.Op) ([]time.Duration, error) {
	took, err := s.appear(ctx, ops)
	return took, errors.Join(err, s.vanish(ctx, len(ops)/2))
}

// appear makes writes, half of which are routes, and returns the times from the first and from the last write to the last route.
func (s *routeSide) appear(ctx context.Context, ops []clientv3.Op) ([]time.Duration, error) {
	n := len(ops) / 2
	batch := s.host.batch(n)
	first := time.Now()
	if err := s.commit(ctx, ops); err != nil {
		return nil, err
	}
	last := time.Now()
	if err := s.host.send(batch); err != nil {
		return nil, err
	}
	err := s.watch.until(n, true)
	return []time.Duration{time.Since(first), time.Since(last)}, err
}

// vanish undoes appear.
func (s *routeSide) vanish(ctx context.Context, n int) error {
	if err := errors.Join(s.clear(ctx), s.host.flush(ctx)); err != nil {
		return err
	}
	return s.watch.until(n, false)
}

// singles makes one more block appear and vanish, several times, and returns the median of its times.
func (s *routeSide) singles(ctx context.Context, n int) ([]time.Duration, error) {
	cidr := remoteBlock(n)
	put, err := s.block(0, cidr)
	if err != nil {
		return nil, err
	}
	batch := s.host.route(cidr, 0)
	var took []time.Duration
	for range singleChanges {
		began := time.Now()
		if err := s.commit(ctx, []clientv3.Op{put}); err != nil {
			return nil, err
		}
		if err := errors.Join(s.host.send(batch), s.watch.until(1, true)); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
		if _, err := s.etcd.Delete(ctx, s.root+api.BlockKey(cidr)); err != nil {
			return nil, err
		}
		if err := errors.Join(s.host.flush(ctx), s.watch.until(1, false)); err != nil {
			return nil, err
		}
	}
	return []time.Duration{median(took)}, nil
}
