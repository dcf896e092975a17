package register

import (
	"maps"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// annotationNetwork stands on endpoints of containers that brought their addresses along, and names their network. Any other container has
// a handle, whose name begins with its network's; with policy type k8s nothing else would tell GC and CHECK.
const annotationNetwork = "muslin-cni/network"

// annotations are those of the job's endpoint: what others wrote, and ours where they belong.
func (j *job) annotations(had map[string]string) map[string]string {
	ours := map[string]string{annotationNetwork: "", api.AnnotationPluginLimits: strings.Join(j.plugged, ",")}
	if len(j.brought) > 0 {
		ours[annotationNetwork] = j.req.Network
	}
	out := maps.Clone(had)
	for name, value := range ours {
		delete(out, name)
		if value == "" {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = value
	}
	return out
}

// broughtTo reports whether the endpoint is the job's container's and says that its addresses were brought along.
func (j *job) broughtTo(e store.Entry[api.WorkloadEndpoint]) bool {
	return belongsTo(e, j.req.ContainerID) && e.Value.Metadata.Annotations[annotationNetwork] == j.req.Network
}
