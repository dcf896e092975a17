package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/lab"
)

const (
	settleTime = time.Minute // between the last route and the look at the memory
	podsOfNode = 10
)

// filling is what a cluster of one real node is filled with: so many remote nodes, each with a block of ten addresses in use and, if so, the
// endpoints of its pods; and pods of the real node.
type filling struct {
	nodes     int
	endpoints bool
	pods      int
}

// memoryCluster is a cluster whose agent's memory is looked at.
type memoryCluster struct {
	filling
	mode     lab.Mode
	aim      string
	resident string // what came of it
}

// runMemory looks at the resident memory (VmRSS of proc(5)) of agents a minute after they have programmed the last route. Each has a lab of
// its own, with an etcd of its own, since all that follow one etcd know one cluster; the labs are up at the same time. The memory contains
// the pages of the program itself. There is no floor, and one round.
func runMemory(ctx context.Context, b bench) (out []row, err error) {
	clusters := []memoryCluster{
		{mode: lab.Direct}, {mode: lab.Direct, filling: filling{nodes: 1000}}, {mode: lab.Direct, filling: filling{nodes: 5000}},
		{mode: lab.Direct, filling: filling{nodes: 1000, endpoints: true}}, {mode: lab.VXLAN, filling: filling{nodes: 1000, pods: 100}, aim: "40 MiB"},
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range clusters {
		c := &clusters[i]
		g.Go(func() error {
			return withLab(ctx, b.bin, crowded(c.mode), func(l *lab.Lab, work string) error { return c.look(ctx, b, l, work) })
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, c := range clusters {
		out = append(out, row{What: fmt.Sprintf("VmRSS of muslin-node, %s", c), Subject: c.resident, Aim: c.aim})
	}
	return out, nil
}

// String describes the cluster.
func (c memoryCluster) String() string {
	what := fmt.Sprintf("%d remote nodes (%s)", c.nodes, c.mode)
	if c.endpoints {
		what += fmt.Sprintf(" with %d pods each", podsOfNode)
	}
	if c.pods > 0 {
		what += fmt.Sprintf(" and %d local pods", c.pods)
	}
	return what
}

// look fills a lab's etcd, waits and looks.
func (c *memoryCluster) look(ctx context.Context, b bench, l *lab.Lab, work string) error {
	if err := b.fill(ctx, l, work, c.filling); err != nil {
		return err
	}
	select {
	case <-time.After(settleTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	nodes, err := l.Nodes()
	if err != nil {
		return err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", nodes[0].Agent.PID))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(kib), " kB"))
			c.resident = fmt.Sprintf("%.1f MiB", float64(n)/1024)
			return err
		}
	}
	return errors.New("the agent's status has no VmRSS")
}

// fill makes what a cluster is to hold, and returns when its routes are in the kernel and its pods attached.
func (b bench) fill(ctx context.Context, l *lab.Lab, work string, f filling) error {
	_, err := b.inside(ctx, l, work, fmt.Sprintf("fill %d %t %d", f.nodes, f.endpoints, f.pods))
	return err
}

// runFill is fill, from inside a node.
func runFill(ctx context.Context, b bench, f filling) (err error) {
	etcd, err := dialEtcd()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, etcd.Close()) }()
	here, err := watchRoutes()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, here.close()) }()
	s := routeSide{cluster: cluster{etcd: etcd, pods: podsOfNode}, watch: here}
	if f.endpoints {
		ops, err := s.endpoints(f.nodes)
		if err != nil {
			return err
		}
		if err := s.commit(ctx, ops); err != nil {
			return err
		}
	}
	ops, err := s.writes(f.nodes)
	if err != nil {
		return err
	}
	if _, err := s.appear(ctx, ops); err != nil {
		return err
	}
	pods := &inner{bench: b, conf: netconf("")}
	for i := range f.pods {
		if err := ip(ctx, "netns", "add", name(i)); err != nil {
			return err
		}
		if err := pods.muslinAdd(0, i); err != nil {
			return err
		}
	}
	return nil
}
