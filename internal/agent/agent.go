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
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/internal/sysctl"
	"github.com/muslin-cni/muslin/internal/xtables"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Agent is one node's agent.
type Agent struct {
	cfg   config.Node
	env   config.Env
	log   *slog.Logger
	level *slog.LevelVar
	node  string
	ipv6  bool // the kernel has IPv6

	store      *store.Client
	feed       *feed.Feed
	rtnl       *rtnl.Conn
	monitor    *rtnl.Monitor
	kernel     *reconcile.Reconciler
	backend    string // of iptables, as set when the agent started
	tunnels    *tunnels
	programmed *programmed

	first sync.Once     // the first complete apply
	isUp  chan struct{} // closed by it

	// Owned by the loop.
	said    map[string]struct{} // problems that were logged and are still there
	failing string              // why the last rounds failed, as logged; "": they did not
	mtu     int                 // as published; 0: not yet
}

// Main runs the agent with the process's environment until ctx ends. It is the whole of the program's main.
func Main(ctx context.Context, env config.Env, out *os.File) error {
	level := &slog.LevelVar{}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	cfg, err := config.FromEnv(env)
	if err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	a := &Agent{cfg: cfg, env: env, log: log, level: level, programmed: newProgrammed(), isUp: make(chan struct{})}
	return a.run(ctx)
}

// alone makes sure that no other agent works on this host: two would undo each other's work and take each other's socket. One that
// is just ending is waited for.
func alone(ctx context.Context) (*attachlock.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, otherAgentTimeout)
	defer cancel()
	lock, err := attachlock.Acquire(ctx, filepath.Dir(attach.Socket), lockName)
	if err != nil {
		return nil, fmt.Errorf("another agent runs on this host, stop one of the two: %w", err)
	}
	return lock, nil
}

const (
	otherAgentTimeout = 3 * time.Second
	lockName          = "agent.lock"
)

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
	return nil
}

// open connects to etcd and the kernel.
func (a *Agent) open(ctx context.Context) (err error) {
	if a.node, err = startup.NodeName(a.cfg, a.env); err != nil {
		return err
	}
	endpoints, err := store.ParseEndpoints(a.cfg.EtcdEndpoints)
	if err != nil {
		return err
	}
	if a.store, err = store.New(store.Config{Endpoints: endpoints}); err != nil {
		return err
	}
	if a.rtnl, err = rtnl.Open(); err != nil {
		return err
	}
	if a.monitor, err = rtnl.NewMonitor(ctx, a.rtnl, a.log); err != nil {
		return err
	}
	_, err = os.Stat("/proc/sys/net/ipv6")
	a.ipv6 = err == nil
	a.feed = feed.New(a.store, a.log)
	a.tunnels = newTunnels(a.store, a.node, a.feed.Commit, a.log)
	return nil
}

func (a *Agent) close() {
	a.rtnl.Close()
	if err := a.store.Close(); err != nil {
		a.log.Debug("close etcd's client", "error", err)
	}
}

// start does what has to be done before the loop, and waits for etcd as long as it takes.
func (a *Agent) start(ctx context.Context) error {
	waiting := false
	for {
		deps := startup.Deps{Store: a.store, Host: a.monitor.Host(), Now: time.Now, UUID: uuid.NewString, Log: a.log}
		err := startup.Run(ctx, a.node, a.cfg, deps)
		if err == nil {
			a.tunnels.ensure(ctx)
			return startup.WriteFile(a.cfg.NodeNameFile, a.node)
		}
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknown) {
			return fmt.Errorf("start node %s: %w", a.node, err)
		}
		if !waiting {
			a.log.Warn("waiting for etcd", "endpoints", a.cfg.EtcdEndpoints, "error", err)
		}
		waiting = true
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
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
	h := register.New(register.Config{Client: a.store, Source: register.FromFeed(a.feed), Node: a.node, Log: a.log, Committed: a.feed.Commit})
	s := &server{handler: h, programmed: a.programmed, log: a.log}
	return s.serve(ctx, l)
}

// openKernel opens every kernel table. Which iptables to use is a setting, so etcd has been read by now.
func (a *Agent) openKernel(ctx context.Context) error {
	global, err := a.felixConfig(ctx, "default")
	if err != nil {
		return err
	}
	node, err := a.felixConfig(ctx, "node."+a.node)
	if err != nil {
		return err
	}
	d, _ := config.Effective(a.env, global, node) // problems are said by the loop
	a.backend = d.IptablesBackend
	sysctls, err := sysctl.Open("/proc/sys")
	if err != nil {
		return err
	}
	sets, err := xtables.OpenSets()
	if err != nil {
		return err
	}
	chains, err := xtables.OpenChains(ctx, xtables.Backend(a.backend))
	if err != nil {
		return err
	}
	a.kernel = reconcile.New(reconcile.Tables{
		Sysctls: sysctls, Links: a.rtnl.Links(), Addrs: a.rtnl.Addrs(), Neighs: a.rtnl.Neighs(), FDB: a.rtnl.FDB(),
		Sets: sets, Routes: a.rtnl.Routes(), Chains: chains,
	}, a.log)
	return nil
}

func (a *Agent) felixConfig(ctx context.Context, name string) (*api.FelixConfiguration, error) {
	e, err := store.Get[api.FelixConfiguration](ctx, a.store, (*api.FelixConfiguration)(nil).KindOf().Key("", name))
	var unreadable *store.UnreadableError
	if errors.Is(err, store.ErrNotFound) || errors.As(err, &unreadable) { // the loop names what cannot be read
		return nil, nil
	}
	return e.Value, err
}
