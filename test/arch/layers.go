// Package arch holds the source tree to its rules: which package may import which, what pure packages stay away
// from, what the plugin does not link, one package comment each, and a package table in ARCHITECTURE.md that is the
// generated one. The rules are data (Layers, Pure, LinkRules); the checks return one line per violation.
package arch

import "strings"

// Module is the import path that every package of this repository starts with.
const Module = "github.com/muslin-cni/muslin"

// Level is a package's height. Production code imports only lower levels.
type Level int

// Test is the level of packages that exist for tests: only tests and other packages of this level import them.
const Test Level = -1

// Row is one package of the layer table.
type Row struct {
	Level    Level
	Path     string   // import path below Module
	Sentence string   // what the package does, as a clause without a full stop
	Beside   []string // packages of the same level that it may import all the same
}

// Layers is the layer table, highest first. A new package gets its row here before it gets its second file.
//
// plan stands beside hostside rather than above it because the network plugin, far from plan, writes the same
// host state when it is told not to wait for the agent. api stands beside selector, which knows nothing of resources, because the
// fields that hold selectors are validated with all others.
var Layers = []Row{
	{Level: 6, Path: "cmd/muslin", Sentence: "the CNI network plugin"},
	{Level: 6, Path: "cmd/muslin-controllers", Sentence: "the cluster's controllers, one per cluster"},
	{Level: 6, Path: "cmd/muslin-ipam", Sentence: "the CNI IPAM module, straight against etcd"},
	{Level: 6, Path: "cmd/muslin-lab", Sentence: "a cluster of nodes on one machine, for people and scripts"},
	{Level: 6, Path: "cmd/muslin-node", Sentence: "the agent, one per node"},
	{Level: 6, Path: "cmd/muslinctl", Sentence: "the operator's command"},

	{Level: 5, Path: "internal/agent", Sentence: "wires one node's inputs, plan and reconcilers and runs the loop"},
	{Level: 5, Path: "internal/cni", Sentence: "answers CNI commands as network plugin"},
	{Level: 5, Path: "internal/cni/module", Sentence: "answers CNI commands as IPAM module, straight against etcd"},
	{Level: 5, Path: "internal/controllers", Sentence: "mirrors Kubernetes objects into etcd and audits addresses"},
	{Level: 5, Path: "internal/ctl", Sentence: "the operator's verbs", Beside: []string{"internal/ctl/hosts"}},
	{Level: 5, Path: "internal/ctl/hosts", Sentence: "the operator's verbs for one host: status, diagnostics, requirements, adoption"},
	{Level: 5, Path: "internal/lab", Sentence: "many nodes on one machine, one network namespace each, with embedded etcd"},

	{Level: 4, Path: "internal/ctl/objects", Sentence: "creates, changes and deletes resources of any kind by the rules of Calico's client"},
	{Level: 4, Path: "internal/ctl/addresses", Sentence: "the operator's verbs for addresses: show, check, release, configure, split"},
	{Level: 4, Path: "internal/ctl/migrate", Sentence: "the operator's verbs for the whole datastore: lock, unlock, export, import"},
	{Level: 4, Path: "internal/ctl/why", Sentence: "the operator's verbs that say why packets pass or not: explain, drops"},
	{Level: 4, Path: "internal/doctor", Sentence: "says what is wrong on a node, in the order in which one would mend it"},
	{Level: 4, Path: "internal/install", Sentence: "puts what the container runtime needs on a host, and takes it away again"},
	{Level: 4, Path: "internal/reconcile", Sentence: "makes the kernel equal a desired state"},
	{Level: 4, Path: "internal/register", Sentence: "the IPAM handler: pod facts, pools, one transaction"},
	{Level: 4, Path: "internal/startup", Sentence: "a node's name and address, and what every cluster must hold, before the loop"},

	{Level: 3, Path: "internal/ctl/apiconfig", Sentence: "reads the operator's configuration file: where etcd is"},
	{Level: 3, Path: "internal/ctl/cli", Sentence: "what the operator's verbs have in common"},
	{Level: 3, Path: "internal/feed", Sentence: "follows etcd and yields snapshots on persistent maps, with deltas"},
	{Level: 3, Path: "internal/reports", Sentence: "hands what the kernel reports of packets on to several listeners"},
	{Level: 3, Path: "pkg/ipam", Sentence: "hands out and takes back addresses"},

	{Level: 2, Path: "internal/apiserver", Sentence: "reads single objects from the Kubernetes API server"},
	{Level: 2, Path: "internal/attachlock", Sentence: "the lock of a host interface while its pod is attached or detached"},
	{Level: 2, Path: "internal/authority", Sentence: "a certificate authority and what it signs, for the lab's etcd and for tests"},
	{Level: 2, Path: "internal/bgp", Sentence: "speaks BGP: full set to announce, full set learned"},
	{Level: 2, Path: "internal/cni/netconf", Sentence: "reads CNI network configurations and makes attach requests of them"},
	{Level: 2, Path: "internal/config", Sentence: "settings with their sources"},
	{Level: 2, Path: "internal/ctl/manifest", Sentence: "reads resources from files, folders and standard input, and says where in them a field stands"},
	{Level: 2, Path: "internal/ctl/show", Sentence: "prints resources as tables, YAML, JSON and by templates"},
	{Level: 2, Path: "internal/echo", Sentence: "sends probes of paths to other nodes, and answers theirs"},
	{Level: 2, Path: "internal/embedetcd", Sentence: "an etcd of one member inside the process, for the lab and for tests"},
	{Level: 2, Path: "internal/health", Sentence: "tells monitoring systems whether the node is ready and lives, and how it fares in numbers"},
	{Level: 2, Path: "internal/nft", Sentence: "the doorway to nftables"},
	{Level: 2, Path: "internal/kube", Sentence: "follows what a node needs of Kubernetes"},
	{Level: 2, Path: "internal/machineid", Sentence: "names the machine that this is"},
	{Level: 2, Path: "internal/rtnl", Sentence: "the doorway to links, addresses, routes, rules, neighbours and the FDB, and to their events"},
	{Level: 2, Path: "internal/sysctl", Sentence: "the doorway to kernel settings"},
	{Level: 2, Path: "internal/wireguard", Sentence: "the doorway to WireGuard devices: keys, ports, peers"},
	{Level: 2, Path: "internal/xtables", Sentence: "the doorway to iptables and ipset"},
	{Level: 2, Path: "pkg/store", Sentence: "typed create, read, compare-and-swap, transaction and watch on etcd"},

	{Level: 1, Path: "internal/attach", Sentence: "what plugin and agent say to each other over the socket"},
	{Level: 1, Path: "internal/cni/cnilog", Sentence: "the logs of the CNI programs"},
	{Level: 1, Path: "internal/fault", Sentence: "cuts programs off at named points, in builds for tests alone"},
	{Level: 1, Path: "internal/ctl/legacy", Sentence: "says what a document of Calico's first format would be today"},
	{Level: 1, Path: "internal/hostside", Sentence: "a workload's host state, for plan and for the plugin alike"},
	{Level: 1, Path: "internal/kubeconv", Sentence: "Kubernetes objects to resources", Beside: []string{"internal/policy"}},
	{Level: 1, Path: "internal/peering", Sentence: "computes what a node says to its BGP peers, and what it makes of what they say"},
	{Level: 1, Path: "internal/plan", Sentence: "computes the kernel state that a node should have", Beside: []string{"internal/hostside", "internal/peering"}},
	{Level: 1, Path: "internal/policy", Sentence: "resolves policies and selectors into rules and sets, incrementally"},
	{Level: 1, Path: "internal/probe", Sentence: "decides which paths to other nodes are tested, and what the answers mean"},
	{Level: 1, Path: "internal/ruleset", Sentence: "lays policy out as one nftables table, incrementally", Beside: []string{"internal/policy"}},
	{Level: 1, Path: "pkg/ipam/block", Sentence: "address-block arithmetic on values"},

	{Level: 0, Path: "internal/kernel", Sentence: "comparable values for every kernel object, their marks, and Diff"},
	{Level: 0, Path: "internal/shortlived", Sentence: "has the runtime of a program that lives briefly do with less, before anything else is initialized"},
	{Level: 0, Path: "internal/members", Sentence: "reads and writes JSON objects without analysing types, for processes that live briefly"},
	{Level: 0, Path: "internal/nftable", Sentence: "the content of an nftables table as values, their text, and the difference of two"},
	{Level: 0, Path: "pkg/api", Sentence: "resources: types, defaults, validation, keys, codecs", Beside: []string{"pkg/selector"}},
	{Level: 0, Path: "pkg/selector", Sentence: "the label-selector language"},

	{Level: Test, Path: "internal/ctl/clitest", Sentence: "runs scripts of operator's commands on a real etcd"},
	{Level: Test, Path: "internal/bgptest", Sentence: "plays the far end of a BGP session byte by byte, for what no daemon would say"},
	{Level: Test, Path: "internal/etcdtest", Sentence: "an etcd for one test, which it may take away and bring back"},
	{Level: Test, Path: "internal/ipamtest", Sentence: "holds all that etcd says of addresses against itself"},
	{Level: Test, Path: "internal/memetcd", Sentence: "an etcd in memory, deterministic, any moment of which can be kept and gone back to"},
	{Level: Test, Path: "internal/memkernel", Sentence: "a host's kernel in memory, for tests that need thousands of them"},
	{Level: Test, Path: "internal/nettest", Sentence: "network namespaces and topologies for tests"},
	{Level: Test, Path: "test/arch", Sentence: "holds the source tree to its rules: layers, purity, comments, links"},
	{Level: Test, Path: "test/bench/floor", Sentence: "the least that an attach can cost, as a process of its own"},
	{Level: Test, Path: "test/bench/etcdfloor", Sentence: "the least that an operator's command can cost, as a process of its own"},
	{Level: Test, Path: "test/bench", Sentence: "measures ADD, DEL and the operator's command against floors"},
	{Level: Test, Path: "test/calicowriter", Sentence: "replays the step sequences of Calico's own writers against ours"},
	{Level: Test, Path: "test/deploy", Sentence: "holds chart, manifests, dashboards and alerts to each other and to the code"},
	{Level: Test, Path: "test/e2e", Sentence: "whole paths through the lab: built programs, real kernel, real etcd"},
	{Level: Test, Path: "test/modelcheck", Sentence: "drives address management through every order of events of a small cluster, and holds histories of a real etcd to linearizability"},
	{Level: Test, Path: "test/policyjudge", Sentence: "judges packets by the documented semantics of policy, and holds compiler and kernel against that"},
	{Level: Test, Path: "test/image", Sentence: "packs programs and Debian's packages into container images"},
	{Level: Test, Path: "test/k8s", Sentence: "runs under a real Kubernetes control plane"},
	{Level: Test, Path: "test/k8s/pause", Sentence: "the first process of each pod there: it holds the pod's namespaces"},
	{Level: Test, Path: "test/sim", Sentence: "a cluster of thousands of nodes in one process, in an order that a seed decides"},
	{Level: Test, Path: "test/vm", Sentence: "runs a program under a stock kernel, in a virtual machine"},
}

