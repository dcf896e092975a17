package health

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Facts are numbers that are looked up when somebody asks for metrics.
type Facts struct {
	LocalEndpoints, Hosts, Endpoints, Profiles, Tiers int // as the datastore says
	Policies, StagedPolicies, HostEndpoints           int // likewise
	ActivePolicies, ActiveSelectors                   int // that this node's policy consists of
	ActiveStaged                                      int // of ActivePolicies: to be counted, not enforced
	Matched                                           map[Matched]uint64
	Revision                                          int64
	Connected, Synced                                 bool          // with etcd now; with etcd once
	Lag                                               time.Duration // behind the datastore
	Problems, LogErrors, LogsDropped                  int
	Addresses                                         Addresses
	Planned                                           Planned
	BGP                                               *BGP   // nil: the node has no BGP
	Pods                                              *Pods  // nil: there is no Kubernetes
	Paths                                             *Paths // nil: the node tests none
	WireGuard                                         []WireGuard
}

// Addresses counts what the node has of the pools.
type Addresses struct{ Blocks, InUse, Borrowed, Free int }

// BGP counts what is exchanged with BGP peers.
type BGP struct {
	Sessions                       map[string]int // by state, as RFC 4271 names it
	Received, Accepted, Advertised uint64         // routes, of all sessions together
}

// Pods counts whose facts were asked for, by pods' ADDs: those that were known already, and those that the API server had to be asked for.
type Pods struct{ Known, Asked uint64 }

// Matched says of which rules packets are counted: by what the rules do, and whether it is really done.
type Matched struct {
	Action string // allow, deny, pass or log
	Staged bool
	Reason string // for which packets are dropped that no rule denies; ""
}

// Planned counts what the last plan wants of the kernel.
type Planned struct {
	Routes, RouteDevices int
	Sets                 map[string]int // by IP version, "4" or "6"
	Chains, Rules        map[ByTable]int
}

// ByTable names a table of iptables.
type ByTable struct{ Version, Table string }

// Metrics are the agent's numbers, under Calico's names where they mean the same, and with muslin_ in front where Calico has none. Its
// methods may be called concurrently.
type Metrics struct {
	facts             func() Facts
	registry          *prometheus.Registry
	runtime, process  prometheus.Collector
	goToo, processToo atomic.Bool

	applyTime prometheus.Summary
	failures  prometheus.Counter
	resync    prometheus.Gauge
	changes   *prometheus.CounterVec
	requests  *prometheus.HistogramVec
	stages    *prometheus.HistogramVec
}

// NewMetrics returns metrics of the named node. facts is called once for each question and must not block for long.
func NewMetrics(node string, facts func() Facts) *Metrics {
	m := &Metrics{
		facts: facts, registry: prometheus.NewRegistry(),
		applyTime: prometheus.NewSummary(prometheus.SummaryOpts{Name: "felix_int_dataplane_apply_time_seconds", Help: "Time that one round of writing the kernel took.",
			Objectives: map[float64]float64{0.5: 0.05, 0.9: 0.01, 0.99: 0.001}}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "felix_int_dataplane_failures", Help: "Rounds that failed in part; they are tried again."}),
		resync: prometheus.NewGauge(prometheus.GaugeOpts{Name: "felix_int_dataplane_initial_resync_time_seconds",
			Help: "Time from the start until the kernel was gone through once; 0 until then."}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muslin_kernel_changes_total", Help: "Kernel objects that were added, replaced or removed."}, []string{"table"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "muslin_request_seconds", Help: "Plugins' requests, by what they asked and what came of it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}, []string{"verb", "result"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "muslin_add_stage_seconds", Help: "What the time of ADDs goes to: the pod's facts from Kubernetes (facts), " +
			"the transaction (etcd), the plugin's own work that is left then (link), policy and routes (kernel).", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18)}, []string{"stage"}),
		runtime: collectors.NewGoCollector(), process: collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}
	host := prometheus.NewGauge(prometheus.GaugeOpts{Name: "felix_host", Help: "The node's name, as a label.", ConstLabels: prometheus.Labels{"host": node}})
	host.Set(1)
	m.registry.MustRegister(m.applyTime, m.failures, m.resync, m.changes, m.requests, m.stages, host, lookup{node, m.facts},
		optional{m.runtime, &m.goToo}, optional{m.process, &m.processToo})
	return m
}

