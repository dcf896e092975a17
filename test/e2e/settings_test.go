package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// setFelix writes the settings of node-1. Beside them its agent would write Return at start.
func setFelix(t *testing.T, l *lab.Lab, spec string) {
	t.Helper()
	put(t, l, api.ResourcesRoot+"felixconfigurations/node.node-1",
		`{"kind": "FelixConfiguration", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "node.node-1"}, "spec": {`+spec+`}}`)
}

const toHost = `"defaultEndpointToHostAction": "Return"`

// eventually waits until the command's output on node-1 is as told.
func eventually(t *testing.T, l *lab.Lab, good func(out string) error, command ...string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		out, err := try(t, l, "node-1", command...)
		if err == nil {
			err = good(out)
		}
		if err != nil {
			return fmt.Errorf("%s: %w:\n%s", strings.Join(command, " "), err, out)
		}
		return nil
	})
}

func has(text string) func(string) error {
	return func(out string) error {
		if !strings.Contains(out, text) {
			return fmt.Errorf("want %q in it", text)
		}
		return nil
	}
}

func hasNot(text string) func(string) error {
	return func(out string) error {
		if strings.Contains(out, text) {
			return fmt.Errorf("want no %q in it", text)
		}
		return nil
	}
}

func TestRouteSettingsTakeEffectWithoutARestart(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	dev := hostSideOnNode1(t, l)
	foreign := []string{"ip", "route", "add", "198.51.100.7/32", "dev", dev, "proto", "static"}

	run(t, l, "node-1", foreign...)
	eventually(t, l, hasNot("198.51.100.7"), "ip", "route") // removeExternalRoutes is true

	setFelix(t, l, toHost+`, "removeExternalRoutes": false, "deviceRouteProtocol": 90, "ipv4NormalRoutePriority": 77`)
	eventually(t, l, hasNot("proto 80"), "ip", "route")
	eventually(t, l, has("dev "+dev+" proto 90 scope link metric 77"), "ip", "route")
	if r := check(t, l); !r.OK {
		t.Errorf("with a protocol of their own these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	run(t, l, "node-1", foreign...)
	run(t, l, "node-1", "ip", "route", "flush", "proto", "90")
	eventually(t, l, has("dev "+dev+" proto 90"), "ip", "route") // so the routes were listed, with the foreign one among them
	eventually(t, l, has("198.51.100.7"), "ip", "route")

	// A restart with other settings finds what the agent has made under these.
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	setFelix(t, l, toHost)
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, l, hasNot("proto 90"), "ip", "route")
	eventually(t, l, hasNot("198.51.100.7"), "ip", "route")
	eventually(t, l, has("dev "+dev+" proto 80 scope link metric 1024"), "ip", "route")
	if r := check(t, l); !r.OK {
		t.Errorf("with the usual protocol again these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}

// TestNonsenseIsNamedAndCostsNoPacket has settings and pools that no node can go by, and one that would cut the node off: a prefix of workloads'
// devices that fits the device to the other nodes, a pool over the nodes' own addresses.
func TestNonsenseIsNamedAndCostsNoPacket(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	allWell(t, l)
	c := startChat(t, l, "a1", "a2", pod(t, l, "a2").Addr, 10*time.Millisecond)
	for _, n := range []struct{ spec, named string }{
		{`"interfacePrefix": "eth"`, `"eth\" does not count, for eth0 begins with it too`},
		{`"vxlanPort": 70000, "vxlanVNI": -5, "vxlanMTU": 7`, `spec.vxlanVNI: \"-5\"`},
		{`"mtuIfacePattern": "("`, "spec.mtuIfacePattern"},
		{`"deviceRouteProtocol": 2, "iptablesMarkMask": 1`, "spec.iptablesMarkMask"},
		{`"vxlanMTU": 9000`, "an MTU of 9000 for vxlan.calico does not fit"},
		{`"routeRefreshInterval": "-3s"`, "spec.routeRefreshInterval"},
	} {
		setFelix(t, l, toHost+", "+n.spec)
		nettest.Eventually(t, func() error { return has(n.named)(agentLog(t, l, "node-1")) })
	}
	put(t, l, api.ResourcesRoot+"ippools/over-nodes", `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"over-nodes"},"spec":{"cidr":"172.30.1.0/25","blockSize":26,"vxlanMode":"Always"}}`)
	free := strings.TrimSuffix(strings.Repeat("null,", 64), ",")
	put(t, l, api.BlocksRoot+"ipv4/block/172.30.1.0-26", `{"cidr":"172.30.1.0/26","affinity":"host:node-2","allocations":[`+free+`],"unallocated":[],"attributes":[]}`)
	nettest.Eventually(t, func() error {
		return has("Node(node-1): has its address 172.30.1.1 in 172.30.1.0/26")(agentLog(t, l, "node-1"))
	})
	setFelix(t, l, toHost)
	nettest.Eventually(t, func() error { return has("problem gone\" what=\"FelixConfiguration")(agentLog(t, l, "node-1")) })
	if cost := c.goesOn(t); cost.lost > 0 {
		t.Errorf("%d datagrams are lost", cost.lost)
	}
	allWell(t, l)
}

// hostSideOnNode1 is the host's side of a pod of node-1.
func hostSideOnNode1(t *testing.T, l *lab.Lab) string {
	t.Helper()
	for _, line := range strings.Split(run(t, l, "node-1", "ip", "-o", "link"), "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "cali") {
			name, _, _ := strings.Cut(strings.TrimSuffix(f[1], ":"), "@")
			return name
		}
	}
	t.Fatal("node-1 has no pod")
	return ""
}

func TestPodsReachTheirHostAsSet(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 1, lab.VXLAN, true })
	pod := addPod(t, l, "asks", "node-1")
	host := strings.Fields(run(t, l, "node-1", "hostname", "-I"))
	if len(host) < 2 {
		t.Fatalf("node-1 has the addresses %q", host)
	}
	ping := func(from func(lab.Command) error, to string) error {
		return from(lab.Command{Args: []string{"ping", "-c1", "-W1", to}})
	}
	asPod := func(c lab.Command) error { return l.PodExec(t.Context(), "asks", c) }
	asHost := func(c lab.Command) error { return l.Exec(t.Context(), "node-1", c) }

	for _, c := range []struct {
		action string // "": what is stored cannot be read, and the one before goes on
		reach  bool
	}{{"Return", true}, {"Drop", false}, {"Accept", true}, {"", true}} {
		if c.action != "" {
			setFelix(t, l, `"defaultEndpointToHostAction": "`+c.action+`"`)
		} else {
			put(t, l, api.ResourcesRoot+"felixconfigurations/node.node-1", "{")
			nettest.Eventually(t, func() error { return has("felixconfigurations/node.node-1")(agentLog(t, l, "node-1")) })
			run(t, l, "node-1", "ip", "route", "flush", "proto", "80")
			eventually(t, l, has("proto 80"), "ip", "route") // so a whole round has followed
		}
		for _, to := range host {
			if strings.HasPrefix(to, "fe80") {
				continue
			}
			nettest.Eventually(t, func() error {
				if err := ping(asPod, to); (err == nil) != c.reach {
					return fmt.Errorf("%s: the pod's ping to its host at %s: %w", c.action, to, errors.Join(err, errors.New("not as set")))
				}
				return nil
			})
		}
		for _, a := range [...]netip.Addr{pod.Addr, pod.Addr6} {
			if err := ping(asHost, a.String()); err != nil {
				t.Errorf("%s: the host does not reach its pod at %v: %v", c.action, a, err)
			}
		}
	}
}

func TestChainsMoveToTheEndAndBack(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	run(t, l, "node-1", "iptables", "-A", "FORWARD", "-s", "198.51.100.1", "-j", "DROP")
	order := func(first, second string) func(string) error {
		return func(out string) error {
			if a, b := strings.Index(out, first), strings.Index(out, second); a < 0 || b < 0 || a > b {
				return fmt.Errorf("want %s before %s", first, second)
			}
			return nil
		}
	}
	eventually(t, l, order("cali-FORWARD", "198.51.100.1"), "iptables", "-S", "FORWARD")
	setFelix(t, l, toHost+`, "chainInsertMode": "Append"`)
	eventually(t, l, order("198.51.100.1", "-j cali-FORWARD"), "iptables", "-S", "FORWARD")
	setFelix(t, l, toHost)
	eventually(t, l, order("-j cali-FORWARD", "198.51.100.1"), "iptables", "-S", "FORWARD")
}

// ask asks by HTTP over node-1's loopback.
func ask(port int, path string) []string {
	return []string{"bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%d && printf 'GET %s HTTP/1.0\r\n\r\n' >&3 && timeout 10 cat <&3`, port, path)}
}

func TestPortsForMonitoringOpenAndCloseAsSet(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode = 1, lab.VXLAN
		o.AgentEnv = []string{"FELIX_HEALTHENABLED=true"}
	})
	eventually(t, l, has("200 OK"), ask(9099, "/readiness")...)
	eventually(t, l, has("200 OK"), ask(9099, "/liveness")...)
	if out, err := try(t, l, "node-1", ask(9091, "/metrics")...); err == nil {
		t.Errorf("metrics are served though nobody asked for them:\n%s", out)
	}

	setFelix(t, l, toHost+`, "prometheusMetricsEnabled": true, "prometheusMetricsHost": "localhost", "prometheusMetricsPort": 9099`)
	nettest.Eventually(t, func() error { return has("port not opened; it is tried again")(agentLog(t, l, "node-1")) })
	setFelix(t, l, toHost+`, "prometheusMetricsEnabled": true, "prometheusGoMetricsEnabled": false`)
	for _, want := range []string{
		"felix_active_local_endpoints 2\n", "felix_cluster_num_hosts 1\n", "felix_resync_state 3\n", `felix_host{host="node-1"} 1`, "felix_route_table_num_routes ",
		`felix_iptables_rules{ip_version="4",table="filter"} `, "felix_int_dataplane_apply_time_seconds_count ", `muslin_request_seconds_count{result="ok",verb="add"} 2`, "felix_active_local_policies 0", "felix_cluster_num_policies 0", "process_open_fds ",
	} {
		eventually(t, l, has(want), ask(9091, "/metrics")...)
	}
	eventually(t, l, hasNot("go_goroutines"), ask(9091, "/metrics")...)
	setFelix(t, l, toHost)
	nettest.Eventually(t, func() error {
		if _, err := try(t, l, "node-1", ask(9091, "/metrics")...); err == nil {
			return errors.New("metrics are served still")
		}
		return nil
	})
}