// Pure lists the packages that compute and do nothing else. The race detector runs over them in `make check`.
var Pure = []string{
	"internal/attach",
	"internal/hostside",
	"internal/kernel",
	"internal/members",
	"internal/nftable",
	"internal/peering",
	"internal/plan",
	"internal/policy",
	"internal/probe",
	"internal/ruleset",
	"pkg/api",
	"pkg/ipam/block",
	"pkg/selector",
}

// Early lists the packages whose very purpose is to run before main. No other declares init.
var Early = []string{"internal/shortlived"}

// Impure lists what a pure package does not import; an entry covers what lies below it, except what Harmless names.
var Impure = []string{"context", "log", "net", "os", "sync", "syscall"}

// Harmless lists packages below an Impure one that only compute.
var Harmless = []string{"net/netip", "net/url"}

// LinkRule says what must not be linked into a program.
type LinkRule struct {
	Program string   // path below Module
	Without []string // import paths; each covers what lies below it
	Why     string
}

// LinkRules holds for programs whose size and start-up time are promised.
var LinkRules = []LinkRule{{
	Program: "cmd/muslin",
	Without: []string{"go.etcd.io/etcd", "google.golang.org/grpc", "k8s.io/client-go", "net/http", "golang.zx2c4.com/wireguard"},
	Why:     "the plugin starts once per pod and must start in a millisecond or two",
}, {
	Program: "cmd/muslin-ipam",
	Without: []string{"k8s.io/client-go"},
	Why:     "it starts once per pod where no agent runs, and asks Kubernetes two questions at most",
}, {
	Program: "test/vm",
	Without: []string{"net", "os/user", "runtime/cgo"},
	Why:     "it is the first process of a machine that has no C library yet, so it must be static however it is built",
}}

// find returns the row of the package at path, which is below Module.
func find(table []Row, path string) (Row, bool) {
	for _, row := range table {
		if row.Path == path {
			return row, true
		}
	}
	return Row{}, false
}

// within reports whether an import path is one of roots or lies below one.
func within(path string, roots []string) bool {
	for _, root := range roots {
		if path == root || strings.HasPrefix(path, root+"/") {
			return true
		}
	}
	return false
}
