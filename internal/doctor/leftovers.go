package doctor

import (
	"maps"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
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
	l.tunnels(v)
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

// tunnels finds tunnels that are up though nobody asks for them: their routes and addresses may be another program's.
func (l *list) tunnels(v View) {
	if v.Data.Err != nil || len(v.Data.Value.IPAM.Unreadable) > 0 {
		return // what pools ask for is not known
	}
	for dev, purpose := range map[string]Purpose{kernel.IPIPDevice: ForIPIP} {
		if link := v.Host.Value.Links[dev]; link.Up && v.needs(purpose) == "" {
			l.add(Warning, dev, "ip address flush dev "+dev+"; ip link set "+dev+" down", "is up, and no pool and no setting asks for it: another network has left it so")
		}
	}
}
