package kubeconv

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// PodRanges are the ranges that Kubernetes has given to a node's pods, the first of each family.
func PodRanges(n *corev1.Node) (out []netip.Prefix) {
	for _, text := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		r, err := netip.ParsePrefix(text)
		if err != nil || slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Addr().Is6() == r.Addr().Is6() }) {
			continue
		}
		out = append(out, r.Masked())
	}
	return out
}
