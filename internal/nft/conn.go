// Package nft writes one nftables table of one network namespace, reads it back, and hears when others touch it.
//
// Everything goes over netlink, encoded here: no process, no text. What a table holds are the values of internal/nftable. A
// Keeper makes the kernel's table equal to one of them; it stands on a Conn, which commits a delta as one transaction and lists.
//
// The table belongs to its Conn where the kernel knows how (flags owner and persist, Linux 6.10): nobody else can change it, `nft flush
// ruleset` passes it by, and it outlives the process, to be adopted by the next. Elsewhere it is a table like any other, and a Monitor
// hears of what others do to it.
package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

const (
	// sendBuffer is more than any batch is long: 70,000 rules take some 37 MB, and a batch is one message to the kernel. It is a limit, nothing is
	// allocated for it.
	sendBuffer = 512 << 20
	// receiveBuffer has room for an error for each message of a large batch.
	receiveBuffer = 16 << 20
	// readSize is as much as the kernel puts into one message of a dump, and more.
	readSize = 1 << 20
	// answerTimeout bounds the wait for one answer. A batch is done with when its sending returns, so answers are there.
	answerTimeout = 30 * time.Second
)

// Flags of tables, enum nft_table_flags of linux/netfilter/nf_tables.h.
const (
	flagOwner   = 0x2
	flagPersist = 0x4
)

// ErrUnknown says that answers of the kernel were lost: the batch may have been committed or not. List the table to know.
var ErrUnknown = errors.New("the outcome is unknown: answers of the kernel were lost")

// Conn writes and reads tables of one network namespace. It may be used by any goroutine, also concurrently; one thing is done at a time.
// It is to be kept open: the kernel takes milliseconds to close such a socket, and an owned table belongs to it.
type Conn struct {
	flags uint32 // of tables that it makes

	s *socket

	mu  sync.Mutex // held from a request to its last answer
	seq uint32
	buf []byte
}

// Open opens a connection to the namespace that the calling thread is in. It stays with it wherever it is used.
func Open() (*Conn, error) {
	s, err := openSocket(0)
	if err != nil {
		return nil, err
	}
	c := &Conn{s: s, buf: make([]byte, readSize)}
	if err := c.probe(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return c, nil
}

// OpenToRead is Open for a process that only looks: it makes nothing, not even to find out what the kernel can do, and nobody is disturbed.
func OpenToRead() (*Conn, error) {
	s, err := openSocket(0)
	if err != nil {
		return nil, err
	}
	return &Conn{s: s, buf: make([]byte, readSize)}, nil
}

// Close releases the socket. An owned table stays and belongs to nobody.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.s.Close()
}

// Owns tells whether tables are made to belong to this connection.
func (c *Conn) Owns() bool { return c.flags != 0 }

// probe finds out whether the kernel takes the flags of owned tables that persist: it makes such a table and deletes it in one transaction.
func (c *Conn) probe() error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	name := fmt.Sprintf("muslin-probe-%d", os.Getpid())
	c.mu.Lock()
	defer c.mu.Unlock()
	b := newBatch(name, c.seq, 0)
	b.whole(flagOwner | flagPersist)
	b.about("probe with table", name)
	b.add(unix.NFT_MSG_DELTABLE, 0, func() { b.attrString(unix.NFTA_TABLE_NAME, name) })
	switch err := c.send(ctx, b); {
	case err == nil:
		c.flags = flagOwner | flagPersist
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil
	default:
		return fmt.Errorf("find out what nftables can do: %w", err)
	}
}

// CanSyslog tells whether the kernel takes rules that write to its log, which needs a part of it that not every host has. It makes a table with
// such a rule and deletes it in one transaction.
func (c *Conn) CanSyslog(ctx context.Context) bool {
	return c.takes(ctx, nil, nftable.Syslog{Prefix: "probe", Level: 5})
}

// CanCount tells likewise whether it takes rules that count connections (nft_connlimit, nft_hash, Linux 5.2).
func (c *Conn) CanCount(ctx context.Context) bool {
	crowd := nftable.NewDynamic("crowd", nftable.IfaceParts, 1, false)
	return c.takes(ctx, crowd, nftable.CrowdOf{Set: crowd.Name, Parts: 2, Limit: 1}, nftable.Crowd{Limit: 1})
}

// takes tells whether the kernel takes a rule, which may name a set.
func (c *Conn) takes(ctx context.Context, set *nftable.Set, stmts ...nftable.Stmt) bool {
	name := fmt.Sprintf("muslin-probe-%d", os.Getpid())
	t := nftable.NewTable(name)
	if set != nil {
		t.Sets[set.Name] = set
	}
	t.Chains["probe"] = nftable.NewChain("probe", nftable.Base{}, nftable.Rule{Stmts: stmts})
	c.mu.Lock()
	defer c.mu.Unlock()
	b := newBatch(name, c.seq, 0)
	if err := b.delta(nftable.Build(t), 0); err != nil {
		return false
	}
	b.about("probe with table", name)
	b.add(unix.NFT_MSG_DELTABLE, 0, func() { b.attrString(unix.NFTA_TABLE_NAME, name) })
	return c.send(ctx, b) == nil
}

