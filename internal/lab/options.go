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
	Direct      Mode = "direct"            // plain routes, only within a subnet
	VXLAN       Mode = "vxlan"             // a tunnel between all nodes
	CrossSubnet Mode = "vxlan-crosssubnet" // a tunnel between subnets, plain routes within one
)

const (
	maxNodes   = 100
	maxSubnets = 9
)

// Options say what a lab looks like. They are kept with it, so that `up` can tell whether the lab that is up is the one asked for.
type Options struct {
	Nodes      int          `json:"nodes"`
	Subnets    int          `json:"subnets"` // nodes take turns on them
	Mode       Mode         `json:"mode"`
	Etcd       string       `json:"etcd,omitempty"` // URL of an etcd that the machine reaches; "": the lab runs one
	TLS        bool         `json:"tls,omitempty"`  // the lab's etcd wants TLS, with certificates of its clients
	BlockSize  int          `json:"blockSize"`      // prefix length of an address block
	Pool       netip.Prefix `json:"pool"`
	DualStack  bool         `json:"dualStack,omitempty"` // IPv6 beside IPv4, from the fabric to the pods
	BlockSize6 int          `json:"blockSize6"`          // as BlockSize, with DualStack
	Pool6      netip.Prefix `json:"pool6"`               // as Pool, with DualStack
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
	if o.vxlan() == "" {
		errs = append(errs, fmt.Errorf("mode %q: want %s, %s or %s", o.Mode, Direct, VXLAN, CrossSubnet))
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
	if o.Etcd == "" {
		return nil
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

// vxlan is the mode as an IP pool spells it; "" for an unknown one.
func (o Options) vxlan() string {
	switch o.Mode {
	case Direct:
		return "Never"
	case VXLAN:
		return "Always"
	case CrossSubnet:
		return "CrossSubnet"
	}
	return ""
}

// equal reports whether a lab made with o is one made with other.
func (o Options) equal(other Options) bool {
	return fmt.Sprintf("%+v", o) == fmt.Sprintf("%+v", other)
}
