package ruleset

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// What limits workloads' traffic. A node without limits has none of these chains, and a workload without limits costs those that have some nothing but a
// lookup in a map.
//
//   - Rates (re-, ri-) are asked first of all, of every packet, those of known flows too. What goes beyond is dropped.
//   - Connections (ce-, ci-) are counted last: of a packet that begins one, once nobody else has anything against it. So what is denied
//     takes no other connection's place. Only the first packet counts: there are kernels that take a connection into account once more with each packet
//     that comes before an answer. Those of workloads without a limit of their own are counted too if a setting says so. The kernel takes a connection into account
//     even where it is refused then, and forgets it when it next goes through the account. So that a workload which goes on trying costs little, it is refused
//     for a moment without being counted (wl-shunned), unless accounts are small anyway.
//   - What leaves the cluster is marked (dscp-) in forward, so that the host's own services see what was sent.
//
// A limit's account is a rule's: each workload has chains of its own, named after what they say, and a change of one limit leaves the others' accounts alone. The
// account of a new limit begins with nothing: connections that exist go on and do not count.

// limitPlace is where limits are asked.
type limitPlace uint8

const (
	ratesFrom limitPlace = iota // what a workload sends
	ratesTo                     // what it gets
	countFrom
	countTo
	marking
	limitPlaces
)

// limitKind says of a place which map it dispatches by, how the chains of workloads are named there, and what is in them.
type limitKind struct {
	dispatch, prefix string
	out              bool // by the device that packets leave by
	rules            func(policy.Limits) rules
	shared           bool // keeps no account, so that workloads may share it
}

var limitKinds = [limitPlaces]limitKind{
	ratesFrom: {"wl-rates-from", "re-", false, func(l policy.Limits) rules { return rated(l.Egress) }, false},
	ratesTo:   {"wl-rates-to", "ri-", true, func(l policy.Limits) rules { return rated(l.Ingress) }, false},
	countFrom: {"wl-count-from", "ce-", false, func(l policy.Limits) rules { return counted(l.Egress, countFrom) }, false},
	countTo:   {"wl-count-to", "ci-", true, func(l policy.Limits) rules { return counted(l.Ingress, countTo) }, false},
	marking:   {"wl-dscp", "dscp-", false, marked, true},
}

// Names of what belongs to the counting of connections, for those that workloads begin and those that they get.
var (
	shunned = [limitPlaces]string{countFrom: "wl-shunned-from", countTo: "wl-shunned-to"}
	crowded = [limitPlaces]string{countFrom: "wl-crowded-from", countTo: "wl-crowded-to"}
	crowds  = [limitPlaces]string{countFrom: "wl-crowd-from", countTo: "wl-crowd-to"}
)

const (
	shunMillis = 100 // how long a workload is refused new connections without a look at how many it has
	// How much the sets hold at a time, of all workloads: devices that are shunned, and parts of accounts. The kernel sets memory aside for as many, 16 bytes each. A
	// connection for which there is no room is not limited.
	shunDevices = 1 << 12
	crowdParts  = 1 << 17

	// See parts. Measured on Linux 6.18 with datagrams that each begin a connection, at 2 us each without a limit. In one account, each of the first 10,000 connections
	// costs 20 us, each of the second 240 us, each of the fourth 770 us. In 625 parts, each of the first 10,000 costs 8 us, and each of the eighth 120 us. To be
	// refused while shunned costs 5 us. By this table, a workload's first 20,000 connections cost 4.4 us each without a limit, and 6 us by one of 196,608.
	exactLimit   = 4096
	crowdInAPart = 64
	mostParts    = 1 << 14 // each takes some hundred bytes of the kernel's memory
)

func limitChain(p limitPlace) string { return limitKinds[p].dispatch + "-dispatch" }

// limit notes what the workload of an interface is limited to.
func (l *Layout) limit(iface string, to policy.Limits) {
	if l.limited[iface] == to {
		return
	}
	l.limits, l.static = true, true
	l.limited[iface] = to
	if to == (policy.Limits{}) {
		delete(l.limited, iface)
	}
}

