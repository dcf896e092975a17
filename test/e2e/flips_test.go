package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// TestEveryPairOfModesFlipsUnderTraffic changes pools from every mode to every other while pods of all nodes talk, within a subnet and
// across, by both families.
func TestEveryPairOfModesFlipsUnderTraffic(t *testing.T) {
	modes := []lab.Mode{lab.VXLAN, lab.Direct, lab.CrossSubnet}
	f := newFlips(t, flips{nodes: 3, dual: true, pause: 10 * time.Millisecond, linger: time.Second})
	for _, mode := range tour(modes, len(modes))[1:] {
		f.to(mode)
		f.asAFreshStart()
	}
	allWell(t, f.lab)
}

// TestNodesThatFlipLateLoseNothing holds an agent still while the others change over: between it and them pods talk on, by the old mode or the new.
func TestNodesThatFlipLateLoseNothing(t *testing.T) {
	modes := []lab.Mode{lab.VXLAN, lab.Direct, lab.CrossSubnet}
	f := newFlips(t, flips{nodes: 3, dual: true, pause: 10 * time.Millisecond, linger: time.Hour})
	for i, mode := range tour(modes, len(modes))[1:] {
		f.late([]string{"node-2", "node-3"}[i%2], f.still, mode)
	}
	for i, mode := range modes[1:] { // an agent that lives and hears nothing
		f.late([]string{"node-2", "node-3"}[i%2], f.deaf, mode)
	}
}

// TestVMEveryPairOfModesFlipsUnderTraffic has the pairs with IP-in-IP on one side; the others need no machine. In the second flip to each mode the
// agent is killed, early or late: the node ends where it did in the first.
func TestVMEveryPairOfModesFlipsUnderTraffic(t *testing.T) {
	nettest.Need(t, "ipip")
	circuit := tour([]lab.Mode{lab.IPIP, lab.IPIPCrossSubnet, lab.VXLAN, lab.Direct, lab.CrossSubnet}, 2)
	at := slices.Index(circuit, lab.VXLAN)                                                                           // whose MTU fits into all
	f := newFlips(t, flips{bin: faultyPrograms(t), nodes: 2, pause: 50 * time.Millisecond, linger: 3 * time.Second}) // its processor is slow, and what is near is in the matrix
	cuts := map[lab.Mode]fault.Point{
		lab.IPIPCrossSubnet: fault.ApplyLinksPut, lab.VXLAN: fault.ApplyAddrsRemoved, lab.IPIP: fault.ApplyPolicyPut, lab.Direct: fault.ApplyLinksRemoved,
		lab.CrossSubnet: fault.ApplyRoutesPut,
	}
	for _, mode := range slices.Concat(circuit[at+1:], circuit[1:at+1]) {
		if p, there := cuts[mode]; there && f.seen[mode] != nil {
			delete(cuts, mode)
			f.cut(mode, p)
			f.settles()
		} else {
			f.to(mode)
		}
	}
	if len(cuts) > 0 {
		t.Errorf("no agent was killed in a flip to these modes: %v", cuts)
	}
}

// TestVMLateAndKilledAgentsCostIPIPNothing holds an agent still when the pool turns to IP-in-IP, which its node does not take in yet, and has
// agents killed in flips with IP-in-IP on one side. The other node goes on receiving as before for as long as all that takes.
func TestVMLateAndKilledAgentsCostIPIPNothing(t *testing.T) {
	nettest.Need(t, "ipip")
	f := newFlips(t, flips{bin: faultyPrograms(t), nodes: 2, pause: 50 * time.Millisecond, linger: time.Hour})
	f.late("node-2", f.still, lab.IPIP)
	f.cut(lab.Direct, fault.ApplyRoutesRemoved) // to what is far leads the router, of which the node need not know
	f.cut(lab.IPIPCrossSubnet, fault.ApplyRoutePut)
	f.cut(lab.VXLAN, fault.ApplyRoutesPut)
}

