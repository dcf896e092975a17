package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// strip keeps of an object what a node needs: most of what the API server says is spent at once. The object itself is not kept.
func strip(o any) (any, error) {
	switch v := o.(type) {
	case *corev1.Pod:
		return &corev1.Pod{ObjectMeta: meta(v.ObjectMeta), Spec: corev1.PodSpec{
			NodeName: v.Spec.NodeName, ServiceAccountName: v.Spec.ServiceAccountName,
			Containers: portsOf(v.Spec.Containers), InitContainers: portsOf(v.Spec.InitContainers),
		}}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: meta(v.ObjectMeta)}, nil
	case *corev1.Node:
		m := meta(v.ObjectMeta)
		m.Annotations = nil
		return &corev1.Node{ObjectMeta: m, Spec: corev1.NodeSpec{PodCIDR: v.Spec.PodCIDR, PodCIDRs: v.Spec.PodCIDRs}}, nil
	case *corev1.Secret:
		return &corev1.Secret{ObjectMeta: named(v.ObjectMeta), Data: v.Data}, nil
	case *corev1.Service:
		return service(v), nil
	case *discoveryv1.EndpointSlice:
		return slice(v), nil
	}
	return o, nil
}

// named is the least that tells objects and their versions apart.
func named(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

func meta(m metav1.ObjectMeta) metav1.ObjectMeta {
	out := named(m)
	out.GenerateName, out.Labels = m.GenerateName, m.Labels
	for k, v := range m.Annotations {
		if k == corev1.LastAppliedConfigAnnotation {
			continue
		}
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[k] = v
	}
	return out
}

// portsOf are containers with ports, and nothing else of them.
func portsOf(containers []corev1.Container) (out []corev1.Container) {
	for _, c := range containers {
		if len(c.Ports) > 0 {
			out = append(out, corev1.Container{Ports: c.Ports})
		}
	}
	return out
}

func service(v *corev1.Service) *corev1.Service {
	out := &corev1.Service{ObjectMeta: named(v.ObjectMeta), Spec: corev1.ServiceSpec{
		Type: v.Spec.Type, ClusterIP: v.Spec.ClusterIP, ClusterIPs: v.Spec.ClusterIPs, ExternalIPs: v.Spec.ExternalIPs, ExternalTrafficPolicy: v.Spec.ExternalTrafficPolicy,
	}}
	for _, i := range v.Status.LoadBalancer.Ingress {
		out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: i.IP})
	}
	return out
}

func slice(v *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: named(v.ObjectMeta), AddressType: v.AddressType, Endpoints: make([]discoveryv1.Endpoint, 0, len(v.Endpoints))}
	if s := v.Labels[discoveryv1.LabelServiceName]; s != "" {
		out.Labels = map[string]string{discoveryv1.LabelServiceName: s}
	}
	for _, p := range v.Ports {
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Protocol: p.Protocol, Port: p.Port})
	}
	for _, e := range v.Endpoints {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses: e.Addresses, Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready}, NodeName: e.NodeName,
		})
	}
	return out
}

// byService is the index of slices by their service's namespace and name.
const byService = "service"

func serviceOfSlice(o any) ([]string, error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelServiceName] == "" {
		return nil, nil
	}
	return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
}
