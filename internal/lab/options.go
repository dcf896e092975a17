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
	maxNodes     = 100
	maxSubnets   = 9
	minBlockSize = 20
	maxBlockSize = 32
)

// Options say what a lab looks like. They are kept with it, so that `up` can tell whether the lab that is up is the one asked for.
type Options struct {
	Nodes     int          `json:"nodes"`
	Subnets   int          `json:"subnets"` // nodes take turns on them
	Mode      Mode         `json:"mode"`
	Etcd      string       `json:"etcd,omitempty"` // URL of an etcd that the machine reaches; "": the lab runs one
	TLS       bool         `json:"tls,omitempty"`  // the lab's etcd wants TLS, with certificates of its clients
	BlockSize int          `json:"blockSize"`      // prefix length of an address block
	Pool      netip.Prefix `json:"pool"`
	NoAgents  bool         `json:"noAgents,omitempty"` // only nodes and fabric: no agent, no pods
	AgentEnv  []string     `json:"agentEnv,omitempty"` // NAME=value for every agent, over the lab's own settings
}

// Defaults are three nodes on one subnet with VXLAN between them.
func Defaults() Options {
	return Options{Nodes: 3, Subnets: 1, Mode: VXLAN, BlockSize: 26, Pool: netip.MustParsePrefix("192.168.0.0/16")}
}

// Validate names every option that cannot work, and what would.
func (o Options) Validate() error {
	return errors.Join(o.validateShape(), o.validatePool(), o.validateEtcd())
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

func (o Options) validatePool() error {
	if !o.Pool.IsValid() || !o.Pool.Addr().Is4() {
		return fmt.Errorf("pool %q: want an IPv4 CIDR, for example 192.168.0.0/16", o.Pool)
	}
	if o.Pool != o.Pool.Masked() {
		return fmt.Errorf("pool %s has host bits set: did you mean %s?", o.Pool, o.Pool.Masked())
	}
	if underlay := netip.MustParsePrefix(underlayNet); o.Pool.Overlaps(underlay) {
		return fmt.Errorf("pool %s overlaps %s, where the lab's nodes live: choose another", o.Pool, underlay)
	}
	if o.BlockSize < minBlockSize || o.BlockSize > maxBlockSize {
		return fmt.Errorf("block size %d: want a prefix length of %d to %d", o.BlockSize, minBlockSize, maxBlockSize)
	}
	if o.BlockSize < o.Pool.Bits() {
		return fmt.Errorf("block size /%d is larger than the pool %s: choose a length of at least %d", o.BlockSize, o.Pool, o.Pool.Bits())
	}
	return nil
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