// killedAgentsLoseNothing has the flips with CrossSubnet on one side, and the agent killed before, between and after the writes.
func killedAgentsLoseNothing(t *testing.T, bin string) {
	f := newFlips(t, flips{bin: bin, nodes: 3, dual: true, pause: 10 * time.Millisecond, linger: time.Hour})
	f.cut(lab.CrossSubnet, fault.ApplyRoutePut)
	f.cut(lab.Direct, fault.ApplyBegun)
	f.cut(lab.CrossSubnet, fault.ApplyRoutesPut)
	f.cut(lab.VXLAN, fault.ApplyRoutePut)
	f.cut(lab.CrossSubnet, fault.ApplyBegun, fault.ApplyRoutePut)
}

// agentsKilledInFlipsEndWhereAFreshStartEnds has the same flips, and the agent killed when tunnels come and when they go.
func agentsKilledInFlipsEndWhereAFreshStartEnds(t *testing.T, bin string) {
	f := newFlips(t, flips{bin: bin, nodes: 3, dual: true, pause: 10 * time.Millisecond, linger: time.Second})
	for _, c := range []struct {
		mode  lab.Mode
		point fault.Point
	}{{lab.CrossSubnet, fault.ApplyRoutePut}, {lab.Direct, fault.ApplyLinksRemoved}, {lab.CrossSubnet, fault.ApplyFDBPut}} {
		f.cut(c.mode, c.point)
		f.settles()
		f.asAFreshStart()
	}
}

// tour goes over every ordered pair of modes of which one is among the first n, each once, from the first mode back to it.
func tour(modes []lab.Mode, n int) []lab.Mode {
	out := modes[:1:1]
	if n == 0 {
		return out
	}
	for i, mode := range modes[1:] {
		if i == 0 {
			out = append(out, tour(modes[1:], n-1)...)
		} else {
			out = append(out, mode)
		}
		out = append(out, modes[0])
	}
	return out
}

func TestTourHasEveryPairOnce(t *testing.T) {
	all := []lab.Mode{"a", "b", "c", "d", "e"}
	for n := range len(all) + 1 {
		seen := map[[2]lab.Mode]int{}
		way := tour(all, n)
		for i := range way[1:] {
			seen[[2]lab.Mode{way[i], way[i+1]}]++
		}
		want := map[[2]lab.Mode]int{}
		for i, from := range all {
			for j, to := range all {
				if i != j && min(i, j) < n {
					want[[2]lab.Mode{from, to}] = 1
				}
			}
		}
		if d := cmp.Diff(want, seen); d != "" {
			t.Errorf("with %d modes: %s", n, d)
		}
	}
}

// flips is a lab whose pools change their mode: node-2 is on a subnet of its own, and node-1 and node-3 share one. The router between them
// knows pods' blocks, so that direct works everywhere.
type flips struct {
	bin    string // folder of programs with fault points; "": the usual ones
	nodes  int    // 2 or 3
	dual   bool
	pause  time.Duration // between what pods say to each other
	linger time.Duration
	t      *testing.T
	lab    *lab.Lab
	mode   lab.Mode
	chats  []*chat
	seen   map[lab.Mode]map[string]string // what the nodes' kernels held in a mode
}

func newFlips(t *testing.T, f flips) *flips {
	f.t, f.mode, f.seen = t, lab.VXLAN, map[lab.Mode]map[string]string{}
	env := []string{"MUSLIN_LINGER=" + f.linger.String()}
	if f.bin == "" {
		f.bin = programs(t)
	} else {
		env = append(env, fault.Variable+"=@"+agentOrders)
	}
	f.lab = upWith(t, f.bin, func(o *lab.Options) {
		o.Nodes, o.Subnets, o.Mode, o.DualStack, o.AgentEnv = f.nodes, 2, f.mode, f.dual, env
	})
	teachRouter(t, f.lab, f.families())
	pods := []string{"a1", "a2", "a3"}[:f.nodes]
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			for _, addr := range ptr(pod(t, f.lab, to)).Addrs() {
				f.chats = append(f.chats, startChat(t, f.lab, from, to, addr, f.pause))
			}
		}
	}
	f.settles()
	return &f
}

