package e2e

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
)

const (
	streamPort  = "7007"
	streamEvery = 2 * time.Millisecond
	streamLeast = 500 // datagrams, so that a stream goes on after what is done to it
)

// stream is a running exchange of numbered datagrams between two pods: every one that is sent is to come back.
type stream struct {
	echo  net.PacketConn
	probe net.Conn
	end   chan struct{}
	going chan struct{} // closed when a good number has been sent
	sent  chan int
	back  chan int
}

type outcome struct{ sent, lost int }

// startStream opens an IPv4 socket in each pod's namespace and begins to send.
func startStream(t *testing.T, l *lab.Lab, from, to string) *stream {
	t.Helper()
	return openStream(t, l, from, to, pod(t, l, to).Addr)
}

// startStream6 is startStream by IPv6.
func startStream6(t *testing.T, l *lab.Lab, from, to string) *stream {
	t.Helper()
	return openStream(t, l, from, to, pod(t, l, to).Addr6)
}

func pod(t *testing.T, l *lab.Lab, name string) lab.Pod {
	t.Helper()
	pods, err := l.Pods()
	if err != nil {
		t.Fatal(err)
	}
	return pods[slices.IndexFunc(pods, func(p lab.Pod) bool { return p.Name == name })]
}

func openStream(t *testing.T, l *lab.Lab, from, to string, addr netip.Addr) *stream {
	t.Helper()
	target := net.JoinHostPort(addr.String(), streamPort)
	s := &stream{end: make(chan struct{}), going: make(chan struct{}), sent: make(chan int, 1), back: make(chan int, 1)}
	err := errors.Join(
		l.WithinPod(to, func() (err error) { s.echo, err = net.ListenPacket("udp", target); return err }),
		l.WithinPod(from, func() (err error) { s.probe, err = net.Dial("udp", target); return err }),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.echo.Close(), s.probe.Close() })
	go answer(s.echo)
	go func() { s.back <- count(s.probe) }()
	go s.send()
	return s
}

// answer sends back every datagram, until the socket is closed.
func answer(echo net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := echo.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = echo.WriteTo(buf[:n], from) // one that cannot be sent counts as lost
		}
	}
}

func (s *stream) send() {
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	n := 0
	for {
		select {
		case <-s.end:
			s.sent <- n
			return
		case <-tick.C:
			_, _ = s.probe.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) // as above
			if n++; n == streamLeast {
				close(s.going)
			}
		}
	}
}

// count counts the different datagrams that arrive until the connection's deadline.
func count(c net.Conn) int {
	seen := map[uint64]bool{}
	buf := make([]byte, 64)
	for {
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return len(seen)
		}
		if err == nil && n == 8 {
			seen[binary.BigEndian.Uint64(buf)] = true
		}
	}
}

// stop lets a good number of datagrams pass, ends the sending and waits a second for what is under way.
func (s *stream) stop(t *testing.T) outcome {
	t.Helper()
	return stopAll(t, map[string]*stream{"": s})[""]
}

// stopAll stops several streams at once.
func stopAll(t *testing.T, streams map[string]*stream) map[string]outcome {
	t.Helper()
	out := map[string]outcome{}
	for name, s := range streams {
		select {
		case <-s.going:
		case <-time.After(30 * time.Second):
			t.Fatalf("the stream %s does not get going", name)
		}
		close(s.end)
		out[name] = outcome{sent: <-s.sent}
		if err := s.probe.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range streams {
		o := out[name]
		o.lost = o.sent - <-s.back
		out[name] = o
	}
	return out
}

// counters match what changes by itself in the output of iptables-save and ipset.
var counters = regexp.MustCompile(`\[\d+:\d+\]|hashsize \d+ |initval 0x[0-9a-f]+|(?m)^(Size in memory|References): \d+$`)

// indices match what differs between a device and the one that took its place.
var indices = regexp.MustCompile(`(?m)^\d+: `)

// unnumbered is a kernel state without the devices' indices.
func unnumbered(state string) string {
	lines := strings.Split(indices.ReplaceAllString(state, ""), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
