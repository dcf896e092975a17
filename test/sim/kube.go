package sim

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kube is Kubernetes: what its API server has, and what happened there lately. Its nodes are the hosts, by the same names, and all its pods are of one namespace.
//
// Who asks it through a cache is told of what happened when that is drawn, and who begins anew may be given a list that is out of date: an API server answers
// lists from a cache of its own.
type kube struct {
	now  apiObjects
	then apiObjects // before all in log
	log  []happening
}

// apiObjects are an API server's, or a cache's.
type apiObjects struct {
	nodes map[string]*corev1.Node
	pods  map[string]*corev1.Pod
}

// happening is a change of one object: what it is from then on, nil where it is gone.
type happening struct {
	name string
	node *corev1.Node
	pod  *corev1.Pod
	pods bool // it is a pod
}

// maxStale is how many changes a list may be behind.
const maxStale = 100

func newKube() *kube { return &kube{now: noObjects(), then: noObjects()} }

func noObjects() apiObjects {
	return apiObjects{nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{}}
}

func (o apiObjects) clone() apiObjects { return apiObjects{maps.Clone(o.nodes), maps.Clone(o.pods)} }

func (o apiObjects) take(h happening) {
	switch {
	case h.pods && h.pod == nil:
		delete(o.pods, h.name)
	case h.pods:
		o.pods[h.name] = h.pod
	case h.node == nil:
		delete(o.nodes, h.name)
	default:
		o.nodes[h.name] = h.node
	}
}

// podOn is the first pod by name that a node runs; nil: none.
func (o apiObjects) podOn(node string) *corev1.Pod {
	for _, name := range slices.Sorted(maps.Keys(o.pods)) {
		if p := o.pods[name]; p.Spec.NodeName == node {
			return p
		}
	}
	return nil
}

// happen changes an object, and has caches be behind.
func (w *World) happen(h happening) {
	k := w.kube
	k.now.take(h)
	k.log = append(k.log, h)
	if m := w.manager; m != nil {
		m.untold = append(m.untold, h)
	}
	if len(k.log) > maxStale {
		k.then.take(k.log[0])
		k.log = k.log[1:]
	}
}

// registers has Kubernetes know a host, which reports to it or does not.
func (w *World) registers(n *node, reports corev1.ConditionStatus) {
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	o.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: reports}}
	n.missed = time.Time{}
	w.happen(happening{name: n.name, node: o})
}

// bound has Kubernetes know a pod.
func (w *World) bound(p *pod) {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: p.name(), CreationTimestamp: metav1.NewTime(w.now())}, Spec: corev1.PodSpec{NodeName: p.n.name}}
	w.happen(happening{name: p.name(), pod: o, pods: true})
}

// unbound has Kubernetes forget a pod.
func (w *World) unbound(name string) {
	if w.kube.now.pods[name] != nil {
		w.happen(happening{name: name, pods: true})
	}
}

// forgetPod has Kubernetes forget a pod that its host has not, or has no more: one of a host that is gone, or one that nobody asks for any more.
func (w *World) forgetPod(n *node) bool {
	left := w.leftPods(n)
	if len(left) == 0 {
		return false
	}
	w.unbound(left[w.rnd.IntN(len(left))])
	return true
}

// leftPods are those on a host that Kubernetes has and that are not under way or alive.
func (w *World) leftPods(n *node) (names []string) {
	lives := map[string]bool{}
	for _, p := range n.pods {
		lives[p.name()] = p.state != absent && !n.off
	}
	for _, name := range slices.Sorted(maps.Keys(w.kube.now.pods)) {
		if w.kube.now.pods[name].Spec.NodeName == n.name && !lives[name] {
			names = append(names, name)
		}
	}
	return names
}

// loseHost takes a host's power for good. Kubernetes finds out by and by, and the controllers have to give back what it had: no operator does.
func (w *World) loseHost(n *node) bool {
	if n.off || len(w.nodes) > keepPlans {
		return false
	}
	w.powerOff(n)
	n.off, n.lost = true, true
	w.registers(n, corev1.ConditionUnknown)
	return true
}

