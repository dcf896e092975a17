package ruleset

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Priorities of base chains: the kernel's own for raw and mangle, and for filter just before those of iptables, which then see our mark.
const (
	priorityRaw    = -300
	priorityMangle = -150
	priorityFilter = -10
	priorityAgain  = -9
)

// Reasons for drops that are no rule's. Each has a chain d-<reason>, a counter r-<reason>, and the prefix S:<reason> in what is reported.
const (
	reasonSpoof   = "spoof"      // a workload sent from an address that is not its own
	reasonUnknown = "unknown-if" // of a workload's interface that no endpoint is known for
	reasonToHost  = "to-host"    // DefaultEndpointToHostAction
	reasonTunnel  = "tunnel"     // a workload sent a packet of a tunnel
	reasonPeer    = "peer"       // a packet of a tunnel came from no peer
	reasonLost    = "undecided"  // no list has decided, twice: see again

	reasonMidStream = "mid-stream" // of a connection that nobody tracks

	// These two only where there are such limits.
	reasonCrowd = "connections" // a workload has as many connections as it may
	reasonRate  = "rate"        // a workload sends or gets more than it may
)

var reasons = []string{reasonSpoof, reasonUnknown, reasonToHost, reasonTunnel, reasonPeer, reasonLost, reasonMidStream}

// putStaticSets writes the maps and sets that are always there, as far as settings fill them.
func (l *Layout) putStaticSets() {
	for _, name := range []string{"wl-from", "wl-to"} {
		if l.ed.Table().Sets[name] == nil {
			l.ed.PutSet(nftable.NewMap(name, nftable.Ifaces))
		}
	}
	for _, at := range hostPlaces {
		if l.ed.Table().Sets[at.dispatch] == nil {
			l.ed.PutSet(nftable.NewMap(at.dispatch, nftable.Ifaces))
		}
	}
	for _, f := range families {
		if l.ed.Table().Sets[f.spoof] == nil {
			l.ed.PutSet(nftable.NewSet(f.spoof, f.ifaceAddr))
		}
		l.putPeers(f.v6, f.vxlanPeers, f.vxlanNets, f.addr, l.settings.VXLANPeers)
		l.putPeers(f.v6, f.ipipPeers, f.ipipNets, f.addr, l.settings.IPIPPeers)
		l.putProbePeers(f)
		l.ed.PutSet(nftable.NewSet(f.wgPeers, f.addr, singles(f.v6, l.settings.WireGuardPeers)...))
	}
	l.ed.PutSet(nftable.NewSet("failsafe-in", nftable.ProtoPorts, failsafeElems(l.settings.FailsafeIn)...))
	l.ed.PutSet(nftable.NewSet("failsafe-out", nftable.ProtoPorts, failsafeElems(l.settings.FailsafeOut)...))
	for _, reason := range reasons {
		l.ed.PutCounter("r-" + reason)
	}
}

func (l *Layout) putPeers(v6 bool, hosts, nets string, typ nftable.Type, peers []netip.Prefix) {
	var ranges []netip.Prefix
	for _, p := range peers {
		if p.Addr().Is6() == v6 && !p.IsSingleIP() {
			ranges = append(ranges, p)
		}
	}
	l.ed.PutSet(nftable.NewSet(hosts, typ, singles(v6, peers)...))
	l.ed.PutSet(nftable.NewIntervals(nets, typ, nftable.Ranges(ranges)...))
}

// putProbePeers writes the set of who sends probes, where somebody may.
func (l *Layout) putProbePeers(f family) {
	if l.settings.ProbePort == 0 {
		if l.ed.Table().Sets[f.probePeers] != nil {
			l.ed.DropSet(f.probePeers)
		}
		return
	}
	l.ed.PutSet(nftable.NewSet(f.probePeers, f.addr, singles(f.v6, l.settings.ProbePeers)...))
}

// singles are the elements for single addresses of a family.
func singles(v6 bool, peers []netip.Prefix) (out []nftable.Elem) {
	for _, p := range peers {
		if p.Addr().Is6() == v6 && p.IsSingleIP() {
			out = append(out, nftable.Elem{Key: nftable.AddrKey(p.Addr())})
		}
	}
	return out
}

// failsafeElems returns the ports that are open from and to everywhere.
func failsafeElems(ports []Failsafe) (elems []nftable.Elem) {
	for _, f := range ports {
		if !f.Net.IsValid() {
			elems = append(elems, nftable.Elem{Key: nftable.ProtoPortKey(f.Protocol, f.Port)})
		}
	}
	return elems
}

