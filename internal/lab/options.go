package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// Mode says how pods of different nodes reach each other.
type Mode string

// The modes.
const (
	Direct          Mode = "direct"            // plain routes, only within a subnet
	IPIP            Mode = "ipip"              // an IP-in-IP tunnel between all nodes; IPv4 only
	IPIPCrossSubnet Mode = "ipip-crosssubnet"  // one between subnets, plain routes within one; IPv4 only
	VXLAN           Mode = "vxlan"             // a VXLAN tunnel between all nodes
	CrossSubnet     Mode = "vxlan-crosssubnet" // one between subnets, plain routes within one
)

// modes are all of them, as an IP pool spells them.
func modes() map[Mode]struct{ ipip, vxlan string } {
	return map[Mode]struct{ ipip, vxlan string }{
		Direct:          {"Never", "Never"},
		IPIP:            {"Always", "Never"},
		IPIPCrossSubnet: {"CrossSubnet", "Never"},
		VXLAN:           {"Never", "Always"},
		CrossSubnet:     {"Never", "CrossSubnet"},
	}
}

const (
	maxNodes   = 100
	maxSubnets = 9
	maxMembers = 7
)

// Options say what a lab looks like. They are kept with it, so that `up` can tell whether the lab that is up is the one asked for.
type Options struct {
	Nodes      int          `json:"nodes"`
	Subnets    int          `json:"subnets"` // nodes take turns on them
	Mode       Mode         `json:"mode"`
	Etcd       string       `json:"etcd,omitempty"`      // URL of an etcd that the machine reaches; "": the lab runs one
	TLS        bool         `json:"tls,omitempty"`       // the lab's etcd wants TLS, with certificates of its clients
	Members    int          `json:"members,omitempty"`   // of the lab's own etcd; 0: one
	EtcdQuota  int64        `json:"etcdQuota,omitempty"` // bytes that the lab's own etcd may hold; 0: etcd's default
	BlockSize  int          `json:"blockSize"`           // prefix length of an address block
	Pool       netip.Prefix `json:"pool"`
	DualStack  bool         `json:"dualStack,omitempty"` // IPv6 beside IPv4, from the fabric to the pods
	Mode6      Mode         `json:"mode6,omitempty"`     // as Mode for IPv6, with DualStack; "": as Mode, and VXLAN for IP-in-IP
	BlockSize6 int          `json:"blockSize6"`          // as BlockSize, with DualStack
	Pool6      netip.Prefix `json:"pool6"`               // as Pool, with DualStack
	BGP        bool         `json:"bgp,omitempty"`       // nodes speak BGP, and with direct pools the router between subnets does too
	WireGuard  bool         `json:"wireGuard,omitempty"` // what pods of different nodes send each other is encrypted, by every family
	NoAgents   bool         `json:"noAgents,omitempty"`  // only nodes and fabric: no agent, no pods
	AgentEnv   []string     `json:"agentEnv,omitempty"`  // NAME=value for every agent, over the lab's own settings
}

// Defaults are three nodes on one subnet with VXLAN between them.
func Defaults() Options {
	return Options{
		Nodes: 3, Subnets: 1, Mode: VXLAN,
		BlockSize: 26, Pool: netip.MustParsePrefix("192.168.0.0/16"),
		BlockSize6: 122, Pool6: netip.MustParsePrefix("fd00:192:168::/48"),
	}
}

// Validate names every option that cannot work, and what would.
func (o Options) Validate() error {
	errs := []error{
		o.validateShape(), o.validateEtcd(),
		poolRules{v6: false, flag: "pool", example: "192.168.0.0/16", underlay: underlayNet, least: 20, most: 32}.check(o.Pool, o.BlockSize),
	}
	if o.DualStack {
		rules := poolRules{v6: true, flag: "pool6", example: "fd00:192:168::/48", underlay: underlayNet6, least: 116, most: 128}
		errs = append(errs, rules.check(o.Pool6, o.BlockSize6))
	}
	return errors.Join(errs...)
}

