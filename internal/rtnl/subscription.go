package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// eventSize is more than the kernel puts into one datagram of events, in bytes (linux/netlink.h, NLMSG_GOODSIZE: a page).
const eventSize = 32 << 10

// subscription is a socket at which the kernel tells events. One goroutine receives; the rest anybody may call.
type subscription struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte // that all events are read into: a pod that comes or goes makes a dozen
}

// subscribe opens a socket in the calling thread's network namespace. The buffer it asks for may be denied; see enlarge.
func subscribe(groups ...int) (*subscription, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &subscription{file: os.NewFile(uintptr(fd), "netlink events"), buf: make([]byte, eventSize)}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, g := range groups {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g))
	}
	if err == nil {
		s.raw, err = s.file.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up netlink socket: %w", err), s.close())
	}
	return s, nil
}

// resize sets how many bytes of events the kernel keeps for us, beyond what the system allows others.
func (s *subscription) resize(bytes int) error {
	var err error
	return errors.Join(s.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) }), err)
}

// receive waits for events. They are valid until the next call. After close the error is os.ErrClosed; unix.ENOBUFS says that some were lost.
func (s *subscription) receive() ([]syscall.NetlinkMessage, error) {
	var n int
	var from unix.Sockaddr
	var received error
	err := s.raw.Read(func(fd uintptr) bool {
		n, from, received = unix.Recvfrom(int(fd), s.buf, 0)
		return !errors.Is(received, unix.EAGAIN)
	})
	if err = errors.Join(err, received); err != nil {
		return nil, err
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
		return nil, nil // any process may write to a netlink socket
	}
	return syscall.ParseNetlinkMessage(s.buf[:n])
}

// discard reads what there is and forgets it, until there is nothing or ctx has ended. It does not wait.
func (s *subscription) discard(ctx context.Context) error {
	var received error
	some := make([]byte, 1) // what does not fit is gone too
	err := s.raw.Control(func(fd uintptr) {
		for received = nil; ctx.Err() == nil && (received == nil || is(received, unix.ENOBUFS, unix.EINTR)); {
			_, _, received = unix.Recvfrom(int(fd), some, unix.MSG_DONTWAIT)
		}
	})
	if is(received, unix.EAGAIN) {
		received = nil
	}
	return errors.Join(err, received, ctx.Err())
}

// close ends the subscription, and a receive that waits.
func (s *subscription) close() error { return s.file.Close() }
