package rtnl

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	dumpAttempts = 20       // a dump that other writers interrupt is repeated this often
	dumpBuffer   = 32 << 10 // of which the kernel fills no more with one datagram of a dump
	skipStats    = 1 << 3   // RTEXT_FILTER_SKIP_STATS (linux/rtnetlink.h): half of what is said of a device
)

// dumper lists the kernel's tables. It may be used by any goroutine.
//
// A large node's tables are listed at each refresh by agents that are at rest otherwise: so a dump takes as much memory as the kernel says bytes, and
// its buffer is used again. The library takes 64 KiB for each datagram, and the devices are asked for with each table.
type dumper struct {
	mu   sync.Mutex
	fd   int
	seq  uint32
	buf  []byte
	size map[uint16]int // of the last dump of a kind, in bytes
}

// openDumper opens a socket in the namespace of the calling thread.
func openDumper() (*dumper, error) {
	fd, err := openSocket()
	if err != nil {
		return nil, err
	}
	return &dumper{fd: fd, buf: make([]byte, dumpBuffer), size: map[uint16]int{}}, nil
}

func (d *dumper) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = unix.Close(d.fd)
	d.fd = -1
}

// dump returns the answers to a dump request: a consistent picture. It repeats a dump that concurrent changes have interrupted. The request begins with
// fixed; mask says which parts of the answers are wanted, 0 if they have none.
func (c *Conn) dump(ctx context.Context, request, answer uint16, fixed nl.NetlinkRequestData, mask int) ([][]byte, error) {
	var err error
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var m messages
		m.begin(request, unix.NLM_F_DUMP, fixed.Serialize()...)
		m.uint32(unix.IFLA_EXT_MASK, mask)
		var msgs [][]byte
		msgs, err = c.dumper.ask(&m, answer)
		if err == nil {
			return msgs, nil
		}
		if !is(err, unix.EINTR, unix.ENOBUFS) {
			return nil, err
		}
	}
	return nil, err
}

// ask sends a request and returns the bodies of its answers of that kind.
func (d *dumper) ask(m *messages, answer uint16) ([][]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	binary.NativeEndian.PutUint32(m.buf[8:], d.seq)
	if err := sendTo(d.fd, m); err != nil {
		return nil, err
	}
	l := listing{answer: answer, seq: d.seq, text: make([]byte, 0, d.size[answer]+d.size[answer]/8)}
	for began := time.Now(); time.Since(began) < socketTimeout; {
		n, err := receiveFrom(d.fd, d.buf, unix.MSG_TRUNC)
		if err != nil {
			return nil, err
		}
		if n > len(d.buf) {
			d.buf, l.interrupted = make([]byte, aligned(n)), true // the next attempt has room for it
			continue
		}
		if done, err := l.add(d.buf[:n]); done || err != nil {
			d.size[answer] = len(l.text)
			return l.bodies(), err
		}
	}
	return nil, fmt.Errorf("receive from netlink: %w", unix.ETIMEDOUT)
}

// listing is the answers to one request so far.
type listing struct {
	answer      uint16
	seq         uint32
	text        []byte // their bodies, one after the other
	ends        []int  // in text
	interrupted bool
}

// add takes a datagram over, and tells whether it was the last. What is left of an earlier request that was given up is passed over.
func (l *listing) add(buf []byte) (done bool, err error) {
	const header = unix.SizeofNlMsghdr
	for len(buf) >= header {
		size := int(binary.NativeEndian.Uint32(buf))
		if size < header || size > len(buf) {
			return false, fmt.Errorf("receive from netlink: a message of %d bytes in %d", size, len(buf))
		}
		kind, flags, body := binary.NativeEndian.Uint16(buf[4:]), binary.NativeEndian.Uint16(buf[6:]), buf[header:size]
		ours := binary.NativeEndian.Uint32(buf[8:]) == l.seq
		buf = buf[min(len(buf), aligned(size)):]
		if !ours {
			continue
		}
		l.interrupted = l.interrupted || flags&unix.NLM_F_DUMP_INTR != 0
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, l.outcome(body)
		case l.answer:
			l.text = append(l.text, body...)
			l.ends = append(l.ends, len(l.text))
		}
	}
	return false, nil
}

// outcome is what the last message says; unix.EINTR if the table has changed meanwhile.
func (l *listing) outcome(body []byte) error {
	if len(body) >= 4 {
		if errno := int32(binary.NativeEndian.Uint32(body)); errno != 0 {
			return unix.Errno(-errno)
		}
	}
	if l.interrupted {
		return unix.EINTR
	}
	return nil
}

func (l *listing) bodies() [][]byte {
	out, from := make([][]byte, len(l.ends)), 0
	for i, end := range l.ends {
		out[i], from = l.text[from:end:end], end
	}
	return out
}
