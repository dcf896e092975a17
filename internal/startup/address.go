package startup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// families in the order in which they stand in a Node.
var families = [...]family{ipv4, ipv6}

// settled is what was decided for the node's addresses. The zero prefix means: leave the Node as it is.
type settled map[family]netip.Prefix

// register writes the Node with its addresses. An address that was set by hand stays unless IP or IP6 says otherwise.
func (s *starter) register(ctx context.Context) error {
	entries, rev, err := store.List[api.Node](ctx, s.Store, (*api.Node)(nil).KindOf().Prefix())
	if err != nil && rev == 0 {
		return err
	}
	if err != nil { // others' trouble; our own Node is read again below
		s.Log.Warn("nodes that cannot be read are left out", "error", err)
	}
	nodes := make([]*api.Node, len(entries))
	for i, e := range entries {
		nodes[i] = e.Value
	}
	addrs := settled{}
	for _, f := range families {
		addr, err := s.settle(ctx, f, nodes)
		if err != nil {
			return errors.Join(err, s.giveUp(ctx, f, nodes, err))
		}
		addrs[f] = addr
	}
	if err := s.ensureNode(ctx, true, func(n *api.Node) bool { return s.fill(n, addrs) }); err != nil {
		return err
	}
	s.sayAddresses(s.own(nodes), addrs)
	return nil
}

// fill writes into the Node what the environment and the host say of it, and reports whether that is anything new.
func (s *starter) fill(n *api.Node, addrs settled) bool {
	changed := s.orchRef(n)
	changed = s.asNumber(n) || changed
	return s.address(n, addrs) || changed
}

// address writes the addresses into the Node, and reports whether they are others. It replaces what hangs on the Node and changes nothing
// in place.
func (s *starter) address(n *api.Node, addrs settled) (changed bool) {
	for _, f := range families {
		changed = setAddress(n, f, addrs[f]) || changed
	}
	if want := addressList(n, addrs); !slices.Equal(want, n.Spec.Addresses) {
		n.Spec.Addresses, changed = want, true
	}
	if want := s.interfaces(n); !slices.EqualFunc(want, n.Spec.Interfaces, sameInterface) {
		n.Spec.Interfaces, changed = want, true
	}
	return changed
}

// own is this node's Node; nil if there is none.
func (s *starter) own(nodes []*api.Node) *api.Node {
	i := slices.IndexFunc(nodes, func(n *api.Node) bool { return n.Metadata.Name == s.node })
	if i < 0 {
		return nil
	}
	return nodes[i]
}

// stored is the node's address of a family as etcd has it; the zero prefix if it has none.
func (s *starter) stored(f family, nodes []*api.Node) netip.Prefix {
	n := s.own(nodes)
	if n == nil {
		return netip.Prefix{}
	}
	p, _ := n.Address(f == ipv6)
	return p
}

// takenError says that another node has the address.
type takenError struct {
	node, variable string
	family         family
	addr           netip.Addr
}

// Error names both nodes and the remedy.
func (e *takenError) Error() string {
	return fmt.Sprintf("node %q is already using the %v address %v: set %s or %[4]s_AUTODETECTION_METHOD on one of the two, or delete that node if it is gone",
		e.node, e.family, e.addr, e.variable)
}

// settle decides the node's address of a family and refuses one that another node has (*takenError). The zero prefix means: leave the Node
// as it is.
func (s *starter) settle(ctx context.Context, f family, nodes []*api.Node) (netip.Prefix, error) {
	v := s.variables(f)
	if s.cfg.Backend == config.None || v.cfg.Want == "none" {
		return netip.Prefix{}, nil
	}
	if f == ipv6 && !s.IPv6 {
		s.warn("this host's kernel has no IPv6, so the node goes on with IPv4 (%s=%s)", v.name, v.cfg.Want)
		return netip.Prefix{}, nil
	}
	addr, err := s.find(ctx, v, s.stored(f, nodes))
	if err != nil || !addr.IsValid() || s.cfg.NoIPCheck {
		return addr, err
	}
	for _, n := range nodes {
		if a, ok := n.Address(f == ipv6); ok && a.Addr() == addr.Addr() && n.Metadata.Name != s.node {
			return addr, &takenError{node: n.Metadata.Name, variable: v.name, family: f, addr: addr.Addr()}
		}
	}
	return addr, nil
}

// giveUp takes an address that was detected, and is another node's, out of our Node: else both would be unreachable. One that was given
// by hand stays.
func (s *starter) giveUp(ctx context.Context, f family, nodes []*api.Node, why error) error {
	var taken *takenError
	if !errors.As(why, &taken) || s.variables(f).cfg.Want != "autodetect" || s.stored(f, nodes).Addr() != taken.addr {
		return nil
	}
	return s.ensureNode(ctx, false, func(n *api.Node) bool {
		if have, ok := n.Address(f == ipv6); !ok || have.Addr() != taken.addr {
			return false
		}
		put(n, f, netip.Prefix{})
		n.Spec.Addresses = addressList(n, settled{f: netip.PrefixFrom(taken.addr, 0)})
		s.Log.Warn("took the address out of our Node", "node", s.node, "address", taken.addr)
		return true
	})
}

