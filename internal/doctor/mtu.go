package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
)

func mtu(v View) []Finding {
	var l list
	if v.Host.Err != nil {
		l.unknown("", v.Host.Err)
		return l
	}
	l.uneven(v)
	if v.Data.Err != nil {
		l.unknown("", v.Data.Err)
		return l
	}
	below, dev := v.below()
	if below == 0 {
		return l // the check identity says that no device has the node's address
	}
	l.tunnelFits(v, kernel.VXLANDevice, plan.VXLANOverhead)
	l.tunnelFits(v, kernel.VXLAN6Device, plan.VXLANOverheadV6)
	l.tunnelFits(v, kernel.IPIPDevice, plan.IPIPOverhead)
	l.tunnelFits(v, v.Settings.WireGuard.Device, plan.WireGuardOverhead)
	l.tunnelFits(v, v.Settings.WireGuard.Device6, plan.WireGuardOverheadV6)
	most := below - v.overhead()
	why := fmt.Sprintf("%d of %s less %d for encapsulation", below, dev, v.overhead())
	l.pods(v, most, why)
	return l
}

// uneven warns of devices between nodes that differ: only the smallest MTU counts, if the others' nodes think so too.
func (l *list) uneven(v View) {
	sizes := map[int][]string{}
	for _, a := range v.Host.Value.Addrs {
		link := v.Host.Value.Links[a.Dev]
		if link.Live && v.Settings.MTUIface != nil && v.Settings.MTUIface.MatchString(a.Dev) && !slices.Contains(sizes[link.MTU], a.Dev) {
			sizes[link.MTU] = append(sizes[link.MTU], a.Dev)
		}
	}
	if len(sizes) < 2 {
		return
	}
	var texts []string
	for _, size := range slices.Sorted(maps.Keys(sizes)) {
		slices.Sort(sizes[size])
		texts = append(texts, fmt.Sprintf("%s %d", strings.Join(sizes[size], ", "), size))
	}
	l.add(Warning, "devices", "give them one MTU, or say by mtuIfacePattern which of them lead to other nodes", "devices that may lead to other nodes differ: %s", strings.Join(texts, "; "))
}

// below is the smallest MTU of the devices that hold the node's addresses, and that device; 0 if there is none.
func (v View) below() (least int, dev string) {
	node := v.Data.Value.node(v.Node.Value)
	if node == nil {
		return 0, ""
	}
	for _, v6 := range []bool{false, true} {
		addr, ok := node.Address(v6)
		name := holderOf(v.Host.Value, addr.Addr())
		if link := v.Host.Value.Links[name]; ok && name != "lo" && link.MTU > 0 && (least == 0 || link.MTU < least) {
			least, dev = link.MTU, name
		}
	}
	return least, dev
}

// overhead is what the encapsulations in use add at most.
func (v View) overhead() int {
	most := 0
	if v.Settings.WireGuard.Enabled {
		most = plan.WireGuardOverhead
	}
	if v.Settings.WireGuard.Enabled6 {
		most = plan.WireGuardOverheadV6
	}
	for _, e := range v.Data.Value.IPAM.Pools {
		s := e.Value.Spec
		switch {
		case encapsulates(s.VXLANMode) && s.CIDR.Addr().Is6():
			most = max(most, plan.VXLANOverheadV6)
		case encapsulates(s.VXLANMode):
			most = max(most, plan.VXLANOverhead)
		case encapsulates(s.IPIPMode):
			most = max(most, plan.IPIPOverhead)
		}
	}
	return most
}

// tunnelFits judges a tunnel by the device below it.
func (l *list) tunnelFits(v View, name string, bytes int) {
	link, ok := v.Host.Value.Links[name]
	below, dev := v.below()
	if ok && link.Up && link.MTU > below-bytes {
		l.add(Error, name, "restart the agent, which sets it; correct vxlanMTU, ipipMTU or wireguardMTU where they are set", "its MTU is %d, and packets of it need %d bytes more than the %d of %s: large ones are lost", link.MTU, bytes, below, dev)
	}
}

// pods judges what pods have and what new ones will get.
func (l *list) pods(v View, most int, why string) {
	var large []string
	for name, link := range v.Host.Value.Links {
		if v.workload(name) && link.Kind == "veth" && link.MTU > most {
			large = append(large, name)
		}
	}
	if len(large) > 0 {
		l.add(Error, few(large), "restart these pods: an MTU is a pod's for its life", "pods' devices have a larger MTU than %d (%s): their large packets are lost", most, why)
	}
	switch {
	case v.PodMTU.Err != nil:
		l.unknown("pods", v.PodMTU.Err)
	case v.PodMTU.Value > most:
		l.add(Error, "pods", "restart the agent, and see why it told that", "the agent tells new pods an MTU of %d, and %d is the most (%s)", v.PodMTU.Value, most, why)
	}
	for _, n := range networks(v.Conf.Value) {
		if n.ours() && n.plugin.MTU > most {
			l.add(Error, n.file, "set mtu to 0 there: the agent then says what it is", "new pods get the MTU %d of this file, and %d is the most (%s)", n.plugin.MTU, most, why)
		}
	}
}
