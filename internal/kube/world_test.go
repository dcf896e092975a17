package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/muslin-cni/muslin/internal/kube"
)

// world is an API server with a namespace and a node name of the test's own. It is client-go's fake one, or the one that the kubeconfig in
// MUSLIN_KUBECONFIG leads to.
type world struct {
	t               *testing.T
	cs              kubernetes.Interface
	api             *watched
	node, namespace string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	id := fmt.Sprintf("muslin-%d-%d", os.Getpid(), time.Now().UnixNano()%1e9)
	w := &world{t: t, node: id, namespace: id}
	if path := os.Getenv("MUSLIN_KUBECONFIG"); path != "" {
		access, err := kube.AccessFrom(path, os.Getenv)
		w.must(err)
		server, err := kube.Open(access)
		w.must(err)
		w.cs, err = kubernetes.NewForConfig(access.Config)
		w.must(err)
		w.api = &watched{API: server}
	} else {
		w.cs = fake.NewClientset()
		w.api = &watched{API: clientset{w.cs}}
	}
	_, err := w.cs.CoreV1().Namespaces().Create(w.ctx(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: id, Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"pools": "blue"},
	}}, metav1.CreateOptions{})
	w.must(err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.cs.CoreV1().Namespaces().Delete(ctx, id, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	w.t.Cleanup(cancel)
	return ctx
}

// start follows the API server until the test ends.
func (w *world) start() *kube.Node {
	w.t.Helper()
	n := kube.New(kube.Config{API: w.api, Name: w.node, Namespace: w.namespace, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return n
}

// until waits for a condition that the API server brings about.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			w.t.Fatal("in vain waited until ", what)
		}
		select {
		case <-w.t.Context().Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// pod creates a pod on a node.
func (w *world) pod(name, node string, with ...func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "default", Containers: []corev1.Container{{
			Name: "c", Image: "none", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}},
		}}},
	}
	if _, fake := w.cs.(*fake.Clientset); fake {
		p.UID = types.UID("uid-of-" + name)
	}
	for _, f := range with {
		f(p)
	}
	var out *corev1.Pod
	w.until("the pod could be created", func() bool { // the namespace's service account comes a moment after the namespace
		var err error
		out, err = w.cs.CoreV1().Pods(w.namespace).Create(w.ctx(), p, metav1.CreateOptions{})
		if err != nil && !strings.Contains(err.Error(), "serviceaccount") {
			w.t.Fatal(err)
		}
		return err == nil
	})
	return out
}

// watched counts what is asked of an API server, and can take it away.
type watched struct {
	kube.API
	gets atomic.Int32
	away atomic.Bool
}

var errAway = errors.New("the API server is away")

func (a *watched) Get(ctx context.Context, r kube.Resource, namespace, name string) (runtime.Object, error) {
	a.gets.Add(1)
	if a.away.Load() {
		return nil, errAway
	}
	return a.API.Get(ctx, r, namespace, name)
}

func (a *watched) Lists(r kube.Resource, o kube.Only) cache.ListerWatcher {
	inner := cache.ToListerWatcherWithContext(a.API.Lists(r, o))
	return listed{&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			if a.away.Load() {
				return nil, errAway
			}
			return inner.ListWithContext(ctx, opts)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			if a.away.Load() {
				return nil, errAway
			}
			return inner.WatchWithContext(ctx, opts)
		},
	}}
}

// listed is read by a list and then a watch: client-go's fake clients do not begin a watch with what there is.
type listed struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is what client-go asks.
func (listed) IsWatchListSemanticsUnSupported() bool { return true }

// clientset is a kube.API by client-go's fake clients, with the field selectors that those pass over.
type clientset struct{ cs kubernetes.Interface }

func (c clientset) Lists(r kube.Resource, o kube.Only) cache.ListerWatcher {
	want := fields.ParseSelectorOrDie(o.Fields)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			list, err := c.list(ctx, r, o.Namespace, opts)
			if err != nil {
				return nil, err
			}
			all, err := meta.ExtractList(list)
			var kept []runtime.Object
			for _, i := range all {
				if want.Matches(fieldsOf(i)) {
					kept = append(kept, i)
				}
			}
			return list, errors.Join(err, meta.SetList(list, kept))
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			if opts.SendInitialEvents != nil { // the fake one would pass over it, and say nothing of what there is
				return nil, apierrors.NewInvalid(schema.GroupKind{}, "", nil)
			}
			all, err := c.watch(ctx, r, o.Namespace, opts)
			if err != nil {
				return nil, err
			}
			return watch.Filter(all, func(e watch.Event) (watch.Event, bool) { return e, want.Matches(fieldsOf(e.Object)) }), nil
		},
	}
}

func fieldsOf(o runtime.Object) fields.Set {
	m, ok := o.(metav1.Object)
	if !ok {
		return nil
	}
	out := fields.Set{"metadata.name": m.GetName()}
	if p, ok := o.(*corev1.Pod); ok {
		out["spec.nodeName"] = p.Spec.NodeName
	}
	return out
}

func (c clientset) list(ctx context.Context, r kube.Resource, ns string, opts metav1.ListOptions) (runtime.Object, error) {
	v1 := c.cs.CoreV1()
	switch r {
	case kube.Pods:
		return v1.Pods(ns).List(ctx, opts)
	case kube.Namespaces:
		return v1.Namespaces().List(ctx, opts)
	case kube.Nodes:
		return v1.Nodes().List(ctx, opts)
	case kube.Secrets:
		return v1.Secrets(ns).List(ctx, opts)
	case kube.Services:
		return v1.Services(ns).List(ctx, opts)
	}
	return c.cs.DiscoveryV1().EndpointSlices(ns).List(ctx, opts)
}

func (c clientset) watch(ctx context.Context, r kube.Resource, ns string, opts metav1.ListOptions) (watch.Interface, error) {
	v1 := c.cs.CoreV1()
	switch r {
	case kube.Pods:
		return v1.Pods(ns).Watch(ctx, opts)
	case kube.Namespaces:
		return v1.Namespaces().Watch(ctx, opts)
	case kube.Nodes:
		return v1.Nodes().Watch(ctx, opts)
	case kube.Secrets:
		return v1.Secrets(ns).Watch(ctx, opts)
	case kube.Services:
		return v1.Services(ns).Watch(ctx, opts)
	}
	return c.cs.DiscoveryV1().EndpointSlices(ns).Watch(ctx, opts)
}

func (c clientset) Get(ctx context.Context, r kube.Resource, namespace, name string) (runtime.Object, error) {
	switch r {
	case kube.Pods:
		return c.cs.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	case kube.Nodes:
		return c.cs.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	}
	return c.cs.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
}

func (c clientset) PatchNode(ctx context.Context, name string, conditions ...corev1.NodeCondition) error {
	body, err := kube.ConditionsPatch(conditions)
	if err != nil {
		return err
	}
	_, err = c.cs.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	return err
}
