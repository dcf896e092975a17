package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// encrypted is a lab of three nodes, each on a subnet of its own: whatever goes between nodes goes through the fabric's router, where it is counted.
type encrypted struct {
	*testing.T
	lab *lab.Lab
}

const (
	felixDefault = api.ResourcesRoot + "felixconfigurations/default"
	closedPort   = "7777" // on which nobody listens: who is told so has reached the other side
)

// TestVMWireGuard is one lab for all, since the machine is slow.
func TestVMWireGuard(t *testing.T) {
	nettest.Need(t, "wireguard")
	l, nodes := upBare(t, faultyPrograms(t), func(o *lab.Options) {
		o.Subnets, o.Mode, o.DualStack, o.AgentEnv = 3, lab.VXLAN, true, encryptedEnv()
	})
	for n := range nodes {
		addPod(t, l, fmt.Sprintf("a%d", n+1), fmt.Sprintf("node-%d", n+1))
	}
	for _, step := range []struct {
		name string
		do   func(*encrypted)
	}{
		{"turned on under traffic", (*encrypted).turnedOn},
		{"nothing else is on the fabric", (*encrypted).nothingElse},
		{"paths that lose packets", (*encrypted).paths},
		{"what others do to peers", (*encrypted).tampered},
		{"writes that fail, and agents that are killed behind them", (*encrypted).faults},
		{"a new key", (*encrypted).newKey},
		{"a node without a key", (*encrypted).withoutKey},
		{"between nodes too", (*encrypted).hosts},
		{"a node that boots", (*encrypted).boots},
		{"turned off while an agent is away", (*encrypted).turnedOff},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(&encrypted{T: t, lab: l}) }) {
			return
		}
	}
}

// encryptedEnv are the agents' variables.
func encryptedEnv(more ...string) []string {
	return append([]string{"MUSLIN_LINGER=10s", "MUSLIN_PATH_PROBE_INTERVAL=1s", fault.Variable + "=@" + agentOrders}, more...)
}

// TestKernelWithoutWireGuardRefusesRatherThanSendsInClear is for machines such as those that tests are written on.
func TestKernelWithoutWireGuardRefusesRatherThanSendsInClear(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	if _, err := try(t, l, "node-1", "ip", "link", "add", "trial", "type", "wireguard"); err == nil {
		t.Skip("this kernel has WireGuard")
	}
	e := &encrypted{T: t, lab: l}
	e.felix(map[string]any{"wireguardEnabled": true})
	nettest.Eventually(t, func() error {
		if err := e.reach("a1", "a2", false); !refused(err) {
			return fmt.Errorf("want it refused: %w", err)
		}
		return e.reach("a1", "b1", false)
	})
	nettest.Eventually(t, func() error {
		var log bytes.Buffer
		if err := l.Log("node-1", &log); err != nil {
			return err
		}
		return has("WireGuard not supported by this kernel")(log.String())
	})
	e.felix(map[string]any{"wireguardEnabled": false})
	nettest.Eventually(t, func() error { return e.reach("a1", "a2", false) })
	eventually(t, l, hasNot("proto 80"), "ip", "rule")
}

// felix sets fields of the cluster's settings.
func (e *encrypted) felix(spec map[string]any) {
	e.Helper()
	amend(e.T, e.lab, felixDefault, "FelixConfiguration", spec)
}

// onNode sets fields of one node's settings.
func (e *encrypted) onNode(node string, spec map[string]any) {
	e.Helper()
	amend(e.T, e.lab, api.ResourcesRoot+"felixconfigurations/node."+node, "FelixConfiguration", spec)
}

func bothFamilies(on bool) map[string]any {
	return map[string]any{"wireguardEnabled": on, "wireguardEnabledV6": on}
}

// reach tries to get from a pod to another by a family: nil if it does.
func (e *encrypted) reach(from, to string, v6 bool) error {
	p := pod(e.T, e.lab, to)
	a := p.Addr
	if v6 {
		a = p.Addr6
	}
	if err := e.lab.WithinPod(from, func() error { return closedAt(a) }); err != nil {
		return fmt.Errorf("from %s to %s: %w", from, to, err)
	}
	return nil
}

// closedAt is nil if the closed port of an address answers that it is closed.
func closedAt(a netip.Addr) error {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(a.String(), closedPort), 2*time.Second)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case err == nil:
		return errors.Join(errors.New("somebody listens"), c.Close())
	}
	return err
}

// refused tells whether an error says that the way is forbidden, rather than that nobody answers.
func refused(err error) bool { return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) }

