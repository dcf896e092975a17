package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// packet is IPv4's (RFC 791), by hand: what no socket would send.
type packet struct {
	from, to netip.Addr
	proto    byte
	options  []byte // of a multiple of four bytes
	id       uint16
	offset   int // of the body in what it is a fragment of, in bytes
	more     bool
	body     []byte
}

func (p packet) bytes() []byte {
	const lives = 64
	head := []byte{0x40 | byte(5+len(p.options)/4), 0}
	head = binary.BigEndian.AppendUint16(head, uint16(20+len(p.options)+len(p.body)))
	head = binary.BigEndian.AppendUint16(head, p.id)
	piece := uint16(p.offset / 8)
	if p.more {
		piece |= 0x2000
	}
	head = append(binary.BigEndian.AppendUint16(head, piece), lives, p.proto, 0, 0)
	head = append(append(append(head, p.from.AsSlice()...), p.to.AsSlice()...), p.options...)
	binary.BigEndian.PutUint16(head[10:], checksum(head))
	return append(head, p.body...)
}

// datagram is UDP's (RFC 768), without the checksum that it need not have.
func datagram(port uint16, text string) []byte {
	const from = 30303
	out := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), port)
	out = binary.BigEndian.AppendUint16(out, uint16(8+len(text)))
	return append(append(out, 0, 0), text...)
}

// hears is a socket of one port somewhere, and how often each text came to it.
type hears struct {
	t    *testing.T
	conn net.PacketConn
	said map[string]int
}

func listenUDP(t *testing.T, within func(func() error) error, open func() (net.PacketConn, error)) *hears {
	t.Helper()
	h := &hears{t: t, said: map[string]int{}}
	if err := within(func() (err error) { h.conn, err = open(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.conn.Close() })
	return h
}

// heard waits a moment for what is on its way.
func (h *hears) heard() map[string]int {
	h.t.Helper()
	buf := make([]byte, 2048)
	for {
		if err := h.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			h.t.Fatal(err)
		}
		n, _, err := h.conn.ReadFrom(buf)
		if err != nil {
			return h.said
		}
		h.said[string(buf[:n])]++
	}
}

// crafty is a pod that sends what it likes, on a node that lets pods talk to it and has no IPv6 of its own.
type crafty struct {
	*testing.T
	lab       *lab.Lab
	frames    *frames
	own       netip.Addr
	neighbour netip.Addr // the pod b1
	node      lab.Node
}

// TestPodsGetNowhereByPacketsThatNoSocketSends is with the setting that is in our manifests, by which pods may talk to their host.
func TestPodsGetNowhereByPacketsThatNoSocketSends(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	setFelix(t, l, `"defaultEndpointToHostAction": "Accept"`)
	allWell(t, l)
	c := &crafty{T: t, lab: l, frames: framesFrom(t, l, "a1"), own: pod(t, l, "a1").Addr, neighbour: pod(t, l, "b1").Addr, node: nodesOf(t, l)[0]}
	for _, step := range []struct {
		name string
		do   func(*crafty)
	}{
		{"router advertisements and redirects", (*crafty).playsTheRouter},
		{"to the host's loopback", (*crafty).entersLoopback},
		{"source routes", (*crafty).routesBySource},
		{"to a group", (*crafty).speaksToGroups},
		{"a tunnel's packets by a service", (*crafty).tunnelsByService},
		{"fragments", (*crafty).breaksToPieces},
	} {
		t.Run(step.name, func(t *testing.T) {
			b := *c
			b.T, b.frames = t, &frames{t: t, fd: c.frames.fd, to: c.frames.to, mac: c.frames.mac}
			step.do(&b)
		})
	}
}

func (c *crafty) sends(p packet) {
	c.Helper()
	to, err := net.ParseMAC(hostside.MAC)
	if err != nil {
		c.Fatal(err)
	}
	if p.proto == 0 {
		p.proto = unix.IPPROTO_UDP
	}
	p.from = c.own
	c.frames.send(to, unix.ETH_P_IP, p.bytes())
}

// tries sends what is honest and what is not until enough of the first has arrived, and then looks for the second.
func (c *crafty) tries(open *hears, honest string, closed *hears, not string, send func()) {
	c.Helper()
	nettest.Eventually(c.T, func() error {
		send()
		if n := open.heard()[honest]; n < 5 {
			return fmt.Errorf("of what may arrive %d do", n)
		}
		return nil
	})
	if n := closed.heard()[not]; n > 0 {
		c.Errorf("%d arrive", n)
	}
}

func (c *crafty) inNode(f func() error) error { return c.lab.Within("node-1", f) }

func (c *crafty) inNeighbour(f func() error) error { return c.lab.WithinPod("b1", f) }

// at opens a socket of an address's port.
func at(addr netip.Addr, port uint16) func() (net.PacketConn, error) {
	return func() (net.PacketConn, error) {
		return net.ListenPacket("udp4", netip.AddrPortFrom(addr, port).String())
	}
}

// playsTheRouter where IPv6 is on and nobody gave it to pods: the host is no router then, and listens to routers.
func (c *crafty) playsTheRouter() {
	look := func() string { return run(c.T, c.lab, "node-1", "sh", "-c", "ip -6 route; ip -6 addr; ip -6 neigh") }
	before, dropped := look(), counted(c.T, c.lab, "r-to-host")
	link := netip.MustParseAddr("fe80::bad:1")
	nettest.Eventually(c.T, func() error {
		c.frames.route(link, netip.MustParseAddr("2001:db8:bad::"))
		const redirect = 137 // to the pod, for 2001:db8::1
		c.frames.icmp6(link, redirect, slices.Concat([]byte{0, 0, 0, 0}, link.AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice(), []byte{2, 1}, c.frames.mac))
		if now := look(); strings.Contains(now, "bad") {
			c.Fatalf("the host believes the pod (-before +now):\n%s", cmp.Diff(before, now))
		}
		return atLeast(counted(c.T, c.lab, "r-to-host")-dropped, 10)
	})
}

