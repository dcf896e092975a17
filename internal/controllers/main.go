package controllers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/muslin-cni/muslin/internal/feed"
	porter "github.com/muslin-cni/muslin/internal/health"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Process is what muslin-controllers has from the world outside.
type Process struct {
	Name           string   // by which it was started: check-status is --check
	Args           []string // without the name
	Environ        []string // NAME=value
	Stdout, Stderr io.Writer
	Version        string
}

const usage = `muslin-controllers writes into etcd what Kubernetes says of namespaces, service accounts, network policies, pods and nodes, and takes back
addresses that nobody uses. One runs in a cluster; more wait until it is gone.

  muslin-controllers               run until SIGTERM or SIGINT
  muslin-controllers --check [-r]  exit with 0 if the one that runs here is ready
  muslin-controllers --check -l    exit with 0 if it lives
  muslin-controllers --version
  muslin-controllers --help

It takes Calico's settings: KubeControllersConfiguration(default), and before that the environment:

  ENABLED_CONTROLLERS        policy,namespace,serviceaccount,workloadendpoint,node; not set: as the configuration says
  LOG_LEVEL                  debug, info, warning or error
  RECONCILER_PERIOD          how often everything is compared, beside on changes (5m)
  COMPACTION_PERIOD          how often etcd's history is compacted; 0: never (10m)
  SYNC_NODE_LABELS           Nodes get the labels of Kubernetes' nodes (true)
  AUTO_HOST_ENDPOINTS        nodes get host endpoints (disabled)
  HEALTH_ENABLED             a status file is written, for --check (true)
  POLICY_WORKERS, PROFILE_WORKERS, WORKLOAD_ENDPOINT_WORKERS, NODE_WORKERS   how many objects are worked on at once (1)

and, from the environment alone:

  ETCD_ENDPOINTS, ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD, ETCD_DISCOVERY_SRV   where etcd is
  DATASTORE_TYPE             etcdv3, the one there is
  KUBECONFIG                 how to reach Kubernetes; not set: by the pod's service account
  LEADER_ELECTION            choose one of several processes by the Lease muslin-controllers (true)
  POD_NAMESPACE, POD_NAME    where that Lease is, and who this process is in it
  STATUS_FILE                the status file (/status/status.json)
`

// Of requests to the API server: the first comparison of everything makes some thousands.
const (
	kubeRate  = 100
	kubeBurst = 200
)

// Main does what the arguments say and returns the exit code: 0, 1 for a failure, 2 for arguments that nobody understands. The controllers run until ctx
// ends.
func Main(ctx context.Context, p Process) int {
	args := p.Args
	if filepath.Base(p.Name) == "check-status" {
		args = append([]string{"--check"}, args...)
	}
	var err error
	switch verb := strings.Join(args, " "); strings.TrimLeft(verb, "-") {
	case "":
		err = runProcess(ctx, p)
	case "h", "help":
		_, err = io.WriteString(p.Stdout, usage)
	case "v", "version":
		_, err = fmt.Fprintln(p.Stdout, p.Version)
	case "check", "check -r", "check -l":
		err = check(statusFile(lookup(p.Environ)), strings.HasSuffix(verb, "-l"), time.Now(), p.Stdout)
	default:
		fmt.Fprintf(p.Stderr, "muslin-controllers: unknown arguments %q; muslin-controllers --help says what there is\n", verb)
		return 2
	}
	if err != nil {
		fmt.Fprintln(p.Stderr, "muslin-controllers:", err)
		return 1
	}
	return 0
}

// lookup is an environment as a function. Of two values of one name the last counts, as in a shell.
func lookup(environ []string) func(string) string {
	values := make(map[string]string, len(environ))
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		values[name] = text
	}
	return func(name string) string { return values[name] }
}

func statusFile(env func(string) string) string {
	if f := env("STATUS_FILE"); f != "" {
		return f
	}
	return defaultStatusFile
}

// runProcess runs the controllers with what the environment says.
func runProcess(ctx context.Context, p Process) error {
	env := lookup(p.Environ)
	e, err := readEnvironment(env)
	if err != nil {
		return err
	}
	e.statusFile = statusFile(env)
	level := &slog.LevelVar{}
	log := slog.New(slog.NewTextHandler(p.Stderr, &slog.HandlerOptions{Level: level}))
	klog.SetSlogLogger(slog.New(quiet{log.Handler()}).With("from", "client-go"))
	cfg, err := store.FromEnv(env)
	if err != nil {
		return err
	}
	etcd, err := store.New(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = etcd.Close() }() // nothing is under way any more
	kube, err := kubernetesClient(e.kubeconfig)
	if err != nil {
		return err
	}
	log.Info("muslin-controllers starts", "version", p.Version, "etcd", cfg)
	if len(e.passedOver) > 0 {
		log.Warn("controllers that Muslin does not have are passed over", "controllers", e.passedOver)
	}
	return newService(e, etcd, kube, level, log).runAll(ctx)
}

// quiet leaves out of a log what client-go says of its usual work: who leads is said by the lease itself.
type quiet struct{ slog.Handler }

// Enabled is for warnings and errors.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

// kubernetesClient reads how to reach the API server: from a kubeconfig file, or, where there is none, from what the kubelet gives to pods.
func kubernetesClient(kubeconfig string) (kubernetes.Interface, error) {
	read := rest.InClusterConfig
	if kubeconfig != "" {
		read = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", kubeconfig) }
	}
	cfg, err := read()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("no Kubernetes API server is known: set KUBECONFIG, or run in a pod with a service account")
	}
	if err != nil {
		return nil, fmt.Errorf("read how to reach Kubernetes: %w", err)
	}
	cfg.QPS, cfg.Burst, cfg.UserAgent = kubeRate, kubeBurst, "muslin-controllers"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("set up a client of Kubernetes: %w", err)
	}
	return client, nil
}

func newService(e environment, etcd *store.Client, kube kubernetes.Interface, level *slog.LevelVar, log *slog.Logger) *service {
	s := &service{
		env: e, store: etcd, client: kube, feed: feed.New(etcd, log), health: newHealth(time.Now), meters: newMeters(),
		level: level, serve: func(int) {}, now: time.Now, grace: nodeGrace, log: log,
	}
	if e.election {
		namespace, identity := whereabouts(e, uuid.NewString())
		s.lease = &lease{client: kube, namespace: namespace, identity: identity, duration: leaseDuration, renew: leaseRenew, retry: leaseRetry,
			meters: s.meters, log: log}
	}
	return s
}

// runAll runs the controllers, the port for metrics and health, and what looks after health.
func (s *service) runAll(ctx context.Context) error {
	port := porter.NewPort("metrics and health", s.handler(), s.log)
	s.serve = func(n int) { port.Set(address(n)) }
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return port.Run(ctx) })
	g.Go(func() error { return s.run(ctx) })
	g.Go(func() error { return s.health.run(ctx, s.env.statusFile, s.log, s.parts()) })
	return g.Wait()
}

// parts ask whether what the controllers need is there.
func (s *service) parts() map[string]func(context.Context) error {
	kube := newCluster(s.client, s.log)
	return map[string]func(context.Context) error{
		partEtcd: func(ctx context.Context) error { _, err := s.store.Revision(ctx); return err },
		partKube: kube.answers,
	}
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.meters.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: healthInterval}))
	for _, path := range []string{"/readiness", "/liveness"} {
		mux.Handle("GET "+path, s.health.handler())
	}
	return mux
}