func (o Options) validateShape() error {
	var errs []error
	if o.Nodes < 1 || o.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("nodes %d: want 1 to %d", o.Nodes, maxNodes))
	}
	if o.Subnets < 1 || o.Subnets > maxSubnets {
		errs = append(errs, fmt.Errorf("subnets %d: want 1 to %d", o.Subnets, maxSubnets))
	}
	if o.Subnets > o.Nodes {
		errs = append(errs, fmt.Errorf("subnets %d: there are only %d nodes to put on them", o.Subnets, o.Nodes))
	}
	if _, known := modes()[o.Mode]; !known {
		errs = append(errs, fmt.Errorf("mode %q: want %s, %s, %s, %s or %s", o.Mode, Direct, IPIP, IPIPCrossSubnet, VXLAN, CrossSubnet))
	}
	switch o.Mode6 {
	case "", Direct, VXLAN, CrossSubnet:
	default:
		errs = append(errs, fmt.Errorf("mode6 %q: want %s, %s or %s; there is no IP-in-IP for IPv6", o.Mode6, Direct, VXLAN, CrossSubnet))
	}
	return errors.Join(errs...)
}

// poolRules say what the pool of a family may be.
type poolRules struct {
	v6            bool
	flag, example string
	underlay      string // where the nodes live
	least, most   int    // prefix length of a block
}

func (r poolRules) check(pool netip.Prefix, blockSize int) error {
	if !pool.IsValid() || pool.Addr().Is6() != r.v6 {
		return fmt.Errorf("%s %q: want an %s CIDR, for example %s", r.flag, pool, familyName(r.v6), r.example)
	}
	if pool != pool.Masked() {
		return fmt.Errorf("%s %s has host bits set: did you mean %s?", r.flag, pool, pool.Masked())
	}
	if underlay := netip.MustParsePrefix(r.underlay); pool.Overlaps(underlay) {
		return fmt.Errorf("%s %s overlaps %s, where the lab's nodes live: choose another", r.flag, pool, underlay)
	}
	if blockSize < r.least || blockSize > r.most {
		return fmt.Errorf("block size %d: want a prefix length of %d to %d for %s", blockSize, r.least, r.most, familyName(r.v6))
	}
	if blockSize < pool.Bits() {
		return fmt.Errorf("block size /%d is larger than the %s %s: choose a length of at least %d", blockSize, r.flag, pool, pool.Bits())
	}
	return nil
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

func (o Options) validateEtcd() error {
	if o.Members < 0 || o.Members > maxMembers {
		return fmt.Errorf("members %d: want 1 to %d", o.Members, maxMembers)
	}
	if o.Etcd == "" {
		return nil
	}
	if o.Members > 1 {
		return fmt.Errorf("etcd %q: --members is for the lab's own etcd: leave out one of the two", o.Etcd)
	}
	if o.TLS {
		return fmt.Errorf("etcd %q: --tls is for the lab's own etcd: leave out one of the two", o.Etcd)
	}
	u, err := url.Parse(o.Etcd)
	if err != nil {
		return fmt.Errorf("etcd %q: %w", o.Etcd, err)
	}
	if u.Scheme != "http" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("etcd %q: want http://host:port", o.Etcd)
	}
	return nil
}

// mode is how pods reach each other by a family.
func (o Options) mode(v6 bool) Mode {
	switch {
	case !v6:
		return o.Mode
	case o.Mode6 != "":
		return o.Mode6
	case o.Mode == IPIP:
		return VXLAN
	case o.Mode == IPIPCrossSubnet:
		return CrossSubnet
	}
	return o.Mode
}

// equal reports whether a lab made with o is one made with other.
func (o Options) equal(other Options) bool {
	return fmt.Sprintf("%+v", o) == fmt.Sprintf("%+v", other)
}
