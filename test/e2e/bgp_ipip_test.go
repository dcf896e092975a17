package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// TestVMMixedClusterWithBIRDInIPIPPools is a mesh of which one node is BIRD's, in a pool with tunnels between all nodes and in one with tunnels between
// subnets alone. BIRD's own tunnel, which Calico's BIRD would make, the test makes.
func TestVMMixedClusterWithBIRDInIPIPPools(t *testing.T) {
	nettest.Need(t, "ipip")
	nettest.Need(t, "bird", "birdc")
	for _, c := range []struct {
		mode    lab.Mode
		subnets int
		tunnels map[string]bool // by node: whether what is for BIRD's node goes through one
	}{
		{lab.IPIP, 1, map[string]bool{"node-1": true, "node-2": true}},
		{lab.IPIPCrossSubnet, 2, map[string]bool{"node-1": false, "node-2": true}},
	} {
		t.Run(string(c.mode), func(t *testing.T) {
			l := up(t, func(o *lab.Options) { o.Nodes, o.Subnets, o.Mode, o.BGP = 2, c.subnets, c.mode, true })
			calico := addRouter(t, l, lab.RouterSpec{Name: "calico-1", Kind: lab.BIRD, CalicoNode: true})
			run(t, l, "calico-1", "ip", "link", "set", "tunl0", "up")
			run(t, l, "calico-1", "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done")
			nodes, err := l.Nodes()
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range nodes {
				for _, b := range ownBlocks(t, l, n.Name, "-4") {
					converges(t, func() error {
						return has("BGP.next_hop: " + n.Addr.String())(run(t, l, "calico-1", "birdc", "show", "route", "for", b, "all"))
					})
					way := []string{"ip", "route", "replace", b, "via", n.Addr.String(), "dev", "tunl0", "onlink", "proto", "static"}
					if !c.tunnels[n.Name] {
						way = []string{"ip", "route", "replace", b, "via", n.Addr.String(), "dev", "eth0", "proto", "static"}
					}
					run(t, l, "calico-1", way...)
				}
			}
			// An address that BIRD's node has borrowed: of that nobody but BGP tells.
			borrowed := netip.MustParseAddr("192.168.201.7")
			announceMore(t, l, "calico-1", netip.PrefixFrom(borrowed, 32))
			run(t, l, "calico-1", "ip", "address", "add", borrowed.String()+"/32", "dev", "lo")
			for name, tunnel := range c.tunnels {
				for _, dst := range []string{calico.Blocks[0].String(), borrowed.String()} {
					ledByTunnel(t, l, name, dst, calico.Addr, tunnel)
				}
			}
			streams := map[string]*stream{}
			for _, there := range []netip.Addr{calico.Pods[0], borrowed} {
				for _, p := range []string{"a1", "a2"} {
					streams[fmt.Sprintf("%s to %v", p, there)] = streamBetween(t, podEnd(t, l, p), routerEnd(l, "calico-1", there))
				}
			}
			if err := l.KillAgent(t.Context(), "node-2"); err != nil {
				t.Fatal(err)
			}
			if err := l.StartAgent(t.Context(), "node-2"); err != nil {
				t.Fatal(err)
			}
			establishes(t, l, "node-2", all(inMesh, calico.Addr.String(), nodes[0].Addr.String()))
			noneLost(t, "the agent was killed", streams)
			allWell(t, l)
		})
	}
}

// announceMore has the BIRD of a router announce one more network.
func announceMore(t *testing.T, l *lab.Lab, router string, p netip.Prefix) {
	t.Helper()
	addToBIRD(t, l, router, fmt.Sprintf("echo 'protocol static more { ipv4; route %v blackhole; }'", p))
}

// ledByTunnel waits until a node's kernel leads to the destination by the gateway: through tunl0, as if it were on its link, or straight.
func ledByTunnel(t *testing.T, l *lab.Lab, node, dst string, gateway netip.Addr, tunnel bool) {
	t.Helper()
	converges(t, func() error {
		out := run(t, l, node, "ip", "route", "show", dst, "proto", "80")
		way := "via " + gateway.String() + " dev eth0"
		if tunnel {
			way = "via " + gateway.String() + " dev tunl0"
		}
		if !strings.Contains(out, way) || tunnel && !strings.Contains(out, "onlink") {
			return fmt.Errorf("%s leads to %s by %q, want %q", node, dst, out, way)
		}
		return nil
	})
}
