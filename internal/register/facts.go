package register

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/kubeconv"
)

// PodOf is what the pod and its namespace say, wherever they were read.
func PodOf(pod *corev1.Pod, namespace *corev1.Namespace) Pod {
	w := kubeconv.Pod(pod)
	return Pod{
		Labels: w.Labels, Annotations: pod.Annotations, NamespaceLabels: namespace.Labels, NamespaceAnnotations: namespace.Annotations,
		Profiles: w.Profiles, Ports: w.Ports, ServiceAccount: w.ServiceAccount, GenerateName: w.GenerateName,
	}
}
