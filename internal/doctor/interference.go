package doctor

import (
	"path"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
)

func interference(v View) []Finding {
	var l list
	if v.Processes.Err != nil {
		l.unknown("processes", v.Processes.Err)
	}
	l.networkManager(v)
	l.networkd(v)
	l.firewalld(v)
	l.ufw(v)
	if v.Chains.Err != nil {
		l.unknown("nftables", v.Chains.Err)
		return l
	}
	l.forwardPolicy(v)
	l.otherTables(v)
	return l
}

// networkManager judges by what it says of each device, and while it says nothing by its configuration.
func (l *list) networkManager(v View) {
	const remedy = "put deploy/networkmanager/muslin.conf into /etc/NetworkManager/conf.d, then: nmcli general reload"
	if v.NetworkManager.Err != nil {
		l.unknown(NetworkManagerProgram, v.NetworkManager.Err)
		return
	}
	var managed []string
	for name, link := range v.Host.Value.Links {
		if v.NetworkManager.Value.Manages[link.Index] && (v.workload(name) || v.tunnel(name)) {
			managed = append(managed, name)
		}
	}
	if len(managed) > 0 {
		l.add(Error, NetworkManagerProgram, remedy, "it manages %s: it takes addresses and routes from them", few(managed))
		return
	}
	if !slices.Contains(v.Processes.Value, NetworkManagerProgram) {
		return
	}
	var open []string
	for _, sample := range v.samples() {
		if !slices.ContainsFunc(v.NetworkManager.Value.Unmanaged, func(p string) bool { return matches(p, sample) }) {
			open = append(open, strings.ReplaceAll(sample, somePod, "*"))
		}
	}
	if len(open) > 0 {
		l.add(Warning, NetworkManagerProgram, remedy, "it runs, and its configuration does not keep it from %s: it may take addresses and routes from them", strings.Join(open, ", "))
	}
}

// somePod is how a pod's device may be called behind the prefix of all.
const somePod = "0123456789a"

// samples are names that devices of ours have: those that there may be without a setting, and WireGuard's where it is on.
func (v View) samples() []string {
	out := []string{kernel.WorkloadPrefix + somePod, kernel.IPIPDevice, kernel.VXLANDevice, kernel.VXLAN6Device}
	w := v.Settings.WireGuard
	if w.Enabled {
		out = append(out, w.Device)
	}
	if w.Enabled6 {
		out = append(out, w.Device6)
	}
	return out
}

