package register_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
)

// kubernetesPod is a pod as the API server has it, and its namespace.
func kubernetesPod() (*corev1.Pod, *corev1.Namespace) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", GenerateName: "web-", Namespace: "default", UID: "u1", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{ServiceAccountName: "clerk", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 8080}, {ContainerPort: 53, HostPort: 53, Protocol: corev1.ProtocolUDP},
		}}}},
	}
	return pod, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{"team": "a"}, Annotations: map[string]string{}}}
}

// inKubernetes is a handler for which Kubernetes has one pod.
func (w *world) inKubernetes(pod *corev1.Pod, ns *corev1.Namespace) *register.Handler {
	return register.New(register.Config{Client: w.c, Node: "node-1", PodFacts: func(_ context.Context, ref attach.Pod) (register.Pod, error) {
		if ref != (attach.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}) {
			return register.Pod{}, errors.New("no such pod")
		}
		return register.PodOf(pod, ns), nil
	}})
}

func kubernetesRequest(container string) attach.Request {
	req := podRequest(container, "web-1")
	req.PolicyType, req.Pod.UID = "k8s", "u1"
	return req
}

func TestEndpointOfAKubernetesPodIsCalicos(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26, func(s *api.IPPoolSpec) { s.NamespaceSelector = "team == 'a'" })
	pod, ns := kubernetesPod()
	pod.Annotations["qos.projectcalico.org/egressBandwidth"] = "10M"
	pod.Annotations["kubernetes.io/egress-bandwidth"] = "5M"
	pod.Annotations["kubernetes.io/ingress-bandwidth"] = "1Gi"
	pod.Annotations["qos.projectcalico.org/dscp"] = "AF21"
	reply := w.add(w.inKubernetes(pod, ns), kubernetesRequest("c1"))
	e := w.endpoints()[0].Value
	dscp := uint8(18)
	want := api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: "node-1", ContainerID: "c1", Pod: "web-1", Endpoint: "eth0", ServiceAccountName: "clerk",
		IPNetworks: []api.Prefix{api.HostPrefix(reply.Addrs[0])}, Profiles: []string{"kns.default", "ksa.default.clerk"},
		InterfaceName: "calic1", MAC: "02:00:00:00:00:01",
		Ports: []api.WEPort{
			{Name: "http", Protocol: api.Protocol{Name: "TCP"}, Port: 8080}, {Protocol: api.Protocol{Name: "UDP"}, Port: 53, HostPort: 53},
		},
		QoSControls: &api.QoSControls{EgressBandwidth: 10_000_000, IngressBandwidth: 1 << 30, DSCP: &dscp},
	}
	if diff := cmp.Diff(want, e.Spec, cmp.Comparer(func(a, b api.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	labels := map[string]string{
		"app": "web", "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "clerk",
	}
	if diff := cmp.Diff(labels, e.Metadata.Labels); diff != "" || e.Metadata.GenerateName != "web-" || e.Metadata.Annotations[api.AnnotationPluginLimits] != "ingress" {
		t.Errorf("metadata %+v, labels (-want +got):\n%s", e.Metadata, diff)
	}
	if raw := w.dump()["/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-web--1-eth0"]; !strings.Contains(raw, `"generateName":"web-"`) {
		t.Errorf("stored: %s", raw)
	}
	if err := api.Validate(e); err != nil {
		t.Errorf("the endpoint is refused by our own rules: %v", err)
	}
	w.consistent()
}

func TestNoPodIsAddedWithoutItsFacts(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	pod, ns := kubernetesPod()
	h := w.inKubernetes(pod, ns)
	before := w.dump()
	for name, c := range map[string]struct {
		change func(*attach.Request)
		code   uint
		says   string
	}{
		"another UID":    {func(r *attach.Request) { r.Pod.UID = "u2" }, attach.CodeTryAgain, "read pod default/web-1 from Kubernetes"},
		"another pod":    {func(r *attach.Request) { r.Pod.Name = "web-2" }, attach.CodeTryAgain, "no such pod"},
		"no pod":         {func(r *attach.Request) { r.Pod = attach.Pod{} }, attach.CodeBadEnv, "names no pod"},
		"unknown policy": {func(r *attach.Request) { r.PolicyType = "odd" }, attach.CodeBadConfig, `"odd" is not known`},
	} {
		req := kubernetesRequest("c")
		c.change(&req)
		var told *attach.Error
		if _, err := h.Add(w.ctx(), req); !errors.As(err, &told) || told.Code != c.code || !strings.Contains(told.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Errorf("refused pods left in etcd:\n%s", diff)
	}
}

func TestLimitsThatCannotBeReadAreRefused(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	for name, value := range map[string]string{
		"qos.projectcalico.org/ingressBurst": "much", "kubernetes.io/egress-bandwidth": "-1M", "qos.projectcalico.org/dscp": "AF44", "qos.projectcalico.org/egressPacketRate": "0",
	} {
		pod, ns := kubernetesPod()
		pod.Annotations[name] = value
		var told *attach.Error
		if _, err := w.inKubernetes(pod, ns).Add(w.ctx(), kubernetesRequest("c")); !errors.As(err, &told) || told.Code != attach.CodeBadConfig || !strings.Contains(told.Msg, name) {
			t.Errorf("%s %q: %v", name, value, err)
		}
	}
}

func TestForeignPluginsPodsGetPoolsByTheirNamespace(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("a", "10.0.0.0/24", 26, func(s *api.IPPoolSpec) { s.NamespaceSelector = "team == 'b'" })
	w.pool("b", "10.1.0.0/24", 26, func(s *api.IPPoolSpec) { s.NamespaceSelector = "team == 'a'" })
	pod, ns := kubernetesPod()
	pod.Annotations["cni.projectcalico.org/ipv4pools"] = `["a"]` // the main plugin's business
	got, err := w.inKubernetes(pod, ns).Allocate(w.ctx(), kubernetesRequest("c"))
	if err != nil || len(got) != 1 || !netip.MustParsePrefix("10.1.0.0/24").Contains(got[0].Addr()) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestStagesOfAnAddAreMeasured(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	pod, ns := kubernetesPod()
	var stages []string
	h := register.New(register.Config{
		Client: w.c, Node: "node-1", Took: func(stage string, _ time.Duration) { stages = append(stages, stage) },
		PodFacts: func(_ context.Context, ref attach.Pod) (register.Pod, error) {
			if ref.UID != string(pod.UID) {
				return register.Pod{}, errors.New("no such pod")
			}
			return register.PodOf(pod, ns), nil
		},
	})
	w.add(h, kubernetesRequest("c1"))
	other := kubernetesRequest("c2")
	other.Pod.UID = "u2"
	if _, err := h.Add(w.ctx(), other); err == nil {
		t.Error("another pod's facts were taken")
	}
	if diff := cmp.Diff([]string{register.StageFacts, register.StageEtcd, register.StageFacts}, stages); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
