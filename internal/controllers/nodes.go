package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// podsEnd is how long to wait before looking again whether the pods of a node that is gone are gone too: Kubernetes' own garbage collector takes
// about a minute.
const podsEnd = 10 * time.Second

// nodes keeps Nodes as Kubernetes' nodes are: their labels, and whether they exist at all. It concerns only those that say which node of Kubernetes
// they are.
type nodes struct {
	*tools
	kube   Cluster
	labels bool          // keep the labels
	grace  time.Duration // for which a node must be missing in Kubernetes: an agent may register before its kubelet does

	mu      sync.Mutex
	missing map[string]time.Time // names in Kubernetes, since when
	kept    map[string]string    // Nodes that are not deleted, and why, as said
}

// all implements subject.
func (n *nodes) all(snap feed.Snapshot) (keys []string) {
	for key := range snap.Nodes() {
		keys = append(keys, key)
	}
	return keys
}

// concerned implements subject.
func (n *nodes) concerned(_ feed.Snapshot, key string) []string {
	if _, ok := under(key, api.NodeKey("")); ok {
		return []string{key}
	}
	return nil
}

// watch asks for the Nodes of a node of Kubernetes to be looked at when that comes, goes, or is labelled anew.
func (n *nodes) watch(q *queue) error {
	return n.tools.kube.watch("nodes", n.tools.kube.factory.Core().V1().Nodes().Informer(), func(was, is any) {
		o, _ := is.(*corev1.Node)
		if o == nil {
			o, _ = was.(*corev1.Node)
		}
		if o == nil {
			return
		}
		if is != nil {
			n.came(o.Name)
		}
		snap, _ := n.feed.Snapshot()
		for key, e := range snap.Nodes() {
			if name, ok := kubeconv.KubernetesName(e.Value); ok && name == o.Name {
				q.look(key)
			}
		}
	})
}

// put implements subject.
func (n *nodes) put(ctx context.Context, key string) (time.Duration, error) {
	name, _ := under(key, api.NodeKey(""))
	snap, _ := n.feed.Snapshot()
	e := snap.Node(name)
	if locked(snap) || !e.Exists() {
		return 0, nil
	}
	in, ok := kubeconv.KubernetesName(e.Value)
	if !ok {
		return 0, nil
	}
	is, err := n.kube.Node(in)
	if err != nil {
		return 0, err
	}
	if is == nil {
		return n.gone(ctx, snap, e, in)
	}
	n.seen(name, in)
	if err := n.back(ctx, snap, name); err != nil {
		return 0, err
	}
	if !n.labels {
		return 0, nil
	}
	return 0, n.label(ctx, key, e, is)
}

func (n *nodes) seen(name, in string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.missing, in)
	delete(n.kept, name)
}

// came notes that Kubernetes has a node. Whoever looks may be late: a node that comes and goes again until then is missing anew, and its Node is not to go at once.
func (n *nodes) came(in string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.missing, in)
}

// label gives a Node the labels of its node of Kubernetes.
func (n *nodes) label(ctx context.Context, key string, e store.Entry[api.Node], is *corev1.Node) error {
	probe := *e.Value
	if !kubeconv.Label(&probe, is.Labels) {
		return nil
	}
	if err := n.limit.Wait(ctx); err != nil {
		return err
	}
	wrote, err := store.Mutate(ctx, n.store, key, func(v *api.Node, exists bool) (bool, error) {
		return exists && kubeconv.Label(v, is.Labels), nil
	})
	if err != nil {
		return err
	}
	n.wrote(wrote.Key, wrote.Raw(), wrote.Rev)
	return nil
}

// gone deletes a Node whose node Kubernetes has not had for a while, with all that it holds. A node that has pods is not gone: Kubernetes has yet to find
// out that they are, and until then their addresses are in use.
func (n *nodes) gone(ctx context.Context, snap feed.Snapshot, node store.Entry[api.Node], in string) (again time.Duration, err error) {
	name := node.Value.Metadata.Name
	if !settled(snap) {
		return 0, nil
	}
	if left := n.missed(in); left > 0 {
		return left, nil
	}
	judge := func(ctx context.Context) (why string, err error) {
		is, err := n.kube.NodeNow(ctx, in)
		if err != nil {
			return "", err
		}
		if is != nil {
			return "", errStale
		}
		return n.inUse(ctx, snap, name, in)
	}
	why, err := judge(ctx)
	if err == nil && why == "" {
		why, err = n.remove(ctx, node, identityOf(snap, name), in, judge)
	}
	if err != nil || why == "" {
		return 0, err
	}
	n.keep(name, in, why)
	return podsEnd, nil
}

