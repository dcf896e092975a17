package policy

import (
	"maps"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// kubernetesOrder is the order of policies that Kubernetes' own become.
const kubernetesOrder = 1000.0

// fromKubernetes says in Calico's terms what a Kubernetes policy says, as Calico's policy controller does. A port of a protocol
// that nobody knows is left out, and an operator that nobody knows selects nothing: every rule allows, so that this allows less.
func fromKubernetes(k api.StagedKubernetesNetworkPolicySpec) api.NetworkPolicySpec {
	order := kubernetesOrder
	p := api.NetworkPolicySpec{Tier: api.DefaultTier, Order: &order, Selector: podsOf(k.PodSelector), Types: k.PolicyTypes}
	for _, r := range k.Ingress {
		p.Ingress = append(p.Ingress, kubernetesRules(r.Ports, r.From, true)...)
	}
	for _, r := range k.Egress {
		p.Egress = append(p.Egress, kubernetesRules(r.Ports, r.To, false)...)
	}
	if len(p.Types) == 0 {
		p.Types = []api.PolicyType{api.Ingress}
		if len(k.Egress) > 0 {
			p.Types = append(p.Types, api.Egress)
		}
	}
	return p
}

// kubernetesRules is one rule for each protocol and peer.
func kubernetesRules(ports []api.KubePort, peers []api.KubePeer, ingress bool) (out []api.Rule) {
	entities := []api.EntityRule{{}}
	if len(peers) > 0 {
		entities = entities[:0]
		for _, p := range peers {
			entities = append(entities, entityOf(p))
		}
	}
	for _, g := range groupPorts(ports) {
		for _, e := range entities {
			r := api.Rule{Action: api.Allow, Protocol: g.protocol}
			if ingress {
				r.Source = e
			} else {
				r.Destination = e
			}
			r.Destination.Ports = g.ports
			out = append(out, r)
		}
	}
	return out
}

func entityOf(p api.KubePeer) api.EntityRule {
	if p.IPBlock != nil {
		return api.EntityRule{Nets: []string{p.IPBlock.CIDR}, NotNets: p.IPBlock.Except}
	}
	e := api.EntityRule{Selector: podsOf(p.PodSelector)}
	if p.NamespaceSelector != nil {
		e.NamespaceSelector = selector.All(requirements(p.NamespaceSelector)...).String()
	}
	return e
}

// podsOf selects pods as Kubernetes' selector does, of whatever namespace.
func podsOf(s *api.LabelSelector) string {
	pods := selector.OneOf(api.LabelOrchestrator, "k8s")
	return selector.All(append([]selector.Selector{pods}, requirements(s)...)...).String()
}

func requirements(s *api.LabelSelector) (out []selector.Selector) {
	if s == nil {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		out = append(out, selector.OneOf(key, s.MatchLabels[key]))
	}
	for _, r := range s.MatchExpressions {
		switch r.Operator {
		case "In":
			out = append(out, selector.OneOf(r.Key, r.Values...))
		case "NotIn":
			out = append(out, selector.Not(selector.OneOf(r.Key, r.Values...)))
		case "Exists":
			out = append(out, selector.Has(r.Key))
		case "DoesNotExist":
			out = append(out, selector.Not(selector.Has(r.Key)))
		default:
			out = append(out, selector.OneOf(r.Key)) // an operator that nobody knows selects nothing
		}
	}
	return out
}

// portGroup is the ports of one protocol; none: all.
type portGroup struct {
	protocol *api.Protocol
	ports    []api.Port
}

// groupPorts sorts ports by protocol. Where one port of a protocol is any, all are.
func groupPorts(ports []api.KubePort) []portGroup {
	if len(ports) == 0 {
		return []portGroup{{}}
	}
	var out []portGroup
	for _, name := range []string{"TCP", "UDP", "SCTP"} {
		g, used, every := portGroup{protocol: &api.Protocol{Name: name}}, false, false
		for _, p := range ports {
			if p.Protocol != name && (p.Protocol != "" || name != "TCP") {
				continue
			}
			used, every = true, every || p.Port == nil
			if p.Port != nil {
				g.ports = append(g.ports, kubernetesPort(p))
			}
		}
		if every {
			g.ports = nil
		}
		if used {
			out = append(out, g)
		}
	}
	return out
}

func kubernetesPort(p api.KubePort) api.Port {
	port := *p.Port
	if p.EndPort != nil && port.Name == "" && *p.EndPort >= int32(port.Min) && *p.EndPort <= 65535 {
		port.Max = uint16(*p.EndPort)
	}
	return port
}
