package policy

import (
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// The names of the model's parts: 16 hexadecimal digits of a hash. A name of a list, policy or rule covers its content, so what stands
// under a name never changes; it only comes and goes. The zero value names nothing.
type (
	// ListID names a List.
	ListID string
	// PolicyID names a Policy: one direction of a policy or profile.
	PolicyID string //nolint:revive // beside the names of lists, rules and sets, ID alone would be any of them
	// RuleID names a Rule, or what a List does by default. It does not depend on the rule's place in its policy, nor on other rules.
	RuleID string
	// SetID names a Set by what is asked for, not by who answers to it: its members change.
	SetID string
)

// Model is all that one node has to enforce. Every name that occurs in it resolves in it. It is plain data: values are not changed once
// they are in a model, and may be shared by any number of goroutines. Equal inputs give equal models.
//
// How a packet fares at an endpoint, in one direction: the List of that direction and use is walked. In each of its tiers in turn, the policies are
// asked in order, in each policy the rules in order. The first rule that matches and is not Log decides: Allow and Deny are final for
// this endpoint and direction, Pass goes on with the next tier. Log only notes the packet. Staged policies are asked likewise, and
// whatever they say is only counted. If no rule of the tier decided, its End does. After the last tier the profiles are asked in order, in which
// Pass goes on with the next profile, and at last the List's End decides. In Ingress the endpoint is the packet's destination (or what lies behind it),
// in Egress the source.
type Model struct {
	Endpoints map[EndpointKey]*Endpoint // of this node
	Lists     map[ListID]*List
	Policies  map[PolicyID]*Policy
	Sets      map[SetID]*Set
	Problems  []Problem // sorted
}

// EndpointKind tells workloads' endpoints and hosts' apart.
type EndpointKind uint8

// The kinds of endpoints.
const (
	Workload EndpointKind = iota
	Host
)

// EndpointKey names an endpoint.
type EndpointKey struct {
	Kind      EndpointKind
	Namespace string // "" for hosts'
	Name      string
}

// String is the key as users know it: WorkloadEndpoint(default/n1-k8s-web-eth0).
func (k EndpointKey) String() string {
	if k.Kind == Host {
		return "HostEndpoint(" + k.Name + ")"
	}
	return "WorkloadEndpoint(" + k.Namespace + "/" + k.Name + ")"
}

// Endpoint is an endpoint of this node and the lists that its traffic walks. Two endpoints may name one interface or one address; what
// is done then is for the reader to decide (Calico: the key that sorts last has the interface).
type Endpoint struct {
	Key EndpointKey
	// Interface is the host's device. Of a host's endpoint it may be "*", every device that no other endpoint is for, or "": the
	// devices that hold one of Addrs.
	Interface string
	Addrs     []netip.Addr   // the workload's own, or the host's expected ones; sorted, without duplicates
	Spoofable []netip.Prefix // of a workload: sources besides Addrs that it may send from; sorted, masked
	Ports     []NamedPort    // sorted
	Limits    Limits         // of a workload
	// Ingress and Egress are for what the endpoint itself receives and sends. They are never "".
	Ingress, Egress ListID
	// What follows is of hosts' endpoints only, and "" where no policy says anything: then packets go on as if accepted.
	// Forward is for what passes through the host by way of the endpoint's device (applyOnForward).
	ForwardIngress, ForwardEgress ListID
	// Untracked is asked first, before connection tracking (doNotTrack); for both what the host receives or sends and what it forwards.
	// What it allows is not tracked and walks no other list of the endpoint.
	UntrackedIngress, UntrackedEgress ListID
	// PreDNAT is asked before destinations are rewritten; what it allows walks no other list of the endpoint.
	PreDNAT ListID
}

// NamedPort is a port of an endpoint that rules may refer to by name.
type NamedPort struct {
	Name     string
	Protocol uint8 // IANA number: 6, 17 or 132
	Port     uint16
}

// List is what is asked in one direction. Endpoints that are governed alike share one.
type List struct {
	ID        ListID
	Direction api.PolicyType
	Tiers     []TierPart // in order; tiers without a policy for the endpoint in this direction are left out
	Profiles  []PolicyID // in order; only of lists for what endpoints themselves receive and send
	// End is what becomes of what nothing decided. Deny, or Pass where nobody has to decide: of the lists Forward, Untracked and
	// PreDNAT, after which the packet goes on.
	End   api.Action
	EndID RuleID // of a Deny at the end: the same in all lists of the direction
}

// TierPart is a tier's part of a List.
type TierPart struct {
	Tier     string
	Policies []PolicyID // in order, at least one; staged ones among them
	// End is what becomes of what the tier's policies did not decide: Deny, or Pass, which goes on with the next tier. It is Pass too where all
	// of them are staged, and in Untracked and PreDNAT lists, which deny only what a rule denies.
	End   api.Action
	EndID RuleID // of the end of this tier, the same in all lists of the direction
}

// Policy is one direction of a policy or of a profile.
type Policy struct {
	ID        PolicyID
	Kind      string // NetworkPolicy, GlobalNetworkPolicy, Staged…, Profile
	Namespace string
	Name      string
	Tier      string // "" of a profile
	Direction api.PolicyType
	Staged    bool // to be counted, not enforced
	Rules     []Rule
}

// String is the policy as users know it: NetworkPolicy(default/web).
func (p *Policy) String() string { return objectName(p.Kind, p.Namespace, p.Name) }

// Rule matches packets that satisfy all of its fields; a zero field is satisfied by every packet. Rules that can match nothing are
// left out of their policies.
type Rule struct {
	ID          RuleID
	Index       int // in the spec's list of the direction, from 0
	Action      api.Action
	IPVersion   uint8 // 4, 6; 0: both. Nets and ICMP kinds of one family imply it
	Protocol    uint8 // IANA number; 0: any
	NotProtocol uint8 // 0: none excluded
	ICMP        *ICMP // Protocol is 1 or 58
	NotICMP     *ICMP // Protocol is 1 or 58, and the message is not of this kind
	Source      Match
	Destination Match
}

// Sets are the sets that the rule refers to, some perhaps more than once.
func (r Rule) Sets() []SetID {
	return slices.Concat(r.Source.Sets, r.Source.NotSets, r.Source.PortSets, r.Source.NotPortSets,
		r.Destination.Sets, r.Destination.NotSets, r.Destination.PortSets, r.Destination.NotPortSets)
}

// ICMP is a kind of ICMP messages.
type ICMP struct {
	Type uint8
	Code int // -1: any
}

// Match is what one end of a packet's way must satisfy: every field that is set.
type Match struct {
	Nets    []netip.Prefix // in one of these; masked, sorted; empty: anywhere
	NotNets []netip.Prefix // in none of these
	Sets    []SetID        // in every one of these, which are of kind Addresses; sorted
	NotSets []SetID        // in none of these, likewise
	// The port must be in one of Ports, or the address, protocol and port in one of PortSets; both empty: any port.
	Ports    []PortRange // disjoint, sorted
	PortSets []SetID     // of kind Ports; sorted
	// The port is in none of NotPorts and the address, protocol and port in none of NotPortSets.
	NotPorts    []PortRange
	NotPortSets []SetID
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ Min, Max uint16 }

// SetKind says what a set's members are.
type SetKind uint8

// The kinds of sets.
const (
	Addresses SetKind = iota // addresses and ranges: Addrs and Nets
	Ports                    // addresses with protocol and port: Ports
)

// Set is a set that rules of this node refer to. Exactly such sets are in a model. Each member is there once, however many endpoints and
// network sets stand for it.
type Set struct {
	ID   SetID
	Kind SetKind
	// Text says for people, and only for them, what the set holds: a selector in canonical form, with namespaces and service
	// accounts in it, or a service; in front of it the name of a port.
	Text string
	Members
}

// Members are members of one set, sorted.
type Members struct {
	Addrs []netip.Addr   // single addresses, /32 and /128 ranges among them
	Nets  []netip.Prefix // real ranges, masked; they may overlap, and may contain Addrs
	Ports []PortMember
}

// PortMember is an address with a protocol and a port.
type PortMember struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
}

