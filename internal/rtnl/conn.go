// Package rtnl reads and writes the network devices, addresses, neighbours, forwarding entries, routes and rules of one network
// namespace, and watches them.
//
// Every kind of object is a table with List and Apply, see internal/kernel. List returns only what carries our mark. Apply is
// idempotent: what is already as it should be, or already gone, is no error. A change that fails does not keep
// the others from being made; the error is every failure joined, each a *kernel.Failure that names the object.
package rtnl

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

const socketTimeout = 10 * time.Second // for one answer of the kernel, which takes microseconds

// Conn reads and writes the objects of one network namespace. It may be used by any goroutine, also concurrently.
type Conn struct {
	h      *netlink.Handle // for what the library encodes
	dumper *dumper         // for dumps, which we decode ourselves as the monitor decodes events
	sender *sender         // for changes of which there may be many
	own    atomic.Pointer[kernel.Ownership]
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
	out, err := openSender()
	if err != nil {
		h.Close()
		return nil, err
	}
	in, err := openDumper()
	if err != nil {
		h.Close()
		out.close()
		return nil, err
	}
	return &Conn{h: h, sender: out, dumper: in}, nil
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
	c.dumper.close()
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
