package controllers

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// The controllers, by the names that ENABLED_CONTROLLERS has for them.
const (
	controllerPolicy    = "policy"
	controllerNamespace = "namespace"
	controllerAccount   = "serviceaccount"
	controllerEndpoint  = "workloadendpoint"
	controllerNode      = "node"
)

const (
	defaultPeriod     = 5 * time.Minute
	defaultCompaction = 10 * time.Minute
	defaultGrace      = 15 * time.Minute
	maxWorkers        = 64
)

// environment is what the process's environment says. What it does not say is nil, or for workers 1.
type environment struct {
	said       map[string]string // the variables that override settings, as given
	enabled    []string          // nil: as the configuration says
	passedOver []string          // controllers that were asked for and that we do not have
	logLevel   string
	period     *time.Duration
	compaction *time.Duration
	health     *bool
	syncLabels *bool
	autoHosts  *bool
	workers    map[string]int
	kubeconfig string
	namespace  string
	identity   string
	election   bool
	statusFile string
}

// overriding are the variables that override what KubeControllersConfiguration says.
var overriding = []string{"ENABLED_CONTROLLERS", "LOG_LEVEL", "RECONCILER_PERIOD", "COMPACTION_PERIOD", "HEALTH_ENABLED", "SYNC_NODE_LABELS", "AUTO_HOST_ENDPOINTS"}

// workersOf names the variable of a controller's workers. Both kinds of profiles share one.
var workersOf = map[string]string{
	controllerPolicy: "POLICY_WORKERS", controllerNamespace: "PROFILE_WORKERS", controllerAccount: "PROFILE_WORKERS",
	controllerEndpoint: "WORKLOAD_ENDPOINT_WORKERS", controllerNode: "NODE_WORKERS",
}

// readEnvironment reads the variables of Calico's kube-controllers, and a few of ours. The error names each one that cannot be read.
func readEnvironment(env func(name string) string) (environment, error) {
	e := environment{said: map[string]string{}, workers: map[string]int{}, kubeconfig: env("KUBECONFIG"), namespace: env("POD_NAMESPACE"),
		identity: env("POD_NAME"), election: true, statusFile: env("STATUS_FILE"), logLevel: env("LOG_LEVEL")}
	for _, name := range overriding {
		if v := env(name); v != "" {
			e.said[name] = v
		}
	}
	var errs []error
	fail := func(name, want string) {
		errs = append(errs, fmt.Errorf("environment variable %s=%q: want %s", name, env(name), want))
	}
	if t := env("DATASTORE_TYPE"); t != "" && t != "etcdv3" {
		fail("DATASTORE_TYPE", "etcdv3, the one there is")
	}
	if _, err := levelOf(e.logLevel); err != nil {
		fail("LOG_LEVEL", err.Error())
	}
	e.period, e.compaction = duration(env, "RECONCILER_PERIOD", fail), duration(env, "COMPACTION_PERIOD", fail)
	e.health, e.syncLabels = truth(env, "HEALTH_ENABLED", fail), truth(env, "SYNC_NODE_LABELS", fail)
	e.autoHosts = truth(env, "AUTO_HOST_ENDPOINTS", fail)
	if v := truth(env, "LEADER_ELECTION", fail); v != nil {
		e.election = *v
	}
	if e.period != nil && *e.period <= 0 {
		fail("RECONCILER_PERIOD", "a time above 0")
	}
	for name, variable := range workersOf {
		e.workers[name] = 1
		if text := env(variable); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > maxWorkers {
				fail(variable, fmt.Sprintf("a number from 1 to %d", maxWorkers))
			}
			e.workers[name] = n
		}
	}
	var err error
	if e.enabled, e.passedOver, err = controllersNamed(env("ENABLED_CONTROLLERS")); err != nil {
		errs = append(errs, fmt.Errorf("environment variable ENABLED_CONTROLLERS: %w", err))
	}
	return e, errors.Join(errs...)
}

// controllersNamed reads a list of controllers. loadbalancer is one of Calico's that works only where a pool is for it, and is passed over.
func controllersNamed(list string) (ours, passedOver []string, err error) {
	for _, word := range strings.Split(list, ",") {
		switch name := strings.ToLower(strings.TrimSpace(word)); name {
		case "":
		case controllerPolicy, controllerNamespace, controllerAccount, controllerEndpoint, controllerNode:
			ours = append(ours, name)
		case "profile":
			ours = append(ours, controllerNamespace)
		case "loadbalancer":
			passedOver = append(passedOver, name)
		default:
			return nil, nil, fmt.Errorf("%q is no controller: there are policy, namespace, serviceaccount, workloadendpoint and node", word)
		}
	}
	slices.Sort(ours)
	return slices.Compact(ours), passedOver, nil
}

func duration(env func(string) string, name string, fail func(name, want string)) *time.Duration {
	text := env(name)
	if text == "" {
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		fail(name, "a time such as 5m, or 0")
		return nil
	}
	return &d
}

func truth(env func(string) string, name string, fail func(name, want string)) *bool {
	var v bool
	switch strings.ToLower(env(name)) {
	case "":
		return nil
	case "true", "1", "yes", "enabled":
		v = true
	case "false", "0", "no", "disabled":
	default:
		fail(name, "true or false, enabled or disabled")
	}
	return &v
}

