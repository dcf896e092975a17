package register

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Stale lists what etcd holds of containers of the request's network on this node that are not among req.Valid. Others' is never listed:
// not what another node has, not what another network may have (the name of a handle does not say where its network's name ends), not
// what was written after the call began. In doubt a thing is left out. Nothing is changed.
func (h *Handler) Stale(ctx context.Context, req attach.Request) ([]attach.Stale, error) {
	if req.Network == "" {
		return nil, &attach.Error{Code: attach.CodeBadConfig, Msg: "collect garbage: the network's name is missing"}
	}
	stale, err := h.stale(ctx, req)
	if err != nil {
		return nil, failure("collect garbage of", "network "+req.Network, err)
	}
	return stale, nil
}

// Free frees what Stale listed, but for what has changed since, in transactions of bounded size. What fails does not keep the rest from
// being freed; the errors are joined. What is freed is logged, a line each.
func (h *Handler) Free(ctx context.Context, req attach.Request) error {
	errs := make([]error, len(req.Stale))
	var g errgroup.Group
	g.SetLimit(maxMembers) // who waits together is freed in one transaction
	for i, s := range req.Stale {
		g.Go(func() error {
			errs[i] = h.free(ctx, req.Network, s)
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	return attach.Join("what else there was has been freed; GC does the rest the next time", errs...)
}

func (h *Handler) stale(ctx context.Context, req attach.Request) ([]attach.Stale, error) {
	began, err := h.cfg.Client.Revision(ctx)
	if err != nil {
		return nil, err
	}
	src, known := h.source(false)
	owned, err := ownedHandles(ctx, src, h.cfg.Node)
	if err != nil {
		return nil, err
	}
	endpoints, err := h.endpointsHere(ctx, known)
	if err != nil {
		return nil, err
	}
	return h.verify(ctx, req.Network, candidates(req, owned, endpoints), began)
}

// ownedHandles gathers the handles to which blocks, anybody's, give addresses that this node asked for.
func ownedHandles(ctx context.Context, src ipam.Source, node string) (map[string]bool, error) {
	out := map[string]bool{}
	for _, v6 := range []bool{false, true} {
		all, err := src.Survey(ctx, v6)
		if err != nil {
			return nil, err
		}
		for _, b := range all.Blocks {
			if b.Value == nil {
				continue // cannot be read
			}
			for _, owner := range b.Value.Attributes {
				if owner.HandleID != nil && owner.Secondary[api.AttrNode] == node {
					out[block.Handle(*owner.HandleID)] = true
				}
			}
		}
	}
	return out, nil
}

// endpointsPage is how many endpoints are read at a time.
const endpointsPage = 500

// endpointsHere are the node's endpoints: from memory, else all of the cluster's are read.
func (h *Handler) endpointsHere(ctx context.Context, known Source) ([]store.Entry[api.WorkloadEndpoint], error) {
	if known != nil {
		return slices.Collect(second(known.EndpointsOn(h.cfg.Node))), nil
	}
	kvs, _, err := h.cfg.Client.ReadAll(ctx, endpointsPage, store.Range{Key: (*api.WorkloadEndpoint)(nil).KindOf().Prefix(), Prefix: true})
	if err != nil {
		return nil, err
	}
	var out []store.Entry[api.WorkloadEndpoint]
	for _, kv := range kvs {
		e, err := store.Decode[api.WorkloadEndpoint](kv)
		if err == nil && e.Value.Spec.Node == h.cfg.Node { // one that cannot be read may be anybody's
			out = append(out, e)
		}
	}
	return out, nil
}

func second[K, V any](seq iter.Seq2[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		seq(func(_ K, v V) bool { return yield(v) })
	}
}

// candidates lists what looks like the network's and is not valid. Revisions are those of a picture that may be old.
func candidates(req attach.Request, owned map[string]bool, endpoints []store.Entry[api.WorkloadEndpoint]) []attach.Stale {
	valid := map[string]bool{} // a container's interfaces share its handle, so one that lives keeps all
	for _, v := range req.Valid {
		valid[v.ContainerID] = true
	}
	here := map[string][]store.Entry[api.WorkloadEndpoint]{}
	for _, e := range endpoints {
		here[e.Value.Spec.ContainerID] = append(here[e.Value.Spec.ContainerID], e)
	}
	isHere := func(container string) bool { return len(here[container]) > 0 }
	var out []attach.Stale
	for id := range owned {
		container, ok := strings.CutPrefix(id, req.Network+".")
		if !ok || valid[container] || !isOf(req.Network, container, isHere) {
			continue
		}
		if !isHere(container) {
			out = append(out, attach.Stale{ContainerID: container, HandleRev: unread})
		}
		for _, e := range here[container] {
			out = append(out, attach.Stale{ContainerID: container, HandleRev: unread, Endpoint: e.Key})
		}
	}
	for container, es := range here {
		for _, e := range es {
			if !valid[container] && belongs(e.Value, req.Network) && !hasHandle(owned, container) {
				out = append(out, attach.Stale{ContainerID: container, Endpoint: e.Key}) // its addresses are of another IPAM
			}
		}
	}
	slices.SortFunc(out, func(a, b attach.Stale) int {
		return strings.Compare(a.ContainerID+a.Endpoint, b.ContainerID+b.Endpoint)
	})
	return out
}

// belongs reports whether an endpoint without a handle says that it is the network's: by our annotation, or as Calico's plugin writes it,
// by the network's own profile, which there is without policies.
func belongs(w *api.WorkloadEndpoint, network string) bool {
	if named, ok := w.Metadata.Annotations[annotationNetwork]; ok {
		return named == network
	}
	return slices.Contains(w.Spec.Profiles, network)
}

// unread is the revision of a handle that is still to be read.
const unread = -1

// isOf reports whether the handle network.container is certainly that network's. With a dot in either part it may be another's: the
// one whose container has an endpoint here is meant, if there is exactly one.
func isOf(network, container string, isHere func(string) bool) bool {
	id := api.PodHandle(network, container)
	if strings.Count(id, ".") == 1 {
		return true
	}
	for i, c := range id {
		if other := id[i+1:]; c == '.' && other != container && isHere(other) {
			return false
		}
	}
	return isHere(container)
}

// hasHandle reports whether some network has allocated addresses to the container.
func hasHandle(owned map[string]bool, container string) bool {
	for id := range owned {
		if strings.HasSuffix(id, "."+container) {
			return true
		}
	}
	return false
}

// verified is how many candidates are read at a time: each has two keys, and etcd takes 128 operations.
const verified = 60

// verify reads the candidates from etcd itself and keeps what is there, is still the same container's, and was written before
// the call began. (What is written later is a new ADD's, of which the caller's list does not know.)
func (h *Handler) verify(ctx context.Context, network string, in []attach.Stale, began int64) ([]attach.Stale, error) {
	var out []attach.Stale
	for part := range slices.Chunk(in, verified) {
		jobs := make([]*job, len(part))
		for i, s := range part {
			jobs[i] = &job{handleKey: api.HandleKey(api.PodHandle(network, s.ContainerID)), endpointKey: s.Endpoint}
		}
		found, err := h.readPriors(ctx, jobs)
		if err != nil {
			return nil, err
		}
		for i, s := range part {
			if err := found[jobs[i]].err; err != nil {
				return nil, err
			}
			if s, ok := settle(s, found[jobs[i]], began); ok {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// settle fills in what etcd holds of a candidate; ok is false where nothing is left of it, or any part is new.
func settle(s attach.Stale, was prior, began int64) (_ attach.Stale, ok bool) {
	if was.handle.Rev > began || was.endpoint.Rev > began || s.HandleRev != unread && was.handle.Exists() {
		return s, false
	}
	out := attach.Stale{ContainerID: s.ContainerID, HandleRev: was.handle.Rev}
	if e := was.endpoint; belongsTo(e, s.ContainerID) {
		out.Endpoint, out.EndpointRev, out.HostIf = e.Key, e.Rev, e.Value.Spec.InterfaceName
	}
	return out, out.HandleRev != 0 || out.EndpointRev != 0
}

// free frees one attachment.
func (h *Handler) free(ctx context.Context, network string, s attach.Stale) error {
	j := &job{
		req: attach.Request{Network: network, ContainerID: s.ContainerID}, frees: true,
		handleKey: api.HandleKey(api.PodHandle(network, s.ContainerID)), endpointKey: s.Endpoint,
	}
	freed, err := h.freeJudged(ctx, j, func(was prior) bool {
		return as(was.handle.Rev, s.HandleRev) && as(was.endpoint.Rev, s.EndpointRev)
	})
	if freed {
		h.cfg.Log.Info("freed what GC found", "network", network, "container", s.ContainerID, "addresses", addrsOf(j.addrs), "endpoint", s.Endpoint)
	}
	return err
}

// as reports whether a key is at the revision at which it was seen, or gone: the other half of an attachment goes then.
func as(now, seen int64) bool { return now == 0 || now == seen }

func addrsOf(prefixes []netip.Prefix) string {
	addrs := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		addrs[i] = p.Addr()
	}
	return fmt.Sprint(addrs)
}
