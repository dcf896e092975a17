package ruleset

import (
	"net/netip"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
)

// setState is a set of the model that is laid out.
type setState struct {
	kind  policy.SetKind
	nets  [2]map[netip.Prefix]bool // real CIDRs, of IPv4 and of IPv6
	users map[policy.PolicyID]bool // policies whose rules name the set: they are rendered anew when CIDRs come first or go last
}

// family is what differs between IPv4 and IPv6.
type family struct {
	v6                             bool
	version                        uint8
	addr, addrPort, ifaceAddr      nftable.Type
	addrs, nets, ports, constNets  string // how the names of sets begin
	spoof                          string // names of sets
	vxlanPeers, vxlanNets, wgPeers string
	ipipPeers, ipipNets            string
	probePeers, cluster            string
}

// families are in the order of arrays that have an entry for each.
var families = [2]family{
	{
		version: 4, addr: nftable.Addr4, addrPort: nftable.AddrPort4, ifaceAddr: nftable.IfaceAddr4,
		addrs: "a4-", nets: "n4-", ports: "p4-", constNets: "k4-",
		spoof: "wl-src4", vxlanPeers: "vxlan-peers4", vxlanNets: "vxlan-nets4", wgPeers: "wireguard-peers4", ipipPeers: "ipip-peers4", ipipNets: "ipip-nets4",
		probePeers: "probe-peers4", cluster: "cluster4",
	},
	{
		v6: true, version: 6, addr: nftable.Addr6, addrPort: nftable.AddrPort6, ifaceAddr: nftable.IfaceAddr6,
		addrs: "a6-", nets: "n6-", ports: "p6-", constNets: "k6-",
		spoof: "wl-src6", vxlanPeers: "vxlan-peers6", vxlanNets: "vxlan-nets6", wgPeers: "wireguard-peers6", ipipPeers: "ipip-peers6", ipipNets: "ipip-nets6",
		probePeers: "probe-peers6", cluster: "cluster6",
	},
}

// familyOf returns an address's place in families.
func familyOf(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// changeSet takes over a change of a set, and notes which policies have to be rendered anew because CIDRs came first or went last.
func (l *Layout) changeSet(id policy.SetID, c policy.SetChange, reshaped map[policy.PolicyID]bool) {
	st := l.sets[id]
	if st == nil {
		st = &setState{kind: c.Set.Kind, users: map[policy.PolicyID]bool{}, nets: [2]map[netip.Prefix]bool{{}, {}}}
		l.sets[id] = st
		l.newSet(id, st)
	}
	for _, p := range c.Removed.Ports {
		l.ed.DropElem(families[familyOf(p.Addr)].ports+string(id), portElem(p))
	}
	for _, p := range c.Added.Ports {
		l.ed.PutElem(families[familyOf(p.Addr)].ports+string(id), portElem(p))
	}
	for _, a := range c.Removed.Addrs {
		l.ed.DropElem(families[familyOf(a)].addrs+string(id), nftable.Elem{Key: nftable.AddrKey(a)})
	}
	for _, a := range c.Added.Addrs {
		l.ed.PutElem(families[familyOf(a)].addrs+string(id), nftable.Elem{Key: nftable.AddrKey(a)})
	}
	if l.changeNets(id, st, c) {
		for user := range st.users {
			reshaped[user] = true
		}
	}
}

func portElem(p policy.PortMember) nftable.Elem {
	return nftable.Elem{Key: nftable.AddrPortKey(p.Addr, p.Protocol, p.Port)}
}

func (l *Layout) newSet(id policy.SetID, st *setState) {
	for _, f := range families {
		if st.kind == policy.Ports {
			l.ed.PutSet(nftable.NewSet(f.ports+string(id), f.addrPort))
			continue
		}
		l.ed.PutSet(nftable.NewSet(f.addrs+string(id), f.addr))
	}
}

// changeNets takes over changed CIDRs, and tells whether a set of them has come or gone.
func (l *Layout) changeNets(id policy.SetID, st *setState, c policy.SetChange) (reshaped bool) {
	had := [2]int{len(st.nets[0]), len(st.nets[1])}
	var touched [2]bool
	for _, p := range c.Removed.Nets {
		f := familyOf(p.Addr())
		delete(st.nets[f], p)
		touched[f] = true
	}
	for _, p := range c.Added.Nets {
		f := familyOf(p.Addr())
		st.nets[f][p] = true
		touched[f] = true
	}
	for i, f := range families {
		switch {
		case !touched[i]:
		case len(st.nets[i]) > 0:
			l.ed.PutSet(nftable.NewIntervals(f.nets+string(id), f.addr, nftable.Ranges(keys(st.nets[i]))...))
		default:
			l.ed.DropSet(f.nets + string(id))
		}
		reshaped = reshaped || (had[i] > 0) != (len(st.nets[i]) > 0)
	}
	return reshaped
}

func (l *Layout) dropSet(id policy.SetID) {
	st := l.sets[id]
	if st == nil {
		return
	}
	delete(l.sets, id)
	for i, f := range families {
		if st.kind == policy.Ports {
			l.ed.DropSet(f.ports + string(id))
			continue
		}
		l.ed.DropSet(f.addrs + string(id))
		if len(st.nets[i]) > 0 {
			l.ed.DropSet(f.nets + string(id))
		}
	}
}

func keys[K comparable, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}