// Include says whether the metrics of the Go runtime and of the process are among them.
func (m *Metrics) Include(runtime, process bool) {
	m.goToo.Store(runtime)
	m.processToo.Store(process)
}

// Applied counts one round of writing the kernel, and its changes by table.
func (m *Metrics) Applied(took time.Duration, changes map[string]int, failed bool) {
	m.applyTime.Observe(took.Seconds())
	if failed {
		m.failures.Inc()
	}
	for table, n := range changes {
		m.changes.WithLabelValues(table).Add(float64(n))
	}
}

// FirstResync says how long it took until the kernel had been gone through once.
func (m *Metrics) FirstResync(took time.Duration) { m.resync.Set(took.Seconds()) }

// Request counts a plugin's request.
func (m *Metrics) Request(verb string, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.requests.WithLabelValues(verb, result).Observe(took.Seconds())
}

// Stage counts one stage of an ADD.
func (m *Metrics) Stage(stage string, took time.Duration) {
	m.stages.WithLabelValues(stage).Observe(took.Seconds())
}

// Handler answers GET /metrics in Prometheus's format.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: totalTimeout}))
	return mux
}

// optional is a collector that can be switched off.
type optional struct {
	prometheus.Collector
	on *atomic.Bool
}

// Describe says nothing, so that what is collected may change.
func (optional) Describe(chan<- *prometheus.Desc) {}

// Collect collects what the collector does, if it is switched on.
func (o optional) Collect(out chan<- prometheus.Metric) {
	if o.on.Load() {
		o.Collector.Collect(out)
	}
}

// lookup collects the facts.
type lookup struct {
	node  string
	facts func() Facts
}

// Describe says nothing: see Collect.
func (lookup) Describe(chan<- *prometheus.Desc) {}

// Collect looks the facts up and tells them.
func (l lookup) Collect(out chan<- prometheus.Metric) {
	f := l.facts()
	gauge := func(name, help string, v float64) { out <- constant(prometheus.GaugeValue, name, help, v) }
	gauge("felix_active_local_endpoints", "Pods of this node.", float64(f.LocalEndpoints))
	gauge("felix_cluster_num_hosts", "Nodes of the cluster.", float64(f.Hosts))
	gauge("felix_cluster_num_workload_endpoints", "Pods of the cluster.", float64(f.Endpoints))
	gauge("felix_cluster_num_profiles", "Profiles of the cluster.", float64(f.Profiles))
	gauge("felix_cluster_num_tiers", "Tiers of the cluster.", float64(f.Tiers))
	gauge("felix_cluster_num_policies", "Policies of the cluster, but for staged ones.", float64(f.Policies))
	gauge("muslin_cluster_staged_policies", "Staged policies of the cluster.", float64(f.StagedPolicies))
	gauge("felix_cluster_num_host_endpoints", "Host endpoints of the cluster.", float64(f.HostEndpoints))
	gauge("felix_active_local_policies", "Policies that select an endpoint of this node.", float64(f.ActivePolicies))
	gauge("muslin_active_staged_policies", "Those of them that are staged: what they would do is counted and not done.", float64(f.ActiveStaged))
	gauge("felix_active_local_selectors", "Selectors and services that these refer to.", float64(f.ActiveSelectors))
	gauge("felix_resync_state", "1: waits for etcd; 2: reads it; 3: is in sync.", state(f))
	gauge("muslin_datastore_connected", "1 while etcd tells of changes, else 0.", oneIf(f.Connected))
	gauge("muslin_datastore_revision", "The revision of etcd up to which everything has been seen. Nodes that lag show a smaller one.", float64(f.Revision))
	gauge("muslin_datastore_lag_seconds", "How far this node is behind etcd: since when it is cut off, or how long it takes to see what etcd holds now.", f.Lag.Seconds())
	gauge("muslin_node_blocks", "Blocks of addresses that this node has.", float64(f.Addresses.Blocks))
	gauge("muslin_node_addresses_in_use", "Addresses out of them that are in use on this node, by pods or as its own tunnels'.", float64(f.Addresses.InUse))
	gauge("muslin_node_addresses_borrowed", "Addresses out of other blocks that are in use on this node.", float64(f.Addresses.Borrowed))
	gauge("muslin_node_addresses_free", "Addresses that its blocks have left.", float64(f.Addresses.Free))
	gauge("muslin_problems", "Problems that the log names and that are still there.", float64(f.Problems))
	out <- constant(prometheus.CounterValue, "felix_log_errors", "Errors that were logged.", float64(f.LogErrors))
	out <- constant(prometheus.CounterValue, "felix_logs_dropped", "Lines that a log file or syslog did not take.", float64(f.LogsDropped))
	f.Planned.collect(out)
	for m, n := range f.Matched {
		out <- constant(prometheus.CounterValue, "muslin_policy_packets_total", "Packets that rules of policies have matched, by what the rules do or, staged, would do; of a flow, "+
			"mostly the first alone. Reason says why packets were dropped that no rule denies.", float64(n), "action", m.Action, "staged", strconv.FormatBool(m.Staged), "reason", m.Reason)
	}
	f.BGP.collect(out)
	f.Pods.collect(out)
	f.Paths.collect(out)
	for i := range f.WireGuard {
		f.WireGuard[i].collect(l.node, out)
	}
}

