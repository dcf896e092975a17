package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/pkg/api"
)

func kernelHas(v View) []Finding {
	var l list
	l.features(v)
	if v.Sysctls.Err != nil {
		l.unknown("settings", v.Sysctls.Err)
	} else {
		l.forwarding(v)
		l.reversePath(v)
		l.tracking(v.Sysctls.Value)
	}
	l.atBoot(v)
	l.backends(v)
	return l
}

// features judges what the kernel lacks by what is asked for. What only etcd could say counts as asked for by nobody.
func (l *list) features(v View) {
	if v.Lacking.Err != nil {
		l.unknown("features", v.Lacking.Err)
		return
	}
	for _, f := range v.Lacking.Value {
		switch needed := v.needs(f.For); {
		case f.For == ForAll:
			l.add(Error, f.Name, "use a kernel that has it, or install the package of its modules", "the kernel lacks it, and nothing works without")
		case needed != "":
			l.add(Error, f.Name, fmt.Sprintf("use a kernel that has it, or do without %s", f.For), "the kernel lacks it, and %s", needed)
		}
	}
}

// needs says who asks for what a feature is for; "" if nobody does.
func (v View) needs(p Purpose) string {
	switch p {
	case ForVXLAN:
		if v.Settings.VXLANEnabled != nil && *v.Settings.VXLANEnabled {
			return "vxlanEnabled asks for VXLAN"
		}
		return v.poolWith("vxlanMode", func(s api.IPPoolSpec) api.EncapMode { return s.VXLANMode })
	case ForIPIP:
		if v.Settings.IPIPEnabled != nil && *v.Settings.IPIPEnabled {
			return "ipipEnabled asks for IP-in-IP"
		}
		return v.poolWith("ipipMode", func(s api.IPPoolSpec) api.EncapMode { return s.IPIPMode })
	case ForWireGuard:
		if w := v.Settings.WireGuard; w.Enabled || w.Enabled6 {
			return "wireguardEnabled asks for it"
		}
	case ForReject:
		if v.Settings.DenyAction == "REJECT" || v.Settings.NftDenyAction == "REJECT" {
			return "the deny action REJECT asks for it"
		}
	}
	return ""
}

// poolWith names the first pool that has a mode of encapsulation.
func (v View) poolWith(field string, mode func(api.IPPoolSpec) api.EncapMode) string {
	for _, e := range v.Data.Value.IPAM.Pools {
		if m := mode(e.Value.Spec); m != "" && m != api.Never {
			return fmt.Sprintf("pool %s has %s %s", e.Value.Metadata.Name, field, m)
		}
	}
	return ""
}

func (l *list) forwarding(v View) {
	set := v.Sysctls.Value
	remedy := "sysctl -w net.ipv4.ip_forward=1, and see what has set it (/etc/sysctl.d); the agent sets it unless ipForwarding is Disabled"
	if set["net/ipv4/ip_forward"] == "0" {
		l.add(Error, "net.ipv4.ip_forward", remedy, "is 0: nothing is forwarded to or from pods")
	}
	six := slices.ContainsFunc(v.Data.Value.IPAM.Pools, isPool6)
	if six && v.Settings.IPv6Support && set["net/ipv6/conf/all/forwarding"] == "0" {
		l.add(Error, "net.ipv6.conf.all.forwarding", strings.ReplaceAll(remedy, "ipv4.ip_forward", "ipv6.conf.all.forwarding"), "is 0, and there is a pool of IPv6: nothing is forwarded to or from pods")
	}
	for _, dev := range slices.Sorted(maps.Keys(v.Host.Value.Links)) {
		if v.workload(dev) && set["net/ipv4/conf/"+dev+"/forwarding"] == "0" {
			l.add(Error, dev, "restart the agent, and see what sets it (/etc/sysctl.d, a udev rule)", "forwarding is off on a pod's device")
		}
	}
}

// atBoot finds files that switch forwarding off: it works until the next boot, or until somebody has all files read again.
func (l *list) atBoot(v View) {
	if v.Boot.Err != nil {
		l.unknown("settings at boot", v.Boot.Err)
	}
	names := []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"}
	if v.Settings.IPv6Support && slices.ContainsFunc(v.Data.Value.IPAM.Pools, isPool6) {
		names = append(names, "net/ipv6/conf/all/forwarding")
	}
	for _, name := range names {
		if set, ok := v.Boot.Value[name]; ok && set.Value == "0" {
			l.add(Warning, set.File, "set it to 1 there, or take the line away", "sets %s to 0: with each boot and each `sysctl --system` pods are cut off until the agent sets it again", strings.ReplaceAll(name, "/", "."))
		}
	}
}

