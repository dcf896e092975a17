package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// applying is a lab in which the agent of node-1 is killed in the midst of its work on the kernel.
type applying struct {
	*runtime
	fresh map[string]string // what a fresh start makes of a clean host, by the pool's VXLAN mode
	mode  string
	cut   map[fault.Point]bool // where an agent has been killed
	named map[string]string    // what tunnels' addresses are called, also once their node has given them back
}

// appliesEndWhereAFreshStartEnds kills the agent at every point of an apply that there is: in its first one on an empty host, when it takes over
// a host that others have spoilt, and when the pool's mode changes. The agent that follows has to end where one ends that nothing has disturbed.
func appliesEndWhereAFreshStartEnds(t *testing.T, bin string) {
	l := upWith(t, bin, func(o *lab.Options) {
		o.Nodes, o.Mode, o.DualStack, o.AgentEnv = 2, lab.VXLAN, true, append(withRules(), fault.Variable+"=@"+agentOrders, "MUSLIN_LINGER=0s")
	})
	a := &applying{runtime: newRuntime(t, l, "node-1", bin, "applies"), fresh: map[string]string{}, mode: "Always", cut: map[fault.Point]bool{}, named: map[string]string{}}
	a.learn()
	t.Run("on an empty host", func(t *testing.T) {
		a.each(t, additions(), func(a *applying, p fault.Point) {
			a.succeeds("kill the agent", l.KillAgent(a.t.Context(), "node-1"))
			a.wipe()
			a.start()
		})
	})
	t.Run("on a spoilt host", func(t *testing.T) {
		s := startStream(t, l, "a1", "b1") // on a path that is not spoilt
		a.each(t, applyPoints(), func(a *applying, p fault.Point) {
			a.succeeds("kill the agent", l.KillAgent(a.t.Context(), "node-1"))
			a.spoil()
			a.start()
		})
		if got := s.stop(t); got.lost != 0 {
			t.Errorf("%d of %d packets were lost", got.lost, got.sent)
		}
	})
	t.Run("while the mode changes", func(t *testing.T) {
		s := startStream(t, l, "a1", "b1") // on a path that does not change
		a.each(t, additions(), func(a *applying, p fault.Point) {
			a.order("")
			a.backToDirect()
			a.order(fault.Name(p) + "=kill")
			a.setMode("Always")
		})
		if got := s.stop(t); got.lost != 0 {
			t.Errorf("%d of %d packets were lost", got.lost, got.sent)
		}
	})
	t.Run("when the tunnels go", func(t *testing.T) {
		a.each(t, []fault.Point{fault.ApplyLinksRemoved}, func(a *applying, p fault.Point) {
			a.order("")
			a.setMode("Always")
			a.ends()
			a.succeeds("stop the agent", l.StopAgent(a.t.Context(), "node-1"))
			a.setMode("Never")
			a.order(fault.Name(p) + "=kill")
			a.start()
		})
	})
	for _, p := range applyPoints() {
		if !a.cut[p] {
			t.Errorf("no agent passed %s", fault.Name(p))
		}
	}
	if r := check(t, l); !r.OK {
		t.Errorf("in the end these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}

// withRules has agents make rules of routing: for encryption, which may as well be in clear, since the kernel need not have it.
func withRules() []string {
	return []string{"FELIX_WIREGUARDENABLED=true", "MUSLIN_WIREGUARD_PLAINTEXT=true"}
}

// additions are the points that an apply passes in which nothing is to go.
func additions() []fault.Point {
	return slices.DeleteFunc(applyPoints(), func(p fault.Point) bool {
		return strings.HasSuffix(fault.Name(p), ".removed") || p == fault.ApplyMemberGone || p == fault.ApplyLinkTaken
	})
}

// suitePoints are all points but those of WireGuard: kernels that break here need not have it, and TestVMWireGuard has theirs.
func suitePoints() []fault.Point {
	return slices.DeleteFunc(fault.Points(), func(p fault.Point) bool { return strings.HasPrefix(fault.Name(p), wireGuardPrefix) })
}

// wireGuardPrefix is in front of the names of the points at which agents write to WireGuard's devices.
const wireGuardPrefix = "apply.wireguard."

// applyPoints are those of them that an apply passes.
func applyPoints() []fault.Point {
	return slices.DeleteFunc(suitePoints(), func(p fault.Point) bool { return !strings.HasPrefix(fault.Name(p), "apply.") })
}

// learn finds out where a fresh start on a clean host ends in each mode.
func (a *applying) learn() {
	a.t.Helper()
	for _, mode := range []string{"Never", "Always"} {
		a.setMode(mode)
		a.succeeds("kill the agent", a.lab.KillAgent(a.t.Context(), "node-1"))
		a.wipe()
		a.succeeds("start the agent", a.lab.StartAgent(a.t.Context(), "node-1"))
		// A fresh start is at its end when the node's pods reach the other's.
		nettest.Eventually(a.t, func() error {
			before := a.state()
			if r := check(a.t, a.lab); !r.OK {
				return errors.New(strings.Join(failing(r), "; "))
			}
			if d := cmp.Diff(before, a.state()); d != "" {
				return fmt.Errorf("the kernel changes still: %s", d)
			}
			a.fresh[mode] = before
			return nil
		})
	}
}

// each has the agent killed at each point, while begin has it at work, then starts one that nothing disturbs.
func (a *applying) each(t *testing.T, points []fault.Point, begin func(*applying, fault.Point)) {
	for _, p := range points {
		t.Run(fault.Name(p), func(t *testing.T) {
			r := *a.runtime
			r.t = t
			b := *a
			b.runtime = &r
			b.order(fault.Name(p) + "=kill")
			begin(&b, p)
			if !b.killed() {
				return // there was nothing to do of this kind, and it has ended right
			}
			a.cut[p] = true
			b.order("")
			if err := b.lab.StartAgent(t.Context(), "node-1"); err != nil {
				t.Fatal(err)
			}
			b.ends()
		})
	}
}

// start starts the agent, which may be killed before it is ready.
func (a *applying) start() { _ = a.lab.StartAgent(a.t.Context(), "node-1") }

// killed waits until the agent was killed, or has reached its end without.
func (a *applying) killed() (dead bool) {
	a.t.Helper()
	nettest.Eventually(a.t, func() error {
		if dead = isDead(a.t, a.lab, "node-1"); dead {
			return nil
		}
		return a.differs()
	})
	return dead
}

// isDead tells whether a node's agent was killed.
func isDead(t *testing.T, l *lab.Lab, node string) bool {
	t.Helper()
	nodes := nodesOf(t, l)
	at := slices.IndexFunc(nodes, func(n lab.Node) bool { return n.Name == node })
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", nodes[at].Agent.PID)) // 0: it was killed before it was ready
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func (a *applying) ends() {
	a.t.Helper()
	nettest.Eventually(a.t, a.differs)
}

func (a *applying) differs() error {
	if d := cmp.Diff(a.fresh[a.mode], a.state()); d != "" {
		return fmt.Errorf("the kernel is not what a fresh start makes (-want +got):\n%s", d)
	}
	return nil
}

// state is the node's kernel, without what differs from one life of a device or of a tunnel's address to the next.
func (a *applying) state() string {
	text := kernelState(a.t, a.lab, "node-1")
	for key, value := range values(a.t, a.lab, api.ResourcesRoot+"nodes/") {
		var node api.Node
		if err := json.Unmarshal([]byte(value), &node); err != nil {
			a.t.Fatal(err)
		}
		for family, addr := range map[string]netip.Addr{"4": node.Spec.IPv4VXLANTunnelAddr, "6": node.Spec.IPv6VXLANTunnelAddr} {
			if addr.IsValid() {
				a.named[addr.String()] = "tunnel" + family + "-" + path.Base(key)
			}
		}
	}
	for addr, name := range a.named {
		for _, end := range []string{" ", "/", "\n"} {
			text = strings.ReplaceAll(text, addr+end, name+end)
		}
	}
	return unnumbered(kernelsOwn.ReplaceAllString(text, "")) + run(a.t, a.lab, "node-1", "sh", "-c", "grep -H . "+strings.Join(settingsOfPods, " "))
}

// kernelsOwn matches the tables and chains that iptables has, which stay when our rules go from them.
var kernelsOwn = regexp.MustCompile(`(?m)^(\*\w+|COMMIT|:[A-Z]+ ACCEPT ?)\n`)

var settingsOfPods = []string{"/proc/sys/net/ipv4/conf/cali*/proxy_arp", "/proc/sys/net/ipv4/conf/cali*/route_localnet", "/proc/sys/net/ipv6/conf/cali*/proxy_ndp"}

func (a *applying) shell(script string) {
	a.t.Helper()
	run(a.t, a.lab, "node-1", "sh", "-ec", script)
}

// wipe takes all that the agent has made from the node.
func (a *applying) wipe() {
	a.t.Helper()
	wipe(a.t, a.lab, "node-1")
}

// wipe takes all that a node's agent has made from it. With the last rule that asks for it goes the tracking of connections, and what it has
// missed when it comes back it may take for invalid: so it is told to be liberal. Nothing that an agent does comes to that: its table of policy
// is changed and never taken away, also by the next agent, and while an agent lives nobody else can.
func wipe(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	run(t, l, node, "sh", "-ec", `
		echo 1 >/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal
		for d in vxlan.calico vxlan-v6.calico; do ip link del $d 2>/dev/null || true; done
		if [ -e /sys/class/net/tunl0 ]; then ip addr flush dev tunl0; ip link set tunl0 down; fi
		for f in -4 -6; do ip $f rule flush protocol 80; ip $f route flush proto 80; done
		ip route flush table 1 2>/dev/null || true
		for d in $(ls /sys/class/net); do case $d in cali*) ip neigh flush nud permanent dev $d;; esac; done
		nft delete table inet muslin 2>/dev/null || true
		nft flush ruleset
		ipset destroy
		for f in `+strings.Join(settingsOfPods, " ")+`; do [ ! -e $f ] || echo 0 >$f; done`)
}

// spoil damages the node.
func (a *applying) spoil() {
	a.t.Helper()
	spoil(a.t, a.lab, "node-1")
}

// spoil damages an object of each table, and adds one. The paths between pods of the node stay. While an agent lives, the table of policy is its own.
func spoil(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	run(t, l, node, "sh", "-ec", `
		cali=$(ls /sys/class/net | grep cali | grep -v vxlan | head -n1)
		echo 0 >/proc/sys/net/ipv4/conf/$cali/route_localnet
		ip link del vxlan.calico 2>/dev/null || true
		ip link add vxlan.calico type vxlan id 9 dstport 4789 dev eth0 && ip link set vxlan.calico up
		ip addr add 10.99.0.1/32 dev vxlan.calico
		ip neigh replace 10.99.0.2 lladdr 02:00:00:00:00:99 dev $cali nud permanent
		bridge fdb append 02:00:00:00:00:99 dev vxlan.calico dst 172.30.0.99
		ip route replace blackhole 10.99.1.0/24 proto 80
		ip rule add priority 98 from 10.99.0.3 lookup 1 protocol 80 2>/dev/null || true
		ip rule del priority 99 protocol 80 2>/dev/null || true
		ip addr add fd00:99::1/128 dev vxlan-v6.calico nodad 2>/dev/null || true
		ip link set vxlan-v6.calico mtu 1300 2>/dev/null || true
		iptables-nft -w -t filter -N cali-stray 2>/dev/null || true
		ip6tables-nft -w -t filter -N cali-stray 2>/dev/null || true
		iptables-nft -w -t nat -F && iptables-nft -w -t nat -X
		ip6tables-nft -w -t nat -F && ip6tables-nft -w -t nat -X
		ipset create -exist cali40stray hash:net
		ipset destroy cali40masq-ipam-pools 2>/dev/null || true
		ipset add -exist cali40network-ip-pools 172.30.0.99
		nft flush chain inet muslin input || true
		nft add chain inet muslin stray || true`)
}

// setMode changes the mode of the pools, for all nodes.
func (a *applying) setMode(mode string) {
	a.t.Helper()
	a.mode = mode
	for key, value := range values(a.t, a.lab, api.ResourcesRoot+"ippools/") {
		for _, other := range []string{"Never", "Always"} {
			value = strings.Replace(value, `"vxlanMode":"`+other+`"`, `"vxlanMode":"`+mode+`"`, 1)
		}
		put(a.t, a.lab, key, value)
	}
}

// backToDirect makes the node one whose pools have no tunnels.
func (a *applying) backToDirect() {
	a.t.Helper()
	a.succeeds("stop the agent", a.lab.StopAgent(a.t.Context(), "node-1"))
	a.setMode("Never")
	a.shell("for d in vxlan.calico vxlan-v6.calico; do ip link del $d 2>/dev/null || true; done")
	a.succeeds("start the agent", a.lab.StartAgent(a.t.Context(), "node-1"))
	a.ends()
}
