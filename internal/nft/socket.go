package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a netlink socket to netfilter that honours deadlines.
type socket struct {
	f    *os.File
	port uint32 // its address
}

// openSocket opens a socket in the calling thread's namespace, subscribed to groups (a bit for each).
func openSocket(groups uint32) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open socket to nftables: %w", err)
	}
	s := &socket{f: os.NewFile(uintptr(fd), "nftables")}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		size(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer),
		size(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer),
	)
	if err != nil {
		return nil, fmt.Errorf("set up socket to nftables: %w", errors.Join(err, s.Close()))
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("find address of socket to nftables: %w", errors.Join(err, s.Close()))
	}
	if nl, ok := self.(*unix.SockaddrNetlink); ok {
		s.port = nl.Pid
	}
	return s, nil
}

// size sets the size of a buffer; without the privilege to exceed the system's limit, to that limit.
func size(fd, force, plain, bytes int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bytes) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, bytes)
}

func (s *socket) Close() error { return s.f.Close() }

// until makes receive fail once ctx is done. The function it returns ends that: when it has returned, nothing of it comes after.
func (s *socket) until(ctx context.Context) (stop func()) {
	_ = s.f.SetReadDeadline(time.Time{})
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = s.f.SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-done
		}
	}
}

func (s *socket) send(b []byte) error {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return true // a batch is taken or refused, there is nothing to wait for
	})
	return errors.Join(err, sent)
}

// poll receives a datagram if one is there, from whomever, and else fails with EAGAIN.
func (s *socket) poll(b []byte) (n int, err error) {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var received error
	err = raw.Control(func(fd uintptr) { n, _, received = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT) })
	return n, errors.Join(err, received)
}

// receive waits for a datagram from the kernel.
func (s *socket) receive(b []byte) (int, error) {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var received error
	err = raw.Read(func(fd uintptr) bool {
		for {
			var from unix.Sockaddr
			n, from, received = unix.Recvfrom(int(fd), b, 0)
			switch nl, _ := from.(*unix.SockaddrNetlink); {
			case errors.Is(received, unix.EAGAIN):
				return false
			case errors.Is(received, unix.EINTR):
			case received != nil || nl != nil && nl.Pid == 0: // any process may send to a netlink socket
				return true
			}
		}
	})
	return n, errors.Join(err, received)
}
