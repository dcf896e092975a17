package store

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// conns are a client's open connections, so that it can close some of its own accord. They are not wrapped: gRPC sets options of a *net.TCPConn
// and of nothing else.
type conns struct {
	mu   sync.Mutex
	open []*net.TCPConn
}

// add takes note of a connection, and forgets those that were closed meanwhile.
func (c *conns) add(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(slices.DeleteFunc(c.open, closed), tcp)
}

func closed(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// drop closes the connections whose own address is gone.
func (c *conns) drop(gone func(netip.Addr) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open {
		if own, ok := conn.LocalAddr().(*net.TCPAddr); ok && gone(own.AddrPort().Addr().Unmap()) {
			_ = conn.Close() // nobody is to read from it any more
		}
	}
}

// Drop closes the connections to etcd from those of this host's addresses that are gone: no answer comes back to them, and without this a call
// finds that out only after seconds. What was under way on them fails, a commit with ErrUnknown; the watch goes on and later calls succeed by a
// connection from another address. Any goroutine may call it, and it does not wait.
func (c *Client) Drop(gone func(netip.Addr) bool) { c.conns.drop(gone) }

// dialer connects directly: a proxy of the environment is for the web.
func (c *Client) dialer(scheme string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			c.trouble.note(scheme+addr, err)
			return nil, err
		}
		c.conns.add(conn)
		return conn, nil
	}
}
