package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// bgpPatience bounds what BGP's own timers have a say in: retries after a lost session take up to half a minute.
const bgpPatience = 40 * time.Second

// upBGP brings a lab up whose nodes speak BGP and have direct pools: what BGP does not say, nobody says of other subnets and of routers.
func upBGP(t *testing.T, change func(*lab.Options)) *lab.Lab {
	t.Helper()
	nettest.Need(t, "bird", "birdc")
	return up(t, func(o *lab.Options) {
		o.Mode, o.BGP = lab.Direct, true
		change(o)
	})
}

// converges waits until f returns nil, as long as BGP may take.
func converges(t *testing.T, f func() error) {
	t.Helper()
	limit := nettest.Patience(bgpPatience)
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %v", limit, err)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func addRouter(t *testing.T, l *lab.Lab, spec lab.RouterSpec) lab.Router {
	t.Helper()
	if spec.Kind == lab.FRR {
		nettest.Need(t, "/usr/lib/frr/bgpd", "vtysh")
	}
	r, err := l.AddRouter(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		var log strings.Builder
		if err := l.Log(spec.Name, &log); err != nil {
			t.Logf("log of %s: %v", spec.Name, err)
		}
		t.Logf("log of %s:\n%s", spec.Name, log.String())
	})
	return r
}

// sessionsOf asks a node for its BGP sessions, as a program does.
func sessionsOf(t *testing.T, l *lab.Lab, node string) map[string]attach.Peer {
	t.Helper()
	var answer struct {
		BGP   bool          `json:"bgp"`
		Peers []attach.Peer `json:"peers"`
	}
	text := run(t, l, node, "muslinctl", "node", "status", "-o", "json")
	if err := json.Unmarshal([]byte(text), &answer); err != nil || !answer.BGP {
		t.Fatalf("node status of %s: %v: %s", node, err, text)
	}
	out := map[string]attach.Peer{}
	for _, p := range answer.Peers {
		out[p.Addr.String()] = p
	}
	return out
}

// statusRow is a line of `node status`: address, type, state, since, info.
var statusRow = regexp.MustCompile(`(?m)^\| (\S+) +\| (\S.*?) +\| (\S+) +\| (\d\d:\d\d:\d\d|\d{4}-\d\d-\d\d) +\| (\S.*?) +\|$`)

// statusShows waits until the text of `node status` lists exactly these sessions, each established, by the type that it has.
func statusShows(t *testing.T, l *lab.Lab, node string, want map[string]string) {
	t.Helper()
	converges(t, func() error {
		text := run(t, l, node, "muslinctl", "node", "status")
		if !strings.HasPrefix(text, "Calico process is running.\n\nIPv4 BGP status\n+--") || !strings.Contains(text, "| PEER ADDRESS |") ||
			!strings.HasSuffix(text, "\nIPv6 BGP status\nNo IPv6 peers found.\n\n") { // an agent that has just begun has no peers yet
			return fmt.Errorf("node status of %s is not as calicoctl prints it:\n%s", node, text)
		}
		got := map[string]string{}
		for _, m := range statusRow.FindAllStringSubmatch(text, -1) {
			if m[3] == "up" && m[5] == "Established" {
				got[m[1]] = m[2]
			} else {
				got[m[1]] = m[2] + ", " + m[3] + ", " + m[5]
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			return fmt.Errorf("node status of %s (-want +got):\n%s", node, d)
		}
		return nil
	})
}

const (
	inMesh   = "node-to-node mesh"
	specific = "node specific"
	global   = "global"
)

// all maps each address to the same type.
func all(kind string, addrs ...string) map[string]string {
	out := map[string]string{}
	for _, a := range addrs {
		out[a] = kind
	}
	return out
}

// peerWith writes a BGPPeer.
func peerWith(t *testing.T, l *lab.Lab, name, spec string) {
	t.Helper()
	operator(t, l, fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: %s}, spec: %s}", name, spec), "apply", "-f", "-")
}

func mesh(t *testing.T, l *lab.Lab, on bool) {
	t.Helper()
	operator(t, l, fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, spec: {nodeToNodeMeshEnabled: %t}}", on), "apply", "-f", "-")
}

// reflector makes a node a route reflector, as Calico's documentation does.
func reflector(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	operator(t, l, "", "patch", "node", node, "-p", `{"spec": {"bgp": {"routeReflectorClusterID": "244.0.0.1"}}}`)
	operator(t, l, "", "patch", "node", node, "-p", `{"metadata": {"labels": {"route-reflector": "true"}}}`)
}

// birdRoute is a route in the output of BIRD's `show route`, with its first way on the next line.
var birdRoute = regexp.MustCompile(`(?m)^(\S+/\d+) +\S+ \[(\S+) [^\]]*\].*\n\tvia (\S+) on`)