// Len is the number of members.
func (m Members) Len() int { return len(m.Addrs) + len(m.Nets) + len(m.Ports) }

// HasAddr reports whether an address is a member, or in a range that is.
func (m Members) HasAddr(a netip.Addr) bool {
	if _, ok := slices.BinarySearchFunc(m.Addrs, a, netip.Addr.Compare); ok {
		return true
	}
	return slices.ContainsFunc(m.Nets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// HasPort reports whether an address with that protocol and port is a member.
func (m Members) HasPort(p PortMember) bool {
	_, ok := slices.BinarySearchFunc(m.Ports, p, PortMember.compare)
	return ok
}

// Update is how a model differs from the one before: what is new or different, and nil for what is gone. Lists and policies never
// differ under one name. A reader that applies it in the order sets, policies, lists, endpoints, and what is gone in the opposite
// order, never refers to what is not there.
type Update struct {
	Endpoints map[EndpointKey]*Endpoint
	Lists     map[ListID]*List
	Policies  map[PolicyID]*Policy
	Sets      map[SetID]SetChange
	Problems  []Problem // all that there are now, sorted; nil if they are the same as before
	Solved    bool      // there were problems before, and are none now
}

// SetChange is how a set differs. A new set has all of its members in Added.
type SetChange struct {
	Set     *Set // of a new set: what it is, without members
	Gone    bool // the set is not referred to any more; nothing else is said
	Added   Members
	Removed Members
}

// Empty reports whether nothing is different.
func (u Update) Empty() bool {
	return len(u.Endpoints)+len(u.Lists)+len(u.Policies)+len(u.Sets)+len(u.Problems) == 0 && !u.Solved
}

// Problem is input that could not be used as it stands. It is data, not an error: everything else is in the model. What becomes of such
// input never allows more than the input would have: a rule that cannot be read matches nothing, or everything if it denies; a
// profile that does not exist denies everything; a tier that does not exist comes last and denies by default. The exception is a policy of which
// one cannot tell whom it selects: it is left out, as Calico leaves out what it finds invalid, because to isolate all that it
// might select would let one mistyped word cut off a namespace or a cluster.
type Problem struct {
	Object string // NetworkPolicy(default/web)
	Text   string // where and what is wrong, and what to do
}

// String is the object and the text.
func (p Problem) String() string { return p.Object + ": " + p.Text }
