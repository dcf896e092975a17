package api

import "time"

// CalicoNodeStatus asks a node to report how it fares, and holds the report.
type CalicoNodeStatus struct {
	Header
	Spec   CalicoNodeStatusSpec   `json:"spec"`
	Status CalicoNodeStatusReport `json:"status"`
}

// CalicoNodeStatusSpec says what is to be reported, and how often.
type CalicoNodeStatusSpec struct {
	Node                string   `json:"node,omitempty" want:"required"`
	Classes             []string `json:"classes,omitempty" want:"oneof Agent BGP Routes"`
	UpdatePeriodSeconds *uint32  `json:"updatePeriodSeconds,omitempty" want:"range 0 86400"` // 0: never
}

// CalicoNodeStatusReport is what the node reports; classes that were not asked for are empty.
type CalicoNodeStatusReport struct {
	LastUpdated time.Time        `json:"lastUpdated,omitzero"` // UTC
	Agent       NodeAgentStatus  `json:"agent"`
	BGP         NodeBGPStatus    `json:"bgp"`
	Routes      NodeRoutesStatus `json:"routes"`
}

// NodeAgentStatus is how the BGP speakers of both families fare.
type NodeAgentStatus struct {
	BIRDV4 BGPDaemonStatus `json:"birdV4"`
	BIRDV6 BGPDaemonStatus `json:"birdV6"`
}

// BGPDaemonStatus is how one BGP speaker fares.
type BGPDaemonStatus struct {
	State                   string `json:"state,omitempty" want:"oneof Ready NotReady"`
	Version                 string `json:"version,omitempty"`
	RouterID                string `json:"routerID,omitempty"`
	LastBootTime            string `json:"lastBootTime,omitempty"`
	LastReconfigurationTime string `json:"lastReconfigurationTime,omitempty"`
}

// NodeBGPStatus counts and lists the sessions.
type NodeBGPStatus struct {
	NumberEstablishedV4    int             `json:"numberEstablishedV4"`
	NumberNotEstablishedV4 int             `json:"numberNotEstablishedV4"`
	NumberEstablishedV6    int             `json:"numberEstablishedV6"`
	NumberNotEstablishedV6 int             `json:"numberNotEstablishedV6"`
	PeersV4                []BGPPeerStatus `json:"peersV4,omitempty"`
	PeersV6                []BGPPeerStatus `json:"peersV6,omitempty"`
}

// BGPPeerStatus is one session.
type BGPPeerStatus struct {
	PeerIP string `json:"peerIP,omitempty" want:"ip"`
	Type   string `json:"type,omitempty" want:"oneof NodeMesh NodePeer GlobalPeer"`
	State  string `json:"state,omitempty" want:"oneof Idle Connect Active OpenSent OpenConfirm Established Close"`
	Since  string `json:"since,omitempty"`
}

// NodeRoutesStatus lists the routes.
type NodeRoutesStatus struct {
	RoutesV4 []RouteStatus `json:"routesV4,omitempty"`
	RoutesV6 []RouteStatus `json:"routesV6,omitempty"`
}

// RouteStatus is one route, as the kernel (FIB) or the BGP speaker (RIB) has it.
type RouteStatus struct {
	Type        string      `json:"type,omitempty" want:"oneof FIB RIB"`
	Destination string      `json:"destination,omitempty"`
	Gateway     string      `json:"gateway,omitempty"`
	Interface   string      `json:"interface,omitempty"`
	LearnedFrom LearnedFrom `json:"learnedFrom"`
}

// LearnedFrom says where a route comes from.
type LearnedFrom struct {
	SourceType string `json:"sourceType,omitempty" want:"oneof Kernel Static Direct NodeMesh BGPPeer"`
	PeerIP     string `json:"peerIP,omitempty" want:"ip"` // of NodeMesh and BGPPeer
}

// KindOf describes CalicoNodeStatus.
func (*CalicoNodeStatus) KindOf() Kind {
	return Kind{Name: "CalicoNodeStatus", Plural: "caliconodestatuses", Aliases: "nodestatus nodestatuses"}
}

func (s *CalicoNodeStatus) validate(c *checker) {
	seen := map[string]bool{}
	for _, class := range s.Spec.Classes {
		if seen[class] {
			c.add("spec.classes", s.Spec.Classes, "the same class must not be there twice")
		}
		seen[class] = true
	}
}
