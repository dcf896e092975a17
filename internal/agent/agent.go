// Package agent runs a node: it wires the datastore's feed, the kernel's events and the plan together and answers the plugins.
//
// The loop is the whole of it (loop.go): snapshot and host facts in, plan, difference, apply. Everything else is start-up,
// the plugins' socket, and telling the operator.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Agent is one node's agent.
type Agent struct {
	cfg   config.Node
	etcd  store.Config
	env   config.Env
	log   *slog.Logger
	level *slog.LevelVar
	node  string

	machine string // the id of this machine: the node's name is its

	store      *store.Client
	feed       *feed.Feed
	rtnl       *rtnl.Conn
	monitor    *rtnl.Monitor
	kernel     *reconcile.Reconciler
	backend    string // of iptables, as set when the agent started
	noIPv6     string // why this host cannot do IPv6; "": it can
	tunnels    *tunnels
	handler    *register.Handler
	programmed *programmed

	first sync.Once     // the first complete apply
	isUp  chan struct{} // closed by it

	// Owned by the loop.
	said    map[string]struct{} // problems that were logged and are still there
	failing string              // why the last rounds failed, as logged; "": they did not
	mtu     int                 // as published; 0: not yet
	noIPIP  string              // why tunl0 could not be made; "": it was not tried, or could
	linger  *linger             // start looks at it before there is a loop
}

// Main runs the agent with the process's environment until ctx ends. It is the whole of the program's main.
func Main(ctx context.Context, env config.Env, out *os.File) error {
	level := &slog.LevelVar{}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	cfg, err := config.FromEnv(env)
	if err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	etcd, err := store.FromEnv(env)
	if err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	a := &Agent{cfg: cfg, etcd: etcd, env: env, log: log, level: level, programmed: newProgrammed(), isUp: make(chan struct{})}
	return a.run(ctx)
}

func (a *Agent) run(ctx context.Context) error {
	lock, err := alone(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := a.open(ctx); err != nil {
		return err
	}
	defer a.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.monitor.Run(ctx) })
	g.Go(func() error { return a.work(ctx, g) })
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	a.log.Info("agent stopped; what it programmed stays", "node", a.node)
	return err
}

// work starts the node and then everything that goes on until ctx ends.
func (a *Agent) work(ctx context.Context, g *errgroup.Group) error {
	if err := a.start(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	if err := a.openKernel(ctx); err != nil {
		return err
	}
	a.log.Info("agent started", "node", a.node, "iptables", a.backend)
	g.Go(func() error { return a.feed.Run(ctx) })
	g.Go(func() error { return a.tunnels.run(ctx) })
	g.Go(func() error { return a.loop(ctx) })
	g.Go(func() error { return a.servePlugins(ctx) })
	g.Go(func() error { return a.newAudit().run(ctx, a.isUp) })
	return nil
}

// open connects to etcd and the kernel.
func (a *Agent) open(ctx context.Context) (err error) {
	if a.node, err = startup.NodeName(a.cfg, a.env); err != nil {
		return err
	}
	if err := a.identify(); err != nil {
		return err
	}
	if a.store, err = store.New(a.etcd); err != nil {
		return err
	}
	if a.rtnl, err = rtnl.Open(); err != nil {
		return err
	}
	if a.monitor, err = rtnl.NewMonitor(ctx, a.rtnl, a.log); err != nil {
		return err
	}
	length, err := lingerFrom(a.env)
	if err != nil {
		return err
	}
	a.linger = newLinger(length, time.Now, a.monitor.Host())
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		a.noIPv6 = "the kernel has no IPv6"
	}
	a.feed = feed.New(a.store, a.log)
	a.tunnels = newTunnels(a.store, a.node, a.feed.Commit, a.log)
	a.handler = register.New(register.Config{
		Client: a.store, Source: register.FromFeed(a.feed), Node: a.node, Machine: a.machine, Log: a.log, Committed: a.feed.Commit,
	})
	return nil
}

// newAudit makes the audit of this node's addresses.
func (a *Agent) newAudit() *audit {
	return &audit{
		node: a.node, locks: attach.LockDir, links: a.rtnl.Names, linked: a.rtnl.Exists, free: a.handler.FreeOrphan, now: time.Now, log: a.log,
		picture: func(ctx context.Context) (feed.Snapshot, bool, error) {
			if err := a.catchUp(ctx); err != nil {
				return feed.Snapshot{}, false, err
			}
			snap, ok := a.feed.Snapshot()
			return snap, ok && frozen(snap, a.node, a.machine) == "", nil
		},
		giveUp: func(ctx context.Context, u ipam.Unused) error {
			changed, err := ipam.ReturnBlock(ctx, a.store, u)
			a.feed.Commit(changed)
			return err
		},
	}
}

func (a *Agent) close() {
	a.rtnl.Close()
	if err := a.store.Close(); err != nil {
		a.log.Debug("close etcd's client", "error", err)
	}
}

// ready is called once every table has been listed and gone through.
func (a *Agent) ready() { a.first.Do(func() { close(a.isUp) }) }

// servePlugins opens the socket once the kernel has been brought up to date, so that whoever can connect will be served.
func (a *Agent) servePlugins(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.isUp:
	}
	l, err := listen(attach.Socket)
	if err != nil {
		return err
	}
	a.log.Info("ready for pods", "node", a.node, "socket", attach.Socket)
	s := &server{handler: a.handler, programmed: a.programmed, log: a.log}
	return s.serve(ctx, l)
}
