package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netns"

	"github.com/muslin-cni/muslin/internal/lab"
)

// Sizes of the runs for traffic.
const (
	streamed    = 256 << 20 // bytes through one TCP connection
	chunk       = 64 << 10  // bytes of one write
	roundTrips  = 4000      // of one byte
	trafficWait = time.Minute
)

// runTraffic measures what packets between pods on two nodes pay, without encapsulation and with VXLAN.
func runTraffic(ctx context.Context, b bench) (out []row, err error) {
	for _, mode := range []lab.Mode{lab.Direct, lab.VXLAN} {
		o := lab.Defaults()
		o.Nodes, o.Mode = 2, mode
		err := withLab(ctx, b.bin, o, func(l *lab.Lab, _ string) error {
			cs, err := compareTraffic(ctx, b, l, mode)
			for _, c := range cs {
				out = append(out, c.row("1.02"))
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("traffic, mode %s: %w", mode, err)
		}
	}
	return out, nil
}

// compareTraffic compares two pods of a lab with two namespaces that stand in the same places of the same network made by hand: a veth pair to
// a namespace for their host, another pair from there to a bridge, the same addresses' routes and proxy ARP, the same MTUs, and for VXLAN a
// device with the same settings. What is missing there is the agent with its rules, and with them connection tracking.
//
// Both ends of every connection are in this process.
func compareTraffic(ctx context.Context, b bench, l *lab.Lab, mode lab.Mode) ([]comparison, error) {
	var addrs [2]netip.Addr
	for i := range addrs {
		pod, err := l.AddPod(ctx, lab.PodSpec{Name: podName(i), Node: fmt.Sprintf("node-%d", i+1)})
		if err != nil {
			return nil, err
		}
		addrs[i] = pod.Addr
	}
	if err := l.Exec(ctx, "fabric", lab.Command{Args: []string{"sh", "-ec", byHand(mode)}, Stdout: os.Stderr, Stderr: os.Stderr}); err != nil {
		return nil, fmt.Errorf("make the network by hand: %w", err)
	}
	floor := path{addrs: [2]netip.Addr{handAddr(0), handAddr(1)}, within: func(i int, open func() error) error {
		return l.Within("fabric", func() error { return inNetns(fmt.Sprintf("pod-%d", i+1), open) })
	}}
	subject := path{addrs: addrs, within: func(i int, open func() error) error { return l.WithinPod(podName(i), open) }}
	names := []string{fmt.Sprintf("%s: %d MiB by TCP", mode, streamed>>20), fmt.Sprintf("%s: round trip", mode)}
	return byTurns(b.rounds, names, floor.measure, subject.measure)
}

func podName(i int) string { return fmt.Sprintf("bench-%d", i+1) }

func handAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, byte(i + 1), 2}) }

// inNetns calls open on the calling thread, which ends soon, in a named namespace.
func inNetns(name string, open func() error) error {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", name, err)
	}
	if err := netns.Set(ns); err != nil {
		return errors.Join(fmt.Errorf("enter namespace %s: %w", name, err), ns.Close())
	}
	return errors.Join(open(), ns.Close())
}

