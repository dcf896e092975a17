package register

import (
	"maps"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// annotationNetwork stands on endpoints of containers that brought their addresses along, and names their network. Any other container has
// a handle, whose name begins with its network's; with policy type k8s nothing else would tell GC and CHECK.
const annotationNetwork = "muslin-cni/network"

// annotations are those of the job's endpoint: what others wrote, and annotationNetwork where it belongs.
func (j *job) annotations(had map[string]string) map[string]string {
	out := maps.Clone(had)
	delete(out, annotationNetwork)
	if len(j.brought) == 0 {
		return out
	}
	if out == nil {
		out = map[string]string{}
	}
	out[annotationNetwork] = j.req.Network
	return out
}

// broughtTo reports whether the endpoint is the job's container's and says that its addresses were brought along.
func (j *job) broughtTo(e store.Entry[api.WorkloadEndpoint]) bool {
	return belongsTo(e, j.req.ContainerID) && e.Value.Metadata.Annotations[annotationNetwork] == j.req.Network
}
