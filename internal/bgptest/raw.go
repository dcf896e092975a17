// Package bgptest plays the far end of a BGP session byte by byte, for what no daemon would say.
package bgptest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Types of BGP messages (RFC 4271 section 4.1), and one that there is not.
const (
	Open      = 1
	Update    = 2
	Keepalive = 4
	Unknown   = 99
)

// dialTimeout and openTimeout bound how long a session takes to come up, or to be refused.
const (
	dialTimeout = 5 * time.Second
	openTimeout = 10 * time.Second
)

// FarEnd is the far end of a session.
type FarEnd struct{ net.Conn }

// Send sends a message of the kind with the body.
func (w FarEnd) Send(kind byte, body []byte) error {
	head := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, kind)
	binary.BigEndian.PutUint16(head[16:], uint16(len(head)+len(body)))
	_, err := w.Write(append(head, body...))
	return err
}

// Receive waits for a message and passes over its body.
func (w FarEnd) Receive() (kind byte, err error) {
	var head [19]byte
	if _, err := io.ReadFull(w, head[:]); err != nil {
		return 0, err
	}
	_, err = io.CopyN(io.Discard, w, int64(binary.BigEndian.Uint16(head[16:]))-int64(len(head)))
	return head[18], err
}

// Establish makes a session from the address, which is the router id too, to the server at to. It has a deadline of ten seconds, which the caller may
// move. Where it fails, nothing is left open.
func Establish(from netip.Addr, as uint16, to netip.AddrPort) (FarEnd, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: dialTimeout}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return FarEnd{}, err
	}
	w := FarEnd{c}
	if err := w.open(from, as); err != nil {
		_ = w.Close() // it has failed already
		return FarEnd{}, fmt.Errorf("open session: %w", err)
	}
	return w, nil
}

func (w FarEnd) open(from netip.Addr, as uint16) error {
	if err := w.SetDeadline(time.Now().Add(openTimeout)); err != nil {
		return err
	}
	id := from.As4()
	body := append([]byte{4, byte(as >> 8), byte(as), 0, 240}, id[:]...)
	body = append(body, 16, 2, 14, 1, 4, 0, 1, 0, 1, 64, 6, 0, 120, 0, 1, 1, 0) // IPv4 unicast (RFC 4760), that may restart (RFC 4724)
	if err := w.Send(Open, body); err != nil {
		return err
	}
	for {
		kind, err := w.Receive()
		switch {
		case err != nil:
			return err
		case kind == Open:
			if err := w.Send(Keepalive, nil); err != nil {
				return err
			}
		case kind == Keepalive:
			return nil
		default:
			return fmt.Errorf("it was answered with message %d", kind)
		}
	}
}

// Route is Routes for 203.0.113.0/24.
func Route(as uint16, hop netip.Addr) []byte {
	return Routes(as, hop, netip.MustParsePrefix("203.0.113.0/24"))
}

// Routes is the body of a well-formed UPDATE for IPv4 prefixes by the next hop, from the AS (RFC 4271 section 4.3).
func Routes(as uint16, hop netip.Addr, dsts ...netip.Prefix) []byte {
	h := hop.As4()
	attrs := []byte{0x40, 1, 1, 0, 0x40, 2, 4, 2, 1, byte(as >> 8), byte(as), 0x40, 3, 4, h[0], h[1], h[2], h[3]}
	body := append([]byte{0, 0, 0, byte(len(attrs))}, attrs...)
	for _, p := range dsts {
		a := p.Addr().As4()
		body = append(append(body, byte(p.Bits())), a[:(p.Bits()+7)/8]...)
	}
	return body
}
