package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// ofPrograms are mistakes in what the container runtime is told.
func (p patient) ofPrograms() []illness {
	const list = "/etc/cni/net.d/10-muslin.conflist"
	edit := func(script string) func(t *testing.T) {
		return func(t *testing.T) { p.sh(t, "cp "+list+" /run/saved; "+script+" "+list) }
	}
	restore := func(t *testing.T) { p.sh(t, "cp /run/saved "+list) }
	return []illness{
		{"the plugin works for another node", edit(`sed -i 's/"nodename": "node-1"/"nodename": "node-9"/'`), []string{"error cni: 10-muslin.conflist: the plugin works for node node-9, and this is node-1"}, restore},
		{"the plugin looks for another etcd", edit(`sed -i 's/172.30.0.1:2379/172.30.0.7:2379/'`), []string{"warning cni: 10-muslin.conflist: the plugin looks for etcd at https://172.30.0.7:2379, and the agent at https://172.30.0.1:2379"}, restore},
		{"the plugin's MTU is too large", edit(`sed -i 's/"type": "muslin"$/"type": "muslin", "mtu": 1500/'`), []string{"error mtu: 10-muslin.conflist: new pods get the MTU 1500 of this file, and 1450 is the most"}, restore},
		{"a program may not be executed", edit(`mkdir /run/bin; echo >/run/bin/muslin-lame; sed -i 's/"muslin-ipam"/"muslin-lame"/'`), []string{"error cni: muslin-lame: the program cannot be executed"},
			func(t *testing.T) { restore(t); p.sh(t, "rm -r /run/bin") }},
		{"the plugin is an old one", func(t *testing.T) {
			p.sh(t, `mkdir /run/bin; printf '#!/bin/sh\necho v0.0.1\n' >/run/bin/muslin; chmod 755 /run/bin/muslin`)
		}, []string{"warning cni: muslin: the program is of version v0.0.1, and the agent of "}, func(t *testing.T) { p.sh(t, "rm -r /run/bin") }},
		{"the runtime looks elsewhere", func(t *testing.T) {
			p.sh(t, `mkdir -p /etc/containerd; mount -t tmpfs none /etc/containerd; printf '[plugins.cni]\n  conf_dir = "/var/lib/other/net.d"\n  bin_dir = "/var/lib/other/bin"\n' >/etc/containerd/config.toml`)
		}, []string{"warning cni: /etc/containerd/config.toml: the runtime looks for network configurations in /var/lib/other/net.d, and", "warning cni: /etc/containerd/config.toml: the runtime looks for CNI programs in /var/lib/other/bin, and"},
			func(t *testing.T) { p.sh(t, "umount /etc/containerd") }},
		{"what pods are told of the MTU cannot be read", func(t *testing.T) { p.sh(t, "cp /var/lib/calico/mtu /run/saved; echo many >/var/lib/calico/mtu") }, []string{"unknown mtu: pods: not known: read the MTU of pods in /var/lib/calico/mtu"},
			func(t *testing.T) { p.sh(t, "cp /run/saved /var/lib/calico/mtu") }},
	}
}

// ofDisks are file systems that the agent and a container runtime write to.
func (p patient) ofDisks() []illness {
	const dir = "/var/lib/cni"
	with := func(options, more string) func(t *testing.T) {
		return func(t *testing.T) { p.sh(t, "mount -t tmpfs -o "+options+" small "+dir+"; "+more) }
	}
	mend := func(t *testing.T) { p.sh(t, "umount "+dir) }
	return []illness{
		{"a full disk", with("size=1m", "! cat /dev/zero >"+dir+"/filler 2>/dev/null"), []string{"error disks: " + dir + ": its file system is full (1.0 MiB)"}, mend},
		{"a disk that is nearly full", with("size=64m", "head -c 60M /dev/zero >"+dir+"/filler"), []string{"warning disks: " + dir + ": its file system is nearly full: 4.0 MiB of 64.0 MiB"}, mend},
		{"a disk without inodes", with("nr_inodes=2", "touch "+dir+"/last"), []string{"error disks: " + dir + ": its file system has room for no more files"}, mend},
		{"a disk that is read-only", with("ro", ""), []string{"error disks: " + dir + ": its file system is mounted read-only"}, mend},
	}
}

