package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// podsLimit is how many connections pods may begin where nothing else is said.
const podsLimit = 300

// TestLimitsOfPodsHoldAsTheyChange has each limit come, change and go while the pod runs, by both families. How exactly each is kept internal/nft tests.
func TestLimitsOfPodsHoldAsTheyChange(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true
		o.AgentEnv = []string{fmt.Sprintf("MUSLIN_POD_MAX_CONNECTIONS=%d", podsLimit)}
	})
	addPod(t, l, "web", "node-1")
	addPod(t, l, "far", "node-2")
	c := startChat(t, l, "b1", "a2", pod(t, l, "a2").Addr, 20*time.Millisecond)
	c.mark()
	t.Run("connections", func(t *testing.T) { connectionsAreLimited(t, l) })
	t.Run("packets", func(t *testing.T) { packetsAreLimited(t, l) })
	t.Run("what leaves the cluster is marked", func(t *testing.T) { leavingIsMarked(t, l) })
	t.Run("the limit of the node", func(t *testing.T) { nodesLimitHolds(t, l) })
	if cost := c.goesOn(t); cost.lost > 0 {
		t.Errorf("another pod has lost %d datagrams", cost.lost)
	}
}

// limitTo sets the limits of the pod web.
func limitTo(t *testing.T, l *lab.Lab, limits map[string]any) {
	t.Helper()
	amend(t, l, api.ResourcesRoot+"workloadendpoints/default/node--1-k8s-web-eth0", "WorkloadEndpoint", map[string]any{"qosControls": limits})
}

// hold opens connections until one is refused or there are so many.
func hold(l *lab.Lab, from string, to netip.Addr, most int) (open []net.Conn, err error) {
	err = l.WithinPod(from, func() error {
		for range most {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 80).String(), nettest.Patience(10*time.Second))
			if err != nil {
				return err
			}
			open = append(open, c)
		}
		return nil
	})
	return open, err
}

func closeAll(open []net.Conn) {
	for _, c := range open {
		_ = c.Close()
	}
}

func connectionsAreLimited(t *testing.T, l *lab.Lab) {
	for _, name := range []string{"web", "far"} {
		t.Cleanup(heldOpen(t, l, name))
	}
	expect := func(from string, to netip.Addr, want int) {
		t.Helper()
		nettest.Eventually(t, func() error {
			open, err := hold(l, from, to, want+1)
			defer closeAll(open)
			if len(open) != want || !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("%s had %d connections to %v, want %d and a refusal: %w", from, len(open), to, want, errors.Join(err, errors.New("not so")))
			}
			return nil
		})
	}
	for _, limit := range []int{4, 2} {
		limitTo(t, l, map[string]any{"egressMaxConnections": limit, "ingressMaxConnections": limit + 1})
		for _, way := range [][2]string{{"web", "far"}, {"far", "web"}} {
			to := pod(t, l, way[1])
			for _, a := range to.Addrs() {
				if way[0] == "web" {
					expect("web", a, limit)
				} else {
					expect("far", a, limit+1)
				}
			}
		}
	}
	limitTo(t, l, nil)
	nettest.Eventually(t, func() error {
		open, err := hold(l, "web", pod(t, l, "far").Addr, 10)
		closeAll(open)
		return err
	})
}

// heldOpen takes connections at a pod's port 80 and keeps them until its result is called.
func heldOpen(t *testing.T, l *lab.Lab, name string) (end func()) {
	t.Helper()
	var ln net.Listener
	if err := l.WithinPod(name, func() (err error) { ln, err = net.Listen("tcp", ":80"); return err }); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its peer
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			}()
		}
	}()
	return func() { _ = ln.Close() }
}

func packetsAreLimited(t *testing.T, l *lab.Lab) {
	const many, burst, rate = 100, 20, 10 // these fit into a socket's buffer
	for name, limits := range map[string]map[string]any{
		"sent": {"egressPacketRate": rate, "egressPacketBurst": burst},
		"got":  {"ingressPacketRate": rate, "ingressPacketBurst": burst},
	} {
		from, to := "web", "far"
		if name == "got" {
			from, to = to, from
		}
		end := pod(t, l, to)
		for _, a := range end.Addrs() {
			nettest.Eventually(t, func() error {
				limitTo(t, l, nil)
				limitTo(t, l, limits)
				began := time.Now()
				got, err := arrive(t, l, from, to, a, many)
				if most := burst + int(time.Since(began).Seconds()*rate) + 1; err != nil || got < 1 || got > most {
					return fmt.Errorf("%s by %v: %d datagrams of %d arrived, want at most %d: %w", name, a, got, many, most, errors.Join(err, errors.New("not so")))
				}
				return nil
			})
		}
	}
	limitTo(t, l, nil)
	nettest.Eventually(t, func() error {
		got, err := arrive(t, l, "web", "far", pod(t, l, "far").Addr, many)
		if err == nil && got < many*9/10 {
			return fmt.Errorf("without a limit %d datagrams of %d arrived", got, many)
		}
		return err
	})
}

