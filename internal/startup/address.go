package startup

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// notForNodes matches devices whose addresses other nodes cannot reach.
var notForNodes = regexp.MustCompile(`^(docker|cbr|dummy|podman|virbr|lxcbr|veth|lo|br-|cali|tunl|flannel|kube-ipvs|cni|vxlan\.calico|vxlan-v6\.calico|wireguard\.cali|wg-v6\.cali|nodelocaldns)`)

// register writes the Node with its addresses. An address that was set by hand stays unless IP or IP6 says otherwise.
func (s *starter) register(ctx context.Context) error {
	nodes, rev, err := store.List[api.Node](ctx, s.Store, (*api.Node)(nil).KindOf().Prefix())
	if err != nil && rev == 0 {
		return err
	}
	if err != nil { // others' trouble; our own Node is read again below
		s.Log.Warn("nodes that cannot be read are left out", "error", err)
	}
	addrs := map[family]netip.Prefix{}
	for _, f := range []family{ipv4, ipv6} {
		if addrs[f], err = s.settle(f, nodes); err != nil {
			return err
		}
	}
	return s.ensureNode(ctx, func(n *api.Node, exists bool) bool {
		changed := s.orchRef(n)
		for _, f := range []family{ipv4, ipv6} {
			changed = s.setAddress(n, f, addrs[f]) || changed
		}
		if want := addressList(n, addrs); !slices.Equal(want, n.Spec.Addresses) {
			n.Spec.Addresses = want
			changed = true
		}
		return changed || !exists
	})
}

// settle decides the node's address of a family and refuses one that another node has. The zero prefix means: leave the Node as it is.
func (s *starter) settle(f family, nodes []store.Entry[api.Node]) (netip.Prefix, error) {
	v := s.variables(f)
	if f == ipv6 && v.cfg.Want != "none" && !s.IPv6 {
		s.Log.Warn("this host's kernel has no IPv6, so the node goes on with IPv4", v.name, v.cfg.Want)
		return netip.Prefix{}, nil
	}
	var stored netip.Prefix
	for _, n := range nodes {
		if n.Value.Metadata.Name == s.node {
			stored, _ = n.Value.Address(f == ipv6)
		}
	}
	addr, err := s.address(v, stored)
	if err != nil || !addr.IsValid() {
		return addr, err
	}
	for _, n := range nodes {
		if a, ok := n.Value.Address(f == ipv6); ok && a.Addr() == addr.Addr() && n.Value.Metadata.Name != s.node {
			return addr, fmt.Errorf("node %q is already using the %v address %v: set %s or %[4]s_AUTODETECTION_METHOD on one of the two, or delete that node if it is gone",
				n.Value.Metadata.Name, f, addr.Addr(), v.name)
		}
	}
	return addr, nil
}

// setAddress writes an address into the Node and reports whether it was another one.
func (s *starter) setAddress(n *api.Node, f family, addr netip.Prefix) bool {
	have, _ := n.Address(f == ipv6)
	if !addr.IsValid() || addr == have {
		return false
	}
	if n.Spec.BGP == nil {
		n.Spec.BGP = &api.NodeBGP{}
	}
	if f == ipv6 {
		n.Spec.BGP.IPv6Address = api.Prefix{Prefix: addr}
	} else {
		n.Spec.BGP.IPv4Address = api.Prefix{Prefix: addr}
	}
	s.Log.Info("node address", "node", s.node, "address", addr, "was", have)
	return true
}

// addressList is the list of the node's addresses with our own entries brought up to date, those of families that we leave alone
// included.
func addressList(n *api.Node, settled map[family]netip.Prefix) []api.NodeAddress {
	if !settled[ipv4].IsValid() && !settled[ipv6].IsValid() {
		return n.Spec.Addresses
	}
	var out []api.NodeAddress
	for _, f := range []family{ipv4, ipv6} {
		if a, ok := n.Address(f == ipv6); ok {
			out = append(out, api.NodeAddress{Address: a.String(), Type: nodeIP})
		}
	}
	return append(out, slices.DeleteFunc(slices.Clone(n.Spec.Addresses), func(a api.NodeAddress) bool { return a.Type == nodeIP })...)
}

const nodeIP = "CalicoNodeIP"

func (s *starter) orchRef(n *api.Node) bool {
	if s.cfg.K8sNodeRef == "" {
		return false
	}
	ref := api.OrchRef{NodeName: s.cfg.K8sNodeRef, Orchestrator: "k8s"}
	if slices.Contains(n.Spec.OrchRefs, ref) {
		return false
	}
	n.Spec.OrchRefs = append(slices.DeleteFunc(n.Spec.OrchRefs, func(r api.OrchRef) bool { return r.Orchestrator == "k8s" }), ref)
	return true
}

