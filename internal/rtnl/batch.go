package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

const (
	// batchSize is how many changes go to the kernel with one system call. While it works on them nothing stops it, not even the death of this
	// process: some milliseconds.
	batchSize = 512
	// batchBuffer holds the answers if the kernel refuses every change of a batch, in bytes.
	batchBuffer = 2 << 20
)

// sender sends changes to the kernel, many with one system call. It may be used by any goroutine.
//
// The kernel carries the messages of a datagram out one after the other, and goes on past those that it refuses (netlink(7)). It answers
// the refused ones, and of the others those alone that ask for it: so only the last does.
type sender struct {
	mu  sync.Mutex
	fd  int
	seq uint32
}

// openSender opens a socket in the namespace of the calling thread.
func openSender() (*sender, error) {
	fd, err := openSocket()
	if err != nil {
		return nil, err
	}
	// Without the privilege the buffer stays small. Then a batch that is refused as a whole is answered in part, which makes it slower.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, batchBuffer)
	return &sender{fd: fd}, nil
}

// senderBy takes over a new socket for rtnetlink(7), also after an error. It is for a few messages at a time.
func senderBy(socket int) (*sender, error) {
	if err := setUp(socket); err != nil {
		return nil, err
	}
	return &sender{fd: socket}, nil
}

// openSocket opens a socket for requests, in the namespace of the calling thread.
func openSocket() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	return fd, setUp(fd)
}

// setUp prepares a socket for requests, wherever it was opened. After an error it is closed.
func setUp(fd int) error {
	limit := unix.NsecToTimeval(socketTimeout.Nanoseconds())
	err := errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), // an answer without the message that it is to
	)
	if err != nil {
		return errors.Join(fmt.Errorf("set up netlink socket: %w", err), unix.Close(fd))
	}
	return nil
}

func (s *sender) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = unix.Close(s.fd)
	s.fd = -1
}

// one sends a single message and returns the kernel's answer.
func (s *sender) one(encode func(*messages)) error {
	var m messages
	encode(&m)
	errs, err := s.send(&m)
	if err != nil {
		return err
	}
	return errs[0]
}

// send sends messages at once and returns the kernel's answer to each; nil is success. With an error nothing is known of any of them.
func (s *sender) send(m *messages) ([]error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.seq + 1
	s.seq += uint32(len(m.starts))
	m.number(first)
	if err := sendTo(s.fd, m); err != nil {
		return nil, err
	}
	errs := make([]error, len(m.starts))
	buf := make([]byte, unix.Getpagesize())
	for began := time.Now(); time.Since(began) < socketTimeout; {
		n, err := receiveFrom(s.fd, buf, 0)
		if err != nil {
			return nil, err
		}
		if answered(buf[:n], first, errs) {
			return errs, nil
		}
	}
	return nil, fmt.Errorf("receive from netlink: %w", unix.ETIMEDOUT)
}

// answered takes the answers of a datagram over, and tells whether the one to the last message was among them. What is left of an earlier batch
// that was given up is passed over.
func answered(buf []byte, first uint32, errs []error) (last bool) {
	const header = unix.SizeofNlMsghdr
	for len(buf) >= header+4 {
		size := int(binary.NativeEndian.Uint32(buf))
		if size < header+4 || size > len(buf) {
			return last
		}
		at := int64(binary.NativeEndian.Uint32(buf[8:])) - int64(first)
		if binary.NativeEndian.Uint16(buf[4:]) == unix.NLMSG_ERROR && at >= 0 && at < int64(len(errs)) {
			if errno := int32(binary.NativeEndian.Uint32(buf[header:])); errno != 0 {
				errs[at] = unix.Errno(-errno)
			}
			last = last || at == int64(len(errs))-1
		}
		buf = buf[min(len(buf), aligned(size)):]
	}
	return last
}

// sendTo sends messages to the kernel.
func sendTo(fd int, m *messages) error {
	if err := retried(func() error { return unix.Sendto(fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) }); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	return nil
}

// receiveFrom waits for a datagram of the kernel's, with flags of unix.MSG_*, and returns its size.
func receiveFrom(fd int, buf []byte, flags int) (n int, err error) {
	if err := retried(func() (err error) { n, _, err = unix.Recvfrom(fd, buf, flags); return err }); err != nil {
		return 0, fmt.Errorf("receive from netlink: %w", err)
	}
	return n, nil
}