func (v View) workload(dev string) bool {
	return kernel.Ownership{Prefixes: v.Settings.InterfacePrefixes}.Workload(dev)
}

// reversePath warns of strict filters where answers may take another way than questions. What counts of a device is the greater of its own setting and
// that of all (kernel doc, networking/ip-sysctl, rp_filter).
func (l *list) reversePath(v View) {
	ways := map[string]bool{}
	shared := false
	for _, r := range v.Routes.Value {
		shared = shared || r.Hops != ""
		if r.Gateway.IsValid() && r.Dev.Name != "" && !v.tunnel(r.Dev.Name) && !v.workload(r.Dev.Name) {
			ways[r.Dev.Name] = true
		}
	}
	if len(ways) < 2 && !shared {
		return
	}
	for _, dev := range slices.Sorted(maps.Keys(ways)) {
		if v.filter(dev) == 1 {
			l.add(Warning, dev, "sysctl -w net.ipv4.conf."+dev+".rp_filter=2", "its reverse path filter is strict, and other nodes are reached by several ways: what comes back by another one is dropped")
		}
	}
}

// filter is the reverse path filter that is in force on a device.
func (v View) filter(dev string) int {
	all, _ := strconv.Atoi(v.Sysctls.Value["net/ipv4/conf/all/rp_filter"]) // missing is 0, as without the setting
	own, _ := strconv.Atoi(v.Sysctls.Value["net/ipv4/conf/"+dev+"/rp_filter"])
	return max(all, own)
}

// tunnel tells whether a device is a tunnel of ours.
func (v View) tunnel(dev string) bool { return slices.Contains(v.tunnels(), dev) }

// tunnels are the devices that tunnels of ours have, where there are any.
func (v View) tunnels() []string {
	return []string{kernel.IPIPDevice, kernel.VXLANDevice, kernel.VXLAN6Device, v.Settings.WireGuard.Device, v.Settings.WireGuard.Device6}
}

// tracking warns of a table of connections that is nearly full.
func (l *list) tracking(set map[string]string) {
	most, errMost := strconv.Atoi(set["net/netfilter/nf_conntrack_max"])
	now, errNow := strconv.Atoi(set["net/netfilter/nf_conntrack_count"])
	if errMost != nil || errNow != nil || most == 0 || now < most/10*9 {
		return
	}
	s := Warning
	if now >= most {
		s = Error
	}
	l.add(s, "net.netfilter.nf_conntrack_max", "raise it", "%d of %d connections are in use: beyond that packets are dropped", now, most)
}

// backends finds rules in both backends of iptables: what one accepts the other may still drop.
func (l *list) backends(v View) {
	if v.Legacy.Err != nil {
		l.unknown("iptables", v.Legacy.Err)
		return
	}
	if errors.Is(v.Chains.Err, fs.ErrPermission) {
		l.unknown("nftables", v.Chains.Err)
		return
	}
	if v.Chains.Err != nil {
		l.add(Error, "nftables", "use a kernel with nftables", "cannot be listed: %v", v.Chains.Err)
		return
	}
	var legacy, modern []string
	for _, c := range v.Legacy.Value {
		if known(c.Name) {
			legacy = append(legacy, c.Name)
		}
	}
	for _, c := range v.Chains.Value {
		if iptablesOwn(c) && known(c.Name) {
			modern = append(modern, c.Name)
		}
	}
	if len(legacy) > 0 && len(modern) > 0 {
		l.add(Warning, "iptables", "let kube-proxy and agent use one backend (iptablesBackend, update-alternatives), then take the other's rules away or restart the host",
			"both backends hold rules: legacy %s, nft %s: what one accepts the other may drop", few(legacy), few(modern))
	}
}

// iptablesOwn tells whether a chain is in a table that iptables-nft has made.
func iptablesOwn(c nft.Chain) bool {
	return (c.Family == "ip" || c.Family == "ip6") && slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, c.Table)
}

// known tells whether a chain is kube-proxy's, the kubelet's or ours.
func known(chain string) bool {
	return strings.HasPrefix(chain, "KUBE-") || strings.HasPrefix(chain, kernel.ChainPrefix)
}

// few is the first of some names, and how many more there are.
func few(names []string) string {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
