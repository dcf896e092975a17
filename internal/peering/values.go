package peering

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Speaker is the whole configuration of a node's BGP speaker. Two equal Speakers ask for the same sessions.
type Speaker struct {
	AS       api.ASN
	RouterID netip.Addr   // IPv4 in form (RFC 6286); zero if the node has no address yet: then there are no sessions
	Port     uint16       // to listen on, TCP
	Listen   []netip.Addr // none: all addresses
	Log      string       // the least severity that is logged: Trace, Debug, Info, Warning, Error or Fatal; "": Info
	Sessions []Session    // sorted by Peer, each Peer once
}

// Kind says what asked for a session.
type Kind string

// The kinds of sessions, as `node status` shows them.
const (
	Mesh     Kind = "node-to-node mesh"
	ForNode  Kind = "node specific"
	Global   Kind = "global"
	Workload Kind = "local workload"
)

// Session is one BGP session.
type Session struct {
	Name       string // Mesh_10_0_0_2
	Kind       Kind
	Peer       netip.Addr // with a zone if link-local
	Port       uint16     // to dial, TCP
	PeerAS     api.ASN
	LocalAS    api.ASN
	Source     netip.Addr // of our end; zero: the kernel's choice
	Passive    bool       // wait for the peer to dial
	Password   string     // TCP MD5 (RFC 2385); "": none
	ClusterID  netip.Addr // zero unless the peer is our route reflector client (RFC 4456)
	Restart    time.Duration
	Keepalive  time.Duration // 0: a third of the hold time
	AllowOwnAS uint8         // how often our AS may stand in a received path
	TTLHops    uint8         // 0: no TTL security (RFC 5082), and any number of hops
	Hop6       netip.Addr    // zero: routes of Peer's family alone; else IPv6 routes too, if the peer takes them, of which this is our next hop
	Import     []Term        // for received routes, then accepted
	Export     []Term        // for routes to be sent; the last one decides what no other has decided
}

// Internal tells iBGP from eBGP.
func (s Session) Internal() bool { return s.LocalAS == s.PeerAS }

// Verdict is what a Term decides.
type Verdict string

// The verdicts. Next leaves the decision to the terms that follow.
const (
	Next   Verdict = "next"
	Accept Verdict = "accept"
	Reject Verdict = "reject"
)

// Term is one step of a filter: routes that match are changed, and maybe decided on.
type Term struct {
	Match   Match
	Actions []Action
	Verdict Verdict
}

// Match holds for routes that satisfy all of its fields. The zero Match holds for every route.
type Match struct {
	Family    Family        // "": any
	Prefixes  []PrefixRange // nil: any; otherwise one of them
	Not       bool          // none of Prefixes instead, of the same family
	Learned   bool          // from a peer, not our own
	Own       bool          // our own, not from a peer
	Community string        // aa:nn or aa:nn:mm; "": any
	ASPath    []api.ASN     // the path begins with these
	LocalPref *uint32       // nil: any
}

// Family is the family of a route.
type Family string

// The families. They are told apart only where a session carries both.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// PrefixRange holds the prefixes within Net that are Min to Max bits long.
type PrefixRange struct {
	Net      netip.Prefix
	Min, Max int
}

// Action changes a route: exactly one field is set.
type Action struct {
	AddCommunity string    // aa:nn or aa:nn:mm
	Prepend      []api.ASN // in front of the path, in this order
	LocalPref    *uint32
	NextHop      NextHop
	Hop          netip.Addr // the next hop
}

// NextHop says what becomes of the next hop where BGP's own rules shall not decide.
type NextHop string

// The next hops. "" leaves it to BGP.
const (
	NextHopSelf NextHop = "self"
	NextHopKeep NextHop = "keep"
)

// Route is a route that this node originates. Its next hop is the node.
type Route struct {
	Prefix    netip.Prefix
	LocalPref uint32
	Dev       string // that it leads to; "" for a block
}

// Path is a route as a peer sent it and as the import filter left it.
type Path struct {
	Prefix    netip.Prefix
	NextHop   netip.Addr
	Peer      netip.Addr
	LocalPref uint32 // 100 where the peer gave none
	Stale     bool   // the peer is away; it may come back and mean this still (RFC 4724)
}

// String is the range as BIRD writes it.
func (r PrefixRange) String() string {
	switch bits := r.Net.Bits(); {
	case r.Min == bits && r.Max == bits:
		return r.Net.String()
	case r.Min == bits && r.Max == r.Net.Addr().BitLen():
		return r.Net.String() + "+"
	default:
		return fmt.Sprintf("%v{%d,%d}", r.Net, r.Min, r.Max)
	}
}

// String is the term on one line: equal terms have equal strings.
func (t Term) String() string {
	var b strings.Builder
	m := t.Match
	if m.Family != "" {
		b.WriteString(string(m.Family) + " ")
	}
	if m.Prefixes != nil {
		op := "in"
		if m.Not {
			op = "not in"
		}
		fmt.Fprintf(&b, "%s %v ", op, m.Prefixes)
	}
	if m.Learned {
		b.WriteString("learned ")
	}
	if m.Own {
		b.WriteString("own ")
	}
	if m.Community != "" {
		fmt.Fprintf(&b, "community %s ", m.Community)
	}
	if len(m.ASPath) > 0 {
		fmt.Fprintf(&b, "as-path %v.. ", m.ASPath)
	}
	if m.LocalPref != nil {
		fmt.Fprintf(&b, "local-pref %d ", *m.LocalPref)
	}
	b.WriteString("->")
	for _, a := range t.Actions {
		b.WriteString(" " + a.String())
	}
	if t.Verdict != Next {
		b.WriteString(" " + string(t.Verdict))
	}
	return b.String()
}

// String is the action as Term.String holds it.
func (a Action) String() string {
	switch {
	case a.AddCommunity != "":
		return "add " + a.AddCommunity
	case a.LocalPref != nil:
		return fmt.Sprintf("local-pref=%d", *a.LocalPref)
	case a.NextHop != "":
		return "next-hop=" + string(a.NextHop)
	case a.Hop.IsValid():
		return "next-hop=" + a.Hop.String()
	default:
		return fmt.Sprintf("prepend %v", a.Prepend)
	}
}
