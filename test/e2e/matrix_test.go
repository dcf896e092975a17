package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// TestEveryCellOfTheMatrix has a subtest for every cell of mode, family, and same or other subnet: every pod and every node reaches every
// pod there, with streams and full-size datagrams, and by the device that the mode says.
func TestEveryCellOfTheMatrix(t *testing.T) {
	for _, mode := range []lab.Mode{lab.Direct, lab.VXLAN, lab.CrossSubnet} {
		t.Run(string(mode), func(t *testing.T) { matrix(t, mode, false) })
		t.Run(string(mode)+" dual-stack", func(t *testing.T) { matrix(t, mode, true) })
	}
}

func TestVMEveryCellOfTheMatrix(t *testing.T) {
	nettest.Need(t, "ipip")
	t.Run("ipip", func(t *testing.T) { matrix(t, lab.IPIP, false) })
	t.Run("ipip-crosssubnet dual-stack", func(t *testing.T) { matrix(t, lab.IPIPCrossSubnet, true) })
}

// TestNodeWhoseKernelHasNoIPIPSaysSoAndGoesOn is for this machine; the VM's kernel has it.
func TestNodeWhoseKernelHasNoIPIPSaysSoAndGoesOn(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.IPIP })
	if _, err := try(t, l, "node-1", "ip", "link", "show", kernel.IPIPDevice); err == nil {
		t.Skip("this kernel has IP-in-IP devices")
	}
	allWell(t, l)
	amend(t, l, poolKey, "IPPool", map[string]any{"natOutgoing": false}) // what else there is to do is done
	nettest.Eventually(t, func() error {
		if out := run(t, l, "node-1", "ipset", "list", "-n"); strings.Contains(out, "masq") {
			return fmt.Errorf("sets: %s", out)
		}
		return nil
	})
	var log bytes.Buffer
	if err := l.Log("node-1", &log); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "Node(node-1): cannot do IP-in-IP"); n != 1 || !strings.Contains(log.String(), "modprobe ipip") {
		t.Errorf("the problem is told %d times:\n%s", n, log.String())
	}
}

// matrix tries the cells of one mode in one lab: node-2 is on a subnet of its own, and node-1 and node-3 share one.
func matrix(t *testing.T, mode lab.Mode, dual bool) {
	l := up(t, func(o *lab.Options) { o.Mode, o.Subnets, o.DualStack = mode, 2, dual })
	families := []bool{false}
	if dual {
		families = append(families, true)
		addPodOf(t, l, lab.PodSpec{Name: "six", Node: "node-2", IPv6Only: true})
	}
	if mode == lab.Direct {
		teachRouter(t, l, families)
	}
	r := check(t, l)
	at := placesOf(t, l)
	for _, v6 := range families {
		for _, near := range []bool{true, false} {
			t.Run(cell(v6, near), func(t *testing.T) {
				ways := func(p lab.Pair) bool {
					from, to := at[p.From], at[p.To]
					return p.IPv6 == v6 && to.pod && from.node != to.node && (from.subnet == to.subnet) == near
				}
				wellWays(t, r, ways)
				dev := deviceOf(mode, v6, near)
				to := pod(t, l, map[bool]string{true: "a3", false: "a2"}[near])
				addr := map[bool]string{false: to.Addr.String(), true: to.Addr6.String()}[v6]
				if out := run(t, l, "node-1", "ip", "route", "get", addr); !strings.Contains(out, " dev "+dev+" ") {
					t.Errorf("the way to %s leads not through %s: %s", to.Name, dev, out)
				}
			})
		}
	}
	t.Run("all others", func(t *testing.T) {
		wellWays(t, r, func(p lab.Pair) bool { return !at[p.To].pod || at[p.From].node == at[p.To].node })
	})
}

func cell(v6, near bool) string {
	family, subnet := "IPv4", "other subnet"
	if v6 {
		family = "IPv6"
	}
	if near {
		subnet = "same subnet"
	}
	return family + ", " + subnet
}

// deviceOf is the device through which a node of that mode reaches another. IPv6 has VXLAN in place of IP-in-IP.
func deviceOf(mode lab.Mode, v6, near bool) string {
	across := mode == lab.IPIPCrossSubnet || mode == lab.CrossSubnet
	switch {
	case mode == lab.Direct || across && near:
		return "eth0"
	case v6:
		return kernel.VXLAN6Device
	case mode == lab.IPIP || mode == lab.IPIPCrossSubnet:
		return kernel.IPIPDevice
	}
	return kernel.VXLANDevice
}

// wellWays fails the test for each of the ways asked about that does not work, and if there is none.
func wellWays(t *testing.T, r lab.Report, asked func(lab.Pair) bool) {
	t.Helper()
	var some lab.Report
	for _, p := range r.Pairs {
		if asked(p) {
			some.Pairs = append(some.Pairs, p)
		}
	}
	if len(some.Pairs) == 0 {
		t.Error("no way was tried")
	}
	if bad := failing(some); len(bad) > 0 {
		t.Errorf("%d of %d ways fail:\n%s", len(bad), len(some.Pairs), strings.Join(bad, "\n"))
	}
}

// placed is where a node or a pod is.
type placed struct {
	node   string
	subnet int
	pod    bool
}

// placesOf lists nodes and pods by name.
func placesOf(t *testing.T, l *lab.Lab) map[string]placed {
	t.Helper()
	nodes, err := l.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	pods, err := l.Pods()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]placed{}
	for _, n := range nodes {
		out[n.Name] = placed{node: n.Name, subnet: n.Subnet}
	}
	for _, p := range pods {
		out[p.Name] = placed{node: p.Node, subnet: out[p.Node].subnet, pod: true}
	}
	return out
}

// teachRouter tells the router between the subnets whose the blocks are, as a network does that carries pods' packets as they are.
func teachRouter(t *testing.T, l *lab.Lab, families []bool) {
	t.Helper()
	nodes, err := l.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		for _, v6 := range families {
			family, gateway := "-4", n.Addr
			if v6 {
				family, gateway = "-6", n.Addr6
			}
			for _, block := range ownBlocks(t, l, n.Name, family) {
				run(t, l, "fabric", "ip", family, "route", "add", block, "via", gateway.String())
			}
		}
	}
}

// ownBlocks waits until a node drops what its blocks have no pod for, and returns the blocks.
func ownBlocks(t *testing.T, l *lab.Lab, node, family string) (blocks []string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		for line := range strings.Lines(run(t, l, node, "ip", family, "route", "show", "type", "blackhole")) {
			blocks = append(blocks, strings.Fields(line)[1])
		}
		if len(blocks) == 0 {
			return fmt.Errorf("%s has no block", node)
		}
		return nil
	})
	return blocks
}
