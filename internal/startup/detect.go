package startup

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Autodetection: from all addresses of the host to the one by which other nodes reach it.
//
// Where several devices have a fitting address, Calico takes the one whose device was made last, which changes with the order in which
// drivers load. Here one is taken only for a reason, in this order: the method names its device in full; the Node has it already;
// the default route goes through its device. Without a reason it is an error, which lists them.

// notForNodes matches devices whose addresses other nodes cannot reach.
var notForNodes = regexp.MustCompile(`^(docker|cbr|dummy|podman|virbr|lxcbr|veth|lo|br-|cali|tunl|flannel|kube-ipvs|cni|vxlan\.calico|vxlan-v6\.calico|wireguard\.cali|wg-v6\.cali|nodelocaldns)`)

// ourDevice matches the devices that we and the plugins make.
var ourDevice = regexp.MustCompile(`^(cali|tunl|vxlan\.calico|vxlan-v6\.calico|wireguard\.cali|wg-v6\.cali)`)

// detectTimeout bounds what a method asks of others: a DNS server, the Kubernetes API server.
const detectTimeout = 5 * time.Second

// detector finds an address by one method. An address that is stored stays where the method finds it too.
type detector func(ctx context.Context, stored netip.Prefix) (netip.Prefix, error)

// detector reads the autodetection method. The error says what is wrong with the variable.
func (s *starter) detector(v variables) (detector, error) {
	name, arg, _ := strings.Cut(v.cfg.Method, "=")
	switch name {
	case "can-reach":
		if arg == "" {
			return nil, fmt.Errorf("%s: names no address to reach", v.method())
		}
		return func(ctx context.Context, _ netip.Prefix) (netip.Prefix, error) { return s.canReach(ctx, v, arg) }, nil
	case "kubernetes-internal-ip":
		return func(ctx context.Context, _ netip.Prefix) (netip.Prefix, error) { return s.internalIP(ctx, v) }, nil
	}
	r, err := v.rule(name, arg)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, stored netip.Prefix) (netip.Prefix, error) {
		return s.choose(ctx, v, r, stored)
	}, nil
}

// rule is a method that goes by the host's devices alone.
type rule struct {
	fits  func(kernel.HostAddr) bool
	named []string // expressions that a device's name may match in full
}

func (v variables) rule(name, arg string) (r rule, err error) {
	usual := func(a kernel.HostAddr) bool { return !notForNodes.MatchString(a.Dev) }
	switch name {
	case "first-found", "":
		return rule{fits: usual}, nil
	case "interface":
		re, err := v.regexpList(arg)
		return rule{func(a kernel.HostAddr) bool { return re.MatchString(a.Dev) }, strings.Split(arg, ",")}, err
	case "skip-interface":
		re, err := v.regexpList(arg)
		return rule{fits: func(a kernel.HostAddr) bool { return usual(a) && !re.MatchString(a.Dev) }}, err
	case "cidr":
		ranges, err := v.prefixList(arg)
		return rule{fits: func(a kernel.HostAddr) bool {
			return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a.Addr.Addr()) })
		}}, err
	}
	return r, fmt.Errorf("%s: Invalid IP autodetection method: %s; want first-found, can-reach=<address or name>, interface=<regexp>,…, "+
		"skip-interface=<regexp>,…, cidr=<range>,… or kubernetes-internal-ip", v.method(), v.cfg.Method)
}

func (v variables) regexpList(list string) (*regexp.Regexp, error) {
	if list == "" {
		return nil, fmt.Errorf("%s: names no interface", v.method())
	}
	re, err := regexp.Compile(strings.Join(strings.Split(list, ","), "|"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.method(), err)
	}
	return re, nil
}

func (v variables) prefixList(list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range strings.Split(list, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.method(), err)
		}
		out = append(out, p)
	}
	return out, nil
}

