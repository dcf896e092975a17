package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// operator runs muslinctl on the first node, with the text of a file, if any, as standard input.
func operator(t *testing.T, l *lab.Lab, file string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	err := l.Exec(t.Context(), "node-1", lab.Command{Args: append([]string{"muslinctl"}, args...), Stdin: strings.NewReader(file), Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("muslinctl %s: %v: %s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// setPool changes a pool as an operator does.
func setPool(t *testing.T, l *lab.Lab, pool, spec string) {
	t.Helper()
	operator(t, l, "", "patch", "ippool", pool, "--patch", `{"spec":`+spec+`}`)
}

const twoPools = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: east}
spec: {cidr: 10.1.0.0/24, blockSize: 28, vxlanMode: Always, natOutgoing: true, nodeSelector: dc == "east"}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: west}
spec: {cidr: 10.2.0.0/24, blockSize: 28, vxlanMode: Always, natOutgoing: true, nodeSelector: dc == "west"}
`

// TestDatacentreGetsPoolsOfItsOwnWhilePodsTalk is the operator's walk from the default pool to one pool for each datacentre. Whatever pods are
// there at a step, all reach each other.
func TestDatacentreGetsPoolsOfItsOwnWhilePodsTalk(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Subnets, o.Mode, o.AgentEnv = 2, lab.VXLAN, []string{"MUSLIN_LINGER=100ms"}
	})
	allWell(t, l)
	pools := map[string]netip.Prefix{"node-1": netip.MustParsePrefix("10.1.0.0/24"), "node-2": netip.MustParsePrefix("10.2.0.0/24"), "node-3": netip.MustParsePrefix("10.1.0.0/24")}
	for node, dc := range map[string]string{"node-1": "east", "node-2": "west", "node-3": "east"} {
		operator(t, l, "", "label", "nodes", node, "dc="+dc)
	}
	operator(t, l, twoPools, "apply", "-f", "-")
	allWell(t, l)
	old := startChat(t, l, "b1", "b2", pod(t, l, "b2").Addr, 10*time.Millisecond)
	setPool(t, l, "default-ipv4-ippool", `{"disabled":true}`)
	allWell(t, l)
	for node, pool := range pools {
		name := "a" + strings.TrimPrefix(node, "node-")
		recreate(t, l, name)
		if a := pod(t, l, name).Addr; !pool.Contains(a) {
			t.Errorf("%s on %s has %v, want one of %v", name, node, a, pool)
		}
	}
	allWell(t, l)
	t.Logf("old pods, from which tunnels' addresses and new pods have moved: %+v", old.goesOn(t))
	old.finish()
	for _, name := range []string{"b1", "b2", "b3"} {
		recreate(t, l, name)
	}
	allWell(t, l)
	young := startChat(t, l, "a1", "b2", pod(t, l, "b2").Addr, 10*time.Millisecond)
	operator(t, l, "", "delete", "ippool", "default-ipv4-ippool")
	nothingOf(t, l, "192.168.")
	allWell(t, l)
	if cost := young.goesOn(t); cost.lost > 0 {
		t.Errorf("the end of a pool has cost pods of others %+v", cost)
	}
}

// recreate replaces a pod by one of the same name, as a rollout does.
func recreate(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	node := pod(t, l, name).Node
	if err := l.RemovePod(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	addPod(t, l, name, node)
}

// nothingOf waits until no node and nothing in etcd knows addresses that begin like that.
func nothingOf(t *testing.T, l *lab.Lab, prefix string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		for _, n := range nodesOf(t, l) {
			state, err := tryKernelState(t, l, n.Name)
			if err != nil {
				return err
			}
			for line := range strings.Lines(state) {
				if strings.Contains(line, prefix) {
					return fmt.Errorf("%s still has %s", n.Name, line)
				}
			}
		}
		for key, value := range values(t, l, "/calico/") {
			if strings.Contains(key+value, prefix) || strings.Contains(key, strings.ReplaceAll(prefix, ".", "-")) {
				return fmt.Errorf("etcd still has %s: %s", key, value)
			}
		}
		return nil
	})
}

// TestPoolIsChangedUnderRunningPods toggles what a pool says beside its mode. Pods that run stay as they are.
func TestPoolIsChangedUnderRunningPods(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.AgentEnv = 2, lab.VXLAN, []string{"MUSLIN_LINGER=10ms"} })
	teachRouter(t, l, []bool{false}) // so that the answers from outside find pods
	allWell(t, l)
	there, back := startChat(t, l, "a1", "b2", pod(t, l, "b2").Addr, 10*time.Millisecond), startChat(t, l, "a2", "b1", pod(t, l, "b1").Addr, 10*time.Millisecond)
	const pool = "default-ipv4-ippool"
	well := func(t *testing.T) {
		t.Helper()
		allWell(t, l)
		for _, c := range []*chat{there, back} {
			if cost := c.goesOn(t); cost.lost > 0 {
				t.Errorf("%s: %d datagrams are lost", c.name, cost.lost)
			}
			c.mark()
		}
	}
	t.Run("natOutgoing", func(t *testing.T) {
		before := kernelState(t, l, "node-1")
		setPool(t, l, pool, `{"natOutgoing":false}`)
		nettest.Eventually(t, func() error {
			for _, p := range check(t, l).Pairs {
				own := pod(t, l, "a1").Addr
				if p.From == "a1" && p.To == "outside" && p.Seen != own {
					return fmt.Errorf("outside sees %v, want %v: %+v", p.Seen, own, p)
				}
			}
			return nil
		})
		setPool(t, l, pool, `{"natOutgoing":true}`)
		well(t)
		if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
			t.Errorf("there and back again, the kernel differs (-before +after): %s", d)
		}
	})
	t.Run("disableBGPExport", func(t *testing.T) {
		before := kernelState(t, l, "node-1")
		for _, value := range []string{"true", "false"} {
			setPool(t, l, pool, `{"disableBGPExport":`+value+`}`)
			well(t)
			if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
				t.Errorf("the kernel differs (-before +after): %s", d)
			}
		}
	})
	t.Run("nodeSelector", func(t *testing.T) {
		elsewhere(t, l, pool, `{"nodeSelector":"dc == \"none\""}`, `{"nodeSelector":"all()"}`, well)
	})
	t.Run("disabled", func(t *testing.T) { elsewhere(t, l, pool, `{"disabled":true}`, `{"disabled":false}`, well) })
	t.Run("allowedUses", func(t *testing.T) {
		elsewhere(t, l, pool, `{"allowedUses":["Tunnel"]}`, `{"allowedUses":["Workload","Tunnel"]}`, well)
	})
}

// elsewhere takes the nodes' only pool out of use, so that a pod is refused, then gives them another, which the next pod is from, and takes that
// back. Agents that start meanwhile serve the pods that there are.
func elsewhere(t *testing.T, l *lab.Lab, pool, away, back string, well func(*testing.T)) {
	setPool(t, l, pool, away)
	if _, err := l.AddPod(t.Context(), lab.PodSpec{Name: "new", Node: "node-1"}); err == nil {
		t.Error("a pod got an address of a pool that is out of use")
	}
	well(t)
	for _, node := range []string{"node-1", "node-2"} {
		if err := l.StopAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	well(t)
	operator(t, l, strings.ReplaceAll(twoPools, `, nodeSelector: dc == "east"`, ""), "apply", "-f", "-")
	if p := addPod(t, l, "new", "node-1"); !netip.MustParsePrefix("10.1.0.0/24").Contains(p.Addr) {
		t.Errorf("the new pod has %v", p.Addr)
	}
	well(t)
	setPool(t, l, pool, back)
	well(t)
	if err := l.RemovePod(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	operator(t, l, "", "delete", "ippool", "east", "west")
	nothingOf(t, l, "10.1.0.")
	well(t)
}

// TestNodesComeMoveAndGo lets a node into a running lab and out again: the others' routes, tunnels and sets follow.
func TestNodesComeMoveAndGo(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	allWell(t, l)
	before := kernelState(t, l, "node-1")
	c := startChat(t, l, "a1", "a2", pod(t, l, "a2").Addr, 10*time.Millisecond)
	n, err := l.AddNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	addPod(t, l, "a3", n.Name)
	allWell(t, l)
	addr := n.Addr.String()
	for _, cmd := range []string{"bridge fdb show", "nft list set inet muslin vxlan-peers4"} {
		if out := run(t, l, "node-1", strings.Fields(cmd)...); !strings.Contains(out, addr) {
			t.Errorf("%s does not show %s: %s", cmd, addr, out)
		}
	}
	if err := l.RemoveNode(t.Context(), n.Name); err != nil {
		t.Fatal(err)
	}
	operator(t, l, "", "delete", "node", n.Name)
	nettest.Eventually(t, func() error {
		now, err := tryKernelState(t, l, "node-1")
		if d := cmp.Diff(before, now); err == nil && d != "" {
			return fmt.Errorf("the kernel differs (-before +after): %s", d)
		}
		return err
	})
	for key, value := range values(t, l, "/calico/") {
		if strings.Contains(key, n.Name) || strings.Contains(value, addr+"/") {
			t.Errorf("etcd still has %s: %s", key, value)
		}
	}
	if cost := c.goesOn(t); cost.lost > 0 {
		t.Errorf("%d datagrams between the others are lost", cost.lost)
	}
	allWell(t, l)
}
