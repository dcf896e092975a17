package nft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// limitedWorld is a world of both families in which everything is allowed.
func limitedWorld(t *testing.T, s ruleset.Settings, a, b policy.Limits) *world {
	t.Helper()
	s.Pools = []netip.Prefix{netip.MustParsePrefix("10.65.0.0/16"), netip.MustParsePrefix("fd00:65::/32")}
	w := newWorld(t, s)
	w.addIPv6()
	u := everybody()
	w.apply(u)
	w.limit(a, b)
	return w
}

func everybody() policy.Update {
	return twoPods(policyOf("in", api.Ingress, policy.Rule{Action: api.Allow}))
}

// limit replaces the pods' limits.
func (w *world) limit(a, b policy.Limits) {
	w.t.Helper()
	u := everybody()
	bothAddrs(u)
	u.Endpoints[policy.EndpointKey{Name: "a"}].Limits, u.Endpoints[policy.EndpointKey{Name: "b"}].Limits = a, b
	w.apply(policy.Update{Endpoints: u.Endpoints})
}

// echo answers in a namespace what it is told by TCP, at port 80 of every address.
func (w *world) echo(ns *nettest.NS) {
	w.t.Helper()
	var l net.Listener
	ns.Do(func() {
		var err error
		if l, err = net.Listen("tcp", ":80"); err != nil {
			w.t.Fatal(err)
		}
	})
	w.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
}

// connect connects by TCP. Its error is the kernel's.
func (w *world) connect(from *nettest.NS, to string) (c net.Conn, err error) {
	w.t.Helper()
	from.Do(func() { c, err = net.DialTimeout("tcp", net.JoinHostPort(to, "80"), nettest.Patience(10*time.Second)) })
	if err == nil {
		w.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func answers(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(nettest.Patience(10 * time.Second)))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestConnectionsBeyondTheLimitAreRefusedAndOthersGoOn(t *testing.T) {
	three := policy.Limit{Connections: 3}
	w := limitedWorld(t, settings(), policy.Limits{Egress: three}, policy.Limits{Ingress: three})
	w.echo(w.away)
	w.echo(w.b)
	for _, way := range []struct {
		name string
		from *nettest.NS
		to   string
	}{
		{"what a pod begins, IPv4", w.a, addrAway},
		{"what a pod begins, IPv6", w.a, away6},
		{"what a pod gets, IPv4", w.away, addrB},
		{"what a pod gets, IPv6", w.away, b6},
	} {
		t.Run(way.name, func(t *testing.T) { w.refusesTheFourth(t, way.from, way.to) })
	}
}

// refusesTheFourth holds three connections, sees the fourth refused, and gets another one in place of one that has ended.
func (w *world) refusesTheFourth(t *testing.T, from *nettest.NS, to string) {
	var open []net.Conn
	for range 3 {
		nettest.Eventually(t, func() error { // when those before, of the other family, have ended
			c, err := w.connect(from, to)
			open = append(open, c)
			return err
		})
	}
	open = slices.DeleteFunc(open, func(c net.Conn) bool { return c == nil })
	before := w.counters()["r-connections"].Packets
	if _, err := w.connect(from, to); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("the fourth connection: %v, want that it is refused", err)
	}
	if w.counters()["r-connections"].Packets == before {
		t.Error("nobody has counted that")
	}
	for _, c := range open {
		if err := answers(c); err != nil {
			t.Errorf("a connection that there was: %v", err)
		}
	}
	_ = open[0].Close()
	nettest.Eventually(t, func() error {
		c, err := w.connect(from, to)
		if err == nil {
			open = append(open, c)
		}
		return err
	})
	for _, c := range open {
		_ = c.Close()
	}
}

func TestChangesOfOthersAndARestartLeaveAnAccountAlone(t *testing.T) {
	two := policy.Limits{Egress: policy.Limit{Connections: 2}}
	w := limitedWorld(t, settings(), two, policy.Limits{})
	w.echo(w.away)
	for range 2 {
		if _, err := w.connect(w.a, addrAway); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(after string) {
		t.Helper()
		if _, err := w.connect(w.a, addrAway); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after %s, the third connection: %v, want that it is refused", after, err)
		}
	}
	refused("nothing")
	w.limit(two, policy.Limits{Egress: policy.Limit{Connections: 5}, Marked: true})
	refused("a change of another pod's limits")
	both := two
	both.Egress.Packets = policy.Rate{PerSecond: 100_000, Burst: 1000}
	w.limit(both, policy.Limits{})
	refused("a change of the pod's other limits")
	fresh := ruleset.New(settings())
	u := everybody()
	bothAddrs(u)
	u.Endpoints[policy.EndpointKey{Name: "a"}].Limits = both
	fresh.Update(u)
	fresh.Take()
	done, err := NewKeeper(w.c, ruleset.Table).Sync(t.Context(), fresh.Table(), false)
	if err != nil || !done.Changed.Empty() {
		t.Fatalf("another agent has changed %+v: %v", done.Changed, err)
	}
	refused("a restart")
	w.limit(policy.Limits{}, policy.Limits{})
	if _, err := w.connect(w.a, addrAway); err != nil {
		t.Errorf("without the limit: %v", err)
	}
	if d, err := w.k.Check(t.Context(), w.layout.Table()); err != nil || !d.Changed.Empty() {
		t.Errorf("afterwards %+v was left, %v", d.Changed, err)
	}
}

// TestNodesLimitBindsAFloodAndNobodyElse floods with datagrams that each begin a connection, by limits that are counted in one account and in many.
func TestNodesLimitBindsAFloodAndNobodyElse(t *testing.T) {
	for _, limit := range []int{500, 8192} {
		t.Run(strconv.Itoa(limit), func(t *testing.T) {
			s := settings()
			s.PodConnections = uint32(limit)
			w := limitedWorld(t, s, policy.Limits{}, policy.Limits{Egress: policy.Limit{Connections: 3}})
			heard := w.listener(w.away, addrAway+":99")
			old := w.dialer(w.a, "", addrAway+":99")
			goesOn(t, old, heard)
			w.flood(w.a, 2*limit)
			if n := w.tracked(); n > limit+10 || n < limit/3 {
				t.Errorf("the host tracks %d connections, want about %d and no more", n, limit)
			}
			for range 10 { // nobody answers, so each datagram might be a new connection
				goesOn(t, old, heard)
			}
			w.echo(w.away)
			for range 3 {
				if _, err := w.connect(w.b, addrAway); err != nil {
					t.Errorf("another pod: %v", err)
				}
			}
			if _, err := w.connect(w.b, addrAway); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("beyond the other pod's own limit: %v", err)
			}
		})
	}
}

