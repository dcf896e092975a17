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
	"regexp"
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

// Dataplane is the effective dataplane settings.
type Dataplane struct {
	IPv6Support          bool
	LogLevel             string
	VXLANEnabled         *bool // nil: when a pool uses VXLAN
	VXLANPort, VXLANVNI  int
	VXLANMTU, VXLANMTUV6 int // 0: from the host's devices
	MTUIface             *regexp.Regexp
	IptablesBackend      string // auto, nft or legacy
	NATExclusions        string // IPPoolsOnly or IPPoolsAndHostIPs
}

// defaultMTUIface matches the usual names of physical devices.
var defaultMTUIface = regexp.MustCompile(`^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)`)

// Effective combines the sources. Either configuration may be nil. What could not be read comes back as texts.
func Effective(env Env, global, node *api.FelixConfiguration) (Dataplane, []string) {
	r := &resolver{env: env}
	for _, f := range []struct {
		name string
		conf *api.FelixConfiguration
	}{{"FelixConfiguration(node)", node}, {"FelixConfiguration(default)", global}} {
		if f.conf != nil {
			r.layers = append(r.layers, layer{f.name, fromSpec(f.conf.Spec)})
		}
	}
	d := Dataplane{
		IPv6Support:     resolve(r, "IPV6SUPPORT", true, parseBool),
		LogLevel:        strings.ToUpper(resolve(r, "LOGSEVERITYSCREEN", "INFO", parseLevel)),
		VXLANEnabled:    resolve(r, "VXLANENABLED", nil, parseOptionalBool),
		VXLANPort:       resolve(r, "VXLANPORT", 4789, within(1, 65535)),
		VXLANVNI:        resolve(r, "VXLANVNI", 4096, within(0, 1<<24-1)),
		VXLANMTU:        resolve(r, "VXLANMTU", 0, parseMTU),
		VXLANMTUV6:      resolve(r, "VXLANMTUV6", 0, parseMTU),
		MTUIface:        resolve(r, "MTUIFACEPATTERN", defaultMTUIface, regexp.Compile),
		IptablesBackend: resolve(r, "IPTABLESBACKEND", "auto", oneOf("auto", "nft", "legacy")),
		NATExclusions:   resolve(r, "NATOUTGOINGEXCLUSIONS", "ippoolsonly", oneOf("ippoolsonly", "ippoolsandhostips")),
	}
	return d, r.problems
}

// layer is one source of settings: texts by upper-case name.
type layer struct {
	name   string
	values map[string]string
}

type resolver struct {
	env      Env
	layers   []layer // after the environment, strongest first
	problems []string
}

// resolve returns the setting from the strongest source that has a readable value.
func resolve[T any](r *resolver, name string, fallback T, parse func(string) (T, error)) T {
	try := func(source, text string) (T, bool) {
		v, err := parse(text)
		if err != nil {
			r.problems = append(r.problems, fmt.Sprintf("%s: %q: %v; the next source counts", source, text, err))
		}
		return v, err == nil
	}
	if s := r.env("FELIX_" + name); s != "" {
		if v, ok := try("environment FELIX_"+name, s); ok {
			return v
		}
	}
	for _, l := range r.layers {
		if s := l.values[name]; s != "" {
			if v, ok := try(l.name+" "+strings.ToLower(name), s); ok {
				return v
			}
		}
	}
	return fallback
}

func fromSpec(s api.FelixConfigurationSpec) map[string]string {
	return map[string]string{
		"IPV6SUPPORT":           text(s.IPv6Support),
		"LOGSEVERITYSCREEN":     s.LogSeverityScreen,
		"VXLANENABLED":          text(s.VXLANEnabled),
		"VXLANPORT":             text(s.VXLANPort),
		"VXLANVNI":              text(s.VXLANVNI),
		"VXLANMTU":              text(s.VXLANMTU),
		"VXLANMTUV6":            text(s.VXLANMTUV6),
		"MTUIFACEPATTERN":       s.MTUIfacePattern,
		"IPTABLESBACKEND":       s.IptablesBackend,
		"NATOUTGOINGEXCLUSIONS": s.NATOutgoingExclusions,
	}
}

func text[T any](p *T) string {
	if p == nil {
		return ""
	}
	return fmt.Sprint(*p)
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "y", "t":
		return true, nil
	}
	if isFalse(s) {
		return false, nil
	}
	return false, fmt.Errorf("want true or false")
}

func parseOptionalBool(s string) (*bool, error) {
	v, err := parseBool(s)
	return &v, err
}

func parseLevel(s string) (string, error) {
	switch l := strings.ToUpper(s); l {
	case "TRACE", "DEBUG", "INFO", "WARNING", "WARN", "ERROR", "FATAL", "NONE":
		return l, nil
	}
	return "", fmt.Errorf("want Debug, Info, Warning, Error or Fatal")
}

func within(lo, hi int) func(string) (int, error) {
	return func(s string) (int, error) {
		v, err := strconv.Atoi(s)
		if err != nil || v < lo || v > hi {
			return 0, fmt.Errorf("want a number between %d and %d", lo, hi)
		}
		return v, nil
	}
}

// parseMTU takes what the kernel takes for IPv4 (RFC 791: every link carries 68 octets), and 0 for "choose".
func parseMTU(s string) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil || v != 0 && (v < 68 || v > 65535) {
		return 0, fmt.Errorf("want 0 or a number between 68 and 65535")
	}
	return v, nil
}

func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, w := range words {
			if strings.EqualFold(s, w) {
				return w, nil
			}
		}
		return "", fmt.Errorf("want one of %s", strings.Join(words, ", "))
	}
}
