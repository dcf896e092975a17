package register

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// planAdd adds a job's addresses and endpoint to the transaction.
func (h *Handler) planAdd(ctx context.Context, p *ipam.Plan, j *job, was prior) error {
	j.addrs = nil
	if err := p.Admit(); err != nil {
		return err
	}
	if err := h.planAddrs(ctx, p, j, was); err != nil {
		return err
	}
	if j.endpointKey == "" {
		return nil
	}
	now := h.cfg.Now()
	if err := h.planEndpoint(p, j, was.endpoint, now); err != nil {
		return err
	}
	h.planProfile(p, j, was.profile, now)
	return nil
}

// planAddrs finds the job's addresses: those that it brings, those that its handle holds, else new ones.
func (h *Handler) planAddrs(ctx context.Context, p *ipam.Plan, j *job, was prior) error {
	for _, a := range j.brought {
		j.addrs = append(j.addrs, netip.PrefixFrom(a, a.BitLen()))
	}
	if len(j.brought) > 0 {
		return nil
	}
	held, err := p.Held(ctx, was.handle)
	if err != nil {
		return err
	}
	if err := h.planExchange(ctx, p, j, was.endpoint); err != nil {
		return err
	}
	for _, want := range j.wants {
		i := slices.IndexFunc(held, func(a netip.Prefix) bool { return answers(a.Addr(), want) })
		if i >= 0 {
			j.addrs = append(j.addrs, held[i])
			continue
		}
		a, err := p.Assign(ctx, want)
		if err != nil {
			return err
		}
		j.addrs = append(j.addrs, a)
	}
	return nil
}

// planExchange frees the addresses of an older container of the pod, whose DEL has not come yet, if the pod is to have certain ones.
func (h *Handler) planExchange(ctx context.Context, p *ipam.Plan, j *job, was store.Entry[api.WorkloadEndpoint]) error {
	if !j.exchange || !was.Exists() || was.Value.Spec.ContainerID == "" || was.Value.Spec.ContainerID == j.req.ContainerID {
		return nil
	}
	old, err := store.Get[api.Handle](ctx, h.cfg.Client, api.HandleKey(api.PodHandle(j.req.Network, was.Value.Spec.ContainerID)))
	if errors.Is(err, store.ErrNotFound) {
		return nil // its DEL has come meanwhile, or its addresses were not ours
	}
	if err != nil {
		return err
	}
	_, err = p.Release(ctx, old)
	return err
}

// answers reports whether an address that the container has already is what is asked for.
func answers(a netip.Addr, want ipam.Request) bool {
	if want.Addr.IsValid() {
		return a == want.Addr
	}
	return a.Is6() == want.V6
}

// planEndpoint writes the endpoint. One that exists under the name is replaced but for its identity, and an earlier ADD of
// the same container has chosen the MAC.
func (h *Handler) planEndpoint(p *ipam.Plan, j *job, was store.Entry[api.WorkloadEndpoint], now time.Time) error {
	w := j.endpoint
	w.Spec.MAC = j.req.MAC
	w.Metadata.Annotations = j.annotations(nil)
	if was.Exists() {
		m := was.Value.Metadata
		w.Metadata.UID, w.Metadata.CreationTimestamp, w.Metadata.Annotations = m.UID, m.CreationTimestamp, j.annotations(m.Annotations)
		if was.Value.Spec.ContainerID == w.Spec.ContainerID && was.Value.Spec.MAC != "" {
			w.Spec.MAC = was.Value.Spec.MAC
		}
	}
	j.mac = w.Spec.MAC
	for _, a := range j.addrs {
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, api.HostPrefix(a.Addr()))
	}
	nats, err := natsOf(j.floating, j.addrs)
	if err != nil {
		return err
	}
	w.Spec.IPNATs = nats
	api.Created(&w, h.cfg.UUID(), now)
	raw, err := api.Encode(&w, was.Raw())
	if err != nil {
		return fmt.Errorf("write %s: %w", j.endpointKey, err)
	}
	if was.Says(raw) {
		return nil
	}
	p.Then(j.endpointKey, func(t *store.Txn) { t.PutRaw(j.endpointKey, raw, was.Rev) })
	return nil
}

