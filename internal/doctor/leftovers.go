package doctor

import (
	"maps"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func leftovers(v View) []Finding {
	var l list
	switch {
	case v.Rival.Err != nil:
		l.unknown("processes", v.Rival.Err)
	case v.Rival.Value != "":
		l.add(Error, "Calico's agent", "take Calico off this node, for example by a nodeSelector of its DaemonSet calico-node that the node does not match",
			"runs on this host (%s): two agents would undo each other's routes and rules", v.Rival.Value)
	}
	l.configurations(v)
	l.devices(v)
	l.chains(v)
	l.unasked(v)
	return l
}

// configurations finds what a runtime would take in the place of our configuration: it takes the first file by name.
func (l *list) configurations(v View) {
	if v.Conf.Err != nil {
		return // the check cni says so
	}
	for _, n := range networks(v.Conf.Value) {
		if n.ours() {
			return
		}
		if n.err == nil {
			l.add(Error, n.file, "remove the file, or have its owner uninstalled; then restart the pods that it has connected",
				"it sorts before ours and is of %s: the runtime takes it, and new pods are not ours", strings.Join(n.types, ", "))
		}
	}
}

// strangers are the devices and chains of other networks, by how their names begin.
func strangers() (devices, chains map[string]string) {
	return map[string]string{
			"flannel": "flannel", "cni0": "flannel, or the plugin bridge", "cilium_": "Cilium", "weave": "Weave", "vethwe-": "Weave",
			"kube-bridge": "kube-router", "antrea-gw": "Antrea", "ovn-k8s-mp": "OVN-Kubernetes", "ovn0": "Kube-OVN",
		}, map[string]string{
			"FLANNEL-": "flannel", "CILIUM_": "Cilium", "OLD_CILIUM_": "Cilium", "WEAVE": "Weave",
			"KUBE-ROUTER-": "kube-router", "KUBE-POD-FW-": "kube-router", "KUBE-NWPLCY-": "kube-router", "ANTREA-": "Antrea", "OVN-": "Kube-OVN",
		}
}

func owner(of map[string]string, name string) string {
	for _, prefix := range slices.Sorted(maps.Keys(of)) {
		if strings.HasPrefix(name, prefix) {
			return of[prefix]
		}
	}
	return ""
}

func (l *list) devices(v View) {
	if v.Host.Err != nil {
		l.unknown("devices", v.Host.Err)
		return
	}
	known, _ := strangers()
	for _, dev := range slices.Sorted(maps.Keys(v.Host.Value.Links)) {
		if whose := owner(known, dev); whose != "" {
			l.add(Warning, dev, "once its pods are gone: ip link delete "+dev, "a device of %s: its routes and addresses may stand in the way of ours", whose)
		}
	}
}

func (l *list) chains(v View) {
	_, known := strangers()
	found := map[string][]string{}
	for _, c := range v.Chains.Value {
		if whose := owner(known, c.Name); whose != "" {
			found[whose] = append(found[whose], c.Name)
		}
	}
	for _, c := range v.Legacy.Value {
		if whose := owner(known, c.Name); whose != "" {
			found[whose] = append(found[whose], c.Name)
		}
	}
	for _, whose := range slices.Sorted(maps.Keys(found)) {
		l.add(Warning, "iptables", "run its own cleanup, or restart the host", "chains of %s: %s: they may drop or masquerade what pods send", whose, few(found[whose]))
	}
}

// unasked finds tunnels that are up though nobody asks for them: their routes and addresses may be another program's.
func (l *list) unasked(v View) {
	if v.Data.Err != nil || len(v.Data.Value.IPAM.Unreadable) > 0 {
		return // what pools ask for is not known
	}
	for _, dev := range v.tunnels() {
		if link := v.Host.Value.Links[dev]; !link.Up || v.asks(dev) {
			continue
		}
		remedy := "start the agent, which takes it away; or ip link delete " + dev
		if dev == kernel.IPIPDevice { // the kernel's own, which cannot be deleted
			remedy = "start the agent, which sets it down; or ip address flush dev " + dev + "; ip link set " + dev + " down"
		}
		l.add(Warning, dev, remedy, "is up, and no pool and no setting asks for it, or not since a minute ago: another network or an agent that is gone has left it so")
	}
}

// asks tells whether a pool or a setting asks for a tunnel.
func (v View) asks(dev string) bool {
	vxlan := func(v6 bool) bool {
		return v.Settings.VXLANEnabled != nil && *v.Settings.VXLANEnabled ||
			slices.ContainsFunc(v.Data.Value.IPAM.Pools, func(e store.Entry[api.IPPool]) bool { return isPool6(e) == v6 && encapsulates(e.Value.Spec.VXLANMode) })
	}
	switch dev {
	case kernel.IPIPDevice:
		return v.needs(ForIPIP) != ""
	case kernel.VXLANDevice:
		return vxlan(false)
	case kernel.VXLAN6Device:
		return vxlan(true)
	case v.Settings.WireGuard.Device:
		return v.Settings.WireGuard.Enabled
	default:
		return v.Settings.WireGuard.Enabled6
	}
}
