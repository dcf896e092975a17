package kubeconv

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/pkg/api"
)

// ServiceRanges are the ranges of services' addresses that nodes attract, by the kind of address.
type ServiceRanges struct {
	Cluster, External, LoadBalancer []netip.Prefix
	Single                          bool // load balancers' addresses are advertised one by one, and their ranges are not
}

// RangesOf reads them from the BGPConfiguration named default, which alone may have them. What is no range is left out.
func RangesOf(configs []*api.BGPConfiguration) ServiceRanges {
	var r ServiceRanges
	for _, c := range configs {
		if c.Metadata.Name != "default" {
			continue
		}
		r = ServiceRanges{
			Cluster: prefixes(c.Spec.ServiceClusterIPs), External: prefixes(c.Spec.ServiceExternalIPs), LoadBalancer: prefixes(c.Spec.ServiceLoadBalancerIPs),
			Single: c.Spec.ServiceLoadBalancerAggregation == "Disabled",
		}
	}
	return r
}

func prefixes(of []api.ServiceRange) (out []netip.Prefix) {
	for _, r := range of {
		if p, err := netip.ParsePrefix(r.CIDR); err == nil {
			out = append(out, p.Masked())
		} else if a, err := netip.ParseAddr(r.CIDR); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// Empty reports whether nothing is to be advertised.
func (r ServiceRanges) Empty() bool {
	return len(r.Cluster) == 0 && len(r.External) == 0 && len(r.LoadBalancer) == 0
}

// Whole are the ranges that every node advertises as they are. A load balancer's range of one address is not among them: it is the address of
// one service.
func (r ServiceRanges) Whole() []netip.Prefix {
	out := slices.Concat(r.Cluster, r.External)
	for _, p := range r.LoadBalancer {
		if !p.IsSingleIP() && !r.Single {
			out = append(out, p)
		}
	}
	return out
}

// Addresses are those of a service that a node advertises one by one; local says that an endpoint of the service is on the node. With the
// traffic policy Local these are all that are in a range, so that traffic comes to the nodes that have endpoints alone. With Cluster any node
// serves: only addresses count that no whole range stands for.
func (r ServiceRanges) Addresses(s *corev1.Service, local bool) (out []netip.Prefix) {
	if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	byNode := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if byNode && !local {
		return nil
	}
	take := func(texts []string, ranges []netip.Prefix, single bool) {
		for _, text := range texts {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			a = a.Unmap()
			if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) && (byNode || single || p.IsSingleIP()) }) {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	if byNode {
		take(clusterIPs(s), r.Cluster, false)
	}
	take(s.Spec.ExternalIPs, r.External, false)
	take(ingressIPs(s), r.LoadBalancer, r.Single)
	return out
}

func clusterIPs(s *corev1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	return []string{s.Spec.ClusterIP}
}

// ingressIPs are a load balancer's addresses.
func ingressIPs(s *corev1.Service) (out []string) {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		out = append(out, i.IP)
	}
	return out
}
