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
	setVXLAN = "all-vxlan-net" // who may send us VXLAN packets
)

// firewall adds the family's sets and chains: masquerading, accepted forwarding, and who may send tunnel packets.
func (f *family) firewall() {
	masq := f.poolSets()
	f.chain("filter", "FORWARD", "-j cali-FORWARD")
	var forward []string
	for _, p := range f.Ours.WorkloadPrefixes() {
		forward = append(forward, "-i "+p+"+ -j ACCEPT", "-o "+p+"+ -j ACCEPT")
	}
	f.chain("filter", "cali-FORWARD", forward...)
	var post []string
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
	f.tunnelPackets()
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

// tunnelPackets accepts the packets of tunnels from and to other nodes, and refuses those of strangers. VXLAN packets are kept out of
// conntrack, too.
func (f *family) tunnelPackets() {
	var in, out []string
	if f.ipip.on {
		const ipip = "-p 4 "
		hosts := f.setName(setHosts)
		f.set(setHosts, f.addresses(true))
		in = append(in, ipip+"-m set --match-set "+hosts+" src -m addrtype --dst-type LOCAL -j ACCEPT", ipip+"-j DROP")
		out = append(out, ipip+"-m addrtype --src-type LOCAL -m set --match-set "+hosts+" dst -j ACCEPT")
	}
	if f.vxlan.on {
		peers := f.setName(setVXLAN)
		f.set(setVXLAN, append(f.addresses(false), f.peers()...))
		vxlan := fmt.Sprintf("-p udp -m udp --dport %d ", f.VXLANPort)
		in = append(in, vxlan+"-m set --match-set "+peers+" src -m addrtype --dst-type LOCAL -j ACCEPT", vxlan+"-m addrtype --dst-type LOCAL -j DROP")
		out = append(out, vxlan+"-m addrtype --src-type LOCAL -m set --match-set "+peers+" dst -j ACCEPT")
		f.chain("raw", "PREROUTING", "-j cali-PREROUTING")
		f.chain("raw", "cali-PREROUTING", vxlan+"-j NOTRACK")
		f.chain("raw", "OUTPUT", "-j cali-OUTPUT")
		f.chain("raw", "cali-OUTPUT", vxlan+"-j NOTRACK")
	}
	if len(in) == 0 {
		return
	}
	f.chain("filter", "INPUT", "-j cali-INPUT")
	f.chain("filter", "cali-INPUT", in...)
	f.chain("filter", "OUTPUT", "-j cali-OUTPUT")
	f.chain("filter", "cali-OUTPUT", out...)
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
