package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

var (
	now      = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ourRange = netip.MustParsePrefix("10.244.0.0/26")
	another  = netip.MustParsePrefix("10.244.0.64/26")
	podAddr  = netip.MustParseAddr("10.244.0.0")
)

const conflist = `{"name":"k","cniVersion":"1.0.0","plugins":[{"type":"muslin","nodename":"node-1","etcd_endpoints":"http://10.0.0.9:2379/","ipam":{"type":"muslin-ipam"}},{"type":"portmap"}]}`

func on() *bool { return new(true) }

func node(name, addr string) store.Entry[api.Node] {
	n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: netip.MustParsePrefix(addr)}}}}
	n.Metadata.Name, n.Metadata.UID = name, "uid-"+name
	return store.Entry[api.Node]{Key: n.KindOf().Key("", name), Rev: 1, Value: n}
}

func pool(name, cidr string) store.Entry[api.IPPool] {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix(cidr), VXLANMode: api.Always}}
	p.Metadata.Name = name
	p.Default()
	return store.Entry[api.IPPool]{Key: p.KindOf().Key("", name), Rev: 1, Value: p}
}

// owned are the entries of a node's block with one pod of that node; "" leaves the block empty.
func owned(t *testing.T, d *Data, host string, cidr netip.Prefix, pod string) {
	t.Helper()
	b, err := block.New(cidr, host, now)
	if err != nil {
		t.Fatal(err)
	}
	d.IPAM.Affinities = append(d.IPAM.Affinities, store.Entry[api.Affinity]{Key: api.AffinityKey(host, cidr), Rev: 1, Value: &api.Affinity{State: api.AffinityConfirmed}})
	if pod != "" {
		var got []netip.Addr
		got, b = block.Assign(b, 1, block.Owner{HandleID: "k." + pod, Attrs: map[string]string{api.AttrNode: host, api.AttrPod: pod, api.AttrNamespace: "default"}})
		d.IPAM.Handles = append(d.IPAM.Handles, store.Entry[api.Handle]{Key: api.HandleKey("k." + pod), Rev: 1, Value: &api.Handle{Block: map[string]int{cidr.String(): 1}}})
		w := &api.WorkloadEndpoint{}
		w.Metadata.Namespace, w.Metadata.Name = "default", host+"-k8s-"+pod+"-eth0"
		w.Spec.Node, w.Spec.Pod, w.Spec.ContainerID, w.Spec.InterfaceName = host, pod, pod, "cali1"
		w.Spec.IPNetworks = []api.Prefix{{Prefix: netip.PrefixFrom(got[0], 32)}}
		d.IPAM.Endpoints = append(d.IPAM.Endpoints, store.Entry[api.WorkloadEndpoint]{Key: api.KeyOf(w), Rev: 1, Value: w})
	}
	d.IPAM.Blocks = append(d.IPAM.Blocks, store.Entry[api.Block]{Key: api.BlockKey(cidr), Rev: 1, Value: b})
}

// healthy is a node that nothing ails.
func healthy(t *testing.T) View {
	t.Helper()
	d := Data{
		Cluster:  &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: on()}},
		Identity: &api.NodeIdentity{MachineID: "m1", NodeUID: "uid-node-1"}, Config: api.DefaultIPAMConfig(),
		IPAM: ipam.View{Nodes: []store.Entry[api.Node]{node("node-1", "10.0.0.1/24"), node("node-2", "10.0.0.2/24")}, Pools: []store.Entry[api.IPPool]{pool("p", "10.244.0.0/16")}},
	}
	owned(t, &d, "node-1", ourRange, "web")
	owned(t, &d, "node-2", another, "")
	settings, bad := config.Effective(config.Sources{Env: func(string) string { return "" }})
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	return View{
		Now: now, Node: Fact[string]{Value: "node-1"}, Machine: Fact[string]{Value: "m1"}, Settings: settings, Speaks: true,
		Certificates: Fact[[]Certificate]{Value: []Certificate{{Owner: "agent", Kind: "certificate", Path: "/c", From: now.AddDate(-1, 0, 0), To: now.AddDate(1, 0, 0)}, {Owner: "agent", Kind: KeyKind, Path: "/k", Mode: 0o600}}},
		Etcd:         Fact[[]store.Member]{Value: []store.Member{{Endpoint: "http://10.0.0.9:2379", Leader: true, Size: 1 << 20, Quota: 2 << 30, Took: time.Millisecond, Clock: now, Asked: now}}},
		Data:         Fact[Data]{Value: d},
		Host: Fact[kernel.Host]{Value: kernel.Host{
			Links: map[string]kernel.HostLink{
				"eth0": {Index: 2, MTU: 1500, Up: true, Live: true}, "cali1": {Index: 3, MTU: 1450, Up: true, Live: true, Kind: "veth"},
				kernel.VXLANDevice: {Index: 4, MTU: 1450, Up: true, Live: true, Kind: "vxlan"},
			},
			Addrs: []kernel.HostAddr{{Dev: "eth0", Addr: netip.MustParsePrefix("10.0.0.1/24")}},
		}},
		Sysctls: Fact[map[string]string]{Value: map[string]string{"net/ipv4/ip_forward": "1", "net/netfilter/nf_conntrack_count": "10", "net/netfilter/nf_conntrack_max": "1000"}},
		Chains:  Fact[[]nft.Chain]{Value: []nft.Chain{{Family: "ip", Table: "filter", Name: "FORWARD", Hook: nftable.Forward, Rules: 1}, {Family: "ip", Table: "filter", Name: "cali-FORWARD", Rules: 1}, {Family: "inet", Table: "muslin", Name: "forward", Hook: nftable.Forward, Drop: true}}},
		Routes: Fact[map[kernel.RouteKey]kernel.Route]{Value: map[kernel.RouteKey]kernel.Route{
			{Dst: netip.PrefixFrom(podAddr, 32), Metric: 1024}: {Dev: kernel.Dev{Name: "cali1"}}, {Dst: another}: {Dev: kernel.Dev{Name: kernel.VXLANDevice}, Gateway: netip.MustParseAddr("10.244.0.65")},
		}},
		Agent:  Fact[Agent]{Value: Agent{Runs: true, Self: &attach.Agent{Version: "v1", Node: "node-1"}, Sessions: []attach.Peer{{Addr: netip.MustParseAddr("10.0.0.2"), State: "Established"}}}},
		Conf:   Fact[[]ConfFile]{Value: []ConfFile{{Name: "10-muslin.conflist", Text: []byte(conflist)}, {Name: "20-flannel.conflist", Text: []byte(`{"name":"f","plugins":[{"type":"flannel"}]}`)}, {Name: "README"}}},
		Bins:   Fact[map[string]Program]{Value: map[string]Program{"muslin": {Runs: true, Version: "v1"}, "muslin-ipam": {Runs: true, Version: "v1"}, "portmap": {Runs: true}}},
		PodMTU: Fact[int]{Value: 1450},
		Looked: Folders{Conf: "/etc/cni/net.d", Bins: []string{"/opt/cni/bin", "/usr/lib/cni"}},
		Set:    Fact[RuntimeConf]{Value: RuntimeConf{File: "/etc/containerd/config.toml", Folders: Folders{Conf: "/etc/cni/net.d/", Bins: []string{"/opt/cni/bin"}}}},
		Disks:  Fact[[]Disk]{Value: []Disk{{Path: "/run/muslin", Free: 1 << 30, Size: 2 << 30}}},
		Boot:   Fact[map[string]BootSetting]{Value: map[string]BootSetting{"net/ipv4/ip_forward": {"1", "/etc/sysctl.d/1.conf"}, "net/ipv6/conf/all/forwarding": {"0", "/etc/sysctl.d/1.conf"}}},
		Ways:   Fact[map[netip.Addr]kernel.Hop]{Value: map[netip.Addr]kernel.Hop{podAddr: way("cali1"), netip.MustParseAddr("10.244.0.127"): way(kernel.VXLANDevice)}},
	}
}