// all waits until every pod reaches every other, by both families.
func (e *encrypted) all() {
	e.Helper()
	nettest.Eventually(e.T, func() error {
		for _, way := range [][2]string{{"a1", "a2"}, {"a2", "a3"}, {"a3", "a1"}} {
			for _, v6 := range []bool{false, true} {
				if err := e.reach(way[0], way[1], v6); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// shaken is nil once both devices of a node have shaken hands with the two other nodes.
func (e *encrypted) shaken(node string) error {
	return e.lab.Within(node, func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for _, name := range []string{"wireguard.cali", "wg-v6.cali"} {
			d, err := c.Device(name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if len(d.Peers) != 2 {
				return fmt.Errorf("%s of %s has %d peers", name, node, len(d.Peers))
			}
			for _, p := range d.Peers {
				if p.LastHandshakeTime.IsZero() {
					return fmt.Errorf("%s of %s: no handshake with %v", name, node, p.PublicKey)
				}
			}
		}
		return nil
	})
}

// key is the public key that a node has told; "" if none.
func (e *encrypted) key(node string) string {
	e.Helper()
	at := api.ResourcesRoot + "nodes/" + node
	var n api.Node
	if err := json.Unmarshal([]byte(values(e.T, e.lab, at)[at]), &n); err != nil {
		e.Fatal(err)
	}
	return n.Status.WireguardPublicKey
}

// count begins to count anew what the router forwards, which is all that goes between nodes, but for what matches.
func (e *encrypted) count(but ...string) {
	e.Helper()
	run(e.T, e.lab, "fabric", "sh", "-c", `nft -f - <<'END'
table inet seen
delete table inet seen
table inet seen {
	counter wg4 {}
	counter wg6 {}
	counter other {}
	chain early {
		type filter hook prerouting priority -300
		ip saddr 192.168.0.0/16 counter name other comment "a pod's, that nothing is around"
		ip6 saddr fd00:192:168::/48 counter name other
	}
	chain forward {
		type filter hook forward priority 0
		meta nfproto ipv4 udp dport 51820 counter name wg4 accept
		meta nfproto ipv6 udp dport 51821 counter name wg6 accept
		icmp type destination-unreachable accept comment "of a node without its device, which quotes what is encrypted"
		icmpv6 type destination-unreachable accept
		`+strings.Join(but, "\n")+`
		counter name other
	}
}
END`)
}

// counted is how many packets have been seen.
func (e *encrypted) counted() (wg4, wg6, other int) {
	e.Helper()
	out := run(e.T, e.lab, "fabric", "nft", "list", "counters", "table", "inet", "seen")
	n := map[string]int{}
	for _, m := range regexp.MustCompile(`counter (\w+) \{\s*packets (\d+)`).FindAllStringSubmatch(out, -1) {
		n[m[1]], _ = strconv.Atoi(m[2])
	}
	return n["wg4"], n["wg6"], n["other"]
}

func (e *encrypted) turnedOn() {
	s, began := startStream(e.T, e.lab, "a1", "a2"), time.Now()
	e.felix(bothFamilies(true))
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		nettest.Eventually(e.T, func() error {
			return errors.Join(e.shaken(node), e.reach("a1", "a2", false), e.reach("a2", "a3", false), e.reach("a3", "a1", false),
				e.reach("a1", "a2", true), e.reach("a2", "a3", true), e.reach("a3", "a1", true))
		})
	}
	got := s.stop(e.T)
	e.Logf("%d of %d packets were lost", got.lost, got.sent) // none, unless a machine is so slow that keys are told late
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		e.refusesNobodyBefore(node, began.Add(10*time.Second))
	}
	eventually(e.T, e.lab, has("1420"), "cat", "/var/lib/calico/mtu") // 1500 less IPv6, UDP and WireGuard itself
}

// refusesNobodyBefore is that a node says so, if it does at all, after others had time to tell their keys.
func (e *encrypted) refusesNobodyBefore(node string, at time.Time) {
	e.Helper()
	for line := range strings.Lines(agentLog(e.T, e.lab, node)) {
		m := regexp.MustCompile(`^time=(\S+) .*what goes there is refused`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		said, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil {
			e.Fatal(err)
		}
		if said.Before(at) {
			e.Errorf("%s refuses %v too early: %s", node, at.Sub(said), line)
		}
	}
}

func (e *encrypted) nothingElse() {
	e.count()
	s, s6 := startStream(e.T, e.lab, "a1", "a2"), startStream6(e.T, e.lab, "a3", "a1")
	e.all()
	for name, s := range map[string]*stream{"IPv4": s, "IPv6": s6} {
		if got := s.stop(e.T); got.lost > 0 {
			e.Errorf("%s: %d of %d packets were lost", name, got.lost, got.sent)
		}
	}
	if wg4, wg6, other := e.counted(); wg4 < streamLeast || wg6 < streamLeast || other > 0 {
		e.Errorf("the fabric saw %d packets to UDP port 51820, %d to 51821, and %d others", wg4, wg6, other)
	}
}

// wgPaths are the paths of a node to two others, of which the IPv4 one to node-2 is found so.
func wgPaths(found string) map[string]string {
	const well = "ok  1420"
	return map[string]string{"node-2 IPv4 wireguard": found, "node-2 IPv6 wireguard": well, "node-3 IPv4 wireguard": well, "node-3 IPv6 wireguard": well}
}

// paths has the fabric lose what WireGuard sends, by what it is and by how large it is: probes go as pods' packets do, and say so.
func (e *encrypted) paths() {
	well := wgPaths("ok  1420")
	findsPaths(e.T, e.lab, "node-1", well)
	mark := len(agentLog(e.T, e.lab, "node-1"))
	loseFrom(e.T, e.lab, "node-1", "udp dport 51820 ip daddr 172.30.2.2")
	logSays(e.T, e.lab, "node-1", mark, "level=WARN", "path node-1 to node-2 by WireGuard: no answer; UDP 51820 (WireGuard) does not pass between 172.30.1.1 and 172.30.2.2: open it")
	findsPaths(e.T, e.lab, "node-1", wgPaths("bad no-answer 0"))
	mark = len(agentLog(e.T, e.lab, "node-1"))
	mend(e.T, e.lab)
	logSays(e.T, e.lab, "node-1", mark, "problem gone", "path node-1 to node-2 by WireGuard: no answer")
	findsPaths(e.T, e.lab, "node-1", well)

	mark = len(agentLog(e.T, e.lab, "node-1"))
	// A bridge follows the smallest of its ports until it is told otherwise, which what it has already is not. Then the router would fragment: WireGuard allows it.
	run(e.T, e.lab, "fabric", "sh", "-ec", "ip link set br-2 mtu 1499; ip link set br-2 mtu 1500")
	shrink(e.T, e.lab, "node-2")
	logSays(e.T, e.lab, "node-1", mark, "path node-1 to node-2 by WireGuard: the largest packet is 13", "wireguardMTU (FELIX_WIREGUARDMTU) to 13")
	logSays(e.T, e.lab, "node-1", mark, "path node-1 to node-2 by WireGuard over IPv6: the largest packet is 13", "wireguardMTUV6 (FELIX_WIREGUARDMTUV6) to 13")
	mark = len(agentLog(e.T, e.lab, "node-1"))
	run(e.T, e.lab, "fabric", "ip", "link", "set", "node-2", "mtu", "1500")
	logSays(e.T, e.lab, "node-1", mark, "problem gone", "path node-1 to node-2 by WireGuard: the largest packet")
	logSays(e.T, e.lab, "node-1", mark, "problem gone", "path node-1 to node-2 by WireGuard over IPv6: the largest packet")
	findsPaths(e.T, e.lab, "node-1", well)
	if out := run(e.T, e.lab, "node-1", "muslinctl", "node", "paths"); !strings.Contains(out, "| node-2 | IPv6   | wireguard | ok    | 1420 of 1420   |") {
		e.Errorf("the table is\n%s", out)
	}
}

// tampered takes a peer away, of which no event tells, and looks at the metrics of those that are there.
func (e *encrypted) tampered() {
	mark := len(agentLog(e.T, e.lab, "node-1"))
	var gone wgtypes.Key
	err := e.lab.Within("node-1", func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		d, err := c.Device("wireguard.cali")
		if err != nil {
			return err
		}
		gone = d.Peers[0].PublicKey
		return c.ConfigureDevice("wireguard.cali", wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: gone, Remove: true}}})
	})
	if err != nil {
		e.Fatal(err)
	}
	logSays(e.T, e.lab, "node-1", mark, "repaired what others changed", "WireGuard peers", gone.String())
	e.all()
	e.felix(map[string]any{"prometheusMetricsEnabled": true})
	inTime(e.T, func() error {
		return tells(e.T, e.lab, ":9091/metrics", `wireguard_meta{hostname="node-1",interface_name="wireguard.cali",listening_port="51820",public_key="`+e.key("node-1")+`"} 1`,
			`peer_endpoint="172.30.2.2:51820",peer_key="`+e.key("node-2")+`"`, "wireguard_bytes_sent", "wireguard_bytes_rcvd", "wireguard_latest_handshake_seconds")
	})
	e.felix(map[string]any{"prometheusWireGuardMetricsEnabled": false})
	inTime(e.T, func() error {
		out, err := try(e.T, e.lab, "node-1", "curl", "-sf", "http://localhost:9091/metrics")
		if err == nil && strings.Contains(out, "wireguard_") {
			err = errors.New("they are there still")
		}
		return err
	})
}