// putLimits writes the maps and chains of limits. Workloads that have some are few, so all of it.
func (l *Layout) putLimits() {
	chains := map[string]*nftable.Chain{}
	for p := range limitPlaces {
		at := limitKinds[p]
		var elems []nftable.Elem
		for iface, to := range l.limited {
			r := at.rules(to)
			if l.settings.Uncounted && (p == countFrom || p == countTo) || len(r) == 0 {
				continue
			}
			c := at.chain(iface, r)
			chains[c.Name] = c
			elems = append(elems, nftable.Elem{Key: nftable.IfaceKey(iface), To: c.Name})
		}
		l.asked[p] = len(elems) > 0
		l.putOrDrop(l.asked[p], nftable.NewMap(at.dispatch, nftable.Ifaces, elems...))
	}
	l.replace(l.limitChains, chains)
	l.limitChains = chains
	l.putLimitSets()
}

// chain returns the chain of a workload's rules. Its name covers them, and whose they are unless that does not matter.
func (k limitKind) chain(iface string, r rules) *nftable.Chain {
	var parts []string
	if !k.shared {
		parts = append(parts, iface)
	}
	for _, rule := range r {
		parts = append(parts, rule.Mark())
	}
	return nftable.NewChain(k.prefix+nftable.Hash(parts...), nftable.Base{}, r...)
}

// putLimitSets writes the sets and counters that limits need, as far as there are such limits.
func (l *Layout) putLimitSets() {
	for _, p := range []limitPlace{countFrom, countTo} {
		l.putOrDrop(l.counts(p), nftable.NewDynamic(shunned[p], nftable.Ifaces, shunDevices, true))
	}
	l.putCrowds()
	for _, f := range families {
		var pools []netip.Prefix
		for _, p := range l.settings.Pools {
			if p.Addr().Is6() == f.v6 {
				pools = append(pools, p)
			}
		}
		l.putOrDrop(l.asked[marking], nftable.NewIntervals(f.cluster, f.addr, nftable.Ranges(pools)...))
	}
	for _, reason := range []string{reasonCrowd, reasonRate} {
		if slices.Contains(l.limitReasons(), reason) {
			l.ed.PutCounter("r-" + reason)
		} else {
			l.ed.DropCounter("r-" + reason)
		}
	}
}

// putCrowds writes the sets in which workloads' connections are counted, one for each limit that has to do without a rule of its own.
func (l *Layout) putCrowds() {
	needed := map[string]bool{}
	need := func(p limitPlace, limit uint32) {
		if limit > 0 && l.counts(p) {
			needed[crowdOf(p, limit).Set] = true
		}
	}
	need(countFrom, l.settings.PodConnections)
	for _, to := range l.limited {
		for p, limit := range map[limitPlace]uint32{countFrom: to.Egress.Connections, countTo: to.Ingress.Connections} {
			if limit > exactLimit {
				need(p, limit)
			}
		}
	}
	for name := range l.crowds {
		if !needed[name] {
			l.ed.DropSet(name)
		}
	}
	for name := range needed {
		l.ed.PutSet(nftable.NewDynamic(name, nftable.IfaceParts, crowdParts, false))
	}
	l.crowds = needed
}

func (l *Layout) putOrDrop(needed bool, s *nftable.Set) {
	switch {
	case needed:
		l.ed.PutSet(s)
	case l.ed.Table().Sets[s.Name] != nil:
		l.ed.DropSet(s.Name)
	}
}

// limitReasons are the reasons for which packets are dropped that go beyond a limit, where there are limits.
func (l *Layout) limitReasons() (out []string) {
	if l.counts(countFrom) || l.counts(countTo) {
		out = append(out, reasonCrowd)
	}
	if l.asked[ratesFrom] || l.asked[ratesTo] {
		out = append(out, reasonRate)
	}
	return out
}

// counts tells whether connections are counted at a place.
func (l *Layout) counts(p limitPlace) bool {
	return l.asked[p] && (p == countFrom || p == countTo) || p == countFrom && l.countsAll()
}

// countsAll tells whether those of workloads without a limit of their own are.
func (l *Layout) countsAll() bool { return l.settings.PodConnections > 0 && !l.settings.Uncounted }

// Unmet tells whether there are limits of connections that the kernel cannot enforce.
func (l *Layout) Unmet() bool {
	if !l.settings.Uncounted {
		return false
	}
	for _, to := range l.limited {
		if to.Ingress.Connections+to.Egress.Connections > 0 {
			return true
		}
	}
	return l.settings.PodConnections > 0
}

// parts divides a limit for one workload. The kernel goes through a whole account when a connection is added, so large accounts are divided, and a new connection
// costs the same however many there are. Connections are dealt out by chance: of the new ones of a workload that has three quarters of its limit one in fifty is
// refused, at two thirds one in five hundred, and more than the limit it never has.
func parts(limit uint32) (number, each uint32) {
	if limit <= exactLimit {
		return 1, limit
	}
	number = min(limit/crowdInAPart, mostParts)
	return number, limit / number
}

