package echo

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const port = 9097

// link is two hosts on one link. near asks, far answers.
type link struct {
	near, far *nettest.NS
	answers   *Responder
}

func (l link) target(v6 bool) probe.Target {
	t := probe.Target{From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddr("192.0.2.2"), MTU: 1500, Port: port}
	if v6 {
		t.From, t.To = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	}
	return t
}

func (l link) test(t *testing.T, v6 bool) (a probe.Answers) {
	t.Helper()
	l.near.Do(func() { a = Test(t.Context(), l.target(v6)) })
	return a
}

// joined makes the hosts and has far answer near.
func joined(t *testing.T) link {
	t.Helper()
	l := link{near: nettest.New(t), far: nettest.New(t), answers: NewResponder(port)}
	nettest.Pair(l.near, "eth0", l.far, "eth0")
	for ns, host := range map[*nettest.NS]string{l.near: "1", l.far: "2"} {
		ns.Exec("ip", "addr", "add", "192.0.2."+host+"/24", "dev", "eth0")
		ns.Exec("ip", "addr", "add", "2001:db8::"+host+"/64", "dev", "eth0", "nodad")
	}
	l.answers.Allow([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")})
	l.listen(t, "192.0.2.2", "2001:db8::2")
	t.Cleanup(l.answers.Close)
	return l
}

func (l link) listen(t *testing.T, at ...string) {
	t.Helper()
	var addrs []netip.Addr
	for _, a := range at {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	l.far.Do(func() {
		if err := l.answers.Listen(t.Context(), addrs); err != nil {
			t.Fatal(err)
		}
	})
}

var families = map[string]bool{"IPv4": false, "IPv6": true}

func TestPathThatIsWellIsAnsweredInFull(t *testing.T) {
	l := joined(t)
	for name, v6 := range families {
		if got, want := l.test(t, v6), (probe.Answers{Plain: probe.Answered, Offloaded: probe.Answered, Largest: 1500}); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// Larger ones vanish at the far end, where a veth device takes what is up to four bytes longer than its MTU, for the sake of VLANs, or are refused by the
// own device.
func TestLargestPacketIsFound(t *testing.T) {
	l := joined(t)
	for _, c := range []struct {
		at   *nettest.NS
		want int
	}{{l.far, 1404}, {l.near, 1400}} {
		c.at.Exec("ip", "link", "set", "eth0", "mtu", "1400")
		for name, v6 := range families {
			if got := l.test(t, v6); got.Plain != probe.Answered || got.Offloaded != probe.Answered || got.Largest != c.want {
				t.Errorf("%s: %+v, want %d", name, got, c.want)
			}
		}
	}
}

func TestSilenceAndRefusalAreToldApart(t *testing.T) {
	l := joined(t)
	l.answers.Allow(nil) // strangers hear nothing
	for name, v6 := range families {
		if got := l.test(t, v6); got != (probe.Answers{Plain: probe.NoAnswer}) {
			t.Errorf("%s, a stranger: %+v", name, got)
		}
	}
	l.listen(t) // nowhere: the agent is away
	for name, v6 := range families {
		if got := l.test(t, v6); got != (probe.Answers{Plain: probe.Refused}) {
			t.Errorf("%s, nobody listens: %+v", name, got)
		}
	}
	l.near.Exec("ip", "addr", "flush", "dev", "eth0")
	for name, v6 := range families {
		if got := l.test(t, v6); got.Unable == "" || got.Plain != probe.NotAsked {
			t.Errorf("%s, without an address: %+v", name, got)
		}
	}
}

func TestTestEndsWithItsContext(t *testing.T) {
	l := joined(t)
	l.answers.Allow(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.near.Do(func() {
		if got := Test(ctx, l.target(false)); got.Plain == probe.Answered {
			t.Errorf("%+v", got)
		}
	})
}

func TestAnswersBeginBeforeTheAddressIsThere(t *testing.T) {
	l := joined(t)
	l.listen(t, "198.51.100.2")
	l.far.Exec("ip", "addr", "add", "198.51.100.2/32", "dev", "eth0")
	l.near.Exec("ip", "route", "add", "198.51.100.2/32", "dev", "eth0")
	to := l.target(false)
	to.To = netip.MustParseAddr("198.51.100.2")
	l.near.Do(func() {
		if got := Test(t.Context(), to); got.Plain != probe.Answered {
			t.Errorf("%+v", got)
		}
	})
}

// TestChecksumsAreLeftToTheDeviceAsMeant looks at the frames as a device gets them. Of what is left to it the checksum field holds the sum of the
// pseudo-header alone (RFC 768), which is what a driver that forgets its duty would send.
func TestChecksumsAreLeftToTheDeviceAsMeant(t *testing.T) {
	l := joined(t)
	for name, v6 := range families {
		l.test(t, v6) // neighbours are known now
		var frames [][]byte
		l.far.Do(func() {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fd) }()
			wait := unix.NsecToTimeval(int64(200 * time.Millisecond))
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
				t.Fatal(err)
			}
			l.test(t, v6)
			for {
				buf := make([]byte, 2048)
				n, _, err := unix.Recvfrom(fd, buf, 0)
				if err != nil {
					return
				}
				frames = append(frames, buf[:n])
			}
		})
		var sums []bool // of questions and answers in turn
		for _, f := range frames {
			if right, udp := checksumOf(f, v6); udp {
				sums = append(sums, right)
			}
		}
		if got, want := fmt.Sprint(sums), "[true true false true true true]"; got != want {
			t.Errorf("%s: checksums of questions and answers are right as %s, want %s", name, got, want)
		}
	}
}

// checksumOf tells whether a packet is a probe or its answer, and its UDP checksum right.
func checksumOf(packet []byte, v6 bool) (right, udp bool) {
	header, proto, addrs := 20, 9, packet[12:20]
	if v6 {
		header, proto, addrs = 40, 6, packet[8:40]
	}
	if packet[0]>>4 == 6 != v6 || packet[proto] != unix.IPPROTO_UDP {
		return false, false
	}
	datagram := packet[header:]
	if binary.BigEndian.Uint16(datagram) != port && binary.BigEndian.Uint16(datagram[2:]) != port {
		return false, false
	}
	pseudo := append(append([]byte{}, addrs...), 0, unix.IPPROTO_UDP, byte(len(datagram)>>8), byte(len(datagram)))
	if len(datagram)%2 == 1 {
		datagram = append(datagram, 0)
	}
	sum := uint32(0)
	for _, b := range [][]byte{pseudo, datagram} {
		for ; len(b) > 0; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum == 0xffff, true
}

func TestAnswersAreLimited(t *testing.T) {
	var l limit
	at, n := time.Unix(100, 0), 0
	for range 2 * perSecond {
		if l.take(at) {
			n++
		}
	}
	if n != perSecond || !l.take(at.Add(time.Second)) {
		t.Errorf("%d answers in a second", n)
	}
}

func TestPortThatIsTakenIsSaid(t *testing.T) {
	ns := nettest.New(t)
	r := NewResponder(port)
	defer r.Close()
	at := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}
	ns.Do(func() {
		c, err := net.ListenPacket("udp4", "127.0.0.1:9097")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Listen(t.Context(), at); err == nil {
			t.Error("no error")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Listen(t.Context(), at); err != nil {
			t.Errorf("with the port free again: %v", err)
		}
	})
}