// planProfile creates the network's own profile if it is missing: it lets in what is of the same network (anything, for
// Kubernetes) and lets everything out.
func (h *Handler) planProfile(p *ipam.Plan, j *job, was store.Entry[api.Profile], now time.Time) {
	if j.profileKey == "" || was.Exists() {
		return
	}
	name := j.req.Network
	profile := &api.Profile{Spec: api.ProfileSpec{
		Ingress:       []api.Rule{{Action: "Allow"}},
		Egress:        []api.Rule{{Action: "Allow"}},
		LabelsToApply: map[string]string{name: ""},
	}}
	if j.endpoint.Spec.Orchestrator != "k8s" {
		profile.Spec.Ingress[0].Source.Selector = "has(" + name + ")"
	}
	profile.Metadata.Name = name
	api.Created(profile, h.cfg.UUID(), now)
	p.Then(j.profileKey, func(t *store.Txn) { store.Put(t, was, profile) })
}

// planUnregister is planDel, but for the addresses of another interface: a handle is a whole container's.
func (h *Handler) planUnregister(ctx context.Context, p *ipam.Plan, j *job, was prior) error {
	if !belongsTo(was.endpoint, j.req.ContainerID) && was.handle.Exists() {
		shared, err := h.hasOther(ctx, j)
		switch {
		case err != nil:
			return err
		case shared:
			return h.planFence(p, j, was)
		}
	}
	return h.planUndo(ctx, p, j, was)
}

// planUndo is planDel for an ADD whose commit may have yet to reach etcd.
func (h *Handler) planUndo(ctx context.Context, p *ipam.Plan, j *job, was prior) error {
	if !was.handle.Exists() && !belongsTo(was.endpoint, j.req.ContainerID) {
		return h.planFence(p, j, was)
	}
	return h.planDel(ctx, p, j, was)
}

// planFence is the DEL of what is not there. An ADD of the container may be under way still, whose caller was told nothing, or has died: reaching etcd
// after the DEL, it would give an address to nobody. So the DEL depends on its not having come yet, and makes it fail when it does. This is one small
// write that a DEL costs which finds nothing, but for one after another by this handler.
func (h *Handler) planFence(p *ipam.Plan, j *job, was prior) error {
	if h.written.gone(j.handleKey) {
		return nil
	}
	j.fenced = !was.handle.Exists()
	if !p.Fence(h.cfg.Machine) {
		if j.fresh {
			return nil
		}
		j.fresh = true
		return fmt.Errorf("%w: what is in memory says that no ADD can be under way", store.ErrConflict)
	}
	p.Then(j.handleKey, func(t *store.Txn) { t.Expect(j.handleKey, was.handle.Rev) })
	if j.endpointKey != "" {
		p.Then(j.endpointKey, func(t *store.Txn) { t.Expect(j.endpointKey, was.endpoint.Rev) })
	}
	return nil
}

// hasOther reports whether the container has an endpoint under another interface's name. It reads etcd itself.
func (h *Handler) hasOther(ctx context.Context, j *job) (bool, error) {
	s := j.endpoint.Spec
	prefix := api.WorkloadEndpointsPrefix(j.endpoint.Metadata.Namespace, s.Node, s.Orchestrator, cmp.Or(s.Pod, s.ContainerID))
	got, _, err := h.cfg.Client.Read(ctx, store.Range{Key: prefix, Prefix: true})
	if err != nil {
		return false, err
	}
	for _, kv := range got[0] {
		e, err := store.Decode[api.WorkloadEndpoint](kv)
		if err != nil || e.Value.Spec.ContainerID == j.req.ContainerID {
			return err == nil, err
		}
	}
	return false, nil
}

// planDel takes the job's addresses and endpoint out.
func (h *Handler) planDel(ctx context.Context, p *ipam.Plan, j *job, was prior) error {
	freed, err := p.Release(ctx, was.handle)
	if err != nil {
		return err
	}
	j.addrs = freed
	if w := was.endpoint; belongsTo(w, j.req.ContainerID) {
		p.Then(j.endpointKey, func(t *store.Txn) { t.Delete(w.Key, w.Rev) })
	}
	return nil
}