// setAddress writes an address into the Node and reports whether it was another one.
func setAddress(n *api.Node, f family, addr netip.Prefix) bool {
	if have, _ := n.Address(f == ipv6); !addr.IsValid() || addr == have {
		return false
	}
	put(n, f, addr)
	return true
}

// put replaces the Node's address of a family. What it leaves empty goes.
func put(n *api.Node, f family, addr netip.Prefix) {
	var b api.NodeBGP
	if n.Spec.BGP != nil {
		b = *n.Spec.BGP
	}
	if f == ipv6 {
		b.IPv6Address = api.Prefix{Prefix: addr}
	} else {
		b.IPv4Address = api.Prefix{Prefix: addr}
	}
	n.Spec.BGP = &b
	if b == (api.NodeBGP{}) {
		n.Spec.BGP = nil
	}
}

// sayAddresses tells of addresses that are not those of our Node as it was.
func (s *starter) sayAddresses(was *api.Node, addrs settled) {
	for _, f := range families {
		addr, old := addrs[f], s.stored(f, slices.DeleteFunc([]*api.Node{was}, func(n *api.Node) bool { return n == nil }))
		switch {
		case !addr.IsValid() || addr == old:
		case old.IsValid() && old.Addr() != addr.Addr():
			s.Log.Warn("the node's address is another one now", "node", s.node, "address", addr, "was", old)
		default:
			s.Log.Info("node address", "node", s.node, "address", addr)
		}
	}
}

// addressList is the list of the node's addresses with our own entries brought up to date, those of families that we leave alone
// included.
func addressList(n *api.Node, addrs settled) []api.NodeAddress {
	if !addrs[ipv4].IsValid() && !addrs[ipv6].IsValid() {
		return n.Spec.Addresses
	}
	var out []api.NodeAddress
	for _, f := range families {
		if a, ok := n.Address(f == ipv6); ok {
			out = append(out, api.NodeAddress{Address: a.String(), Type: nodeIP})
		}
	}
	return append(out, slices.DeleteFunc(slices.Clone(n.Spec.Addresses), func(a api.NodeAddress) bool { return a.Type == nodeIP })...)
}

const nodeIP = "CalicoNodeIP"

// interfaces is the list of the host's devices with their addresses, where IP or IP6 says that the node is to look at them; else what the
// Node has.
func (s *starter) interfaces(n *api.Node) []api.NodeInterface {
	asked := func(a config.Address) bool { return a.Want != "" && a.Want != "none" }
	if s.cfg.Backend == config.None || !asked(s.cfg.IP) && !asked(s.cfg.IP6) {
		return n.Spec.Interfaces
	}
	var out []api.NodeInterface
	for _, a := range usable(s.Host) {
		if notForNodes.MatchString(a.Dev) {
			continue
		}
		if len(out) == 0 || out[len(out)-1].Name != a.Dev {
			out = append(out, api.NodeInterface{Name: a.Dev})
		}
		last := &out[len(out)-1]
		last.Addresses = append(last.Addresses, a.Addr.String())
	}
	return out
}

func sameInterface(a, b api.NodeInterface) bool {
	return a.Name == b.Name && slices.Equal(a.Addresses, b.Addresses)
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

func (s *starter) asNumber(n *api.Node) bool {
	if s.cfg.AS == nil || s.cfg.Backend == config.None || n.Spec.BGP != nil && n.Spec.BGP.ASNumber != nil && *n.Spec.BGP.ASNumber == *s.cfg.AS {
		return false
	}
	if n.Spec.BGP == nil {
		n.Spec.BGP = &api.NodeBGP{}
	}
	n.Spec.BGP.ASNumber = s.cfg.AS
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

// find finds the node's address of a family. What cannot be detected stays as it is stored.
func (s *starter) find(ctx context.Context, v variables, stored netip.Prefix) (netip.Prefix, error) {
	if v.cfg.Want == "" && stored.IsValid() {
		return stored, nil
	}
	if v.cfg.Want != "" && v.cfg.Want != "autodetect" {
		return s.explicit(v)
	}
	detect, err := s.detector(v)
	if err != nil {
		return netip.Prefix{}, err
	}
	found, err := detect(ctx, stored)
	if err != nil && stored.IsValid() {
		s.warn("the node keeps its stored %v address %v: %v", v.family, stored, err)
		return stored, nil
	}
	return found, err
}

// explicit reads an address that was given, and completes a missing prefix length from the device that holds it.
func (s *starter) explicit(v variables) (netip.Prefix, error) {
	text := v.cfg.Want
	var p api.Prefix
	if err := p.UnmarshalText([]byte(text)); err != nil || !v.of(p.Addr()) || !p.Addr().IsGlobalUnicast() {
		return netip.Prefix{}, fmt.Errorf("%s=%s: want autodetect, none, an %v address or an address with prefix length", v.name, text, v.family)
	}
	held, ok := holds(s.Host, p.Addr())
	if !ok {
		s.warn("%s=%s: no device of this host has that address", v.name, text)
		return p.Prefix, nil
	}
	if strings.Contains(text, "/") {
		return p.Prefix, nil
	}
	return held, nil
}

// holds is the address with the prefix length that it has on this host.
func holds(h kernel.Host, ip netip.Addr) (p netip.Prefix, ok bool) {
	i := slices.IndexFunc(h.Addrs, func(a kernel.HostAddr) bool { return a.Addr.Addr() == ip })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return h.Addrs[i].Addr, true
}
