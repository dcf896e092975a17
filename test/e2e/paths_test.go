package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// probing has agents test paths often enough for a test.
func probing(o *lab.Options) { o.AgentEnv = append(o.AgentEnv, "MUSLIN_PATH_PROBE_INTERVAL=1s") }

// inTime waits until f returns nil: for several tests of a path, each of which may wait for what does not come.
func inTime(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(nettest.Patience(time.Minute))
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still: %v", err)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// pathsOf asks a node's agent for its paths, by family and kind, as "state fault largest".
func pathsOf(t *testing.T, l *lab.Lab, node string) (map[string]string, error) {
	t.Helper()
	out, err := try(t, l, node, "muslinctl", "node", "paths", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all []api.Path
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, err
	}
	got := map[string]string{}
	for _, p := range all {
		got[fmt.Sprintf("%s %s %s", p.Peer, p.Family, p.Kind)] = strings.TrimSpace(fmt.Sprintf("%s %s %d", p.State, p.Fault, p.Largest))
	}
	return got, nil
}

// findsPaths waits until a node has found all paths to be so.
func findsPaths(t *testing.T, l *lab.Lab, node string, want map[string]string) {
	t.Helper()
	inTime(t, func() error {
		got, err := pathsOf(t, l, node)
		if err == nil && fmt.Sprint(got) != fmt.Sprint(want) {
			err = fmt.Errorf("%s finds %v, want %v", node, got, want)
		}
		return err
	})
}

// logSays waits until a node's log has had a line with all of these words since mark bytes.
func logSays(t *testing.T, l *lab.Lab, node string, mark int, words ...string) {
	t.Helper()
	inTime(t, func() error {
		text := agentLog(t, l, node)[mark:]
		for line := range strings.Lines(text) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return nil
			}
		}
		return fmt.Errorf("no line of %s has %q:\n%s", node, words, text)
	})
}

// loseFrom has the fabric lose what a node sends that matches.
func loseFrom(t *testing.T, l *lab.Lab, node string, match ...string) {
	t.Helper()
	script := "add table netdev fault\nadd chain netdev fault in { type filter hook ingress device \"" + node + "\" priority 0; }\n"
	for _, m := range match {
		script += "add rule netdev fault in " + m + " drop\n"
	}
	run(t, l, "fabric", "nft", script)
}

func mend(t *testing.T, l *lab.Lab) {
	t.Helper()
	run(t, l, "fabric", "nft", "delete", "table", "netdev", "fault")
}

// shrink has the fabric's link to a node carry packets of 1400 bytes, and perhaps of four more, for the sake of VLANs. It is a link, so it does not fragment
// what is larger: where bridges ask iptables, they would.
func shrink(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	run(t, l, "fabric", "sh", "-ec", "for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do [ ! -e $f ] || echo 0 >$f; done; ip link set "+node+" mtu 1400")
}

// vxlanPaths are those between node-1 and node-2 of a dual-stack lab, as they should be.
func vxlanPaths(peer, found string) map[string]string {
	return map[string]string{peer + " IPv4 vxlan": found, peer + " IPv6 vxlan": found}
}