func ptr[T any](v T) *T { return &v }

func (f *flips) families() []bool {
	if f.dual {
		return []bool{false, true}
	}
	return []bool{false}
}

// to changes the mode. Every connection lives on, datagrams come through again, and the kernels are what they always are in that mode.
func (f *flips) to(mode lab.Mode) {
	f.t.Helper()
	from := f.mode
	f.mode = mode
	for _, c := range f.chats {
		c.mark()
	}
	start := time.Now()
	f.write()
	f.turned(nodesOf(f.t, f.lab))
	turned := time.Since(start)
	var worst silence
	for _, c := range f.chats {
		cost := c.goesOn(f.t)
		worst.gap, worst.lost = max(worst.gap, cost.gap), max(worst.lost, cost.lost)
	}
	f.settles()
	for _, c := range f.chats {
		c.goesOn(f.t)
	}
	f.t.Logf("%s to %s: all nodes after %v, the longest silence of a pair %v, at most %d datagrams of a pair lost, nothing left after %v",
		from, mode, turned.Round(time.Millisecond), worst.gap.Round(time.Millisecond), worst.lost, time.Since(start).Round(time.Millisecond))
}

// still stops a node's agent until release is called.
func (f *flips) still(node string) (release func()) {
	f.t.Helper()
	nodes := nodesOf(f.t, f.lab)
	agent := nodes[slices.IndexFunc(nodes, func(n lab.Node) bool { return n.Name == node })].Agent.PID
	signal := func(s unix.Signal) {
		if err := unix.Kill(agent, s); err != nil {
			f.t.Fatal(err)
		}
	}
	signal(unix.SIGSTOP)
	return func() { signal(unix.SIGCONT) }
}

// deaf keeps a node from etcd until release is called.
func (f *flips) deaf(node string) (release func()) {
	f.t.Helper()
	run(f.t, f.lab, node, "nft", "add table inet deaf; add chain inet deaf input { type filter hook input priority -300; }; add rule inet deaf input tcp sport 2379 drop")
	return func() { run(f.t, f.lab, node, "nft", "delete", "table", "inet", "deaf") }
}

// late changes the mode while hold keeps one node, which is not the first, from hearing of it.
func (f *flips) late(node string, hold func(node string) (release func()), mode lab.Mode) {
	f.t.Helper()
	before := f.mode
	f.mode = mode
	nodes := nodesOf(f.t, f.lab)
	for _, c := range f.chats {
		c.mark()
	}
	release := hold(node)
	f.write()
	others := slices.DeleteFunc(slices.Clone(nodes), func(n lab.Node) bool { return n.Name == node })
	f.turned(others)
	f.readied(others)
	for _, c := range f.chats {
		c.goesOn(f.t)
	}
	if near, first := f.toFirst(node); !strings.Contains(run(f.t, f.lab, node, "ip", "route", "get", first.String()), " dev "+deviceOf(before, false, near)+" ") {
		f.t.Errorf("to %s: %s was not late", mode, node)
	}
	release()
	f.turned(nodes)
	for _, c := range f.chats {
		if cost := c.goesOn(f.t); cost.lost > 0 {
			f.t.Errorf("%s late for %s: %s: %d datagrams are lost", node, mode, c.name, cost.lost)
		}
	}
}

// toFirst says whether a node shares the first one's subnet, and the address of the first one's pod.
func (f *flips) toFirst(node string) (near bool, pod1 netip.Addr) {
	f.t.Helper()
	nodes := nodesOf(f.t, f.lab)
	at := slices.IndexFunc(nodes, func(n lab.Node) bool { return n.Name == node })
	return nodes[at].Subnet == nodes[0].Subnet, pod(f.t, f.lab, "a1").Addr
}