// boots has a node lose all that its kernel held. Encryption is on when its agent starts, so nothing of its pods is in clear, neither before it has a key nor before
// the others know it.
func (e *encrypted) boots() {
	if err := errors.Join(e.lab.RemovePod(e.Context(), "a1"), e.lab.KillAgent(e.Context(), "node-1")); err != nil {
		e.Fatal(err)
	}
	run(e.T, e.lab, "node-1", "sh", "-ec", `echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding
		ip link del wireguard.cali; ip link del wg-v6.cali`)
	wipe(e.T, e.lab, "node-1")
	e.count()
	if err := e.lab.StartAgent(e.Context(), "node-1"); err != nil {
		e.Fatal(err)
	}
	addPod(e.T, e.lab, "a1", "node-1")
	s, s6 := startStream(e.T, e.lab, "a1", "a2"), startStream6(e.T, e.lab, "a1", "a3")
	e.all()
	for name, s := range map[string]*stream{"IPv4": s, "IPv6": s6} {
		got := s.stop(e.T)
		e.Logf("%s: %d of %d packets were lost", name, got.lost, got.sent)
	}
	if _, _, other := e.counted(); other > 0 {
		e.Errorf("%d packets went in clear", other)
	}
}

func (e *encrypted) newKey() {
	old := e.key("node-2")
	s := startStream(e.T, e.lab, "a1", "a2")
	e.count()
	run(e.T, e.lab, "node-2", "ip", "link", "del", "wireguard.cali")
	nettest.Eventually(e.T, func() error {
		if now := e.key("node-2"); now == old || now == "" {
			return fmt.Errorf("node-2 tells the key %q and told %q before", now, old)
		}
		return errors.Join(e.reach("a3", "a2", false), e.shaken("node-1"), e.shaken("node-3"))
	})
	e.all()
	got := s.stop(e.T)
	e.Logf("%d of %d packets were lost", got.lost, got.sent)
	if _, _, other := e.counted(); other > 0 {
		e.Errorf("meanwhile %d packets went in clear", other)
	}
}

