package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/doctor"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// patient is a node that is made ill on purpose, and the doctor that looks at it.
type patient struct {
	l     *lab.Lab
	bin   string
	dir   string   // of the lab
	where string   // of the doctor; "": on node-1
	run   []string // what starts the doctor, with its program; nil: muslinctl as it is
	env   []string // added to the doctor's environment
	args  []string // added to its arguments
}

// onePatient is node-1 of a lab with two nodes.
func onePatient(t *testing.T, change func(*lab.Options)) patient {
	t.Helper()
	p := patient{bin: programs(t), dir: filepath.Join("/run", fmt.Sprintf("muslin-e2e-%d-%x", os.Getpid(), fnv32(t.Name())))}
	p.l = up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN; change(o) })
	p.isWell(t)
	return p
}

// findings runs the doctor. Each finding but the good ones is a line. Whatever is found, it is said in the order of the checks, and what comes of another comes
// after that.
func (p patient) findings(t *testing.T, args ...string) (lines []string, code error) {
	t.Helper()
	var out, errs bytes.Buffer
	// The machine's own folders are where its container runtime looks, if it has one.
	cmd := slices.Concat(p.program(), []string{"doctor", "-o", "json", "--cni-bin-dir", "/run/bin," + p.bin + ",/opt/cni/bin,/usr/lib/cni"}, p.args, args)
	code = p.l.Exec(t.Context(), cmp.Or(p.where, "node-1"), lab.Command{Args: cmd, Env: p.env, Stdout: &out, Stderr: &errs})
	var found []doctor.Finding
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		t.Fatalf("the doctor ended with %v and says no JSON: %v: %s%s", code, err, out.String(), errs.String())
	}
	inOrder(t, found)
	for _, f := range found {
		if f.Severity == doctor.OK {
			continue
		}
		line := fmt.Sprintf("%s %s: %s: %s", f.Severity, f.Check, f.Object, f.What)
		if f.Follows != "" {
			line += " <- " + f.Follows
		}
		lines = append(lines, line)
	}
	return lines, code
}

func (p patient) program() []string {
	if p.run == nil {
		return []string{"muslinctl"}
	}
	return p.run
}

// inOrder holds findings to the order of mending.
func inOrder(t *testing.T, found []doctor.Finding) {
	t.Helper()
	place := map[string]int{}
	for i, c := range doctor.Checks() {
		place[c.Name] = i + 1
	}
	at := 0
	for _, f := range found {
		if place[f.Check] < at || place[f.Check] == 0 {
			t.Errorf("%s is found after what is mended later: %+v", f.Check, found)
		}
		at = place[f.Check]
		if f.Follows == "" {
			continue
		}
		cause := slices.ContainsFunc(found, func(c doctor.Finding) bool { return c.Check == f.Follows && c.Severity == doctor.Error })
		if place[f.Follows] == 0 || place[f.Follows] >= at || !cause && len(found) >= len(doctor.Checks()) {
			t.Errorf("%s %s comes of %s, where no error was found before: %+v", f.Check, f.Object, f.Follows, found)
		}
	}
}

func missing(lines []string, want string) bool {
	for _, l := range lines {
		if strings.Contains(l, want) {
			return false
		}
	}
	return true
}

// finds waits until the doctor finds all of these; then it says so by its exit code, or with --strict if there are only warnings.
func (p patient) finds(t *testing.T, want ...string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		lines, code := p.findings(t, "--strict")
		for _, w := range want {
			if missing(lines, w) {
				return fmt.Errorf("%q is not found among\n%s", w, strings.Join(lines, "\n"))
			}
		}
		if code == nil {
			return fmt.Errorf("exit code 0 with\n%s", strings.Join(lines, "\n"))
		}
		return nil
	})
}

// isWell waits until the doctor finds nothing.
func (p patient) isWell(t *testing.T) {
	t.Helper()
	converges(t, func() error {
		lines, code := p.findings(t, "--strict")
		if len(lines) > 0 || code != nil {
			return errors.Join(code, fmt.Errorf("found\n%s", strings.Join(lines, "\n")))
		}
		return nil
	})
}

// sh runs a script on node-1.
func (p patient) sh(t *testing.T, script string) {
	t.Helper()
	run(t, p.l, "node-1", "sh", "-ec", script)
}

