package policy

import (
	"cmp"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Delta is what changed in what policies depend on. Where it says several things of one key, the last counts.
type Delta struct {
	// Objects are WorkloadEndpoints of all nodes, HostEndpoints, all kinds of policies, Tiers, Profiles, NetworkSets and
	// GlobalNetworkSets. Others are ignored.
	Objects  []Change
	Services []Service
}

// Change is the state of one key.
type Change struct {
	Key    string     // in etcd; the older names of policies there differ from those in their metadata
	Object api.Object // with defaults set, and not modified from now on; nil if there is none under the key any more
}

// Service is where the endpoints of a Kubernetes service are, for rules that match it.
type Service struct {
	Namespace, Name string
	Members         []PortMember // in any order; none: as if there were no such service
}

// objectName is an object as users know it.
func objectName(kind, namespace, name string) string {
	if namespace == "" {
		return kind + "(" + name + ")"
	}
	return kind + "(" + namespace + "/" + name + ")"
}

// nameOf is objectName of an object.
func nameOf(o api.Object) string {
	return objectName(o.KindOf().Name, o.Meta().Namespace, o.Meta().Name)
}

func (p PortMember) compare(q PortMember) int {
	return cmp.Or(p.Addr.Compare(q.Addr), cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.Port, q.Port))
}

func (p Problem) compare(q Problem) int {
	return cmp.Or(strings.Compare(p.Object, q.Object), strings.Compare(p.Text, q.Text))
}
