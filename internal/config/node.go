package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Node is what the environment says about this node and about what to write at start.
type Node struct {
	NodeName      string // "": from the nodename file, else the host's name
	NodeNameFile  string
	IP, IP6       Address
	PollInterval  time.Duration // between two looks at the node's addresses
	NoIPCheck     bool          // an address may be another node's too
	AS            *api.ASN      // nil: as the Node says
	Backend       Backend
	RouterID      string // "", "hash" or an IPv4 address
	K8sNodeRef    string
	ClusterType   string
	NoDefault     bool // no default pools
	Pool, Pool6   Pool
	LogLevel      *slog.Level // until FelixConfiguration has been read; nil: as the environment's LogSeverityScreen says
	ShutdownFile  string
	Kubeconfig    string // "": by the service account, where there is one
	MTUFile       string
	CutDenied     bool   // connections of pods that a change of policy denies are cut
	Plaintext     bool   // what WireGuard cannot encrypt, for want of the other node's key, goes in clear
	MachineIDFile string // "": the usual places
	Install       bool   // programs, certificates and network configuration on the host
	Probes        Probes
	PodFlows      Share // connections that a pod may have that it has begun, of all that the kernel tracks
	BGPMaxRoutes  int   // of one family that a peer may announce; 0: any number
}

// Share is so many of what there are, or so many in a hundred. The zero value is all.
type Share struct{ Number, Percent uint32 }

// Of is how many these are of so many; 0: all.
func (s Share) Of(all uint32) uint32 {
	if s.Percent == 0 {
		return s.Number
	}
	return uint32(uint64(all) * uint64(s.Percent) / 100)
}

// Probes says how the paths to other nodes are tested.
type Probes struct {
	On    bool
	Every time.Duration // between two tests of a path that is well
	Peers int           // that are tested within that time at most
	Port  int           // UDP, on every node the same
}

// Address says where the node's address of a family comes from.
type Address struct {
	Want   string // "" (for IPv6 the same as "none"), "autodetect", "none", an address or a CIDR
	Method string // of autodetection
}

// Backend says who distributes routes.
type Backend string

// The backends.
const (
	BGP   Backend = "bird"  // BGP, beside routes from etcd
	VXLAN Backend = "vxlan" // etcd alone
	None  Backend = "none"  // the same, and the node's addresses are not looked after
)

// Pool describes the default pool of a family.
type Pool struct {
	CIDR             netip.Prefix // zero: choose
	None             bool         // "none": do not make one
	BlockSize        int
	IPIP, VXLAN      api.EncapMode
	NATOutgoing      bool
	NodeSelector     string
	DisableBGPExport bool
}

// variable is one variable of the environment: what help says of it, and where its value goes.
type variable struct {
	name     string
	fallback string // read where the environment has nothing; "": the field stays as it is
	meaning  string
	value
}

