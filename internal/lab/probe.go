package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	attemptTimeout = 2 * time.Second
	datagramPause  = 500 * time.Millisecond
	serveTimeout   = 5 * time.Second // of one connection
	bulkBytes      = 1 << 20
	maxDatagram    = 1 << 16
)

// endpoint is a pod or host that takes part in a check by one of its addresses: it listens, and it sends.
type endpoint struct {
	name   string
	kind   kind
	node   string // where it is; "" for the outside host
	subnet int
	addr   netip.Addr
	at     *place       // nil if it cannot be entered
	own    []netip.Addr // every address that it has of the family of addr
	mtu    int          // of eth0
	tcp    net.Listener
	udp    net.PacketConn
	err    error // why it cannot take part
}

func (e *endpoint) v6() bool { return e.addr.Is6() }

// network is the Go name of a transport over the endpoint's family: tcp4.
func (e *endpoint) network(transport string) string {
	if e.v6() {
		return transport + "6"
	}
	return transport + "4"
}

// udpOverhead is the size of the IP and UDP headers.
func (e *endpoint) udpOverhead() int {
	if e.v6() {
		return 40 + 8
	}
	return 20 + 8
}

type kind string

const (
	kindPod     kind = "pod"
	kindNode    kind = "node"
	kindOutside kind = "outside"
)

// question opens a TCP connection; bulk bytes follow it.
type question struct {
	Bulk int `json:"bulk"`
}

// answer is what the receiver of a TCP connection or a datagram says.
type answer struct {
	Name string     `json:"name"` // of the receiver
	Seen netip.Addr `json:"seen"` // the sender's address
	Size int        `json:"size"` // bytes of the bulk or of the datagram
	Sum  string     `json:"sum"`  // SHA-256 of the bulk
}

// open looks at the endpoint's eth0 and listens on its address: not on all, because an answer must come from where the question went.
func (e *endpoint) open(ctx context.Context) error {
	h, err := e.at.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	e.mtu = link.Attrs().MTU
	family := netlink.FAMILY_V4
	if e.v6() {
		family = netlink.FAMILY_V6
	}
	addrs, err := h.AddrList(nil, family)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			e.own = append(e.own, ip.Unmap())
		}
	}
	return e.at.run(func() (err error) {
		lc := &net.ListenConfig{}
		lc.SetMultipathTCP(false)
		if e.tcp, err = lc.Listen(ctx, e.network("tcp"), netip.AddrPortFrom(e.addr, 0).String()); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		if e.udp, err = lc.ListenPacket(ctx, e.network("udp"), netip.AddrPortFrom(e.addr, 0).String()); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		return nil
	})
}

// close ends the listeners, and with them serve.
func (e *endpoint) close() {
	if e.tcp != nil {
		_ = e.tcp.Close() // nothing is pending
	}
	if e.udp != nil {
		_ = e.udp.Close()
	}
	if e.at != nil {
		e.at.close()
	}
}

// serve answers until close.
func (e *endpoint) serve() {
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(e.serveUDP)
	for {
		conn, err := e.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of one connection
		}
		serving.Go(func() {
			defer conn.Close()
			_ = e.answerTCP(conn) // the other side sees that no answer comes
		})
	}
}

func (e *endpoint) answerTCP(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(patient(serveTimeout))); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	var q question
	if err := json.Unmarshal(line, &q); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.CopyN(sum, r, int64(min(q.Bulk, bulkBytes)))
	if err != nil {
		return err
	}
	return json.NewEncoder(conn).Encode(answer{e.name, addrOf(conn.RemoteAddr()), int(n), hex.EncodeToString(sum.Sum(nil))})
}

func (e *endpoint) serveUDP() {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := e.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that belongs to an earlier answer
		}
		b, err := json.Marshal(answer{Name: e.name, Seen: addrOf(from), Size: n})
		if err == nil {
			_, _ = e.udp.WriteTo(b, from) // lost answers look like lost questions
		}
	}
}

func addrOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// dial opens a socket in the endpoint's network namespace, and sets a deadline on it.
func (e *endpoint) dial(ctx context.Context, to net.Addr) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patient(attemptTimeout))
	defer cancel()
	deadline, _ := ctx.Deadline()
	d := &net.Dialer{}
	d.SetMultipathTCP(false)
	if to.Network() == "udp" {
		d.Control = dontFragment
	}
	var conn net.Conn
	err := e.at.run(func() (err error) {
		conn, err = d.DialContext(ctx, e.network(to.Network()), to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// dontFragment makes a socket send with DF set and fail on what is larger than the path's MTU, ip(7) and ipv6(7).
func dontFragment(network, _ string, raw syscall.RawConn) error {
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if network == "udp6" {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	var err error
	ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(ctlErr, err)
}

// askBoth asks small questions by TCP and UDP at once.
func (e *endpoint) askBoth(ctx context.Context, to *endpoint) (tcp, udp answer, tcpErr, udpErr error) {
	var asking sync.WaitGroup
	asking.Go(func() { tcp, tcpErr = e.askTCP(ctx, to, 0) })
	udp, udpErr = e.askUDP(ctx, to, 0)
	asking.Wait()
	return tcp, udp, tcpErr, udpErr
}

// askTCP connects, sends bulk bytes and returns the verified answer.
func (e *endpoint) askTCP(ctx context.Context, to *endpoint, bulk int) (answer, error) {
	conn, err := e.dial(ctx, to.tcp.Addr())
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	payload := []byte(randomHex(bulk / 2))
	if err := json.NewEncoder(conn).Encode(question{Bulk: len(payload)}); err != nil {
		return answer{}, err
	}
	if _, err := conn.Write(payload); err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return answer{}, err
	}
	if sum := sha256.Sum256(payload); a.Size != len(payload) || a.Sum != hex.EncodeToString(sum[:]) {
		return a, fmt.Errorf("%d bytes were sent, other %d arrived", len(payload), a.Size)
	}
	return a, a.from(to)
}

// askUDP sends a datagram with DF set, again while no answer comes, since one may be lost on a way that is there. It returns the answer.
func (e *endpoint) askUDP(ctx context.Context, to *endpoint, size int) (answer, error) {
	conn, err := e.dial(ctx, to.udp.LocalAddr())
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	said, err := converse(ctx, conn, make([]byte, size))
	if err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal(said, &a); err != nil {
		return answer{}, fmt.Errorf("decode answer: %w", err)
	}
	if a.Size != size {
		return a, fmt.Errorf("%d bytes were sent, %d arrived", size, a.Size)
	}
	return a, a.from(to)
}

// converse sends a datagram every datagramPause until one comes back or the attempt is over.
func converse(ctx context.Context, conn net.Conn, datagram []byte) ([]byte, error) {
	over := time.Now().Add(patient(attemptTimeout))
	buf := make([]byte, maxDatagram)
	for {
		if _, err := conn.Write(datagram); err != nil {
			return nil, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(datagramPause)); err != nil {
			return nil, err
		}
		n, err := conn.Read(buf)
		if err == nil {
			return buf[:n], nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil || time.Now().After(over) {
			return nil, err
		}
	}
}

func (a answer) from(to *endpoint) error {
	if a.Name != to.name {
		return fmt.Errorf("%s answered in its place", a.Name)
	}
	return nil
}

// brief says in a few words why an attempt failed.
func brief(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		if errno == unix.EMSGSIZE {
			return "message larger than the path's MTU"
		}
		return errno.Error()
	}
	if ne, ok := errors.AsType[net.Error](err); errors.Is(err, os.ErrDeadlineExceeded) || ok && ne.Timeout() {
		return "no answer"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "connection closed without an answer"
	}
	return err.Error()
}
