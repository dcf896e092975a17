package kubeconv

import (
	"maps"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Workload is what policy needs to know of a pod, wherever it runs: what its WorkloadEndpoint holds beside addresses and devices.
type Workload struct {
	Labels         map[string]string // the pod's own, and those that say its namespace, orchestrator and service account
	Profiles       []string          // of its namespace and of its service account, in the order of precedence
	Ports          []api.WEPort      // those that rules or hosts can name
	ServiceAccount string            // "": it has none yet
	GenerateName   string            // the beginning of the names of it and its siblings; "": it has a name of its own
}

// The profiles that the controllers make of namespaces and of service accounts are called by these and the names after them.
const (
	namespaceProfile = "kns."
	accountProfile   = "ksa."
)

// labelAccount names a pod's service account. A longer name than a label's value may have (63 characters) is left out; Calico leaves out
// one of 63 too.
const (
	labelAccount = "projectcalico.org/serviceaccount"
	maxAccount   = 62
)

// Pod is what a pod is to policy. The result shares nothing with the pod.
func Pod(p *corev1.Pod) Workload {
	w := Workload{
		Labels: map[string]string{}, Profiles: []string{namespaceProfile + p.Namespace},
		Ports: ports(p.Spec), ServiceAccount: p.Spec.ServiceAccountName, GenerateName: p.GenerateName,
	}
	maps.Copy(w.Labels, p.Labels)
	w.Labels[api.LabelNamespace], w.Labels[api.LabelOrchestrator] = p.Namespace, "k8s"
	delete(w.Labels, labelAccount) // who runs the pod is not for its author to say
	if a := w.ServiceAccount; a != "" {
		w.Profiles = append(w.Profiles, accountProfile+p.Namespace+"."+a)
		if len(a) <= maxAccount {
			w.Labels[labelAccount] = a
		}
	}
	return w
}

// ports are those of a pod's containers that have a name or are open on the host.
func ports(s corev1.PodSpec) (out []api.WEPort) {
	for _, containers := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for _, c := range containers {
			for _, p := range c.Ports {
				protocol, known := transport(p.Protocol)
				if !known || p.Name == "" && p.HostPort == 0 || !isPort(p.ContainerPort) {
					continue
				}
				out = append(out, api.WEPort{
					Name: p.Name, Protocol: protocol, Port: uint16(p.ContainerPort), HostPort: uint16(p.HostPort), HostIP: p.HostIP,
				})
			}
		}
	}
	return out
}

// transport is a protocol by the name that Kubernetes has for it. Left out, it is TCP.
func transport(p corev1.Protocol) (protocol api.Protocol, known bool) {
	switch p {
	case "":
		return api.Protocol{Name: "TCP"}, true
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return api.Protocol{Name: string(p)}, true
	}
	return api.Protocol{}, false
}

func isPort(n int32) bool { return n > 0 && n <= 65535 }

// The annotations by which the kubelet ties the API server's copy of a pod from a file on the host, whose UID is the API server's, to the pod
// that it runs. Both hold the latter's UID.
const (
	annotationConfigHash   = "kubernetes.io/config.hash"
	annotationConfigMirror = "kubernetes.io/config.mirror"
)

// IsPod reports whether an object is the pod that a runtime means by a UID. An older runtime does not say it ("").
func IsPod(p *corev1.Pod, uid string) bool {
	return uid == "" || uid == string(p.UID) || uid == p.Annotations[annotationConfigHash] && p.Annotations[annotationConfigMirror] != ""
}
