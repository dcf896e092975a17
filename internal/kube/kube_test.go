package kube_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kube"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

func (w *world) ref(p *corev1.Pod) attach.Pod {
	return attach.Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
}

// remembered waits until a pod is answered for without asking.
func (w *world) remembered(n *kube.Node, p *corev1.Pod) {
	w.t.Helper()
	w.until(p.Name+" is followed", func() bool {
		before := w.api.gets.Load()
		_, _, err := n.Pod(w.ctx(), w.ref(p))
		w.must(err)
		return w.api.gets.Load() == before
	})
}

func TestPodIsReadOnceAndThenAnsweredFromMemory(t *testing.T) {
	w := newWorld(t)
	p := w.pod("web", w.node)
	idle := kube.New(kube.Config{API: w.api, Name: w.node, Namespace: w.namespace})
	got, ns, err := idle.Pod(w.ctx(), w.ref(p))
	if err != nil || got.Labels["app"] != "web" || ns.Labels["team"] != "a" || w.api.gets.Load() != 2 {
		t.Errorf("a node that follows nothing yet: %v, %v after %d questions, want both after 2", got, err, w.api.gets.Load())
	}
	n := w.start()
	w.remembered(n, p)
	before := w.api.gets.Load()
	got, ns, err = n.Pod(w.ctx(), w.ref(p))
	if err != nil || w.api.gets.Load() != before {
		t.Fatalf("%v after %d questions, want none", err, w.api.gets.Load()-before)
	}
	if got.Labels["app"] != "web" || got.Spec.ServiceAccountName != "default" || got.Spec.Containers[0].Ports[0].Name != "web" || ns.Annotations["pools"] != "blue" {
		t.Errorf("pod %+v, namespace %+v", got, ns)
	}
	if got.ManagedFields != nil || got.Spec.Containers[0].Image != "" {
		t.Errorf("kept what nobody uses: %+v", got)
	}
	if known, unknown := idle.Looked(); known != 0 || unknown != 1 {
		t.Errorf("counted %d answers from memory and %d questions of a node that follows nothing, want one question", known, unknown)
	}
	if known, _ := n.Looked(); known == 0 {
		t.Error("no answer from memory is counted")
	}
}

func TestOnlyThePodOfTheRuntimesUIDIsAnswered(t *testing.T) {
	w := newWorld(t)
	const fromFile = "0123456789abcdef"
	web := w.pod("web", w.node)
	mirror := w.pod("mirror", w.node, func(p *corev1.Pod) {
		p.Annotations = map[string]string{"kubernetes.io/config.hash": fromFile, "kubernetes.io/config.mirror": fromFile}
		p.Spec.ServiceAccountName = ""
	})
	n := w.start()
	w.remembered(n, web)
	for _, c := range []struct {
		name string
		ref  attach.Pod
		ok   bool
	}{
		{"its own", w.ref(web), true},
		{"none, as of an older runtime", attach.Pod{Namespace: w.namespace, Name: "web"}, true},
		{"another one's", attach.Pod{Namespace: w.namespace, Name: "web", UID: "other"}, false},
		{"that of the file which a mirror stands for", attach.Pod{Namespace: w.namespace, Name: "mirror", UID: fromFile}, true},
		{"the mirror's", w.ref(mirror), true},
		{"that of nobody", attach.Pod{Namespace: w.namespace, Name: "nobody", UID: "x"}, false},
	} {
		if _, _, err := n.Pod(w.ctx(), c.ref); (err == nil) != c.ok {
			t.Errorf("UID %s: %v", c.name, err)
		}
	}
	if _, _, err := n.Pod(w.ctx(), attach.Pod{Namespace: w.namespace, Name: "nobody"}); !apierrors.IsNotFound(err) {
		t.Errorf("a pod that is not there: %v", err)
	}
}

func TestWhatIsKnownStaysWhileTheAPIServerIsAway(t *testing.T) {
	w := newWorld(t)
	p := w.pod("web", w.node)
	n := w.start()
	w.remembered(n, p)
	w.api.away.Store(true)
	if _, _, err := n.Pod(w.ctx(), w.ref(p)); err != nil {
		t.Errorf("a pod that is known: %v", err)
	}
	if _, _, err := n.Pod(w.ctx(), attach.Pod{Namespace: w.namespace, Name: "new", UID: "x"}); !errors.Is(err, errAway) {
		t.Errorf("a pod that is not: %v", err)
	}
	if _, known := n.Members(w.namespace, "web"); known != kube.Coming {
		t.Errorf("services that were asked for just now are %v", known)
	}
	w.api.away.Store(false)
	w.until("services are known", func() bool {
		_, known := n.Members(w.namespace, "web")
		return known == kube.Known
	})
}