// ofWays are rules and routes of other programs that come before ours, and what will undo our settings.
func (p patient) ofWays(t *testing.T) []illness {
	near, far := pod(t, p.l, "a1").Addr.String(), blockOf(t, p.l, "node-2")
	var end func()
	networks := "mkdir -p /etc/systemd; mount -t tmpfs none /etc/systemd; mkdir -p /etc/systemd/network; "
	runsWith := func(script string) func(t *testing.T) {
		return func(t *testing.T) { p.sh(t, networks+script); end = p.pretends(t, "systemd-networkd") }
	}
	stop := func(t *testing.T) { end(); p.sh(t, "umount /etc/systemd") }
	return []illness{
		{"a VPN's rule comes before our route to a pod", func(t *testing.T) {
			p.sh(t, "ip route add "+near+" dev eth0 table 77; ip rule add priority 50 to "+near+" lookup 77")
		}, []string{"error routes: pod default/a1: packets to it leave by eth0, though our route says cali"}, func(t *testing.T) { p.sh(t, "ip rule del priority 50; ip route flush table 77") }},
		{"a rule refuses what is for another node's block", func(t *testing.T) { p.sh(t, "ip rule add priority 50 to "+far+" prohibit") },
			[]string{"error routes: block " + far + " of node node-2: packets to it have no way, though our route says vxlan.calico"}, func(t *testing.T) { p.sh(t, "ip rule del priority 50") }},
		{"the pool holds a network of the host", func(t *testing.T) {
			p.sh(t, "ip link add eth9 type veth peer name other9; ip address add 192.168.200.1/24 dev eth9")
		}, []string{"error blocks: pool default-ipv4-ippool: its range 192.168.0.0/16 holds addresses of 192.168.200.0/24, the network of eth9"}, func(t *testing.T) { p.sh(t, "ip link del eth9") }},
		{"a file ends forwarding at boot", func(t *testing.T) {
			p.sh(t, "mkdir -p /etc/sysctl.d; mount -t tmpfs none /etc/sysctl.d; echo net.ipv4.ip_forward=0 >/etc/sysctl.d/99-hardening.conf")
		}, []string{"warning kernel: /etc/sysctl.d/99-hardening.conf: sets net.ipv4.ip_forward to 0"}, func(t *testing.T) { p.sh(t, "umount /etc/sysctl.d") }},
		{"networkd takes foreign routes away", runsWith(""), []string{"warning interference: systemd-networkd: it takes away routes and rules that it has not made"}, stop},
		{"networkd configures pods' devices", runsWith(`printf '[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n' >/etc/systemd/networkd.conf; printf '[Match]\nName=*\n[Network]\nDHCP=yes\n' >/etc/systemd/network/00-all.network`),
			[]string{"error interference: /etc/systemd/network/00-all.network: systemd-networkd configures cali*, tunl0"}, stop},
	}
}

// ofSettings are wishes that the agent cannot fulfil, in either of the FelixConfigurations.
func (p patient) ofSettings(t *testing.T) []illness {
	const key = felixDefault
	keep := p.keeps(api.ResourcesRoot + "felixconfigurations/")
	all := []illness{
		{"settings that cannot be read", func(t *testing.T) { keep(t); put(t, p.l, key, "{") }, []string{"error etcd: " + key + ": cannot be read"}, keep},
		{"an MTU that does not fit", func(t *testing.T) {
			keep(t)
			amend(t, p.l, key, "FelixConfiguration", map[string]any{"vxlanMTU": 9000})
		},
			[]string{"warning agent: muslin-node: says: FelixConfiguration: an MTU of 9000 for vxlan.calico does not fit"}, keep},
	}
	if _, err := try(t, p.l, "node-1", "ip", "link", "add", "trial", "type", "wireguard"); err == nil { // TestVMDoctorFindsWhatAilsTheKernel has one that has it
		p.sh(t, "ip link del trial")
		return all
	}
	return append(all, illness{"WireGuard, which the kernel lacks", func(t *testing.T) {
		keep(t)
		amend(t, p.l, key, "FelixConfiguration", map[string]any{"wireguardEnabled": true})
	}, []string{"error kernel: wireguard: the kernel lacks it, and wireguardEnabled asks for it", "error mtu: cali"}, func(t *testing.T) {
		setFelix(t, p.l, `"wireguardEnabled": false`) // the node's own counts
		p.findsNoMore(t, []string{"error kernel: wireguard"})
		keep(t)
	}})
}

// keeps returns what, when first called, takes down what etcd holds below a prefix, and when called again makes it hold that.
func (p patient) keeps(prefix string) func(t *testing.T) {
	var kept map[string]string
	return func(t *testing.T) {
		t.Helper()
		now := values(t, p.l, prefix)
		if kept == nil {
			kept = now
			return
		}
		for k := range now {
			if _, was := kept[k]; !was {
				put(t, p.l, k, gone)
			}
		}
		for k, v := range kept {
			if now[k] != v {
				put(t, p.l, k, v)
			}
		}
		kept = nil
	}
}