// rules is a list of rules under construction.
type rules []nftable.Rule

func (r *rules) add(stmts ...nftable.Stmt) { *r = append(*r, nftable.Rule{Stmts: stmts}) }

// clear forgets that anything has accepted the packet or passed it on.
func (l *Layout) clear() nftable.Stmt {
	return nftable.SetMark{Clear: l.settings.accepting() | l.settings.pass()}
}

func (l *Layout) dropInvalid(r *rules) {
	if !l.settings.KeepInvalid {
		r.add(nftable.Invalid, nftable.Count{}, nftable.Verdict{Kind: nftable.Drop})
	}
}

func jump(chain string) nftable.Stmt { return nftable.Verdict{Kind: nftable.Jump, Chain: chain} }

func goTo(chain string) nftable.Stmt { return nftable.Verdict{Kind: nftable.Goto, Chain: chain} }

// reasonChain is the chain that drops for a reason.
func reasonChain(reason string) string { return "d-" + reason }

// putStaticChains writes every chain that is not a policy's, a list's or an endpoint's, and drops those that settings and
// endpoints no longer ask for.
func (l *Layout) putStaticChains() {
	base := func(hook nftable.Hook, priority int32) nftable.Base {
		return nftable.Base{Hook: hook, Priority: priority}
	}
	chains := map[string]*nftable.Chain{}
	put := func(name string, b nftable.Base, r rules) { chains[name] = nftable.NewChain(name, b, r...) }
	put("raw-prerouting", base(nftable.Prerouting, priorityRaw), l.rawPrerouting())
	put("raw-output", base(nftable.Output, priorityRaw), l.rawOutput())
	if l.used[fromDNAT] {
		put("mangle-prerouting", base(nftable.Prerouting, priorityMangle), l.manglePrerouting())
	}
	put("forward", base(nftable.Forward, priorityFilter), l.forward())
	put("input", base(nftable.Input, priorityFilter), l.input())
	if l.used[toHost] || len(l.tunnels())+len(l.wireGuard()) > 0 || l.settings.IPIP {
		put("output", base(nftable.Output, priorityFilter), l.output())
	}
	put("forward-again", base(nftable.Forward, priorityAgain), l.forwardAgain())
	put("input-again", base(nftable.Input, priorityAgain), l.inputAgain())
	if l.used[toHost] {
		put("output-again", base(nftable.Output, priorityAgain), l.outputAgain())
	}
	put("accepted", nftable.Base{}, l.accepted())
	put("wl-spoof", nftable.Base{}, l.spoof())
	put("wl-to-host", nftable.Base{}, l.toHost())
	put("wl-to-host-end", nftable.Base{}, l.toHostEnd())
	put("wl-to-host-nd", nftable.Base{}, neighbourDiscovery())
	put("wl-from-dispatch", nftable.Base{}, l.fromWorkload())
	put("wl-to-dispatch", nftable.Base{}, l.toWorkload())
	for _, reason := range reasons {
		put(reasonChain(reason), nftable.Base{}, l.denying("S:"+reason, "r-"+reason, nftable.Verdict{Kind: nftable.Drop}))
	}
	l.hostChains(put)
	l.putLimitDispatch(put)
	l.replace(l.staticNames, chains)
	l.staticNames = chains
}

// replace puts chains in the place of others, which go unless they have the name of one of these.
func (l *Layout) replace(old, by map[string]*nftable.Chain) {
	for name := range old {
		if by[name] == nil {
			l.ed.DropChain(name)
		}
	}
	for _, c := range by {
		l.ed.PutChain(c)
	}
}

// rawPrerouting is where every packet enters.
func (l *Layout) rawPrerouting() (r rules) {
	r.add(l.clear())
	for _, s := range l.tunnels(nftable.Local{}) {
		r.add(append(s, nftable.NoTrack{})...)
	}
	for _, s := range l.wireGuard(nftable.Local{}) { // with the mark, for a filter by the way back would look for it behind the tunnel
		r.add(append(s, nftable.SetMark{Set: WireGuardMark(l.settings.MarkMask)}, nftable.NoTrack{})...)
	}
	l.forWorkloads(false, func(in nftable.Stmt) { r.add(in, goTo("wl-spoof")) })
	l.passProbes(&r, nftable.Local{})
	l.askHosts(&r, fromRaw)
	l.untrack(&r, fromRaw)
	return r
}

