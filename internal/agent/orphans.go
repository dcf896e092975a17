package agent

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// holdings is what a snapshot says of a node's containers: their endpoints, and the addresses that were given out on the node.
type holdings struct {
	endpoints []store.Entry[api.WorkloadEndpoint]
	owners    map[netip.Addr]api.Attributes
	blocks    []store.Entry[api.Block] // the node's own
	unknown   []netip.Prefix           // blocks that cannot be read: who holds their addresses cannot be told
}

func holdingsOf(snap feed.Snapshot, node string) holdings {
	h := holdings{owners: map[netip.Addr]api.Attributes{}}
	for _, e := range snap.EndpointsOn(node) {
		h.endpoints = append(h.endpoints, e)
	}
	for _, bad := range snap.Bad() {
		if cidr, err := api.ParseBlockKey(bad.Key); err == nil {
			h.unknown = append(h.unknown, cidr)
		}
	}
	for _, e := range snap.Blocks() {
		host, _ := e.Value.Host()
		if host == node {
			h.blocks = append(h.blocks, e)
		}
		if host != node && !slices.ContainsFunc(e.Value.Attributes, func(a api.Attributes) bool { return a.Secondary[api.AttrNode] == node }) {
			continue
		}
		for addr, by := range ipam.Allocated(e.Value) {
			if on, said := by.Secondary[api.AttrNode]; on == node || !said && host == node {
				h.owners[addr] = by
			}
		}
	}
	return h
}

// handleOf is the handle that holds the endpoint's addresses. It must be one of the endpoint's own container: an address that another holds
// by now is not the endpoint's to free. "" if there is none.
func (h holdings) handleOf(w *api.WorkloadEndpoint) string {
	for _, n := range w.Spec.IPNetworks {
		by, held := h.owners[n.Addr()]
		if !held || by.HandleID == nil || w.Spec.ContainerID == "" {
			continue
		}
		if id := block.Handle(*by.HandleID); strings.HasSuffix(id, "."+w.Spec.ContainerID) {
			return id
		}
	}
	return ""
}

// judgeable reports whether it can be told who holds the endpoint's addresses, and what interface it should have.
func (h holdings) judgeable(s api.WorkloadEndpointSpec) bool {
	if s.Orchestrator != "k8s" && s.Orchestrator != "cni" || s.InterfaceName == "" {
		return false
	}
	return !slices.ContainsFunc(s.IPNetworks, func(n api.Prefix) bool {
		return slices.ContainsFunc(h.unknown, func(c netip.Prefix) bool { return c.Contains(n.Addr()) })
	})
}

// orphans lists the endpoints of the node's containers whose interface is not among the links, with the handles of their addresses. An
// endpoint whose addresses are held together with those of another interface of the container, which is there, is none: freeing
// the handle would take the other's address. What cannot be judged is taken to be alive.
func (h holdings) orphans(links map[string]bool) []register.Orphan {
	var out []register.Orphan
	alive := map[string]bool{} // handles
	for _, e := range h.endpoints {
		s := e.Value.Spec
		if links[s.InterfaceName] || !h.judgeable(s) {
			alive[h.handleOf(e.Value)] = true
			continue
		}
		out = append(out, register.Orphan{Endpoint: e, Handle: h.handleOf(e.Value)})
	}
	return slices.DeleteFunc(out, func(o register.Orphan) bool { return o.Handle != "" && alive[o.Handle] })
}

// unclaimed lists the addresses of the node's containers that no endpoint has, in order. A main plugin of another project that uses
// muslin-ipam writes no endpoints, so they are nobody's to free.
func (h holdings) unclaimed() []netip.Addr {
	left := maps.Clone(h.owners)
	maps.DeleteFunc(left, func(_ netip.Addr, by api.Attributes) bool { return by.Secondary[api.AttrType] != "" }) // a tunnel's, a service's
	for _, e := range h.endpoints {
		for _, n := range e.Value.Spec.IPNetworks {
			delete(left, n.Addr())
		}
	}
	return slices.SortedFunc(maps.Keys(left), netip.Addr.Compare)
}
