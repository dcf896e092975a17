package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// settling is how long a session may take before it counts as broken.
const settling = time.Minute

func peers(v View) []Finding {
	var l list
	a := v.Agent.Value
	switch {
	case v.Agent.Err != nil:
		l.unknown("", v.Agent.Err)
		return l
	case !v.Speaks:
		return l
	case !a.Runs || a.Socket != nil:
		l.unknown("", ErrNoAgent)
		return l
	case a.NoBGP != "":
		l.add(Warning, "BGP", "", "the node has no sessions: %s", a.NoBGP)
	}
	for _, p := range a.Sessions {
		if p.Established() {
			continue
		}
		s, info := Error, p.State
		if p.Info != "" {
			info += ", " + p.Info
		}
		if v.Now.Sub(p.Since) < settling || p.Type == workloadPeer {
			s = Warning
		}
		l.add(s, p.Addr.String(), "see that it runs, that TCP port 179 is open between, and that AS numbers and passwords fit",
			"the session (%s) is not established since %s: %s", p.Type, p.Since.UTC().Format(time.RFC3339), info)
	}
	return l
}

const workloadPeer = "local workload"

func routes(v View) []Finding {
	var l list
	switch {
	case v.Data.Err != nil:
		l.unknown("", v.Data.Err)
	case v.Routes.Err != nil:
		l.unknown("", v.Routes.Err)
	case v.Node.Err != nil:
		l.unknown("", ErrNoName)
	default:
		have := map[netip.Prefix]bool{}
		for k := range v.Routes.Value {
			have[k.Dst] = true
		}
		l.toPods(v, have)
		l.toBlocks(v, have)
		l.astray(v, have)
	}
	return l
}

// afterAgent marks a finding as coming of an agent that does not work.
func (l *list) afterAgent(v View) {
	if v.Agent.Err == nil && (!v.Agent.Value.Runs || v.Agent.Value.Socket != nil) {
		(*l)[len(*l)-1].Follows = "agent"
	}
}

// Target is an address whose way says what becomes of packets to a pod or a block.
type Target struct {
	Addr   netip.Addr
	Object string       // what it stands for
	Dst    netip.Prefix // the route of ours by which packets should go
}

// Targets are addresses of which View.Ways is to tell: those of the node's pods, and the last one of each block of other nodes, which is the least likely to be
// lent to somebody else. They are no more than would take a moment to ask for.
func (v View) Targets() (out []Target) {
	const most = 1024
	for _, e := range v.Data.Value.IPAM.Endpoints {
		if e.Value.Spec.Node == v.Node.Value {
			for _, n := range e.Value.Spec.IPNetworks {
				out = append(out, Target{n.Addr(), podName(e.Value), n.Masked()})
			}
		}
	}
	for _, e := range v.Data.Value.IPAM.Blocks {
		if host, ok := e.Value.Host(); ok && host != v.Node.Value {
			cidr := e.Value.CIDR
			out = append(out, Target{block.Addr(cidr, block.Size(cidr)-1), "block " + cidr.String() + " of node " + host, cidr})
		}
	}
	return out[:min(len(out), most)]
}

// astray finds what goes another way than our route to it says: rules and more exact routes of other programs come first.
func (l *list) astray(v View, have map[netip.Prefix]bool) {
	switch {
	case v.Ways.Err != nil:
		l.unknown("ways", v.Ways.Err)
		return
	case v.Ways.Value == nil:
		return
	}
	devs := map[netip.Prefix][]string{}
	for k, r := range v.Routes.Value {
		devs[k.Dst] = append(devs[k.Dst], r.Dev.Name)
	}
	for _, t := range v.Targets() {
		dev := v.Ways.Value[t.Addr].Dev.Name
		ours := devs[t.Dst]
		several := slices.Contains(ours, "") // a route over several devices names none
		lent := t.Dst.Addr() != t.Addr && have[netip.PrefixFrom(t.Addr, t.Addr.BitLen())]
		if len(ours) == 0 || several || lent || slices.Contains(ours, dev) {
			continue
		}
		what := "leave by " + dev
		if dev == "" {
			what = "have no way"
		}
		slices.Sort(ours)
		l.add(Error, t.Object, fmt.Sprintf("ip route get %v and ip rule show by what: take that route or rule away, or what makes it (VPN clients do)", t.Addr),
			"packets to it %s, though our route says %s: a rule or route of another program comes first", what, strings.Join(slices.Compact(ours), ", "))
	}
}