func (l *Layout) rawOutput() (r rules) {
	r.add(l.clear())
	for _, s := range slices.Concat(l.tunnels(), l.wireGuard()) {
		r.add(append(s, nftable.NoTrack{})...)
	}
	l.passProbes(&r)
	l.askHosts(&r, toRaw)
	l.untrack(&r, toRaw)
	return r
}

// passProbes accepts the questions by which nodes test the paths between them, for good: whether they arrive is to say how the path fares, not what the
// policy of hosts' endpoints is. Answers belong to connections that are known.
func (l *Layout) passProbes(r *rules, more ...nftable.Stmt) {
	if l.settings.ProbePort == 0 {
		return
	}
	out := len(more) == 0
	for _, f := range families {
		r.add(append(append([]nftable.Stmt{
			nftable.Family{V6: f.v6}, nftable.Proto{Number: api.ProtoUDP}, nftable.Port{Dst: true, First: l.settings.ProbePort, Last: l.settings.ProbePort},
			nftable.AddrIn{Dst: out, V6: f.v6, Set: f.probePeers},
		}, more...), goTo("accepted"))...)
	}
}

// untrack keeps what a list before connection tracking has allowed out of it. The mark stays, and so no other list of the endpoint is asked.
func (l *Layout) untrack(r *rules, p place) {
	if l.used[p] {
		r.add(l.isAccepted(), nftable.NoTrack{})
	}
}

// tunnels returns the conditions on packets of the host's own VXLAN tunnels, of each family that has one.
func (l *Layout) tunnels(more ...nftable.Stmt) (out [][]nftable.Stmt) {
	for _, f := range families {
		if f.v6 && l.settings.VXLAN6 || !f.v6 && l.settings.VXLAN {
			out = append(out, append([]nftable.Stmt{
				nftable.Family{V6: f.v6}, nftable.Proto{Number: api.ProtoUDP}, l.vxlanPort(),
			}, more...))
		}
	}
	return out
}

// wireGuard returns the conditions on packets of the host's own WireGuard devices, of each family that has one.
func (l *Layout) wireGuard(more ...nftable.Stmt) (out [][]nftable.Stmt) {
	for _, f := range families {
		port := l.settings.WireGuardPort
		if f.v6 {
			port = l.settings.WireGuardPort6
		}
		if port != 0 {
			out = append(out, append([]nftable.Stmt{
				nftable.Family{V6: f.v6}, nftable.Proto{Number: api.ProtoUDP}, nftable.Port{Dst: true, First: port, Last: port},
			}, more...))
		}
	}
	return out
}

func (l *Layout) vxlanPort() nftable.Stmt {
	return nftable.Port{Dst: true, First: l.settings.VXLANPort, Last: l.settings.VXLANPort}
}

func (l *Layout) isAccepted() nftable.Stmt {
	return nftable.Mark{Mask: l.settings.accept(), Value: l.settings.accept()}
}

func (l *Layout) manglePrerouting() (r rules) {
	r.add(l.isAccepted(), nftable.Verdict{Kind: nftable.Accept})
	l.askHosts(&r, fromDNAT)
	return r
}

// forward asks the endpoints of the device that a packet came by, of the workload that sent it, of the workload that gets it, and of the device
// that it goes by. What has got through and is a workload's is accepted, whatever others' chains say.
func (l *Layout) forward() (r rules) {
	if l.used[fromForward] {
		// Marked is what was accepted before connection tracking or address translation.
		r.add(nftable.Mark{Mask: l.settings.accept()}, jump(dispatchChain(fromForward)))
	}
	if l.asked[marking] {
		l.forWorkloads(false, func(in nftable.Stmt) { r.add(in, jump(limitChain(marking))) })
	}
	l.judge(&r, nftable.Verdict{Kind: nftable.Accept})
	return r
}

// judge asks about forwarded packets. What no list has decided fares as undecided says; lists of workloads always decide, but see again.
func (l *Layout) judge(r *rules, undecided nftable.Stmt) {
	ask := func(out bool, dispatch string) {
		l.forWorkloads(out, func(dev nftable.Stmt) {
			r.add(dev, jump(dispatch))
			r.add(dev, l.isUndecided(), undecided)
		})
	}
	ask(false, "wl-from-dispatch")
	ask(true, "wl-to-dispatch")
	l.askHosts(r, toForward)
	l.forWorkloads(false, func(in nftable.Stmt) { l.countConnections(r, countFrom, in) })
	l.forWorkloads(true, func(out nftable.Stmt) { l.countConnections(r, countTo, out) })
	l.forWorkloads(false, func(in nftable.Stmt) { r.add(in, goTo("accepted")) })
	l.forWorkloads(true, func(out nftable.Stmt) { r.add(out, goTo("accepted")) })
}

