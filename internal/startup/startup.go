// Package startup prepares a node and the cluster before the agent's loop begins: the node's name and addresses, and the
// objects that every cluster must hold.
//
// Everything here can be done twice, by several nodes at once, and after having been interrupted anywhere.
package startup

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// CalicoVersion is written where no version is known yet, so that calicoctl of that version agrees to work.
const CalicoVersion = "v3.32.1"

// Deps is what startup works with.
type Deps struct {
	Store   *store.Client
	Host    kernel.Host
	IPv6    bool   // the kernel has IPv6
	Machine string // the id of this machine
	Now     func() time.Time
	UUID    func() string // random, with dashes
	Log     *slog.Logger

	Default func(ctx context.Context, v6 bool) ([]string, error) // the devices of the default route; nil: there is none
	Kube    Kubernetes                                           // nil: none is known
	// Resolve is net.Resolver's LookupNetIP; nil: the system's.
	Resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Run writes what the cluster and the node need, in the order in which other components rely on it. Any error is final for this
// attempt; it names the object and what to do. Objects that cannot be read stop nothing, but for our own Node: they are logged.
// What is wrong with the node's addresses and stops nothing either comes back as texts, as from Readdress.
func Run(ctx context.Context, node string, cfg config.Node, d Deps) (problems []string, err error) {
	s := &starter{Deps: d, cfg: cfg, node: node}
	err = s.run(ctx)
	return s.problems, err
}

func (s *starter) run(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
		must bool // also where what etcd holds cannot be read
	}{
		{"hold the node's name", s.holdName, true},
		{"ask Kubernetes", s.askKubernetes, false},
		{"write the cluster's own objects", s.cluster, false},
		{"write the address-management settings", s.ipamConfig, false},
		{"register the node", s.register, true},
		{"write the default settings", s.felix, false},
		{"write the default BGP settings", s.bgp, false},
		{"write the default IPv4 pool", func(ctx context.Context) error { return s.pool(ctx, ipv4) }, false},
		{"write the default IPv6 pool", func(ctx context.Context) error { return s.pool(ctx, ipv6) }, false},
	} {
		err := step.do(ctx)
		var unreadable *store.UnreadableError
		if errors.As(err, &unreadable) && !step.must {
			s.Log.Warn("what etcd holds there cannot be read, and it stays as it is", "step", step.name, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

type starter struct {
	Deps
	cfg      config.Node
	node     string
	told     told
	problems []string // what is wrong and stops nothing
}

// warn notes a problem.
func (s *starter) warn(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// family is IPv4 or IPv6.
type family bool

const (
	ipv4 family = false
	ipv6 family = true
)

// String is the family's name as in IPv4.
func (f family) String() string {
	if f == ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

// of reports whether an address is of the family.
func (f family) of(a netip.Addr) bool { return a.IsValid() && a.Is6() == bool(f) }

// ensure creates an object that does not exist, or lets change edit the one that does.
func ensure[T api.Value, P interface {
	*T
	api.Object
}](ctx context.Context, s *starter, name string, change func(v P, exists bool) bool) error {
	key := P(new(T)).KindOf().Key("", name)
	_, err := store.Mutate(ctx, s.Store, key, func(v *T, exists bool) (bool, error) {
		p := P(v)
		if !exists {
			p.Meta().Name = name
			api.Created(p, s.UUID(), s.Now())
		}
		return change(p, exists) || !exists, nil
	})
	return err
}

func (s *starter) cluster(ctx context.Context) error {
	err := ensure(ctx, s, "default", func(c *api.ClusterInformation, _ bool) bool {
		before := c.Spec
		if c.Spec.ClusterGUID == "" {
			c.Spec.ClusterGUID = strings.ReplaceAll(s.UUID(), "-", "")
		}
		if c.Spec.CalicoVersion == "" {
			c.Spec.CalicoVersion = CalicoVersion
		}
		if c.Spec.DatastoreReady == nil {
			ready := true
			c.Spec.DatastoreReady = &ready
		}
		c.Spec.ClusterType = merge(c.Spec.ClusterType, s.cfg.ClusterType+","+strings.Join(s.told.words, ","))
		return c.Spec != before
	})
	if err != nil {
		return err
	}
	for _, t := range api.StaticTiers() {
		err := ensure(ctx, s, t.Name, func(v *api.Tier, exists bool) bool {
			if !exists {
				v.Spec = api.TierSpec{Order: &t.Order, DefaultAction: t.Action}
			}
			return false
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// merge adds the words of one comma-separated set to another, in order.
func merge(have, more string) string {
	var words []string
	for _, w := range append(strings.Split(have, ","), strings.Split(more, ",")...) {
		if w != "" && !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	return strings.Join(words, ",")
}

func (s *starter) ipamConfig(ctx context.Context) error {
	_, err := store.Mutate(ctx, s.Store, api.IPAMConfigKey, func(c *api.IPAMConfig, exists bool) (bool, error) {
		if !exists {
			*c = api.DefaultIPAMConfig()
		}
		return !exists, nil
	})
	return err
}

func (s *starter) felix(ctx context.Context) error {
	err := ensure(ctx, s, "default", func(f *api.FelixConfiguration, _ bool) bool {
		before := f.Spec
		if f.Spec.ReportingInterval == nil {
			f.Spec.ReportingInterval = new(api.Duration) // no reports
		}
		if f.Spec.LogSeverityScreen == "" {
			f.Spec.LogSeverityScreen = "Info"
		}
		f.Default()
		return f.Spec != before
	})
	if err != nil {
		return err
	}
	return ensure(ctx, s, "node."+s.node, func(f *api.FelixConfiguration, _ bool) bool {
		before := f.Spec
		if f.Spec.DefaultEndpointToHostAction == "" {
			f.Spec.DefaultEndpointToHostAction = "Return"
		}
		f.Default()
		return f.Spec != before
	})
}

// bgp makes the cluster's BGP settings, which say nothing at first: readers know the defaults.
func (s *starter) bgp(ctx context.Context) error {
	return ensure(ctx, s, "default", func(*api.BGPConfiguration, bool) bool { return false })
}

// pool writes the default pool of a family if there is none of that family at all, not even a disabled one. That of IPv6 is made
// where its range is given or this node has an IPv6 address: with a pool of IPv6 a node becomes an IPv6 router, and a router takes
// no default route from router advertisements.
func (s *starter) pool(ctx context.Context, f family) error {
	c, name := s.cfg.Pool, "default-ipv4-ippool"
	if f == ipv6 {
		c, name = s.cfg.Pool6, "default-ipv6-ippool"
	}
	if !c.CIDR.IsValid() {
		c.CIDR = s.told.ranges[f]
	}
	if s.cfg.NoDefault || c.None || f == ipv6 && (!s.IPv6 || !c.CIDR.IsValid() && s.cfg.IP6.Want == "none") {
		return nil
	}
	pools, _, err := store.List[api.IPPool](ctx, s.Store, (*api.IPPool)(nil).KindOf().Prefix())
	if err != nil {
		return err
	}
	for _, p := range pools {
		if f.of(p.Value.Spec.CIDR.Addr()) {
			return nil
		}
	}
	p := &api.IPPool{Spec: api.IPPoolSpec{
		CIDR: c.CIDR, VXLANMode: c.VXLAN, IPIPMode: c.IPIP, NATOutgoing: c.NATOutgoing, DisableBGPExport: c.DisableBGPExport,
		BlockSize: c.BlockSize, NodeSelector: c.NodeSelector,
	}}
	if !p.Spec.CIDR.IsValid() {
		p.Spec.CIDR = s.freeRange(f)
	}
	p.Default()
	if err := p.Check(); err != nil {
		return fmt.Errorf("IPPool(%s): %w; correct CALICO_%sPOOL_CIDR or CALICO_%[3]sPOOL_BLOCK_SIZE", name, err, strings.ToUpper(f.String()))
	}
	return ensure(ctx, s, name, func(v *api.IPPool, exists bool) bool {
		if !exists {
			v.Spec = p.Spec
			s.Log.Info("made the default pool", "pool", v.Metadata.Name, "cidr", p.Spec.CIDR, "vxlan_mode", p.Spec.VXLANMode, "ipip_mode", p.Spec.IPIPMode, "nat_outgoing", p.Spec.NATOutgoing)
		}
		return false
	})
}

// freeRange is a range that overlaps none of the host's own subnets: of IPv4 the first of the usual ones, of IPv6 a unique local one
// with a random global ID (RFC 4193, section 3.2.2).
func (s *starter) freeRange(f family) netip.Prefix {
	if f == ipv6 {
		id := sha1.Sum([]byte(s.UUID()))
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, id[0], id[1], id[2], id[3], id[4]}), 48)
	}
	candidates := []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}
	for i := byte(16); i < 32; i++ {
		candidates = append(candidates, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, i, 0, 0}), 16))
	}
	for _, c := range candidates {
		if !slices.ContainsFunc(s.Host.Addrs, func(a kernel.HostAddr) bool { return c.Overlaps(a.Addr) }) {
			return c
		}
	}
	return candidates[0]
}