// crowdOf counts each workload by itself. What is in the set goes by the limit of when it came in, so the set's name covers the limit.
func crowdOf(p limitPlace, limit uint32) nftable.CrowdOf {
	number, each := parts(limit)
	return nftable.CrowdOf{Out: p == countTo, Set: fmt.Sprintf("%s-%dx%d", crowds[p], number, each), Parts: number, Limit: each}
}

// putLimitDispatch puts the chains by which limits are asked.
func (l *Layout) putLimitDispatch(put func(string, nftable.Base, rules)) {
	for p := range limitPlaces {
		at := limitKinds[p]
		if !l.asked[p] && !l.counts(p) {
			continue
		}
		var r rules
		if l.counts(p) {
			r.add(nftable.IfaceIn{Out: at.out, Set: shunned[p]}, goTo(reasonChain(reasonCrowd)))
			put(crowded[p], nftable.Base{}, tooMany(at.out, shunned[p]))
		}
		if l.asked[p] {
			r.add(nftable.Dispatch{Out: at.out, Map: at.dispatch})
		}
		if p == countFrom && l.countsAll() {
			r.add(counting(p, l.settings.PodConnections)...)
		}
		put(limitChain(p), nftable.Base{}, r)
	}
	for _, reason := range l.limitReasons() {
		put(reasonChain(reason), nftable.Base{}, l.refusing(reason))
	}
}

// tooMany refuses a connection, and more of the same workload's for a moment. If it cannot be written down, this one is refused all the same.
func tooMany(out bool, shunned string) (r rules) {
	r.add(nftable.Remember{Out: out, Set: shunned, Millis: shunMillis})
	r.add(goTo(reasonChain(reasonCrowd)))
	return r
}

// refusing drops for a reason, and tells who wants to connect by TCP: he is not to wait for what will not come.
func (l *Layout) refusing(reason string) rules {
	drop := nftable.Verdict{Kind: nftable.Drop}
	r := rules(l.denying("S:"+reason, "r-"+reason, drop))
	if reason != reasonCrowd {
		return r
	}
	answer := nftable.Rule{Stmts: []nftable.Stmt{nftable.Proto{Number: api.ProtoTCP}, nftable.Count{Name: "r-" + reason}, nftable.Reset{}}}
	return slices.Insert(r, len(r)-1, answer)
}

func rated(l policy.Limit) (r rules) {
	for _, rate := range []struct {
		policy.Rate
		bytes bool
	}{{l.Packets, false}, {l.Bytes, true}, {l.Peak, true}} {
		if rate.PerSecond > 0 {
			r.add(nftable.Above{Rate: rate.PerSecond, Burst: rate.Burst, Bytes: rate.bytes}, goTo(reasonChain(reasonRate)))
		}
	}
	return r
}

func counted(l policy.Limit, p limitPlace) (r rules) {
	switch {
	case l.Connections > exactLimit:
		r.add(counting(p, l.Connections)...)
	case l.Connections > 0:
		r.add(nftable.Crowd{Limit: l.Connections}, goTo(crowded[p]))
	}
	return r
}

// counting counts in a set. What is too much for a small part is found out quickly, so nobody is shunned for it: the other parts have room.
func counting(p limitPlace, limit uint32) []nftable.Stmt {
	crowd := crowdOf(p, limit)
	if crowd.Parts > 1 {
		return []nftable.Stmt{crowd, goTo(reasonChain(reasonCrowd))}
	}
	return []nftable.Stmt{crowd, goTo(crowded[p])}
}

func marked(l policy.Limits) (r rules) {
	if !l.Marked {
		return nil
	}
	for _, f := range families {
		r.add(nftable.AddrIn{Dst: true, V6: f.v6, Set: f.cluster, Not: true}, nftable.SetDSCP{V6: f.v6, Value: l.DSCP})
	}
	return r
}

// askRates has the rates of workloads asked, where some have any.
func (l *Layout) askRates(r *rules, p limitPlace) {
	if l.asked[p] {
		r.add(jump(limitChain(p)))
	}
}

// countConnections counts the packet's connection, if it begins one and there are limits of them.
func (l *Layout) countConnections(r *rules, p limitPlace, more ...nftable.Stmt) {
	if l.counts(p) {
		r.add(append(more, nftable.First{}, jump(limitChain(p)))...)
	}
}