// cut changes the mode, and has the agent of node-1 killed at a point of what it does about that, and the next one at the next point. Every
// connection lives on, and where nodes go on receiving by the old mode until the last agent is up, nothing at all is lost.
func (f *flips) cut(mode lab.Mode, points ...fault.Point) {
	f.t.Helper()
	f.mode = mode
	for _, c := range f.chats {
		c.mark()
	}
	var names []string
	for i, p := range points {
		names = append(names, fault.Name(p))
		order(f.t, f.lab, "node-1", fault.Name(p)+"=kill")
		if i == 0 {
			f.write()
		} else {
			_ = f.lab.StartAgent(f.t.Context(), "node-1") // which may be killed before it is ready
		}
		nettest.Eventually(f.t, func() error {
			if !isDead(f.t, f.lab, "node-1") {
				return fmt.Errorf("to %s: the agent has not come to %s", mode, fault.Name(p))
			}
			return nil
		})
	}
	order(f.t, f.lab, "node-1", "")
	if err := f.lab.StartAgent(f.t.Context(), "node-1"); err != nil {
		f.t.Fatal(err)
	}
	f.turned(nodesOf(f.t, f.lab))
	for _, c := range f.chats {
		if cost := c.goesOn(f.t); cost.lost > 0 && f.linger >= time.Hour {
			f.t.Errorf("to %s with kills at %s: %s: %d datagrams are lost", mode, strings.Join(names, ", "), c.name, cost.lost)
		}
	}
}

// readied waits until nodes take in what comes by the mode: then they have their tunnel addresses.
func (f *flips) readied(nodes []lab.Node) {
	f.t.Helper()
	nettest.Eventually(f.t, func() error {
		for _, r := range f.records() {
			ready := r.Spec.BGP.IPv4IPIPTunnelAddr.IsValid() || f.mode != lab.IPIP && f.mode != lab.IPIPCrossSubnet
			if !ready && slices.ContainsFunc(nodes, func(n lab.Node) bool { return n.Name == r.Metadata.Name }) {
				return fmt.Errorf("%s has no IP-in-IP tunnel address", r.Metadata.Name)
			}
		}
		return nil
	})
}

// write changes the pools.
func (f *flips) write() {
	f.t.Helper()
	ipip, vxlan := api.Never, api.Never
	switch f.mode {
	case lab.IPIP:
		ipip = api.Always
	case lab.IPIPCrossSubnet:
		ipip = api.CrossSubnet
	case lab.VXLAN:
		vxlan = api.Always
	case lab.CrossSubnet:
		vxlan = api.CrossSubnet
	}
	flip(f.t, f.lab, ipip, vxlan)
	if f.dual {
		amend(f.t, f.lab, api.ResourcesRoot+"ippools/default-ipv6-ippool", "IPPool", map[string]any{"vxlanMode": vxlan})
	}
}

// turned waits until each of the nodes reaches the others of them by the devices of the mode.
func (f *flips) turned(nodes []lab.Node) {
	f.t.Helper()
	for _, from := range nodes {
		for _, to := range nodes {
			if from.Name == to.Name {
				continue
			}
			p := pod(f.t, f.lab, strings.Replace(to.Name, "node-", "a", 1))
			for _, addr := range p.Addrs() {
				f.leads(from.Name, addr, deviceOf(f.mode, addr.Is6(), from.Subnet == to.Subnet))
			}
		}
	}
}

func (f *flips) leads(node string, to netip.Addr, dev string) {
	f.t.Helper()
	nettest.Eventually(f.t, func() error {
		if out := run(f.t, f.lab, node, "ip", "route", "get", to.String()); !strings.Contains(out, " dev "+dev+" ") {
			return fmt.Errorf("in mode %s the way from %s to %v: %s, want it through %s", f.mode, node, to, out, dev)
		}
		return nil
	})
}

// settles waits until no other mode has left anything, and the kernels are as they were the last time in this one.
func (f *flips) settles() {
	f.t.Helper()
	nettest.Eventually(f.t, func() error {
		kernels, err := f.kernels()
		if err != nil {
			return err
		}
		if err := f.left(kernels); err != nil {
			return err
		}
		if d := cmp.Diff(f.seen[f.mode], kernels); f.seen[f.mode] != nil && d != "" {
			return fmt.Errorf("in mode %s the kernels are not what they were the last time (-before +after): %s", f.mode, d)
		}
		f.seen[f.mode] = kernels
		return nil
	})
}

