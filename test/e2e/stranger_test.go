package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

func TestVXLANPacketsAreTakenFromNodesAlone(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	node, pod := nodesOf(t, l)[0], pod(t, l, "a1")
	vtep := strings.Fields(run(t, l, "node-1", "ip", "-o", "-br", "link", "show", kernel.VXLANDevice))[2]
	for _, cmd := range []string{
		"ip link add tun type vxlan id 4096 dstport 4789 dev eth0 nolearning",
		"bridge fdb append " + vtep + " dev tun dst " + node.Addr.String(),
		"ip link set tun mtu 1400 up",
		"ip addr add 10.99.0.1/32 dev tun",
		"ip route add " + pod.Addr.String() + "/32 dev tun",
		"ip neigh add " + pod.Addr.String() + " lladdr " + vtep + " dev tun",
	} {
		run(t, l, "outside", strings.Fields(cmd)...)
	}
	onlyFromNodes(t, l)
}

func TestVMIPIPPacketsAreTakenFromNodesAlone(t *testing.T) {
	nettest.Need(t, "ipip")
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.IPIP })
	node, pod := nodesOf(t, l)[0], pod(t, l, "a1")
	for _, cmd := range []string{
		"ip link add tun type ipip remote " + node.Addr.String(),
		"ip link set tun mtu 1400 up",
		"ip addr add 10.99.0.1/32 dev tun",
		"ip route add " + pod.Addr.String() + "/32 dev tun",
	} {
		run(t, l, "outside", strings.Fields(cmd)...)
	}
	onlyFromNodes(t, l)
}

func nodesOf(t *testing.T, l *lab.Lab) []lab.Node {
	t.Helper()
	nodes, err := l.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

// onlyFromNodes sends from the outside host, which has a tunnel to node-1, to pod a1: the packets are dropped until
// the outside host is a node.
func onlyFromNodes(t *testing.T, l *lab.Lab) {
	t.Helper()
	target := net.JoinHostPort(pod(t, l, "a1").Addr.String(), "5353")
	var in net.PacketConn
	var out net.Conn
	if err := l.WithinPod("a1", func() (err error) { in, err = net.ListenPacket("udp", target); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	if err := l.Within("outside", func() (err error) { out, err = net.Dial("udp", target); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	nettest.Eventually(t, func() error {
		if _, err := out.Write([]byte("stranger")); err != nil {
			return err
		}
		return atLeast(counted(t, l, "r-peer"), 5)
	})
	own := strings.Fields(run(t, l, "outside", "ip", "-o", "-4", "addr", "show", "dev", "eth0"))[3]
	put(t, l, api.ResourcesRoot+"nodes/outside", `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"outside"},"spec":{"bgp":{"ipv4Address":"`+own+`"}}}`)
	buf := make([]byte, 64)
	nettest.Eventually(t, func() error {
		if _, err := out.Write([]byte("node")); err != nil {
			return err
		}
		if err := in.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		n, from, err := in.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("what a node sends does not arrive: %w", err)
		}
		if got := string(buf[:n]); got != "node" {
			t.Fatalf("%q from %v has got through", got, from)
		}
		return nil
	})
}

func atLeast(n, want int) error {
	if n < want {
		return fmt.Errorf("%d packets were dropped, want %d", n, want)
	}
	return nil
}

// counted is how many packets a counter of node-1's policy has seen.
func counted(t *testing.T, l *lab.Lab, counter string) int {
	t.Helper()
	_, text, found := strings.Cut(run(t, l, "node-1", "nft", "list", "counter", "inet", "muslin", counter), "packets ")
	if !found {
		t.Fatalf("there is no counter %s", counter)
	}
	n, err := strconv.Atoi(strings.Fields(text)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