// usable are the addresses that could be a node's, of devices through which packets can pass: those of the device that was made last
// first, and of one device in the kernel's order.
func usable(h kernel.Host) []kernel.HostAddr {
	var out []kernel.HostAddr
	for _, a := range h.Addrs {
		if a.Addr.Addr().IsGlobalUnicast() && !a.Temporary && h.Links[a.Dev].Live {
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, func(a, b kernel.HostAddr) int { return cmp.Compare(h.Links[b.Dev].Index, h.Links[a.Dev].Index) })
	return out
}

// choose takes the one address that the rule lets through, or that there is a reason to prefer.
func (s *starter) choose(ctx context.Context, v variables, r rule, stored netip.Prefix) (netip.Prefix, error) {
	all := slices.DeleteFunc(usable(s.Host), func(a kernel.HostAddr) bool { return !v.of(a.Addr.Addr()) })
	fit := preferred(all, r.fits)
	if len(fit) == 0 {
		return netip.Prefix{}, fmt.Errorf("detect the %v address by %s: no device that is up has a fitting one (seen: %s); set %s or %[4]s_AUTODETECTION_METHOD",
			v.family, v.cfg.Method, cmp.Or(listed(s.withDown(v)), "none"), v.name)
	}
	if full := preferred(fit, r.isNamed); len(full) > 0 {
		fit = full
	}
	if kept := preferred(fit, func(a kernel.HostAddr) bool { return a.Addr.Addr() == stored.Addr() }); len(kept) > 0 {
		return kept[0].Addr, nil
	}
	if one(fit) {
		return fit[0].Addr, nil
	}
	devices, err := s.defaultDevices(ctx, v.family)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("detect the %v address by %s: %w", v.family, v.cfg.Method, err)
	}
	if by := preferred(fit, func(a kernel.HostAddr) bool { return slices.Contains(devices, a.Dev) }); one(by) {
		return by[0].Addr, nil
	}
	return netip.Prefix{}, fmt.Errorf("detect the %v address by %s: there are several, and no single one of these devices has the default route: %s; "+
		"say which by %s=<address> or %[5]s_AUTODETECTION_METHOD=interface=<name>", v.family, v.cfg.Method, listed(fit), v.name, v.name)
}

// isNamed tells whether the method gives the name of the address's device in full.
func (r rule) isNamed(a kernel.HostAddr) bool {
	return slices.ContainsFunc(r.named, func(e string) bool {
		re, err := regexp.Compile("^(?:" + e + ")$") // in a list with commas within an expression a part need not be one
		return err == nil && re.MatchString(a.Dev)
	})
}

// preferred are the addresses with a quality.
func preferred(addrs []kernel.HostAddr, has func(kernel.HostAddr) bool) []kernel.HostAddr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a kernel.HostAddr) bool { return !has(a) })
}

// one tells whether the addresses are there and all of one device, of which the first is as good as it gets.
func one(addrs []kernel.HostAddr) bool {
	return len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a kernel.HostAddr) bool { return a.Dev != addrs[0].Dev })
}

func listed(addrs []kernel.HostAddr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.Dev+" "+a.Addr.String())
	}
	return strings.Join(out, ", ")
}

// withDown are all addresses of the family on the host, for whoever asks why none was found.
func (s *starter) withDown(v variables) []kernel.HostAddr {
	return preferred(s.Host.Addrs, func(a kernel.HostAddr) bool { return v.of(a.Addr.Addr()) && a.Addr.Addr().IsGlobalUnicast() })
}

func (s *starter) defaultDevices(ctx context.Context, f family) ([]string, error) {
	if s.Default == nil {
		return nil, nil
	}
	return s.Default(ctx, f == ipv6)
}

// canReach finds the address from which the kernel would send to a target. Nothing is sent to it: connecting a UDP socket only asks for
// the route.
func (s *starter) canReach(ctx context.Context, v variables, target string) (netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, detectTimeout)
	defer cancel()
	fail := func(err error) (netip.Prefix, error) {
		return netip.Prefix{}, fmt.Errorf("detect the %v address by %s: %w", v.family, v.cfg.Method, err)
	}
	to, err := s.lookUp(ctx, v.family, target)
	if err != nil {
		return fail(err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(to, 80).String())
	if err != nil {
		return fail(err)
	}
	from := netip.MustParseAddrPort(conn.LocalAddr().String()).Addr().Unmap()
	if err := conn.Close(); err != nil {
		return fail(err)
	}
	held, ok := holds(s.Host, from)
	if !ok || !from.IsGlobalUnicast() {
		return fail(fmt.Errorf("%v would be reached from %v, which is no address for other nodes", to, from))
	}
	return held, nil
}

// lookUp is the target's address of a family, if it is not one already.
func (s *starter) lookUp(ctx context.Context, f family, target string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(target); err == nil {
		if !f.of(a.Unmap()) {
			return a, fmt.Errorf("%v is no %v address", a, f)
		}
		return a.Unmap(), nil
	}
	resolve, network := s.Resolve, "ip4"
	if resolve == nil {
		resolve = net.DefaultResolver.LookupNetIP
	}
	if f == ipv6 {
		network = "ip6"
	}
	got, err := resolve(ctx, network, target)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up %s: %w", target, err)
	}
	if len(got) == 0 {
		return netip.Addr{}, fmt.Errorf("look up %s: it has no %v address", target, f)
	}
	return got[0].Unmap(), nil
}