// Without its agent a node keeps what the agent would mend at once.
func TestDoctorFindsWhatAilsANodeWithoutAgent(t *testing.T) {
	p := onePatient(t, func(o *lab.Options) { o.DualStack = true })
	must(t, p.l.StopAgent(t.Context(), "node-1"))
	p.suffersAll(t, p.ofKernel())
	p.suffersAll(t, p.ofNames())
	p.suffersAll(t, p.ofTunnels(t))
	p.isMisled(t, []mistake{
		{"a name that no node can have", []string{"NODENAME=Node_1"}, nil, []string{`error identity: name: the node's name is not known: `, `"Node_1"`, "unknown routes: : not known while the node has no name <- identity"}},
		{"no machine id", []string{"MUSLIN_MACHINE_ID_FILE=/run/none"}, nil, []string{"error identity: machine: read machine id: open /run/none"}},
		{"no settings of etcd", []string{"ETCD_ENDPOINTS="}, nil, []string{"error etcd: settings: etcd cannot be asked: "}},
		{"a folder that is none", nil, []string{"--cni-conf-dir=/etc/machine-id"}, []string{"unknown cni: configurations: not known: look for network configurations: "}},
	})
	t.Run("an agent with a name and a backend of its own", func(t *testing.T) { p.anotherAgent(t) })
	t.Run("an agent that is older than the doctor", func(t *testing.T) { p.oldAgent(t) })
	t.Run("an agent that waits for etcd", func(t *testing.T) { p.agentWaits(t) })
	t.Run("many at once", func(t *testing.T) { p.suffersMuch(t) })
	must(t, p.l.StartAgent(t.Context(), "node-1"))
	p.isWell(t)
}

// ofKernel are settings of the kernel. The routes stand for those that an agent learns from two routers.
func (p patient) ofKernel() []illness {
	return []illness{
		{"IPv6 is not forwarded", func(t *testing.T) { p.sh(t, "sysctl -qw net.ipv6.conf.all.forwarding=0") }, []string{"error kernel: net.ipv6.conf.all.forwarding: is 0, and there is a pool of IPv6"}, func(t *testing.T) { p.sh(t, "sysctl -qw net.ipv6.conf.all.forwarding=1") }},
		{"a pod's device does not forward", func(t *testing.T) { p.sh(t, "for i in /proc/sys/net/ipv4/conf/cali*/forwarding; do echo 0 >$i; done") }, []string{"error kernel: cali", "forwarding is off on a pod's device"},
			func(t *testing.T) { p.sh(t, "for i in /proc/sys/net/ipv4/conf/cali*/forwarding; do echo 1 >$i; done") }},
		{"strict filters where there are two ways", func(t *testing.T) {
			p.sh(t, "ip link add eth9 type veth peer name other9; ip address add 10.99.0.1/24 dev eth9; ip link set eth9 up; ip link set other9 up; "+
				"ip route add 10.9.0.0/26 via 172.30.1.2 proto 80; ip route add 10.9.1.0/26 via 10.99.0.2 proto 80; sysctl -n net.ipv4.conf.all.rp_filter >/run/saved; sysctl -qw net.ipv4.conf.all.rp_filter=1")
		}, []string{"warning kernel: eth0: its reverse path filter is strict", "warning kernel: eth9: its reverse path filter is strict"}, func(t *testing.T) {
			p.sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=$(cat /run/saved); ip route del 10.9.0.0/26; ip link del eth9")
		}},
		{"the device below has become smaller", func(t *testing.T) { p.sh(t, "ip link set eth0 mtu 1400") }, []string{
			"error mtu: vxlan.calico: its MTU is 1450, and packets of it need 50 bytes more than the 1400 of eth0", "error mtu: pods: the agent tells new pods an MTU of 1"},
			func(t *testing.T) { p.sh(t, "ip link set eth0 mtu 1500") }},
	}
}