// arrive sends datagrams to a pod, and counts those that arrive before one that its node sends after them.
func arrive(t *testing.T, l *lab.Lab, from, to string, at netip.Addr, many int) (n int, err error) {
	t.Helper()
	var in *net.UDPConn
	if err := l.WithinPod(to, func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 99)))
		return err
	}); err != nil {
		return 0, err
	}
	defer func() { _ = in.Close() }()
	send := func(text string, many int) error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 99)))
		if err != nil {
			return err
		}
		for range many {
			if _, err = c.Write([]byte(text)); err != nil {
				break
			}
		}
		return errors.Join(err, c.Close())
	}
	_ = in.SetReadDeadline(time.Now().Add(nettest.Patience(5 * time.Second)))
	if err := l.WithinPod(from, func() error { return send("x", many) }); err != nil {
		return 0, err
	}
	if err := l.Within(pod(t, l, to).Node, func() error { return send("end", 1) }); err != nil {
		return 0, err
	}
	buf := make([]byte, 8)
	for {
		got, _, err := in.ReadFrom(buf)
		if err != nil || got == len("end") {
			return n, err
		}
		n++
	}
}

// leavingIsMarked looks at what comes to the other node itself, which is no part of the pools, and to a pod there.
func leavingIsMarked(t *testing.T, l *lab.Lab) {
	limitTo(t, l, map[string]any{"dscp": 46})
	defer limitTo(t, l, nil)
	far := pod(t, l, "far")
	for i, inside := range far.Addrs() {
		outside := nodeAddr(t, l, "node-2", i == 1)
		nettest.Eventually(t, func() error {
			return arrivesWith(l, "web", outside, 46, func(f func() error) error { return l.Within("node-2", f) })
		})
		if err := arrivesWith(l, "web", inside, 0, func(f func() error) error { return l.WithinPod("far", f) }); err != nil {
			t.Error(err)
		}
	}
}

// arrivesWith sends a datagram and looks at the DSCP with which it arrives within some namespace.
func arrivesWith(l *lab.Lab, from string, to netip.Addr, want int, within func(func() error) error) error {
	at := netip.AddrPortFrom(to, 98)
	level, told := unix.IPPROTO_IP, unix.IP_RECVTOS
	if to.Is6() {
		level, told = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
	}
	var in *net.UDPConn
	if err := within(func() (err error) { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err }); err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	raw, err := in.SyscallConn()
	if err != nil {
		return err
	}
	if errCtl := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, told, 1) }); errors.Join(errCtl, err) != nil {
		return errors.Join(errCtl, err)
	}
	err = l.WithinPod(from, func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("x"))
		return errors.Join(err, c.Close())
	})
	if err != nil {
		return err
	}
	oob := make([]byte, 64)
	_ = in.SetReadDeadline(time.Now().Add(nettest.Patience(time.Second)))
	_, n, _, _, err := in.ReadMsgUDP(make([]byte, 1), oob)
	if err != nil {
		return fmt.Errorf("nothing came to %v: %w", to, err)
	}
	list, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(list) != 1 || int(list[0].Data[0])>>2 != want {
		return fmt.Errorf("what came to %v does not bear DSCP %d: %+v, %w", to, want, list, errors.Join(err, errors.New("not so")))
	}
	return nil
}

// nodesLimitHolds floods from one pod. Its node tracks no more of that than the limit, and others connect as before.
func nodesLimitHolds(t *testing.T, l *lab.Lab) {
	before := trackedBy(t, l, "node-1")
	floodFrom(t, l, "a1", 10*podsLimit)
	if n := trackedBy(t, l, "node-1"); n > before+2*podsLimit || n < podsLimit {
		t.Errorf("node-1 tracks %d connections, %d before the flood; the limit is %d", n, before, podsLimit)
	}
	listenTCP(t, l, "web", 81)
	ways(t, l, "after the flood", reach{"far", "web", 81, true})
	listenTCP(t, l, "far", 81)
	ways(t, l, "after the flood", reach{"web", "far", 81, true})
}
