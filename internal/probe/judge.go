package probe

import (
	"fmt"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Outcome is what came of a question.
type Outcome uint8

// The outcomes.
const (
	NotAsked Outcome = iota
	Answered
	NoAnswer
	Refused // the peer's kernel says that nobody listens there: the path is well, and no agent answers
)

// Answers are what came of a test.
type Answers struct {
	Plain     Outcome // of a small packet with its checksum
	Offloaded Outcome // of one whose checksum is left to the device
	Largest   int     // bytes of the largest packet that got through; 0: not asked
	Unable    string  // why nothing could be asked; "": it could
}

// Finding is what a test says of a path.
type Finding struct {
	State   api.PathState
	Fault   api.PathFault // of a bad one
	Largest int           // bytes; 0: not known
	Text    string        // why it is bad and what to do, or why it is unknown
	Absent  bool          // it is unknown since the peer runs no probes, as everybody can see
}

// Unknown is the finding about a path that cannot be tested.
func Unknown(why string) Finding { return Finding{State: api.PathUnknown, Text: why} }

// Absent is the finding about a path to a peer that runs no probes: an older agent, or one of another make.
func Absent() Finding {
	return Finding{State: api.PathUnknown, Text: "the peer runs no probes", Absent: true}
}

// Judge says what the answers mean.
func Judge(t Target, a Answers) Finding {
	switch {
	case a.Unable != "":
		return Unknown(a.Unable)
	case a.Plain == Refused:
		return Unknown("packets get there, and no agent answers probes: it is not running, or runs none")
	case a.Plain != Answered && t.Encrypts:
		return t.bad(api.FaultNoAnswer, 0, fmt.Sprintf("no answer; %s encrypts by WireGuard and %s does not, so that it may refuse to answer: "+
			"set %s alike on both, or MUSLIN_WIREGUARD_PLAINTEXT=true on %[1]s", t.Peer, t.Self, t.encryption()))
	case a.Plain != Answered:
		return t.bad(api.FaultNoAnswer, 0, "no answer; "+t.opening())
	case a.Offloaded == NoAnswer:
		return t.bad(api.FaultChecksum, a.Largest, "packets whose checksum the kernel leaves to the device do not arrive, others do: "+t.withoutOffload())
	case a.Largest > 0 && a.Largest < t.MTU:
		return t.bad(api.FaultMTU, a.Largest, fmt.Sprintf("the largest packet is %d of %d, larger ones are lost: %s", a.Largest, t.MTU, t.smaller(a.Largest)))
	}
	return Finding{State: api.PathOK, Largest: a.Largest}
}

func (t Target) bad(fault api.PathFault, largest int, text string) Finding {
	return Finding{State: api.PathBad, Fault: fault, Largest: largest, Text: text}
}

// encryption is the setting that has nodes encrypt.
func (t Target) encryption() string {
	if t.V6 {
		return "wireguardEnabledV6"
	}
	return "wireguardEnabled"
}

// opening says what has to pass between the nodes.
func (t Target) opening() string {
	what := fmt.Sprintf("UDP %d", t.Port)
	switch t.Kind {
	case api.PathVXLAN:
		what = fmt.Sprintf("UDP %d", t.TunnelPort)
	case api.PathWireGuard:
		what = fmt.Sprintf("UDP %d (WireGuard)", t.TunnelPort)
	case api.PathIPIP:
		what = "IP protocol 4 (IP-in-IP)"
	}
	return fmt.Sprintf("%s does not pass between %v and %v: open it in firewalls between the nodes, unless %s is down", what, t.Local, t.Remote, t.Peer)
}

// smaller says how packets can be made to fit.
func (t Target) smaller(largest int) string {
	raise := fmt.Sprintf("raise the MTU between %v and %v by %d bytes", t.Local, t.Remote, t.MTU-largest)
	if name, variable := t.setting(); name != "" {
		return fmt.Sprintf("%s, or set %s (%s) to %d in FelixConfiguration and make the pods anew", raise, name, variable, largest)
	}
	return fmt.Sprintf("%s, or set the MTU of the nodes' devices to %d and make the pods anew", raise, largest)
}

// setting is what sets the MTU of the tunnel.
func (t Target) setting() (name, variable string) {
	switch {
	case t.Kind == api.PathVXLAN && t.V6:
		return "vxlanMTUV6", "FELIX_VXLANMTUV6"
	case t.Kind == api.PathVXLAN:
		return "vxlanMTU", "FELIX_VXLANMTU"
	case t.Kind == api.PathIPIP:
		return "ipipMTU", "FELIX_IPIPMTU"
	case t.Kind == api.PathWireGuard && t.V6:
		return "wireguardMTUV6", "FELIX_WIREGUARDMTUV6"
	case t.Kind == api.PathWireGuard:
		return "wireguardMTU", "FELIX_WIREGUARDMTU"
	}
	return "", ""
}

func (t Target) withoutOffload() string {
	if t.Device == "" {
		return fmt.Sprintf("the driver of the device with %v sends wrong checksums; run `ethtool -K DEVICE tx off` there, and update the driver", t.Local)
	}
	return fmt.Sprintf("run `ethtool -K %s tx-checksum-ip-generic off` on %s", t.Device, t.Self)
}