// birdTable is what BIRD has learned in sessions whose names begin with the prefix, best paths only: "block via next hop".
func birdTable(t *testing.T, l *lab.Lab, router, session string) []string {
	t.Helper()
	out := []string{}
	for _, m := range birdRoute.FindAllStringSubmatch(run(t, l, router, "birdc", "show", "route", "primary"), -1) {
		if strings.HasPrefix(m[2], session) {
			out = append(out, m[1]+" via "+m[3])
		}
	}
	slices.Sort(out)
	return out
}

// birdLearns waits until BIRD has learned exactly these.
func birdLearns(t *testing.T, l *lab.Lab, router, session string, want ...string) {
	t.Helper()
	slices.Sort(want)
	converges(t, func() error {
		if d := cmp.Diff(want, birdTable(t, l, router, session)); d != "" {
			return fmt.Errorf("table of %s (-want +got):\n%s", router, d)
		}
		return nil
	})
}

// blockRoutes are the blocks of nodes as a speaker on their subnet should know them: "block via node".
func blockRoutes(t *testing.T, l *lab.Lab, names ...string) []string {
	t.Helper()
	nodes, err := l.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range nodes {
		if !slices.Contains(names, n.Name) {
			continue
		}
		for _, b := range ownBlocks(t, l, n.Name, "-4") {
			out = append(out, fmt.Sprintf("%s via %v", b, n.Addr))
		}
	}
	return out
}

// kernelLearns waits until the kernel of a node has a route to the prefix by exactly these gateways.
func kernelLearns(t *testing.T, l *lab.Lab, node, prefix string, gateways ...string) {
	t.Helper()
	slices.Sort(gateways)
	converges(t, func() error {
		out := run(t, l, node, "ip", "route", "show", prefix, "proto", "80")
		got := []string{}
		for _, m := range regexp.MustCompile(`via (\S+) dev`).FindAllStringSubmatch(out, -1) {
			got = append(got, m[1])
		}
		slices.Sort(got)
		if !slices.Equal(gateways, got) {
			return fmt.Errorf("%s reaches %s by %v, want %v", node, prefix, got, gateways)
		}
		return nil
	})
}

// unreachableNow waits until the kernel of a node has no route of ours to the prefix.
func unreachableNow(t *testing.T, l *lab.Lab, node, prefix string) {
	t.Helper()
	kernelLearns(t, l, node, prefix)
}

// end is where a stream begins or ends: a pod, or an address of a router.
type end struct {
	addr netip.Addr
	in   func(func() error) error
}

func podEnd(t *testing.T, l *lab.Lab, name string) end {
	t.Helper()
	return end{pod(t, l, name).Addr, func(f func() error) error { return l.WithinPod(name, f) }}
}

func routerEnd(l *lab.Lab, router string, addr netip.Addr) end {
	return end{addr, func(f func() error) error { return l.Within(router, f) }}
}

// streamBetween is startStream between any two ends, once the first datagram has come back.
func streamBetween(t *testing.T, from, to end) *stream {
	t.Helper()
	s := &stream{end: make(chan struct{}), going: make(chan struct{}), sent: make(chan int, 1), back: make(chan int, 1)}
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: from.addr.AsSlice()}}
	err := to.in(func() (err error) {
		s.echo, err = net.ListenPacket("udp", net.JoinHostPort(to.addr.String(), "0"))
		return err
	})
	if err == nil {
		err = from.in(func() (err error) { s.probe, err = d.Dial("udp", s.echo.LocalAddr().String()); return err })
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.echo.Close(), s.probe.Close() })
	go answer(s.echo)
	converges(t, s.answered)
	go func() { s.back <- count(s.probe) }()
	go s.send()
	return s
}

// answered sends a datagram that is not counted, and waits a moment for it to come back.
func (s *stream) answered() error {
	_, errWrite := s.probe.Write([]byte("?")) // shorter than those that count
	errDeadline := s.probe.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	_, errRead := s.probe.Read(make([]byte, 64))
	return errors.Join(errWrite, errDeadline, errRead, s.probe.SetReadDeadline(time.Time{}))
}

// noneLost ends streams and fails the test for each that lost a datagram.
func noneLost(t *testing.T, what string, streams map[string]*stream) {
	t.Helper()
	for name, got := range stopAll(t, streams) {
		if got.lost != 0 {
			t.Errorf("%s: %s: %d of %d datagrams are lost", what, name, got.lost, got.sent)
		}
	}
}

// since tells of each session of a node when it came up, but for one.
func since(t *testing.T, l *lab.Lab, node, but string) map[string]time.Time {
	t.Helper()
	out := map[string]time.Time{}
	for addr, p := range sessionsOf(t, l, node) {
		if addr != but && p.Established() {
			out[addr] = p.Since
		}
	}
	return out
}

// sameSessions fails the test where a session is not the one that it was.
func sameSessions(t *testing.T, l *lab.Lab, node, but string, before map[string]time.Time) {
	t.Helper()
	if after := since(t, l, node, but); len(before) == 0 || !maps.EqualFunc(before, after, time.Time.Equal) {
		t.Errorf("sessions of %s other than that with %s changed: %v, were %v", node, but, after, before)
	}
}
