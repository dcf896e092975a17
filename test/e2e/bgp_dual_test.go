package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/lab"
)

const outer6 = "2001:db8:9::/48" // what is behind a switch, too

// TestDualStackWithBIRDAndFRR has two sessions with everyone, as Calico does: a mesh of which one node is BIRD's, and a switch.
func TestDualStackWithBIRDAndFRR(t *testing.T) {
	l := upBGP(t, func(o *lab.Options) { o.Nodes, o.DualStack = 2, true })
	calico := addRouter(t, l, lab.RouterSpec{Name: "calico-1", Kind: lab.BIRD, CalicoNode: true})
	tor := addRouter(t, l, lab.RouterSpec{Name: "tor-1", Kind: lab.FRR, AS: 65001, Announce: []netip.Prefix{netip.MustParsePrefix(outer), netip.MustParsePrefix(outer6)}})
	peerWith(t, l, "tor-4", fmt.Sprintf("{peerIP: %v, asNumber: 65001}", tor.Addr))
	peerWith(t, l, "tor-6", fmt.Sprintf("{peerIP: %q, asNumber: 65001}", tor.Addr6))
	nodes, err := l.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		other := nodes[1-i]
		want := all(inMesh, other.Addr.String(), other.Addr6.String(), calico.Addr.String(), calico.Addr6.String())
		maps.Copy(want, all(global, tor.Addr.String(), tor.Addr6.String()))
		establishes(t, l, n.Name, want)
		for _, title := range []string{"\nIPv4 BGP status\n+--", "\nIPv6 BGP status\n+--"} {
			if err := has(title)(run(t, l, n.Name, "muslinctl", "node", "status")); err != nil {
				t.Error(err)
			}
		}
		for _, block := range calico.Blocks {
			reaches(t, l, n.Name, block.String(), sameFamily(block, calico.Addr, calico.Addr6))
		}
		reaches(t, l, n.Name, outer, tor.Addr)
		reaches(t, l, n.Name, outer6, tor.Addr6)
	}
	var blocks []string
	for _, n := range nodes {
		for _, family := range []string{"-4", "-6"} {
			for _, b := range ownBlocks(t, l, n.Name, family) {
				if !slices.ContainsFunc(blocks, func(have string) bool { return strings.HasPrefix(have, b+" ") }) {
					blocks = append(blocks, fmt.Sprintf("%s via %v", b, sameFamily(netip.MustParsePrefix(b), n.Addr, n.Addr6)))
				}
			}
		}
	}
	birdLearns(t, l, "calico-1", "Mesh_", blocks...) // what is behind the switch is in no pool
	allWell(t, l)

	streams := map[string]*stream{}
	for i, there := range calico.Pods {
		from := pod(t, l, "a1")
		here := end{sameFamily(netip.PrefixFrom(there, there.BitLen()), from.Addr, from.Addr6), podEnd(t, l, "a1").in}
		streams[fmt.Sprint("to BIRD's node ", i)] = streamBetween(t, here, routerEnd(l, "calico-1", there))
		streams[fmt.Sprint("from BIRD's node ", i)] = streamBetween(t, routerEnd(l, "calico-1", there), here)
	}
	if len(streams) != 4 {
		t.Fatalf("BIRD's node has pods %v", calico.Pods)
	}
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	establishes(t, l, "node-1", all(global, tor.Addr.String(), tor.Addr6.String()))
	noneLost(t, "the agent was killed", streams)
}

// sameFamily is the address of a prefix's family.
func sameFamily(p netip.Prefix, four, six netip.Addr) netip.Addr {
	if p.Addr().Is6() {
		return six
	}
	return four
}

// establishes waits until all of these sessions are up, by the type that they have. There may be others.
func establishes(t *testing.T, l *lab.Lab, node string, want map[string]string) {
	t.Helper()
	converges(t, func() error {
		got := map[string]string{}
		for addr, p := range sessionsOf(t, l, node) {
			if _, asked := want[addr]; asked && p.Established() {
				got[addr] = p.Type
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			return fmt.Errorf("sessions of %s (-want +got):\n%s", node, d)
		}
		return nil
	})
}

// reaches waits until the kernel of a node has a route of ours to the prefix through the gateway.
func reaches(t *testing.T, l *lab.Lab, node, prefix string, gateway netip.Addr) {
	t.Helper()
	family := "-4"
	if gateway.Is6() {
		family = "-6"
	}
	converges(t, func() error {
		return has("via " + gateway.String() + " dev")(run(t, l, node, "ip", family, "route", "show", prefix, "proto", "80"))
	})
}
