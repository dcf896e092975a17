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
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/health"
	"github.com/muslin-cni/muslin/internal/install"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/kube"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/internal/reports"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/internal/sysctl"
	"github.com/muslin-cni/muslin/internal/wireguard"
	"github.com/muslin-cni/muslin/internal/xtables"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Agent is one node's agent.
type Agent struct {
	cfg  config.Node
	etcd store.Config
	env  config.Env
	file config.File
	log  *slog.Logger
	logs *logs
	node string

	machine string // the id of this machine: the node's name is its

	store      *store.Client
	feed       *feed.Feed
	rtnl       *rtnl.Conn
	wireguard  *wireguard.Conn
	monitor    *rtnl.Monitor
	kernel     *reconcile.Reconciler
	damage     *xtables.Watch // of the chains
	seen       bool           // every table has been listed and gone through
	swept      bool           // what is ours has gone from the other iptables
	backend    string         // of iptables, as set when the agent started
	kube       startup.Kubernetes
	cluster    *kube.Node // what is followed of Kubernetes; nil where there is none
	kernelIPv6 bool
	noIPv6     string // why this host cannot do IPv6; "": it can
	tunnels    *tunnels
	addresses  *addresses
	handler    *register.Handler
	guard      *guard
	flows      *flows
	cutter     *cutter
	bgp        *speaker // nil: this node has no BGP
	probes     *prober  // nil: this node tests no paths
	programmed *programmed
	crowd      *crowd
	chains     []*xtables.Chains // of both families, or one

	pulse       *health.Pulse
	metrics     *health.Metrics
	healthPort  *health.Port
	metricsPort *health.Port
	wgMetrics   atomic.Bool                  // those of WireGuard are among them
	wanted      atomic.Pointer[kernel.State] // of the last round that wrote; nil: there was none
	problems    atomic.Pointer[[]string]     // that are said and still there, in order; nil: none was yet
	began       time.Time
	version     string

	first sync.Once     // the first complete apply
	isUp  chan struct{} // closed by it

	doubts chan struct{} // that the outcome of a plugin's command is unknown; one is enough

	serving chan struct{} // closed once plugins can connect

	// Owned by the loop.
	settled heeded
	said    map[string]struct{} // problems that were logged and are still there
	failing string              // why the last rounds failed, as logged; "": they did not
	mtu     int                 // as published; 0: not yet
	planned planned             // what the last round wanted
	looks   looks               // when which tables are listed without being told to
	refused []string            // routes that cannot be made, and why
	noIPIP  string              // why tunl0 could not be made; "": it was not tried, or could

	mostFlows   *sysctl.Number // connections that the kernel tracks at most
	noWireGuard string         // why no WireGuard device could be made; likewise
	servers     *servers       // by which nodes find into the cluster
	linger      *linger        // start looks at it before there is a loop
	onset       *onset
	glances     glances
}

// Run runs the agent with the environment of a process until ctx ends, and logs to its Stderr.
func Run(ctx context.Context, p Process) error {
	a := &Agent{logs: newLogs(p.Stderr), programmed: newProgrammed(), crowd: newCrowd(), isUp: make(chan struct{}), doubts: make(chan struct{}, 1), serving: make(chan struct{}), pulse: newPulse(), began: time.Now(), version: p.Version,
		mostFlows: sysctl.NewNumber(sysctl.Root, "net/netfilter/nf_conntrack_max")}
	a.log = a.logs.logger()
	if err := a.read(lookup(p.Environ)); err != nil {
		return err
	}
	a.metrics = health.NewMetrics(a.node, a.facts)
	peers := health.Condition{Name: "peers", Wrong: func() string { return a.bgp.lacking() }, Well: "every BGP session is established"}
	a.healthPort = health.NewPort("health", a.pulse.Handler(peers), a.log)
	a.metricsPort = health.NewPort("metrics", a.metrics.Handler(), a.log)
	a.addresses = newAddresses(a.cfg.PollInterval, a.readdress, func(gone func(netip.Addr) bool) { a.store.Drop(gone) }, a.log)
	a.kube = kubernetes(a.cfg, a.env)
	a.introduce(p.Environ)
	err := a.run(ctx)
	if ctx.Err() != nil { // asked to end
		err = errors.Join(err, startup.SayDown(a.cfg.ShutdownFile, time.Now()))
	}
	return err
}