// matches is NetworkManager's comparison of names: a pattern, or behind = the name itself (NetworkManager.conf(5), "Device List Format").
func matches(pattern, name string) bool {
	if exact, ok := strings.CutPrefix(pattern, "="); ok {
		return exact == name
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// networkd finds what it does to routes, rules and devices that it has not made (networkd.conf(5), systemd.network(5)).
func (l *list) networkd(v View) {
	if !slices.Contains(v.Processes.Value, NetworkdProgram) {
		return
	}
	n := v.Networkd.Value
	if v.Networkd.Err != nil {
		l.unknown(NetworkdProgram, v.Networkd.Err)
		return
	}
	var foreign []string
	for _, what := range []struct {
		name string
		on   bool
	}{{"ManageForeignRoutes", n.Routes}, {"ManageForeignRoutingPolicyRules", n.Rules}} {
		if what.on {
			foreign = append(foreign, what.name+"=no")
		}
	}
	if len(foreign) > 0 {
		l.add(Warning, NetworkdProgram, "put [Network] and "+strings.Join(foreign, " and ")+" into /etc/systemd/networkd.conf.d/muslin.conf, then: systemctl restart systemd-networkd",
			"it takes away routes and rules that it has not made, each time that it starts or reads its configuration: pods are cut off until the agent puts them back")
	}
	for _, file := range n.Files {
		if taken := n.takes(file, v.samples()); len(taken) > 0 {
			l.add(Error, file.Path, "name there the devices that it is for, or put a file before it whose [Link] has Unmanaged=yes",
				"%s configures %s by it: it takes addresses and routes from them", NetworkdProgram, few(taken))
		}
	}
}

// takes are those of the names for which a file is the first that matches, and by which they are managed.
func (n Networkd) takes(file NetworkFile, names []string) (out []string) {
	for _, name := range names {
		i := slices.IndexFunc(n.Files, func(f NetworkFile) bool { return f.matches(name) })
		if i >= 0 && n.Files[i].Path == file.Path && !file.Unmanaged {
			out = append(out, strings.ReplaceAll(name, somePod, "*"))
		}
	}
	return out
}

func (f NetworkFile) matches(name string) bool {
	names, inverted := slices.Clone(f.Names), false
	if len(names) > 0 {
		names[0], inverted = strings.CutPrefix(names[0], "!")
	}
	return inverted != slices.ContainsFunc(names, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return err == nil && ok
	})
}

func (l *list) firewalld(v View) {
	tables := slices.ContainsFunc(v.Chains.Value, func(c nft.Chain) bool { return c.Table == "firewalld" })
	if tables || slices.Contains(v.Processes.Value, FirewalldProgram) {
		l.add(Warning, FirewalldProgram, "systemctl disable --now firewalld; or, if it must stay, put pods' devices and ranges into its zone trusted and restart the agent after each reload",
			"is active: it rejects what is forwarded between devices of no trusted zone, whatever our rules accept")
	}
}

func (l *list) ufw(v View) {
	if v.UFW.Err != nil {
		l.unknown("ufw", v.UFW.Err)
		return
	}
	if v.UFW.Value.Enabled && v.UFW.Value.DropsForward {
		l.add(Warning, "ufw", `set DEFAULT_FORWARD_POLICY="ACCEPT" in /etc/default/ufw, then: ufw reload`,
			"is enabled and drops what is forwarded: pods have network only while our rules stand before its own")
	}
}

// forwardPolicy finds a policy of FORWARD that drops, without our rules that accept before it comes to that.
func (l *list) forwardPolicy(v View) {
	const remedy = "start the agent, which puts its rules first; or iptables -P FORWARD ACCEPT"
	for _, c := range v.Chains.Value {
		if !iptablesOwn(c) || c.Name != "FORWARD" || !c.Drop || c.Family == "ip6" && !slices.ContainsFunc(v.Data.Value.IPAM.Pools, isPool6) {
			continue
		}
		if !slices.ContainsFunc(v.Chains.Value, func(o nft.Chain) bool { return o.Family == c.Family && o.Table == c.Table && o.Name == ourForward }) {
			l.add(Error, c.Family+" filter FORWARD", remedy, "its policy is DROP, and there are no rules of ours that accept before: pods' packets are dropped")
		}
	}
	if v.Legacy.Err != nil {
		return // the check kernel says so
	}
	for _, c := range v.Legacy.Value {
		ours := slices.ContainsFunc(v.Legacy.Value, func(o LegacyChain) bool { return o.V6 == c.V6 && o.Table == c.Table && o.Name == ourForward })
		if c.Table == "filter" && c.Name == "FORWARD" && c.Drop && !ours && !c.V6 {
			l.add(Error, "iptables-legacy FORWARD", "iptables-legacy -P FORWARD ACCEPT, and see who sets it (Docker does)", "its policy is DROP, and our rules are not in that backend: pods' packets are dropped")
		}
	}
}

// ourForward is where FORWARD leads to first.
const ourForward = kernel.ChainPrefix + "FORWARD"

// otherTables finds base chains of others that drop what they do not accept themselves: in nftables only dropping is final.
func (l *list) otherTables(v View) {
	const remedy = "give it the policy accept, or rules that accept what is forwarded for pods' devices and ranges"
	for _, c := range v.Chains.Value {
		if c.Hook != nftable.Forward || !c.Drop || iptablesOwn(c) || c.Table == "muslin" || !slices.Contains([]string{"inet", "ip", "ip6"}, c.Family) {
			continue
		}
		object := "nftables " + c.Family + " " + c.Table + " " + c.Name
		if c.Rules == 0 {
			l.add(Error, object, remedy, "drops all that is forwarded, whatever our rules accept: its policy is drop, and it has no rule")
			continue
		}
		l.add(Warning, object, remedy, "drops what its own %s %s not accept, whatever our rules accept", count(c.Rules, "rule"), map[bool]string{true: "does", false: "do"}[c.Rules == 1])
	}
}
