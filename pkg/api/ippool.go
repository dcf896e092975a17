package api

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// EncapMode says when a pool's traffic is encapsulated.
type EncapMode string

// The encapsulation modes of an IPPool.
const (
	Never       EncapMode = "Never"
	Always      EncapMode = "Always"
	CrossSubnet EncapMode = "CrossSubnet"
)

// Encapsulates tells whether packets to a node are encapsulated, which is near if it is on our subnet.
func (m EncapMode) Encapsulates(near bool) bool { return m == Always || m == CrossSubnet && !near }

// Use is a purpose that a pool's addresses may serve.
type Use string

// The uses of an IPPool.
const (
	UseWorkload     Use = "Workload"
	UseTunnel       Use = "Tunnel"
	UseLoadBalancer Use = "LoadBalancer"
)

// The assignment modes of an IPPool: Automatic pools serve anyone they select, Manual ones only those who name them.
const (
	AssignAutomatic = "Automatic"
	AssignManual    = "Manual"
)

// IPPool is a range of addresses and how traffic to and from them is carried.
type IPPool struct {
	Header
	Spec   IPPoolSpec    `json:"spec"`
	Status *IPPoolStatus `json:"status,omitempty"` // nil in etcd, where nobody writes it
}

// IPPoolSpec holds the fields of an IPPool. CIDR and BlockSize are immutable.
type IPPoolSpec struct {
	CIDR              netip.Prefix `json:"cidr" want:"required" bad:"IPPool CIDR must be a valid subnet"`
	VXLANMode         EncapMode    `json:"vxlanMode,omitempty" want:"oneof Never Always CrossSubnet"`
	IPIPMode          EncapMode    `json:"ipipMode,omitempty" want:"oneof Never Always CrossSubnet"`
	NATOutgoing       bool         `json:"natOutgoing,omitempty"`
	Disabled          bool         `json:"disabled,omitempty"` // no new allocations; existing ones stay
	DisableBGPExport  bool         `json:"disableBGPExport,omitempty"`
	BlockSize         int          `json:"blockSize,omitempty"`                         // prefix length of a block
	NodeSelector      string       `json:"nodeSelector,omitempty" want:"selector"`      // over node labels
	NamespaceSelector string       `json:"namespaceSelector,omitempty" want:"selector"` // over Kubernetes' labels of namespaces; "": any
	AllowedUses       []Use        `json:"allowedUses,omitempty" want:"oneof Workload Tunnel LoadBalancer"`
	AssignmentMode    string       `json:"assignmentMode,omitempty" want:"oneof Automatic Manual"`
}