func retried(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// messages are netlink messages one after the other (netlink(7), rtnetlink(7)).
type messages struct {
	buf    []byte
	starts []int // of each message
}

// begin starts a message, of a type and with flags of unix.NLM_F_*; fixed is the structure that comes before the attributes.
func (m *messages) begin(kind, flags uint16, fixed ...byte) {
	m.starts = append(m.starts, len(m.buf))
	m.buf = append(m.buf, make([]byte, unix.SizeofNlMsghdr)...)
	at := m.buf[m.starts[len(m.starts)-1]:]
	binary.NativeEndian.PutUint16(at[4:], kind)
	binary.NativeEndian.PutUint16(at[6:], flags|unix.NLM_F_REQUEST)
	m.buf = append(m.buf, fixed...)
	m.length()
}

// attr adds an attribute to the message that was begun last.
func (m *messages) attr(kind uint16, value []byte) {
	m.buf = binary.NativeEndian.AppendUint16(m.buf, uint16(unix.SizeofRtAttr+len(value)))
	m.buf = binary.NativeEndian.AppendUint16(m.buf, kind)
	m.buf = append(m.buf, value...)
	for len(m.buf)%unix.NLMSG_ALIGNTO != 0 {
		m.buf = append(m.buf, 0)
	}
	m.length()
}

// raw adds what is aligned and no attribute.
func (m *messages) raw(b []byte) {
	m.buf = append(m.buf, b...)
	m.length()
}

// nest begins an attribute that holds what is added until end is called with what it returns.
func (m *messages) nest(kind uint16) (at int) {
	at = len(m.buf)
	m.attr(kind, nil)
	return at
}

func (m *messages) end(at int) { binary.NativeEndian.PutUint16(m.buf[at:], uint16(len(m.buf)-at)) }

// addr adds an address, if it is valid.
func (m *messages) addr(kind uint16, a netip.Addr) {
	switch {
	case a.Is4():
		b := a.As4()
		m.attr(kind, b[:])
	case a.Is6():
		b := a.As16()
		m.attr(kind, b[:])
	}
}

// uint32 adds a number, if it is not zero.
func (m *messages) uint32(kind uint16, v int) {
	if v != 0 {
		m.attr(kind, binary.NativeEndian.AppendUint32(nil, uint32(v)))
	}
}

// length writes the length of the message that was begun last into its header.
func (m *messages) length() {
	start := m.starts[len(m.starts)-1]
	binary.NativeEndian.PutUint32(m.buf[start:], uint32(len(m.buf)-start))
}

// number gives the messages consecutive numbers, and has the last one answered.
func (m *messages) number(first uint32) {
	for i, start := range m.starts {
		binary.NativeEndian.PutUint32(m.buf[start+8:], first+uint32(i))
		if i == len(m.starts)-1 {
			m.buf[start+6] |= unix.NLM_F_ACK
		}
	}
}

func aligned(size int) int { return (size + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// family is that of an address, as the kernel numbers it.
func family(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// way is how the changes of a kind of object are made.
type way[K, V comparable] struct {
	encode  func(*messages, kernel.Change[K, V])
	refused func(kernel.Change[K, V], error) error // what the kernel's error means for the change, or what came of another attempt
	made    func(kernel.Change[K, V]) error        // nil, or what there is to do after a change
}

// each makes changes as kernel.Each does, the removals last, many with one system call.
func each[K, V comparable](ctx context.Context, s *sender, changes []kernel.Change[K, V], w way[K, V]) error {
	answers := map[K]error{}
	var errs []error
	for _, removal := range []bool{false, true} {
		part := slices.DeleteFunc(slices.Clone(changes), func(c kernel.Change[K, V]) bool { return (c.New == nil) != removal })
		for batch := range slices.Chunk(part, batchSize) {
			clear(answers)
			for i, err := range s.ask(ctx, len(batch), func(m *messages, i int) { w.encode(m, batch[i]) }) {
				if err != nil {
					answers[batch[i].Key] = err
				}
			}
			errs = append(errs, kernel.Each(batch, func(c kernel.Change[K, V]) error {
				if err := answers[c.Key]; err != nil {
					if err := w.refused(c, err); err != nil {
						return err
					}
				}
				if w.made == nil {
					return nil
				}
				return w.made(c)
			}))
		}
	}
	return errors.Join(errs...)
}

// ask sends so many messages, as encode adds them one by one, and returns what the kernel has against each. If that cannot be known, it is an error of all.
func (s *sender) ask(ctx context.Context, n int, encode func(m *messages, i int)) []error {
	err := ctx.Err()
	var errs []error
	if err == nil {
		m := &messages{buf: make([]byte, 0, 64*n)}
		for i := range n {
			encode(m, i)
		}
		errs, err = s.send(m)
	}
	if err != nil {
		return slices.Repeat([]error{err}, n)
	}
	return errs
}
