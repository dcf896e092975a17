// Package attach defines what the CNI plugin and the agent say to each other over the agent's unix socket, and what the operator's command
// asks there.
//
// The protocol is one JSON document a line, strictly in turns, one connection for each CNI command:
//
//	DEL, STATUS, RANGES:   plugin → Request      agent → Reply; the operator's command asks BGP, REPORT and PATHS so
//	ADD:                plugin → Request      agent → Reply (the addresses; committed to etcd)
//	                    plugin → Linked       agent → Reply (routes and policy of the endpoint are in the kernel)
//	CHECK:              as ADD, but nothing is changed
//	GC:                 plugin → Request      agent → Reply (what is stale); then, on a connection of its own, Free
//
// Between the two halves of an ADD the plugin finishes the veth pair, which it began to make while the agent worked. An agent
// that loses the connection after its first reply does nothing: the runtime calls DEL. Deadlines are the connection's: both ends set one before each turn.
package attach

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/muslin-cni/muslin/internal/members"
)

// Socket is where the agent listens, on every host.
const Socket = "/run/muslin/agent.sock"

// AgentLock is the name of the lock, in Socket's folder, that an agent holds as long as it runs.
const AgentLock = "agent.lock"

// QueueLock is the file on whose flock plugins wait for their turn at the kernel's lock of network devices.
const QueueLock = "/run/muslin/rtnl.lock"

// LockDir holds a lock file for each host interface name; whoever makes or removes that interface holds its flock.
const LockDir = "/run/muslin/attach"

// Version is the protocol's. Both ends refuse another one, naming both.
const Version = 1

// Verb says what is asked for.
type Verb string

// The verbs.
const (
	Add   Verb = "add"   // allocate, write the endpoint, then wait for Linked
	Del   Verb = "del"   // release, delete the endpoint
	Check Verb = "check" // compare with what Add has done, then wait for Linked
	GC    Verb = "gc"    // list what the network has on this node beyond Request.Valid
	Free  Verb = "free"  // free Request.Stale, as GC has listed it

	Status Verb = "status" // may this node be given pods
	Ranges Verb = "ranges" // which ranges Kubernetes has given to the node's pods
	BGP    Verb = "bgp"    // how the BGP sessions are doing: the operator's command asks that
	Report Verb = "report" // how the agent itself is doing: the operator's command asks that too
	Paths  Verb = "paths"  // how the paths to other nodes fare: likewise
)

// Pod identifies the Kubernetes pod; zero when the caller is not Kubernetes.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Members lists the pod's members.
func (p *Pod) Members() []members.Member {
	return []members.Member{{Name: "namespace", Value: &p.Namespace}, {Name: "name", Value: &p.Name}, {Name: "uid", Value: &p.UID}}
}