// levelOf reads a severity; "" is info.
func levelOf(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "trace", "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error", "fatal", "panic":
		return slog.LevelError, nil
	}
	return 0, errors.New("trace, debug, info, warning, error or fatal")
}

// newConfiguration is what is stored where there is no KubeControllersConfiguration: every controller runs.
func newConfiguration() *api.KubeControllersConfiguration {
	period := func() *api.Duration { return &api.Duration{Duration: defaultPeriod} }
	k := &api.KubeControllersConfiguration{Spec: api.KubeControllersConfigurationSpec{
		EtcdV3CompactionPeriod: &api.Duration{Duration: defaultCompaction},
		Controllers: api.Controllers{
			Node: &api.NodeController{ReconcilerPeriod: period(), SyncLabels: "Enabled", HostEndpoint: &api.AutoHostEndpoint{AutoCreate: "Disabled"},
				LeakGracePeriod: &api.Duration{Duration: defaultGrace}},
			Policy: &api.PeriodicController{ReconcilerPeriod: period()}, WorkloadEndpoint: &api.PeriodicController{ReconcilerPeriod: period()},
			ServiceAccount: &api.PeriodicController{ReconcilerPeriod: period()}, Namespace: &api.PeriodicController{ReconcilerPeriod: period()},
		},
	}}
	k.Metadata.Name = "default"
	api.SetDefaults(k)
	return k
}

// inForce is what the controllers run with: what the configuration says, but for what the environment says. The spec is not modified, and nothing
// in the result is nil that somebody reads, but for the controllers that do not run.
func inForce(s api.KubeControllersConfigurationSpec, e environment) api.KubeControllersConfigurationSpec {
	out := &api.KubeControllersConfiguration{Spec: own(s)}
	c := &out.Spec.Controllers
	c.LoadBalancer, c.PolicyMigration = nil, nil // not ours
	if e.enabled != nil {
		choose(c, e.enabled)
	}
	periods := []**api.Duration{}
	for _, p := range []*api.PeriodicController{c.Policy, c.WorkloadEndpoint, c.ServiceAccount, c.Namespace} {
		if p != nil {
			periods = append(periods, &p.ReconcilerPeriod)
		}
	}
	if n := c.Node; n != nil {
		periods = append(periods, &n.ReconcilerPeriod)
		nodeInForce(n, e)
	}
	for _, p := range periods {
		if *p == nil || (*p).Duration <= 0 {
			*p = &api.Duration{Duration: defaultPeriod}
		}
		if e.period != nil {
			*p = &api.Duration{Duration: *e.period}
		}
	}
	api.SetDefaults(out)
	if e.logLevel != "" {
		out.Spec.LogSeverityScreen = word(e.logLevel)
	}
	if e.health != nil {
		out.Spec.HealthChecks = switched(*e.health)
	}
	if out.Spec.EtcdV3CompactionPeriod == nil {
		out.Spec.EtcdV3CompactionPeriod = &api.Duration{Duration: defaultCompaction}
	}
	if e.compaction != nil {
		out.Spec.EtcdV3CompactionPeriod = &api.Duration{Duration: *e.compaction}
	}
	return out.Spec
}

// own is a copy that shares nothing with the original.
func own(s api.KubeControllersConfigurationSpec) (out api.KubeControllersConfigurationSpec) {
	text, err := json.Marshal(s)
	if err != nil || json.Unmarshal(text, &out) != nil {
		return newConfiguration().Spec // what was read from JSON goes back and forth
	}
	return out
}

// choose lets the named controllers run and no others.
func choose(c *api.Controllers, names []string) {
	old := *c
	*c = api.Controllers{}
	pick := func(name string, have *api.PeriodicController) *api.PeriodicController {
		if !slices.Contains(names, name) {
			return nil
		}
		if have == nil {
			have = &api.PeriodicController{}
		}
		return have
	}
	c.Policy, c.WorkloadEndpoint = pick(controllerPolicy, old.Policy), pick(controllerEndpoint, old.WorkloadEndpoint)
	c.ServiceAccount, c.Namespace = pick(controllerAccount, old.ServiceAccount), pick(controllerNamespace, old.Namespace)
	if slices.Contains(names, controllerNode) {
		c.Node = old.Node
		if c.Node == nil {
			c.Node = &api.NodeController{}
		}
	}
}

func nodeInForce(n *api.NodeController, e environment) {
	if n.SyncLabels == "" {
		n.SyncLabels = switched(true)
	}
	if e.syncLabels != nil {
		n.SyncLabels = switched(*e.syncLabels)
	}
	if n.HostEndpoint == nil {
		n.HostEndpoint = &api.AutoHostEndpoint{}
	}
	if n.HostEndpoint.AutoCreate == "" {
		n.HostEndpoint.AutoCreate = switched(false)
	}
	if e.autoHosts != nil {
		n.HostEndpoint.AutoCreate = switched(*e.autoHosts)
	}
}

func switched(on bool) string {
	if on {
		return "Enabled"
	}
	return "Disabled"
}

// word is a severity as resources have it.
func word(level string) string {
	for _, w := range []string{"Trace", "Debug", "Info", "Warning", "Error", "Fatal"} {
		if strings.EqualFold(w, level) || w == "Warning" && strings.EqualFold(level, "warn") || w == "Fatal" && strings.EqualFold(level, "panic") {
			return w
		}
	}
	return level
}