// read reads what the host says: the environment and the settings file. What they say of logs and ports counts at once, and until etcd
// has been read.
func (a *Agent) read(env config.Env) (err error) {
	if a.file, err = config.ReadFile(env); err != nil {
		return err
	}
	if err := config.CheckLocal(env, a.file); err != nil {
		return err
	}
	a.env = config.Local(env, a.file)
	if a.cfg, err = config.FromEnv(a.env); err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	if a.etcd, err = store.FromEnv(a.env); err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	if a.node, err = startup.NodeName(a.cfg, a.env); err != nil {
		return err
	}
	a.settled.ours.Former, err = readProtocols()
	return err
}

func (a *Agent) run(ctx context.Context) error {
	lock, err := alone(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := install.Rival(procDir); err != nil {
		return err
	}
	installer, err := a.installer()
	if err != nil {
		return err
	}
	if err := a.open(ctx); err != nil {
		return err
	}
	defer a.close()
	g, ctx := errgroup.WithContext(ctx)
	d, _ := config.Effective(config.Sources{Env: a.env, File: a.file}) // problems are said by the loop
	a.logs.set(d)
	if l := a.cfg.LogLevel; l != nil {
		a.logs.screen.level.Set(*l) // until the loop sets it by what etcd says
	}
	a.serve(d)
	g.Go(func() error { return a.healthPort.Run(ctx) })
	g.Go(func() error { return a.metricsPort.Run(ctx) })
	g.Go(func() error { return a.monitor.Run(ctx) })
	g.Go(func() error { return a.work(ctx, g) })
	if installer != nil {
		g.Go(func() error { installer.Run(ctx, a.serving); return nil })
	}
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
	g.Go(func() error { return a.damage.Run(ctx) })
	g.Go(func() error { return a.guard.watch(ctx) })
	g.Go(func() error { return a.flows.run(ctx) })
	g.Go(func() error { return a.cutter.run(ctx) })
	g.Go(func() error { return a.feed.Run(ctx) })
	g.Go(func() error { return a.tunnels.run(ctx) })
	g.Go(func() error { return a.servers.run(ctx) })
	if a.bgp != nil {
		g.Go(func() error { return a.bgp.run(ctx) })
	} else {
		g.Go(func() error { return a.takeLeave(ctx) })
	}
	if a.probes != nil {
		g.Go(func() error { return a.probes.run(ctx, a.isUp) })
	} else {
		g.Go(func() error { return a.withdraw(ctx) })
	}
	if a.cfg.Looks() {
		g.Go(func() error { return a.addresses.run(ctx) })
	}
	g.Go(func() error { return a.loop(ctx) })
	if a.cluster != nil {
		g.Go(func() error { return a.cluster.Run(ctx) })
		g.Go(func() error { return a.sayNetwork(ctx) })
	}
	g.Go(func() error { return tidy(ctx, a.log) })
	g.Go(func() error { return spareProcessors(ctx, a.env) })
	g.Go(func() error { return spareCollections(ctx, a.env) })
	g.Go(func() error { return a.servePlugins(ctx) })
	g.Go(func() error { return a.newAudit().run(ctx, a.isUp) })
	g.Go(func() error {
		return (&nodeStatuses{store: a.store, node: a.node, report: a.nodeReport, log: a.log}).run(ctx)
	})
	return nil
}

// open connects to etcd and the kernel.
func (a *Agent) open(ctx context.Context) (err error) {
	if err := a.identify(); err != nil {
		return err
	}
	if a.store, err = store.New(a.etcd); err != nil {
		return err
	}
	if a.rtnl, err = rtnl.Open(); err != nil {
		return err
	}
	a.wireguard = wireguard.New(a.rtnl.WireGuards)
	if a.monitor, err = rtnl.NewMonitor(ctx, a.rtnl, a.log); err != nil {
		return err
	}
	a.servers = newServers(a.etcd, a.kube)
	length, err := lingerFrom(a.env)
	if err != nil {
		return err
	}
	a.linger = newLinger(length, time.Now, a.monitor.Host())
	a.onset = newOnset(time.Now)
	_, err = os.Stat("/proc/sys/net/ipv6")
	if a.kernelIPv6 = err == nil; !a.kernelIPv6 {
		a.noIPv6 = "the kernel has no IPv6"
	}
	a.feed = feed.New(a.store, a.log)
	a.feed.Local(a.node)
	a.flows = newFlows(rtnl.ForgetFlows, a.log)
	a.guard = newGuard(a.node, a.log)
	a.guard.released, a.guard.inherits = a.flows.released, a.flows.remembered
	a.cutter = newCutter(a.guard.model, a.log)
	if a.cfg.CutDenied {
		a.guard.cut = a.cutter.changed
	}
	if a.guard.heeded, err = readMask(); err != nil {
		return err
	}
	if a.cfg.Backend == config.BGP {
		a.bgp = newSpeaker(a.node, a.cfg.RouterID, a.rtnl, a.monitor.Host, a.log)
		a.bgp.mark, a.bgp.most = spokeFile(), uint32(a.cfg.BGPMaxRoutes)
	}
	if a.cfg.Probes.On {
		a.probes = newProber(a.node, a.cfg.Probes, a.store, a.rtnl, a.log)
	}
	a.tunnels = newTunnels(a.store, a.node, a.feed.Commit, a.log)
	a.handler = register.New(register.Config{
		Client: a.store, Source: register.FromFeed(a.feed), Node: a.node, Machine: a.machine, Log: a.log, Committed: a.feed.Commit, Refused: a.feed.Commit, PodFacts: a.openCluster(),
		Took: a.metrics.Stage, Gather: a.crowd.gather,
	})
	return nil
}

// newAudit makes the audit of this node's addresses.
func (a *Agent) newAudit() *audit {
	return &audit{doubts: a.doubts, AuditDeps: AuditDeps{
		Node: a.node, Locks: attach.LockDir, Links: a.rtnl.Names, Linked: a.rtnl.Exists, Free: a.handler.FreeOrphan, Now: time.Now, Log: a.log,
		Picture: func(ctx context.Context) (feed.Snapshot, bool, error) {
			if err := a.catchUp(ctx); err != nil {
				return feed.Snapshot{}, false, err
			}
			snap, ok := a.feed.Snapshot()
			return snap, ok && frozen(snap, a.node, a.machine) == "", nil
		},
		GiveUp: func(ctx context.Context, u ipam.Unused) error {
			changed, err := ipam.ReturnBlock(ctx, a.store, u)
			a.feed.Commit(changed)
			return err
		},
	}}
}

func (a *Agent) close() {
	a.rtnl.Close()
	if err := errors.Join(a.wireguard.Close(), a.store.Close()); err != nil {
		a.log.Debug("close the connections", "error", err)
	}
}

// ready is called once every table has been listed and gone through.
func (a *Agent) ready() {
	a.first.Do(func() {
		if err := startup.SayUp(a.cfg.ShutdownFile); err != nil {
			a.log.Warn("say that the agent is up", "error", err)
		}
		close(a.isUp)
		a.pulse.Ready(dataplanePart)
		a.pulse.Ready(policyPart)
		a.metrics.FirstResync(time.Since(a.began))
	})
}

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
	close(a.serving)
	reported, err := listen(reports.Socket)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return reports.NewServer(openReports, a.log).Serve(ctx, reported) })
	s := &server{handler: a.handler, programmed: a.programmed, crowd: a.crowd, told: a.told, took: a.metrics.Stage, log: a.log, self: a.self}
	if a.cluster != nil {
		s.ranges = a.cluster.PodRanges
	}
	if a.bgp != nil {
		s.sessions = a.bgp.status
	}
	if a.probes != nil {
		s.paths = a.probes.list
	}
	g.Go(func() error { return s.serve(ctx, l) })
	return g.Wait()
}

// self is how the agent is doing, for whoever asks by the socket.
func (a *Agent) self() attach.Agent {
	return attach.Agent{Version: a.version, Node: a.node, Problems: slices.Concat(a.current(), a.bgp.failures())}
}

// current are the problems that are said and still there. Any goroutine may ask.
func (a *Agent) current() []string {
	if p := a.problems.Load(); p != nil {
		return *p
	}
	return nil
}

// told counts a plugin's command, and has the audit look soon where nobody knows whether it was carried out.
func (a *Agent) told(verb string, took time.Duration, err error) {
	a.metrics.Request(verb, took, err)
	if errors.Is(err, store.ErrUnknown) {
		poke(a.doubts)
	}
}

func openReports() (reports.Source, error) { return nft.OpenReports(ruleset.LogGroup) }
