package kubeconv_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
)

func TestPodHasCalicosLabelsProfilesAndPorts(t *testing.T) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-x", GenerateName: "web-", Namespace: "shop", Labels: map[string]string{
			"app": "web", "projectcalico.org/serviceaccount": "root", "projectcalico.org/namespace": "kube-system",
		}},
		Spec: corev1.PodSpec{
			ServiceAccountName: "clerk",
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
				{Name: "http", ContainerPort: 8080}, {ContainerPort: 9000}, {ContainerPort: 53, HostPort: 5353, HostIP: "127.0.0.1", Protocol: corev1.ProtocolUDP},
				{Name: "odd", ContainerPort: 1, Protocol: "ICMP"}, {Name: "zero"},
			}}},
			InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 7, Protocol: corev1.ProtocolSCTP}}}},
		},
	}
	want := kubeconv.Workload{
		Labels: map[string]string{
			"app": "web", "projectcalico.org/namespace": "shop", "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "clerk",
		},
		Profiles: []string{"kns.shop", "ksa.shop.clerk"}, ServiceAccount: "clerk", GenerateName: "web-",
		Ports: []api.WEPort{
			{Name: "http", Protocol: api.Protocol{Name: "TCP"}, Port: 8080},
			{Protocol: api.Protocol{Name: "UDP"}, Port: 53, HostPort: 5353, HostIP: "127.0.0.1"},
			{Name: "side", Protocol: api.Protocol{Name: "SCTP"}, Port: 7},
		},
	}
	before := p.DeepCopy()
	if diff := cmp.Diff(want, kubeconv.Pod(p)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, p); diff != "" {
		t.Errorf("the pod was modified:\n%s", diff)
	}
}

func TestServiceAccountIsALabelOnlyWhereItsNameFits(t *testing.T) {
	for _, c := range []struct {
		name     string
		label    bool
		profiles int
	}{{"", false, 1}, {strings.Repeat("a", 62), true, 2}, {strings.Repeat("a", 63), false, 2}} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n"}, Spec: corev1.PodSpec{ServiceAccountName: c.name}}
		got := kubeconv.Pod(p)
		if _, label := got.Labels["projectcalico.org/serviceaccount"]; label != c.label || len(got.Profiles) != c.profiles {
			t.Errorf("account %q: %+v", c.name, got)
		}
	}
}