// pretends has a process of that name run on node-1 until the function is called that it returns.
func (p patient) pretends(t *testing.T, name string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.l.Exec(ctx, "node-1", lab.Command{Args: []string{"bash", "-c", "exec -a " + name + " sleep 600"}}) // it is killed
	}()
	return func() { cancel(); <-ended }
}

// certify gives node-1 a certificate of the lab's authority for that time.
func (p patient) certify(t *testing.T, begin, end time.Time) {
	t.Helper()
	ca, err := authority.Open(filepath.Join(p.dir, "tls", "ca"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Between("node-1", begin, end)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.l.Within("node-1", func() error { return ca.Write(lab.CertificateDir, pair) }); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// illness is one thing that is broken, found, and mended.
type illness struct {
	name string
	make func(t *testing.T)
	want []string // parts of findings
	mend func(t *testing.T)
}

// mistake is one in the doctor's own settings: it finds it, and nothing of the kind without.
type mistake struct {
	name string
	env  []string
	args []string
	want []string
}

func (p patient) isMisled(t *testing.T, all []mistake) {
	t.Helper()
	for _, m := range all {
		t.Run(m.name, func(t *testing.T) {
			q := p
			q.env, q.args = slices.Concat(p.env, m.env), slices.Concat(p.args, m.args)
			q.finds(t, m.want...)
			p.findsNoMore(t, m.want)
		})
	}
}

// Each thing that ails a node is made on the real kernel and a real etcd, is found, and is found no more once it is mended.
func TestDoctorFindsWhatAilsANode(t *testing.T) {
	p := onePatient(t, func(o *lab.Options) { o.TLS, o.BGP, o.AgentEnv = true, true, []string{"MUSLIN_LINGER=1s"} })
	p.looksOnly(t)
	for _, group := range [][]illness{p.ofEtcd(), p.ofCertificates(), p.ofBooks(), p.ofStrangers(), p.ofPrograms(), p.ofFirewalls(), p.ofDisks(), p.ofAgents(), p.ofPaths(), p.ofWays(t), p.ofSettings(t)} {
		p.suffersAll(t, group)
	}
	p.isWell(t)
}

func (p patient) suffersAll(t *testing.T, group []illness) {
	t.Helper()
	for _, i := range group {
		t.Run(i.name, func(t *testing.T) { p.suffers(t, i) })
	}
}

// suffers makes a node ill and has it found, and mends it whatever was found, so that the next illness is alone.
func (p patient) suffers(t *testing.T, i illness) {
	t.Helper()
	func() {
		defer i.mend(t)
		i.make(t)
		p.finds(t, i.want...)
	}()
	p.findsNoMore(t, i.want)
}

// findsNoMore waits until the doctor finds none of these.
func (p patient) findsNoMore(t *testing.T, unwanted []string) {
	t.Helper()
	converges(t, func() error {
		lines, _ := p.findings(t)
		for _, w := range unwanted {
			if !missing(lines, w) {
				return fmt.Errorf("mended, and still: %q in\n%s", w, strings.Join(lines, "\n"))
			}
		}
		return nil
	})
}

// looksOnly holds what kernel, etcd and files are before the doctor against what they are after it.
func (p patient) looksOnly(t *testing.T) {
	t.Helper()
	state := func() string {
		files := run(t, p.l, "node-1", "sh", "-c", "find /etc/cni /run/muslin /var/lib/calico /var/lib/cni -type f -o -type l | sort | xargs md5sum")
		rules := run(t, p.l, "node-1", "sh", "-c", "nft -s list ruleset; cat /proc/net/ip_tables_names; sysctl -a 2>/dev/null | grep -E '^net.ipv4.(ip_forward|conf)'")
		return fmt.Sprint(kernelState(t, p.l, "node-1"), counters.ReplaceAllString(rules, ""), files, values(t, p.l, "/"))
	}
	before := state()
	if _, err := p.findings(t); err != nil {
		t.Error(err)
	}
	if d := gocmp.Diff(before, state()); d != "" {
		t.Errorf("the doctor changed something (-before +after):\n%s", d)
	}
}

func (p patient) ofEtcd() []illness {
	return []illness{
		{"etcd is stopped", func(t *testing.T) { must(t, p.l.StopEtcd(t.Context())) },
			[]string{"error etcd: https://172.30.0.1:2379: does not answer", "connection refused", "unknown blocks: : not known while etcd cannot be read <- etcd"},
			func(t *testing.T) { must(t, p.l.StartEtcd(t.Context())) }},
		{"a member's data are wrong", func(t *testing.T) { put(t, p.l, "/", corrupted) }, []string{"error etcd: https://172.30.0.1:2379: alarm CORRUPT"}, func(t *testing.T) { put(t, p.l, "/", disarmed) }},
		{"the datastore is locked", func(t *testing.T) { run(t, p.l, "fabric", "muslinctl", "datastore", "migrate", "lock") },
			[]string{"error etcd: ClusterInformation(default): datastoreReady is not true"},
			func(t *testing.T) { run(t, p.l, "fabric", "muslinctl", "datastore", "migrate", "unlock") }},
	}
}

func (p patient) ofCertificates() []illness {
	renew := func(t *testing.T) { must(t, p.l.RenewCertificate("node-1")) }
	cert, key := filepath.Join(lab.CertificateDir, authority.CertFile), filepath.Join(lab.CertificateDir, authority.KeyFile)
	return []illness{
		{"another authority", func(t *testing.T) { distrust(t, p.l, "node-1") }, []string{"error etcd: https://172.30.0.1:2379: does not answer: etcd cannot be reached: https://172.30.0.1:2379: TLS failed", "unknown authority"}, renew},
		{"a certificate with five days left", func(t *testing.T) { p.certify(t, time.Now().Add(-time.Hour), time.Now().Add(5*24*time.Hour+time.Hour)) }, []string{"warning expiry: " + cert + ": agent and plugin and muslinctl's certificate ends in 5 days"}, renew},
		{"a certificate that expired", func(t *testing.T) { p.certify(t, time.Now().Add(-6*24*time.Hour), time.Now().Add(-5*24*time.Hour)) },
			[]string{"error certificates: " + cert + ": agent and plugin and muslinctl's certificate expired 5 days ago", "error etcd: https://172.30.0.1:2379: does not answer", "<- certificates"}, renew},
		{"a key that is none", func(t *testing.T) { p.sh(t, "echo none >"+key) }, []string{"error certificates: " + key + ": agent and plugin and muslinctl's key cannot be used"}, renew},
		{"a certificate of tomorrow", func(t *testing.T) { p.certify(t, time.Now().Add(24*time.Hour), time.Now().Add(48*time.Hour)) },
			[]string{"error certificates: " + cert + ": agent and plugin and muslinctl's certificate is valid only from", "error etcd: https://172.30.0.1:2379: does not answer", "<- certificates"}, renew},
		{"a certificate that is gone", func(t *testing.T) { p.sh(t, "rm "+cert) }, []string{"error certificates: " + cert + ": agent and plugin and muslinctl's certificate is not there"}, renew},
		{"a key that others can read", func(t *testing.T) { p.sh(t, "chmod 644 "+key) }, []string{"warning expiry: " + key + ": agent and plugin and muslinctl's key can be read by others"}, func(t *testing.T) { p.sh(t, "chmod 600 "+key) }},
	}
}

func (p patient) ofBooks() []illness {
	var machine string
	const claim = "/calico/ipam/v2/host/node-1/ipv4/block/192.168.77.0-26"
	const ipip = api.ResourcesRoot + "ippools/second"
	return []illness{
		{"the name is another machine's", func(t *testing.T) {
			machine = strings.TrimSpace(run(t, p.l, "node-1", "cat", "/etc/machine-id"))
			adopt(t, p.l, "stranger")
		}, []string{"error identity: /muslin/v1/nodes/node-1: the name belongs to machine stranger", "error agent: muslin-node: takes no pods"}, func(t *testing.T) { adopt(t, p.l, machine) }},
		{"a block is claimed that there is not", func(t *testing.T) { put(t, p.l, claim, `{"state":"confirmed","deleted":false}`) }, []string{"warning blocks: affinity-without: node node-1 has an affinity to block 192.168.77.0/26"}, func(t *testing.T) { put(t, p.l, claim, gone) }},
		{"a pool wants IP-in-IP and the kernel lacks it", func(t *testing.T) {
			if out, _ := try(t, p.l, "node-1", "sh", "-c", "muslinctl node checksystem | grep -E '^ +ipip .*missing' || true"); out == "" {
				t.Skip("this kernel has IP-in-IP")
			}
			put(t, p.l, ipip, `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"second"},"spec":{"cidr":"10.88.0.0/16","ipipMode":"Always","blockSize":26,"nodeSelector":"nowhere == 'x'"}}`)
		}, []string{"error kernel: ipip: the kernel lacks it, and pool second has ipipMode Always"}, func(t *testing.T) { put(t, p.l, ipip, gone) }},
	}
}

func (p patient) ofStrangers() []illness {
	const first = "/etc/cni/net.d/05-flannel.conflist"
	return []illness{
		{"another network's configuration is first", func(t *testing.T) { p.sh(t, `echo '{"name":"cbr0","plugins":[{"type":"flannel"}]}' >`+first) }, []string{"error leftovers: 05-flannel.conflist: it sorts before ours and is of flannel"}, func(t *testing.T) { p.sh(t, "rm "+first) }},
		{"our configuration is broken", func(t *testing.T) {
			p.sh(t, "cd /etc/cni/net.d; cp 10-muslin.conflist /run/saved; echo '{' >10-muslin.conflist")
		},
			[]string{"error cni: 10-muslin.conflist: is no network configuration", "error cni: configurations: none is ours"}, func(t *testing.T) { p.sh(t, "cp /run/saved /etc/cni/net.d/10-muslin.conflist") }},
		{"a program is missing", func(t *testing.T) {
			p.sh(t, `sed -i 's/"muslin-ipam"/"muslin-lost"/' /etc/cni/net.d/10-muslin.conflist`)
		}, []string{"error cni: muslin-lost: the program is missing"}, func(t *testing.T) { p.sh(t, "cp /run/saved /etc/cni/net.d/10-muslin.conflist") }},
		{"devices and chains of flannel", func(t *testing.T) { p.sh(t, "ip link add cni0 type bridge; iptables-nft -N FLANNEL-FWD") },
			[]string{"warning leftovers: cni0: a device of flannel", "warning leftovers: iptables: chains of flannel: FLANNEL-FWD"}, func(t *testing.T) { p.sh(t, "ip link del cni0; iptables-nft -X FLANNEL-FWD") }},
		{"rules in both iptables", func(t *testing.T) { p.sh(t, "iptables-legacy -t nat -N KUBE-SERVICES") }, []string{"warning kernel: iptables: both backends hold rules: legacy KUBE-SERVICES, nft cali-"}, func(t *testing.T) { p.sh(t, "iptables-legacy -t nat -X KUBE-SERVICES") }},
		p.calico(),
	}
}

// calico is an agent of Calico's that runs beside ours.
func (p patient) calico() illness {
	var end func()
	return illness{"Calico's agent runs", func(t *testing.T) { end = p.pretends(t, "calico-felix") }, []string{"error leftovers: Calico's agent: runs on this host (process "}, func(*testing.T) { end() }}
}

func (p patient) ofFirewalls() []illness {
	var end func()
	stop := func(*testing.T) { end() }
	return []illness{
		{"firewalld runs", func(t *testing.T) { end = p.pretends(t, "firewalld") }, []string{"warning interference: firewalld: is active"}, stop},
		{"firewalld's table is there", func(t *testing.T) {
			p.sh(t, "nft add table inet firewalld; nft add chain inet firewalld filter_FORWARD")
		}, []string{"warning interference: firewalld: is active"}, func(t *testing.T) { p.sh(t, "nft delete table inet firewalld") }},
		{"NetworkManager runs unconfigured", func(t *testing.T) { end = p.pretends(t, "NetworkManager") }, []string{"warning interference: NetworkManager: it runs, and its configuration does not keep it from cali*, tunl0, vxlan.calico"}, stop},
		{"NetworkManager manages a tunnel", func(t *testing.T) {
			p.sh(t, "mkdir -p /run/NetworkManager/devices; printf '[device]\\nmanaged=true\\n' >/run/NetworkManager/devices/$(cat /sys/class/net/vxlan.calico/ifindex)")
		}, []string{"error interference: NetworkManager: it manages vxlan.calico"}, func(t *testing.T) { p.sh(t, "rm -r /run/NetworkManager") }},
		{"ufw drops", func(t *testing.T) {
			p.sh(t, "mount -t tmpfs ufw /etc/default; echo 'DEFAULT_FORWARD_POLICY=\"DROP\"' >/etc/default/ufw; mkdir -p /etc/ufw; mount -t tmpfs ufw /etc/ufw; echo ENABLED=yes >/etc/ufw/ufw.conf")
		}, []string{"warning interference: ufw: is enabled"}, func(t *testing.T) { p.sh(t, "umount /etc/default; umount /etc/ufw") }},
		{"a table drops all that is forwarded", func(t *testing.T) {
			p.sh(t, "nft add table inet fw; nft add chain inet fw pass '{ type filter hook forward priority 0; policy drop; }'")
		}, []string{"error interference: nftables inet fw pass: drops all that is forwarded"}, func(t *testing.T) { p.sh(t, "nft add rule inet fw pass accept") }},
		{"a table drops some of it", func(*testing.T) {}, []string{"warning interference: nftables inet fw pass: drops what its own 1 rule does not accept"}, func(t *testing.T) { p.sh(t, "nft delete table inet fw") }},
		{"legacy FORWARD drops", func(t *testing.T) { p.sh(t, "iptables-legacy -P FORWARD DROP") }, []string{"error interference: iptables-legacy FORWARD: its policy is DROP"}, func(t *testing.T) { p.sh(t, "iptables-legacy -P FORWARD ACCEPT") }},
	}
}

// ofAgents are those that an agent would mend at once.
func (p patient) ofAgents() []illness {
	return []illness{{
		"no agent, and what it would mend",
		func(t *testing.T) {
			must(t, p.l.StopAgent(t.Context(), "node-1"))
			p.sh(t, "iptables-nft -P FORWARD DROP; iptables-nft -F FORWARD; iptables-nft -F cali-FORWARD; iptables-nft -X cali-FORWARD; sysctl -qw net.ipv4.ip_forward=0; ip route flush proto 80")
			amend(t, p.l, api.ResourcesRoot+"nodes/node-1", "Node", map[string]any{"bgp": map[string]any{"ipv4Address": "172.30.1.99/24"}})
		},
		[]string{
			"error agent: muslin-node: does not run", "error interference: ip filter FORWARD: its policy is DROP", "error kernel: net.ipv4.ip_forward: is 0",
			"the kernel has no route to it", "the kernel has no route to this block of node node-2 <- agent", "error identity: Node(node-1): its address is 172.30.1.99, and no device of this host has it",
			"unknown peers: : not known while the agent does not answer <- agent",
		},
		func(t *testing.T) {
			p.sh(t, "iptables-nft -P FORWARD ACCEPT")
			must(t, p.l.StartAgent(t.Context(), "node-1"))
		},
	}}
}

// bgpPort is taken by another BGP daemon.
func (p patient) bgpPort() illness {
	var door net.Listener
	return illness{"another program has BGP's port", func(t *testing.T) {
		must(t, p.l.StopAgent(t.Context(), "node-1"))
		must(t, p.l.Within("node-1", func() (err error) { door, err = net.Listen("tcp", ":179"); return err }))
		must(t, p.l.StartAgent(t.Context(), "node-1"))
	}, []string{"muslin-node: says: ", "179"}, func(t *testing.T) { must(t, door.Close()) }}
}

func (p patient) ofPaths() []illness {
	return []illness{
		{"the fabric has a smaller MTU", func(t *testing.T) { p.sh(t, "ip link set eth0 mtu 1400") }, []string{"error mtu: cali", "pods' devices have a larger MTU than 1350 (1400 of eth0 less 50 for encapsulation)"}, func(t *testing.T) { p.sh(t, "ip link set eth0 mtu 1500") }},
		{"the devices differ", func(t *testing.T) {
			p.sh(t, "ip link add eth9 mtu 9000 type veth peer name other9; ip address add 10.99.0.1/24 dev eth9; ip link set eth9 up; ip link set other9 up")
		}, []string{"warning mtu: devices: devices that may lead to other nodes differ: eth0 1500; eth9 9000"}, func(t *testing.T) { p.sh(t, "ip link del eth9") }},
		p.bgpPort(),
		{"a peer is gone", func(t *testing.T) { must(t, p.l.KillAgent(t.Context(), "node-2")) }, []string{"peers: 172.30.1.2: the session (node-to-node mesh) is not established"}, func(t *testing.T) { must(t, p.l.StartAgent(t.Context(), "node-2")) }},
	}
}
