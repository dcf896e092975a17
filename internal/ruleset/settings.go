package ruleset

import (
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// Settings are what the table depends on besides policy.
type Settings struct {
	Prefixes []string // names of workloads' interfaces begin with one of them
	MarkMask uint32   // bits of packet marks that are ours, see Marks
	// AlsoAccept are bits that accepted packets bear beside that of MarkMask. While MarkMask changes, iptables heeds the old one or the new one:
	// this table goes by the old one and sets both, until iptables has been told.
	AlsoAccept uint32
	ToHost     ToHost // what becomes of packets from workloads to their host that policy lets through

	Reject bool // denied packets are answered, instead of dropped without a word
	// MidStream drops TCP packets of connections that are not tracked (any more) and that do not begin one: or whoever is denied his
	// connection, and has it deleted from the kernel's table, would see it go on as one that the other side has begun.
	MidStream   bool
	KeepInvalid bool // packets that connection tracking finds invalid are not dropped

	VXLAN, VXLAN6, IPIP bool           // the host takes such packets, from peers alone
	VXLANPort           uint16         // of the host's tunnel, and of packets that workloads may not send
	VXLANPeers          []netip.Prefix // of both families
	IPIPPeers           []netip.Prefix
	ProbePort           uint16         // UDP, by which nodes test the paths between them; 0: they do not
	ProbePeers          []netip.Prefix // the addresses that other nodes do so from, of both families

	// The UDP ports of the host's WireGuard devices, 0 if there is none, and the other nodes, whose packets get there whatever policy says. From
	// others they may come too: the device takes nothing that is not encrypted for it.
	WireGuardPort, WireGuardPort6 uint16
	WireGuardPeers                []netip.Prefix

	WorkloadVXLAN bool // workloads may send VXLAN packets
	WorkloadIPIP  bool // workloads may send IP in IP
	Spoofing      bool // workloads may send from what their endpoints name as Spoofable

	// PodConnections is how many connections a workload may have that it has begun, unless its own limit says otherwise; 0: any number. More than
	// some thousands are not counted exactly, see parts.
	PodConnections uint32
	Uncounted      bool           // the kernel cannot count connections, so no limit of them is enforced
	Pools          []netip.Prefix // the cluster's own addresses: what goes elsewhere bears the DSCP of the workload that sends it

	// Failsafe are the ports by which hosts with endpoints of their own stay reachable, and reach others, whatever policy says.
	FailsafeIn, FailsafeOut []Failsafe

	LogGroup  uint16        // of nflog: who listens there hears of each denied and logged packet
	LogRate   uint32        // at most so many a second for each rule; 0: no limit
	LogAction nftable.Limit // of what Log rules tell of, for each rule; zero: LogRate
	Syslog    bool          // packets that a Log rule matches are written to the kernel's log too; not every kernel can (try Syslog in a table of its own)
	LogPrefix string        // in front of these lines
}

// Failsafe is a port that stays open on hosts' endpoints.
type Failsafe struct {
	Protocol uint8 // IANA number
	Port     uint16
	Net      netip.Prefix // zero: from and to everywhere
}

// ToHost is what becomes of packets from workloads to their host: DefaultEndpointToHostAction.
type ToHost uint8

// The zero value drops.
const (
	DropToHost   ToHost = iota
	ReturnToHost        // the host's own rules judge them
	AcceptToHost
)

// Marks returns the bits of a packet's mark that say that policy has accepted it, and passed it on: the two lowest of the mask.
// iptables has to accept in FORWARD and INPUT what bears the first, for an accept of ours binds nobody else.
func Marks(mask uint32) (accept, pass uint32) {
	accept = 1 << bits.TrailingZeros32(mask)
	return accept, 1 << bits.TrailingZeros32(mask&^accept)
}

// WireGuardMark returns the bit that is on WireGuard's own packets, on those that come in too: the highest of the mask.
func WireGuardMark(mask uint32) uint32 { return 1 << (31 - bits.LeadingZeros32(mask)) }

// rendering is what all rules depend on.
func (s Settings) rendering() string {
	return fmt.Sprint(s.MarkMask, s.AlsoAccept, s.LogGroup, s.LogRate, s.LogAction, s.Syslog, s.Reject, s.KeepInvalid, s.LogPrefix)
}

// logging is how often a Log rule may tell of packets.
func (s Settings) logging() nftable.Limit {
	if s.LogAction.Rate > 0 {
		return s.LogAction
	}
	return nftable.Limit{Rate: s.LogRate, Burst: s.LogRate}
}

// accept is the bit by which this table knows what has been accepted.
func (s Settings) accept() uint32 {
	accept, _ := Marks(s.MarkMask)
	return accept
}

// accepting are the bits that are set on what is accepted.
func (s Settings) accepting() uint32 { return s.accept() | s.AlsoAccept }

func (s Settings) pass() uint32 {
	_, pass := Marks(s.MarkMask &^ s.AlsoAccept)
	return pass
}