// goesOn sends a datagram, and expects it to arrive.
func goesOn(t *testing.T, from, to *net.UDPConn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = to.SetReadDeadline(time.Now().Add(nettest.Patience(10 * time.Second)))
	if _, _, err := to.ReadFrom(make([]byte, 1)); err != nil {
		t.Fatalf("a datagram of a connection that there was: %v", err)
	}
}

// flood sends that many datagrams, each to another port.
func (w *world) flood(from *nettest.NS, many int) {
	w.t.Helper()
	var out net.PacketConn
	from.Do(func() {
		var err error
		if out, err = net.ListenPacket("udp4", ":0"); err != nil {
			w.t.Fatal(err)
		}
	})
	defer func() { _ = out.Close() }()
	for i := range many {
		to := netip.AddrPortFrom(netip.MustParseAddr(addrAway), uint16(20_000+i))
		_, _ = out.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to))
	}
}

func (w *world) tracked() int {
	w.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(w.host.Exec("cat", "/proc/sys/net/netfilter/nf_conntrack_count")))
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// TestRatesAreKept sends much more at once than a limit lets through. What arrives is the burst, and what time has added to it.
func TestRatesAreKept(t *testing.T) {
	packets, bytes := policy.Rate{PerSecond: 20, Burst: 30}, policy.Rate{PerSecond: 10_000, Burst: 30_000}
	const size, many = 1000, 60 // they fit into a socket's buffer, and are more than any limit lets through
	w := limitedWorld(t, settings(), policy.Limits{}, policy.Limits{})
	for _, c := range []struct {
		name  string
		a, b  policy.Limits
		burst int // datagrams
		more  int // a second
	}{
		{"packets that a pod sends", policy.Limits{Egress: policy.Limit{Packets: packets}}, policy.Limits{}, 30, 20},
		{"packets that a pod gets", policy.Limits{}, policy.Limits{Ingress: policy.Limit{Packets: packets}}, 30, 20},
		{"bytes that a pod sends", policy.Limits{Egress: policy.Limit{Bytes: bytes}}, policy.Limits{}, 40_000 / size, 10},
		{"bytes that a pod gets", policy.Limits{}, policy.Limits{Ingress: policy.Limit{Peak: bytes}}, 40_000 / size, 10},
		{"no limit", policy.Limits{}, policy.Limits{}, many, 0},
	} {
		for _, to := range []string{addrB, b6} {
			t.Run(c.name+" to "+to, func(t *testing.T) {
				w.limit(policy.Limits{}, policy.Limits{})
				w.limit(c.a, c.b)
				began := time.Now()
				got := w.arrive(w.a, w.b, netip.AddrPortFrom(netip.MustParseAddr(to), 99), many, size)
				most := c.burst + int(time.Since(began).Seconds()*float64(c.more)) + 1
				if got < c.burst*9/10 || got > most {
					t.Errorf("%d datagrams of %d arrived, want %d to %d", got, many, c.burst, most)
				}
			})
		}
	}
}

