package nftable

import "net/netip"

// Stmt is a statement of a rule: a condition, which a packet meets or not, or an action. The types below are all there are.
//
// A condition on an address holds for packets of its family alone, as in nft. A condition on ports presumes that a Proto before
// it has made sure that there are ports.
type Stmt interface{ appendText(b []byte) []byte }

// Iface holds for packets that came in by an interface, or go out by it. A name that ends in * means all that begin so.
type Iface struct {
	Out  bool
	Name string
}

// Family holds for packets of IPv6, or of IPv4.
type Family struct{ V6 bool }

// Proto holds for packets of a protocol.
type Proto struct {
	Number uint8
	Not    bool
}

// Addr holds for packets from a prefix, or to it.
type Addr struct {
	Dst    bool
	Prefix netip.Prefix
	Not    bool
}

// AddrIn holds for packets whose source or destination is in a set of type Addr4 or Addr6.
type AddrIn struct {
	Dst bool
	V6  bool
	Set string
	Not bool
}

// Port holds for packets from a range of ports, or to it; both ends belong to it.
type Port struct {
	Dst         bool
	First, Last uint16
	Not         bool
}

// PortIn holds for packets whose port is in a set of type Ports.
type PortIn struct {
	Dst bool
	Set string
	Not bool
}

// AddrPortIn holds for packets whose address, protocol and port are in a set of type AddrPort4 or AddrPort6.
type AddrPortIn struct {
	Dst bool
	V6  bool
	Set string
	Not bool
}

// IfaceAddrIn holds for packets whose interface of arrival and source are in a set of type IfaceAddr4 or IfaceAddr6.
type IfaceAddrIn struct {
	V6  bool
	Set string
}

// ProtoPortIn holds for packets whose protocol and port are in a set of type ProtoPorts.
type ProtoPortIn struct {
	Dst bool
	Set string
}

// ICMP holds for messages of a type, or of a type and a code. It presumes a Proto, as ports do.
type ICMP struct {
	V6      bool
	Type    uint8
	Code    uint8
	HasCode bool
	Not     bool
}

// Mark holds for packets whose mark has a value in the bits of a mask.
type Mark struct {
	Mask, Value uint32
	Not         bool
}

// State holds for packets whose flow is in one of these states.
type State uint32

// States of flows, NF_CT_STATE_*_BIT of linux/netfilter/nf_tables.h.
const (
	Invalid     State = 1
	Established State = 2
	Related     State = 4
	Untracked   State = 64
)

// Local holds for packets to an address of this host.
type Local struct{}

// Limit holds for so many packets in each unit of time, and after a pause for as many more as Burst says.
type Limit struct {
	Rate, Burst uint32
	Unit        LimitUnit // 0: Second
}

// LimitUnit is a unit of time, in seconds.
type LimitUnit uint32

// The units.
const (
	Second LimitUnit = 1
	Minute LimitUnit = 60
	Hour   LimitUnit = 60 * Minute
	Day    LimitUnit = 24 * Hour
)

// Seconds is the unit's length.
func (u LimitUnit) Seconds() uint32 { return max(1, uint32(u)) }

// String is the unit as nft calls it.
func (u LimitUnit) String() string {
	switch u {
	case Minute:
		return "minute"
	case Hour:
		return "hour"
	case Day:
		return "day"
	}
	return "second"
}

// SetMark clears bits of the packet's mark, then sets others.
type SetMark struct{ Clear, Set uint32 }

// Log sends the packet's first bytes to a group of listeners, with a prefix (at most 127 bytes count).
type Log struct {
	Prefix  string
	Group   uint16
	Snaplen uint32 // bytes
}

// Syslog writes a line about the packet to the kernel's log.
type Syslog struct {
	Prefix string
	Level  uint32 // as syslog(3) numbers them
}

// Count adds the packet to a counter: one with a name, which outlives the rule, or the rule's own.
type Count struct{ Name string }

// MidStream holds for packets of TCP that do not ask for a connection (no SYN), while none is tracked that they belong to.
type MidStream struct{}

// NoTrack keeps the packet out of connection tracking.
type NoTrack struct{}

// Reject answers with "administratively prohibited" and drops the packet.
type Reject struct{}

// Dispatch sends the packet to the chain that a map of type Ifaces has for its interface, if it has one.
type Dispatch struct {
	Out bool
	Map string
}

// Verdict says what becomes of the packet.
type Verdict struct {
	Kind  VerdictKind
	Chain string // for Jump and Goto
}

// VerdictKind is a kind of verdict.
type VerdictKind uint8

// The kinds of verdict.
const (
	Accept VerdictKind = iota // leaves our base chain; others' still judge the packet
	Drop                      // final
	Return                    // goes on behind the jump
	Jump                      // goes to a chain, and comes back
	Goto                      // goes to a chain, and comes back where this one would
)

// MaxPrefix is how many bytes of a log's prefix count: the kernel refuses longer ones.
const MaxPrefix = 127