// ofNames are contradictions between the node, its name and its addresses.
func (p patient) ofNames() []illness {
	const node, identity = api.ResourcesRoot + "nodes/node-1", "/muslin/v1/nodes/node-1"
	keepNode, keepName := p.keeps(node), p.keeps(identity)
	addressed := func(addr, script string) func(t *testing.T) {
		return func(t *testing.T) {
			keepNode(t)
			amend(t, p.l, node, "Node", map[string]any{"bgp": map[string]any{"ipv4Address": addr}})
			p.sh(t, script)
		}
	}
	named := func(old, text string) func(t *testing.T) {
		return func(t *testing.T) {
			keepName(t)
			put(t, p.l, identity, strings.ReplaceAll(values(t, p.l, identity)[identity], old, text))
		}
	}
	return []illness{
		{"the Node is gone", func(t *testing.T) { keepNode(t); put(t, p.l, node, gone) }, []string{"error identity: Node(node-1): is not in the datastore", "error blocks: pools: no enabled pool serves this node: new pods get no address <- identity"}, keepNode},
		{"nobody holds the name", func(t *testing.T) { keepName(t); put(t, p.l, identity, gone) }, []string{"warning identity: " + identity + ": nobody holds the node's name"}, keepName},
		{"the name was a machine's that is gone", func(t *testing.T) {
			keepName(t)
			put(t, p.l, identity, `{"machineID":"other","nodeUID":"gone"}`)
		}, []string{"warning identity: " + identity + ": the name belonged to machine other, whose Node is gone"}, keepName},
		{"the Node was made again", named(`"nodeUID":"`, `"nodeUID":"x`), []string{"warning identity: " + identity + ": the Node was deleted and made again"}, keepName},
		{"the Node has no address", func(t *testing.T) { keepNode(t); amend(t, p.l, node, "Node", map[string]any{"bgp": map[string]any{}}) }, []string{"warning identity: Node(node-1): has no IPv4 address"}, keepNode},
		{"two nodes have one address", addressed("172.30.1.2/24", ""), []string{"error identity: Node(node-1): has the address 172.30.1.2, which node node-2 has too"}, keepNode},
		{"the device with the address is down", addressed("10.99.0.1/24", "ip link add eth9 type veth peer name other9; ip address add 10.99.0.1/24 dev eth9"), []string{"error identity: Node(node-1): its address is 10.99.0.1, and the device eth9 that has it is down"},
			func(t *testing.T) { keepNode(t); p.sh(t, "ip link del eth9") }},
	}
}

// ofTunnels are what an agent, this one or another, has left behind, and what is missing.
func (p patient) ofTunnels(t *testing.T) []illness {
	pools := p.keeps(api.ResourcesRoot + "ippools/")
	blocks := p.keeps(api.IPAMRoot)
	four, dev := blockOf(t, p.l, "node-2"), strings.Fields(run(t, p.l, "node-1", "ip", "-o", "route", "get", pod(t, p.l, "b1").Addr.String()))[2]
	return []illness{
		{"tunl0 of another network", func(t *testing.T) { p.sh(t, "ip link add tunl0 type veth peer name other0; ip link set tunl0 up") }, []string{"warning leftovers: tunl0: is up, and no pool and no setting asks for it"}, func(t *testing.T) { p.sh(t, "ip link del tunl0") }},
		{"tunnels of a mode that no pool has", func(t *testing.T) {
			pools(t)
			for key := range values(t, p.l, api.ResourcesRoot+"ippools/") {
				amend(t, p.l, key, "IPPool", map[string]any{"vxlanMode": "Never"})
			}
		}, []string{"warning leftovers: vxlan.calico: is up, and no pool", "warning leftovers: vxlan-v6.calico: is up, and no pool"}, pools},
		{"somebody takes a route away", func(t *testing.T) { p.sh(t, "ip route save "+four+" >/run/saved; ip route del "+four) }, []string{"error routes: " + four + ": the kernel has no route to this block of node node-2 <- agent"}, func(t *testing.T) { p.sh(t, "ip route restore </run/saved") }},
		{"many routes are missing", func(t *testing.T) {
			blocks(t)
			for i := range 7 {
				p.block(t, fmt.Sprintf("192.168.9.%d/29", 8*i), "node-2", 8)
			}
		}, []string{"error routes: 192.168.9.0/29: the kernel has no route", "error routes: blocks: routes to 2 more blocks are missing <- agent"}, blocks},
		{"somebody takes a pod's device away", func(t *testing.T) { p.sh(t, "ip link del "+dev) }, []string{"warning routes: pod default/b1: its device " + dev + " does not exist"}, func(t *testing.T) {
			must(t, p.l.StartAgent(t.Context(), "node-1"))
			recreate(t, p.l, "b1")
			must(t, p.l.StopAgent(t.Context(), "node-1"))
		}},
	}
}

