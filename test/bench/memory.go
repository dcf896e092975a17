package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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

// memoryCluster is a cluster whose agent's memory is looked at: so many remote nodes, each with a block of ten addresses in use and, if
// so, the endpoints of its pods. The node itself has no pods.
type memoryCluster struct {
	nodes     int
	endpoints bool
	resident  string // what came of it
}

// onMemory looks at the resident memory (VmRSS of proc(5)) of agents a minute after they have programmed the last route. Each has a lab of
// its own, with an etcd of its own, since all that follow one etcd know one cluster; the labs are up at the same time. The memory contains
// the pages of the program itself.
func onMemory(ctx context.Context, bin string) error {
	clusters := []memoryCluster{{}, {nodes: 1000}, {nodes: 5000}, {nodes: 1000, endpoints: true}}
	g, ctx := errgroup.WithContext(ctx)
	for i := range clusters {
		c := &clusters[i]
		g.Go(func() error {
			o := lab.Defaults()
			o.Nodes, o.Mode, o.Pool = 1, lab.Direct, netip.MustParsePrefix("10.0.0.0/8")
			o.AgentEnv = []string{"IP=" + remoteSubnet}
			return withLab(ctx, bin, o, func(l *lab.Lab, work string) error { return c.look(ctx, l, work) })
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, c := range clusters {
		what := fmt.Sprintf("VmRSS of muslin-node, %d remote nodes", c.nodes)
		if c.endpoints {
			what += fmt.Sprintf(" with %d pods each", podsOfNode)
		}
		if _, err := fmt.Printf("%s: %s\n", what, c.resident); err != nil {
			return err
		}
	}
	return nil
}

// look fills a lab's etcd, waits and looks.
func (c *memoryCluster) look(ctx context.Context, l *lab.Lab, work string) error {
	if err := inside(ctx, l, work, fmt.Sprintf("fill %d %t", c.nodes, c.endpoints)); err != nil {
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

// runFill makes remote nodes and waits for their routes, from inside a node.
func runFill(ctx context.Context, nodes int, endpoints bool) (err error) {
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
	if endpoints {
		ops, err := s.endpoints(nodes)
		if err != nil {
			return err
		}
		if err := s.commit(ctx, ops); err != nil {
			return err
		}
	}
	ops, err := s.writes(nodes)
	if err != nil {
		return err
	}
	_, err = s.appear(ctx, ops)
	return err
}
