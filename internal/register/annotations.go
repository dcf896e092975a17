package register

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// The annotations by which a pod says what it wants; all but the MAC hold JSON lists. The first three may stand at its namespace
// too, where they hold for pods that do not have them. They go before the netconf's.
const (
	annotationIPv4Pools   = "cni.projectcalico.org/ipv4pools" // names or CIDRs
	annotationIPv6Pools   = "cni.projectcalico.org/ipv6pools"
	annotationFamilies    = "cni.projectcalico.org/ipFamilies"            // IPv4, IPv6
	annotationAddrs       = "cni.projectcalico.org/ipAddrs"               // to be allocated
	annotationAddrsNoIPAM = "cni.projectcalico.org/ipAddrsNoIpam"         // that are no pool's business
	annotationSpoofed     = "cni.projectcalico.org/allowedSourcePrefixes" // CIDRs that the pod may send from
	annotationFloatingIPs = "cni.projectcalico.org/floatingIPs"
	annotationMAC         = "cni.projectcalico.org/hwAddr"
)

// wishes is what the netconf and the annotations come to.
type wishes struct {
	v4, v6   bool     // families to allocate an address of
	pools4   []string // none: those that select the node
	pools6   []string
	exact    []netip.Addr // the addresses to allocate, at most one of each family; none: any
	brought  []netip.Addr // the pod's addresses, of which none is allocated; none: all are
	spoofed  []string     // CIDRs
	floating []netip.Addr // at which the pod is to be reached too
	mac      string       // "": the plugin's choice
	qos      *api.QoSControls
	plugged  []string // directions whose bandwidth the plugin bandwidth keeps, sorted
	exchange bool     // exact are the pod's for good: its older container's are freed for them
}

// wishesOf reads them. Errors are *attach.Error.
func wishesOf(req attach.Request, pod Pod) (wishes, error) {
	w := wishes{v4: req.AssignIPv4 || !req.AssignIPv6, v6: req.AssignIPv6, pools4: req.IPv4Pools, pools6: req.IPv6Pools, exact: req.Wanted, brought: req.Addrs}
	for _, read := range []func(*wishes, attach.Request, Pod) error{readPools, readFamilies, readAddrs, readSpoofed, readFloating, readMAC, readQoS} {
		if err := read(&w, req, pod); err != nil {
			return wishes{}, err
		}
	}
	if len(w.exact) > 0 {
		w.v4, w.v6 = slices.ContainsFunc(w.exact, netip.Addr.Is4), slices.ContainsFunc(w.exact, netip.Addr.Is6)
	}
	return w, nil
}

func readPools(w *wishes, _ attach.Request, pod Pod) error {
	for _, f := range []struct {
		annotation string
		pools      *[]string
	}{{annotationIPv4Pools, &w.pools4}, {annotationIPv6Pools, &w.pools6}} {
		if list, ok, err := listOf(pod.inherited(f.annotation)); err != nil {
			return err
		} else if ok {
			*f.pools = list
		}
	}
	return nil
}

func readFamilies(w *wishes, _ attach.Request, pod Pod) error {
	a := pod.inherited(annotationFamilies)
	families, ok, err := listOf(a)
	if !ok || err != nil {
		return err
	}
	w.v4, w.v6 = slices.Contains(families, "IPv4"), slices.Contains(families, "IPv6")
	for _, f := range families {
		if f != "IPv4" && f != "IPv6" {
			return a.wrong(fmt.Sprintf("%q is no family", f), `write it as JSON: ["IPv4", "IPv6"]`)
		}
	}
	return nil
}

func readAddrs(w *wishes, req attach.Request, pod Pod) error {
	exact, brought := pod.own(annotationAddrs), pod.own(annotationAddrsNoIPAM)
	switch {
	case exact.set && brought.set:
		return &attach.Error{
			Code: attach.CodeBadConfig, Msg: "can't have both annotations: 'ipAddrs' and 'ipAddrsNoIpam' in use at the same time", Details: "remove one of them",
		}
	case exact.set && req.ForeignIPAM != "":
		return &attach.Error{
			Code: attach.CodeBadConfig, Msg: "ipAddrs is not compatible with configured IPAM: " + req.ForeignIPAM, Details: "remove the annotation, or use muslin-ipam",
		}
	case brought.set && !req.Features.AddrsNoIPAM:
		return notEnabled("ip_addrs_no_ipam")
	}
	var err error
	if exact.set {
		w.exact, err = exact.addrs()
		w.exchange = true
	}
	if brought.set {
		w.brought, err = brought.addrs()
		w.exact = nil
	}
	return err
}