// arrive sends datagrams, and counts those that arrive before one that follows them by a way that nothing limits: from the host.
func (w *world) arrive(from, to *nettest.NS, at netip.AddrPort, many, size int) (n int) {
	w.t.Helper()
	l, c, end := w.listener(to, at.String()), w.dialer(from, "", at.String()), w.dialer(w.host, "", at.String())
	_ = l.SetReadDeadline(time.Now().Add(nettest.Patience(10 * time.Second)))
	for range many {
		if _, err := c.Write(make([]byte, size)); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := end.Write([]byte("end")); err != nil {
		w.t.Fatal(err)
	}
	buf := make([]byte, size)
	for {
		got, _, err := l.ReadFrom(buf)
		switch {
		case err != nil:
			w.t.Fatal(err)
		case got == len("end"):
			_, _ = l.Close(), c.Close()
			return n
		}
		n++
	}
}

func TestWhatLeavesTheClusterIsMarked(t *testing.T) {
	s := settings()
	s.ToHost = ruleset.AcceptToHost
	w := limitedWorld(t, s, policy.Limits{Marked: true, DSCP: 46}, policy.Limits{Marked: true, DSCP: 8})
	for _, c := range []struct {
		from, to *nettest.NS
		at       string
		want     int
	}{
		{w.a, w.away, addrAway, 46}, {w.a, w.away, away6, 46}, {w.b, w.away, addrAway, 8}, {w.b, w.away, away6, 8},
		{w.a, w.b, addrB, 0}, {w.a, w.b, b6, 0}, {w.away, w.a, addrA, 0}, {w.away, w.a, a6, 0}, {w.a, w.host, addrHost, 0},
	} {
		if got := w.marked(c.from, c.to, c.at); got != c.want {
			t.Errorf("to %s: DSCP %d, want %d", c.at, got, c.want)
		}
	}
}

// marked sends a datagram and returns the DSCP that it arrives with.
func (w *world) marked(from, to *nettest.NS, at string) int {
	w.t.Helper()
	l := w.listener(to, net.JoinHostPort(at, "99"))
	raw, err := l.SyscallConn()
	if err != nil {
		w.t.Fatal(err)
	}
	level, told, field := unix.IPPROTO_IP, unix.IP_RECVTOS, int32(unix.IP_TOS)
	if strings.Contains(at, ":") {
		level, told, field = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, unix.IPV6_TCLASS
	}
	if errCtl := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, told, 1) }); errors.Join(errCtl, err) != nil {
		w.t.Fatal(errors.Join(errCtl, err))
	}
	if _, err := w.dialer(from, "", net.JoinHostPort(at, "99")).Write([]byte("x")); err != nil {
		w.t.Fatal(err)
	}
	_ = l.SetReadDeadline(time.Now().Add(nettest.Patience(10 * time.Second)))
	oob := make([]byte, 64)
	_, n, _, _, err := l.ReadMsgUDP(make([]byte, 1), oob)
	if err != nil {
		w.t.Fatalf("to %s: %v", at, err)
	}
	_ = l.Close()
	list, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(m unix.SocketControlMessage) bool {
		return m.Header.Level == int32(level) && m.Header.Type == field
	})
	if i < 0 {
		w.t.Fatalf("to %s: the kernel says nothing of the field in %+v", at, list)
	}
	return int(list[i].Data[0]) >> 2
}

func TestKernelIsAskedWhetherItCounts(t *testing.T) {
	c, ns := open(t)
	if !c.CanCount(t.Context()) {
		t.Error("this kernel counts connections, as the other tests show")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c.CanCount(ctx) {
		t.Error("it is said to without having been asked")
	}
	if out := ns.Exec("nft", "list", "tables"); out != "" {
		t.Errorf("the question has left %s", fmt.Sprint(out))
	}
}
