package api

// PathsRoot is the key prefix of what nodes publish about the paths between them and their peers.
const PathsRoot = MuslinRoot + "paths/"

// PathsKey is the etcd key of what a node publishes.
func PathsKey(node string) string { return PathsRoot + node }

// NodePaths is what a node publishes about the paths to its peers. That it is there says that the node's agent answers probes. It holds only
// what is not as it should be: where all is well a node writes it twice, once when it begins to answer and once when it has tried everybody.
type NodePaths struct {
	Tested bool   `json:"tested,omitempty"` // every peer has been tried since the agent first wrote this
	Faults []Path `json:"faults,omitempty"` // that are bad, or unknown though the peer's agent should answer; sorted
	More   int    `json:"more,omitempty"`   // faults that are left out of Faults
}

// PathKind is how packets of pods get from one node to another.
type PathKind string

// The kinds of paths.
const (
	PathVXLAN     PathKind = "vxlan"
	PathIPIP      PathKind = "ipip"
	PathWireGuard PathKind = "wireguard" // encrypted
	PathDirect    PathKind = "direct"    // without encapsulation
)

// PathState says how a path fares.
type PathState string

// The states. Unknown is not a fault: the peer runs no probes, or cannot be tested yet.
const (
	PathOK      PathState = "ok"
	PathBad     PathState = "bad"
	PathUnknown PathState = "unknown"
)

// PathFault says what is wrong with a path that is bad.
type PathFault string

// The faults.
const (
	FaultNoAnswer PathFault = "no-answer" // nothing gets through
	FaultMTU      PathFault = "mtu"       // packets as large as pods send them do not get through
	FaultChecksum PathFault = "checksum"  // packets whose checksums the kernel leaves to the device do not get through
)

// Path is the way of pods' packets from a node to one of its peers, and what probes have found there.
type Path struct {
	Peer    string    `json:"peer"`
	Family  string    `json:"family"` // IPv4 or IPv6
	Kind    PathKind  `json:"kind"`
	State   PathState `json:"state"`
	Fault   PathFault `json:"fault,omitempty"`
	Largest int       `json:"largest,omitempty"` // bytes of the largest packet that got through with DF set; 0: not known
	Wanted  int       `json:"wanted,omitempty"`  // bytes of the packets that pods send
	Text    string    `json:"text,omitempty"`    // why it is bad and what to do, or why it is unknown
}