func TestPathsThatLosePacketsAreNamedAndNamedWellAgain(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true
		probing(o)
	})
	well := "ok  1430"
	findsPaths(t, l, "node-1", vxlanPaths("node-2", well))
	findsPaths(t, l, "node-2", vxlanPaths("node-1", well))
	if out := run(t, l, "node-1", "muslinctl", "node", "paths"); !strings.Contains(out, "| node-2 | IPv6   | vxlan | ok    | 1430 of 1430   |") {
		t.Errorf("the table is\n%s", out)
	}
	if text := agentLog(t, l, "node-1"); strings.Contains(text, "path node-1") {
		t.Errorf("paths that are well are in the log:\n%s", text)
	}

	t.Run("UDP 4789 is dropped", func(t *testing.T) {
		mark := len(agentLog(t, l, "node-1"))
		loseFrom(t, l, "node-1", "udp dport 4789")
		logSays(t, l, "node-1", mark, "level=WARN", "path node-1 to node-2 by VXLAN: no answer; UDP 4789 does not pass between 172.30.1.1 and 172.30.1.2: open it in firewalls")
		logSays(t, l, "node-1", mark, "path node-1 to node-2 by VXLAN over IPv6: no answer; UDP 4789 does not pass between fd00:172:30:1::1 and fd00:172:30:1::2")
		findsPaths(t, l, "node-1", vxlanPaths("node-2", "bad no-answer 0"))
		inTime(t, func() error {
			out, err := try(t, l, "fabric", "muslinctl", "node", "paths", "--all")
			if err == nil && (!strings.Contains(out, "IPv4 vxlan: no-answer, IPv6 vxlan: no-answer") || !strings.Contains(out, "node-1 to node-2, IPv4 by vxlan: no answer; UDP 4789")) {
				err = errors.New(out)
			}
			return err
		})
		mark = len(agentLog(t, l, "node-1"))
		mend(t, l)
		logSays(t, l, "node-1", mark, "level=INFO", "problem gone", "path node-1 to node-2 by VXLAN: no answer")
		logSays(t, l, "node-1", mark, "problem gone", "path node-1 to node-2 by VXLAN over IPv6")
		findsPaths(t, l, "node-1", vxlanPaths("node-2", well))
	})
	t.Run("a link has a smaller MTU", func(t *testing.T) {
		mark := len(agentLog(t, l, "node-1"))
		shrink(t, l, "node-2")
		logSays(t, l, "node-1", mark, "path node-1 to node-2 by VXLAN: the largest packet is 135", "vxlanMTU (FELIX_VXLANMTU) to 135")
		logSays(t, l, "node-1", mark, "path node-1 to node-2 by VXLAN over IPv6: the largest packet is 133", "vxlanMTUV6 (FELIX_VXLANMTUV6) to 133")
		logSays(t, l, "node-2", 0, "path node-2 to node-1 by VXLAN: the largest packet is 135")
		inTime(t, func() error {
			got, err := pathsOf(t, l, "node-1")
			if err == nil && (!strings.HasPrefix(got["node-2 IPv4 vxlan"], "bad mtu 135") || !strings.HasPrefix(got["node-2 IPv6 vxlan"], "bad mtu 133")) {
				err = fmt.Errorf("node-1 finds %v", got)
			}
			return err
		})
		mark = len(agentLog(t, l, "node-1"))
		run(t, l, "fabric", "ip", "link", "set", "node-2", "mtu", "1500")
		logSays(t, l, "node-1", mark, "problem gone", "path node-1 to node-2 by VXLAN: the largest packet")
		findsPaths(t, l, "node-1", vxlanPaths("node-2", well))
	})
	t.Run("it is a metric", func(t *testing.T) {
		setFelix(t, l, `"prometheusMetricsEnabled": true`)
		inTime(t, func() error {
			return tells(t, l, ":9091/metrics", `muslin_paths{state="ok"} 2`, `muslin_paths{state="bad"} 0`, `muslin_path_ok{family="IPv6",kind="vxlan",peer="node-2"} 1`,
				`muslin_path_largest_packet_bytes{family="IPv4",kind="vxlan",peer="node-2"} 1430`)
		})
	})
}

func TestVMPathsThatLoseProtocol4AreNamed(t *testing.T) {
	nettest.Need(t, "ipip")
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode = 2, lab.IPIP
		probing(o)
	})
	findsPaths(t, l, "node-1", map[string]string{"node-2 IPv4 ipip": "ok  1480"})
	loseFrom(t, l, "node-1", "ip protocol 4")
	logSays(t, l, "node-1", 0, "path node-1 to node-2 by IP-in-IP: no answer; IP protocol 4 (IP-in-IP) does not pass between 172.30.1.1 and 172.30.1.2")
	mark := len(agentLog(t, l, "node-1"))
	mend(t, l)
	logSays(t, l, "node-1", mark, "problem gone", "path node-1 to node-2 by IP-in-IP: no answer")
	shrink(t, l, "node-2")
	logSays(t, l, "node-1", mark, "path node-1 to node-2 by IP-in-IP: the largest packet is 138", "ipipMTU (FELIX_IPIPMTU) to 138")
}

// A driver that leaves checksums inside of tunnels as they are makes pods lose what they send, until their own kernel computes them. The pods' packets are tried
// while no agent runs that could help.
func TestChecksumsThatADriverLeavesWrongAreMadeByTheKernel(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true
		probing(o)
	})
	findsPaths(t, l, "node-1", vxlanPaths("node-2", "ok  1430"))
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	breakOffload(t, l, "node-1")
	for family, s := range map[string]*stream{"IPv4": startStream(t, l, "a1", "a2"), "IPv6": startStream6(t, l, "b1", "a2")} {
		if got := s.stop(t); got.lost != got.sent {
			t.Fatalf("%s: only %d of %d packets were lost: the fault is none", family, got.lost, got.sent)
		}
	}
	mark := len(agentLog(t, l, "node-1"))
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	for _, dev := range []string{kernel.VXLANDevice, kernel.VXLAN6Device} {
		logSays(t, l, "node-1", mark, "level=WARN", "turned off tx checksum offload", "device="+dev+" ", "path node-1 to node-2 by VXLAN")
		if out := run(t, l, "node-1", "ethtool", "-k", dev); !strings.Contains(out, "tx-checksum-ip-generic: off") {
			t.Errorf("%s:\n%s", dev, out)
		}
	}
	for family, s := range map[string]*stream{"IPv4": startStream(t, l, "a1", "b2"), "IPv6": startStream6(t, l, "b1", "b2")} {
		if got := s.stop(t); got.lost != 0 {
			t.Errorf("%s: %d of %d packets are lost still", family, got.lost, got.sent)
		}
	}
	findsPaths(t, l, "node-1", vxlanPaths("node-2", "ok  1430"))
	findsPaths(t, l, "node-2", vxlanPaths("node-1", "ok  1430")) // whose driver is well
	if out := run(t, l, "node-2", "ethtool", "-k", kernel.VXLANDevice); !strings.Contains(out, "tx-checksum-ip-generic: on") {
		t.Errorf("the other node's offload:\n%s", out)
	}
}