// IPPoolStatus says whether addresses are given out of the pool.
type IPPoolStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Condition is one aspect of an object's state, in Kubernetes' form.
type Condition struct {
	Type               string `json:"type"`
	Status             string `json:"status"` // True, False or Unknown
	ObservedGeneration int64  `json:"observedGeneration,omitempty"`
	LastTransitionTime string `json:"lastTransitionTime"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
}

// KindOf describes IPPool.
func (*IPPool) KindOf() Kind {
	return Kind{Name: "IPPool", Plural: "ippools", Aliases: "ipp ipps pool pools"}
}

// Default fills the fields that older writers omit.
func (p *IPPool) Default() {
	s := &p.Spec
	setDefault(&s.VXLANMode, Never)
	setDefault(&s.IPIPMode, Never)
	setDefault(&s.NodeSelector, "all()")
	setDefault(&s.AssignmentMode, AssignAutomatic)
	if s.BlockSize == 0 && s.CIDR.IsValid() {
		s.BlockSize = 26
		if s.CIDR.Addr().Is6() {
			s.BlockSize = 122
		}
	}
	if len(s.AllowedUses) == 0 {
		s.AllowedUses = []Use{UseWorkload, UseTunnel}
	}
}

// Check reports why a stored pool cannot be used: a reader skips such a pool and goes on with the others.
func (p *IPPool) Check() error {
	c := &checker{}
	p.checkRange(c)
	if len(c.fields) == 0 {
		return nil
	}
	return errors.New(c.fields[0].Error())
}

// checkRange checks that the pool can be cut into blocks.
func (p *IPPool) checkRange(c *checker) {
	s := p.Spec
	if !s.CIDR.IsValid() {
		c.add("spec.cidr", nil, "IPPool CIDR must be specified")
		return
	}
	if s.CIDR != s.CIDR.Masked() {
		c.add("spec.cidr", s.CIDR, "IPPool CIDR is not strictly masked; did you mean %v?", s.CIDR.Masked())
	}
	family, lo, hi := "IPv4", 20, 32
	if s.CIDR.Addr().Is6() {
		family, lo, hi = "IPv6", 116, 128
	}
	if s.BlockSize < lo || s.BlockSize > hi {
		c.add("spec.blockSize", s.BlockSize, "%s block size must be between %d and %d", family, lo, hi)
	} else if s.BlockSize < s.CIDR.Bits() && !s.Disabled {
		c.add("spec.cidr", s.CIDR, "IP pool size is too small for use with Calico IPAM. It must be equal to or greater than the block size.")
	}
}

func (p *IPPool) validate(c *checker) {
	p.checkRange(c)
	s := p.Spec
	for _, local := range []string{"169.254.0.0/16", "fe80::/10"} {
		if s.CIDR.IsValid() && s.CIDR.Overlaps(netip.MustParsePrefix(local)) {
			c.add("spec.cidr", s.CIDR, "IPPool CIDR overlaps with the link-local range %s", local)
		}
	}
	ipip, vxlan := s.IPIPMode != Never && s.IPIPMode != "", s.VXLANMode != Never && s.VXLANMode != ""
	if ipip && vxlan {
		c.add("spec.vxlanMode", s.VXLANMode, "Cannot enable both VXLAN and IPIP on the same IPPool")
	}
	if ipip && s.CIDR.Addr().Is6() {
		c.add("spec.ipipMode", s.IPIPMode, "IPIP is not supported on an IPv6 IP pool")
	}
	if s.NamespaceSelector != "" && p.Allows(UseTunnel) {
		c.add("spec.namespaceSelector", s.NamespaceSelector, "a pool of tunnel addresses cannot select namespaces: set allowedUses to [Workload]")
	}
	if p.Allows(UseLoadBalancer) {
		p.validateLoadBalancer(c, ipip || vxlan)
	}
}

func (p *IPPool) validateLoadBalancer(c *checker, encap bool) {
	s := p.Spec
	if slices.ContainsFunc(s.AllowedUses, func(u Use) bool { return u != UseLoadBalancer }) {
		c.add("spec.allowedUses", s.AllowedUses, "LoadBalancer cannot be combined with other uses")
	}
	if encap {
		c.add("spec.allowedUses", s.AllowedUses, "a LoadBalancer pool cannot have ipipMode or vxlanMode other than Never")
	}
	if s.NodeSelector != "all()" {
		c.add("spec.nodeSelector", s.NodeSelector, "must be all() for a LoadBalancer pool")
	}
	if s.DisableBGPExport {
		c.add("spec.disableBGPExport", s.DisableBGPExport, "must be false for a LoadBalancer pool")
	}
}

func (p *IPPool) validateUpdate(c *checker, stored Object) {
	old, ok := stored.(*IPPool)
	if !ok {
		return
	}
	if p.Spec.CIDR.IsValid() && p.Spec.CIDR != old.Spec.CIDR {
		c.add("spec.cidr", p.Spec.CIDR, "IPPool CIDR cannot be modified")
	}
	if p.Spec.BlockSize != old.Spec.BlockSize {
		c.add("spec.blockSize", p.Spec.BlockSize, "IPPool BlockSize cannot be modified")
	}
	if old.Allows(UseLoadBalancer) && !p.Allows(UseLoadBalancer) {
		c.add("spec.allowedUses", p.Spec.AllowedUses, "a LoadBalancer pool cannot be given another use")
	}
}

// Allows reports whether the pool's addresses may serve the use.
func (p *IPPool) Allows(u Use) bool { return slices.Contains(p.Spec.AllowedUses, u) }

// Overlapping reports which of the other pools shares addresses with p, as an *InvalidError about p; nil if none does. A pool
// of p's name does not count.
func (p *IPPool) Overlapping(others []*IPPool) error {
	c := &checker{}
	for _, o := range others {
		if o.Metadata.Name != p.Metadata.Name && p.Spec.CIDR.IsValid() && o.Spec.CIDR.IsValid() && o.Spec.CIDR.Overlaps(p.Spec.CIDR) {
			c.add("spec.cidr", p.Spec.CIDR, "%s", fmt.Sprintf("%s CIDR overlaps with %s CIDR %v", Identify(p), Identify(o), o.Spec.CIDR))
		}
	}
	return c.err()
}
