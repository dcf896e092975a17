package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// cluster is what Kubernetes has: from caches that informers keep, and, where it must be certain, from the API server itself. A kind that no
// controller needs has no cache.
type cluster struct {
	client  kubernetes.Interface
	factory informers.SharedInformerFactory
	log     *slog.Logger

	mu     sync.Mutex
	failed map[string]bool // kinds that cannot be listed, as said
}

// onNode is the index of pods by the node that they are bound to.
const onNode = "node"

func newCluster(client kubernetes.Interface, log *slog.Logger) *cluster {
	return &cluster{
		client: client, factory: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim)), log: log, failed: map[string]bool{},
	}
}

// trim forgets what nobody here reads: a cluster's pods take most of the memory.
func trim(o any) (any, error) {
	m, ok := o.(metav1.ObjectMetaAccessor)
	if !ok {
		return o, nil // the last state of something that was deleted
	}
	m.GetObjectMeta().SetManagedFields(nil)
	switch v := o.(type) {
	case *corev1.Pod:
		v.Annotations = nil
		v.Spec = corev1.PodSpec{NodeName: v.Spec.NodeName, ServiceAccountName: v.Spec.ServiceAccountName}
		v.Status = corev1.PodStatus{Phase: v.Status.Phase, PodIP: v.Status.PodIP, PodIPs: v.Status.PodIPs}
	case *corev1.Node:
		v.Annotations = nil
		v.Status = corev1.NodeStatus{Conditions: v.Status.Conditions}
	case *corev1.ServiceAccount:
		v.Annotations, v.Secrets, v.ImagePullSecrets = nil, nil, nil
	}
	return o, nil
}

// watch makes the cluster keep a cache of a kind and calls changed for whatever changes there: with the object as it was, nil where it is new, and
// as it is, nil where it is gone. It must be called before start.
func (c *cluster) watch(kind string, i cache.SharedIndexInformer, changed func(was, is any)) error {
	err := i.SetWatchErrorHandler(func(_ *cache.Reflector, err error) { c.say(kind, err) })
	if err != nil {
		return fmt.Errorf("watch %s: %w", kind, err)
	}
	_, err = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { c.say(kind, nil); changed(nil, o) },
		UpdateFunc: func(was, is any) { c.say(kind, nil); changed(was, is) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			changed(o, nil)
		},
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", kind, err)
	}
	return nil
}

// say logs once that a kind cannot be followed, and once that it can again.
func (c *cluster) say(kind string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil && c.failed[kind]:
		delete(c.failed, kind)
		c.log.Info("Kubernetes tells of objects again", "kind", kind)
	case err == nil || c.failed[kind]:
	case apierrors.IsForbidden(err):
		c.failed[kind] = true
		c.log.Error("Kubernetes does not let us see objects: give the service account get, list and watch on them", "kind", kind, "error", err)
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err): // listed anew at once
	default:
		c.failed[kind] = true
		c.log.Warn("Kubernetes does not tell of objects; it is tried again", "kind", kind, "error", err)
	}
}

// start fills the caches and returns when they are complete, or with ctx's error. They are kept up to date until ctx ends; stop waits for that.
func (c *cluster) start(ctx context.Context) error {
	c.factory.Start(ctx.Done())
	for kind, ok := range c.factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return fmt.Errorf("list %v: %w", kind, context.Cause(ctx))
		}
	}
	return nil
}

func (c *cluster) stop() { c.factory.Shutdown() }

func (c *cluster) namespace(name string) (*corev1.Namespace, error) {
	return absent(c.factory.Core().V1().Namespaces().Lister().Get(name))
}

func (c *cluster) account(namespace, name string) (*corev1.ServiceAccount, error) {
	return absent(c.factory.Core().V1().ServiceAccounts().Lister().ServiceAccounts(namespace).Get(name))
}

func (c *cluster) policy(namespace, name string) (*networkingv1.NetworkPolicy, error) {
	return absent(c.factory.Networking().V1().NetworkPolicies().Lister().NetworkPolicies(namespace).Get(name))
}

// Pod implements Cluster.
func (c *cluster) Pod(namespace, name string) (*corev1.Pod, error) {
	return absent(c.factory.Core().V1().Pods().Lister().Pods(namespace).Get(name))
}

// Node implements Cluster.
func (c *cluster) Node(name string) (*corev1.Node, error) {
	return absent(c.factory.Core().V1().Nodes().Lister().Get(name))
}

// absent makes nil of "not found".
func absent[T any](o *T, err error) (*T, error) {
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return o, err
}

// PodsOn implements Cluster: the pods that a node runs.
func (c *cluster) PodsOn(node string) (out []*corev1.Pod, err error) {
	list, err := c.factory.Core().V1().Pods().Informer().GetIndexer().ByIndex(onNode, node)
	for _, o := range list {
		if p, ok := o.(*corev1.Pod); ok && !finished(p) {
			out = append(out, p)
		}
	}
	return out, err
}

// indexPods must be called before start by whoever uses PodsOn.
func (c *cluster) indexPods() error {
	return c.factory.Core().V1().Pods().Informer().AddIndexers(cache.Indexers{onNode: func(o any) ([]string, error) {
		p, ok := o.(*corev1.Pod)
		if !ok || p.Spec.NodeName == "" {
			return nil, nil
		}
		return []string{p.Spec.NodeName}, nil
	}})
}

// finished reports whether all containers of a pod have ended for good: it has no network any more.
func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// The following ask the API server itself.

func (c *cluster) hasNamespace(ctx context.Context, name string) (bool, error) {
	_, err := c.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	return there("namespace "+name, err)
}

func (c *cluster) hasAccount(ctx context.Context, namespace, name string) (bool, error) {
	_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
	return there("service account "+namespace+"/"+name, err)
}

func (c *cluster) hasPolicy(ctx context.Context, namespace, name string) (bool, error) {
	_, err := c.client.NetworkingV1().NetworkPolicies(namespace).Get(ctx, name, metav1.GetOptions{})
	return there("NetworkPolicy "+namespace+"/"+name, err)
}

// there makes of a GET's error whether the object exists. A refusal of any other kind says nothing of that.
func there(what string, err error) (bool, error) {
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsNotFound(err):
		return false, nil
	}
	return false, fmt.Errorf("ask the API server for %s: %w", what, err)
}

// NodeNow is a node as the API server has it; nil if it has none.
func (c *cluster) NodeNow(ctx context.Context, name string) (*corev1.Node, error) {
	n, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if ok, err := there("node "+name, err); !ok {
		return nil, err
	}
	return n, nil
}

// PodNow is a pod as the API server has it; nil if it has none.
func (c *cluster) PodNow(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	p, err := c.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if ok, err := there("pod "+namespace+"/"+name, err); !ok {
		return nil, err
	}
	return p, nil
}

// RunsNow reports whether the API server has a pod that a node runs, and which.
func (c *cluster) RunsNow(ctx context.Context, node string) (*corev1.Pod, error) {
	list, err := c.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String()})
	if err != nil {
		return nil, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	for i, p := range list.Items {
		if p.Spec.NodeName == node && !finished(&p) {
			return &list.Items[i], nil
		}
	}
	return nil, nil
}

// answers reports whether the API server is there.
func (c *cluster) answers(ctx context.Context) error {
	rest := c.client.Discovery().RESTClient()
	if rest == nil {
		return errors.New("there is no API server to ask")
	}
	return rest.Get().AbsPath("/healthz").Do(ctx).Error()
}