func readSpoofed(w *wishes, _ attach.Request, pod Pod) error {
	a := pod.own(annotationSpoofed)
	list, ok, err := listOf(a)
	if !ok || err != nil {
		return err
	}
	for _, text := range list {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return a.wrong(fmt.Sprintf("%q is no CIDR", text), `write it as JSON: ["10.0.0.0/24"]`)
		}
		w.spoofed = append(w.spoofed, cidr.Masked().String())
	}
	return nil
}

// readFloating reads addresses that the agent has translated, where FelixConfiguration's floatingIPs says so.
func readFloating(w *wishes, req attach.Request, pod Pod) error {
	a := pod.own(annotationFloatingIPs)
	list, ok, err := listOf(a)
	switch {
	case !ok || err != nil:
		return err
	case !req.Features.FloatingIPs:
		return notEnabled("floating_ips")
	}
	for _, text := range list {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil || addr.Zone() != "" || !addr.IsGlobalUnicast() {
			return a.wrong(fmt.Sprintf("%q is no address that others could send to", text), `write it as JSON: ["192.0.2.1"]`)
		}
		w.floating = append(w.floating, addr.Unmap())
	}
	return nil
}

// natsOf maps a pod's floating addresses to those that it has: each to the one of its family.
func natsOf(floating []netip.Addr, has []netip.Prefix) (out []api.IPNAT, err error) {
	for _, f := range floating {
		i := slices.IndexFunc(has, func(p netip.Prefix) bool { return p.Addr().Is6() == f.Is6() })
		if i < 0 {
			return nil, &attach.Error{
				Code: attach.CodeBadConfig, Msg: fmt.Sprintf("read annotation %s: the pod has no address of the family of %v", annotationFloatingIPs, f), Details: "remove it, or give the pod addresses of both families",
			}
		}
		out = append(out, api.IPNAT{InternalIP: has[i].Addr().String(), ExternalIP: f.String()})
	}
	return out, nil
}

func readMAC(w *wishes, _ attach.Request, pod Pod) error {
	a := pod.own(annotationMAC)
	if !a.set {
		return nil
	}
	mac, err := kernel.ParseMAC(a.text)
	if err != nil || mac == (kernel.MAC{}) || mac[0]&1 != 0 { // the last is a group's (IEEE 802-2014, 8.2.2)
		return a.wrong(fmt.Sprintf("%q is no station's MAC", a.text), "write it as 02:00:00:00:00:01")
	}
	w.mac = mac.String()
	return nil
}

func notEnabled(feature string) error {
	return &attach.Error{
		Code: attach.CodeBadConfig, Msg: "requested feature is not enabled: " + feature, Details: "remove the annotation, or set feature_control." + feature + " in the network configuration",
	}
}

// annotation is one of a pod, or of its namespace.
type annotation struct {
	name, text string
	set        bool
}

// own is the pod's.
func (p Pod) own(name string) annotation {
	text, ok := p.Annotations[name]
	return annotation{name, text, ok}
}

// inherited is the pod's, else its namespace's.
func (p Pod) inherited(name string) annotation {
	if a := p.own(name); a.set {
		return a
	}
	text, ok := p.NamespaceAnnotations[name]
	return annotation{name, text, ok}
}

func (a annotation) wrong(why, remedy string) error {
	return &attach.Error{Code: attach.CodeBadConfig, Msg: fmt.Sprintf("read annotation %s: %s", a.name, why), Details: remedy}
}

// listOf reads a JSON list of strings that is not empty; ok is false if the annotation is not set.
func listOf(a annotation) (list []string, ok bool, err error) {
	if !a.set {
		return nil, false, nil
	}
	if json.Unmarshal([]byte(a.text), &list) != nil || len(list) == 0 {
		return nil, false, a.wrong(fmt.Sprintf("%q is not a list", a.text), `write it as JSON: ["one", "two"]`)
	}
	return list, true, nil
}

// addrs reads a list of at most one address of each family.
func (a annotation) addrs() ([]netip.Addr, error) {
	list, _, err := listOf(a)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, text := range list {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil || addr.Zone() != "" {
			return nil, a.wrong(fmt.Sprintf("%q is no address", text), `write it as JSON: ["10.0.0.1"]`)
		}
		out = append(out, addr.Unmap())
	}
	if len(out) > 2 || len(out) == 2 && out[0].Is6() == out[1].Is6() {
		return nil, a.wrong(fmt.Sprintf("%q has more than one address of a family", a.text), "write one of each at most")
	}
	return out, nil
}
