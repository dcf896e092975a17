package kubeconv

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// annotationKubeLabels holds, as JSON, the labels that a Node was last given from Kubernetes: those that are there and not in Kubernetes any more
// are taken away, and whatever else the Node has is its user's.
const annotationKubeLabels = "projectcalico.org/kube-labels"

// KubernetesName is the name of the Kubernetes node that a Node stands for; ok is false where it stands for none.
func KubernetesName(n *api.Node) (name string, ok bool) {
	for _, r := range n.Spec.OrchRefs {
		if r.Orchestrator == "k8s" && r.NodeName != "" {
			return r.NodeName, true
		}
	}
	return "", false
}

// Synced reports whether a Node was given labels from Kubernetes before: its Kubernetes node did exist.
func Synced(n *api.Node) bool { return n.Metadata.Annotations[annotationKubeLabels] != "" }

// Label gives a Node the labels of its Kubernetes node, and reports whether that changed anything. Where both sides have a label, Kubernetes' value
// counts. An annotation that cannot be read counts as none: then nothing is taken away.
func Label(n *api.Node, kube map[string]string) (changed bool) {
	had := map[string]string{}
	if text := n.Metadata.Annotations[annotationKubeLabels]; text != "" && json.Unmarshal([]byte(text), &had) != nil {
		had = map[string]string{}
	}
	labels := maps.Clone(n.Metadata.Labels)
	maps.DeleteFunc(labels, func(k, _ string) bool {
		_, was := had[k]
		_, is := kube[k]
		return was && !is
	})
	if len(kube) > 0 && labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, kube)
	note := "{}"
	if b, err := json.Marshal(kube); err == nil && kube != nil { // a map of strings always marshals
		note = string(b)
	}
	if maps.Equal(labels, n.Metadata.Labels) && n.Metadata.Annotations[annotationKubeLabels] == note {
		return false
	}
	annotations := maps.Clone(n.Metadata.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[annotationKubeLabels] = note
	n.Metadata.Labels, n.Metadata.Annotations = labels, annotations
	return true
}

// The label by which host endpoints are known that were made for nodes, and its value.
const (
	LabelCreatedBy = "projectcalico.org/created-by"
	CreatedBy      = "calico-kube-controllers"
)

// autoSuffix ends the names of host endpoints that were made for nodes.
const autoSuffix = "-auto-hep"

// AutoHostEndpoint reports whether a host endpoint was made for a node, so that it may be changed and deleted.
func AutoHostEndpoint(h *api.HostEndpoint) bool {
	return h.Metadata.Labels[LabelCreatedBy] == CreatedBy && strings.HasSuffix(h.Metadata.Name, autoSuffix)
}

// HostEndpoints are the host endpoints that a node shall have: one for all of its interfaces, and those of the templates that select it. What a
// template asks for and cannot be is left out and named.
func HostEndpoints(n *api.Node, s *api.AutoHostEndpoint) (out []*api.HostEndpoint, lost []error) {
	if s == nil || s.AutoCreate != "Enabled" {
		return nil, nil
	}
	if s.CreateDefaultHostEndpoint != "Disabled" {
		out = append(out, hostEndpoint(n, n.Metadata.Name+autoSuffix, api.HostEndpointSpec{
			InterfaceName: "*", ExpectedIPs: texts(addresses(n)), Profiles: []string{api.DefaultAllowProfile},
		}, nil))
	}
	for _, t := range s.Templates {
		made, err := fromTemplate(n, t)
		if err != nil {
			lost = append(lost, fmt.Errorf("host endpoints of node %s from template %q: %w", n.Metadata.Name, t.GenerateName, err))
		}
		out = append(out, made...)
	}
	out = slices.DeleteFunc(out, func(h *api.HostEndpoint) bool {
		err := api.Validate(h)
		if err != nil {
			lost = append(lost, fmt.Errorf("host endpoint %s: %w", h.Metadata.Name, err))
		}
		return err != nil
	})
	return out, lost
}

func hostEndpoint(n *api.Node, name string, spec api.HostEndpointSpec, labels map[string]string) *api.HostEndpoint {
	h := &api.HostEndpoint{Spec: spec}
	h.Spec.Node = n.Metadata.Name
	h.Metadata.Name = name
	h.Metadata.Labels = map[string]string{}
	maps.Copy(h.Metadata.Labels, n.Metadata.Labels)
	maps.Copy(h.Metadata.Labels, labels)
	h.Metadata.Labels[LabelCreatedBy] = CreatedBy
	return h
}

// fromTemplate makes one host endpoint of the node's addresses in the template's ranges, or, where the template has a pattern, one for each
// interface that it matches, with the addresses of that interface, in the ranges if there are any.
func fromTemplate(n *api.Node, t api.HostEndpointTemplate) ([]*api.HostEndpoint, error) {
	of, err := selector.Parse(t.NodeSelector)
	if err != nil {
		return nil, err
	}
	ranges, err := rangesOf(t.InterfaceCIDRs)
	if err != nil || !of.Match(selector.Map(n.Metadata.Labels)) {
		return nil, err
	}
	base := n.Metadata.Name + "-" + t.GenerateName
	if t.InterfacePattern == "" {
		in := inside(addresses(n), ranges)
		if len(in) == 0 {
			return nil, nil
		}
		return []*api.HostEndpoint{hostEndpoint(n, base+autoSuffix, api.HostEndpointSpec{ExpectedIPs: texts(in)}, t.Labels)}, nil
	}
	pattern, err := regexp.Compile(t.InterfacePattern)
	if err != nil {
		return nil, err
	}
	var out []*api.HostEndpoint
	for _, i := range n.Spec.Interfaces {
		addrs := inside(parsed(i.Addresses), ranges)
		if !pattern.MatchString(i.Name) || len(ranges) > 0 && len(addrs) == 0 {
			continue
		}
		out = append(out, hostEndpoint(n, base+"-"+inName(i.Name)+autoSuffix, api.HostEndpointSpec{InterfaceName: i.Name, ExpectedIPs: texts(addrs)}, t.Labels))
	}
	return out, nil
}

// inName makes of an interface's name a part of an object's name.
func inName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(s))
}

// addresses are those of the node's own interfaces and tunnels, each once, in order.
func addresses(n *api.Node) []netip.Addr {
	var out []netip.Addr
	if b := n.Spec.BGP; b != nil {
		out = append(out, b.IPv4Address.Addr(), b.IPv6Address.Addr(), b.IPv4IPIPTunnelAddr)
	}
	out = append(out, n.Spec.IPv4VXLANTunnelAddr, n.Spec.IPv6VXLANTunnelAddr)
	if w := n.Spec.Wireguard; w != nil {
		out = append(out, w.InterfaceIPv4Address, w.InterfaceIPv6Address)
	}
	for _, a := range n.Spec.Addresses {
		out = append(out, parsed([]string{a.Address})...)
	}
	out = slices.DeleteFunc(out, func(a netip.Addr) bool { return !a.IsValid() })
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// parsed reads addresses, with or without prefix lengths; others are passed over.
func parsed(list []string) (out []netip.Addr) {
	for _, s := range list {
		addr, _, _ := strings.Cut(s, "/")
		if a, err := netip.ParseAddr(addr); err == nil {
			out = append(out, a.WithZone(""))
		}
	}
	return out
}

func rangesOf(list []string) (out []netip.Prefix, err error) {
	for _, s := range list {
		p, err := rangeOf(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// inside are the addresses in any of the ranges; no ranges are all.
func inside(addrs []netip.Addr, ranges []netip.Prefix) (out []netip.Addr) {
	for _, a := range addrs {
		if len(ranges) == 0 || slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
