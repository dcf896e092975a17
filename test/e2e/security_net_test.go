package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/bgptest"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// leadsAstray has a peer of node-1 announce what is the host's own, its pods', or nobody's. What a router may well announce gets into the kernel, and takes
// nothing of these away. (Whoever is made a peer may lead to himself all that lies beyond: where he must not, a BGPFilter says so.)
func leadsAstray(t *testing.T, l *lab.Lab) {
	own, hop := pod(t, l, "a1").Addr, netip.MustParseAddr(torPeer)
	ways := func() (out []string) {
		for _, to := range []string{own.String(), "172.30.1.1", "172.30.0.1", "172.30.1.2", pod(t, l, "a2").Addr.String()} {
			way, _, _ := strings.Cut(run(t, l, "node-1", "ip", "route", "get", to), " uid")
			out = append(out, way)
		}
		return append(out, run(t, l, "node-1", "sh", "-c", "ip route show default | grep -v metric"))
	}
	before := ways()
	far := standIn(t, l)
	lies := []netip.Prefix{netip.PrefixFrom(own, 32)}
	for _, text := range []string{"169.254.1.1/32", "169.254.0.0/16", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "0.0.0.0/0", "172.30.1.1/32", "192.168.0.0/16"} {
		lies = append(lies, netip.MustParsePrefix(text))
	}
	lies = append(lies, netip.MustParsePrefix(outer)) // the last is no lie, and says that the others were read
	if err := far.Send(bgptest.Update, bgptest.Routes(65000, hop, lies...)); err != nil {
		t.Fatal(err)
	}
	kernelLearns(t, l, "node-1", outer, torPeer)
	if d := cmp.Diff(before, ways()); d != "" {
		t.Errorf("packets go other ways (-before +after):\n%s", d)
	}
	routes := run(t, l, "node-1", "ip", "route", "show", "proto", "80")
	for _, never := range []string{"169.254.", "127.0.0.0", "224.0.0.0", "255.255."} {
		if strings.Contains(routes, never) {
			t.Errorf("there is a route to %s:\n%s", never, routes)
		}
	}
	addPod(t, l, "led", "node-1")
	if err := errors.Join(l.RemovePod(t.Context(), "led"), far.Send(bgptest.Unknown, nil)); err != nil {
		t.Fatal(err)
	}
	unreachableNow(t, l, "node-1", outer) // the agent has ended the session: it waits for no restart
	if err := errors.Join(far.Close(), l.StartRouter(t.Context(), "tor-1")); err != nil {
		t.Fatal(err)
	}
	kernelLearns(t, l, "node-1", outer, torPeer)
}

// frames sends link-layer frames from a pod.
type frames struct {
	t   *testing.T
	fd  int
	to  unix.SockaddrLinklayer
	mac net.HardwareAddr
}

func framesFrom(t *testing.T, l *lab.Lab, pod string) *frames {
	t.Helper()
	f := &frames{t: t}
	err := l.WithinPod(pod, func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		f.mac, f.to = dev.HardwareAddr, unix.SockaddrLinklayer{Ifindex: dev.Index, Halen: 6}
		f.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(f.fd) })
	return f
}

func (f *frames) send(to net.HardwareAddr, kind uint16, body []byte) {
	f.t.Helper()
	frame := binary.BigEndian.AppendUint16(append(slices.Clone(to), f.mac...), kind)
	if err := unix.Sendto(f.fd, append(frame, body...), 0, &f.to); err != nil {
		f.t.Fatal(err)
	}
}

// arp says to everybody, as a request and as an answer, that the pod has an address (RFC 826).
func (f *frames) arp(claim netip.Addr) {
	f.t.Helper()
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for _, op := range []byte{1, 2} {
		body := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, f.mac...)
		body = append(append(append(body, claim.AsSlice()...), everybody...), claim.AsSlice()...)
		f.send(everybody, unix.ETH_P_ARP, body)
	}
}

// icmp6 sends a message to all nodes (RFC 4861), with the hop limit that says that it is of this link.
func (f *frames) icmp6(from netip.Addr, kind byte, body []byte) {
	f.t.Helper()
	all := netip.MustParseAddr("ff02::1")
	text := append([]byte{kind, 0, 0, 0}, body...)
	ends := append(from.AsSlice(), all.AsSlice()...)
	binary.BigEndian.PutUint16(text[2:], checksum(append(append(ends[:len(ends):len(ends)], 0, 0, 0, byte(len(text)), 0, 0, 0, unix.IPPROTO_ICMPV6), text...)))
	head := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(text)))
	head = append(append(head, unix.IPPROTO_ICMPV6, 255), ends...)
	f.send(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, unix.ETH_P_IPV6, append(head, text...))
}

