package api

import (
	"net/netip"
	"strings"
	"time"
)

// Block is a range of a pool's addresses that is owned (affine to) one host, and who holds each address.
// Ordinal n stands for the n-th address of CIDR, the network and broadcast addresses included.
type Block struct {
	CIDR        netip.Prefix `json:"cidr"`
	Affinity    *string      `json:"affinity"`                      // "host:<node>", "virtual:<name>"; nil: nobody's
	ClaimTime   *time.Time   `json:"affinity_claim_time,omitempty"` // UTC, whole seconds; nil without affinity
	Allocation  []*int       `json:"allocations"`                   // by ordinal: index into Attributes; nil: free
	Unallocated []int        `json:"unallocated"`                   // free ordinals, first to be handed out first
	Attributes  []Attributes `json:"attributes"`                    // nil in a fresh block, empty once one was released
	// SequenceNumber starts at the creation time in Unix nanoseconds and grows by one with every update.
	SequenceNumber uint64 `json:"sequenceNumber"`
	// SequenceNumberForAllocation holds, by ordinal, the sequence number at allocation (before that write's increment).
	SequenceNumberForAllocation map[string]uint64 `json:"sequenceNumberForAllocation"`
	Deleted                     bool              `json:"deleted"`
	HostAffinity                *string           `json:"hostAffinity,omitempty"` // legacy

	read *reading // as DecodeLike has read it; nil: it has not
}

// Attributes says who owns the ordinals that point to it.
type Attributes struct {
	HandleID  *string           `json:"handle_id,omitempty"`
	Secondary map[string]string `json:"secondary,omitempty"`
	Alternate map[string]string `json:"alternateOwnerAttrs,omitempty"`
}

// Owner attributes in Attributes.Secondary.
const (
	AttrNode      = "node"
	AttrPod       = "pod"
	AttrNamespace = "namespace"
	AttrTimestamp = "timestamp"
	AttrType      = "type"
)

// Values of AttrType.
const (
	AttrTypeIPIP   = "ipipTunnelAddress"
	AttrTypeVXLAN  = "vxlanTunnelAddress"
	AttrTypeVXLAN6 = "vxlanV6TunnelAddress"

	AttrTypeWireguard  = "wireguardTunnelAddress"
	AttrTypeWireguard6 = "wireguardV6TunnelAddress"
)

// HostAffinityOf is the value of Block.Affinity for a node's blocks.
func HostAffinityOf(node string) string { return "host:" + node }

// Host returns the node that owns the block; ok is false for a block that is nobody's or a virtual owner's.
func (b *Block) Host() (node string, ok bool) {
	a := b.Affinity
	if a == nil {
		a = b.HostAffinity
	}
	if a == nil {
		return "", false
	}
	return strings.CutPrefix(*a, "host:")
}

// Unowned reports whether the block is nobody's, be it a host or a virtual owner.
func (b *Block) Unowned() bool { return b.Affinity == nil && b.HostAffinity == nil }

// AffinityState is where a claim of a block stands.
type AffinityState string

// The states of an affinity. The empty state, of old data, means confirmed.
const (
	AffinityPending         AffinityState = "pending"
	AffinityConfirmed       AffinityState = "confirmed"
	AffinityPendingDeletion AffinityState = "pendingDeletion"
)

// Affinity is a host's claim to a block.
type Affinity struct {
	State   AffinityState `json:"state"`
	Deleted bool          `json:"deleted"`
}

// Confirmed reports whether the claim is complete.
func (a *Affinity) Confirmed() bool { return a.State == AffinityConfirmed || a.State == "" }

// Handle counts the addresses that one owner holds, by block CIDR. Its ID is only in the key.
type Handle struct {
	Block   map[string]int `json:"block"`
	Deleted bool           `json:"deleted"`
}

// IPAMConfig holds the cluster-wide allocation settings. All fields are stored only when not zero, so
// AutoAllocateBlocks must always be written: absent reads as false.
type IPAMConfig struct {
	StrictAffinity     bool    `json:"strict_affinity,omitempty"`
	AutoAllocateBlocks bool    `json:"auto_allocate_blocks,omitempty"`
	MaxBlocksPerHost   int     `json:"maxBlocksPerHost,omitempty"`
	KubeVirt           *string `json:"kubeVirtVMAddressPersistence,omitempty"`
}

// DefaultIPAMConfig is the configuration that holds while none is stored.
func DefaultIPAMConfig() IPAMConfig {
	enabled := "Enabled"
	return IPAMConfig{AutoAllocateBlocks: true, KubeVirt: &enabled}
}

// PodHandle is the handle ID of a container's addresses.
func PodHandle(network, containerID string) string { return network + "." + containerID }

// IPIPHandle is the handle ID of a node's IP-in-IP tunnel address.
func IPIPHandle(node string) string { return "ipip-tunnel-addr-" + node }

// WireguardHandle is the handle ID of a node's WireGuard address.
func WireguardHandle(node string, v6 bool) string {
	if v6 {
		return "wireguard-v6-tunnel-addr-" + node
	}
	return "wireguard-tunnel-addr-" + node
}

// VXLANHandle is the handle ID of a node's VXLAN tunnel address.
func VXLANHandle(node string, v6 bool) string {
	if v6 {
		return "vxlan-v6-tunnel-addr-" + node
	}
	return "vxlan-tunnel-addr-" + node
}