// back takes back that a node is leaving, which Kubernetes has again: a deletion that was begun, and whose transactions may yet come to etcd, fails from then on.
func (n *nodes) back(ctx context.Context, snap feed.Snapshot, name string) error {
	if e := snap.Identity(name); !e.Exists() || !e.Value.Leaving {
		return nil
	}
	wrote, err := store.Mutate(ctx, n.store, api.IdentityKey(name), func(v *api.NodeIdentity, exists bool) (bool, error) {
		was := v.Leaving
		v.Leaving = false
		return exists && was, nil
	})
	if err != nil {
		return err
	}
	n.wrote(wrote.Key, wrote.Raw(), wrote.Rev)
	n.log.Info("Kubernetes has a node again whose Node was about to be deleted: it stays", "node", name)
	return nil
}

// missed notes that a node is missing, and says how long it must be so yet.
func (n *nodes) missed(in string) (left time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	since, known := n.missing[in]
	if !known {
		since = n.now()
		n.missing[in] = since
	}
	return n.grace - n.now().Sub(since)
}

// inUse says why a node's addresses may be in use although Kubernetes has no such node; "" if they are not. What is not Kubernetes' nobody here can
// judge.
func (n *nodes) inUse(ctx context.Context, snap feed.Snapshot, name, in string) (string, error) {
	pods, err := n.kube.PodsOn(in)
	if err != nil {
		return "", err
	}
	if len(pods) > 0 {
		return fmt.Sprintf("Kubernetes still has pods on it: %s/%s", pods[0].Namespace, pods[0].Name), nil
	}
	for _, e := range snap.EndpointsOn(name) {
		if s := e.Value.Spec; s.Orchestrator != "k8s" {
			return fmt.Sprintf("it has endpoints that are not Kubernetes': %s", e.Key), nil
		}
	}
	for _, e := range snap.Blocks() {
		for _, h := range ipam.Holdings(e.Value) {
			if h.Attrs[api.AttrNode] == name && h.Attrs[api.AttrType] == "" && (h.Attrs[api.AttrPod] == "" || h.Attrs[api.AttrNamespace] == "") {
				return fmt.Sprintf("it has addresses of which nobody knows whose they are: %v, handle %s", h.Addr, h.Handle), nil
			}
		}
	}
	p, err := n.kube.RunsNow(ctx, in)
	if err != nil || p == nil {
		return "", err
	}
	return fmt.Sprintf("Kubernetes still has pods on it: %s/%s", p.Namespace, p.Name), nil
}

// keep says once why a Node stays.
func (n *nodes) keep(name, in, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.kept[name] == "" {
		n.log.Warn("Kubernetes has no such node any more, but the Node stays: muslinctl delete node deletes it all the same", "node", name, "kubernetes_node", in, "why", why)
	}
	n.kept[name] = why
}

// remove deletes a Node, and before it what the node's endpoints, tunnels and blocks hold. It may be interrupted anywhere: the Node goes last, and
// while it is there it is tried again. Whether the node is gone is judged again once that it is leaving has been written: an agent that registers before that is one
// whose node Kubernetes has, and one that registers after it makes all that follows fail. why says why the Node stays; "" if it does not.
func (n *nodes) remove(ctx context.Context, node store.Entry[api.Node], identity store.Entry[api.NodeIdentity], in string, judge func(context.Context) (string, error)) (why string, err error) {
	name := node.Value.Metadata.Name
	err = n.takeAll(ctx, name, node, identity, func() (bool, error) {
		why, err = judge(ctx)
		return why == "", err
	})
	if err != nil {
		return "", fmt.Errorf("delete the Node %s, whose node Kubernetes does not have: %w", name, err)
	}
	if why != "" {
		return why, nil
	}
	n.seen(name, in)
	n.meters.wrote("delete")
	n.log.Info("deleted a Node that Kubernetes does not have any more, and freed what it held", "node", name, "kubernetes_node", in)
	return "", nil
}

// takeAll takes back all that a node had which was judged to be gone while Node and record were as given; they may not exist. Each transaction rests on that.
// still judges once more when it has begun; where it says no, nothing is taken. The error is errStale where the node has come back.
func (t *tools) takeAll(ctx context.Context, name string, node store.Entry[api.Node], identity store.Entry[api.NodeIdentity], still func() (bool, error)) error {
	gone, changed, err := ipam.Depart(ctx, t.store, name, node, identity)
	t.feed.Commit(changed)
	goes := false
	if err == nil {
		goes, err = still()
	}
	if err == nil && goes {
		c := objects.Client{Store: t.store, UUID: t.uuid, Now: t.now, Notice: func(text string) { t.log.Info("while a Node is deleted", "node", name, "notice", text) }}
		err = c.DeleteNode(ctx, name, gone)
	}
	if errors.Is(err, store.ErrConflict) || errors.Is(err, ipam.ErrCameBack) {
		return fmt.Errorf("%w: %w", errStale, err)
	}
	return err
}