// variables are all that are read into n, in the order of help. A later one overrides an earlier one.
func (n *Node) variables() []variable {
	const address = "none, autodetect, an address or an address with prefix length"
	const method = "first-found, can-reach=ADDRESS, interface=REGEXP,…, skip-interface=REGEXP,…, cidr=RANGE,… or kubernetes-internal-ip"
	return append([]variable{
		{"NODENAME", "", "the node's name; not set: what CALICO_NODENAME_FILE says, else HOSTNAME, else the host's name, both in lower case", word(&n.NodeName, "a name")},
		{"CALICO_NODENAME_FILE", "/var/lib/calico/nodename", "file that keeps the node's name", word(&n.NodeNameFile, "a path")},
		{"IP", "", "the node's IPv4 address; autodetect looks at every start, not set only where the Node has none", word(&n.IP.Want, address)},
		{"IP_AUTODETECTION_METHOD", "first-found", "how the IPv4 address is found", word(&n.IP.Method, method)},
		{"IP6", "none", "the node's IPv6 address", word(&n.IP6.Want, address)},
		{"IP6_AUTODETECTION_METHOD", "first-found", "how the IPv6 address is found", word(&n.IP6.Method, method)},
		{"AUTODETECT_POLL_INTERVAL", "60s", "how often the node's addresses are looked for anew, beside when the kernel says that they changed", interval(&n.PollInterval, time.Second)},
		{"DISABLE_NODE_IP_CHECK", "false", "another node may have the same address", boolean(&n.NoIPCheck)},
		{"AS", "", "the node's AS number; not set: as the Node says, else the cluster's", asn(&n.AS)},
		{"CALICO_NETWORKING_BACKEND", "bird", "who distributes routes: BGP, or etcd alone; none looks after no node address either", backend(&n.Backend)},
		{"CALICO_NETWORKING", "", "old form of it: false is none, anything else bird", oldBackend(&n.Backend)},
		{"CALICO_ROUTER_ID", "", "BGP's router id; not set: the node's IPv4 address", routerID(&n.RouterID)},
		{"CALICO_K8S_NODE_REF", "", "the node's name in Kubernetes", word(&n.K8sNodeRef, "a name")},
		{"CLUSTER_TYPE", "", "words to add to ClusterInformation's clusterType", word(&n.ClusterType, "words with commas between them")},
		{"NO_DEFAULT_POOLS", "false", "make no default pools", boolean(&n.NoDefault)},
		{"CALICO_STARTUP_LOGLEVEL", "", "what is logged until FelixConfiguration has been read; not set: as FELIX_LOGSEVERITYSCREEN says", logLevel(&n.LogLevel)},
		{"CALICO_SHUTDOWN_TIMESTAMP_FILE", "/var/lib/calico/shutdownTS", "file that says since when the agent is down; it goes when the agent is up again", word(&n.ShutdownFile, "a path")},
		{"KUBECONFIG", "", "how to reach the Kubernetes API server; not set: by the pod's service account", word(&n.Kubeconfig, "a path")},
		{FileEnv, "", "file with settings, as Name = value; not set: " + defaultFile + " if it is there", word(new(string), "a path")},
		{"MUSLIN_LINGER", "1m", "for how long the node goes on receiving by an encapsulation that no pool asks for any more", word(new(string), "a duration")},
		{"MUSLIN_CUT_DENIED_FLOWS", "false", "cut connections of pods that a change of policy denies; they go on otherwise, and only new ones are denied", boolean(&n.CutDenied)},
		{"MUSLIN_POD_MAX_CONNECTIONS", "75%", "how many connections that it has begun a pod may have open, as a number or in percent of nf_conntrack_max, unless its annotation qos.projectcalico.org/egressMaxConnections says otherwise; 0: any number", share(&n.PodFlows)},
		{"MUSLIN_BGP_MAX_ROUTES", "100000", "how many routes of one family a BGP peer may announce, those that a BGPFilter rejects among them; the session with one that announces more is ended, and tried again after a minute, then at growing distances; 0: any number", number(&n.BGPMaxRoutes, 0, math.MaxInt32)},
		{"MUSLIN_WIREGUARD_PLAINTEXT", "false", "with WireGuard on, send in clear what is for nodes that have told no key (they have none yet, or no WireGuard); it is refused otherwise", boolean(&n.Plaintext)},
		{"MUSLIN_MACHINE_ID_FILE", "", "file with this machine's id; not set: /etc/machine-id and other usual places", word(&n.MachineIDFile, "a path")},
		{"MUSLIN_INSTALL_CNI", "false", "put the CNI programs, etcd's certificates and, once pods can be served, the network configuration on the host, as `muslin-node install` does", boolean(&n.Install)},
		{"MUSLIN_PATH_PROBES", "true", "test the paths to other nodes that pods' packets take, and answer their tests; `muslinctl node paths` shows what was found", boolean(&n.Probes.On)},
		{"MUSLIN_PATH_PROBE_INTERVAL", "90s", "how often a path that is well is tested", interval(&n.Probes.Every, time.Second)},
		{"MUSLIN_PATH_PROBE_PEERS", "100", "how many nodes are tested within that time; where there are more they take turns", number(&n.Probes.Peers, 1, 10000)},
		{"MUSLIN_PATH_PROBE_PORT", "9097", "UDP port of these tests, between the nodes' tunnel addresses, or their own addresses where nothing is encapsulated; the same on every node", number(&n.Probes.Port, 1, 65535)},
	}, append(n.Pool.variables(pool4), n.Pool6.variables(pool6)...)...)
}