func (e *encrypted) withoutKey() {
	e.onNode("node-3", bothFamilies(false))
	e.count("ip saddr 172.30.3.3 accept", "ip6 saddr fd00:172:30:3::3 accept") // which is free to talk in clear itself
	nettest.Eventually(e.T, func() error {
		if key := e.key("node-3"); key != "" {
			return fmt.Errorf("node-3 tells the key %s", key)
		}
		for _, v6 := range []bool{false, true} {
			if err := e.reach("a1", "a3", v6); !refused(err) {
				return fmt.Errorf("want it refused: %w", err)
			}
		}
		return nil
	})
	if _, _, other := e.counted(); other > 0 {
		e.Errorf("%d packets went in clear", other)
	}
	inTime(e.T, func() error {
		out, err := try(e.T, e.lab, "node-1", "muslinctl", "node", "paths")
		if err == nil && !strings.Contains(out, "node-3, IPv4 by wireguard: the peer has told no WireGuard key") {
			err = errors.New(out)
		}
		return err
	})
	logSays(e.T, e.lab, "node-3", 0, "path node-3 to node-1 by VXLAN: no answer; node-1 encrypts by WireGuard and node-3 does not")
	e.restart("MUSLIN_WIREGUARD_PLAINTEXT=true")
	nettest.Eventually(e.T, func() error { return errors.Join(e.reach("a1", "a3", false), e.reach("a1", "a3", true)) })
	if _, _, other := e.counted(); other == 0 {
		e.Error("what the setting lets through was not seen in clear")
	}
	e.restart()
	nettest.Eventually(e.T, func() error {
		if err := e.reach("a1", "a3", false); !refused(err) {
			return fmt.Errorf("without the setting want it refused: %w", err)
		}
		return nil
	})
	e.onNode("node-3", bothFamilies(true))
	e.all()
}

// restart starts the agent of node-1 anew with more variables.
func (e *encrypted) restart(env ...string) {
	e.Helper()
	e.restartOn([]string{"node-1"}, env...)
}