// byHand is the shell script of somebody who needs the network of two nodes and two pods, and nothing else.
func byHand(mode lab.Mode) string {
	podMTU := 1500
	if mode == lab.VXLAN {
		podMTU = 1450
	}
	var b strings.Builder
	fmt.Fprintln(&b, "ip link add br-hand type bridge; ip link set br-hand up")
	for i := 1; i <= 2; i++ {
		fmt.Fprintf(&b, `
ip netns add host-%[1]d; ip netns add pod-%[1]d
ip link add hand-%[1]d type veth peer name eth0 netns host-%[1]d
ip link set hand-%[1]d master br-hand; ip link set hand-%[1]d up
ip -n host-%[1]d link set lo up; ip -n host-%[1]d link set eth0 up; ip -n host-%[1]d addr add 192.0.2.%[1]d/24 dev eth0; ip -n host-%[1]d route add default via 192.0.2.254
ip -n host-%[1]d link add cali0 mtu %[2]d type veth peer name eth0 netns pod-%[1]d mtu %[2]d
ip -n host-%[1]d link set cali0 up; ip -n pod-%[1]d link set eth0 up
ip netns exec host-%[1]d sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/cali0/proxy_arp'
ip -n pod-%[1]d addr add 10.77.%[1]d.2/32 dev eth0; ip -n pod-%[1]d route add 169.254.1.1 dev eth0; ip -n pod-%[1]d route add default via 169.254.1.1
ip -n host-%[1]d route add 10.77.%[1]d.2 dev cali0
`, i, podMTU)
		other := 3 - i
		if mode != lab.VXLAN {
			fmt.Fprintf(&b, "ip -n host-%d route add 10.77.%d.0/26 via 192.0.2.%[2]d\n", i, other)
			continue
		}
		fmt.Fprintf(&b, `
ip -n host-%[1]d link add vxlan0 address 66:00:00:00:00:0%[1]d mtu %[3]d type vxlan id 4096 dstport 4789 local 192.0.2.%[1]d dev eth0 nolearning
ip -n host-%[1]d link set vxlan0 up; ip -n host-%[1]d addr add 10.77.%[1]d.1/32 dev vxlan0
ip -n host-%[1]d neigh add 10.77.%[2]d.1 lladdr 66:00:00:00:00:0%[2]d dev vxlan0
bridge -n host-%[1]d fdb add 66:00:00:00:00:0%[2]d dev vxlan0 self permanent dst 192.0.2.%[2]d
ip -n host-%[1]d route add 10.77.%[2]d.0/26 via 10.77.%[2]d.1 dev vxlan0 onlink
`, i, other, podMTU)
	}
	return b.String()
}

// path is the way between two pods.
type path struct {
	addrs  [2]netip.Addr
	within func(i int, open func() error) error // calls open where the sockets of the pod are opened
}

// measure returns how long a stream takes, and a round trip.
func (p path) measure(int) (took []time.Duration, err error) {
	client, server, err := p.connect()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close(), server.Close()) }()
	stream, err := timedStream(client, server)
	if err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	trip, err := timedTrips(client, server)
	if err != nil {
		return nil, fmt.Errorf("round trips: %w", err)
	}
	return []time.Duration{stream, trip}, nil
}

// connect opens a connection from the first pod to the second.
func (p path) connect() (client, server net.Conn, err error) {
	var l *net.TCPListener
	to := net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.addrs[1], 0))
	if err := p.within(1, func() (err error) { l, err = net.ListenTCP("tcp4", to); return err }); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	deadline := time.Now().Add(trafficWait)
	err = p.within(0, func() (err error) {
		d := net.Dialer{Deadline: deadline}
		client, err = d.Dial("tcp4", l.Addr().String())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(l.SetDeadline(deadline), client.SetDeadline(deadline)); err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	if server, err = l.Accept(); err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, server, server.SetDeadline(deadline)
}

// timedStream sends much one way and returns when all of it has arrived.
func timedStream(client, server net.Conn) (time.Duration, error) {
	sent := make(chan error, 1)
	began := time.Now()
	go func() {
		data := make([]byte, chunk)
		for range streamed / chunk {
			if _, err := client.Write(data); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	buf := make([]byte, chunk)
	for left := streamed; left > 0; {
		n, err := server.Read(buf[:min(chunk, left)])
		if err != nil {
			return 0, err
		}
		left -= n
	}
	return time.Since(began), <-sent
}

// timedTrips sends a byte there and back many times and returns how long one takes.
func timedTrips(client, server net.Conn) (time.Duration, error) {
	answered := make(chan error, 1)
	go func() {
		var b [1]byte
		for range roundTrips {
			if _, err := io.ReadFull(server, b[:]); err != nil {
				answered <- err
				return
			}
			if _, err := server.Write(b[:]); err != nil {
				answered <- err
				return
			}
		}
		answered <- nil
	}()
	var b [1]byte
	began := time.Now()
	for range roundTrips {
		if _, err := client.Write(b[:]); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(client, b[:]); err != nil {
			return 0, err
		}
	}
	return time.Since(began) / roundTrips, <-answered
}
