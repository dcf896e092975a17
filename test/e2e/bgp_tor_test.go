package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// TestTopOfRackFRRWithECMP is a node below two switches that know the same network.
func TestTopOfRackFRRWithECMP(t *testing.T) {
	l := upBGP(t, func(o *lab.Options) { o.Nodes = 1 })
	tors := map[string]string{"tor-1": "172.30.1.201", "tor-2": "172.30.1.202"}
	for _, name := range []string{"tor-1", "tor-2"} {
		addRouter(t, l, lab.RouterSpec{Name: name, Kind: lab.FRR, AS: 65001, Announce: []netip.Prefix{netip.MustParsePrefix(outer)}})
		peerWith(t, l, name, "{peerIP: "+tors[name]+", asNumber: 65001}")
	}
	statusShows(t, l, "node-1", all(global, tors["tor-1"], tors["tor-2"]))
	kernelLearns(t, l, "node-1", outer, tors["tor-1"], tors["tor-2"])
	for name := range tors {
		frrLearns(t, l, name, blockRoutes(t, l, "node-1")...)
	}
	if got := answering(t, l, "a1", []string{"tor-1", "tor-2"}); got["tor-1"] == 0 || got["tor-2"] == 0 {
		t.Errorf("hosts that were reached by each switch: %v, want some by either", got)
	}

	if err := l.StopRouter(t.Context(), "tor-2"); err != nil {
		t.Fatal(err)
	}
	kernelLearns(t, l, "node-1", outer, tors["tor-1"])
	if got := answering(t, l, "a1", []string{"tor-1", "tor-2"}); got["tor-1"] != hostsBeyond {
		t.Errorf("hosts that were reached by each switch, with one: %v", got)
	}
	if err := l.StartRouter(t.Context(), "tor-2"); err != nil {
		t.Fatal(err)
	}
	kernelLearns(t, l, "node-1", outer, tors["tor-1"], tors["tor-2"])
}

// hostsBeyond is how many hosts behind the switches are asked: enough that the kernel does not choose the same way to all of them.
const hostsBeyond = 24

// answering has a pod ask hosts that every switch plays, and counts the answers of each switch.
func answering(t *testing.T, l *lab.Lab, from string, switches []string) map[string]int {
	t.Helper()
	got := map[string]int{}
	addr := netip.MustParsePrefix(outer).Addr()
	for range hostsBeyond {
		addr = addr.Next()
		at := net.JoinHostPort(addr.String(), streamPort)
		for _, name := range switches {
			sayName(t, l, name, at)
		}
		var c net.Conn
		if err := l.WithinPod(from, func() (err error) { c, err = net.Dial("udp", at); return err }); err != nil {
			t.Fatal(err)
		}
		got[hear(t, c)]++
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

// sayName answers every datagram to an address of a router with the router's name, until the test ends.
func sayName(t *testing.T, l *lab.Lab, router, at string) {
	t.Helper()
	var c net.PacketConn
	err := l.Within(router, func() (err error) { c, err = net.ListenPacket("udp", at); return err })
	if errors.Is(err, syscall.EADDRINUSE) { // it does already
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo([]byte(router), from) // who asks sees that nothing comes
			}
		}
	}()
}

// hear asks until there is an answer.
func hear(t *testing.T, c net.Conn) (name string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		buf := make([]byte, 64)
		_, errWrite := c.Write([]byte("who?"))
		errDeadline := c.SetReadDeadline(time.Now().Add(time.Second))
		n, errRead := c.Read(buf)
		name = string(buf[:n])
		return errors.Join(errWrite, errDeadline, errRead)
	})
	return name
}

// frrLearns waits until FRR has exactly these paths of others: "block via next hop".
func frrLearns(t *testing.T, l *lab.Lab, router string, want ...string) {
	t.Helper()
	converges(t, func() error {
		var table struct {
			Routes map[string][]struct {
				Valid    bool `json:"valid"`
				Nexthops []struct {
					IP string `json:"ip"`
				} `json:"nexthops"`
				PeerID string `json:"peerId"`
			} `json:"routes"`
		}
		text := run(t, l, router, "vtysh", "-c", "show bgp ipv4 unicast json")
		if err := json.Unmarshal([]byte(text), &table); err != nil {
			t.Fatalf("%s: %v: %s", router, err, text)
		}
		got := []string{}
		for prefix, paths := range table.Routes {
			for _, p := range paths {
				if p.Valid && prefix != outer && len(p.Nexthops) > 0 {
					got = append(got, prefix+" via "+p.Nexthops[0].IP)
				}
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			return fmt.Errorf("table of %s (-want +got):\n%s", router, d)
		}
		return nil
	})
}