// forwardAgain judges what came out of forward undecided, as the chains beside it do for their hooks.
//
// A packet that is under way while a transaction takes effect walks the rules of before, for the kernel looks once, where it enters a base chain, which are
// in force. Elements of maps it takes as they are when it looks. So it may follow a new element into a new chain, which before was empty, and
// come back as if nobody had anything to say. It is neither let through then nor dropped, but asked again from another base chain, where it
// sees all as it is now. Who comes back undecided once more, after another transaction in that very moment, is dropped.
func (l *Layout) forwardAgain() (r rules) {
	r.add(l.isAccepted(), nftable.Verdict{Kind: nftable.Accept})
	l.judge(&r, goTo(reasonChain(reasonLost)))
	return r
}

// inputAgain also takes back what wl-to-host has left: the mark of packets that the host's own rules are to judge.
func (l *Layout) inputAgain() (r rules) {
	r.add(nftable.Established|nftable.Related, nftable.Verdict{Kind: nftable.Accept})
	r.add(nftable.Family{V6: true}, nftable.Proto{Number: api.ProtoICMPv6}, jump("wl-to-host-nd"))
	l.forWorkloads(false, func(in nftable.Stmt) {
		r.add(in, l.isUndecided(), jump("wl-from-dispatch"))
		r.add(in, l.isUndecided(), goTo(reasonChain(reasonLost)))
		r.add(in, goTo("wl-to-host-end"))
	})
	if l.used[fromHost] {
		r.add(l.isUndecided(), jump(dispatchChain(fromHost)))
	}
	return r
}

func (l *Layout) outputAgain() (r rules) {
	l.forWorkloads(true, func(out nftable.Stmt) { r.add(out, nftable.Verdict{Kind: nftable.Accept}) })
	r.add(l.isUndecided(), jump(dispatchChain(toHost)))
	return r
}

func (l *Layout) isUndecided() nftable.Stmt { return nftable.Mark{Mask: l.settings.accept()} }

func (l *Layout) input() (r rules) {
	l.forWorkloads(false, func(in nftable.Stmt) { r.add(in, goTo("wl-to-host")) })
	for _, s := range l.tunnels(nftable.Local{}) {
		v6 := s[0].(nftable.Family).V6
		l.fromPeers(&r, s, families[index(v6)].vxlanPeers, families[index(v6)].vxlanNets, v6)
	}
	if l.settings.IPIP {
		s := []nftable.Stmt{nftable.Family{}, nftable.Proto{Number: api.ProtoIPIP}, nftable.Local{}}
		l.fromPeers(&r, s, families[0].ipipPeers, families[0].ipipNets, false)
	}
	for _, s := range l.wireGuard(nftable.Local{}) {
		v6 := s[0].(nftable.Family).V6
		r.add(append(s, nftable.AddrIn{V6: v6, Set: families[index(v6)].wgPeers}, goTo("accepted"))...)
	}
	if l.used[fromHost] {
		r.add(l.isAccepted(), nftable.Verdict{Kind: nftable.Accept})
	}
	l.askHosts(&r, fromHost)
	return r
}

// fromPeers accepts packets of a tunnel from its peers, and drops those from others.
func (l *Layout) fromPeers(r *rules, tunnel []nftable.Stmt, hosts, nets string, v6 bool) {
	for _, set := range []string{hosts, nets} {
		r.add(append(slices.Clip(tunnel), nftable.AddrIn{V6: v6, Set: set}, goTo("accepted"))...)
	}
	r.add(append(slices.Clip(tunnel), goTo(reasonChain(reasonPeer)))...)
}

// output asks the endpoints of the host's devices. What the host sends to its workloads no policy judges.
func (l *Layout) output() (r rules) {
	r.add(l.isAccepted(), nftable.Verdict{Kind: nftable.Accept})
	l.forWorkloads(true, func(out nftable.Stmt) { r.add(out, nftable.Verdict{Kind: nftable.Accept}) })
	for _, s := range l.tunnels() {
		v6 := s[0].(nftable.Family).V6
		l.toPeers(&r, s, families[index(v6)].vxlanPeers, families[index(v6)].vxlanNets, v6)
	}
	if l.settings.IPIP {
		s := []nftable.Stmt{nftable.Family{}, nftable.Proto{Number: api.ProtoIPIP}}
		l.toPeers(&r, s, families[0].ipipPeers, families[0].ipipNets, false)
	}
	for _, s := range l.wireGuard() {
		v6 := s[0].(nftable.Family).V6
		r.add(append(s, nftable.AddrIn{Dst: true, V6: v6, Set: families[index(v6)].wgPeers}, goTo("accepted"))...)
	}
	l.askHosts(&r, toHost)
	return r
}

