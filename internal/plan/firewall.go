package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Names of the ipsets after the family's prefix, as on a Calico host.
const (
	setPools = "network-ip-pools" // what is never masqueraded when it is the destination
	setMasq  = "masq-ipam-pools"  // what is masqueraded when it is the source
	setHosts = "all-hosts-net"
)

// firewall makes anew the sets and chains of both families.
func (c *computation) firewall() {
	c.out.Sets, c.out.Chains, c.out.Chains6 = map[kernel.SetKey]kernel.Set{}, map[kernel.ChainKey]kernel.Chain{}, map[kernel.ChainKey]kernel.Chain{}
	for _, f := range c.families {
		f.firewall()
	}
}

// firewall adds the family's sets and chains: masquerading, and that what policy has accepted is accepted here too.
//
// Whether a packet gets through is decided in one place, the table of policy (internal/ruleset): what pods send and receive, what reaches
// the host from them, and who may send packets of tunnels. It runs before these chains and drops by itself. Only its accepts
// do not bind others' chains, so it leaves a mark, by which these accept before anybody else is asked.
func (f *family) firewall() {
	masq := f.poolSets()
	for _, hook := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		f.chain("filter", hook, "-j cali-"+hook)
		f.chain("filter", "cali-"+hook, fmt.Sprintf("-m mark --mark %#x/%#[1]x -j ACCEPT", f.AcceptMark))
	}
	var post []string
	if f.natChains() {
		post = append(post, "-j cali-fip-snat")
	}
	if masq {
		f.chain("nat", "cali-nat-outgoing", f.masquerade()...)
		post = append(post, "-j cali-nat-outgoing")
	}
	if f.ipip.on {
		post = append(post, ownTraffic(kernel.IPIPDevice))
	}
	if f.vxlan.on {
		post = append(post, ownTraffic(f.vxlanName()))
	}
	if f.wg.on {
		post = append(post, f.wg.ownTraffic(f.self))
	}
	if len(post) > 0 {
		f.chain("nat", "POSTROUTING", "-j cali-POSTROUTING")
		f.chain("nat", "cali-POSTROUTING", post...)
	}
}

// ownTraffic masquerades what the host sends into a tunnel from an address of another device: the answer would come back past the tunnel.
func ownTraffic(dev string) string {
	return "-o " + dev + " -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL -j MASQUERADE --random-fully"
}

// poolSets fills the sets of all pools and of the masqueraded ones. Disabled pools count: their pods live on.
func (f *family) poolSets() (masquerades bool) {
	var every, out []netip.Prefix
	for _, p := range f.Pools {
		if p.Spec.CIDR.Addr().Is6() != f.v6 || slices.Equal(p.Spec.AllowedUses, []api.Use{api.UseLoadBalancer}) {
			continue
		}
		every = append(every, p.Spec.CIDR)
		if p.Spec.NATOutgoing {
			out = append(out, p.Spec.CIDR)
		}
	}
	if len(out) == 0 {
		return false
	}
	f.set(setPools, every)
	f.set(setMasq, out)
	return true
}

func (f *family) masquerade() []string {
	rule := "-m set --match-set " + f.setName(setMasq) + " src -m set ! --match-set " + f.setName(setPools) + " dst "
	if f.NATKeepHosts {
		f.set(setHosts, f.addresses(true))
		rule += "-m set ! --match-set " + f.setName(setHosts) + " dst "
	}
	return f.masqueradeAs(rule)
}

// takes notes whose packets the family's tunnels take: those of nodes, our own too, and of peers that are told.
func (f *family) takes() {
	if f.ipip.on {
		f.tunnels.IPIP, f.tunnels.IPIPPeers = true, f.addresses(true)
	}
	if f.wg.on {
		f.takesWireGuard()
	}
	if !f.vxlan.on {
		return
	}
	peers := slices.Concat(f.tunnels.VXLANPeers, f.addresses(false), f.peers())
	f.tunnels.VXLANPeers = slices.Compact(slices.SortedFunc(slices.Values(peers), netip.Prefix.Compare))
	if f.v6 {
		f.tunnels.VXLAN6 = true
	} else {
		f.tunnels.VXLAN = true
	}
}

// addresses lists the nodes' addresses of the family, with or without our own.
func (f *family) addresses(own bool) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range f.Nodes {
		if a, ok := n.Address(f.v6); ok && (own || n.Metadata.Name != f.Node) {
			out = append(out, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
		}
	}
	return out
}

// setName is the whole name of a set of the family.
func (f *family) setName(id string) string {
	if f.v6 {
		return kernel.Set6Prefix + id
	}
	return kernel.SetPrefix + id
}

func (f *family) set(id string, members []netip.Prefix) {
	members = slices.Compact(slices.SortedFunc(slices.Values(halved(members)), netip.Prefix.Compare))
	text := make([]string, len(members))
	for i, m := range members {
		text[i] = m.String()
	}
	f.out.Sets[kernel.SetKey(f.setName(id))] = kernel.Set{Members: strings.Join(text, ",")}
}

// halved replaces a range of all addresses of a family, which an ipset cannot hold, by its halves.
func halved(ranges []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range ranges {
		if r.Bits() > 0 {
			out = append(out, r)
			continue
		}
		upper := netip.AddrFrom4([4]byte{0x80})
		if r.Addr().Is6() {
			upper = netip.AddrFrom16([16]byte{0x80})
		}
		out = append(out, netip.PrefixFrom(r.Addr(), 1), netip.PrefixFrom(upper, 1))
	}
	return out
}

func (f *family) chain(table, name string, rules ...string) {
	chains := f.out.Chains
	if f.v6 {
		chains = f.out.Chains6
	}
	chains[kernel.ChainKey{Table: table, Chain: name}] = kernel.Chain{Rules: strings.Join(rules, "\n")}
}