// anotherAgent runs where the doctor does not see it as the agent that it knows, by which it would find its settings.
func (p patient) anotherAgent(t *testing.T) {
	end := background(t, p.l, "node-1", nil, "bash", "-c", "NODENAME=node-1 IP=autodetect IP6=autodetect FELIX_IPV6SUPPORT=true CALICO_NETWORKING_BACKEND=vxlan exec -a other muslin-node")
	defer end()
	q := p
	q.env = []string{"NODENAME=node-9", "CALICO_NETWORKING_BACKEND=bird"}
	q.finds(t, "warning agent: muslin-node: works for node node-1, and this command takes the host for node-9", "warning peers: BGP: the node has no sessions: BGP is off on this node")
}

// oldAgent answers what agents have always answered.
func (p patient) oldAgent(t *testing.T) {
	var door net.Listener
	var lock *attachlock.Lock
	must(t, p.l.Within("node-1", func() (err error) {
		if lock, err = attachlock.Acquire(t.Context(), filepath.Dir(attach.Socket), attach.AgentLock); err != nil {
			return err
		}
		door, err = net.Listen("unix", attach.Socket)
		return err
	}))
	go func() {
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			var asked attach.Request
			answer := attach.Reply{}
			if err := json.NewDecoder(conn).Decode(&asked); err == nil && asked.Verb == attach.Report {
				answer.Error = &attach.Error{Code: 7, Msg: "unknown verb"}
			}
			_ = json.NewEncoder(conn).Encode(answer)
			_ = conn.Close()
		}
	}()
	want := []string{"warning agent: muslin-node: is older than this command"}
	p.finds(t, want...)
	must(t, door.Close())
	lock.Release()
	p.findsNoMore(t, want)
}

// agentWaits starts while etcd is away.
func (p patient) agentWaits(t *testing.T) {
	must(t, p.l.StopEtcd(t.Context()))
	end := background(t, p.l, "node-1", nil, "muslin-node")
	p.finds(t, "error agent: muslin-node: runs, but does not serve pods yet: ", "<- etcd", "unknown blocks: : not known while etcd cannot be read <- etcd")
	end()
	must(t, p.l.StartEtcd(t.Context()))
	p.findsNoMore(t, []string{"runs, but does not serve pods yet"})
}

// suffersMuch has several things at once, which are found in the order in which one would mend them: what is told by each line is mended by then.
func (p patient) suffersMuch(t *testing.T) {
	keep := p.keeps(api.ResourcesRoot)
	keep(t)
	amend(t, p.l, api.ResourcesRoot+"nodes/node-1", "Node", map[string]any{"bgp": map[string]any{"ipv4Address": "172.30.1.2/24"}})
	put(t, p.l, api.ResourcesRoot+"felixconfigurations/node.node-1", "{")
	p.sh(t, "mount -t tmpfs -o ro none /var/lib/cni; sysctl -qw net.ipv4.ip_forward=0; echo '{\"name\":\"cbr0\",\"plugins\":[{\"type\":\"flannel\"}]}' >/etc/cni/net.d/05-flannel.conflist; "+
		"mv /etc/cni/net.d/10-muslin.conflist /run/saved; iptables-nft -P FORWARD DROP; iptables-nft -F FORWARD; iptables-nft -F cali-FORWARD; iptables-nft -X cali-FORWARD; ip route flush proto 80")
	want := []string{
		"error etcd: " + api.ResourcesRoot + "felixconfigurations/node.node-1: cannot be read", "error identity: Node(node-1): has the address 172.30.1.2, which node node-2 has too", "error disks: /var/lib/cni: its file system is mounted read-only",
		"error kernel: net.ipv4.ip_forward: is 0", "error leftovers: 05-flannel.conflist: it sorts before ours", "error interference: ip filter FORWARD: its policy is DROP", "error agent: muslin-node: does not run",
		"error cni: configurations: none is ours", "error routes: pod default/a1: the kernel has no route to it", "the kernel has no route to this block of node node-2 <- agent",
	}
	nettest.Eventually(t, func() error {
		lines, _ := p.findings(t)
		at := 0
		for _, w := range want {
			for at < len(lines) && !strings.Contains(lines[at], w) {
				at++
			}
			if at == len(lines) {
				return fmt.Errorf("%q is not found behind what comes before it in\n%s", w, strings.Join(lines, "\n"))
			}
		}
		return nil
	})
	keep(t)
	p.sh(t, "umount /var/lib/cni; rm /etc/cni/net.d/05-flannel.conflist; mv /run/saved /etc/cni/net.d/10-muslin.conflist; iptables-nft -P FORWARD ACCEPT")
}
