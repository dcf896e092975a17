// Package config holds the agent's settings, each with the sources that may set it.
//
// A setting of a node comes from the environment; one of the dataplane from, in this order, the environment (FELIX_…), the
// node's FelixConfiguration, the default FelixConfiguration, and our default. A value that cannot be read is a problem with
// the name of its source, and the next source counts.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Env looks up an environment variable; "" and not set are the same.
type Env func(name string) string

// Node is what the environment says about this node and about what to write at start.
type Node struct {
	NodeName      string // "": from the nodename file, else the host's name
	NodeNameFile  string
	IP, IP6       Address
	K8sNodeRef    string
	ClusterType   string
	NoDefault     bool // no default pools
	Pool, Pool6   Pool
	MTUFile       string
	MachineIDFile string // "": the usual places
}

// Address says where the node's address of a family comes from.
type Address struct {
	Want   string // "" (for IPv6 the same as "none"), "autodetect", "none", an address or a CIDR
	Method string // of autodetection
}

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

// FromEnv reads the node's settings. The error names the variable and what it may hold.
func FromEnv(env Env) (Node, error) {
	n := Node{
		NodeName:      env("NODENAME"),
		NodeNameFile:  or(env("CALICO_NODENAME_FILE"), "/var/lib/calico/nodename"),
		MTUFile:       "/var/lib/calico/mtu",
		MachineIDFile: env("MUSLIN_MACHINE_ID_FILE"),
		IP:            Address{env("IP"), or(env("IP_AUTODETECTION_METHOD"), "first-found")},
		IP6:           Address{or(env("IP6"), "none"), or(env("IP6_AUTODETECTION_METHOD"), "first-found")},
		K8sNodeRef:    env("CALICO_K8S_NODE_REF"),
		ClusterType:   env("CLUSTER_TYPE"),
		NoDefault:     env("NO_DEFAULT_POOLS") == "true",
	}
	err := errors.Join(
		n.readPool(env, &n.Pool, poolFamily{prefix: "CALICO_IPV4POOL_", example: "192.168.0.0/16", nat: true, size: 26, least: 20, most: 32}),
		n.readPool(env, &n.Pool6, poolFamily{prefix: "CALICO_IPV6POOL_", example: "fd00:10:244::/48", v6: true, size: 122, least: 116, most: 128}),
	)
	// Without IPv6 in the dataplane nobody would route to the pods of such a pool.
	n.Pool6.None = n.Pool6.None || isFalse(env("FELIX_IPV6SUPPORT"))
	return n, err
}

func (n Node) readPool(env Env, into *Pool, f poolFamily) (err error) {
	if *into, err = f.read(env); err != nil {
		return err
	}
	if n.NoDefault && into.CIDR.IsValid() {
		return fmt.Errorf("NO_DEFAULT_POOLS=true and %sCIDR=%v contradict each other: unset one", f.prefix, into.CIDR)
	}
	return nil
}

// poolFamily is how the default pool of a family is spelled in the environment, and what it may be.
type poolFamily struct {
	prefix            string // of the variables
	example           string // of a CIDR
	v6                bool
	nat               bool // NATOutgoing where nothing is said
	size, least, most int  // of blocks, as prefix lengths
}

func (f poolFamily) read(env Env) (Pool, error) {
	p := Pool{
		BlockSize:        f.size,
		NATOutgoing:      f.nat,
		NodeSelector:     or(env(f.prefix+"NODE_SELECTOR"), "all()"),
		DisableBGPExport: strings.EqualFold(env(f.prefix+"DISABLE_BGP_EXPORT"), "true"),
	}
	if nat := env(f.prefix + "NAT_OUTGOING"); nat != "" {
		p.NATOutgoing = !isFalse(nat)
	}
	return p, errors.Join(f.encapsulation(env, &p), f.ranges(env, &p))
}

func (f poolFamily) encapsulation(env Env, p *Pool) (err error) {
	p.IPIP = api.Never
	if !f.v6 { // there is no IP-in-IP for IPv6, nor a variable
		if p.IPIP, err = mode(env, f.prefix+"IPIP"); err != nil {
			return err
		}
	}
	if p.VXLAN, err = mode(env, f.prefix+"VXLAN"); err != nil {
		return err
	}
	if p.IPIP != api.Never && p.VXLAN != api.Never {
		return fmt.Errorf("%[1]sIPIP=%[2]s and %[1]sVXLAN=%[3]s exclude each other: set one to Never", f.prefix, p.IPIP, p.VXLAN)
	}
	return nil
}

func (f poolFamily) ranges(env Env, p *Pool) (err error) {
	switch cidr := env(f.prefix + "CIDR"); cidr {
	case "":
	case "none":
		p.None = true
	default:
		if p.CIDR, err = netip.ParsePrefix(cidr); err != nil || p.CIDR.Addr().Is6() != f.v6 {
			return fmt.Errorf("%sCIDR=%s: want a range such as %s, or none", f.prefix, cidr, f.example)
		}
	}
	if s := env(f.prefix + "BLOCK_SIZE"); s != "" {
		p.BlockSize, err = strconv.Atoi(s)
		if err != nil || p.BlockSize < f.least || p.BlockSize > f.most {
			return fmt.Errorf("%sBLOCK_SIZE=%s: want a prefix length between %d and %d", f.prefix, s, f.least, f.most)
		}
	}
	return nil
}

func mode(env Env, name string) (api.EncapMode, error) {
	switch v := strings.ToLower(env(name)); v {
	case "", "off", "never":
		return api.Never, nil
	case "always":
		return api.Always, nil
	case "cross-subnet", "crosssubnet":
		return api.CrossSubnet, nil
	default:
		return "", fmt.Errorf("%s=%s: want Never, Always or CrossSubnet", name, env(name))
	}
}

func isFalse(s string) bool {
	switch strings.ToLower(s) {
	case "false", "0", "no", "n", "f":
		return true
	}
	return false
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