func way(dev string) kernel.Hop { return kernel.Hop{Dev: kernel.Dev{Name: dev}} }

// texts is findings without those that are well, a line each: "error etcd http://…: what follows".
func texts(found []Finding) string {
	var b strings.Builder
	for _, f := range found {
		if f.Severity == OK {
			continue
		}
		fmt.Fprintf(&b, "%s %s: %s: %s", f.Severity, f.Check, f.Object, f.What)
		if f.Follows != "" {
			b.WriteString(" <- " + f.Follows)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestNothingIsWrongWithAHealthyNode(t *testing.T) {
	found := Examine(healthy(t), Checks())
	if got := texts(found); got != "" {
		t.Errorf("found\n%s", got)
	}
	if len(found) != len(Checks()) || Worst(found) != OK {
		t.Errorf("%d findings of %d checks, the worst is %s", len(found), len(Checks()), Worst(found))
	}
}

// ailment is one change to a healthy node, and the findings that it makes: all of them, by a part of each.
type ailment struct {
	name string
	do   func(*View)
	want []string
}

func member(v *View) *store.Member              { return &v.Etcd.Value[0] }
func data(v *View) *Data                        { return &v.Data.Value }
func chain(v *View, c ...nft.Chain)             { v.Chains.Value = append(v.Chains.Value, c...) }
func link(v *View, n string, l kernel.HostLink) { v.Host.Value.Links[n] = l }
func conf(v *View, name, text string) {
	v.Conf.Value = append(v.Conf.Value, ConfFile{Name: name, Text: []byte(text)})
}

func ailments() []ailment {
	var out []ailment
	for _, group := range [][]ailment{certificateAilments(), etcdAilments(), identityAilments(), diskAilments(), kernelAilments(), strangerAilments(), networkdAilments(), agentAilments(), mtuAilments(), routeAilments(), blockAilments()} {
		out = append(out, group...)
	}
	return out
}

func certificateAilments() []ailment {
	first := func(do func(*Certificate)) func(*View) { return func(v *View) { do(&v.Certificates.Value[0]) } }
	return []ailment{
		{"expired", first(func(c *Certificate) { c.To = now.Add(-72 * time.Hour) }), []string{"error certificates: /c: agent's certificate expired 3 days ago"}},
		{"not valid yet", first(func(c *Certificate) { c.From = now.Add(time.Hour) }), []string{"error certificates: /c: agent's certificate is valid only from"}},
		{"missing", first(func(c *Certificate) { c.Err = fs.ErrNotExist }), []string{"error certificates: /c: agent's certificate is not there"}},
		{"unreadable", first(func(c *Certificate) { c.Err = fs.ErrPermission }), []string{"error certificates: /c: agent's certificate cannot be used: permission denied"}},
		{"key of another certificate", func(v *View) { v.Certificates.Value[1].Err = errors.New("private key does not match public key") }, []string{"error certificates: /k: agent's key cannot be used: private key does not"}},
		{"five days left", first(func(c *Certificate) { c.To = now.Add(5*24*time.Hour + time.Minute) }), []string{"warning expiry: /c: agent's certificate ends in 5 days"}},
		{"files that hang", func(v *View) { v.Certificates.Err = errors.New("given up") }, []string{"unknown certificates: : not known: given up"}},
		{"key readable by others", func(v *View) { v.Certificates.Value[1].Mode = 0o644 }, []string{"warning expiry: /k: agent's key can be read by others than its owner (mode 0644)"}},
		{"expired, so that etcd is not reached", func(v *View) {
			v.Certificates.Value[0].To = now.Add(-time.Hour)
			*member(v) = store.Member{Endpoint: "https://e", Err: fmt.Errorf("%w: expired", store.ErrHandshake)}
			v.Data.Err = ErrNoEtcd
		}, []string{
			"error certificates: /c", "error etcd: https://e: does not answer: TLS failed: expired <- certificates", "unknown identity: : not known while etcd cannot be read <- etcd",
			"unknown mtu: : not known while etcd cannot be read <- etcd", "unknown routes: : not known while etcd cannot be read <- etcd", "unknown blocks: : not known while etcd cannot be read <- etcd", "warning cni: 10-muslin",
		}},
	}
}

func etcdAilments() []ailment {
	return []ailment{
		{"no settings", func(v *View) { v.Etcd = Fact[[]store.Member]{Err: errors.New("ETCD_ENDPOINTS is not set")} }, []string{"error etcd: settings: etcd cannot be asked: ETCD_ENDPOINTS is not set"}},
		{"one of two members is away", func(v *View) {
			v.Etcd.Value = append(v.Etcd.Value, store.Member{Endpoint: "http://10.0.0.8:2379", Err: store.ErrUnavailable})
		}, []string{"warning etcd: http://10.0.0.8:2379: does not answer: etcd cannot be reached"}},
		{"other certificates", func(v *View) {
			member(v).Err, v.Data.Err = fmt.Errorf("%w: unknown authority", store.ErrHandshake), ErrNoEtcd
		}, []string{
			"error etcd: http://10.0.0.9:2379: does not answer: TLS failed: unknown authority", "unknown identity", "unknown mtu", "unknown routes", "unknown blocks"}},
		{"no quorum", func(v *View) {
			member(v).Leader, member(v).Wrong = false, []string{"etcdserver: no leader"}
			v.Data.Err = fmt.Errorf("%w: deadline", ErrNoEtcd)
		}, []string{"error etcd: http://10.0.0.9:2379: it knows no leader", "error etcd: data: endpoints answer, but nothing can be read", "unknown identity", "unknown mtu", "unknown routes", "unknown blocks"}},
		{"full", func(v *View) { member(v).Wrong = []string{"memberID:1 alarm:NOSPACE "} }, []string{"error etcd: http://10.0.0.9:2379: alarm NOSPACE: it is full (1.0 MiB of 2048.0 MiB)"}},
		{"corrupt", func(v *View) { member(v).Wrong = []string{"memberID:1 alarm:CORRUPT "} }, []string{"error etcd: http://10.0.0.9:2379: alarm CORRUPT"}},
		{"something else", func(v *View) { member(v).Wrong = []string{"flux"} }, []string{"error etcd: http://10.0.0.9:2379: it says: flux"}},
		{"nearly full", func(v *View) { member(v).Size = 19 << 27 }, []string{"warning etcd: http://10.0.0.9:2379: it is nearly full"}},
		{"slow", func(v *View) { member(v).Took = 300 * time.Millisecond }, []string{"warning etcd: http://10.0.0.9:2379: it took 300ms"}},
		{"very slow", func(v *View) { member(v).Took = 3 * time.Second }, []string{"error etcd: http://10.0.0.9:2379: it took 3s"}},
		{"slow to read", func(v *View) { data(v).Took = 300 * time.Millisecond }, []string{"warning etcd: data: a read by all members took 300ms"}},
		{"clock ahead", func(v *View) { member(v).Clock = now.Add(10 * time.Second) }, []string{"warning etcd: http://10.0.0.9:2379: its clock is 11s ahead of"}},
		{"clock far behind", func(v *View) { member(v).Clock = now.Add(-time.Hour) }, []string{"error etcd: http://10.0.0.9:2379: its clock is 1h0m0s behind"}},
		{"clock not known", func(v *View) { member(v).Clock = time.Time{} }, nil},
		{"not let in by any", func(v *View) {
			member(v).Err, v.Data.Err = fmt.Errorf("%w: wrong password", store.ErrUnauthorized), ErrNoEtcd
		}, []string{"error etcd: http://10.0.0.9:2379: does not answer: etcd refused our credentials: wrong password", "unknown identity", "unknown mtu", "unknown routes", "unknown blocks"}},
		{"not let in", func(v *View) { v.Data.Err = fmt.Errorf("%w: %w", ErrNoEtcd, store.ErrUnauthorized) }, []string{"error etcd: data: etcd cannot be read: etcd refused our credentials", "unknown identity", "unknown mtu", "unknown routes", "unknown blocks"}},
		{"empty", func(v *View) { data(v).Cluster = nil }, []string{"error etcd: ClusterInformation(default): is not there"}},
		{"locked", func(v *View) { data(v).Cluster.Spec.DatastoreReady = new(false) }, []string{"error etcd: ClusterInformation(default): datastoreReady is not true"}},
		{"garbage", func(v *View) {
			data(v).Cluster = nil
			data(v).Bad = []store.UnreadableError{{Key: (*api.ClusterInformation)(nil).KindOf().Key("", "default"), Err: errors.New("no JSON")}}
		}, []string{"error etcd: /calico/resources/v3/projectcalico.org/clusterinformations/default: cannot be read: no JSON"}},
	}
}

func identityAilments() []ailment {
	return []ailment{
		{"no name", func(v *View) { v.Node = Fact[string]{Err: errors.New("bad NODENAME")} }, []string{"error identity: name: the node's name is not known: bad NODENAME", "unknown routes: : not known while the node has no name <- identity", "unknown blocks: : not known while the node has no name <- identity"}},
		{"no machine id", func(v *View) { v.Machine = Fact[string]{Err: errors.New("this machine has no id")} }, []string{"error identity: machine: this machine has no id"}},
		{"a machine id for others' eyes", func(v *View) { v.Machine = Fact[string]{Err: fs.ErrPermission} }, []string{"unknown identity: machine: not known: permission denied"}},
		{"another machine has the name", func(v *View) { v.Machine.Value = "m2" }, []string{"error identity: /muslin/v1/nodes/node-1: the name belongs to machine m1, and this is machine m2"}},
		{"another machine had the name", func(v *View) { data(v).Identity = &api.NodeIdentity{MachineID: "m0", NodeUID: "old"} }, []string{"warning identity: /muslin/v1/nodes/node-1: the name belonged to machine m0"}},
		{"the Node was made again", func(v *View) { data(v).Identity.NodeUID = "old" }, []string{"warning identity: /muslin/v1/nodes/node-1: the Node was deleted and made again"}},
		{"nobody holds the name", func(v *View) { data(v).Identity = nil }, []string{"warning identity: /muslin/v1/nodes/node-1: nobody holds"}},
		{"no Node", func(v *View) { data(v).IPAM.Nodes = data(v).IPAM.Nodes[1:]; data(v).Identity = nil }, []string{"error identity: Node(node-1): is not in the datastore", "error blocks: pools: no enabled pool serves this node: new pods get no address <- identity"}},
		{"no address", func(v *View) { data(v).IPAM.Nodes[0].Value.Spec.BGP = nil }, []string{"warning identity: Node(node-1): has no IPv4 address"}},
		{"address of no device", func(v *View) { v.Host.Value.Addrs[0].Addr = netip.MustParsePrefix("10.0.0.7/24") }, []string{"error identity: Node(node-1): its address is 10.0.0.1, and no device of this host has it"}},
		{"device down", func(v *View) { link(v, "eth0", kernel.HostLink{Index: 2, MTU: 1500}) }, []string{"error identity: Node(node-1): its address is 10.0.0.1, and the device eth0 that has it is down"}},
		{"address of another node", func(v *View) { data(v).IPAM.Nodes[1] = node("node-2", "10.0.0.1/24") }, []string{"error identity: Node(node-1): has the address 10.0.0.1, which node node-2 has too"}},
	}
}

func kernelAilments() []ailment {
	lacks := func(f ...Feature) func(*View) { return func(v *View) { v.Lacking.Value = f } }
	return []ailment{
		{"no nftables", lacks(Feature{"nf_tables", ForAll}), []string{"error kernel: nf_tables: the kernel lacks it, and nothing works without"}},
		{"no VXLAN", lacks(Feature{"vxlan", ForVXLAN}), []string{"error kernel: vxlan: the kernel lacks it, and pool p has vxlanMode Always"}},
		{"no IPIP, and nobody asks for it", lacks(Feature{"ipip", ForIPIP}, Feature{"wireguard", ForWireGuard}, Feature{"x", ForLog}, Feature{"y", ForReject}), nil},
		{"no IPIP, and a pool asks for it", func(v *View) {
			v.Lacking.Value = []Feature{{"ipip", ForIPIP}}
			data(v).IPAM.Pools[0].Value.Spec.IPIPMode, data(v).IPAM.Pools[0].Value.Spec.VXLANMode = api.CrossSubnet, api.Never
			delete(v.Host.Value.Links, kernel.VXLANDevice)
		}, []string{"error kernel: ipip: the kernel lacks it, and pool p has ipipMode CrossSubnet"}},
		{"no WireGuard", func(v *View) {
			v.Lacking.Value, v.Settings.WireGuard.Enabled, v.PodMTU.Value = []Feature{{"wireguard", ForWireGuard}}, true, 1440
			link(v, "cali1", kernel.HostLink{Index: 3, MTU: 1440, Up: true, Live: true, Kind: "veth"})
		}, []string{"error kernel: wireguard: the kernel lacks it, and wireguardEnabled asks for it"}},
		{"features not known", func(v *View) { v.Lacking.Err = errors.New("gone") }, []string{"unknown kernel: features: not known: gone"}},
		{"no forwarding", func(v *View) { v.Sysctls.Value["net/ipv4/ip_forward"] = "0" }, []string{"error kernel: net.ipv4.ip_forward: is 0"}},
		{"no forwarding of a pod", func(v *View) { v.Sysctls.Value["net/ipv4/conf/cali1/forwarding"] = "0" }, []string{"error kernel: cali1: forwarding is off on a pod's device"}},
		{"strict filters and two ways", func(v *View) {
			v.Sysctls.Value["net/ipv4/conf/all/rp_filter"] = "1"
			gw := netip.MustParseAddr("10.0.0.254")
			v.Routes.Value[kernel.RouteKey{Dst: netip.MustParsePrefix("10.9.0.0/26")}] = kernel.Route{Dev: kernel.Dev{Name: "eth0"}, Gateway: gw}
			v.Routes.Value[kernel.RouteKey{Dst: netip.MustParsePrefix("10.9.1.0/26")}] = kernel.Route{Dev: kernel.Dev{Name: "eth1"}, Gateway: gw}
		}, []string{"warning kernel: eth0: its reverse path filter is strict", "warning kernel: eth1: its reverse path filter is strict"}},
		{"strict filters and one way", func(v *View) { v.Sysctls.Value["net/ipv4/conf/all/rp_filter"] = "1" }, nil},
		{"connections nearly full", func(v *View) { v.Sysctls.Value["net/netfilter/nf_conntrack_count"] = "950" }, []string{"warning kernel: net.netfilter.nf_conntrack_max: 950 of 1000"}},
		{"connections full", func(v *View) { v.Sysctls.Value["net/netfilter/nf_conntrack_count"] = "1000" }, []string{"error kernel: net.netfilter.nf_conntrack_max: 1000 of 1000"}},
		{"files that end forwarding", func(v *View) { v.Boot.Value["net/ipv4/ip_forward"] = BootSetting{"0", "/etc/sysctl.d/9.conf"} }, []string{"warning kernel: /etc/sysctl.d/9.conf: sets net.ipv4.ip_forward to 0"}},
		{"files that cannot be read", func(v *View) { v.Boot.Err = fs.ErrPermission }, []string{"unknown kernel: settings at boot: not known: permission denied"}},
		{"both iptables", func(v *View) { v.Legacy.Value = []LegacyChain{{Table: "nat", Name: "KUBE-SERVICES"}} }, []string{"warning kernel: iptables: both backends hold rules: legacy KUBE-SERVICES, nft cali-FORWARD"}},
		{"nftables cannot be listed", func(v *View) { v.Chains.Err = errors.New("no such protocol") }, []string{"error kernel: nftables: cannot be listed: no such protocol", "unknown interference: nftables: not known: no such protocol"}},
		{"nftables cannot be listed by others than root", func(v *View) { v.Chains.Err = fs.ErrPermission }, []string{"unknown kernel: nftables: not known: permission denied", "unknown interference: nftables: not known: permission denied"}},
	}
}

func diskAilments() []ailment {
	disk := func(d Disk) func(*View) {
		d.Path = "/var/lib/calico"
		return func(v *View) { v.Disks.Value = append(v.Disks.Value, d) }
	}
	return []ailment{
		{"full", disk(Disk{Free: 100, Size: 1 << 30}), []string{"error disks: /var/lib/calico: its file system is full (1024.0 MiB)"}},
		{"nearly full", disk(Disk{Free: 2 << 20, Size: 1 << 30}), []string{"warning disks: /var/lib/calico: its file system is nearly full: 2.0 MiB of 1024.0 MiB"}},
		{"small", disk(Disk{Free: 1 << 20, Size: 2 << 20}), nil},
		{"no more files", disk(Disk{Free: 1 << 30, Size: 2 << 30, NoFiles: true}), []string{"error disks: /var/lib/calico: its file system has room for no more files"}},
		{"read-only", disk(Disk{Free: 1 << 30, Size: 2 << 30, ReadOnly: true}), []string{"error disks: /var/lib/calico: its file system is mounted read-only"}},
		{"disk that hangs", func(v *View) { v.Disks = Fact[[]Disk]{Err: errors.New("given up")} }, []string{"unknown disks: : not known: given up"}},
	}
}

func networkdAilments() []ailment {
	runs := func(n Networkd) func(*View) {
		return func(v *View) { v.Processes.Value, v.Networkd.Value = []string{NetworkdProgram}, n }
	}
	return []ailment{
		{"networkd takes foreign routes away", runs(Networkd{Routes: true}), []string{"warning interference: systemd-networkd: it takes away routes and rules that it has not made"}},
		{"networkd's file is for everything", runs(Networkd{Files: []NetworkFile{{Path: "/etc/a.network", Names: []string{"eth*"}}, {Path: "/etc/b.network", Names: []string{"*"}}}}),
			[]string{"error interference: /etc/b.network: systemd-networkd configures cali*, tunl0, vxlan-v6.calico and 1 more by it"}},
		{"networkd's file is for everything but eth0", runs(Networkd{Files: []NetworkFile{{Path: "/etc/a.network", Names: []string{"!eth0", "lo"}}}}), []string{"error interference: /etc/a.network: systemd-networkd configures"}},
		{"networkd leaves ours alone", runs(Networkd{Files: []NetworkFile{{Path: "/etc/a.network", Names: []string{"cali*", "tunl0", "vxlan*"}, Unmanaged: true}, {Path: "/etc/b.network", Names: []string{"*"}}}}), nil},
		{"networkd does not run", func(v *View) { v.Networkd.Value = Networkd{Routes: true, Rules: true} }, nil},
		{"networkd not known", func(v *View) {
			v.Processes.Value, v.Networkd.Err = []string{NetworkdProgram}, fs.ErrPermission
		}, []string{"unknown interference: systemd-networkd: not known: permission denied"}},
	}
}

func strangerAilments() []ailment {
	return []ailment{
		{"another network first", func(v *View) {
			conf(v, "05-flannel.conflist", `{"name":"f","plugins":[{"type":"flannel"},{"type":"portmap"}]}`)
		}, []string{"error leftovers: 05-flannel.conflist: it sorts before ours and is of flannel, portmap"}},
		{"Calico's agent", func(v *View) { v.Rival.Value = "process 7, calico-node -felix" }, []string{"error leftovers: Calico's agent: runs on this host (process 7, calico-node -felix)"}},
		{"devices of others", func(v *View) { link(v, "flannel.1", kernel.HostLink{}); link(v, "cilium_host", kernel.HostLink{}) }, []string{"warning leftovers: cilium_host: a device of Cilium", "warning leftovers: flannel.1: a device of flannel"}},
		{"chains of others", func(v *View) {
			chain(v, nft.Chain{Family: "ip", Table: "filter", Name: "FLANNEL-FWD"})
			v.Legacy.Value = []LegacyChain{{Table: "nat", Name: "WEAVE"}}
		}, []string{"warning leftovers: iptables: chains of Weave: WEAVE", "warning leftovers: iptables: chains of flannel: FLANNEL-FWD"}},
		{"stale tunl0", func(v *View) { link(v, "tunl0", kernel.HostLink{Up: true, MTU: 1480}) }, []string{"warning leftovers: tunl0: is up, and no pool"}},
		{"stale tunnels of others", func(v *View) {
			link(v, "vxlan-v6.calico", kernel.HostLink{Up: true, MTU: 1430})
			link(v, "wireguard.cali", kernel.HostLink{Up: true, MTU: 1440})
		}, []string{"warning leftovers: vxlan-v6.calico: is up, and no pool", "warning leftovers: wireguard.cali: is up, and no pool"}},
		{"tunl0 down", func(v *View) { link(v, "tunl0", kernel.HostLink{MTU: 1480}) }, nil},
		{"NetworkManager manages pods", func(v *View) { v.NetworkManager.Value.Manages = map[int]bool{2: true, 3: true} }, []string{"error interference: NetworkManager: it manages cali1"}},
		{"NetworkManager unconfigured", func(v *View) {
			v.Processes.Value = []string{"NetworkManager"}
			v.NetworkManager.Value.Unmanaged = []string{"cali*", "=tunl0"}
		}, []string{"warning interference: NetworkManager: it runs, and its configuration does not keep it from vxlan.calico, vxlan-v6.calico"}},
		{"NetworkManager configured", func(v *View) {
			v.Processes.Value = []string{"NetworkManager"}
			v.NetworkManager.Value.Unmanaged = []string{"cali*", "tunl*", "vxlan.calico", "vxlan-v6.calico"}
		}, nil},
		{"firewalld runs", func(v *View) { v.Processes.Value = []string{"firewalld"} }, []string{"warning interference: firewalld: is active"}},
		{"firewalld's table", func(v *View) {
			chain(v, nft.Chain{Family: "inet", Table: "firewalld", Name: "filter_FORWARD", Hook: nftable.Forward, Rules: 5})
		}, []string{"warning interference: firewalld: is active"}},
		{"ufw", func(v *View) { v.UFW.Value = UFW{Enabled: true, DropsForward: true} }, []string{"warning interference: ufw: is enabled and drops"}},
		{"ufw that is off", func(v *View) { v.UFW.Value = UFW{DropsForward: true} }, nil},
		{"FORWARD drops, we accept before", func(v *View) { v.Chains.Value[0].Drop = true }, nil},
		{"FORWARD drops", func(v *View) { v.Chains.Value[0].Drop = true; v.Chains.Value[1].Name = "DOCKER" }, []string{"error interference: ip filter FORWARD: its policy is DROP"}},
		{"legacy FORWARD drops", func(v *View) { v.Legacy.Value = []LegacyChain{{Table: "filter", Name: "FORWARD", Drop: true}} }, []string{"error interference: iptables-legacy FORWARD: its policy is DROP"}},
		{"another table drops all", func(v *View) {
			chain(v, nft.Chain{Family: "inet", Table: "fw", Name: "fwd", Hook: nftable.Forward, Drop: true})
		}, []string{"error interference: nftables inet fw fwd: drops all that is forwarded"}},
		{"another table drops some", func(v *View) {
			chain(v, nft.Chain{Family: "inet", Table: "fw", Name: "fwd", Hook: nftable.Forward, Drop: true, Rules: 2})
		}, []string{"warning interference: nftables inet fw fwd: drops what its own 2 rules do not accept"}},
		{"another table drops on input", func(v *View) {
			chain(v, nft.Chain{Family: "inet", Table: "fw", Name: "in", Hook: nftable.Input, Drop: true})
		}, nil},
		{"processes not known", func(v *View) { v.Rival.Err, v.Processes.Err = errors.New("no /proc"), errors.New("no /proc") }, []string{"unknown leftovers: processes: not known: no /proc", "unknown interference: processes: not known: no /proc"}},
	}
}

func agentAilments() []ailment {
	ourConf := func(old, text string) func(*View) {
		return func(v *View) { v.Conf.Value[0].Text = []byte(strings.ReplaceAll(conflist, old, text)) }
	}
	return []ailment{
		{"no agent", func(v *View) { v.Agent.Value = Agent{} }, []string{"error agent: muslin-node: does not run", "unknown peers: : not known while the agent does not answer <- agent"}},
		{"agent that does not serve yet", func(v *View) { v.Agent.Value = Agent{Runs: true, Socket: errors.New("connection refused")} }, []string{"error agent: muslin-node: runs, but does not serve pods yet: connection refused", "unknown peers: "}},
		{"agent not asked", func(v *View) { v.Agent = Fact[Agent]{Err: errors.New("must run as root")} }, []string{"unknown agent: : not known: must run as root", "unknown peers: : not known: must run as root"}},
		{"no pods taken while the name is another's", func(v *View) {
			v.Agent.Value.Serves, v.Machine.Value = errors.New("the name is another's"), "m2"
		}, []string{"error identity: /muslin/v1/nodes/node-1: the name belongs", "error agent: muslin-node: takes no pods: the name is another's <- identity"}},
		{"no pods taken", func(v *View) { v.Agent.Value.Serves = errors.New("the name is another's") }, []string{"error agent: muslin-node: takes no pods: the name is another's"}},
		{"problems", func(v *View) { v.Agent.Value.Self.Problems = []string{"IPPool(x): overlaps"} }, []string{"warning agent: muslin-node: says: IPPool(x): overlaps"}},
		{"old agent", func(v *View) { v.Agent.Value.Self = nil }, []string{"warning agent: muslin-node: is older than this command"}},
		{"another name", func(v *View) { v.Agent.Value.Self.Node = "node-9" }, []string{"warning agent: muslin-node: works for node node-9"}},
		{"no configuration", func(v *View) { v.Conf.Value = nil }, []string{"error cni: configurations: none is ours"}},
		{"broken configuration", ourConf("{", ""), []string{"error cni: 10-muslin.conflist: is no network configuration", "error leftovers: 20-flannel.conflist: it sorts before", "error cni: configurations: none is ours"}},
		{"program missing", func(v *View) { delete(v.Bins.Value, "muslin-ipam") }, []string{"error cni: muslin-ipam: the program is missing"}},
		{"program of another version", func(v *View) { v.Bins.Value["muslin"] = Program{Runs: true, Version: "v0"} }, []string{"warning cni: muslin: the program is of version v0, and the agent of v1"}},
		{"runtime looks elsewhere", func(v *View) { v.Set.Value.Folders = Folders{Conf: "/k3s/net.d", Bins: []string{"/k3s/bin"}} }, []string{
			"warning cni: /etc/containerd/config.toml: the runtime looks for network configurations in /k3s/net.d, and", "warning cni: /etc/containerd/config.toml: the runtime looks for CNI programs in /k3s/bin, and"}},
		{"runtime not known", func(v *View) { v.Set = Fact[RuntimeConf]{Err: fs.ErrPermission} }, []string{"unknown cni: runtime: not known: permission denied"}},
		{"program not executable", func(v *View) { v.Bins.Value["muslin"] = Program{} }, []string{"error cni: muslin: the program cannot be executed"}},
		{"plugin for another node", ourConf("node-1", "node-2"), []string{"error cni: 10-muslin.conflist: the plugin works for node node-2, and this is node-1"}},
		{"plugin for another etcd", ourConf("10.0.0.9", "10.0.0.7"), []string{"warning cni: 10-muslin.conflist: the plugin looks for etcd at http://10.0.0.7:2379, and the agent at"}},
		{"file not readable", func(v *View) {
			v.Conf.Value = []ConfFile{{Name: "10-muslin.conflist", Err: fs.ErrPermission}}
		}, []string{"unknown cni: 10-muslin.conflist: not known: permission denied"}},
		{"folder not readable", func(v *View) { v.Conf = Fact[[]ConfFile]{Err: fs.ErrPermission} }, []string{"unknown cni: configurations: not known: permission denied"}},
		{"session down", func(v *View) {
			v.Agent.Value.Sessions[0] = attach.Peer{Addr: netip.MustParseAddr("10.0.0.2"), Type: "node-to-node mesh", State: "Active", Since: now.Add(-time.Hour), Info: "refused"}
		}, []string{"error peers: 10.0.0.2: the session (node-to-node mesh) is not established since 2026-11-21T11:00:00Z: Active, refused"}},
		{"session that begins", func(v *View) {
			v.Agent.Value.Sessions[0].State, v.Agent.Value.Sessions[0].Since = "Connect", now.Add(-time.Second)
		}, []string{"warning peers: 10.0.0.2: the session"}},
		{"no sessions", func(v *View) { v.Agent.Value.NoBGP = "BGP is off" }, []string{"warning peers: BGP: the node has no sessions: BGP is off"}},
	}
}

func mtuAilments() []ailment {
	return []ailment{
		{"smaller device below", func(v *View) { link(v, "eth0", kernel.HostLink{Index: 2, MTU: 1400, Up: true, Live: true}) }, []string{
			"error mtu: vxlan.calico: its MTU is 1450, and packets of it need 50 bytes more than the 1400 of eth0", "error mtu: cali1: pods' devices have a larger MTU than 1350 (1400 of eth0 less 50 for encapsulation)",
			"error mtu: pods: the agent tells new pods an MTU of 1450, and 1350 is the most"}},
		{"configured", func(v *View) {
			v.Conf.Value[0].Text = []byte(strings.ReplaceAll(conflist, `"nodename"`, `"mtu":1500,"nodename"`))
		}, []string{"error mtu: 10-muslin.conflist: new pods get the MTU 1500 of this file, and 1450"}},
		{"WireGuard", func(v *View) {
			v.Settings.WireGuard.Enabled = true
			link(v, "wireguard.cali", kernel.HostLink{MTU: 1441, Up: true})
		}, []string{
			"error mtu: wireguard.cali: its MTU is 1441, and packets of it need 60 bytes more than the 1500 of eth0", "error mtu: cali1: pods' devices have a larger MTU than 1440", "error mtu: pods: the agent tells new pods an MTU of 1450, and 1440"}},
		{"WireGuard over IPv6", func(v *View) { v.Settings.WireGuard.Enabled6 = true }, []string{"error mtu: cali1: pods' devices have a larger MTU than 1420", "error mtu: pods: the agent tells new pods an MTU of 1450, and 1420"}},
		{"devices that differ", func(v *View) {
			link(v, "eth1", kernel.HostLink{Index: 9, MTU: 9000, Up: true, Live: true})
			v.Host.Value.Addrs = append(v.Host.Value.Addrs, kernel.HostAddr{Dev: "eth1", Addr: netip.MustParsePrefix("10.1.0.1/24")})
		}, []string{"warning mtu: devices: devices that may lead to other nodes differ: eth0 1500; eth1 9000"}},
		{"IP-in-IP", func(v *View) {
			data(v).IPAM.Pools[0].Value.Spec.VXLANMode, data(v).IPAM.Pools[0].Value.Spec.IPIPMode = api.Never, api.Always
			delete(v.Host.Value.Links, kernel.VXLANDevice)
			link(v, "tunl0", kernel.HostLink{MTU: 1490, Up: true})
			v.PodMTU.Value = 1490
		}, []string{"error mtu: tunl0: its MTU is 1490, and packets of it need 20 bytes more than the 1500 of eth0", "error mtu: pods: the agent tells new pods an MTU of 1490, and 1480"}},
		{"no host facts", func(v *View) { v.Host = Fact[kernel.Host]{Err: errors.New("no netlink")} }, []string{"unknown identity: Node(node-1): not known: no netlink", "unknown leftovers: devices", "unknown mtu: : not known: no netlink"}},
	}
}

func routeAilments() []ailment {
	without := func(p netip.Prefix, metric int) func(*View) {
		return func(v *View) { delete(v.Routes.Value, kernel.RouteKey{Dst: p, Metric: metric}) }
	}
	return []ailment{
		{"pod without route", without(netip.PrefixFrom(podAddr, 32), 1024), []string{"error routes: pod default/web: the kernel has no route to it (10.244.0.0)"}},
		{"block without route", without(another, 0), []string{"error routes: 10.244.0.64/26: the kernel has no route to this block of node node-2"}},
		{"block without route, and no agent", func(v *View) { without(another, 0)(v); v.Agent.Value = Agent{}; v.Speaks = false }, []string{"error agent", "error routes: 10.244.0.64/26: the kernel has no route to this block of node node-2 <- agent"}},
		{"direct block beyond our subnet", func(v *View) {
			without(another, 0)(v)
			data(v).IPAM.Pools[0].Value.Spec.VXLANMode = api.Never
			delete(v.Host.Value.Links, kernel.VXLANDevice)
			data(v).IPAM.Nodes[1] = node("node-2", "10.0.7.2/24")
		}, nil},
		{"pod without device", func(v *View) { delete(v.Host.Value.Links, "cali1") }, []string{"warning routes: pod default/web: its device cali1 does not exist"}},
		{"block without route, for want of VXLAN", func(v *View) { without(another, 0)(v); v.Lacking.Value = []Feature{{"vxlan", ForVXLAN}} }, []string{"error kernel: vxlan", "error routes: 10.244.0.64/26: the kernel has no route to this block of node node-2 <- kernel"}},
		{"a pod's packets go astray", func(v *View) { v.Ways.Value[podAddr] = way("tun0") }, []string{"error routes: pod default/web: packets to it leave by tun0, though our route says cali1"}},
		{"a block's packets are refused", func(v *View) { delete(v.Ways.Value, netip.MustParseAddr("10.244.0.127")) }, []string{"error routes: block 10.244.0.64/26 of node node-2: packets to it have no way, though our route says vxlan.calico"}},
		{"the block's last address is lent", func(v *View) {
			last := netip.MustParseAddr("10.244.0.127")
			v.Ways.Value[last], v.Routes.Value[kernel.RouteKey{Dst: netip.PrefixFrom(last, 32)}] = way("eth0"), kernel.Route{Dev: kernel.Dev{Name: "eth0"}}
		}, nil},
		{"ways not known", func(v *View) { v.Ways = Fact[map[netip.Addr]kernel.Hop]{Err: errors.New("no netlink")} }, []string{"unknown routes: ways: not known: no netlink"}},
		{"routes not known", func(v *View) { v.Routes = Fact[map[kernel.RouteKey]kernel.Route]{Err: errors.New("no netlink")} }, []string{"unknown routes: : not known: no netlink"}},
	}
}

func blockAilments() []ailment {
	small := func(v *View, cidr string) {
		p := &data(v).IPAM.Pools[0].Value.Spec
		p.CIDR, p.BlockSize = netip.MustParsePrefix(cidr), 26
	}
	fill := func(v *View, i, left int) {
		b, id := &data(v).IPAM.Blocks[i], fmt.Sprintf("tunnels-%d", i)
		got, full := block.Assign(b.Value, block.Free(b.Value)-left, block.Owner{HandleID: id, Attrs: map[string]string{api.AttrType: "x", api.AttrNode: "node-1"}})
		b.Value = full
		data(v).IPAM.Handles = append(data(v).IPAM.Handles, store.Entry[api.Handle]{Key: api.HandleKey(id), Value: &api.Handle{Block: map[string]int{full.CIDR.String(): len(got)}}})
	}
	return []ailment{
		{"leaked address", func(v *View) { data(v).IPAM.Endpoints = nil }, []string{"warning blocks: no-endpoint: 10.244.0.0 is allocated to"}},
		{"claim without block", func(v *View) {
			key := api.AffinityKey("node-1", netip.MustParsePrefix("10.244.1.0/26"))
			data(v).IPAM.Affinities = append(data(v).IPAM.Affinities, store.Entry[api.Affinity]{Key: key, Value: &api.Affinity{State: api.AffinityConfirmed}})
		}, []string{"warning blocks: affinity-without: node node-1 has an affinity to block 10.244.1.0/26"}},
		{"another node's claim without block", func(v *View) {
			key := api.AffinityKey("node-2", netip.MustParsePrefix("10.244.1.0/26"))
			data(v).IPAM.Affinities = append(data(v).IPAM.Affinities, store.Entry[api.Affinity]{Key: key, Value: &api.Affinity{State: api.AffinityConfirmed}})
		}, nil},
		{"address that nobody holds", func(v *View) {
			data(v).IPAM.Endpoints[0].Value.Spec.IPNetworks[0].Prefix = netip.MustParsePrefix("10.244.0.9/32")
			v.Routes.Value[kernel.RouteKey{Dst: netip.MustParsePrefix("10.244.0.9/32")}] = kernel.Route{Dev: kernel.Dev{Name: "cali1"}}
			v.Ways.Value[netip.MustParseAddr("10.244.0.9")] = way("cali1")
		},
			[]string{"error blocks: no-allocation: pod default/web on node node-1 has the address 10.244.0.9", "warning blocks: no-endpoint: 10.244.0.0"}},
		{"pool over the host's network", func(v *View) {
			v.Host.Value.Addrs = append(v.Host.Value.Addrs, kernel.HostAddr{Dev: "eth1", Addr: netip.MustParsePrefix("10.244.9.7/24")}, kernel.HostAddr{Dev: "eth2", Addr: netip.MustParsePrefix("10.244.8.7/24")})
		}, []string{"error blocks: pool p: its range 10.244.0.0/16 holds addresses of 10.244.9.0/24, the network of eth1"}},
		{"disabled pool over the host's network", func(v *View) {
			off := pool("hosts", "10.0.0.0/24")
			off.Value.Spec.Disabled = true
			data(v).IPAM.Pools = append(data(v).IPAM.Pools, off)
		}, nil},
		{"pool over tunnels' addresses", func(v *View) {
			v.Host.Value.Addrs = append(v.Host.Value.Addrs, kernel.HostAddr{Dev: kernel.VXLANDevice, Addr: netip.MustParsePrefix("10.244.0.1/32")})
		}, nil},
		{"no pool", func(v *View) { data(v).IPAM.Pools[0].Value.Spec.Disabled = true }, []string{"error blocks: pools: no enabled pool serves this node"}},
		{"pool of other nodes", func(v *View) { data(v).IPAM.Pools[0].Value.Spec.NodeSelector = "rack == 'b'" }, []string{"error blocks: pools: no enabled pool serves this node"}},
		{"pool nearly full", func(v *View) { small(v, "10.244.0.0/25"); fill(v, 0, 2); fill(v, 1, 2) }, []string{"warning blocks: pool p: 97% of its addresses are in use"}},
		{"borrowed from now on", func(v *View) { small(v, "10.244.0.0/25"); fill(v, 0, 0) }, []string{"warning blocks: pool p: all its blocks are claimed, and this node's are full"}},
		{"nothing to borrow", func(v *View) { small(v, "10.244.0.0/25"); fill(v, 0, 0); data(v).Config.StrictAffinity = true }, []string{"error blocks: pool p: is exhausted: new pods of this node get no address"}},
		{"exhausted, and another pool", func(v *View) {
			small(v, "10.244.0.0/25")
			fill(v, 0, 0)
			data(v).Config.StrictAffinity = true
			data(v).IPAM.Pools = append(data(v).IPAM.Pools, pool("q", "10.99.0.0/16"))
		}, []string{"warning blocks: pool p: is exhausted; other pools have room"}},
		{"no more blocks", func(v *View) { fill(v, 0, 0); data(v).Config.StrictAffinity, data(v).Config.MaxBlocksPerHost = true, 1 }, []string{"error blocks: maxBlocksPerHost: the node has 1 block, as many as it may have, and all are full"}},
	}
}

func TestEachAilmentIsFoundAndNothingElse(t *testing.T) {
	for _, a := range ailments() {
		t.Run(a.name, func(t *testing.T) {
			v := healthy(t)
			a.do(&v)
			got := strings.Split(strings.TrimSuffix(texts(Examine(v, Checks())), "\n"), "\n")
			if got[0] == "" {
				got = nil
			}
			for _, want := range a.want {
				i := indexOf(got, want)
				if i < 0 {
					t.Errorf("not found: %q", want)
					continue
				}
				got = append(got[:i], got[i+1:]...)
			}
			if len(got) > 0 {
				t.Errorf("found besides:\n%s", strings.Join(got, "\n"))
			}
		})
	}
}

func indexOf(lines []string, part string) int {
	for i, l := range lines {
		if strings.Contains(l, part) {
			return i
		}
	}
	return -1
}

func TestEveryErrorAndWarningHasARemedyOrSaysIt(t *testing.T) {
	said := regexp.MustCompile(`takes no pods|says: |has no sessions|credentials|more blocks are missing`) // others' texts, with their own remedies
	for _, a := range ailments() {
		v := healthy(t)
		a.do(&v)
		for _, f := range Examine(v, Checks()) {
			if (f.Severity == Error || f.Severity == Warning) && f.Remedy == "" && !said.MatchString(f.What) {
				t.Errorf("%s: no remedy for %s: %s", a.name, f.Object, f.What)
			}
		}
	}
}

func TestCausesComeFirst(t *testing.T) {
	v := healthy(t)
	v.Certificates.Value[0].To, v.Data.Err, v.Agent.Value = now.Add(-time.Hour), ErrNoEtcd, Agent{}
	member(&v).Err = fmt.Errorf("%w: expired", store.ErrHandshake)
	at := map[string]int{}
	for i, f := range Examine(v, Checks()) {
		at[f.Check] = i
		if f.Follows != "" && at[f.Follows] >= i {
			t.Errorf("%s comes of %s, which comes later", f.Check, f.Follows)
		}
	}
}

func TestSelectKeepsTheOrderAndRefusesUnknownNames(t *testing.T) {
	got, err := Select([]string{"blocks", "etcd"})
	if err != nil || len(got) != 2 || got[0].Name != "etcd" || got[1].Name != "blocks" {
		t.Errorf("selected %v, %v", got, err)
	}
	if _, err := Select([]string{"moon"}); err == nil || !strings.Contains(err.Error(), "certificates, etcd") {
		t.Errorf("error %v does not say what there is", err)
	}
	if d := cmp.Diff(len(Checks()), func() int { all, _ := Select(nil); return len(all) }()); d != "" {
		t.Error(d)
	}
}

func TestWorstSeverityIsTheErrors(t *testing.T) {
	for _, c := range []struct {
		found []Severity
		want  Severity
	}{{nil, OK}, {[]Severity{OK, Unknown}, Unknown}, {[]Severity{Unknown, Warning, OK}, Warning}, {[]Severity{Warning, Error}, Error}} {
		var found []Finding
		for _, s := range c.found {
			found = append(found, Finding{Severity: s})
		}
		if got := Worst(found); got != c.want {
			t.Errorf("worst of %v is %s, want %s", c.found, got, c.want)
		}
	}
}