func (l *Layout) toPeers(r *rules, tunnel []nftable.Stmt, hosts, nets string, v6 bool) {
	for _, set := range []string{hosts, nets} {
		r.add(append(slices.Clip(tunnel), nftable.AddrIn{Dst: true, V6: v6, Set: set}, goTo("accepted"))...)
	}
}

func index(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// accepted accepts for good: others' chains that drop by default see the mark.
func (l *Layout) accepted() (r rules) {
	r.add(nftable.SetMark{Set: l.settings.accepting()}, nftable.Verdict{Kind: nftable.Accept})
	return r
}

// spoof drops what a workload sends from addresses that are not its own. It comes before connection tracking, for such packets are to
// leave nothing behind. So does what it sends to the host's loopback addresses: devices of workloads take it (route_localnet), for what the host's own rules
// lead there, which comes later.
func (l *Layout) spoof() (r rules) {
	leave := nftable.Verdict{Kind: nftable.Return}
	r.add(nftable.Addr{Dst: true, Prefix: netip.MustParsePrefix("127.0.0.0/8")}, goTo(reasonChain(reasonToHost)))
	for _, f := range families {
		r.add(nftable.IfaceAddrIn{V6: f.v6, Set: f.spoof}, leave)
	}
	r.add(nftable.Addr{Prefix: netip.MustParsePrefix("fe80::/10")}, leave)
	// Duplicate address detection has no address yet (RFC 4862 section 5.4.2).
	r.add(nftable.Addr{Prefix: netip.MustParsePrefix("::/128")}, nftable.Proto{Number: api.ProtoICMPv6}, leave)
	if l.settings.Spoofing {
		l.spoofed(&r, leave)
	}
	r.add(goTo(reasonChain(reasonSpoof)))
	return r
}

func (l *Layout) spoofed(r *rules, leave nftable.Stmt) {
	for _, iface := range slices.Sorted(maps.Keys(l.spoofable)) {
		for _, p := range l.spoofable[iface] {
			r.add(nftable.Iface{Name: iface}, nftable.Addr{Prefix: p}, leave)
		}
	}
}

// toHost judges what workloads send to their host by their own policy. What the setting says of the rest is left to input-again. No workload is its host's
// router, nor tells it of better ones (router advertisements and redirects, RFC 4861), whatever anybody says: a host that has no IPv6 of its own believes them.
func (l *Layout) toHost() (r rules) {
	for _, typ := range []uint8{134, 137} {
		r.add(nftable.Family{V6: true}, nftable.Proto{Number: api.ProtoICMPv6}, nftable.ICMP{V6: true, Type: typ}, goTo(reasonChain(reasonToHost)))
	}
	r.add(nftable.Family{V6: true}, nftable.Proto{Number: api.ProtoICMPv6}, jump("wl-to-host-nd"))
	r.add(jump("wl-from-dispatch"))
	return r
}

// toHostEnd does to packets from workloads to their host, which their own policy has let through, what the setting says.
func (l *Layout) toHostEnd() (r rules) {
	l.countConnections(&r, countFrom)
	switch l.settings.ToHost {
	case AcceptToHost:
		r.add(goTo("accepted"))
	case ReturnToHost:
		r.add(l.clear()) // or iptables would take the workload's own policy for the last word
	default:
		r.add(goTo(reasonChain(reasonToHost)))
	}
	return r
}

// neighbourDiscovery lets workloads find their gateway whatever their policy is: multicast listeners, router solicitations, neighbour
// solicitations and advertisements (RFC 2710, RFC 4861).
func neighbourDiscovery() (r rules) {
	for _, typ := range []uint8{130, 131, 132, 133, 135, 136} {
		r.add(nftable.Proto{Number: api.ProtoICMPv6}, nftable.ICMP{V6: true, Type: typ}, goTo("accepted"))
	}
	return r
}

func (l *Layout) fromWorkload() (r rules) {
	l.askRates(&r, ratesFrom)
	l.begin(&r)
	if !l.settings.WorkloadVXLAN {
		r.add(nftable.Proto{Number: api.ProtoUDP}, l.vxlanPort(), goTo(reasonChain(reasonTunnel)))
	}
	if !l.settings.WorkloadIPIP {
		r.add(nftable.Proto{Number: api.ProtoIPIP}, goTo(reasonChain(reasonTunnel)))
	}
	r.add(nftable.Dispatch{Map: "wl-from"})
	r.add(goTo(reasonChain(reasonUnknown)))
	return r
}

func (l *Layout) toWorkload() (r rules) {
	l.askRates(&r, ratesTo)
	l.begin(&r)
	r.add(nftable.Dispatch{Out: true, Map: "wl-to"})
	r.add(goTo(reasonChain(reasonUnknown)))
	return r
}

// begin lets flows that are known go on, and forgets marks: what accepted the packet so far did so for another endpoint.
func (l *Layout) begin(r *rules) {
	r.add(nftable.Established|nftable.Related, goTo("accepted"))
	l.dropInvalid(r)
	if l.settings.MidStream {
		r.add(nftable.MidStream{}, goTo(reasonChain(reasonMidStream)))
	}
	r.add(l.clear())
}

// forWorkloads does something for the interfaces of each prefix.
func (l *Layout) forWorkloads(out bool, do func(nftable.Stmt)) {
	for _, p := range l.settings.Prefixes {
		do(nftable.Iface{Out: out, Name: p + "*"})
	}
}

func dispatchChain(p place) string { return hostPlaces[p].dispatch + "-dispatch" }

// askHosts adds the question to hosts' endpoints at a place, if there is one to ask.
func (l *Layout) askHosts(r *rules, p place) {
	if l.used[p] {
		r.add(jump(dispatchChain(p)))
	}
}

// hostChains puts the chains by which hosts' endpoints are asked, at those places where there are any.
func (l *Layout) hostChains(put func(string, nftable.Base, rules)) {
	leave := nftable.Verdict{Kind: nftable.Return}
	for p := range places {
		if !l.used[p] {
			continue
		}
		at := hostPlaces[p]
		var r rules
		r.add(nftable.Dispatch{Out: at.out, Map: at.dispatch})
		if l.every[p] != "" {
			r.add(nftable.Iface{Out: at.out, Name: "lo"}, leave)
			l.forWorkloads(at.out, func(dev nftable.Stmt) { r.add(dev, leave) })
			r.add(goTo(l.every[p]))
			put(noList, nftable.Base{}, nil)
		}
		put(dispatchChain(p), nftable.Base{}, r)
	}
	in, out := l.settings.FailsafeIn, l.settings.FailsafeOut
	if l.used[fromHost] {
		put("failsafe-in", nftable.Base{}, failsafe(in, "failsafe-in", failsafeWay{}, goTo("accepted")))
	}
	if l.used[toHost] {
		put("failsafe-out", nftable.Base{}, failsafe(out, "failsafe-out", failsafeWay{out: true}, goTo("accepted")))
	}
	accept := nftable.Verdict{Kind: nftable.Accept} // of this base chain, without the mark: what is open is still tracked
	if l.used[fromDNAT] {
		put("failsafe-dnat", nftable.Base{}, failsafe(in, "failsafe-in", failsafeWay{}, accept))
	}
	if l.used[fromRaw] {
		put("failsafe-raw-in", nftable.Base{}, append(failsafe(in, "failsafe-in", failsafeWay{}, accept),
			failsafe(out, "failsafe-out", failsafeWay{reply: true}, accept)...))
	}
	if l.used[toRaw] {
		put("failsafe-raw-out", nftable.Base{}, append(failsafe(out, "failsafe-out", failsafeWay{out: true}, accept),
			failsafe(in, "failsafe-in", failsafeWay{out: true, reply: true}, accept)...))
	}
}

// failsafeWay says which packets of a failsafe port are meant: those that leave the host, and answers, which before connection tracking nothing
// else tells from other packets.
type failsafeWay struct{ out, reply bool }

func failsafe(ports []Failsafe, set string, way failsafeWay, then nftable.Stmt) (r rules) {
	r.add(nftable.ProtoPortIn{Dst: !way.reply, Set: set}, then)
	for _, f := range ports {
		if f.Net.IsValid() {
			r.add(nftable.Addr{Dst: way.out, Prefix: f.Net.Masked()}, nftable.Proto{Number: f.Protocol},
				nftable.Port{Dst: !way.reply, First: f.Port, Last: f.Port}, then)
		}
	}
	return r
}