// checksum is the Internet's (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// advertise says that an address is the pod's, whoever else said so before: an unsolicited neighbour advertisement with the override flag.
func (f *frames) advertise(claim netip.Addr) {
	f.t.Helper()
	body := append([]byte{0x20, 0, 0, 0}, claim.AsSlice()...)
	f.icmp6(claim, 136, append(append(body, 2, 1), f.mac...))
}

// route says that the pod is everybody's router, with a prefix to make addresses of.
func (f *frames) route(from netip.Addr, prefix netip.Addr) {
	f.t.Helper()
	body := []byte{64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	body = append(body, 3, 4, 64, 0xc0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0)
	f.icmp6(from, 134, append(body, prefix.AsSlice()...))
}

// TestPodThatLiesOnItsLinkHarmsNobodyElse has a pod claim other pods' addresses, its node's and the gateway's, by ARP and by neighbour discovery, make itself a
// router, and take another MAC.
func TestPodThatLiesOnItsLinkHarmsNobodyElse(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	allWell(t, l)
	victim, far, node := pod(t, l, "b1"), pod(t, l, "a2"), nodesOf(t, l)[0]
	chats := []*chat{startChat(t, l, "b1", "a2", far.Addr, 5*time.Millisecond), startChat(t, l, "b1", "a2", far.Addr6, 5*time.Millisecond)}
	for _, c := range chats {
		c.mark()
	}
	before := kernelState(t, l, "node-1")
	f := framesFrom(t, l, "a1")
	link := netip.MustParseAddr("fe80::bad:1")
	for range 20 {
		for _, claim := range []netip.Addr{victim.Addr, far.Addr, node.Addr, netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("172.30.1.254")} {
			f.arp(claim)
		}
		for _, claim := range []netip.Addr{victim.Addr6, far.Addr6, node.Addr6, netip.MustParseAddr("fe80::ecee:eeff:feee:eeee"), netip.MustParseAddr("fd00:172:30:1::fe")} {
			f.advertise(claim)
		}
		f.route(link, netip.MustParseAddr("2001:db8:bad::"))
	}
	run(t, l, "node-1", "ip", "netns", "exec", "a1", "ip", "link", "set", "eth0", "address", "02:00:00:00:0b:ad")
	nettest.Eventually(t, func() error { // what it sends as somebody else is no use to it
		if err := getsThrough(l, "node-1", pod(t, l, "a1").Addr); err == nil {
			return errors.New("the host follows the pod to another MAC")
		}
		return nil
	})
	for _, c := range chats {
		if cost := c.goesOn(t); cost.lost > 0 {
			t.Errorf("%s: %d datagrams were lost", c.name, cost.lost)
		}
	}
	if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
		t.Errorf("the host's kernel differs (-before +after):\n%s", d)
	}
	if text := run(t, l, "node-1", "sh", "-c", "ip -6 route; ip -6 addr; ip neigh"); strings.Contains(text, "bad") {
		t.Errorf("the host believes the pod:\n%s", text)
	}
	for _, from := range []string{"node-1", "node-2"} {
		for _, to := range []netip.Addr{victim.Addr, victim.Addr6} {
			if err := getsThrough(l, from, to); err != nil {
				t.Errorf("%s to %v: %v", from, to, err)
			}
		}
	}
}

// TestVMWhatBefallsTheWholeMachineHarmsNoPod needs a machine of its own, for a pod that fills the table of connections, whose limit is the machine's, and for a
// clock that jumps. (A namespace for time has no wall clock, and programs ask for theirs past every library.)
func TestVMWhatBefallsTheWholeMachineHarmsNoPod(t *testing.T) {
	nettest.Need(t, "vm")
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	tracksAtMost(t, mostTracked)
	addPod(t, l, "late", "node-1") // the agent has done a round then, and read that
	books, agents := openBooks(t, l), nodesOf(t, l)
	c := startChat(t, l, "b1", "a2", pod(t, l, "a2").Addr, 20*time.Millisecond)
	c.mark()
	t.Run("a pod begins more connections than the table holds", func(t *testing.T) { floodIsHeldBack(t, l) })
	if cost := c.goesOn(t); cost.lost > 0 {
		t.Errorf("the connection that there was has lost %d datagrams", cost.lost)
	}
	c.mark()
	t.Run("a pod that may fill the table does", func(t *testing.T) { tableIsFull(t, l) })
	t.Logf("the connection that there was goes on, and has lost %d datagrams meanwhile", c.goesOn(t).lost)
	c.mark()
	t.Run("the clock jumps", func(t *testing.T) { clockJumps(t, l) })
	if cost := c.goesOn(t); cost.lost > 0 {
		t.Errorf("%d datagrams were lost", cost.lost)
	}
	books.balance(t, l, nil)
	for i, n := range nodesOf(t, l) {
		if n.Agent != agents[i].Agent || isDead(t, l, n.Name) {
			t.Errorf("the agent of %s was started anew, or is dead", n.Name)
		}
	}
}