func (p *Pods) collect(out chan<- prometheus.Metric) {
	if p == nil {
		return
	}
	for from, n := range map[string]uint64{"memory": p.Known, "api-server": p.Asked} {
		out <- constant(prometheus.CounterValue, "muslin_pod_facts_total", "Pods whose labels and annotations an ADD wanted, by where they came from: memory, or a question to the API server "+
			"for a pod that was not followed yet.", float64(n), "from", from)
	}
}

func (b *BGP) collect(out chan<- prometheus.Metric) {
	if b == nil {
		return
	}
	for state, n := range b.Sessions {
		out <- constant(prometheus.GaugeValue, "muslin_bgp_sessions", "BGP sessions. All but the Established ones lack.", float64(n), "state", state)
	}
	out <- constant(prometheus.GaugeValue, "muslin_bgp_routes_received", "Routes that BGP peers have sent, before filters.", float64(b.Received))
	out <- constant(prometheus.GaugeValue, "muslin_bgp_routes_accepted", "Routes that BGP peers have sent, after filters.", float64(b.Accepted))
	out <- constant(prometheus.GaugeValue, "muslin_bgp_routes_advertised", "Routes that BGP peers were sent.", float64(b.Advertised))
}

func (p Planned) collect(out chan<- prometheus.Metric) {
	out <- constant(prometheus.GaugeValue, "felix_route_table_num_routes", "Routes that the kernel should hold.", float64(p.Routes))
	out <- constant(prometheus.GaugeValue, "felix_route_table_num_ifaces", "Devices that these routes lead to.", float64(p.RouteDevices))
	total := 0
	for version, n := range p.Sets {
		total += n
		out <- constant(prometheus.GaugeValue, "felix_ipsets_calico", "Our ipsets.", float64(n), "ip_version", version)
	}
	out <- constant(prometheus.GaugeValue, "felix_ipsets_total", "Our ipsets of both families.", float64(total))
	for k, n := range p.Chains {
		out <- constant(prometheus.GaugeValue, "felix_iptables_chains", "Our chains, and the kernel's that hold rules of ours.", float64(n), "ip_version", k.Version, "table", k.Table)
		out <- constant(prometheus.GaugeValue, "felix_iptables_rules", "Our rules.", float64(p.Rules[k]), "ip_version", k.Version, "table", k.Table)
	}
}

// constant is one value; labels are names and values in turn.
func constant(kind prometheus.ValueType, name, help string, v float64, labels ...string) prometheus.Metric {
	with := prometheus.Labels{}
	for i := 0; i+1 < len(labels); i += 2 {
		with[labels[i]] = labels[i+1]
	}
	return prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, with), kind, v)
}

func state(f Facts) float64 {
	switch {
	case f.Connected && f.Synced:
		return 3
	case f.Connected:
		return 2
	}
	return 1
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
