// Package rtnl reads and writes the network devices, addresses, neighbours, forwarding entries, routes and rules of one network
// namespace, and watches them.
//
// Every kind of object is a table with List and Apply, see internal/kernel. List returns only what carries our mark. Apply is
// idempotent: what is already as it should be, or already gone, is no error. A change that fails does not keep
// the others from being made; the error is every failure joined, each a *kernel.Failure that names the object.
package rtnl

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

const (
	socketTimeout = 10 * time.Second // for one answer of the kernel, which takes microseconds
	dumpAttempts  = 20               // a dump that other writers interrupt is repeated this often
)

// Conn reads and writes the objects of one network namespace. It may be used by any goroutine, also concurrently.
type Conn struct {
	h       *netlink.Handle          // for what the library encodes
	sockets map[int]*nl.SocketHandle // for dumps, which we decode ourselves as the monitor decodes events
	sender  *sender                  // for changes of which there may be many
	own     atomic.Pointer[kernel.Ownership]
}

// Open opens a connection to the namespace that the calling thread is in. It stays with it wherever it is used.
func Open() (*Conn, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(socketTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	limit := unix.NsecToTimeval(socketTimeout.Nanoseconds())
	out, err := openSender()
	if err != nil {
		h.Close()
		s.Close()
		return nil, err
	}
	c := &Conn{h: h, sender: out, sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}
	if err := errors.Join(s.SetSendTimeout(&limit), s.SetReceiveTimeout(&limit)); err != nil {
		c.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return c, nil
}

// Own says what is ours from now on, in lists and in a Monitor's events alike. Before the first call it is what the zero Ownership says.
func (c *Conn) Own(o kernel.Ownership) { c.own.Store(&o) }

func (c *Conn) ownership() kernel.Ownership {
	if o := c.own.Load(); o != nil {
		return *o
	}
	return kernel.Ownership{}
}

// Close releases the sockets. Nothing else of the connection may be used afterwards.
func (c *Conn) Close() {
	c.h.Close()
	c.sender.close()
	c.sockets[unix.NETLINK_ROUTE].Close()
}

// dump returns the answers to a dump request: a consistent picture. It repeats a dump that concurrent changes have interrupted.
func (c *Conn) dump(ctx context.Context, request, answer int, header nl.NetlinkRequestData) ([][]byte, error) {
	var err error
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		req := &nl.NetlinkRequest{
			NlMsghdr: unix.NlMsghdr{
				Len:   unix.SizeofNlMsghdr,
				Type:  uint16(request),
				Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP,
			},
			Sockets: c.sockets,
		}
		req.AddData(header)
		var msgs [][]byte
		msgs, err = req.Execute(unix.NETLINK_ROUTE, uint16(answer))
		if err == nil {
			return msgs, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return nil, err
		}
	}
	return nil, err
}

// is tells whether err is one of the kernel's error numbers.
func is(err error, errnos ...unix.Errno) bool {
	for _, e := range errnos {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// gone tells whether the kernel said that the object, or the device that it hung on, is not there.
func gone(err error) bool {
	return is(err, unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.ENXIO, unix.EADDRNOTAVAIL)
}
