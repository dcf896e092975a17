package plan

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// nat is an address at which a local pod is reached besides its own, and which of its own that stands for.
type nat struct{ floating, own netip.Addr }

// floating lists an endpoint's floating addresses of which its own are the targets. An address that is in use already stays where it is.
func (x *pods) floating(p *podPlan) []nat {
	if !x.FloatingIPs || len(p.own) == 0 {
		return nil
	}
	name := endpointName(p.endpoint)
	var out []nat
	for _, n := range p.endpoint.Spec.IPNATs {
		from, err1 := netip.ParseAddr(n.ExternalIP)
		to, err2 := netip.ParseAddr(n.InternalIP)
		switch first, taken := x.local[from]; {
		case err1 != nil || err2 != nil || from.Is6() != to.Is6():
			x.problem(name, "spec.ipNATs: %s for %s is not an address for one of its family; re-create the pod", n.ExternalIP, n.InternalIP)
		case x.hosts(from):
			x.problem(name, "floating address %v is a host's, which keeps it; re-create the pod", from)
		case !slices.Contains(p.own, to): // of a family that this node does not do, or another pod has it
		case taken:
			x.problem(name, "floating address %v belongs to %s too, which keeps it; re-create this pod", from, first)
		default:
			x.local[from] = name
			out = append(out, nat{from, to})
		}
	}
	return out
}

// hosts reports whether an address is this host's or another node's.
func (c *computation) hosts(a netip.Addr) bool {
	for _, n := range c.Nodes {
		if at, ok := n.Address(a.Is6()); ok && at.Addr() == a {
			return true
		}
	}
	return slices.ContainsFunc(c.host.Addrs, func(h kernel.HostAddr) bool { return h.Addr.Addr() == a })
}

// natChains translates floating addresses, as on a Calico host: what is sent to one, by others and by the host, goes to its pod. A pod that reaches itself
// that way gets its answer only if it seems to come from there. It says whether POSTROUTING must ask about that.
func (f *family) natChains() (hairpin bool) {
	var in, back []string
	for _, n := range slices.SortedFunc(slices.Values(f.nats), func(a, b nat) int { return a.floating.Compare(b.floating) }) {
		if n.own.Is6() != f.v6 {
			continue
		}
		from, to := api.HostPrefix(n.floating).String(), api.HostPrefix(n.own).String()
		in = append(in, "-d "+from+" -j DNAT --to-destination "+n.own.String())
		back = append(back, "-s "+to+" -d "+to+" -j SNAT --to-source "+n.floating.String())
	}
	if len(in) == 0 {
		return false
	}
	for _, hook := range []string{"PREROUTING", "OUTPUT"} {
		f.chain("nat", hook, "-j cali-"+hook)
		f.chain("nat", "cali-"+hook, "-j cali-fip-dnat")
	}
	f.chain("nat", "cali-fip-dnat", in...)
	f.chain("nat", "cali-fip-snat", back...)
	return true
}
