package kubeconv

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/pkg/api"
)

// What stands before the names of profiles, and before the labels that they give to endpoints.
const (
	NamespacePrefix           = "kns."
	ServiceAccountPrefix      = "ksa."
	namespaceLabelPrefix      = "pcns."
	serviceAccountLabelPrefix = "pcsa."
	labelName                 = "projectcalico.org/name" // of the namespace or service account, whatever its own labels
)

// NamespaceProfile is the name of the profile of a namespace.
func NamespaceProfile(namespace string) string { return NamespacePrefix + namespace }

// ServiceAccountProfile is the name of the profile of a service account.
func ServiceAccountProfile(namespace, name string) string {
	return ServiceAccountPrefix + namespace + "." + name
}

// ParseNamespaceProfile is the inverse of NamespaceProfile.
func ParseNamespaceProfile(profile string) (namespace string, ok bool) {
	namespace, ok = strings.CutPrefix(profile, NamespacePrefix)
	return namespace, ok && namespace != ""
}

// ParseServiceAccountProfile is the inverse of ServiceAccountProfile. A namespace has no dot in its name, a service account may.
func ParseServiceAccountProfile(profile string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(profile, ServiceAccountPrefix)
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ".")
	return namespace, name, ok && namespace != "" && name != ""
}

// Namespace is the profile of a namespace: its pods have its labels, and may do everything that no policy forbids.
func Namespace(ns *corev1.Namespace) *api.Profile {
	p := profile(NamespaceProfile(ns.Name), namespaceLabelPrefix, ns.Name, ns.Labels)
	p.Spec.Ingress = []api.Rule{{Action: api.Allow}}
	p.Spec.Egress = []api.Rule{{Action: api.Allow}}
	return p
}

// ServiceAccount is the profile of a service account: the pods that run under it have its labels. It has no rules.
func ServiceAccount(sa *corev1.ServiceAccount) *api.Profile {
	return profile(ServiceAccountProfile(sa.Namespace, sa.Name), serviceAccountLabelPrefix, sa.Name, sa.Labels)
}

func profile(name, prefix, object string, labels map[string]string) *api.Profile {
	p := &api.Profile{Spec: api.ProfileSpec{LabelsToApply: make(map[string]string, len(labels)+1)}}
	p.Metadata.Name = name
	for k, v := range labels {
		p.Spec.LabelsToApply[prefix+k] = v
	}
	p.Spec.LabelsToApply[prefix+labelName] = object
	return p
}
