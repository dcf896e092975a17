package api

import (
	"fmt"
	"net/netip"
	"strings"
)

// BGPPeer is a BGP session, or many: of the nodes that it selects, with the peers that it describes.
type BGPPeer struct {
	Header
	Spec BGPPeerSpec `json:"spec"`
}

// BGPPeerSpec holds the fields of a BGPPeer. Node and NodeSelector say which nodes have the session, both empty: all. PeerIP,
// PeerSelector or LocalWorkloadSelector say with whom.
type BGPPeerSpec struct {
	Node                     string       `json:"node,omitempty" want:"subdomain"`
	NodeSelector             string       `json:"nodeSelector,omitempty" want:"selector"`
	PeerIP                   string       `json:"peerIP,omitempty"` // an address; 10.0.0.1:179 and [fd00::1]:179 with port
	ASNumber                 ASN          `json:"asNumber,omitempty"`
	LocalASNumber            *ASN         `json:"localASNumber,omitempty"`                           // nil: the node's
	PeerSelector             string       `json:"peerSelector,omitempty" want:"selector"`            // over nodes
	KeepOriginalNextHop      bool         `json:"keepOriginalNextHop,omitempty"`                     // old form of NextHopMode Keep
	NextHopMode              string       `json:"nextHopMode,omitempty" want:"oneof Auto Self Keep"` // "": Auto
	Password                 *BGPPassword `json:"password,omitempty"`
	SourceAddress            string       `json:"sourceAddress,omitempty" want:"oneof UseNodeIP None"` // "": UseNodeIP
	MaxRestartTime           *Duration    `json:"maxRestartTime,omitempty"`                            // nil: 120 s; counts whole seconds
	KeepaliveTime            *Duration    `json:"keepaliveTime,omitempty"`
	NumAllowedLocalASNumbers *int32       `json:"numAllowedLocalASNumbers,omitempty" want:"range 0 255"`
	TTLSecurity              *uint8       `json:"ttlSecurity,omitempty"` // hops; nil: off (RFC 5082)
	ReachableBy              string       `json:"reachableBy,omitempty" want:"ip"`
	Filters                  []string     `json:"filters,omitempty" want:"subdomain"` // BGPFilters, in order
	LocalWorkloadSelector    string       `json:"localWorkloadSelector,omitempty" want:"selector"`
	ReversePeering           string       `json:"reversePeering,omitempty" want:"oneof Auto Manual"` // "": Auto
}

// KindOf describes BGPPeer.
func (*BGPPeer) KindOf() Kind {
	return Kind{Name: "BGPPeer", Plural: "bgppeers", Aliases: "bgpp bgpps bp bps"}
}

// ParsePeerIP reads an address with or without a port; port is 0 where there is none.
func ParsePeerIP(s string) (addr netip.Addr, port uint16, err error) {
	if addr, err = netip.ParseAddr(s); err == nil {
		return addr, 0, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return netip.Addr{}, 0, fmt.Errorf("parse peer %q: want an address, 10.0.0.1:179 or [fd00::1]:179", s)
	}
	return ap.Addr(), ap.Port(), nil
}

func (b *BGPPeer) references() (out []Reference) {
	for i, f := range b.Spec.Filters {
		out = append(out, Reference{Path: fmt.Sprintf("spec.filters[%d]", i), Kind: (*BGPFilter)(nil).KindOf(), Name: f})
	}
	return out
}

func (b *BGPPeer) validate(c *checker) {
	s := b.Spec
	if s.Node != "" && s.NodeSelector != "" {
		c.add("spec.node", s.Node, "Node field must be empty when NodeSelector is specified")
	}
	if s.PeerSelector != "" {
		exclusive(c, "PeerSelector", "spec.peerIP", s.PeerIP)
		if s.ASNumber != 0 {
			c.add("spec.asNumber", s.ASNumber, "ASNumber field must be empty when PeerSelector is specified")
		}
	}
	if s.LocalWorkloadSelector != "" {
		exclusive(c, "LocalWorkloadSelector", "spec.peerIP", s.PeerIP)
		exclusive(c, "LocalWorkloadSelector", "spec.peerSelector", s.PeerSelector)
		if s.ASNumber == 0 {
			c.add("spec.asNumber", nil, "ASNumber field must be set when LocalWorkloadSelector is specified")
		}
	}
	if s.KeepOriginalNextHop && s.NextHopMode != "" {
		c.add("spec.nextHopMode", s.NextHopMode, "NextHopMode must be empty when KeepOriginalNextHop is true")
	}
	for _, d := range []struct {
		path string
		d    *Duration
	}{{"spec.maxRestartTime", s.MaxRestartTime}, {"spec.keepaliveTime", s.KeepaliveTime}} {
		if d.d != nil && d.d.Duration < 0 {
			c.add(d.path, d.d, "must not be negative")
		}
	}
	b.validatePeer(c)
}

func exclusive(c *checker, with, path, value string) {
	if value != "" {
		c.add(path, value, "%s field must be empty when %s is specified", strings.TrimPrefix(path, "spec."), with)
	}
}

// validatePeer checks the peer's address and what must be of its family.
func (b *BGPPeer) validatePeer(c *checker) {
	s := b.Spec
	if s.PeerIP == "" {
		if s.ReachableBy != "" {
			c.add("spec.reachableBy", s.ReachableBy, "ReachableBy field must be empty when PeerIP is empty")
		}
		return
	}
	peer, _, err := ParsePeerIP(s.PeerIP)
	if err != nil {
		c.add("spec.peerIP", s.PeerIP, "must be an address, alone or with port as in 10.0.0.1:179 and [fd00::1]:179")
		return
	}
	if via, err := netip.ParseAddr(s.ReachableBy); err == nil && via.Is4() != peer.Is4() {
		c.add("spec.reachableBy", s.ReachableBy, "ReachableBy field must be of the same IP family as PeerIP")
	}
}
