package controllers

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// hosts makes host endpoints for nodes of Kubernetes, as its settings ask. Those that it has made bear a label, and only they are changed and deleted.
type hosts struct {
	*tools
	settings *api.AutoHostEndpoint

	mu   sync.Mutex
	lost map[string]string // by node: what cannot be made, as said
}

func hostKey(name string) string { return (*api.HostEndpoint)(nil).KindOf().Key("", name) }

// of makes the host endpoints that a node shall have, by key.
func (h *hosts) of(n *api.Node) map[string]*api.HostEndpoint {
	out := map[string]*api.HostEndpoint{}
	if _, ok := kubeconv.KubernetesName(n); !ok {
		return out
	}
	made, lost := kubeconv.HostEndpoints(n, h.settings)
	for _, e := range made {
		out[api.KeyOf(e)] = e
	}
	h.say(n.Metadata.Name, lost)
	return out
}

func (h *hosts) say(node string, lost []error) {
	var texts []string
	for _, e := range lost {
		texts = append(texts, e.Error())
	}
	text := strings.Join(texts, "; ")
	h.mu.Lock()
	defer h.mu.Unlock()
	if text != "" && h.lost[node] != text {
		h.log.Warn("host endpoints of a node cannot be made", "node", node, "error", text)
	}
	h.lost[node] = text
}

// all implements subject.
func (h *hosts) all(snap feed.Snapshot) (keys []string) {
	for _, n := range snap.Nodes() {
		for key := range h.of(n.Value) {
			keys = append(keys, key)
		}
	}
	for key, o := range snap.Objects(feed.HostEndpoints) {
		if e, ok := o.(*api.HostEndpoint); ok && kubeconv.AutoHostEndpoint(e) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// concerned implements subject: a host endpoint concerns itself, and a node those that it shall have and those that it has.
func (h *hosts) concerned(snap feed.Snapshot, key string) (keys []string) {
	if _, ok := under(key, hostKey("")); ok {
		return []string{key}
	}
	name, ok := under(key, api.NodeKey(""))
	if !ok {
		return nil
	}
	if n := snap.Node(name); n.Exists() {
		for key := range h.of(n.Value) {
			keys = append(keys, key)
		}
	}
	for key, o := range snap.Objects(feed.HostEndpoints) {
		if e, ok := o.(*api.HostEndpoint); ok && kubeconv.AutoHostEndpoint(e) && e.Spec.Node == name {
			keys = append(keys, key)
		}
	}
	return keys
}

// put implements subject.
func (h *hosts) put(ctx context.Context, key string) (time.Duration, error) {
	snap, _ := h.feed.Snapshot()
	if locked(snap) {
		return 0, nil
	}
	have, _ := snap.Object(key).(*api.HostEndpoint)
	if have != nil && !kubeconv.AutoHostEndpoint(have) {
		return 0, nil // somebody's own
	}
	want := h.want(snap, key)
	switch {
	case want == nil && have == nil:
		return 0, nil
	case want == nil:
		return 0, h.drop(ctx, snap, key)
	case have != nil && same(have, mergeHost(have, want)):
		return 0, nil
	}
	return 0, write(ctx, h.tools, key, want, have == nil, mergeHost)
}

// want is what a key shall hold; nil: nothing.
func (h *hosts) want(snap feed.Snapshot, key string) *api.HostEndpoint {
	name, _ := under(key, hostKey(""))
	for _, n := range snap.Nodes() {
		if !strings.HasPrefix(name, n.Value.Metadata.Name+"-") {
			continue
		}
		if e := h.of(n.Value)[key]; e != nil {
			return e
		}
	}
	return nil
}

// mergeHost leaves a host endpoint that has become somebody's own as it is.
func mergeHost(have, want *api.HostEndpoint) *api.HostEndpoint {
	if !kubeconv.AutoHostEndpoint(have) {
		return have
	}
	next := *have
	next.Spec, next.Metadata.Labels = want.Spec, want.Metadata.Labels
	return &next
}

// drop deletes a host endpoint that no node wants, if it still is one of ours.
func (h *hosts) drop(ctx context.Context, snap feed.Snapshot, key string) error {
	if !settled(snap) {
		return nil
	}
	got, _, err := h.store.Read(ctx, store.Range{Key: key})
	if err != nil || len(got[0]) == 0 {
		return err
	}
	e, err := store.Decode[api.HostEndpoint](got[0][0])
	if err != nil || !kubeconv.AutoHostEndpoint(e.Value) {
		return err
	}
	return h.dropAt(ctx, got[0][0])
}
