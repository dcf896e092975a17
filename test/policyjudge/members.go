package policyjudge

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// member is something that selectors of rules select: an endpoint or a set of networks.
type member struct {
	labels  map[string]string
	account string // of a workload
	addrs   []netip.Addr
	nets    []string
	ports   []api.EndpointPort
}

func (m *member) has(a netip.Addr) bool { return slices.Contains(m.addrs, a) || inAny(m.nets, a) }

// hasPort tells whether an endpoint has a port of that name there.
func (m *member) hasPort(name string, end Socket) bool {
	return slices.ContainsFunc(m.ports, func(p api.EndpointPort) bool {
		return p.Name == name && number(p.Protocol) == end.Protocol && p.Port == end.Port
	})
}

// endpoint is a member that policies apply to.
type endpoint struct {
	member
	name     string
	profiles []string
}

// anyHas tells whether an address is that of a member, of all in the cluster, for which ok is true.
func (c *Cluster) anyHas(a netip.Addr, ok func(*member) bool) bool {
	return slices.ContainsFunc(c.members(), func(m *member) bool { return m.has(a) && ok(m) })
}

func (c *Cluster) members() []*member {
	var out []*member
	for _, w := range all[*api.WorkloadEndpoint](c) {
		out = append(out, &c.workload(w).member)
	}
	for _, h := range all[*api.HostEndpoint](c) {
		out = append(out, &c.host(h).member)
	}
	for _, n := range all[*api.NetworkSet](c) {
		labels := with(ownLabels(n), api.LabelNamespace, n.Metadata.Namespace)
		out = append(out, &member{labels: c.inherited(labels, []string{"kns." + n.Metadata.Namespace}), nets: n.Spec.Nets})
	}
	for _, n := range all[*api.GlobalNetworkSet](c) {
		out = append(out, &member{labels: n.Metadata.Labels, nets: n.Spec.Nets})
	}
	return out
}

// workload has the labels that every stored endpoint has, and those of its profiles: of its namespace and of its service account.
func (c *Cluster) workload(w *api.WorkloadEndpoint) *endpoint {
	labels := with(ownLabels(w), api.LabelNamespace, w.Metadata.Namespace)
	labels = with(labels, api.LabelOrchestrator, w.Spec.Orchestrator)
	if w.Spec.ServiceAccountName != "" {
		labels = with(labels, "projectcalico.org/serviceaccount", w.Spec.ServiceAccountName)
	}
	e := &endpoint{name: "WorkloadEndpoint " + w.Metadata.Name, profiles: w.Spec.Profiles}
	e.labels, e.account = c.inherited(labels, w.Spec.Profiles), w.Spec.ServiceAccountName
	for _, n := range w.Spec.IPNetworks {
		e.addrs = append(e.addrs, n.Addr())
	}
	for _, p := range w.Spec.Ports {
		e.ports = append(e.ports, api.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	return e
}

func (c *Cluster) host(h *api.HostEndpoint) *endpoint {
	e := &endpoint{name: "HostEndpoint " + h.Metadata.Name, profiles: h.Spec.Profiles}
	e.labels, e.nets, e.ports = c.inherited(h.Metadata.Labels, h.Spec.Profiles), h.Spec.ExpectedIPs, h.Spec.Ports
	return e
}

// ownLabels are those that something in a namespace gives itself. What namespaces and accounts are called only profiles say.
func ownLabels(o api.Object) map[string]string {
	out := maps.Clone(o.Meta().Labels)
	maps.DeleteFunc(out, func(key, _ string) bool { return strings.HasPrefix(key, "pcns.") || strings.HasPrefix(key, "pcsa.") })
	return out
}

func with(labels map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range labels {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// inherited are labels with those that profiles give: what is there already stays, and the first profile that has a label gives it.
func (c *Cluster) inherited(own map[string]string, profiles []string) map[string]string {
	out := maps.Clone(own)
	if out == nil {
		out = map[string]string{}
	}
	for _, name := range profiles {
		p := c.profile(name)
		if p == nil {
			continue
		}
		for k, v := range p.Spec.LabelsToApply {
			if _, ok := out[k]; !ok {
				out[k] = v
			}
		}
	}
	return out
}
