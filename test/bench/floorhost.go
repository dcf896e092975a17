package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	floorNetns   = "floor"
	floorBuffer  = 64 << 20 // bytes: that a socket loses nothing, and takes a batch at once
	routeTimeout = 30 * time.Second
)

// floorHost is a network namespace with a device like a lab node's, to which routes are sent in batches. A nil one does nothing.
type floorHost struct {
	fd    int // of a netlink socket
	watch *routeWatch
	index int // of the device
}

// newFloorHost makes the namespace in the one that this process runs in.
func newFloorHost(ctx context.Context) (*floorHost, error) {
	for _, args := range [][]string{
		{"netns", "add", floorNetns},
		{"-n", floorNetns, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"},
		{"-n", floorNetns, "link", "set", "peer0", "up"},
		{"-n", floorNetns, "link", "set", "eth0", "up"},
		{"-n", floorNetns, "addr", "add", "172.30.1.1/24", "dev", "eth0"},
	} {
		if err := ip(ctx, args...); err != nil {
			return nil, err
		}
	}
	h := &floorHost{}
	return h, h.open()
}

// open opens the sockets on a thread in the namespace, which ends with it.
func (h *floorHost) open() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks it: the thread ends with this function
		done <- func() (err error) {
			ns, err := netns.GetFromName(floorNetns)
			if err != nil {
				return fmt.Errorf("open namespace %s: %w", floorNetns, err)
			}
			defer func() { err = errors.Join(err, ns.Close()) }()
			if err := netns.Set(ns); err != nil {
				return fmt.Errorf("enter namespace %s: %w", floorNetns, err)
			}
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			h.index = eth0.Index
			if h.watch, err = watchRoutes(); err != nil {
				return err
			}
			h.fd, err = openNetlink(0)
			return err
		}()
	}()
	return <-done
}

func (h *floorHost) close() error { return errors.Join(unix.Close(h.fd), h.watch.close()) }

// openNetlink opens a blocking socket with large buffers in the namespace of the calling thread.
func openNetlink(groups uint32) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	limit := unix.NsecToTimeval(routeTimeout.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, floorBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, floorBuffer),
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("set up netlink socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// batch is the routes to the blocks of so many remote nodes, as netlink messages.
func (h *floorHost) batch(n int) (out []byte) {
	for i := range n {
		out = append(out, h.route(remoteBlock(i), i)...)
	}
	return out
}

// route is the message that adds the route to a block of the i-th remote node.
func (h *floorHost) route(cidr netip.Prefix, i int) []byte {
	if h == nil {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET, Dst_len: uint8(cidr.Bits()), Table: unix.RT_TABLE_MAIN, Protocol: 80, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_ONLINK,
	}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, cidr.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, remoteAddr(i).AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(h.index))))
	return req.Serialize()
}

// send sends messages at once. What the kernel refuses is missed by whoever waits for the routes.
func (h *floorHost) send(batch []byte) error {
	if h == nil {
		return nil
	}
	return unix.Sendto(h.fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// flush removes the routes.
func (h *floorHost) flush(ctx context.Context) error {
	if h == nil {
		return nil
	}
	return ip(ctx, "-n", floorNetns, "route", "flush", "proto", "80")
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, out)
	}
	return nil
}

// routeWatch sees the routes to remote blocks come and go in a network namespace.
type routeWatch struct {
	fd  int
	buf []byte
}

// watchRoutes watches the namespace of the calling thread.
func watchRoutes() (*routeWatch, error) {
	fd, err := openNetlink(1 << (unix.RTNLGRP_IPV4_ROUTE - 1))
	return &routeWatch{fd: fd, buf: make([]byte, nl.RECEIVE_BUFFER_SIZE)}, err
}

func (w *routeWatch) close() error { return unix.Close(w.fd) }

// until waits until so many routes to remote blocks have been added or removed.
func (w *routeWatch) until(n int, added bool) error {
	message := uint16(unix.RTM_DELROUTE)
	if added {
		message = unix.RTM_NEWROUTE
	}
	for seen := 0; seen < n; {
		size, _, err := unix.Recvfrom(w.fd, w.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for route %d of %d: %w", seen+1, n, err)
		}
		seen += count(w.buf[:size], message)
	}
	return nil
}

// count is how many of the messages are of a type and about a remote block.
func count(msgs []byte, message uint16) (n int) {
	const destination = unix.SizeofNlMsghdr + unix.SizeofRtMsg
	for len(msgs) >= destination {
		size := int(binary.NativeEndian.Uint32(msgs))
		if size < destination || size > len(msgs) {
			return n
		}
		if binary.NativeEndian.Uint16(msgs[4:]) == message && remoteBlocks().Contains(routeDst(msgs[destination:size])) {
			n++
		}
		msgs = msgs[min(len(msgs), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return n
}

// routeDst is the IPv4 destination in a route's attributes; the zero Addr if there is none.
func routeDst(attrs []byte) netip.Addr {
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			break
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == unix.RTA_DST && size == unix.SizeofRtAttr+4 {
			return netip.AddrFrom4([4]byte(attrs[unix.SizeofRtAttr:size]))
		}
		attrs = attrs[min(len(attrs), (size+3)&^3):]
	}
	return netip.Addr{}
}
