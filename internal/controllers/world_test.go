package controllers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// kubeconfigVariable names a kubeconfig of a real API server, against which the suite runs instead of against client-go's fake one. Every test makes
// namespaces and nodes of its own there, and removes them.
const kubeconfigVariable = "MUSLIN_KUBECONFIG"

// world is an etcd and an API server.
type world struct {
	*testing.T
	etcd *etcdtest.Server
	kube kubernetes.Interface
	real bool
	c    *store.Client
	tag  string // of this test's objects
	log  *lines
}

// lines is a log that a test can search.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, etcd: etcdtest.New(t), log: &lines{}, tag: fmt.Sprintf("t%d", time.Now().UnixNano()%1e9)}
	w.c = w.etcd.Store()
	path := os.Getenv(kubeconfigVariable)
	if path == "" {
		w.kube = fake.NewClientset()
	} else {
		cfg, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Fatal(err)
		}
		cfg.QPS, cfg.Burst = 500, 1000
		w.real, w.kube = true, kubernetes.NewForConfigOrDie(cfg)
	}
	w.put(clusterKey, `{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":true}}`)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", w.log.text.String())
		}
	})
	return w
}

const (
	resources  = "/calico/resources/v3/projectcalico.org/"
	clusterKey = resources + "clusterinformations/default"
)

func (w *world) put(key, value string) {
	w.Helper()
	if _, err := w.etcd.Etcd().Put(w.Context(), key, value); err != nil {
		w.Fatal(err)
	}
}

// get is what etcd has under a key; "" if nothing.
func (w *world) get(key string) string {
	got, _, err := w.c.Read(w.Context(), store.Range{Key: key})
	if err != nil || len(got[0]) == 0 {
		return ""
	}
	return string(got[0][0].Value)
}

// count is how many keys there are with a prefix.
func (w *world) count(prefix string) int {
	got, _, err := w.c.Read(w.Context(), store.Range{Key: prefix, Prefix: true})
	if err != nil {
		return -1
	}
	return len(got[0])
}

func (w *world) until(what string, holds func() bool) {
	w.Helper()
	etcdtest.Until(w, what, holds)
}

// start runs the controllers as their process does; stop ends them and waits. The environment is variables and values in turn.
func (w *world) start(env ...string) (s *service, stop func()) {
	w.Helper()
	values := map[string]string{}
	for i := 0; i+1 < len(env); i += 2 {
		values[env[i]] = env[i+1]
	}
	e, err := readEnvironment(func(name string) string { return values[name] })
	if err != nil {
		w.Fatal(err)
	}
	e.namespace = "kube-system"
	s = newService(e, w.etcd.Store(), w.kube, &slog.LevelVar{}, slog.New(slog.NewTextHandler(w.log, nil)))
	s.grace = time.Millisecond
	if s.lease != nil {
		s.lease.duration, s.lease.renew, s.lease.retry = 2*time.Second, time.Second, 100*time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("the controllers ended: %v", err)
		}
	})
	w.Cleanup(stop)
	return s, stop
}

// must is for calls of the API server.
func must[T any](w *world) func(T, error) T {
	return func(v T, err error) T {
		w.Helper()
		if err != nil {
			w.Fatal(err)
		}
		return v
	}
}

// namespace makes a namespace of this test. A real API server gets it removed at the end.
func (w *world) namespace(name string, labels map[string]string) string {
	w.Helper()
	name = w.tag + name
	must[*corev1.Namespace](w)(w.kube.CoreV1().Namespaces().Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}))
	w.Cleanup(func() { w.dropNamespace(name) })
	return name
}

// dropNamespace deletes a namespace, and, as there is no controller manager beside the API server, its finalizer.
func (w *world) dropNamespace(name string) {
	ctx := context.Background()
	err := w.kube.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		w.Errorf("delete namespace %s: %v", name, err)
	}
	ns, err := w.kube.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if !w.real || err != nil {
		return
	}
	ns.Spec.Finalizers = nil
	if _, err := w.kube.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		w.Errorf("finalize namespace %s: %v", name, err)
	}
}

// kubeNode makes a node of Kubernetes that reports.
func (w *world) kubeNode(name string, labels map[string]string) string {
	w.Helper()
	name = w.tag + name
	n := must[*corev1.Node](w)(w.kube.CoreV1().Nodes().Create(w.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}))
	w.ready(n.Name, corev1.ConditionTrue)
	w.Cleanup(func() { w.dropNode(name) })
	return name
}

func (w *world) ready(node string, is corev1.ConditionStatus) {
	w.Helper()
	n := must[*corev1.Node](w)(w.kube.CoreV1().Nodes().Get(w.Context(), node, metav1.GetOptions{}))
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: is}}
	must[*corev1.Node](w)(w.kube.CoreV1().Nodes().UpdateStatus(w.Context(), n, metav1.UpdateOptions{}))
}

