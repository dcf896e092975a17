package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// birdNode is the configuration of BIRD on the fabric's router, which is a node of the mesh like any other: Calico's template, its mesh sessions and its
// block. Since it is the router between the subnets, it routes by what the nodes tell it.
const birdNode = `
router id 172.30.1.254;
protocol device { scan time 2; }
protocol direct { ipv4; }
protocol kernel { persist; learn; scan time 2; merge paths on; graceful restart; ipv4 { import all; export where source = RTS_BGP; }; }
protocol static { ipv4; route 192.168.200.0/26 blackhole; }
filter to_peers { if source = RTS_STATIC then { bgp_local_pref = 2147482623; accept; } reject; }
template bgp t { local as 64512; multihop; hold time 240; connect delay time 2; connect retry time 5; error wait time 5,30;
  source address 172.30.1.254; graceful restart; graceful restart time 120;
  ipv4 { import all; export filter to_peers; add paths on; gateway recursive; }; }
protocol bgp Mesh_172_30_1_1 from t { neighbor 172.30.1.1 as 64512; }
protocol bgp Mesh_172_30_2_2 from t { neighbor 172.30.2.2 as 64512; passive on; }
`

// birdKey is where the Node of that router stands.
const birdKey = api.ResourcesRoot + "nodes/router"

// bgpLong bounds what routing daemons do in their own time.
const bgpLong = time.Minute

// routerBIRD runs BIRD on the fabric until the test ends, and returns its socket.
func routerBIRD(t *testing.T, l *lab.Lab) (socket string) {
	t.Helper()
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	if err := os.WriteFile(file, []byte(birdNode), 0o600); err != nil {
		t.Fatal(err)
	}
	background(t, l, "fabric", os.Stderr, "bird", "-f", "-c", file, "-s", socket)
	return socket
}

// background runs a command on a place of the lab until the test ends, or the function that it returns is called.
func background(t *testing.T, l *lab.Lab, where string, out io.Writer, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := l.Exec(ctx, where, lab.Command{Args: args, Stdout: out, Stderr: os.Stderr}); err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v", args[0], err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(stop)
	return stop
}

// watchRoutes records what becomes of a place's routes. The function that it returns ends that, and tells which were taken away.
func watchRoutes(t *testing.T, l *lab.Lab, where string) (gone func() string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "events")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	stop := background(t, l, where, file, "ip", "monitor", "route")
	read := func() string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const mark = "198.51.100.77/32" // whose coming says that the monitor listens
	inTheEnd(t, func() error {
		run(t, l, where, "ip", "route", "replace", "blackhole", mark)
		run(t, l, where, "ip", "route", "del", "blackhole", mark)
		if !strings.Contains(read(), "198.51.100.77") {
			return errors.New("ip monitor says nothing")
		}
		return nil
	})
	return func() string {
		stop()
		_ = file.Close()
		var out strings.Builder
		for line := range strings.Lines(read()) {
			if strings.HasPrefix(line, "Deleted ") && !strings.Contains(line, "198.51.100.77") {
				out.WriteString(line)
			}
		}
		return out.String()
	}
}

