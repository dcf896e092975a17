package controllers

import (
	"net/netip"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

// noPool is the label of addresses in blocks that no pool contains.
const noPool = "no_ippool"

// meters are the controllers' numbers, under Calico's names where they mean the same, and with muslin_ in front where Calico has none. The methods may be
// called concurrently.
type meters struct {
	registry *prometheus.Registry
	looks    *prometheus.CounterVec
	writes   *prometheus.CounterVec
	freed    *prometheus.CounterVec
	leader   prometheus.Gauge

	mu     sync.Mutex
	gauges []prometheus.Metric // of the last audit
	have   map[string]bool     // series of freed that exist
}

func newMeters() *meters {
	m := &meters{
		registry: prometheus.NewRegistry(),
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muslin_controllers_objects_total",
			Help: "Objects that were held against Kubernetes, by controller and what came of it."}, []string{"controller", "result"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muslin_controllers_writes_total", Help: "Changes of etcd."}, []string{"verb"}),
		freed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ipam_allocations_gc_reclamations",
			Help: "Addresses that were freed because nobody can be using them."}, []string{"ippool", "node"}),
		leader: prometheus.NewGauge(prometheus.GaugeOpts{Name: "muslin_controllers_leader", Help: "1 in the process that does the work, 0 in one that waits."}),
		have:   map[string]bool{},
	}
	m.registry.MustRegister(m.looks, m.writes, m.freed, m.leader, m, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *meters) looked(controller string, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.looks.WithLabelValues(controller, result).Inc()
}

func (m *meters) wrote(verb string) { m.writes.WithLabelValues(verb).Inc() }

func (m *meters) leads(yes bool) {
	m.leader.Set(0)
	if yes {
		m.leader.Set(1)
	}
}

// reclaimed counts freed addresses.
func (m *meters) reclaimed(snap feed.Snapshot, list []held) {
	pools := poolsOf(snap)
	for _, h := range list {
		m.freed.WithLabelValues(pools.of(h.Addr), h.Attrs[api.AttrNode]).Inc()
	}
}

// Describe implements prometheus.Collector. It says nothing, so that what is collected may change.
func (m *meters) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *meters) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.gauges {
		out <- g
	}
}

// share is what a node has of a pool.
type share struct{ inUse, borrowed, blocks, candidates int }

type poolNode struct{ pool, node string }

// count remembers who has how many addresses, as of one audit.
func (m *meters) count(snap feed.Snapshot, leaks map[string][]held) {
	pools := poolsOf(snap)
	by, total := map[poolNode]*share{}, map[string]*share{}
	at := func(pool, node string) (*share, *share) {
		k := poolNode{pool, node}
		if by[k] == nil {
			by[k] = &share{}
		}
		if total[node] == nil {
			total[node] = &share{}
		}
		return by[k], total[node]
	}
	for _, e := range snap.Blocks() {
		host, owned := e.Value.Host()
		pool := pools.of(e.Value.CIDR.Addr())
		if owned {
			a, b := at(pool, host)
			a.blocks++
			b.blocks++
		}
		for _, h := range ipam.Holdings(e.Value) {
			node := h.Attrs[api.AttrNode]
			a, b := at(pool, node)
			a.inUse++
			b.inUse++
			if node != host {
				a.borrowed++
				b.borrowed++
			}
			if len(leaks[h.Handle]) > 0 && h.Handle != "" {
				a.candidates++
			}
		}
	}
	gauges := gaugesOf(by, total, pools)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gauges = gauges
}

func gaugesOf(by map[poolNode]*share, total map[string]*share, pools pools) (out []prometheus.Metric) {
	gauge := func(name, help string, v float64, labels prometheus.Labels) {
		out = append(out, prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, labels), prometheus.GaugeValue, v))
	}
	for k, u := range by {
		l := prometheus.Labels{"ippool": k.pool, "node": k.node}
		gauge("ipam_allocations_in_use", "Addresses that a node has of a pool.", float64(u.inUse), l)
		gauge("ipam_allocations_borrowed", "Those of them that are out of another node's block.", float64(u.borrowed), l)
		gauge("ipam_blocks", "Blocks that a node has of a pool.", float64(u.blocks), l)
		gauge("ipam_allocations_gc_candidates", "Addresses that may be leaked, and are freed if they still are after leakGracePeriod.", float64(u.candidates), l)
	}
	for node, u := range total {
		l := prometheus.Labels{"node": node}
		gauge("ipam_allocations_per_node", "Addresses that a node has.", float64(u.inUse), l)
		gauge("ipam_allocations_borrowed_per_node", "Those of them that are out of another node's block.", float64(u.borrowed), l)
		gauge("ipam_blocks_per_node", "Blocks that a node has.", float64(u.blocks), l)
	}
	for _, p := range pools {
		gauge("ipam_ippool_size", "Addresses of a pool.", p.size(), prometheus.Labels{"ippool": p.name})
	}
	return out
}

type pool struct {
	name string
	cidr netip.Prefix
}

// size is exact up to 2^53, as all numbers of Prometheus are.
func (p pool) size() float64 {
	size := 1.0
	for range p.cidr.Addr().BitLen() - p.cidr.Bits() {
		size *= 2
	}
	return size
}

type pools []pool

func poolsOf(snap feed.Snapshot) (out pools) {
	for _, e := range snap.Pools() {
		if e.Value.Spec.CIDR.IsValid() {
			out = append(out, pool{e.Value.Metadata.Name, e.Value.Spec.CIDR})
		}
	}
	return out
}

// of is the name of the pool that contains an address.
func (p pools) of(a netip.Addr) string {
	for _, one := range p {
		if one.cidr.Contains(a) {
			return one.name
		}
	}
	return noPool
}

// address is where metrics and health are served; "": nowhere.
func address(port int) string {
	if port == 0 {
		return ""
	}
	return ":" + strconv.Itoa(port)
}
