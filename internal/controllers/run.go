package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	writesPerSecond = 500 // of all controllers: etcd serves the whole cluster
	writesAtOnce    = 50
	configRetry     = 2 * time.Second
	nodeGrace       = time.Minute
	auditMost       = 3 * time.Minute // between two looks of the audit
	auditLeast      = 250 * time.Millisecond
)

// service is the controllers of one cluster, for as long as the process lives.
type service struct {
	env    environment
	store  *store.Client
	client kubernetes.Interface
	feed   *feed.Feed
	lease  *lease // nil: there is no choice of a leader
	health *health
	meters *meters
	level  *slog.LevelVar
	serve  func(port int) // asks for metrics and health to be served at a port, 0 for nowhere
	now    func() time.Time
	grace  time.Duration // for nodes that Kubernetes does not have
	log    *slog.Logger
}

// run works until ctx ends, and begins anew whenever the configuration changes. Where etcd or the API server is away it waits.
func (s *service) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ignoreEnd(ctx, s.feed.Run(ctx)) })
	g.Go(func() error {
		for ctx.Err() == nil {
			if err := s.round(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// ignoreEnd makes nil of the error of what was told to end.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// round works with one configuration until that changes.
func (s *service) round(ctx context.Context) error {
	spec, rev, err := s.configuration(ctx)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	now := inForce(spec, s.env)
	s.apply(now)
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	g, within := errgroup.WithContext(within)
	g.Go(func() error {
		defer cancel() // ends the round
		return s.changed(within, spec, rev)
	})
	g.Go(func() error { return s.work(within, now) })
	return ignoreEnd(within, g.Wait())
}

// apply puts into force what concerns the process itself.
func (s *service) apply(spec api.KubeControllersConfigurationSpec) {
	level, err := levelOf(spec.LogSeverityScreen)
	if err != nil {
		level = slog.LevelInfo
	}
	s.level.Set(level)
	port := 0
	if spec.PrometheusMetricsPort != nil {
		port = *spec.PrometheusMetricsPort
	}
	s.serve(port)
	s.health.quiet(spec.HealthChecks == "Disabled")
	if n := spec.Controllers.Node; n != nil && n.LeakGracePeriod != nil && n.LeakGracePeriod.Duration == 0 {
		s.log.Info("addresses of pods that are gone are not taken back: leakGracePeriod is 0")
	}
}

func configKey() string { return (*api.KubeControllersConfiguration)(nil).KindOf().Key("", "default") }

// configuration reads the configuration, makes one where there is none, and notes in it what is in force. It waits for etcd. One that
// cannot be read counts as our default, and is left alone.
func (s *service) configuration(ctx context.Context) (api.KubeControllersConfigurationSpec, int64, error) {
	said := false
	for {
		spec, rev, err := s.settle(ctx)
		var bad *store.UnreadableError
		switch {
		case err == nil:
			return spec, rev, nil
		case errors.As(err, &bad):
			s.log.Error("KubeControllersConfiguration(default) cannot be read: our defaults count until it is corrected", "error", err)
			got, _, err := s.store.Read(ctx, store.Range{Key: configKey()})
			if err == nil && len(got[0]) > 0 {
				return newConfiguration().Spec, got[0][0].Rev, nil
			}
		case !said && ctx.Err() == nil:
			said = true
			s.log.Warn("waiting for etcd", "error", err)
		}
		select {
		case <-ctx.Done():
			return api.KubeControllersConfigurationSpec{}, 0, ctx.Err()
		case <-time.After(configRetry):
		}
	}
}

// settle reads the configuration, writes its status, and returns it with its revision after that.
func (s *service) settle(ctx context.Context) (api.KubeControllersConfigurationSpec, int64, error) {
	e, err := store.Mutate(ctx, s.store, configKey(), func(v *api.KubeControllersConfiguration, exists bool) (bool, error) {
		if !exists {
			*v = *newConfiguration()
			api.Created(v, uuid.NewString(), s.now())
		}
		running := inForce(v.Spec, s.env)
		status := api.KubeControllersConfigurationStatus{RunningConfig: &running, EnvironmentVars: s.env.said}
		if exists && equal(status, v.Status) {
			return false, nil
		}
		v.Status = status
		return true, nil
	})
	if err != nil {
		return api.KubeControllersConfigurationSpec{}, 0, err
	}
	return e.Value.Spec, e.Rev, nil
}

// equal compares by what is stored.
func equal(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// changed returns nil when the configuration says something else than at the revision, or with ctx.
func (s *service) changed(ctx context.Context, spec api.KubeControllersConfigurationSpec, rev int64) error {
	for ctx.Err() == nil {
		if s.differs(ctx, spec, rev) {
			s.log.Info("KubeControllersConfiguration has changed: the controllers begin anew")
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(configRetry): // the watch broke
		}
	}
	return nil
}

// differs follows the configuration until it differs (true) or cannot be followed (false).
func (s *service) differs(ctx context.Context, spec api.KubeControllersConfigurationSpec, rev int64) bool {
	got, at, err := s.store.Read(ctx, store.Range{Key: configKey()})
	if err != nil {
		return false
	}
	if len(got[0]) == 0 || got[0][0].Rev != rev && !says(got[0][0], spec) {
		return true
	}
	w, err := s.store.Watch(ctx, configKey(), configKey()+"\x00", at)
	if err != nil {
		return false
	}
	defer w.Close()
	for {
		b, err := w.Next()
		if err != nil {
			return false
		}
		for _, kv := range b.Changes {
			if !says(kv, spec) {
				return true
			}
		}
	}
}

// says reports whether a stored configuration has that spec. The status is our own writing.
func says(kv store.KV, spec api.KubeControllersConfigurationSpec) bool {
	e, err := store.Decode[api.KubeControllersConfiguration](kv)
	return err == nil && e.Exists() && e.Value != nil && equal(e.Value.Spec, spec)
}

// work runs the controllers of a configuration while this process is the leader.
func (s *service) work(ctx context.Context, spec api.KubeControllersConfigurationSpec) error {
	t := &tools{
		store: s.store, feed: s.feed, kube: newCluster(s.client, s.log), limit: flowcontrol.NewTokenBucketRateLimiter(writesPerSecond, writesAtOnce),
		now: s.now, uuid: uuid.NewString, meters: s.meters, log: s.log,
	}
	c, err := s.assemble(t, spec)
	if err != nil {
		return err
	}
	defer t.kube.stop()
	caches, stop := context.WithCancel(ctx)
	defer stop()
	if err := s.fill(caches, t.kube); err != nil {
		return ignoreEnd(ctx, err)
	}
	s.health.set(partStartup, nil)
	s.log.Info("ready: the caches of etcd's and Kubernetes' objects are complete", "controllers", c.names())
	if s.lease == nil {
		s.meters.leads(true)
		return c.run(ctx)
	}
	return s.lease.hold(ctx, c.run)
}

// fill returns when both sides' caches are complete.
func (s *service) fill(ctx context.Context, kube *cluster) error {
	if err := kube.start(ctx); err != nil {
		return err
	}
	if err := s.feed.WaitFor(ctx, 1); err != nil {
		return fmt.Errorf("list etcd: %w", err)
	}
	return nil
}

// crew is the controllers that run together.
type crew struct {
	tools      *tools
	queues     []*queue
	audit      *audit        // nil: none
	compaction time.Duration // 0: none
}

func (c *crew) names() (out []string) {
	for _, q := range c.queues {
		out = append(out, q.name)
	}
	return out
}

// assemble makes the controllers that are to run, and tells Kubernetes' caches what they must hold.
func (s *service) assemble(t *tools, spec api.KubeControllersConfigurationSpec) (*crew, error) {
	c, on := &crew{tools: t, compaction: spec.EtcdV3CompactionPeriod.Duration}, spec.Controllers
	add := func(name string, subject subject, period *api.Duration) *queue {
		q := newQueue(name, subject, max(1, s.env.workers[name]), period.Duration, s.meters, s.log)
		c.queues = append(c.queues, q)
		return q
	}
	var errs []error
	if on.Namespace != nil {
		m := t.namespaces()
		errs = append(errs, t.watchNamespaces(add(controllerNamespace, m, on.Namespace.ReconcilerPeriod), m))
	}
	if on.ServiceAccount != nil {
		m := t.accounts()
		errs = append(errs, t.watchAccounts(add(controllerAccount, m, on.ServiceAccount.ReconcilerPeriod), m))
	}
	if on.Policy != nil {
		m := t.policies()
		errs = append(errs, t.watchPolicies(add(controllerPolicy, m, on.Policy.ReconcilerPeriod), m))
	}
	if on.WorkloadEndpoint != nil {
		e := &endpoints{t}
		errs = append(errs, e.watch(add(controllerEndpoint, e, on.WorkloadEndpoint.ReconcilerPeriod)))
	}
	if n := on.Node; n != nil {
		errs = append(errs, s.assembleNode(c, add, n))
	}
	return c, errors.Join(errs...)
}

func (s *service) assembleNode(c *crew, add func(string, subject, *api.Duration) *queue, spec *api.NodeController) error {
	t := c.tools
	n := &nodes{tools: t, kube: t.kube, labels: spec.SyncLabels != "Disabled", grace: s.grace, missing: map[string]time.Time{}, kept: map[string]string{}}
	q := add(controllerNode, n, spec.ReconcilerPeriod)
	add("hostendpoint", &hosts{tools: t, settings: spec.HostEndpoint, lost: map[string]string{}}, spec.ReconcilerPeriod)
	grace := spec.LeakGracePeriod.Duration
	c.audit = newAudit(t, grace, min(max(grace/4, auditLeast), auditMost))
	if grace == 0 {
		c.audit.every = auditMost
	}
	pods := t.kube.factory.Core().V1().Pods().Informer()
	return errors.Join(t.kube.indexPods(), n.watch(q), t.kube.watch("pods", pods, func(_, _ any) {}))
}

// run works until ctx ends, and returns when nothing is at work any more.
func (c *crew) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	snapshot := func() feed.Snapshot { s, _ := c.tools.feed.Snapshot(); return s }
	before := snapshot() // what changes after it is either among all the keys with which a queue begins, or followed
	for _, q := range c.queues {
		g.Go(func() error { return q.run(ctx, snapshot) })
	}
	g.Go(func() error { return c.follow(ctx, before, snapshot) })
	if c.audit != nil {
		g.Go(func() error { return c.audit.run(ctx) })
	}
	if c.compaction > 0 {
		g.Go(func() error { return c.compact(ctx) })
	}
	return g.Wait()
}

// follow tells the queues what changes in etcd from a snapshot on.
func (c *crew) follow(ctx context.Context, was feed.Snapshot, snapshot func() feed.Snapshot) error {
	for {
		now := snapshot()
		delta := now.Since(was)
		was = now
		if !delta.Empty() {
			for _, q := range c.queues {
				q.follow(now, delta)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.tools.feed.Changed():
		}
	}
}

// compact lets etcd forget, in each period, what was before the last one: everybody who follows it has seen that by then.
func (c *crew) compact(ctx context.Context) error {
	tick := time.NewTicker(c.compaction)
	defer tick.Stop()
	var before int64
	for {
		rev, err := c.tools.store.Revision(ctx)
		if err == nil && before > 0 {
			err = c.tools.store.Compact(ctx, before)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.tools.log.Warn("etcd was not compacted; it is tried again", "error", err)
		default:
			before = rev
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