// slow does not answer.
type slow struct{ kube.API }

func (slow) Get(ctx context.Context, _ kube.Resource, _, _ string) (runtime.Object, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAPodWaitsForNoAPIServerForLong(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w := newWorld(t)
	w.api.API = slow{w.api.API}
	n := kube.New(kube.Config{API: w.api, Name: w.node})
	if _, _, err := n.Pod(ctx, attach.Pod{Namespace: w.namespace, Name: "web"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func (w *world) service(name string, with func(*corev1.Service)) {
	w.t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	with(s)
	made, err := w.cs.CoreV1().Services(w.namespace).Create(w.ctx(), s, metav1.CreateOptions{})
	w.must(err)
	if len(s.Status.LoadBalancer.Ingress) > 0 {
		made.Status = s.Status
		_, err = w.cs.CoreV1().Services(w.namespace).UpdateStatus(w.ctx(), made, metav1.UpdateOptions{})
		w.must(err)
	}
}

func (w *world) slice(name, service, node string, ready bool, addrs ...string) *discoveryv1.EndpointSlice {
	w.t.Helper()
	port, protocol := int32(8080), corev1.ProtocolTCP
	s, err := w.cs.DiscoveryV1().EndpointSlices(w.namespace).Create(w.ctx(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: w.namespace, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: addrs, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Port: &port, Protocol: &protocol}},
	}, metav1.CreateOptions{})
	w.must(err)
	return s
}

func TestMembersOfServicesAreFollowedFromTheFirstQuestionOn(t *testing.T) {
	w := newWorld(t)
	w.slice("web-1", "web", "elsewhere", true, "10.0.0.1")
	w.slice("other-1", "other", "elsewhere", true, "10.9.9.9")
	n := w.start()
	members := func() string {
		got, known := n.Members(w.namespace, "web")
		return fmt.Sprint(known, got)
	}
	at := func(addrs ...string) string {
		var out []policy.PortMember
		for _, a := range addrs {
			out = append(out, policy.PortMember{Addr: netip.MustParseAddr(a), Protocol: 6, Port: 8080})
		}
		return fmt.Sprint(kube.Known, out)
	}
	w.until("the first answer is there", func() bool { return members() == at("10.0.0.1") })
	second := w.slice("web-2", "web", "elsewhere", false, "10.0.0.2")
	select {
	case <-n.MembersChanged():
	case <-w.ctx().Done():
		t.Fatal("nobody was told of the second slice")
	}
	w.until("both slices count", func() bool { return members() == at("10.0.0.1", "10.0.0.2") })
	w.must(w.cs.DiscoveryV1().EndpointSlices(w.namespace).Delete(w.ctx(), second.Name, metav1.DeleteOptions{}))
	w.until("the second is gone", func() bool { return members() == at("10.0.0.1") })
}

func TestSecretsAreFollowedOneByOne(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	if v, ok := n.Secret("bgp", "password"); ok {
		t.Errorf("a Secret that is not there: %q", v)
	}
	put := w.cs.CoreV1().Secrets(w.namespace)
	_, err := put.Create(w.ctx(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bgp"}, Data: map[string][]byte{"password": []byte("sesame")}}, metav1.CreateOptions{})
	w.must(err)
	is := func(want string) func() bool {
		return func() bool { v, ok := n.Secret("bgp", "password"); return ok && v == want }
	}
	w.until("the password is there", is("sesame"))
	_, err = put.Update(w.ctx(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bgp"}, Data: map[string][]byte{"password": []byte("tahini")}}, metav1.UpdateOptions{})
	w.must(err)
	w.until("it is the new one", is("tahini"))
	if _, ok := n.Secret("bgp", "user"); ok {
		t.Error("there is no such key")
	}
	select {
	case <-n.Changed():
	case <-w.ctx().Done():
		t.Error("nobody was told")
	}
	w.must(put.Delete(w.ctx(), "bgp", metav1.DeleteOptions{}))
	w.until("it is gone", func() bool { _, ok := n.Secret("bgp", "password"); return !ok })
}

func TestAdvertisedFollowsServicesEndpointsAndTheNodesLabel(t *testing.T) {
	w := newWorld(t)
	_, err := w.cs.CoreV1().Nodes().Create(w.ctx(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.node}}, metav1.CreateOptions{})
	w.must(err)
	t.Cleanup(func() { _ = w.cs.CoreV1().Nodes().Delete(context.Background(), w.node, metav1.DeleteOptions{}) })
	w.service("local", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal, []string{"192.0.2.7"}
		if _, fake := w.api.API.(clientset); fake {
			s.Spec.ClusterIP = "10.96.0.10"
		}
	})
	conf := &api.BGPConfiguration{}
	conf.Metadata.Name = "default"
	conf.Spec.ServiceExternalIPs = []api.ServiceRange{{CIDR: "192.0.2.0/24"}}
	n := w.start()
	advertised := func() string { return strings.Trim(fmt.Sprint(n.Advertised([]*api.BGPConfiguration{conf})), "[]") }
	w.until("the range is advertised", func() bool { return advertised() == "192.0.2.0/24" })
	slice := w.slice("local-1", "local", w.node, true, "10.0.0.1")
	w.until("the address is, too", func() bool { return advertised() == "192.0.2.0/24 192.0.2.7/32" })
	_, err = w.cs.CoreV1().Nodes().Patch(w.ctx(), w.node, "application/merge-patch+json", []byte(`{"metadata":{"labels":{"node.kubernetes.io/exclude-from-external-load-balancers":""}}}`), metav1.PatchOptions{})
	w.must(err)
	w.until("nothing is", func() bool { return advertised() == "" })
	_, err = w.cs.CoreV1().Nodes().Patch(w.ctx(), w.node, "application/merge-patch+json", []byte(`{"metadata":{"labels":{"node.kubernetes.io/exclude-from-external-load-balancers":null}}}`), metav1.PatchOptions{})
	w.must(err)
	w.must(w.cs.DiscoveryV1().EndpointSlices(w.namespace).Delete(w.ctx(), slice.Name, metav1.DeleteOptions{}))
	w.until("the range alone is", func() bool { return advertised() == "192.0.2.0/24" })
}

func TestNetworkIsSaidWithoutTouchingOtherConditions(t *testing.T) {
	w := newWorld(t)
	made, err := w.cs.CoreV1().Nodes().Create(w.ctx(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.node}}, metav1.CreateOptions{})
	w.must(err)
	t.Cleanup(func() { _ = w.cs.CoreV1().Nodes().Delete(context.Background(), w.node, metav1.DeleteOptions{}) })
	made.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	_, err = w.cs.CoreV1().Nodes().UpdateStatus(w.ctx(), made, metav1.UpdateOptions{})
	w.must(err)
	for up, want := range map[bool]string{
		true:  "NetworkUnavailable False CalicoIsUp Calico is running on this node",
		false: "NetworkUnavailable True CalicoIsDown Calico is shutting down on this node",
	} {
		w.must(kube.SayNetwork(w.ctx(), w.api, w.node, up))
		node, err := w.cs.CoreV1().Nodes().Get(w.ctx(), w.node, metav1.GetOptions{})
		w.must(err)
		got := map[string]bool{}
		for _, c := range node.Status.Conditions {
			got[strings.TrimSpace(fmt.Sprintln(c.Type, c.Status, c.Reason, c.Message))] = true
		}
		if diff := cmp.Diff(map[string]bool{want: true, "Ready True": true}, got); diff != "" {
			t.Errorf("up %v (-want +got):\n%s", up, diff)
		}
	}
}

func TestFoundedTellsWhetherTheFirstAnswersHaveCome(t *testing.T) {
	w := newWorld(t)
	w.api.away.Store(true)
	n := w.start()
	if k := n.Founded(); k != kube.Known {
		t.Errorf("nothing is asked for, and what is known is founded as %d", k)
	}
	_, known := n.Secret("bgp", "tor")
	if k := n.Founded(); known || k != kube.Coming {
		t.Errorf("the API server is away, a secret is known: %t, and that is founded as %d", known, k)
	}
	w.api.away.Store(false)
	w.until("the answers are founded", func() bool { return n.Founded() == kube.Known })
}

func TestRangesOfTheNodesPodsAreThoseOfItsNode(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	if got, err := n.PodRanges(w.ctx()); !apierrors.IsNotFound(err) {
		t.Errorf("without a Node: %v, %v", got, err)
	}
	_, err := w.cs.CoreV1().Nodes().Create(w.ctx(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: w.node}, Spec: corev1.NodeSpec{PodCIDR: "10.8.0.0/24", PodCIDRs: []string{"10.8.0.0/24", "fd08::/64"}},
	}, metav1.CreateOptions{})
	w.must(err)
	t.Cleanup(func() { _ = w.cs.CoreV1().Nodes().Delete(context.Background(), w.node, metav1.DeleteOptions{}) })
	const want = "[10.8.0.0/24 fd08::/64]"
	if got, err := n.PodRanges(w.ctx()); err != nil || fmt.Sprint(got) != want {
		t.Errorf("read from the API server: %v, %v", got, err)
	}
	w.until("it is answered from memory", func() bool {
		before := w.api.gets.Load()
		got, err := n.PodRanges(w.ctx())
		return err == nil && fmt.Sprint(got) == want && w.api.gets.Load() == before
	})
}