// mostTracked is how many connections the machine tracks in a namespace.
const mostTracked = 1000

// tracksAtMost has the kernel track so many connections until the test ends.
func tracksAtMost(t *testing.T, most int) {
	t.Helper()
	const limit = "/proc/sys/net/netfilter/nf_conntrack_max"
	was, err := os.ReadFile(limit)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(limit, fmt.Append(nil, most), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(limit, was, 0); err != nil {
			t.Error(err)
		}
	})
}

// trackedBy is how many connections a node tracks.
func trackedBy(t *testing.T, l *lab.Lab, node string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(run(t, l, node, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// floodIsHeldBack has the pod's share hold: the table is never full, so nobody's packets are dropped for it and nobody's connections either.
func floodIsHeldBack(t *testing.T, l *lab.Lab) {
	before := droppedForRoom(t, l, "node-1")
	floodFrom(t, l, "a1", 3*mostTracked)
	if n := trackedBy(t, l, "node-1"); n < mostTracked/2 || n > mostTracked*19/20 {
		t.Errorf("node-1 tracks %d connections of %d at most, want three quarters and what others have", n, mostTracked)
	}
	far, near := pod(t, l, "a2").Addr, pod(t, l, "b1").Addr
	nettest.Eventually(t, func() error { return getsThrough(l, "node-1", far) })
	nettest.Eventually(t, func() error { return getsThrough(l, "node-2", near) })
	if n := droppedForRoom(t, l, "node-1") - before; n > 0 {
		t.Errorf("node-1 has dropped %d packets or connections for want of room", n)
	}
}

// droppedForRoom counts packets that a node has dropped because its table was full, and connections that it has dropped from it for others.
func droppedForRoom(t *testing.T, l *lab.Lab, node string) (n int64) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(run(t, l, node, "cat", "/proc/net/stat/nf_conntrack")), "\n")
	for i, column := range strings.Fields(lines[0]) {
		if column != "drop" && column != "early_drop" {
			continue
		}
		for _, cpu := range lines[1:] {
			v, err := strconv.ParseInt(strings.Fields(cpu)[i], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// tableIsFull has new connections of others get through all the same: the kernel drops what was never answered in favour of them.
func tableIsFull(t *testing.T, l *lab.Lab) {
	amend(t, l, api.ResourcesRoot+"workloadendpoints/default/node--1-k8s-a1-eth0", "WorkloadEndpoint",
		map[string]any{"qosControls": map[string]any{"egressMaxConnections": 1_000_000}})
	nettest.Eventually(t, func() error {
		floodFrom(t, l, "a1", 3*mostTracked)
		if droppedForRoom(t, l, "node-1") == 0 {
			return fmt.Errorf("node-1 tracks %d connections: the table was never full", trackedBy(t, l, "node-1"))
		}
		return nil
	})
	far, near := pod(t, l, "a2").Addr, pod(t, l, "b1").Addr
	for range 3 {
		nettest.Eventually(t, func() error { return getsThrough(l, "node-1", far) })
		nettest.Eventually(t, func() error { return getsThrough(l, "node-2", near) })
	}
}

// floodFrom sends that many datagrams from a pod, each of which is a connection of its own to the kernel.
func floodFrom(t *testing.T, l *lab.Lab, name string, many int) {
	t.Helper()
	var out net.PacketConn
	if err := l.WithinPod(name, func() (err error) { out, err = net.ListenPacket("udp4", ":0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	for i := range many {
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 30, 254, byte(1 + i>>14)}), uint16(20_000+i&0x3fff)))
		_, _ = out.WriteTo([]byte("x"), to) // what cannot be sent is no connection
	}
}

// clockJumps by hours and days, forwards and backwards, between the ADD of a pod and its DEL.
func clockJumps(t *testing.T, l *lab.Lab) {
	var off time.Duration
	jump := func(by time.Duration) {
		t.Helper()
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
		now = unix.NsecToTimespec(now.Nano() + int64(by))
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
		off += by
	}
	defer func() { jump(-off) }()
	for i, by := range []time.Duration{5 * time.Hour, -29 * time.Hour, 400 * 24 * time.Hour} {
		stays := fmt.Sprintf("stays-%d", i)
		addPod(t, l, stays, "node-1")
		jump(by)
		began := time.Now()
		serves(t, l)
		if err := l.RemovePod(t.Context(), stays); err != nil {
			t.Error(err)
		}
		t.Logf("the clock jumped by %v: pods had come and gone %v later", by, time.Since(began).Round(time.Millisecond))
	}
}