// toPods judges the endpoints of this node.
func (l *list) toPods(v View, have map[netip.Prefix]bool) {
	for _, e := range v.Data.Value.IPAM.Endpoints {
		w := e.Value.Spec
		if w.Node != v.Node.Value {
			continue
		}
		name := podName(e.Value)
		if _, ok := v.Host.Value.Links[w.InterfaceName]; v.Host.Err == nil && !ok {
			l.add(Warning, name, "the agent frees it by itself within minutes if the pod is gone; else delete the pod", "its device %s does not exist", w.InterfaceName)
			continue
		}
		for _, n := range w.IPNetworks {
			if !have[n.Masked()] {
				l.add(Error, name, "see the agent's problems and its log", "the kernel has no route to it (%v)", n.Addr())
				l.afterAgent(v)
			}
		}
	}
}

func podName(w *api.WorkloadEndpoint) string {
	if w.Spec.Pod != "" {
		return "pod " + w.Metadata.Namespace + "/" + w.Spec.Pod
	}
	return "endpoint " + w.Spec.InterfaceName
}

// toBlocks judges routes to blocks of other nodes that come from etcd whatever BGP says: by tunnels, and to nodes on our subnets.
func (l *list) toBlocks(v View, have map[netip.Prefix]bool) {
	const most = 5
	missing := 0
	for _, e := range v.Data.Value.IPAM.Blocks {
		cidr := e.Value.CIDR
		host, ok := e.Value.Host()
		if !ok || host == v.Node.Value || have[cidr] || !v.reaches(host, cidr) {
			continue
		}
		if missing++; missing <= most {
			l.add(Error, cidr.String(), "see the agent's problems and its log", "the kernel has no route to this block of node %s", host)
			l.afterAgent(v)
			l.afterKernel(v, cidr)
		}
	}
	if missing > most {
		l.add(Error, "blocks", "", "routes to %d more blocks are missing", missing-most)
		l.afterAgent(v)
	}
}

// afterKernel marks the finding of a route that a kernel without its tunnel cannot have.
func (l *list) afterKernel(v View, cidr netip.Prefix) {
	pool := v.Data.Value.poolOf(cidr)
	for _, f := range v.Lacking.Value {
		if pool != nil && (f.For == ForVXLAN && encapsulates(pool.Spec.VXLANMode) || f.For == ForIPIP && encapsulates(pool.Spec.IPIPMode)) {
			(*l)[len(*l)-1].Follows = "kernel"
		}
	}
}

// reaches tells whether etcd alone says how to reach a block of another node.
func (v View) reaches(host string, cidr netip.Prefix) bool {
	v6 := cidr.Addr().Is6()
	d := v.Data.Value
	us, them := d.node(v.Node.Value), d.node(host)
	if us == nil || them == nil || v6 && !v.Settings.IPv6Support {
		return false
	}
	ours, okOurs := us.Address(v6)
	theirs, okTheirs := them.Address(v6)
	inside := func(n store.Entry[api.Node]) bool { // such a block is never routed
		a, ok := n.Value.Address(v6)
		return ok && cidr.Contains(a.Addr())
	}
	pool := d.poolOf(cidr)
	if pool == nil || !okOurs || !okTheirs || slices.ContainsFunc(d.IPAM.Nodes, inside) {
		return false
	}
	return encapsulates(pool.Spec.VXLANMode) || !v6 && encapsulates(pool.Spec.IPIPMode) || ours.Masked().Contains(theirs.Addr())
}

func encapsulates(m api.EncapMode) bool { return m != "" && m != api.Never }

func isPool6(e store.Entry[api.IPPool]) bool { return e.Value.Spec.CIDR.Addr().Is6() }

// poolOf is the pool that a range lies in; nil if there is none.
func (d Data) poolOf(cidr netip.Prefix) *api.IPPool {
	for _, e := range d.IPAM.Pools {
		if s := e.Value.Spec; s.CIDR.Bits() <= cidr.Bits() && s.CIDR.Contains(cidr.Addr()) {
			return e.Value
		}
	}
	return nil
}

// count is a number of things: 1 block, 2 blocks.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
