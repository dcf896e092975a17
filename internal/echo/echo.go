// Package echo sends probes to other nodes and answers theirs, by UDP. What is tested, and what the answers mean, is package probe's.
//
// Whether the kernel leaves a datagram's checksum to the device decides what a probe tells. It does with what is sent at once, where the device says
// that it can, as with all that pods send. It computes the checksum itself of a datagram that is written in two pieces (MSG_MORE in udp(7)), since
// at the first it does not know yet what else will be in there (__ip_append_data in the kernel).
package echo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/probe"
)

const smallest = 64 // bytes of the datagrams that ask for nothing but an answer

// How long an answer is waited for, in turn: each is one more packet.
func patience() []time.Duration {
	return []time.Duration{300 * time.Millisecond, 500 * time.Millisecond, 800 * time.Millisecond}
}

// The waits while the size is looked for go by how long the first answer took.
const (
	leastWait  = 100 * time.Millisecond
	mostWait   = 500 * time.Millisecond
	roundTrips = 4
)

// Test tests a path. Where all is well that is three packets and their answers; it ends after 50 packets and 20 seconds at the latest, and
// when ctx ends. It may be called concurrently.
func Test(ctx context.Context, t probe.Target) probe.Answers {
	a, err := open(ctx, t)
	if err != nil {
		return probe.Answers{Unable: err.Error()}
	}
	defer a.close()
	var out probe.Answers
	began := time.Now()
	if out.Plain = a.ask(ctx, smallest, plain, patience()); out.Plain != probe.Answered {
		return out
	}
	out.Offloaded = a.ask(ctx, smallest, offloaded, patience())
	wait := min(max(roundTrips*time.Since(began), leastWait), mostWait)
	sizes := probe.NewSearch(smallest+a.overhead, max(t.MTU, smallest+a.overhead))
	for size, more := sizes.Next(); more; size, more = sizes.Next() {
		sizes.Tell(size, a.ask(ctx, size-a.overhead, plain, []time.Duration{wait, wait, wait}) == probe.Answered)
	}
	out.Largest = sizes.Largest()
	if ctx.Err() != nil {
		return probe.Answers{Unable: ctx.Err().Error()}
	}
	return out
}

// checksum says who computes a datagram's checksum.
type checksum bool

const (
	plain     checksum = false // the kernel
	offloaded checksum = true  // the device, if it says that it can
)

// asker asks one peer.
type asker struct {
	conn     *net.UDPConn
	raw      syscall.RawConn
	overhead int
	stop     func() bool
}

// open opens a socket at the near end of a path.
func open(ctx context.Context, t probe.Target) (*asker, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.From, 0)), Control: neverFragment}
	c, err := d.DialContext(ctx, network(t.To), netip.AddrPortFrom(t.To, t.Port).String())
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("no device of this node has %v yet", t.From)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return nil, fmt.Errorf("this node has no route to %v", t.To)
	case err != nil:
		return nil, fmt.Errorf("ask %v: %w", t.To, err)
	}
	conn := c.(*net.UDPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask %v: %w", t.To, err), conn.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return &asker{conn: conn, raw: raw, overhead: probe.Overhead(t.To), stop: stop}, nil
}

func (a *asker) close() {
	a.stop()
	_ = a.conn.Close() // nothing is pending
}

func network(a netip.Addr) string {
	if a.Is6() {
		return "udp6"
	}
	return "udp4"
}

// neverFragment has a socket send with DF set, whatever the kernel thinks to know of the path's MTU (ip(7), ipv6(7)).
func neverFragment(network, _ string, raw syscall.RawConn) error {
	return control(raw, func(fd int) error {
		if network == "udp6" {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
}

func control(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	return errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
}

// ask sends a datagram of so many bytes until it is answered, once for each wait.
func (a *asker) ask(ctx context.Context, bytes int, sum checksum, waits []time.Duration) probe.Outcome {
	token := rand.Uint64()
	datagram := append(probe.Question(token), make([]byte, bytes-probe.HeaderSize)...)
	for _, wait := range waits {
		until := time.Now().Add(wait)
		if ctx.Err() != nil || a.conn.SetReadDeadline(until) != nil {
			return probe.NoAnswer
		}
		switch err := a.try(datagram, sum, token); {
		case err == nil:
			return probe.Answered
		case errors.Is(err, unix.ECONNREFUSED):
			return probe.Refused
		case errors.Is(err, unix.EMSGSIZE): // at once, or a late word about a larger one: the next try tells
		default:
			rest(ctx, until) // a router's word that it knows no way may come at once, and be wrong a moment later
		}
	}
	return probe.NoAnswer
}

// try sends a datagram and reads until its answer comes.
func (a *asker) try(datagram []byte, sum checksum, token uint64) error {
	if err := a.send(datagram, sum); err != nil {
		return err
	}
	var buf [2 * smallest]byte
	for {
		n, err := a.conn.Read(buf[:])
		if err != nil {
			return err
		}
		if probe.AnswersTo(token, buf[:n]) {
			return nil
		}
	}
}

// rest waits until then, unless ctx ends first.
func rest(ctx context.Context, until time.Time) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(until)):
	}
}

func (a *asker) send(datagram []byte, sum checksum) error {
	if sum == offloaded {
		_, err := a.conn.Write(datagram)
		return err
	}
	return sendPlain(a.raw, datagram, nil)
}

// sendPlain sends a datagram whose checksum the kernel computes. to is nil on a connected socket. Nobody else may send on the socket meanwhile.
func sendPlain(raw syscall.RawConn, datagram []byte, to unix.Sockaddr) error {
	var err error
	last := len(datagram) - 1
	writeErr := raw.Write(func(fd uintptr) bool {
		if _, err = unix.SendmsgN(int(fd), datagram[:last], nil, to, unix.MSG_MORE); err == nil {
			_, err = unix.SendmsgN(int(fd), datagram[last:], nil, to, 0)
		}
		return true // a datagram that does not fit into the queue is one that is lost
	})
	return errors.Join(writeErr, err)
}
