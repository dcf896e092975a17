package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// blockBeyond is the route to the pods of the other of two nodes.
func blockBeyond(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	for line := range strings.Lines(run(t, l, node, "ip", "route", "show", "dev", kernel.VXLANDevice)) {
		return strings.Fields(line)[0]
	}
	t.Fatalf("%s has no route through %s", node, kernel.VXLANDevice)
	return ""
}

// TestDriftIsRepairedByEventsAndTold has others take away and change what is ours, on a node that looks by itself but once in 90 seconds: events
// tell it. What was found and what was done about it is logged, and what is others' stays.
func TestDriftIsRepairedByEventsAndTold(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	allWell(t, l)
	run(t, l, "node-1", "sh", "-ec", `iptables -A FORWARD -s 203.0.113.1 -j DROP; ip route add 198.51.100.0/24 via 172.30.1.2 proto bird
		ip link add vx99 type vxlan id 99 dstport 8472; bridge fdb add 02:00:00:00:00:99 dev vx99 dst 172.30.1.99; ipset create others hash:net`)
	block := blockBeyond(t, l, "node-1")
	mac := strings.Fields(run(t, l, "node-1", "bridge", "fdb", "show", "dev", kernel.VXLANDevice))[0]
	tunnel := strings.Fields(run(t, l, "node-1", "ip", "-o", "-4", "addr", "show", kernel.VXLANDevice))[3]
	repairs(t, l, []damage{
		{"ip route del " + block, block, "gone"},
		{"bridge fdb flush dev " + kernel.VXLANDevice, `"` + mac + " dev " + kernel.VXLANDevice + `"`, "gone"},
		{"ip addr flush dev " + kernel.VXLANDevice + " || :", // it tries ten times, and fails if the agent is quicker each time
			`"` + tunnel + " dev " + kernel.VXLANDevice + `"`, "gone"},
		{"iptables -t nat -I cali-nat-outgoing -j ACCEPT", `"cali-nat-outgoing of table nat"`, "1 rule too many"},
		{"iptables -F cali-INPUT", `"cali-INPUT of table filter"`, ""},
		{"iptables -t nat -F && iptables -t nat -X", `"POSTROUTING of table nat"`, "gone"},
		{"ip link set " + kernel.VXLANDevice + " mtu 1300", kernel.VXLANDevice, "changed to mtu 1300"},
	})
	for command, want := range map[string]string{
		"iptables -S FORWARD": "-s 203.0.113.1/32 -j DROP", "ip route": "198.51.100.0/24 via 172.30.1.2", "bridge fdb show dev vx99": "02:00:00:00:00:99 dst 172.30.1.99",
		"ipset list -n": "others",
	} {
		eventually(t, l, has(want), strings.Fields(command)...)
	}
	run(t, l, "node-1", "iptables", "-D", "FORWARD", "-s", "203.0.113.1", "-j", "DROP") // the next damage takes it along, and it is not ours to bring back
	repairs(t, l, []damage{{"nft flush ruleset", `"FORWARD of table filter"`, "gone"}})
	allWell(t, l)
}

// TestMTUFollowsTheDeviceThatLeadsToThePeers changes the MTU of the network between the nodes: tunnels and new pods go by it. A
// device that leads elsewhere does not count, slow as it may be.
func TestMTUFollowsTheDeviceThatLeadsToThePeers(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	allWell(t, l)
	run(t, l, "node-1", "sh", "-ec", "ip link add eth9 mtu 1400 type veth peer name peer9; ip addr add 192.0.2.1/24 dev eth9; ip link set eth9 up; ip link set peer9 up")
	for _, c := range []struct{ host, v4, v6 int }{{9000, 8950, 8930}, {1500, 1450, 1430}} {
		for _, node := range []string{"node-1", "node-2"} {
			run(t, l, "fabric", "ip", "link", "set", node, "mtu", fmt.Sprint(c.host))
			run(t, l, node, "ip", "link", "set", "eth0", "mtu", fmt.Sprint(c.host))
		}
		eventually(t, l, has(fmt.Sprintf(" mtu %d ", c.v4)), "ip", "link", "show", kernel.VXLANDevice)
		eventually(t, l, has(fmt.Sprintf(" mtu %d ", c.v6)), "ip", "link", "show", kernel.VXLAN6Device)
		eventually(t, l, has(fmt.Sprint(c.v6)), "cat", "/var/lib/calico/mtu") // which fits into both
		for _, name := range []string{"a1", "b1", "a2", "b2"} {
			recreate(t, l, name)
		}
		var out strings.Builder
		if err := l.PodExec(t.Context(), "a1", lab.Command{Args: []string{"ip", "link", "show", "eth0"}, Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		if err := has(fmt.Sprintf(" mtu %d ", c.v6))(out.String()); err != nil {
			t.Errorf("%v: %s", err, out.String())
		}
		allWell(t, l) // with datagrams of that size
	}
}

// TestDeviceThatIsRenamedUnderTheAgentCarriesOn renames the device to the other nodes, as udev does late at boot: down for a moment, or while it is
// up. The kernel is soon as it was but for the name.
func TestDeviceThatIsRenamedUnderTheAgentCarriesOn(t *testing.T) {
	for _, mode := range []lab.Mode{lab.Direct, lab.VXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, mode })
			allWell(t, l)
			before := kernelState(t, l, "node-1")
			c := startChat(t, l, "a1", "a2", pod(t, l, "a2").Addr, 10*time.Millisecond)
			rename := func(from, to string) {
				t.Helper()
				run(t, l, "node-1", "sh", "-ec", fmt.Sprintf("ip link set %[1]s down; ip link set %[1]s name %[2]s; ip link set %[2]s up; ip route add default via 172.30.1.254", from, to))
			}
			for _, way := range [][2]string{{"eth0", "uplink"}, {"uplink", "eth0"}} {
				rename(way[0], way[1])
				nettest.Eventually(t, func() error {
					now, err := tryKernelState(t, l, "node-1")
					if d := cmp.Diff(before, strings.ReplaceAll(now, way[1], "eth0")); err == nil && d != "" {
						err = fmt.Errorf("%s for %s: the kernel differs (-before +after): %s", way[1], way[0], d)
					}
					return err
				})
				t.Logf("%s for %s cost %+v", way[1], way[0], c.goesOn(t))
				c.mark()
				answers(t, l, "node-2", pod(t, l, "a1")) // what a lab's check asks of nodes goes by the name
			}
			allWell(t, l)
			nettest.Eventually(t, func() error {
				if text := agentLog(t, l, "node-1"); strings.LastIndex(text, "round failed") > strings.LastIndex(text, "rounds succeed again") {
					return errors.New("rounds fail still")
				}
				return nil
			})
		})
	}
}
