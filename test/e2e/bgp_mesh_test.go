package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/bgptest"
	"github.com/muslin-cni/muslin/internal/lab"
)

const (
	birdPeer = "172.30.1.201" // the first router that is added, on the nodes' subnet
	torPeer  = "172.30.1.202"
	outer    = "192.0.2.0/24" // what is behind it
)

// TestMixedClusterWithBIRD is a mesh of which one node is driven by BIRD as Calico configures it, beside a BIRD that is a router of the data
// centre. The subtests build on each other.
func TestMixedClusterWithBIRD(t *testing.T) {
	l := upBGP(t, func(o *lab.Options) { o.Nodes = 2 })
	calico := addRouter(t, l, lab.RouterSpec{Name: "calico-1", Kind: lab.BIRD, CalicoNode: true})
	addRouter(t, l, lab.RouterSpec{Name: "tor-1", Kind: lab.BIRD, Announce: []netip.Prefix{netip.MustParsePrefix(outer)}, Peers: []lab.RouterPeer{{Host: "node-1"}}})
	peerWith(t, l, "tor-1", "{node: node-1, peerIP: "+torPeer+", asNumber: 65000}")
	there := routerEnd(l, "calico-1", calico.Pods[0])
	beyond := routerEnd(l, "tor-1", netip.MustParsePrefix(outer).Addr().Next())

	t.Run("both sides know all blocks", func(t *testing.T) {
		statusShows(t, l, "node-1", map[string]string{"172.30.1.2": inMesh, birdPeer: inMesh, torPeer: specific})
		statusShows(t, l, "node-2", all(inMesh, "172.30.1.1", birdPeer))
		blocks := blockRoutes(t, l, "node-1", "node-2")
		if len(blocks) != 2 {
			t.Fatalf("blocks: %v", blocks)
		}
		birdLearns(t, l, "calico-1", "Mesh_", blocks...)
		for _, b := range blocks {
			prefix, via, _ := strings.Cut(b, " via ")
			converges(t, func() error {
				return has("BGP.local_pref: 2147482623")(run(t, l, "calico-1", "birdc", "show", "route", "for", prefix, "protocol", "Mesh_"+strings.ReplaceAll(via, ".", "_"), "all"))
			})
		}
		for _, n := range []string{"node-1", "node-2"} {
			kernelLearns(t, l, n, calico.Blocks[0].String(), birdPeer)
		}
		kernelLearns(t, l, "node-1", outer, torPeer)
		allWell(t, l)
	})
	t.Run("an agent that is killed under traffic loses none of it", func(t *testing.T) {
		before := since(t, l, "node-2", "172.30.1.1")
		streams := map[string]*stream{
			"BIRD's node to ours":       streamBetween(t, there, podEnd(t, l, "a1")),
			"ours to BIRD's node":       streamBetween(t, podEnd(t, l, "b1"), there),
			"ours to behind the router": streamBetween(t, podEnd(t, l, "a1"), beyond),
			"behind the router to ours": streamBetween(t, beyond, podEnd(t, l, "b1")),
		}
		for _, end := range []func() error{
			func() error { return l.KillAgent(t.Context(), "node-1") },
			func() error { return l.StopAgent(t.Context(), "node-1") },
		} {
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if err := l.StartAgent(t.Context(), "node-1"); err != nil {
				t.Fatal(err)
			}
			statusShows(t, l, "node-1", map[string]string{"172.30.1.2": inMesh, birdPeer: inMesh, torPeer: specific})
		}
		noneLost(t, "the agent was killed, and stopped", streams)
		sameSessions(t, l, "node-2", "172.30.1.1", before)
		birdLearns(t, l, "calico-1", "Mesh_", blockRoutes(t, l, "node-1", "node-2")...)
	})
	t.Run("a BIRD that is killed under traffic loses none of it", func(t *testing.T) {
		streams := map[string]*stream{
			"to behind the router": streamBetween(t, podEnd(t, l, "a1"), beyond),
			"to BIRD's node":       streamBetween(t, podEnd(t, l, "a2"), there),
		}
		for _, r := range []string{"tor-1", "calico-1"} {
			if err := l.KillRouter(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if err := l.StartRouter(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		statusShows(t, l, "node-1", map[string]string{"172.30.1.2": inMesh, birdPeer: inMesh, torPeer: specific})
		noneLost(t, "BIRD was killed", streams)
	})
	t.Run("a router that goes takes its routes along, and no other session", func(t *testing.T) {
		before := since(t, l, "node-1", torPeer)
		for range 2 {
			if err := l.StopRouter(t.Context(), "tor-1"); err != nil {
				t.Fatal(err)
			}
			unreachableNow(t, l, "node-1", outer)
			if err := l.StartRouter(t.Context(), "tor-1"); err != nil {
				t.Fatal(err)
			}
			kernelLearns(t, l, "node-1", outer, torPeer)
		}
		sameSessions(t, l, "node-1", torPeer, before)
	})
	t.Run("a wrong AS number is named, and no other session changes", func(t *testing.T) {
		before := since(t, l, "node-1", torPeer)
		peerWith(t, l, "tor-1", "{node: node-1, peerIP: "+torPeer+", asNumber: 65009}")
		converges(t, func() error {
			if p := sessionsOf(t, l, "node-1")[torPeer]; p.Established() || !strings.Contains(p.Info, "bad peer AS") && !strings.Contains(strings.ToLower(p.Info), "notification") {
				return fmt.Errorf("session: %+v", p)
			}
			return nil
		})
		unreachableNow(t, l, "node-1", outer)
		sameSessions(t, l, "node-1", torPeer, before)
		peerWith(t, l, "tor-1", "{node: node-1, peerIP: "+torPeer+", asNumber: 65000, keepaliveTime: 1s}")
		kernelLearns(t, l, "node-1", outer, torPeer)
		sameSessions(t, l, "node-1", torPeer, before)
	})
	t.Run("nonsense from a peer harms nobody", func(t *testing.T) { talksNonsense(t, l) })
	t.Run("a peer leads away neither the host nor its pods", func(t *testing.T) { leadsAstray(t, l) })
	t.Run("sessions and routes stay while etcd is away", func(t *testing.T) { etcdIsAway(t, l, calico) })
	t.Run("ten thousand routes get into the kernel, and out again", func(t *testing.T) { tenThousand(t, l) })
	allWell(t, l)
}

// standIn takes a router's place in its session with node-1.
func standIn(t *testing.T, l *lab.Lab) (far bgptest.FarEnd) {
	t.Helper()
	if err := l.StopRouter(t.Context(), "tor-1"); err != nil {
		t.Fatal(err)
	}
	unreachableNow(t, l, "node-1", outer)
	converges(t, func() error {
		return l.Within("tor-1", func() (err error) {
			far, err = bgptest.Establish(netip.MustParseAddr(torPeer), 65000, netip.MustParseAddrPort("172.30.1.1:179"))
			return err
		})
	})
	return far
}

// talksNonsense has a peer of node-1 send UPDATEs that are malformed, of which one ends the session. The agent and the other sessions stay what they were.
func talksNonsense(t *testing.T, l *lab.Lab) {
	agent, before := nodesOf(t, l)[0].Agent.PID, since(t, l, "node-1", torPeer)
	hop := netip.MustParseAddr(torPeer)
	good := bgptest.Route(65000, hop)
	far := standIn(t, l)
	defer func() { _ = far.Close() }() // the agent has, if all is well
	nonsense := [][]byte{
		bytes.Replace(good, []byte{0x40, 1, 1, 0}, []byte{0x40, 1, 1, 9}, 1),            // an origin that there is not
		bytes.Replace(good, []byte{0x40, 3, 4, 172, 30}, []byte{0x40, 3, 4, 224, 0}, 1), // a next hop that is a group
		{0, 0, 0, 8, 0x80, 14, 5, 0, 1, 1, 4, 1, 2},                                     // MP_REACH_NLRI cut short
		append(bytes.Clone(good[:len(good)-4]), 33, 203, 0, 113, 0, 1),                  // a prefix of 33 bits
		{0xff, 0xff, 0xff, 0xff}, nil, // lengths beyond the message, and no length
	}
	for _, body := range nonsense {
		if err := far.Send(bgptest.Update, body); err != nil {
			break // the session has ended already
		}
	}
	_ = far.Send(bgptest.Unknown, nil) // likewise; it ends with this at the latest
	for {
		if _, err := far.Receive(); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the agent has kept the session")
		} else if err != nil {
			break
		}
	}
	if now := nodesOf(t, l)[0].Agent.PID; now != agent || isDead(t, l, "node-1") {
		t.Errorf("the agent was process %d, and is %d, or dead", agent, now)
	}
	sameSessions(t, l, "node-1", torPeer, before)
	if err := l.StartRouter(t.Context(), "tor-1"); err != nil {
		t.Fatal(err)
	}
	kernelLearns(t, l, "node-1", outer, torPeer)
}

// etcdIsAway takes etcd away: sessions stay, what peers say anew is learned, and pods go on talking, also while an agent is started anew.
func etcdIsAway(t *testing.T, l *lab.Lab, calico lab.Router) {
	before := since(t, l, "node-1", torPeer)
	streams := map[string]*stream{
		"to BIRD's node":  streamBetween(t, podEnd(t, l, "a1"), routerEnd(l, "calico-1", calico.Pods[0])),
		"to another node": streamBetween(t, podEnd(t, l, "a1"), podEnd(t, l, "b1")),
	}
	if err := l.StopEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.StopRouter(t.Context(), "tor-1"); err != nil {
		t.Fatal(err)
	}
	unreachableNow(t, l, "node-1", outer)
	if err := l.StartRouter(t.Context(), "tor-1"); err != nil {
		t.Fatal(err)
	}
	kernelLearns(t, l, "node-1", outer, torPeer)
	sameSessions(t, l, "node-1", torPeer, before)
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	kernelLearns(t, l, "node-1", calico.Blocks[0].String(), birdPeer) // what it knew is still there
	if err := l.StartEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	statusShows(t, l, "node-1", map[string]string{"172.30.1.2": inMesh, birdPeer: inMesh, torPeer: specific})
	kernelLearns(t, l, "node-1", outer, torPeer)
	noneLost(t, "etcd was away", streams)
}

// tenThousand has the BIRD of a router announce as many networks, and then none of them.
func tenThousand(t *testing.T, l *lab.Lab) {
	announceMany(t, l, "tor-1", 10000)
	learnsBy(t, l, "node-1", torPeer, 10001)
	if out := run(t, l, "node-1", "ip", "route", "show", "100.64.39.15", "proto", "80"); !strings.Contains(out, torPeer) {
		t.Errorf("the last of them: %q", out)
	}
	announceMany(t, l, "tor-1", 0)
	learnsBy(t, l, "node-1", torPeer, 1)
}

// announceMany has the BIRD of a router announce so many networks beside its own: 100.64.0.0/32 and those after it.
func announceMany(t *testing.T, l *lab.Lab, router string, n int) {
	t.Helper()
	addToBIRD(t, l, router, fmt.Sprintf(`echo 'protocol static many { ipv4;'; `+
		`seq 0 %d | awk '{ printf "route 100.%%d.%%d.%%d/32 blackhole;\n", 64+$1/65536, $1/256%%256, $1%%256 }'; echo '}'`, n-1))
}

// addToBIRD has the BIRD of a router go by its own configuration and, behind it, what a shell prints.
func addToBIRD(t *testing.T, l *lab.Lab, router, prints string) {
	t.Helper()
	run(t, l, router, "sh", "-c", "{ cat /run/bird/bird.conf; "+prints+"; } >/run/bird/more.conf")
	run(t, l, router, "birdc", "configure", `"/run/bird/more.conf"`)
}

// learnsBy waits until the kernel of a node has so many routes of ours by a gateway.
func learnsBy(t *testing.T, l *lab.Lab, node, gateway string, want int) {
	t.Helper()
	converges(t, func() error {
		if n := strings.Count(run(t, l, node, "ip", "-o", "route", "show", "proto", "80", "via", gateway), "\n"); n != want {
			return fmt.Errorf("%d routes by %s, want %d", n, gateway, want)
		}
		return nil
	})
}

// TestRouterThatAnnouncesTooMuchLosesItsRoutes has a router announce as much as it may, and then more.
func TestRouterThatAnnouncesTooMuchLosesItsRoutes(t *testing.T) {
	l := upBGP(t, func(o *lab.Options) { o.Nodes, o.AgentEnv = 2, []string{"MUSLIN_BGP_MAX_ROUTES=50"} })
	router := addRouter(t, l, lab.RouterSpec{Name: "tor-1", Kind: lab.BIRD, Announce: []netip.Prefix{netip.MustParsePrefix(outer)}, Peers: []lab.RouterPeer{{Host: "node-1"}}})
	peer := router.Addr.String()
	peerWith(t, l, "tor-1", "{node: node-1, peerIP: "+peer+", asNumber: 65000}")
	establishes(t, l, "node-1", map[string]string{"172.30.1.2": inMesh, peer: specific})
	before := since(t, l, "node-1", peer)

	announceMany(t, l, "tor-1", 49)
	learnsBy(t, l, "node-1", peer, 50)
	announceMany(t, l, "tor-1", 50)
	learnsBy(t, l, "node-1", peer, 0)
	if p := sessionsOf(t, l, "node-1")[peer]; p.Established() || !strings.Contains(p.Info, "more than 50 routes of one family (MUSLIN_BGP_MAX_ROUTES)") {
		t.Errorf("session: %+v", p)
	}
	sameSessions(t, l, "node-1", peer, before)

	announceMany(t, l, "tor-1", 0)
	operator(t, l, "", "delete", "bgppeer", "tor-1")
	peerWith(t, l, "tor-1", "{node: node-1, peerIP: "+peer+", asNumber: 65000}") // a new peer does not rest for what one before it did
	learnsBy(t, l, "node-1", peer, 1)
	allWell(t, l)
}

// TestNodeThatLeavesBGPIsForgottenByBIRD has a node started with another backend. That its agent has ended says nothing: it might come back, and BIRD keeps
// its routes for two minutes.
func TestNodeThatLeavesBGPIsForgottenByBIRD(t *testing.T) {
	l := upBGP(t, func(o *lab.Options) { o.Nodes = 2 })
	addRouter(t, l, lab.RouterSpec{Name: "calico-1", Kind: lab.BIRD, CalicoNode: true})
	birdLearns(t, l, "calico-1", "Mesh_", blockRoutes(t, l, "node-1", "node-2")...)
	if err := l.StopAgent(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	converges(t, func() error {
		if p := sessionsOf(t, l, "node-1")["172.30.1.2"]; p.Established() {
			return fmt.Errorf("session: %+v", p)
		}
		return nil
	})
	birdLearns(t, l, "calico-1", "Mesh_", blockRoutes(t, l, "node-1", "node-2")...)

	var log strings.Builder
	background(t, l, "node-2", &log, "sh", "-c", "exec env NODENAME=node-2 IP=autodetect CALICO_NETWORKING_BACKEND=none FELIX_IPV6SUPPORT=false CALICO_MANAGE_CNI=false muslin-node 2>&1")
	birdLearns(t, l, "calico-1", "Mesh_", blockRoutes(t, l, "node-1")...)
	if p := sessionsOf(t, l, "node-1")["172.30.1.2"]; p.Established() {
		t.Errorf("the session goes on: %+v", p)
	}
	allWell(t, l)
}