// variables are the settings of one family's address.
type variables struct {
	family
	name string // of the first variable: IP or IP6
	cfg  config.Address
}

func (s *starter) variables(f family) variables {
	if f == ipv6 {
		return variables{f, "IP6", s.cfg.IP6}
	}
	return variables{f, "IP", s.cfg.IP}
}

// method is the setting of the method as a user writes it.
func (v variables) method() string { return v.name + "_AUTODETECTION_METHOD=" + v.cfg.Method }

// address decides the node's address of a family. The zero prefix means: leave the Node as it is.
func (s *starter) address(v variables, stored netip.Prefix) (netip.Prefix, error) {
	switch v.cfg.Want {
	case "none":
		return netip.Prefix{}, nil
	case "":
		if stored.IsValid() {
			return stored, nil
		}
	case "autodetect":
	default:
		return v.explicit(s.Host)
	}
	found, err := v.detect(s.Host)
	if err != nil && stored.IsValid() {
		s.Log.Warn("address detection failed; the stored address stays", "error", err, "address", stored)
		return stored, nil
	}
	return found, err
}

// explicit reads an address that was given, and completes a missing prefix length from the device that holds it.
func (v variables) explicit(h kernel.Host) (netip.Prefix, error) {
	text := v.cfg.Want
	var p api.Prefix
	if err := p.UnmarshalText([]byte(text)); err != nil || !v.of(p.Addr()) {
		return netip.Prefix{}, fmt.Errorf("%s=%s: want autodetect, none, an %v address or an address with prefix length", v.name, text, v.family)
	}
	if strings.Contains(text, "/") {
		return p.Prefix, nil
	}
	for _, a := range h.Addrs {
		if a.Addr.Addr() == p.Addr() {
			return a.Addr, nil
		}
	}
	return p.Prefix, nil
}

// detect finds the node's address on its devices by an autodetection method.
func (v variables) detect(h kernel.Host) (netip.Prefix, error) {
	keep, err := v.rule()
	if err != nil {
		return netip.Prefix{}, err
	}
	return v.choose(h, keep)
}

// rule reads the autodetection method: which addresses it takes.
func (v variables) rule() (keep func(kernel.HostAddr) bool, err error) {
	name, arg, _ := strings.Cut(v.cfg.Method, "=")
	usual := except(notForNodes)
	switch name {
	case "first-found":
		return usual, nil
	case "interface":
		re, err := v.regexpList(arg)
		return func(a kernel.HostAddr) bool { return re.MatchString(a.Dev) }, err
	case "skip-interface":
		re, err := v.regexpList(arg)
		return func(a kernel.HostAddr) bool { return usual(a) && !re.MatchString(a.Dev) }, err
	case "cidr":
		ranges, err := v.prefixList(arg)
		return func(a kernel.HostAddr) bool {
			return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a.Addr.Addr()) })
		}, err
	}
	return nil, fmt.Errorf("%s: want first-found, interface=<regexp>, skip-interface=<regexp> or cidr=<range>", v.method())
}

// choose takes the first address that may be kept, devices in reverse order of their creation.
func (v variables) choose(h kernel.Host, keep func(kernel.HostAddr) bool) (netip.Prefix, error) {
	addrs := slices.Clone(h.Addrs)
	slices.SortStableFunc(addrs, func(a, b kernel.HostAddr) int {
		return cmp.Compare(h.Links[b.Dev].Index, h.Links[a.Dev].Index)
	})
	var seen []string
	for _, a := range addrs {
		ip := a.Addr.Addr()
		if !v.of(ip) || !ip.IsGlobalUnicast() || a.Temporary {
			continue
		}
		if h.Links[a.Dev].Live && keep(a) {
			return a.Addr, nil
		}
		seen = append(seen, a.Dev+" "+a.Addr.String())
	}
	return netip.Prefix{}, fmt.Errorf("detect the %v address by %s: no device that is up has a fitting one (seen: %s); set %s or %[4]s_AUTODETECTION_METHOD",
		v.family, v.cfg.Method, cmp.Or(strings.Join(seen, ", "), "none"), v.name)
}

func except(re *regexp.Regexp) func(kernel.HostAddr) bool {
	return func(a kernel.HostAddr) bool { return !re.MatchString(a.Dev) }
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