// poolFamily is how the default pool of a family is spelled in the environment, and what it may be.
type poolFamily struct {
	name, prefix      string // of the family, and of its variables
	example           string // of a CIDR
	v6                bool
	nat               string // NATOutgoing where nothing is said
	size, least, most int    // of blocks, as prefix lengths
}

var (
	pool4 = poolFamily{name: "IPv4", prefix: "CALICO_IPV4POOL_", example: "192.168.0.0/16", nat: "true", size: 26, least: 20, most: 32}
	pool6 = poolFamily{name: "IPv6", prefix: "CALICO_IPV6POOL_", example: "fd00:10:244::/48", v6: true, nat: "false", size: 122, least: 116, most: 128}
)

func (p *Pool) variables(f poolFamily) []variable {
	pool := func(name, fallback, meaning string, v value) variable {
		return variable{f.prefix + name, fallback, "default " + f.name + " pool: " + meaning, v}
	}
	p.IPIP = api.Never
	list := []variable{
		pool("CIDR", "", "its range; not set: kubeadm's, else one that is free; none makes no pool", poolRange(p, f.v6, f.example)),
		pool("BLOCK_SIZE", fmt.Sprint(f.size), "prefix length of its blocks", number(&p.BlockSize, f.least, f.most)),
		pool("VXLAN", "Never", "its vxlanMode", encapsulation(&p.VXLAN)),
		pool("NAT_OUTGOING", f.nat, "its natOutgoing", unlessFalse(&p.NATOutgoing)),
		pool("NODE_SELECTOR", "all()", "its nodeSelector", word(&p.NodeSelector, "a selector")),
		pool("DISABLE_BGP_EXPORT", "false", "its disableBGPExport", unlessFalse(&p.DisableBGPExport)),
	}
	if !f.v6 { // there is no IP-in-IP for IPv6, nor a variable
		list = append(list, pool("IPIP", "Never", "its ipipMode", encapsulation(&p.IPIP)))
	}
	return list
}

// FromEnv reads the node's settings. The error names every variable that cannot be read, and what it may hold.
func FromEnv(env Env) (Node, error) {
	n := Node{MTUFile: "/var/lib/calico/mtu"}
	var errs []error
	for _, v := range n.variables() {
		errs = append(errs, v.read(env))
	}
	errs = append(errs, n.contradictions(n.Pool, pool4), n.contradictions(n.Pool6, pool6))
	// Without IPv6 in the dataplane nobody would route to the pods of such a pool.
	n.Pool6.None = n.Pool6.None || isFalse(env("FELIX_IPV6SUPPORT"))
	return n, errors.Join(errs...)
}

func (v variable) read(env Env) error {
	text := env(v.name)
	if text == "" {
		text = v.fallback
	}
	if text == "" {
		return nil
	}
	if err := v.set(text); err != nil {
		return fmt.Errorf("%s=%s: want %s", v.name, text, v.want)
	}
	return nil
}

func (n Node) contradictions(p Pool, f poolFamily) error {
	switch {
	case n.NoDefault && p.CIDR.IsValid():
		return fmt.Errorf("NO_DEFAULT_POOLS=true and %sCIDR=%v contradict each other: unset one", f.prefix, p.CIDR)
	case p.IPIP != api.Never && p.VXLAN != api.Never:
		return fmt.Errorf("%[1]sIPIP=%[2]s and %[1]sVXLAN=%[3]s exclude each other: set one to Never", f.prefix, p.IPIP, p.VXLAN)
	}
	return nil
}

// Looks reports whether any address of the node is to be looked after.
func (n Node) Looks() bool {
	return n.Backend != None && (n.IP.Want != "none" || n.IP6.Want != "none")
}