// Request is the plugin's opening line. It is also what the plugin hands to the executable module, inside its netconf.
type Request struct {
	Version     int    `json:"version"`
	Verb        Verb   `json:"verb"`
	Network     string `json:"network"` // the netconf's name
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`           // inside the pod
	HostIf      string `json:"hostIf,omitempty"` // the host's side
	MAC         string `json:"mac,omitempty"`    // that the plugin proposes for the pod's side
	Netns       string `json:"netns,omitempty"`
	Pod         Pod    `json:"pod,omitzero"`

	AssignIPv4  bool     `json:"assignIPv4,omitempty"`
	AssignIPv6  bool     `json:"assignIPv6,omitempty"`
	IPv4Pools   []string `json:"ipv4Pools,omitempty"` // names or CIDRs, from the netconf
	IPv6Pools   []string `json:"ipv6Pools,omitempty"`
	PolicyType  string   `json:"policyType,omitempty"` // "" or "k8s"
	Labels      Strings  `json:"labels,omitempty"`     // from the netconf's args.cni.labels
	Annotations Strings  `json:"annotations,omitempty"`

	Addrs          []netip.Addr `json:"addrs,omitempty"`          // addresses that are the pod's already (foreign IPAM, ipAddrsNoIpam): none is allocated
	ForeignIPAM    string       `json:"foreignIPAM,omitempty"`    // the module that Addrs come from; "": addresses are ours to allocate
	Wanted         []netip.Addr `json:"wanted,omitempty"`         // the very addresses to allocate, at most one of each family; none: any
	ReadinessGates []string     `json:"readinessGates,omitempty"` // URLs that must answer before an ADD goes on; the handler polls them
	Features       Features     `json:"features,omitzero"`

	Valid []Attachment `json:"valid,omitempty"` // GC: the attachments that live
	Stale []Stale      `json:"stale,omitempty"` // Free: what is to go
}

// Members lists the request's members.
func (r *Request) Members() []members.Member {
	return []members.Member{
		{Name: "version", Value: &r.Version, Empty: true}, {Name: "verb", Value: &r.Verb, Empty: true}, {Name: "network", Value: &r.Network, Empty: true},
		{Name: "containerID", Value: &r.ContainerID, Empty: true}, {Name: "ifName", Value: &r.IfName, Empty: true},
		{Name: "hostIf", Value: &r.HostIf}, {Name: "mac", Value: &r.MAC}, {Name: "netns", Value: &r.Netns}, {Name: "pod", Value: &r.Pod},
		{Name: "assignIPv4", Value: &r.AssignIPv4}, {Name: "assignIPv6", Value: &r.AssignIPv6},
		{Name: "ipv4Pools", Value: &r.IPv4Pools}, {Name: "ipv6Pools", Value: &r.IPv6Pools}, {Name: "policyType", Value: &r.PolicyType},
		{Name: "labels", Value: &r.Labels}, {Name: "annotations", Value: &r.Annotations},
		{Name: "addrs", Value: &r.Addrs}, {Name: "foreignIPAM", Value: &r.ForeignIPAM}, {Name: "wanted", Value: &r.Wanted},
		{Name: "readinessGates", Value: &r.ReadinessGates}, {Name: "features", Value: &r.Features},
		{Name: "valid", Value: &r.Valid}, {Name: "stale", Value: &r.Stale},
	}
}

// MarshalJSON writes the request as its tags say.
func (r Request) MarshalJSON() ([]byte, error) { return members.Encode(r.Members()) }

// UnmarshalJSON reads the request as its tags say.
func (r *Request) UnmarshalJSON(data []byte) error { return members.Decode(data, r.Members()) }

// Attachment is one container's interface in a network.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Stale is what etcd holds of an attachment that no longer lives: a handle with addresses, an endpoint, or both. The revisions say what
// was seen: what has changed since is not the same any more, and stays.
type Stale struct {
	ContainerID string `json:"containerID"`
	HandleRev   int64  `json:"handleRev,omitempty"`   // 0: there is no handle
	Endpoint    string `json:"endpoint,omitempty"`    // its key; "": there is none
	EndpointRev int64  `json:"endpointRev,omitempty"` // 0: there is none
	HostIf      string `json:"hostIf,omitempty"`      // of the endpoint: the host's side
}

// Features are what the netconf lets pods ask for by annotation.
type Features struct {
	AddrsNoIPAM bool `json:"addrsNoIpam,omitempty"`
	FloatingIPs bool `json:"floatingIPs,omitempty"`
}

// ReadinessTimeout is how long an ADD waits for its readiness gates at most: plugin and agent both reckon with it.
const ReadinessTimeout = 30 * time.Second

// Strings is a set of named strings.
type Strings map[string]string

// Linked is the plugin's second line in an ADD or CHECK: the pod's side is set and the host's side is up.
type Linked struct {
	HostIf string `json:"hostIf"`
	Index  int    `json:"index"`          // of the host's side
	Wait   int    `json:"wait,omitempty"` // seconds that the agent may take; 0: as it sees fit
}

// Members lists the line's members.
func (l *Linked) Members() []members.Member {
	return []members.Member{{Name: "hostIf", Value: &l.HostIf, Empty: true}, {Name: "index", Value: &l.Index, Empty: true}, {Name: "wait", Value: &l.Wait}}
}

// Reply is the agent's answer to either line. Error nil means success.
type Reply struct {
	Error *Error       `json:"error,omitempty"`
	Addrs []netip.Addr `json:"addrs,omitempty"` // after an ADD's or CHECK's first line: at most one of each family
	MAC   string       `json:"mac,omitempty"`   // the pod's MAC as the endpoint holds it: the proposed one, or an earlier ADD's
	Stale []Stale      `json:"stale,omitempty"` // after GC
	Peers []Peer       `json:"peers,omitempty"` // after BGP: sorted by address
	Agent *Agent       `json:"agent,omitempty"` // after Report

	Ranges []netip.Prefix `json:"ranges,omitempty"` // after Ranges: one of each family at most

	Paths json.RawMessage `json:"paths,omitempty"` // after Paths: a list of api.Path, which the plugin is not to link
}

// Members lists the reply's members.
func (r *Reply) Members() []members.Member {
	return []members.Member{
		{Name: "error", Value: &r.Error}, {Name: "addrs", Value: &r.Addrs}, {Name: "mac", Value: &r.MAC}, {Name: "stale", Value: &r.Stale},
		{Name: "peers", Value: &r.Peers}, {Name: "agent", Value: &r.Agent}, {Name: "ranges", Value: &r.Ranges}, {Name: "paths", Value: &r.Paths},
	}
}

// Agent is what an agent says of itself.
type Agent struct {
	Version  string   `json:"version"`
	Node     string   `json:"node"`               // its name
	Problems []string `json:"problems,omitempty"` // that were logged and are still there, in order
}

// Peer is a BGP session of the node.
type Peer struct {
	Addr  netip.Addr `json:"addr"`
	Type  string     `json:"type"`           // node-to-node mesh, node specific, global or local workload
	State string     `json:"state"`          // Idle, Connect, Active, Passive, OpenSent, OpenConfirm or Established (RFC 4271 section 8.2.2)
	Since time.Time  `json:"since"`          // that it is Established, or that it is not
	Info  string     `json:"info,omitempty"` // why it is not Established, as far as known
}

// Established tells whether the peers exchange routes.
func (p Peer) Established() bool { return p.State == "Established" }

// Error is a failure as CNI reports it. Msg names the stage and the object, Details the remedy.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error is the message and the remedy.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Join is several failures as one, for batches that go on past a failure: with the code of the first that has one, the text of all, and
// the remedy where they are more than one. It is nil if all are, and a single *Error stays as it is.
func Join(remedy string, errs ...error) error {
	err := errors.Join(errs...)
	if err == nil {
		return nil
	}
	out := &Error{Code: CodeInternal, Msg: err.Error(), Details: remedy}
	var told *Error
	if errors.As(err, &told) {
		out.Code = told.Code
	}
	if told != nil && told.Error() == out.Msg {
		return told
	}
	return out
}

// CNI error codes (CNI spec 1.1, "Error"; from 100 on they are a plugin's own).
const (
	CodeBadVersion   = 1
	CodeBadField     = 2
	CodeUnknown      = 3 // container unknown
	CodeBadEnv       = 4
	CodeIO           = 5
	CodeDecode       = 6
	CodeBadConfig    = 7
	CodeTryAgain     = 11
	CodeNotAvailable = 50
	CodeLimited      = 51 // not available, and pods that run may lose part of their connectivity
	CodeDatastore    = 100
	CodeNoAddress    = 101
	CodeKernel       = 102
	CodeInternal     = 103
	CodeMissing      = 104 // CHECK: something of the attachment is missing, or is not as ADD made it
	CodeNoBGP        = 105 // BGP: the node speaks none
	CodeNoProbes     = 106 // Paths: the node tests none
)

// ErrTooLong says that a message is longer than either end reads.
var ErrTooLong = errors.New("longer than 1048576 bytes")

// maxLine bounds what either end reads: labels and annotations of one pod fit well.
const maxLine = 1 << 20

// Conn frames messages on a byte stream. Not safe for concurrent use.
type Conn struct {
	r *bufio.Reader
	w io.Writer
}

// NewConn frames messages on rw.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{r: bufio.NewReader(rw), w: rw} }

// Send writes one message. One that the peer would not read is ErrTooLong, and nothing is sent.
func (c *Conn) Send(v members.Object) error {
	b, err := members.Encode(v.Members())
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(b) >= maxLine {
		return fmt.Errorf("send message: %w", ErrTooLong)
	}
	if _, err := c.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads one message into v. It returns io.EOF when the peer closed between messages.
func (c *Conn) Receive(v members.Object) error {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if err == io.EOF && len(line) == 0 {
			return io.EOF
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("receive message: %w", err)
		}
		if len(line) > maxLine {
			return fmt.Errorf("receive message: %w", ErrTooLong)
		}
	}
	if err := members.Decode(line, v.Members()); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// Ask sends one message and returns the peer's answer. An answer that is a failure is returned as the *Error it holds.
func (c *Conn) Ask(v members.Object) (Reply, error) {
	if err := c.Send(v); err != nil {
		return Reply{}, err
	}
	return c.Answer()
}

// Answer reads the peer's answer to what was sent last, as Ask does.
func (c *Conn) Answer() (Reply, error) {
	var reply Reply
	if err := c.Receive(&reply); err != nil {
		return Reply{}, err
	}
	if reply.Error != nil {
		return Reply{}, reply.Error
	}
	return reply, nil
}