func TestLogGoesToAFileAsSet(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	setFelix(t, l, toHost+`, "logSeverityScreen": "None", "logSeverityFile": "Debug", "logFilePath": "/var/lib/calico/logs/agent.log"`)
	nettest.Eventually(t, func() error {
		run(t, l, "node-1", "ip", "route", "flush", "proto", "80") // to give the agent something to say
		out, err := try(t, l, "node-1", "cat", "/var/lib/calico/logs/agent.log")
		return errors.Join(err, has("repaired what others changed")(out))
	})
	setFelix(t, l, toHost+`, "vxlanPort": 0`)
	nettest.Eventually(t, func() error {
		return has("want a number between 1 and 65535; the default, 4789, counts instead")(agentLog(t, l, "node-1"))
	})
}

func TestPodSendsFromTheRangesThatItsEndpointNames(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	run(t, l, "node-1", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0") // the stricter of all and the device counts
	setFelix(t, l, toHost+`, "workloadSourceSpoofing": "Any"`)
	for key := range values(t, l, api.ResourcesRoot+"workloadendpoints/") {
		if strings.Contains(key, "a1") {
			amend(t, l, key, "WorkloadEndpoint", map[string]any{"allowSpoofedSourcePrefixes": []string{"198.51.100.0/24"}})
		}
	}
	other := netip.MustParseAddr("198.51.100.7")
	if err := l.PodExec(t.Context(), "a1", lab.Command{Args: []string{"ip", "address", "add", other.String() + "/32", "dev", "lo"}}); err != nil {
		t.Fatal(err)
	}
	var in net.PacketConn
	var out net.Conn
	target := net.JoinHostPort(pod(t, l, "b1").Addr.String(), "5353")
	from := &net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(other, 0))}
	err := errors.Join(
		l.WithinPod("b1", func() (err error) { in, err = net.ListenPacket("udp", target); return err }),
		l.WithinPod("a1", func() (err error) { out, err = from.DialContext(t.Context(), "udp", target); return err }),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = in.Close(), out.Close() }()
	buf := make([]byte, 64)
	nettest.Eventually(t, func() error {
		if _, err := out.Write([]byte("hello")); err != nil {
			return err
		}
		if err := in.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		_, seen, err := in.ReadFrom(buf)
		if err == nil && !strings.HasPrefix(seen.String(), other.String()+":") {
			err = fmt.Errorf("it came from %v", seen)
		}
		return err
	})
}
