package startup

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// notForNodes matches devices whose addresses other nodes cannot reach.
var notForNodes = regexp.MustCompile(`^(docker|cbr|dummy|podman|virbr|lxcbr|veth|lo|br-|cali|tunl|flannel|kube-ipvs|cni|vxlan\.calico|vxlan-v6\.calico|wireguard\.cali|wg-v6\.cali|nodelocaldns)`)

// register writes the Node with its address. An address that was set by hand stays unless IP says otherwise.
func (s *starter) register(ctx context.Context) error {
	nodes, rev, err := store.List[api.Node](ctx, s.Store, (*api.Node)(nil).KindOf().Prefix())
	if err != nil && rev == 0 {
		return err
	}
	if err != nil { // others' trouble; our own Node is read again below
		s.Log.Warn("nodes that cannot be read are left out", "error", err)
	}
	var stored netip.Prefix
	for _, n := range nodes {
		if n.Value.Metadata.Name == s.node {
			stored, _ = n.Value.Address(false)
		}
	}
	addr, err := s.address(stored)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if a, ok := n.Value.Address(false); ok && addr.IsValid() && a.Addr() == addr.Addr() && n.Value.Metadata.Name != s.node {
			return fmt.Errorf("node %q is already using the IPv4 address %v: set IP or IP_AUTODETECTION_METHOD on one of the two, or delete that node if it is gone",
				n.Value.Metadata.Name, addr.Addr())
		}
	}
	return s.ensureNode(ctx, func(n *api.Node, exists bool) bool {
		changed := s.orchRef(n)
		if addr.IsValid() && addr != stored {
			if n.Spec.BGP == nil {
				n.Spec.BGP = &api.NodeBGP{}
			}
			n.Spec.BGP.IPv4Address = api.Prefix{Prefix: addr}
			changed = true
			s.Log.Info("node address", "node", s.node, "address", addr, "was", stored)
		}
		if want := s.addressList(n.Spec.Addresses, addr); !slices.Equal(want, n.Spec.Addresses) {
			n.Spec.Addresses = want
			changed = true
		}
		return changed || !exists
	})
}

// addressList is the list of the node's addresses with our own entry brought up to date.
func (s *starter) addressList(have []api.NodeAddress, addr netip.Prefix) []api.NodeAddress {
	if !addr.IsValid() {
		return have
	}
	out := slices.DeleteFunc(slices.Clone(have), func(a api.NodeAddress) bool { return a.Type == "CalicoNodeIP" })
	return append([]api.NodeAddress{{Address: addr.String(), Type: "CalicoNodeIP"}}, out...)
}

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

// address decides the node's IPv4 address by the setting IP. The zero prefix means: leave the Node as it is.
func (s *starter) address(stored netip.Prefix) (netip.Prefix, error) {
	switch s.cfg.IP {
	case "none":
		return netip.Prefix{}, nil
	case "":
		if stored.IsValid() {
			return stored, nil
		}
	case "autodetect":
	default:
		return explicit(s.Host, s.cfg.IP)
	}
	found, err := detect(s.Host, s.cfg.IPMethod)
	if err != nil && stored.IsValid() {
		s.Log.Warn("address detection failed; the stored address stays", "error", err, "address", stored)
		return stored, nil
	}
	return found, err
}

// explicit reads an address that was given, and completes a missing prefix length from the device that holds it.
func explicit(h kernel.Host, text string) (netip.Prefix, error) {
	var p api.Prefix
	if err := p.UnmarshalText([]byte(text)); err != nil || !p.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("IP=%s: want autodetect, none, an IPv4 address or an address with prefix length such as 10.0.0.5/24", text)
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

// detect finds the node's IPv4 address on its devices by an autodetection method.
func detect(h kernel.Host, method string) (netip.Prefix, error) {
	name, arg, _ := strings.Cut(method, "=")
	var keep func(kernel.HostAddr) bool
	switch name {
	case "first-found":
		keep = except(notForNodes)
	case "interface":
		re, err := regexpList(method, arg)
		if err != nil {
			return netip.Prefix{}, err
		}
		keep = func(a kernel.HostAddr) bool { return re.MatchString(a.Dev) }
	case "skip-interface":
		re, err := regexpList(method, arg)
		if err != nil {
			return netip.Prefix{}, err
		}
		usual := except(notForNodes)
		keep = func(a kernel.HostAddr) bool { return usual(a) && !re.MatchString(a.Dev) }
	case "cidr":
		ranges, err := prefixList(method, arg)
		if err != nil {
			return netip.Prefix{}, err
		}
		keep = func(a kernel.HostAddr) bool {
			return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a.Addr.Addr()) })
		}
	default:
		return netip.Prefix{}, fmt.Errorf("IP_AUTODETECTION_METHOD=%s: want first-found, interface=<regexp>, skip-interface=<regexp> or cidr=<range>", method)
	}
	return choose(h, method, keep)
}

// choose takes the first address that may be kept, devices in reverse order of their creation.
func choose(h kernel.Host, method string, keep func(kernel.HostAddr) bool) (netip.Prefix, error) {
	addrs := slices.Clone(h.Addrs)
	slices.SortStableFunc(addrs, func(a, b kernel.HostAddr) int {
		return cmp.Compare(h.Links[b.Dev].Index, h.Links[a.Dev].Index)
	})
	var seen []string
	for _, a := range addrs {
		ip := a.Addr.Addr()
		if !ip.Is4() || !ip.IsGlobalUnicast() {
			continue
		}
		if h.Links[a.Dev].Live && keep(a) {
			return a.Addr, nil
		}
		seen = append(seen, a.Dev+" "+a.Addr.String())
	}
	return netip.Prefix{}, fmt.Errorf("detect the IPv4 address by %s: no device that is up has a fitting one (seen: %s); set IP or IP_AUTODETECTION_METHOD",
		method, cmp.Or(strings.Join(seen, ", "), "none"))
}

func except(re *regexp.Regexp) func(kernel.HostAddr) bool {
	return func(a kernel.HostAddr) bool { return !re.MatchString(a.Dev) }
}

func regexpList(method, list string) (*regexp.Regexp, error) {
	if list == "" {
		return nil, fmt.Errorf("IP_AUTODETECTION_METHOD=%s: names no interface", method)
	}
	re, err := regexp.Compile(strings.Join(strings.Split(list, ","), "|"))
	if err != nil {
		return nil, fmt.Errorf("IP_AUTODETECTION_METHOD=%s: %w", method, err)
	}
	return re, nil
}

func prefixList(method, list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range strings.Split(list, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("IP_AUTODETECTION_METHOD=%s: %w", method, err)
		}
		out = append(out, p)
	}
	return out, nil
}