// findHost gives a host power again that was lost, as what it was: its agent may register while the controllers take back what it had, or what they have begun
// may come to etcd after that.
func (w *World) findHost(n *node) bool {
	if !n.lost || !w.rules.nodes[n.name] {
		return false
	}
	n.off, n.lost, n.back = false, false, true
	w.registers(n, corev1.ConditionTrue)
	n.boot()
	return true
}

// dropNode deletes a node of Kubernetes: of a host that is lost for good, and of one that lives, which is drained before or not, until its kubelet makes it anew. It is
// not deleted twice before the controllers have heard once that it was there: to them it would be gone all the while, and the API server, which they ask, says the same.
func (w *World) dropNode(n *node) bool {
	if w.kube.now.nodes[n.name] == nil || n.off && !n.lost || !n.off && w.manager.unaware(n.name) {
		return false
	}
	if !n.off && w.chance(500) {
		for _, p := range n.live(running) {
			w.unbound(p.name())
			w.beginDel(p)
			w.settle()
		}
		for _, name := range w.leftPods(n) {
			w.unbound(name)
		}
	}
	n.missed = time.Now()
	w.happen(happening{name: n.name})
	return true
}

// kubeletPatience is for how long a host that lives goes without its node of Kubernetes at most.
const kubeletPatience = nodeGrace / 2

// makeNode has a kubelet make its node anew.
func (w *World) makeNode(n *node) bool {
	if n.off || w.kube.now.nodes[n.name] != nil {
		return false
	}
	w.registers(n, corev1.ConditionTrue)
	return true
}

// kubelets make their nodes anew where it is high time.
func (w *World) kubelets() {
	for _, n := range w.nodes {
		if !n.missed.IsZero() && time.Since(n.missed) >= kubeletPatience {
			w.makeNode(n)
		}
	}
}

// errAway is an API server's that cannot be reached.
var errAway = errors.New("the API server is away")

// Node implements controllers.Cluster.
func (m *manager) Node(name string) (*corev1.Node, error) { return m.cache.nodes[name], nil }

// Pod implements controllers.Cluster.
func (m *manager) Pod(_, name string) (*corev1.Pod, error) { return m.cache.pods[name], nil }

// PodsOn implements controllers.Cluster.
func (m *manager) PodsOn(node string) (out []*corev1.Pod, err error) {
	if p := m.cache.podOn(node); p != nil {
		out = append(out, p)
	}
	return out, nil
}

// NodeNow implements controllers.Cluster.
func (m *manager) NodeNow(ctx context.Context, name string) (*corev1.Node, error) {
	return now(ctx, m, "node "+name, func(o apiObjects) *corev1.Node { return o.nodes[name] })
}

// PodNow implements controllers.Cluster.
func (m *manager) PodNow(ctx context.Context, _, name string) (*corev1.Pod, error) {
	return now(ctx, m, "pod "+name, func(o apiObjects) *corev1.Pod { return o.pods[name] })
}

// RunsNow implements controllers.Cluster.
func (m *manager) RunsNow(ctx context.Context, node string) (*corev1.Pod, error) {
	return now(ctx, m, "pods of "+node, func(o apiObjects) *corev1.Pod { return o.podOn(node) })
}

// now asks the API server, which may be away, when that is drawn.
func now[T any](ctx context.Context, m *manager, what string, look func(apiObjects) *T) (*T, error) {
	return ask[*T](ctx, m.wire, &call{what: "kubernetes: " + what, door: true, run: func() (any, error) {
		switch w := m.w; {
		case w.faulty() && w.chance(30):
			return (*T)(nil), errAway
		case w.cfg.Spoil.Stale:
			return look(m.cache), nil
		default:
			return look(w.kube.now), nil
		}
	}})
}
