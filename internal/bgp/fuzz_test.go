package bgp

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/bgptest"
	"github.com/muslin-cni/muslin/internal/peering"
)

// peerAS is the AS of every peer that these tests play.
const peerAS = 65001

// fuzzed is a server on loopback with one well-behaved peer, and as many others as are asked for.
type fuzzed struct {
	t    testing.TB
	s    *Server
	cfg  peering.Speaker
	at   netip.AddrPort
	good netip.Addr
}

func session(peer netip.Addr) peering.Session {
	accept := []peering.Term{{Verdict: peering.Accept}}
	return peering.Session{Name: "Global_" + peer.String(), Kind: peering.Global, Peer: peer, Port: 1, PeerAS: peerAS, LocalAS: 64512, Passive: true, Import: accept, Export: accept}
}

func newFuzzed(t testing.TB) *fuzzed {
	l, err := net.Listen("tcp", "127.0.0.1:0") // to learn of a port that is free
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f := &fuzzed{t: t, s: New(slog.New(slog.DiscardHandler), Options{}), at: at, good: netip.MustParseAddr("127.1.0.1")}
	f.cfg = peering.Speaker{AS: 64512, RouterID: at.Addr(), Port: at.Port(), Listen: []netip.Addr{at.Addr()}}
	t.Cleanup(func() {
		if err := f.s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fuzzed) apply(sessions ...peering.Session) {
	f.t.Helper()
	f.cfg.Sessions = sessions
	if err := f.s.Apply(context.Background(), f.cfg); err != nil {
		f.t.Fatal(err)
	}
}

// connect establishes a session. The server takes connections from a moment after Apply on.
func (f *fuzzed) connect(from netip.Addr) bgptest.FarEnd {
	f.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		w, err := bgptest.Establish(from, peerAS, f.at)
		if err == nil {
			return w
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("no session from %v: %v", from, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// learnsFrom waits for a route of a peer.
func (f *fuzzed) learnsFrom(peer netip.Addr, prefix string) {
	f.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		paths, err := f.s.Learned()
		if err != nil {
			f.t.Fatal(err)
		}
		for _, p := range paths {
			if p.Peer == peer && p.NextHop == peer && p.Prefix == netip.MustParsePrefix(prefix) {
				return
			}
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("the route of %v is not there: %v", peer, paths)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// attacked is a server with a well-behaved peer, whose route it holds, and room for one that is not.
type attacked struct {
	*fuzzed
	well  bgptest.FarEnd
	count uint32 // of attacks
}

func newAttacked(t testing.TB) *attacked {
	a := &attacked{fuzzed: newFuzzed(t)}
	a.apply(session(a.good))
	a.well = a.connect(a.good)
	t.Cleanup(func() { _ = a.well.Close() }) // the test is over
	if err := a.well.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := a.well.Send(bgptest.Update, route(a.good)); err != nil {
		t.Fatal(err)
	}
	a.learnsFrom(a.good, "203.0.113.0/24")
	return a
}

// bad is the address of the ill-behaved peer. One that has been reset is not heard for some seconds: each attack is a new peer's.
func (a *attacked) bad() netip.Addr {
	return netip.AddrFrom4([4]byte{127, 2, byte(a.count >> 8), byte(a.count)})
}

// attack sends an UPDATE with the body through a session of its own. Whatever it holds, the process lives, and the other peer keeps its session and its
// route.
func (a *attacked) attack(t testing.TB, body []byte) {
	a.t = t
	if err := a.well.Send(bgptest.Keepalive, nil); err != nil { // or the hold time of the other session runs out
		t.Fatal(err)
	}
	a.count++
	a.apply(session(a.good), session(a.bad()))
	far := a.connect(a.bad())
	defer func() { _ = far.Close() }() // the server may have closed it before
	if err := far.Send(bgptest.Update, body); err != nil {
		t.Fatal(err)
	}
	_ = far.Send(bgptest.Unknown, nil) // there is no such message: the server ends the session once it has read the UPDATEs, if it has not before
	for {
		if _, err := far.Receive(); err != nil {
			break
		}
	}
	a.apply(session(a.good))
	a.learnsFrom(a.good, "203.0.113.0/24")
	status, err := a.s.Status()
	if err != nil || len(status) != 1 || !status[0].Established() || status[0].Flaps != 0 {
		t.Errorf("the other session: %+v, %v", status, err)
	}
}

func route(hop netip.Addr) []byte { return bgptest.Route(peerAS, hop) }

// rich is the body of an UPDATE with every attribute that people use, and one that nobody knows.
func rich(hop netip.Addr) []byte {
	h := hop.As4()
	attrs := slices.Concat(
		[]byte{0x40, 1, 1, 0}, []byte{0x40, 2, 8, 2, 1, 0xfd, 0xe9, 1, 1, 0, 9}, append([]byte{0x40, 3, 4}, h[:]...), []byte{0x80, 4, 4, 0, 0, 0, 7}, []byte{0x40, 5, 4, 0, 0, 0, 100},
		[]byte{0x40, 6, 0}, []byte{0xc0, 7, 6, 0xfd, 0xe9, 10, 0, 0, 1}, []byte{0xc0, 8, 8, 0xfd, 0xe9, 0, 1, 0xff, 0xff, 0xff, 1}, []byte{0x80, 9, 4, 10, 0, 0, 9},
		[]byte{0x80, 10, 4, 10, 0, 0, 1}, []byte{0x80, 15, 7, 0, 1, 1, 24, 198, 51, 102}, []byte{0xc0, 16, 8, 0, 2, 0xfd, 0xe9, 0, 0, 0, 1},
		[]byte{0xc0, 32, 12, 0, 0, 0xfd, 0xe9, 0, 0, 0, 1, 0, 0, 0, 2}, []byte{0xe0, 250, 2, 1, 2},
	)
	body := append([]byte{0, 4, 24, 198, 51, 100, 0, byte(len(attrs))}, attrs...)
	return append(body, 24, 192, 0, 2, 25, 198, 51, 100, 128)
}

func TestNoByteOfAnUpdateHarmsAnotherSession(t *testing.T) {
	t.Parallel()
	a := newAttacked(t)
	peer := netip.MustParseAddr("127.3.0.1")
	good := rich(peer)
	a.apply(session(a.good), session(peer))
	far := a.connect(peer)
	if err := far.Send(bgptest.Update, good); err != nil {
		t.Fatal(err)
	}
	a.learnsFrom(peer, "198.51.100.128/25") // unspoiled it is taken
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for _, b := range []byte{0, 0xff, good[i] ^ 0x80, good[i] + 1, good[i] - 1} {
			one := slices.Clone(good)
			one[i] = b
			a.attack(t, one)
		}
		a.attack(t, good[:i])
		a.attack(t, slices.Insert(slices.Clone(good), i, 0xff))
		a.attack(t, slices.Delete(slices.Clone(good), i, i+1))
	}
}

// FuzzUpdate attacks with an UPDATE of any body.
func FuzzUpdate(f *testing.F) {
	bad := netip.MustParseAddr("127.2.0.0")
	f.Add(route(bad))
	f.Add(rich(bad))
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 3, 0x40, 2, 200})                           // an AS path longer than the message
	f.Add([]byte{0, 0, 0, 4, 0x40, 1, 1, 9, 24, 203, 0, 113})         // an origin that there is not, and no next hop
	f.Add([]byte{0, 0, 0, 7, 0x40, 3, 4, 0, 0, 0, 0, 33, 1, 2, 3, 4}) // a prefix of 33 bits
	f.Add([]byte{0, 4, 24, 203, 0, 113, 0, 0})                        // a withdrawal
	f.Add([]byte{0, 0, 0, 8, 0x80, 14, 5, 0, 1, 1, 4, 1, 2})          // MP_REACH_NLRI cut short
	f.Add([]byte{0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1})                   // MP_UNREACH_NLRI of a family that was not agreed on
	f.Add([]byte{0, 0, 0, 7, 0xc0, 8, 4, 0xfb, 0xf0, 0, 1, 8, 10})    // communities without the mandatory attributes
	f.Add(append(route(bad), route(bad)...))                          // two in one
	a := newAttacked(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 4096-19 {
			return // larger than a message can be
		}
		a.attack(t, body)
	})
}
