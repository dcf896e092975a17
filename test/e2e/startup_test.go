package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// environment26 is what a manifest of the time of Calico v2.6 sets: some of it empty, some of it of no use any more.
func environment26() []string {
	return []string{
		"IP=", "IP6=", "AS=", "NO_DEFAULT_POOLS=", "IP_AUTODETECTION_METHOD=", "CALICO_LIBNETWORK_ENABLED=true", "CALICO_NETWORKING_BACKEND=bird",
		"CALICO_IPV4POOL_IPIP=off", "CALICO_IPV4POOL_VXLAN=", "CLUSTER_TYPE=k8s,bgp", "CALICO_DISABLE_FILE_LOGGING=true", "WAIT_FOR_DATASTORE=true",
		"FELIX_DEFAULTENDPOINTTOHOSTACTION=ACCEPT", "FELIX_IPV6SUPPORT=false", "FELIX_IPINIPMTU=1440", "FELIX_LOGSEVERITYSCREEN=info", "FELIX_HEALTHENABLED=true",
	}
}

func TestEnvironmentOfOldManifestsRunsUnchanged(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.AgentEnv = 2, lab.Direct, environment26() })
	allWell(t, l)
	text := agentLog(t, l, "node-1")
	for part, times := range map[string]int{
		"CALICO_LIBNETWORK_ENABLED: there is no plugin for Docker": 1, "WAIT_FOR_DATASTORE: ": 1, "unknown variable": 0, "level=WARN": 0, "level=ERROR": 0,
	} {
		if n := strings.Count(text, part); n != times {
			t.Errorf("the log says %q %d times, want %d:\n%s", part, n, times, text)
		}
	}
	for key, part := range map[string]string{
		api.ResourcesRoot + "nodes/node-1": `"ipv4Address":"172.30.1.1/24"`, api.ResourcesRoot + "ippools/default-ipv4-ippool": `"ipipMode":"Never"`,
		api.ResourcesRoot + "clusterinformations/default": `"clusterType":"k8s,bgp"`,
	} {
		if v := values(t, l, key)[key]; !strings.Contains(v, part) {
			t.Errorf("%s lacks %s: %s", key, part, v)
		}
	}
}

// move gives a node another address of its subnet, in place of its own.
func move(t *testing.T, l *lab.Lab, node string, from, to netip.Addr) {
	t.Helper()
	run(t, l, node, "sysctl", "-qw", "net.ipv4.conf.eth0.promote_secondaries=1")
	run(t, l, node, "ip", "address", "add", to.String()+"/24", "dev", "eth0")
	run(t, l, node, "ip", "address", "del", from.String()+"/24", "dev", "eth0")
}

// soon is nettest.Eventually for what etcd's lost connections hold up.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still after a minute: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestRoutesFollowANodeThatIsReaddressedWhilePodsTalk(t *testing.T) {
	for _, mode := range []lab.Mode{lab.Direct, lab.VXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, mode })
			old, next := netip.MustParseAddr("172.30.1.2"), netip.MustParseAddr("172.30.1.77")
			s := startStream(t, l, "a1", "a2")
			move(t, l, "node-2", old, next)
			key := api.ResourcesRoot + "nodes/node-2"
			soon(t, "the Node has its old address", func() bool { return strings.Contains(values(t, l, key)[key], `"ipv4Address":"172.30.1.77/24"`) })
			state := func() string {
				return run(t, l, "node-1", "ip", "route") + run(t, l, "node-1", "bridge", "fdb")
			}
			soon(t, "node-1 does not know the new address", func() bool { return strings.Contains(state(), next.String()) })
			o := s.stop(t)
			t.Logf("%d datagrams, %d lost", o.sent, o.lost)
			again := startStream(t, l, "b1", "b2")
			back := startStream(t, l, "b2", "a1")
			for name, o := range stopAll(t, map[string]*stream{"there": again, "back": back}) {
				if o.lost > 0 {
					t.Errorf("%s: %d of %d are lost afterwards", name, o.lost, o.sent)
				}
			}
			nettest.Eventually(t, func() error {
				if text := state(); strings.Contains(text, old.String()+" ") {
					return fmt.Errorf("node-1 still has the old address:\n%s", text)
				}
				return nil
			})
			addPod(t, l, "later", "node-2")
			answers(t, l, "node-1", pod(t, l, "later"))
		})
	}
}

func TestAddressTakenAtRunTimeIsAProblemAndNoEnd(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.AgentEnv = 2, lab.VXLAN, []string{"AUTODETECT_POLL_INTERVAL=1s"}
	})
	key := api.ResourcesRoot + "nodes/twin"
	put(t, l, key, `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"twin"},"spec":{"bgp":{"ipv4Address":"172.30.1.2/24"}}}`)
	taken := `node \"twin\" is already using the IPv4 address 172.30.1.2`
	soon(t, "node-2 has not noticed", func() bool { return strings.Contains(agentLog(t, l, "node-2"), taken) })
	run(t, l, "node-2", "ip", "address", "add", "10.99.0.1/24", "dev", "eth0") // and looks again
	addPod(t, l, "later", "node-2")
	if n := strings.Count(agentLog(t, l, "node-2"), taken); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

func TestShutdownIsOnRecordUntilTheAgentIsUpAgain(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	const file = "/var/lib/calico/shutdownTS"
	there := func() (string, bool) {
		text, err := try(t, l, "node-1", "cat", file)
		return text, err == nil
	}
	if text, ok := there(); ok {
		t.Errorf("an agent that runs is said to be down since %s", text)
	}
	run(t, l, "node-1", "muslin-node", "-shutdown")
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	text, ok := there()
	if at, err := time.Parse(time.RFC3339, text); !ok || err != nil || at.Location() != time.UTC || time.Since(at) > time.Minute {
		t.Errorf("down since %q, %v", text, err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if text, ok := there(); ok {
		t.Errorf("an agent that is up again is said to be down since %s", text)
	}
	allWell(t, l)
}

func TestArgumentsOfTheAgent(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	put(t, l, api.ResourcesRoot+"felixconfigurations/node.node-1",
		`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"node.node-1"},"spec":{"vxlanPort":4790}}`)
	for _, c := range []struct{ args, env, want string }{
		{"--help", "", "IP_AUTODETECTION_METHOD"},
		{"--version", "", "\n"},
		{"config", "IP=autodetect", "FelixConfiguration(node.node-1) spec.vxlanPort"},
		{"config", "IP_AUTODETECTION_METOD=x", "did you mean IP_AUTODETECTION_METHOD?"},
		{"config", "FELIX_VXLANPORT=many", "4790"},
		{"start", "", `unknown argument "start"`},
	} {
		var out bytes.Buffer
		err := l.Exec(t.Context(), "node-1", lab.Command{Args: []string{"muslin-node", c.args}, Env: []string{c.env}, Stdout: &out, Stderr: &out})
		bad := c.args == "start" || strings.HasPrefix(c.env, "FELIX") || strings.HasPrefix(c.env, "IP_")
		if (err != nil) != bad || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s %s: %v, want %q in:\n%s", c.env, c.args, err, c.want, out.String())
		}
	}
	if lines := strings.Split(run(t, l, "node-1", "muslin-node", "config"), "\n"); !slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "NODENAME ") && strings.Contains(s, "node-1") }) {
		t.Errorf("no name in %q", lines)
	}
}