// asAFreshStart lets an agent without any memory build a node's kernel from nothing: it is what the flips have led to.
func (f *flips) asAFreshStart() {
	f.t.Helper()
	if err := f.lab.StopAgent(f.t.Context(), "node-1"); err != nil {
		f.t.Fatal(err)
	}
	wipe(f.t, f.lab, "node-1")
	if err := f.lab.StartAgent(f.t.Context(), "node-1"); err != nil {
		f.t.Fatal(err)
	}
	f.settles()
	for _, c := range f.chats {
		c.goesOn(f.t)
	}
}

// left names what of modes that the pools have left is still there.
func (f *flips) left(kernels map[string]string) error {
	vxlan := f.mode == lab.VXLAN || f.mode == lab.CrossSubnet
	ipip := f.mode == lab.IPIP || f.mode == lab.IPIPCrossSubnet
	marks := map[string]bool{
		"notrack": vxlan, "vxlan.calico": vxlan, "vxlan-v6.calico": vxlan && f.dual, "@ipip-peers4": ipip, "tunl0    inet": ipip, "tunl0@NONE: <NOARP,UP": ipip,
	}
	for node, state := range kernels {
		for text, belongs := range marks {
			if strings.Contains(state, text) != belongs {
				return fmt.Errorf("in mode %s the kernel of %s has %q: %t, want %t:\n%s", f.mode, node, text, !belongs, belongs, state)
			}
		}
	}
	for _, n := range f.records() {
		addressed := n.Spec.IPv4VXLANTunnelAddr.IsValid() || n.Spec.IPv6VXLANTunnelAddr.IsValid()
		if addressed != vxlan || n.Spec.BGP.IPv4IPIPTunnelAddr.IsValid() != ipip {
			return fmt.Errorf("in mode %s %s has these tunnel addresses: %+v", f.mode, n.Metadata.Name, n.Spec)
		}
	}
	return nil
}

// records are the Nodes in etcd.
func (f *flips) records() (out []api.Node) {
	for key, raw := range values(f.t, f.lab, api.ResourcesRoot+"nodes/") {
		var n api.Node
		decode(f.t, key, raw, &n)
		out = append(out, n)
	}
	return out
}

// ownChains match the kernel's own chains in the output of iptables-save: iptables makes those of a table with the first rule, and they stay.
var ownChains = regexp.MustCompile(`(?m)^(:[A-Z]+ [A-Z]+ ?|\*[a-z]+|COMMIT|)\n`)

// kernels are the nodes' kernels, but for what differs each time: the numbers of devices, and the tunnels' addresses.
func (f *flips) kernels() (map[string]string, error) {
	var names []string
	for _, n := range f.records() {
		for kind, a := range map[string]netip.Addr{"v4": n.Spec.IPv4VXLANTunnelAddr, "v6": n.Spec.IPv6VXLANTunnelAddr, "ipip": n.Spec.BGP.IPv4IPIPTunnelAddr} {
			if a.IsValid() {
				for _, end := range []string{" ", "\n", "/32", "/128"} { // the block may begin with the address
					names = append(names, a.String()+end, "<"+n.Metadata.Name+" "+kind+">"+end)
				}
			}
		}
	}
	known := strings.NewReplacer(names...)
	out := map[string]string{}
	for _, node := range []string{"node-1", "node-2"} {
		state, err := tryKernelState(f.t, f.lab, node)
		if err != nil {
			return nil, err
		}
		lines := strings.Split(ownChains.ReplaceAllString(unnumbered(known.Replace(untouched(state))), ""), "\n")
		slices.Sort(lines) // anew, since addresses have become names
		out[node] = strings.Join(lines, "\n")
	}
	return out, nil
}