// Commit makes a delta take effect on a table, all of it at once or, after an error, none of it. It does only what it is told: what the
// delta deletes must be there, and so on. If gen is not 0 and the rules of the namespace are of another generation by now, it
// fails with ERESTART. An error names what the kernel refused; after ErrUnknown nobody knows. It waits for the kernel, longest where a large table is validated;
// ctx bounds the wait for answers, not the work itself.
func (c *Conn) Commit(ctx context.Context, table string, d nftable.Delta, gen uint32) error {
	if d.Empty() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b := newBatch(table, c.seq, gen)
	if err := b.delta(d, c.flags); err != nil {
		return err
	}
	return c.send(ctx, b)
}

// Adopt makes a table that is there belong to this connection, after the process that it belonged to has ended. It does nothing
// where tables belong to nobody. The error is EPERM while somebody else has it.
func (c *Conn) Adopt(ctx context.Context, table string) error {
	if !c.Owns() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b := newBatch(table, c.seq, 0)
	b.about("adopt table", table)
	b.add(unix.NFT_MSG_NEWTABLE, 0, func() {
		b.attrString(unix.NFTA_TABLE_NAME, table)
		b.attr32(unix.NFTA_TABLE_FLAGS, c.flags)
	})
	return c.send(ctx, b)
}

// Delete deletes a table with all that is in it. One that is not there is no error.
func (c *Conn) Delete(ctx context.Context, table string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := newBatch(table, c.seq, 0)
	b.about("delete table", table)
	b.add(unix.NFT_MSG_DELTABLE, 0, func() { b.attrString(unix.NFTA_TABLE_NAME, table) })
	if err := c.send(ctx, b); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// send sends a batch and waits for the kernel's judgement. c.mu is held.
func (c *Conn) send(ctx context.Context, b *batch) error {
	acked := b.seq
	b.finish()
	c.seq = b.seq
	if err := c.s.send(b.b); err != nil {
		return fmt.Errorf("send %d bytes to nftables: %w", len(b.b), err)
	}
	var errs []error
	err := c.answers(ctx, func(h header, body []byte) (bool, error) {
		if h.typ != unix.NLMSG_ERROR || h.seq < b.first || h.seq > b.seq {
			return false, nil // of an earlier batch whose answers were not awaited
		}
		if err := errorOf(h, body); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.failed(h.seq), err))
		}
		// An error of the batch as a whole bears the number of its begin. Whether an acknowledgement follows depends on the error.
		return h.seq == acked || h.seq == b.first, nil
	})
	return errors.Join(append(errs, err)...)
}

// answers calls f for each message that is received until it says that this was the last.
func (c *Conn) answers(ctx context.Context, f func(header, []byte) (done bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	stop := c.s.until(ctx)
	defer stop()
	for {
		n, err := c.s.receive(c.buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			return errors.Join(ErrUnknown, c.drain())
		case ctx.Err() != nil:
			return fmt.Errorf("await nftables' answer: %w", errors.Join(ErrUnknown, ctx.Err(), c.drain()))
		case err != nil:
			return fmt.Errorf("receive from nftables: %w", errors.Join(ErrUnknown, err))
		}
		if done, err := each(c.buf[:n], f); done || err != nil {
			return err
		}
	}
}

// drain throws away what still waits to be received: answers that nobody awaits any more. A dump that was given up goes on for as long as it is
// not read to its end, and the kernel takes no other one meanwhile.
func (c *Conn) drain() error {
	for {
		switch _, err := c.s.poll(c.buf); {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return fmt.Errorf("empty socket to nftables: %w", err)
		}
	}
}

// header is a netlink message's.
type header struct {
	typ, flags uint16
	seq, port  uint32
}

// each calls f for every message in what was received, until it is done. Messages that are cut off end it with an error.
func each(b []byte, f func(header, []byte) (bool, error)) (bool, error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, errTruncated
		}
		h := header{
			typ:   binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			port:  binary.NativeEndian.Uint32(b[12:]),
		}
		if done, err := f(h, b[unix.SizeofNlMsghdr:size]); done || err != nil {
			return done, err
		}
		b = b[min(align(size), len(b)):]
	}
	return false, nil
}

var errTruncated = errors.New("netlink message is truncated")

// errorOf returns the error in a message of the type NLMSG_ERROR or NLMSG_DONE, nil for an acknowledgement, with what the kernel said about it.
func errorOf(h header, body []byte) error {
	if len(body) < 4 {
		if h.typ == unix.NLMSG_DONE {
			return nil
		}
		return errTruncated
	}
	errno := -int32(binary.NativeEndian.Uint32(body))
	if errno <= 0 {
		return nil
	}
	err := unix.Errno(errno)
	const capped = 4 + unix.SizeofNlMsghdr // with NETLINK_CAP_ACK only the header of what failed is repeated
	if h.flags&unix.NLM_F_ACK_TLVS == 0 || len(body) < capped {
		return err
	}
	for a := range attrs(body[capped:]) {
		if a.typ == unix.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w (%s)", err, a.string())
		}
	}
	return err
}