// restartOn does so on several nodes.
func (e *encrypted) restartOn(nodes []string, env ...string) {
	e.Helper()
	if err := e.lab.SetAgentEnv(e.Context(), encryptedEnv(env...)); err != nil {
		e.Fatal(err)
	}
	for _, node := range nodes {
		if err := errors.Join(e.lab.StopAgent(e.Context(), node), e.lab.StartAgent(e.Context(), node)); err != nil {
			e.Fatal(err)
		}
	}
}

// hosts has etcd on node-2, as agents see it: node-1 finds it when node-2 has no key too.
func (e *encrypted) hosts() {
	node2 := netip.MustParseAddr("172.30.2.2")
	fromNode1 := func() error { return e.lab.Within("node-1", func() error { return closedAt(node2) }) }
	e.forwardEtcd()
	e.felix(map[string]any{"wireguardHostEncryptionEnabled": true})
	eventually(e.T, e.lab, has("dev wireguard.cali"), "ip", "route", "get", node2.String())
	nettest.Eventually(e.T, fromNode1)
	e.count()
	if err := fromNode1(); err != nil {
		e.Error(err)
	}
	if wg4, _, other := e.counted(); wg4 == 0 || other > 0 {
		e.Errorf("from node to node the fabric saw %d encrypted packets and %d others", wg4, other)
	}
	e.restartOn([]string{"node-2", "node-1"}, "ETCD_ENDPOINTS=http://172.30.2.2:2379")
	eventually(e.T, e.lab, has("to 172.30.2.2 iif lo ipproto tcp dport 2379 lookup main"), "ip", "rule")
	e.onNode("node-2", bothFamilies(false))
	nettest.Eventually(e.T, func() error {
		if err := fromNode1(); !refused(err) {
			return fmt.Errorf("to a node without a key want it refused: %w", err)
		}
		return nil
	})
	e.restart("ETCD_ENDPOINTS=http://172.30.2.2:2379") // which fails unless etcd is there
	if err := fromNode1(); !refused(err) {
		e.Errorf("after the restart too want it refused: %v", err)
	}
	e.onNode("node-2", bothFamilies(true))
	e.all()
	e.restartOn([]string{"node-2", "node-1"})
}

// forwardEtcd has node-2 pass on what comes to etcd's port, until the test ends.
func (e *encrypted) forwardEtcd() {
	e.Helper()
	var l net.Listener
	err := e.lab.Within("node-2", func() (err error) {
		l, err = net.Listen("tcp4", "172.30.2.2:2379")
		return err
	})
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go e.pass(c)
		}
	}()
}

// pass joins a connection with one to the lab's etcd.
func (e *encrypted) pass(c net.Conn) {
	defer func() { _ = c.Close() }()
	var to net.Conn
	err := e.lab.Within("node-2", func() (err error) {
		to, err = net.Dial("tcp", strings.TrimPrefix(labEtcd, "http://"))
		return err
	})
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }()
	go func() {
		_, _ = io.Copy(to, c)
		_ = to.Close()
	}()
	_, _ = io.Copy(c, to)
}

// turnedOff has the agent that comes back find what another has left.
func (e *encrypted) turnedOff() {
	if err := e.lab.KillAgent(e.Context(), "node-1"); err != nil {
		e.Fatal(err)
	}
	s := startStream(e.T, e.lab, "a2", "a3")
	e.felix(map[string]any{"wireguardEnabled": false, "wireguardEnabledV6": false, "wireguardHostEncryptionEnabled": false})
	for _, node := range []string{"node-2", "node-3"} {
		e.onNode(node, bothFamilies(false))
	}
	if err := e.lab.StartAgent(e.Context(), "node-1"); err != nil {
		e.Fatal(err)
	}
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		nettest.Eventually(e.T, func() error {
			for _, c := range [][]string{{"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all", "proto", "80"}, {"ip", "-o", "link"}} {
				out := run(e.T, e.lab, node, c...)
				for _, left := range []string{"proto 80 ", "lookup 1", "table 1 ", "wireguard.cali", "wg-v6.cali"} {
					if strings.Contains(out, left) && !(c[1] == "route" && left == "proto 80 ") {
						return fmt.Errorf("%s: %q is left in %s:\n%s", node, left, strings.Join(c, " "), out)
					}
				}
			}
			if key := e.key(node); key != "" {
				return fmt.Errorf("%s tells the key %s", node, key)
			}
			return nil
		})
	}
	e.all()
	got := s.stop(e.T)
	e.Logf("%d of %d packets were lost", got.lost, got.sent)
}
