package controllers

import (
	"context"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// endpoints keeps what endpoints say of their pods as the pods are now: labels may change while they run. It makes no endpoint and deletes none.
type endpoints struct{ *tools }

// all implements subject.
func (e *endpoints) all(snap feed.Snapshot) (keys []string) {
	for key := range snap.Endpoints() {
		keys = append(keys, key)
	}
	return keys
}

// concerned implements subject.
func (e *endpoints) concerned(_ feed.Snapshot, key string) []string {
	if _, ok := under(key, (*api.WorkloadEndpoint)(nil).KindOf().Prefix()); ok {
		return []string{key}
	}
	return nil
}

// put implements subject.
func (e *endpoints) put(ctx context.Context, key string) (time.Duration, error) {
	snap, _ := e.feed.Snapshot()
	entry := snap.Endpoint(key)
	if locked(snap) || !entry.Exists() || entry.Value.Spec.Orchestrator != "k8s" || entry.Value.Spec.Pod == "" {
		return 0, nil
	}
	w := entry.Value
	pod, err := e.kube.Pod(w.Metadata.Namespace, w.Spec.Pod)
	if pod == nil || err != nil || finished(pod) {
		return 0, err
	}
	if on, ok := kubeName(snap, w.Spec.Node); !ok || on != pod.Spec.NodeName {
		return 0, nil // left behind by a pod that was of that name
	}
	is := kubeconv.Pod(pod)
	if maps.Equal(is.Labels, w.Metadata.Labels) && is.ServiceAccount == w.Spec.ServiceAccountName {
		return 0, nil
	}
	next := *w
	next.Metadata.Labels, next.Spec.ServiceAccountName = is.Labels, is.ServiceAccount
	if err := e.limit.Wait(ctx); err != nil {
		return 0, err
	}
	// Not merged into what somebody else wrote meanwhile: that may be another container's by now.
	wrote, err := store.Update(ctx, e.store, entry, &next)
	if err != nil {
		return 0, err
	}
	e.wrote(wrote.Key, wrote.Raw(), wrote.Rev)
	return 0, nil
}

// watch asks for the endpoints of a pod to be looked at when what they say of it has changed. A pod that is new has no endpoint yet, and its endpoint's
// appearance is a change in etcd.
func (e *endpoints) watch(q *queue) error {
	return e.kube.watch("pods", e.kube.factory.Core().V1().Pods().Informer(), func(was, is any) {
		before, _ := was.(*corev1.Pod)
		now, _ := is.(*corev1.Pod)
		if before == nil || now == nil || maps.Equal(before.Labels, now.Labels) && before.Spec.ServiceAccountName == now.Spec.ServiceAccountName &&
			before.Spec.NodeName == now.Spec.NodeName {
			return
		}
		snap, _ := e.feed.Snapshot()
		for _, n := range snap.Nodes() {
			if name, ok := kubeconv.KubernetesName(n.Value); ok && name == now.Spec.NodeName {
				q.look(e.of(snap, n.Value.Metadata.Name, now)...)
			}
		}
	})
}

// of lists the endpoints on a node that bear a pod's name.
func (e *endpoints) of(snap feed.Snapshot, node string, p *corev1.Pod) (keys []string) {
	for key, w := range snap.EndpointsOn(node) {
		if w.Value.Spec.Pod == p.Name && w.Value.Metadata.Namespace == p.Namespace {
			keys = append(keys, key)
		}
	}
	return keys
}