// calicoNode is a node whose agent is another make's.
const calicoNode = `{"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "calico-9"},
	"spec": {"bgp": {"ipv4Address": "172.30.1.9/24"}, "ipv4VXLANTunnelAddr": "192.168.99.1"}}`

// What is not known is no fault: a node that runs no probes, one whose agent is away. And no policy of the hosts is one: what probes say is how packets of
// pods fare.
func TestNodesThatDoNotAnswerAndPolicyOfHostsAreNoFaults(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.Subnets = 3, lab.CrossSubnet, 2
		probing(o)
	})
	put(t, l, api.ResourcesRoot+"nodes/calico-9", calicoNode)
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		put(t, l, api.ResourcesRoot+"hostendpoints/"+node, `{"kind": "HostEndpoint", "apiVersion": "projectcalico.org/v3",
			"metadata": {"name": "`+node+`"}, "spec": {"node": "`+node+`", "interfaceName": "*"}}`)
	}
	for _, node := range []string{"node-1", "node-2", "node-3"} { // nothing but the failsafe ports is open there, and probes
		inTime(t, func() error {
			_, err := try(t, l, node, "nft", "list", "chain", "inet", "muslin", "failsafe-in")
			return err
		})
	}
	if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil { // it knows nothing of before
		t.Fatal(err)
	}
	want := map[string]string{"calico-9 IPv4 direct": "unknown  0", "node-2 IPv4 vxlan": "ok  1450", "node-3 IPv4 direct": "ok  1450"}
	findsPaths(t, l, "node-1", want)
	if err := l.StopAgent(t.Context(), "node-3"); err != nil {
		t.Fatal(err)
	}
	want["node-3 IPv4 direct"] = "unknown  0"
	findsPaths(t, l, "node-1", want)
	inTime(t, func() error {
		out, err := try(t, l, "fabric", "muslinctl", "node", "paths", "--all")
		for _, row := range []string{
			"| calico-9  | -        | unknown | unknown | unknown |",
			"| node-1    | unknown  | -       | ok      | unknown |",
			"| node-2    | unknown  | ok      | -       | ",
		} {
			if err == nil && !strings.Contains(out, row) {
				err = fmt.Errorf("no %q in\n%s", row, out)
			}
		}
		return err
	})
	if out := run(t, l, "node-1", "muslinctl", "node", "paths"); !strings.Contains(out, "calico-9, IPv4 by direct: the peer runs no probes") ||
		!strings.Contains(out, "node-3, IPv4 by direct: packets get there, and no agent answers probes") {
		t.Errorf("the reasons are\n%s", out)
	}
	if text := agentLog(t, l, "node-1"); strings.Contains(text, "path node-1") || strings.Contains(text, "path is") {
		t.Errorf("what is not known is in the log:\n%s", text)
	}
}

// Where all is well nothing is written after the first tests, however often they are repeated.
func TestTestsThatFindNothingWriteNothing(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode = 2, lab.VXLAN
		probing(o)
	})
	inTime(t, func() error {
		want := map[string]string{api.PathsKey("node-1"): `{"tested":true}`, api.PathsKey("node-2"): `{"tested":true}`}
		if d := cmp.Diff(want, values(t, l, api.PathsRoot)); d != "" {
			return errors.New("published is " + d)
		}
		return nil
	})
	first := numberFrom(t, l, "node-2", "awk '/^Udp:/ {n = $2} END {print n}' /proc/net/snmp")
	written := func() int {
		return numberFrom(t, l, "fabric", "curl -s "+labEtcd+"/metrics | awk '/^etcd_mvcc_put_total / {print $2}'")
	}
	before := written()
	inTime(t, func() error {
		if n := numberFrom(t, l, "node-2", "awk '/^Udp:/ {n = $2} END {print n}' /proc/net/snmp") - first; n < 12 { // some four tests
			return fmt.Errorf("node-2 has received %d datagrams", n)
		}
		return nil
	})
	if now := written(); before == 0 || now != before {
		t.Errorf("etcd has had %d writes, and %d before the last tests", now, before)
	}
}

// numberFrom is the number that a shell's command prints.
func numberFrom(t *testing.T, l *lab.Lab, where, command string) int {
	t.Helper()
	text := strings.TrimSpace(run(t, l, where, "sh", "-c", command))
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s prints %q", command, text)
	}
	return n
}