// entersLoopback, where services of the host listen that are for nobody else. Devices of pods take such packets, which others' rules may lead there.
func (c *crafty) entersLoopback() {
	const port = 9099
	loopback := netip.MustParseAddr("127.0.0.1")
	inside, outside := listenUDP(c.T, c.inNode, at(loopback, port)), listenUDP(c.T, c.inNode, at(c.node.Addr, port))
	c.tries(outside, "on", inside, "in", func() {
		c.sends(packet{to: loopback, body: datagram(port, "in")})
		c.sends(packet{to: c.node.Addr, body: datagram(port, "on")})
	})
}

// routesBySource has the host pass on what comes to it, by the option of a loose route.
func (c *crafty) routesBySource() {
	const port, loose = 9098, 131
	in := listenUDP(c.T, c.inNeighbour, at(c.neighbour, port))
	c.tries(in, "straight", in, "round", func() {
		c.sends(packet{to: c.node.Addr, options: append(append([]byte{loose, 7, 4}, c.neighbour.AsSlice()...), 0), body: datagram(port, "round")})
		c.sends(packet{to: c.neighbour, body: datagram(port, "straight")})
	})
}

// speaksToGroups: what other pods listen to comes from nobody, for the host passes nothing on.
func (c *crafty) speaksToGroups() {
	const port = 9097
	group := netip.MustParseAddr("239.1.2.3")
	join := func(dev string) func() (net.PacketConn, error) {
		return func() (net.PacketConn, error) {
			at, err := net.InterfaceByName(dev)
			if err != nil {
				return nil, err
			}
			return net.ListenMulticastUDP("udp4", at, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, port)))
		}
	}
	host, other := listenUDP(c.T, c.inNode, join(hostside.InterfaceName("default", "a1", ""))), listenUDP(c.T, c.inNeighbour, join("eth0"))
	c.tries(host, "all", other, "all", func() {
		c.frames.send(net.HardwareAddr{1, 0, 0x5e, 1, 2, 3}, unix.ETH_P_IP, packet{from: c.own, to: group, proto: unix.IPPROTO_UDP, body: datagram(port, "all")}.bytes())
	})
}

// tunnelsByService has the host itself make a packet of VXLAN of what the pod sends: a service leads to whatever its author says.
func (c *crafty) tunnelsByService() {
	const port = 9096
	service := netip.MustParseAddr("10.96.0.96")
	run(c.T, c.lab, "node-1", "nft", fmt.Sprintf(`add table ip services; add chain ip services pre { type nat hook prerouting priority dstnat; };
		add rule ip services pre ip daddr %v udp dport %d dnat to %v:4789`, service, port, c.neighbour))
	defer run(c.T, c.lab, "node-1", "nft", "delete table ip services")
	in, before := listenUDP(c.T, c.inNeighbour, at(c.neighbour, 4789)), counted(c.T, c.lab, "r-tunnel")
	nettest.Eventually(c.T, func() error {
		c.sends(packet{to: service, body: datagram(port, "inside")})
		if n := in.heard()["inside"]; n > 0 {
			c.Fatalf("%d arrive", n)
		}
		return atLeast(counted(c.T, c.lab, "r-tunnel")-before, 5)
	})
}

// breaksToPieces has policy see ports that only the first of many fragments holds, that come last, or twice.
func (c *crafty) breaksToPieces() {
	const open, closed = 80, 81
	policy(c.T, c.lab, "b1", `"selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [80]}}]`)
	let, kept := listenUDP(c.T, c.inNeighbour, at(c.neighbour, open)), listenUDP(c.T, c.inNeighbour, at(c.neighbour, closed))
	round := 0
	nettest.Eventually(c.T, func() error { // until policy is in force
		round++
		text := fmt.Sprint("round ", round)
		c.sends(packet{to: c.neighbour, body: datagram(closed, text)})
		c.sends(packet{to: c.neighbour, body: datagram(open, text)})
		if let.heard()[text] == 0 || kept.heard()[text] > 0 {
			return errors.New("policy is not in force")
		}
		return nil
	})
	clear(kept.said)
	id := uint16(1)
	pieces := func(port uint16, text string) (out []packet) {
		body := datagram(port, text)
		for at := 0; at < len(body); at += 8 {
			end := min(at+8, len(body))
			out = append(out, packet{to: c.neighbour, id: id, offset: at, more: end < len(body), body: body[at:end]})
		}
		id++
		return out
	}
	nettest.Eventually(c.T, func() error {
		for _, port := range []uint16{closed, open} {
			forth, back := pieces(port, "first to last...."), pieces(port, "last to first....")
			slices.Reverse(back)
			over := pieces(open, "one over another.")
			over = slices.Insert(over, 1, packet{to: c.neighbour, id: over[0].id, more: true, body: datagram(port, "one over another.")[:8]})
			for _, p := range slices.Concat(forth, back, over) {
				c.sends(p)
			}
		}
		if got := let.heard(); got["first to last...."] < 5 || got["last to first...."] < 5 {
			return fmt.Errorf("at the open port arrived %v", got)
		}
		return nil
	})
	if got := kept.heard(); len(got) > 0 {
		c.Errorf("at the closed port arrived %v", got)
	}
}