func (w *world) dropNode(name string) {
	err := w.kube.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		w.Errorf("delete node %s: %v", name, err)
	}
}

// node writes a Node that stands for a node of Kubernetes.
func (w *world) node(name, in, more string) {
	w.Helper()
	w.put(api.NodeKey(name), fmt.Sprintf(`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"uid":"u"%s},"spec":{"bgp":{"ipv4Address":"172.30.0.1/24"},"orchRefs":[{"nodeName":%q,"orchestrator":"k8s"}],"future":1},"status":{}}`, name, more, in))
}

// pod makes a pod that runs on a node.
func (w *world) pod(ns, name, node string, labels map[string]string) {
	w.Helper()
	grace := int64(0)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels, CreationTimestamp: metav1.Now()},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "runner", TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}}},
	}
	if w.real {
		sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "runner"}}
		if _, err := w.kube.CoreV1().ServiceAccounts(ns).Create(w.Context(), sa, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			w.Fatal(err)
		}
	}
	must[*corev1.Pod](w)(w.kube.CoreV1().Pods(ns).Create(w.Context(), p, metav1.CreateOptions{}))
}

// dropPod ends a pod, as its kubelet would.
func (w *world) dropPod(ns, name string) {
	w.Helper()
	now := int64(0)
	if err := w.kube.CoreV1().Pods(ns).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		w.Fatal(err)
	}
}

// endpoint writes what an ADD leaves for the pod: endpoint, handle and a block of which the pod has the first address.
func (w *world) endpoint(ns, pod, node, block string) (key string) {
	w.Helper()
	w.address(ns, pod, node, block)
	e := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: node, Pod: pod, Endpoint: "eth0", ContainerID: "c-" + pod, InterfaceName: "cali1"}}
	e.Spec.IPNetworks = []api.Prefix{{}}
	if err := e.Spec.IPNetworks[0].UnmarshalText([]byte(strings.SplitN(block, "/", 2)[0])); err != nil {
		w.Fatal(err)
	}
	e.Metadata.Namespace, e.Metadata.Name = ns, api.WorkloadEndpointName(e.Spec)
	e.Metadata.Labels = map[string]string{"old": "1"}
	raw, err := api.EncodeObject(e, nil)
	if err != nil {
		w.Fatal(err)
	}
	w.put(api.KeyOf(e), string(raw))
	return api.KeyOf(e)
}

// address is endpoint without the endpoint.
func (w *world) address(ns, pod, node, block string) {
	w.Helper()
	w.holding(node, block, "net.c-"+pod, map[string]string{api.AttrNode: node, api.AttrNamespace: ns, api.AttrPod: pod, api.AttrTimestamp: time.Now().UTC().String()})
}

// holding writes a /30 block of a node, of which a handle has the first address.
func (w *world) holding(node, block, handle string, attrs map[string]string) {
	w.Helper()
	text, err := json.Marshal(attrs)
	if err != nil {
		w.Fatal(err)
	}
	w.put(blockKey(block), fmt.Sprintf(`{"cidr":%q,"affinity":"host:%s","allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":%q,"secondary":%s}],"sequenceNumber":5,"sequenceNumberForAllocation":{"0":4},"deleted":false}`,
		block, node, handle, text))
	w.put("/calico/ipam/v2/host/"+node+"/ipv4/block/"+strings.Replace(block, "/", "-", 1), `{"state":"confirmed","deleted":false}`)
	w.put(api.HandleKey(handle), fmt.Sprintf(`{"block":{%q:1},"deleted":false}`, block))
}

func blockKey(cidr string) string {
	return "/calico/ipam/v2/assignment/ipv4/block/" + strings.Replace(cidr, "/", "-", 1)
}

// freed reports whether the block's first address is free, or the block gone.
func (w *world) freed(block string) bool {
	text := w.get(blockKey(block))
	return text == "" || strings.Contains(text, `"allocations":[null`)
}

// grace sets leakGracePeriod.
func (w *world) grace(d time.Duration) {
	w.Helper()
	k := newConfiguration()
	k.Spec.Controllers.Node.LeakGracePeriod = &api.Duration{Duration: d}
	raw, err := api.EncodeObject(k, nil)
	if err != nil {
		w.Fatal(err)
	}
	w.put(configKey(), string(raw))
}

// watched waits until n instances watch some kinds. client-go's fake API server, unlike a real one, forgets what happens between a list and the watch
// that follows it.
func (w *world) watched(n int, kinds ...string) {
	w.Helper()
	fakes, ok := w.kube.(*fake.Clientset)
	if !ok {
		return
	}
	w.until("the API server is watched", func() bool {
		seen := map[string]int{}
		for _, a := range fakes.Actions() {
			if a.GetVerb() == "watch" {
				seen[a.GetResource().Resource]++
			}
		}
		for _, k := range kinds {
			if seen[k] < n {
				return false
			}
		}
		return true
	})
}
