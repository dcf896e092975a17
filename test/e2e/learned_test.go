package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// routerBIRD runs BIRD on a place of the lab until the test ends.
func routerBIRD(t *testing.T, l *lab.Lab, where, config string) {
	t.Helper()
	nettest.Need(t, "bird", "birdc")
	dir := t.TempDir()
	file := filepath.Join(dir, "bird.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- l.Exec(ctx, where, lab.Command{Args: []string{"bird", "-f", "-c", file, "-s", filepath.Join(dir, "ctl")}, Stderr: os.Stderr})
	}()
	t.Cleanup(func() { stop(); <-ended })
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
		o.AgentEnv = append(o.AgentEnv, "CALICO_NETWORKING_BACKEND=bird")
	}
}

// TestDirectPoolAcrossSubnetsWorksByBGP has a router between the subnets that is a BIRD node of the mesh: what no datastore can give, it learns.
func TestDirectPoolAcrossSubnetsWorksByBGP(t *testing.T) {
	l := up(t, withBGP(2))
	put(t, l, birdKey, `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"router"},"spec":{"bgp":{"ipv4Address":"172.30.1.254/24"}}}`)
	routerBIRD(t, l, "fabric", birdNode)
	one, two := blockOf(t, l, "node-1"), blockOf(t, l, "node-2")
	routed(t, l, "node-1", two+" via 172.30.1.254 dev eth0 proto 80 metric 1024", "192.168.200.0/26 via 172.30.1.254 dev eth0 proto 80 metric 1024")
	routed(t, l, "node-2", one+" via 172.30.2.254 dev eth0 proto 80 metric 1024", "192.168.200.0/26 via 172.30.2.254 dev eth0 proto 80 metric 1024")
	routed(t, l, "fabric", one+" via 172.30.1.1", two+" via 172.30.2.2")
	if f := failing(check(t, l)); len(f) > 0 {
		t.Fatalf("pairs that do not work: %q", f)
	}
	if log := agentLog(t, l, "node-1"); strings.Contains(log, "level=ERROR") {
		t.Errorf("the agent logs errors:\n%s", log)
	}
}
