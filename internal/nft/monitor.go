package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// groupTables is the multicast group of changes of rules, as a bit (NFNLGRP_NFTABLES).
const groupTables = 1 << (unix.NFNLGRP_NFTABLES - 1)

// Monitor hears who changes one table.
type Monitor struct {
	s     *socket
	c     *Conn // whose commits are no news
	table string

	touched bool // by the transaction whose messages are coming in
}

// NewMonitor subscribes to the changes of rules in the namespace that the calling thread is in, which has to be the one of c. From its return on
// nothing is missed.
func NewMonitor(c *Conn, table string) (*Monitor, error) {
	s, err := openSocket(groupTables)
	if err != nil {
		return nil, err
	}
	return &Monitor{s: s, c: c, table: table}, nil
}

// Run calls notify whenever somebody has changed the table or deleted it by another connection, and when events were lost, until ctx is done; then it
// returns nil and releases the socket. It may be called once. notify must not wait.
func (m *Monitor) Run(ctx context.Context, notify func()) error {
	defer m.s.Close()
	stop := m.s.until(ctx)
	defer stop()
	buf := make([]byte, readSize)
	for {
		n, err := m.s.receive(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			notify()
			continue
		case err != nil:
			return fmt.Errorf("receive nftables' events: %w", err)
		}
		if m.take(buf[:n]) {
			notify()
		}
	}
}

// take reads events and tells whether a transaction of somebody else's that ended among them touched the table. A transaction's changes come
// first, and at last the generation that it began. Each names the socket that it came by. (The process that the latter names too is a thread.)
func (m *Monitor) take(b []byte) (foreign bool) {
	_, err := each(b, func(h header, body []byte) (bool, error) {
		if h.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(body) < nfgenLen {
			return false, nil
		}
		if h.typ&0xff != unix.NFT_MSG_NEWGEN {
			// The table's name is the first attribute of all kinds of objects.
			m.touched = m.touched || text(find(body[nfgenLen:], unix.NFTA_TABLE_NAME)) == m.table
			return false, nil
		}
		foreign = foreign || m.touched && h.port != m.c.s.port
		m.touched = false
		return false, nil
	})
	return foreign || err != nil
}