// inTheEnd tries again until what has no error, for as long as routing daemons may take.
func inTheEnd(t *testing.T, what func() error) {
	t.Helper()
	deadline := time.Now().Add(nettest.Patience(bgpLong))
	for {
		err := what()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// routed waits until a node's routes contain all of the texts, and none that begins with "!".
func routed(t *testing.T, l *lab.Lab, node string, texts ...string) {
	t.Helper()
	inTheEnd(t, func() error {
		out := run(t, l, node, "ip", "route")
		for _, want := range texts {
			unwanted, not := strings.CutPrefix(want, "!")
			if not && strings.Contains(out, unwanted) || !not && !strings.Contains(out, want) {
				return fmt.Errorf("%s: want %q in:\n%s", node, want, out)
			}
		}
		return nil
	})
}

// blockOf is the block of a node, as `ip route` shows it there.
func blockOf(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	for line := range strings.Lines(run(t, l, node, "ip", "route", "show", "type", "blackhole")) {
		if f := strings.Fields(line); len(f) > 1 {
			return f[1]
		}
	}
	t.Fatalf("%s has no block", node)
	return ""
}

// withBGP makes a lab's agents speak BGP, over a pool without encapsulation.
func withBGP(subnets int) func(*lab.Options) {
	return func(o *lab.Options) {
		o.Nodes, o.Subnets, o.Mode = 2, subnets, lab.Direct
		o.AgentEnv = append(o.AgentEnv, "CALICO_NETWORKING_BACKEND=bird", "FELIX_HEALTHENABLED=true", "FELIX_PROMETHEUSMETRICSENABLED=true")
	}
}

// withRouter is a lab of two subnets, where the router between them is a BIRD node of the mesh. It returns the nodes' blocks once everybody knows
// the way to them.
func withRouter(t *testing.T) (l *lab.Lab, one, two, socket string) {
	t.Helper()
	nettest.Need(t, "root", "bird", "birdc")
	l = up(t, withBGP(2))
	put(t, l, birdKey, `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"router"},"spec":{"bgp":{"ipv4Address":"172.30.1.254/24"}}}`)
	socket = routerBIRD(t, l)
	one, two = blockOf(t, l, "node-1"), blockOf(t, l, "node-2")
	routed(t, l, "node-1", two+" via 172.30.1.254 dev eth0 proto 80 metric 1024", "192.168.200.0/26 via 172.30.1.254 dev eth0 proto 80 metric 1024")
	routed(t, l, "node-2", one+" via 172.30.2.254 dev eth0 proto 80 metric 1024", "192.168.200.0/26 via 172.30.2.254 dev eth0 proto 80 metric 1024")
	routed(t, l, "fabric", one+" via 172.30.1.1", two+" via 172.30.2.2")
	return l, one, two, socket
}

// TestDirectPoolAcrossSubnetsWorksByBGPWithABIRDNode: what no datastore can give, the nodes learn.
func TestDirectPoolAcrossSubnetsWorksByBGPWithABIRDNode(t *testing.T) {
	l, _, _, _ := withRouter(t)
	if f := failing(check(t, l)); len(f) > 0 {
		t.Fatalf("pairs that do not work: %q", f)
	}
	// A node that comes after the agent's first look is a problem until its session is up.
	const lacking, gone = `msg=problem what="Node(node-2): is outside`, `msg="problem gone" what="Node(node-2): is outside`
	if log := agentLog(t, l, "node-1"); strings.Contains(log, "level=ERROR") || strings.Count(log, lacking) != strings.Count(log, gone) {
		t.Errorf("the agent logs errors, or problems that are none:\n%s", log)
	}
	inTheEnd(t, func() error { return tells(t, l, ":9099/peers", "every BGP session is established") })
	inTheEnd(t, func() error {
		return tells(t, l, ":9091/metrics", `muslin_bgp_sessions{state="Established"} 2`, "muslin_bgp_routes_accepted 2", "muslin_bgp_routes_advertised 2")
	})
}

// tells asks node-1's agent for something, whose answer has to contain all of the texts.
func tells(t *testing.T, l *lab.Lab, what string, texts ...string) error {
	t.Helper()
	out, err := try(t, l, "node-1", "curl", "-s", "http://localhost"+what)
	for _, want := range texts {
		if err != nil || !strings.Contains(out, want) {
			return fmt.Errorf("%s: %w, want %q in %s", what, err, want, out)
		}
	}
	return nil
}

// TestRestartedAgentTakesNoRouteAwayFromItselfOrItsPeers ends an agent in either way, and watches the routes of the node and of its BIRD peer.
func TestRestartedAgentTakesNoRouteAwayFromItselfOrItsPeers(t *testing.T) {
	l, one, two, socket := withRouter(t)
	session := func(state string) {
		t.Helper()
		inTheEnd(t, func() error {
			out := run(t, l, "fabric", "birdc", "-s", socket, "show", "protocols")
			for line := range strings.Lines(out) {
				if f := strings.Fields(line); len(f) > 5 && f[0] == "Mesh_172_30_1_1" && (f[5] == "Established") == (state == "Established") {
					return nil
				}
			}
			return fmt.Errorf("want Mesh_172_30_1_1 %s:\n%s", state, out)
		})
	}
	for name, end := range map[string]func(context.Context, string) error{"killed": l.KillAgent, "stopped": l.StopAgent} {
		own, peer := watchRoutes(t, l, "node-1"), watchRoutes(t, l, "fabric")
		if err := end(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		session("away")
		if err := l.StartAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		session("Established")
		inTheEnd(t, func() error {
			return tells(t, l, ":9091/metrics", "muslin_bgp_routes_accepted 2", `muslin_bgp_sessions{state="Established"} 2`)
		})
		routed(t, l, "node-1", two+" via 172.30.1.254", "192.168.200.0/26 via 172.30.1.254")
		if got := own(); strings.Contains(got, two) || strings.Contains(got, "192.168.200.0/26") {
			t.Errorf("agent %s: routes of its node went:\n%s", name, got)
		}
		if got := peer(); strings.Contains(got, one) {
			t.Errorf("agent %s: the routes of its peer went:\n%s", name, got)
		}
	}
}
