package echo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/probe"
)

// perSecond bounds the answers of a node: some ten times what its peers ask when all of a large cluster start at once.
const perSecond = 2000

// Responder answers probes.
//
//  1. Only those of nodes: who asks from another address hears nothing. It listens on the addresses by which the node is at the end of paths of
//     pods, and on no other.
//  2. An answer is never longer than the question, so it serves nobody to attack a third with, and there are perSecond of them at most.
//  3. Nothing that it says or hears changes anything.
//
// Its methods may be called concurrently.
type Responder struct {
	port    uint16
	allowed atomic.Pointer[map[netip.Addr]struct{}]
	limit   limit

	mu      sync.Mutex
	open    map[netip.Addr]*net.UDPConn
	readers sync.WaitGroup
}

// NewResponder returns a responder on a UDP port that answers nobody yet.
func NewResponder(port uint16) *Responder {
	r := &Responder{port: port, open: map[netip.Addr]*net.UDPConn{}}
	r.Allow(nil)
	return r
}

// Allow says who is answered from now on.
func (r *Responder) Allow(peers []netip.Prefix) {
	m := make(map[netip.Addr]struct{}, len(peers))
	for _, p := range peers {
		m[p.Addr()] = struct{}{}
	}
	r.allowed.Store(&m)
}

// Listen says at which addresses of this node questions are answered from now on. The host need not have them yet. After an error the others are
// answered at all the same, and the next call tries again.
func (r *Responder) Listen(ctx context.Context, at []netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	gone := maps.Clone(r.open)
	var errs []error
	for _, a := range at {
		delete(gone, a)
		if r.open[a] == nil {
			errs = append(errs, r.listen(ctx, a))
		}
	}
	for a, c := range gone {
		_ = c.Close() // only ever answered
		delete(r.open, a)
	}
	return errors.Join(errs...)
}

// Close ends all answers, and returns when they have ended.
func (r *Responder) Close() {
	_ = r.Listen(context.Background(), nil) // only opening can fail
	r.readers.Wait()
}

func (r *Responder) listen(ctx context.Context, a netip.Addr) error {
	lc := net.ListenConfig{Control: early}
	p, err := lc.ListenPacket(ctx, network(a), netip.AddrPortFrom(a, r.port).String())
	if err != nil {
		return fmt.Errorf("answer probes of other nodes: %w", err)
	}
	c := p.(*net.UDPConn)
	raw, err := c.SyscallConn()
	if err != nil {
		return errors.Join(fmt.Errorf("answer probes of other nodes: %w", err), c.Close())
	}
	r.open[a] = c
	r.readers.Go(func() { r.serve(c, raw) })
	return nil
}

// early has a socket bind to an address that the host does not have yet.
func early(network, _ string, raw syscall.RawConn) error {
	return control(raw, func(fd int) error {
		if network == "udp6" {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	})
}

// serve answers on a socket until it is closed.
func (r *Responder) serve(c *net.UDPConn, raw syscall.RawConn) {
	buf := make([]byte, probe.HeaderSize) // the rest of a question is only there to be long
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of one datagram
		}
		r.answer(raw, buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// answer answers one datagram, if it is a question of a node's. A lost answer looks like a lost question.
func (r *Responder) answer(raw syscall.RawConn, datagram []byte, from netip.AddrPort) {
	if _, node := (*r.allowed.Load())[from.Addr()]; !node {
		return
	}
	if b, ok := probe.Reply(datagram); ok && r.limit.take(time.Now()) {
		_ = sendPlain(raw, b, sockaddr(from))
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// limit lets so many through in each second.
type limit struct {
	mu     sync.Mutex
	second int64
	taken  int
}

func (l *limit) take(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := now.Unix(); s != l.second {
		l.second, l.taken = s, 0
	}
	l.taken++
	return l.taken <= perSecond
}
