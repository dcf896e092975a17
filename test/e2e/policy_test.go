package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// resource stores an object of a kind whose key ends so, with this spec and one label, if it is given one.
func resource(t *testing.T, l *lab.Lab, kind, key, spec string, label ...string) {
	t.Helper()
	path := strings.Split(key, "/")
	meta := map[string]any{"name": path[len(path)-1]}
	if len(path) == 3 {
		meta["namespace"] = path[1]
	}
	if len(label) == 2 {
		meta["labels"] = map[string]string{label[0]: label[1]}
	}
	text, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	put(t, l, api.ResourcesRoot+key, `{"kind": "`+kind+`", "apiVersion": "projectcalico.org/v3", "metadata": `+string(text)+`, "spec": {`+spec+`}}`)
}

func policy(t *testing.T, l *lab.Lab, name, spec string) {
	t.Helper()
	resource(t, l, "NetworkPolicy", "networkpolicies/default/default."+name, spec)
}

func remove(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	put(t, l, api.ResourcesRoot+path, gone)
}

// listenTCP takes TCP connections to a pod's port, by both families.
func listenTCP(t *testing.T, l *lab.Lab, name string, port int) {
	t.Helper()
	var ln net.Listener
	if err := l.WithinPod(name, func() (err error) { ln, err = net.Listen("tcp", ":"+strconv.Itoa(port)); return err }); err != nil {
		t.Fatal(err)
	}
	accept(t, ln)
}

// accept takes connections and ends them, until the test does.
func accept(t *testing.T, ln net.Listener) {
	t.Helper()
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
}

// connects tells whether a pod can open a TCP connection.
func connects(l *lab.Lab, from string, to netip.Addr, port int) error {
	return l.WithinPod(from, func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, uint16(port)).String(), 700*time.Millisecond)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// reach is who is to reach whom.
type reach struct {
	from, to string
	port     int
	open     bool
}

// ways waits until each way is as told, by both families. All are tried at once: a closed one takes its time.
func ways(t *testing.T, l *lab.Lab, what string, all ...reach) {
	t.Helper()
	type target struct {
		reach
		addr netip.Addr
	}
	var targets []target
	for _, w := range all {
		to := pod(t, l, w.to)
		for _, a := range to.Addrs() {
			targets = append(targets, target{w, a})
		}
	}
	nettest.Eventually(t, func() error {
		wrong := make([]error, len(targets))
		var trying sync.WaitGroup
		for i, w := range targets {
			trying.Go(func() {
				if err := connects(l, w.from, w.addr, w.port); (err == nil) != w.open {
					wrong[i] = fmt.Errorf("%s: %s to %s at %v, port %d: want open %t: %w", what, w.from, w.to, w.addr, w.port, w.open, errors.Join(err, errors.New("not so")))
				}
			})
		}
		trying.Wait()
		return errors.Join(wrong...)
	})
}

func TestPolicyDecidesWhoReachesWhom(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "client", Node: "node-2", Labels: map[string]string{"role": "client"}})
	listenTCP(t, l, "web", 80)
	listenTCP(t, l, "web", 81)
	listenTCP(t, l, "a2", 80)
	ways(t, l, "without policy", reach{"b1", "web", 80, true}, reach{"client", "web", 81, true}, reach{"web", "a2", 80, true})

	policy(t, l, "web", `"selector": "app == 'web'", "types": ["Ingress"]`)
	ways(t, l, "isolated", reach{"b1", "web", 80, false}, reach{"client", "web", 80, false}, reach{"web", "a2", 80, true})

	key := api.ResourcesRoot + "workloadendpoints/default/node--1-k8s-web-eth0"
	amend(t, l, key, "WorkloadEndpoint", map[string]any{"ports": []any{map[string]any{"name": "http", "protocol": "TCP", "port": 80}}})
	policy(t, l, "web", `"selector": "app == 'web'", "types": ["Ingress"],
		"ingress": [{"action": "Allow", "protocol": "TCP", "source": {"selector": "role == 'client'"}, "destination": {"ports": ["http"]}}]`)
	ways(t, l, "by selector and named port", reach{"client", "web", 80, true}, reach{"client", "web", 81, false}, reach{"b1", "web", 80, false}, reach{"a2", "web", 80, false})

	resource(t, l, "Tier", "tiers/first", `"order": 10, "defaultAction": "Deny"`)
	resource(t, l, "GlobalNetworkPolicy", "globalnetworkpolicies/first.pass", `"tier": "first", "order": 1, "selector": "app == 'web'", "types": ["Ingress", "Egress"],
		"ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [81]}}, {"action": "Pass"}], "egress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}}]`)
	ways(t, l, "with a tier before", reach{"client", "web", 80, true}, reach{"b1", "web", 80, false}, reach{"web", "a2", 80, false}, reach{"b1", "a2", 80, true})

	remove(t, l, "globalnetworkpolicies/first.pass")
	remove(t, l, "networkpolicies/default/default.web")
	ways(t, l, "with policy gone", reach{"b1", "web", 80, true}, reach{"client", "web", 81, true}, reach{"web", "a2", 80, true})
}

// knocker sends datagrams from one pod to another, each by a socket of its own, so that each is a new flow.
type knocker struct {
	in         net.PacketConn
	end        chan struct{}
	done       chan struct{}
	sent, seen atomic.Int64
}

const knockPort = 7070

func knock(t *testing.T, l *lab.Lab, from, to string, addr netip.Addr) *knocker {
	t.Helper()
	k := &knocker{end: make(chan struct{}), done: make(chan struct{})}
	target := netip.AddrPortFrom(addr, knockPort).String()
	if err := l.WithinPod(to, func() (err error) { k.in, err = net.ListenPacket("udp", target); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.in.Close() })
	go func() {
		buf := make([]byte, 16)
		for {
			if _, _, err := k.in.ReadFrom(buf); err != nil {
				return
			}
			k.seen.Add(1)
		}
	}()
	go func() {
		defer close(k.done)
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-k.end:
				return
			case <-tick.C:
			}
			err := l.WithinPod(from, func() error {
				c, err := net.Dial("udp", target)
				if err != nil {
					return err
				}
				_, err = c.Write(binary.BigEndian.AppendUint64(nil, uint64(k.sent.Load())))
				return errors.Join(err, c.Close())
			})
			if err == nil {
				k.sent.Add(1)
			}
		}
	}()
	return k
}

// stop ends the knocking, and returns how many datagrams were sent and how many came, once either all have or none more does.
func (k *knocker) stop(t *testing.T) (sent, seen int64) {
	t.Helper()
	close(k.end)
	<-k.done
	deadline := time.Now().Add(time.Second)
	for k.seen.Load() < k.sent.Load() && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	return k.sent.Load(), k.seen.Load()
}

// TestNothingOpensOrClosesByMistake changes policies, kills the agent and stops etcd, while new flows knock that policy allows, and that it denies.
func TestNothingOpensOrClosesByMistake(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "client", Node: "node-2", Labels: map[string]string{"role": "client"}})
	listenTCP(t, l, "web", 80)
	spec := func(order int, extra string) string {
		return fmt.Sprintf(`"selector": "app == 'web'", "order": %d, "types": ["Ingress"], "ingress": [%s{"action": "Allow", "source": {"selector": "role == 'client'"}}]`, order, extra)
	}
	policy(t, l, "web", spec(5, ""))
	ways(t, l, "at first", reach{"client", "web", 80, true}, reach{"b1", "web", 80, false}, reach{"a2", "web", 80, false})
	web := pod(t, l, "web")
	addPodOf(t, l, lab.PodSpec{Name: "web2", Node: "node-1", Labels: map[string]string{"app": "web"}})
	web2 := pod(t, l, "web2")
	allowed := []*knocker{knock(t, l, "client", "web", web.Addr), knock(t, l, "client", "web", web.Addr6)}
	denied := []*knocker{knock(t, l, "b1", "web2", web2.Addr), knock(t, l, "a2", "web2", web2.Addr6)}
	streams := map[string]*stream{"established": startStream(t, l, "client", "web"), "established by IPv6": startStream6(t, l, "client", "web2")}

	for i := range 15 {
		policy(t, l, "web", spec(i, fmt.Sprintf(`{"action": "Deny", "source": {"nets": ["198.51.%d.0/24"]}},`, i)))
		policy(t, l, "more", spec(20-i, `{"action": "Allow", "source": {"selector": "role == 'nobody'"}},`))
		resource(t, l, "GlobalNetworkSet", "globalnetworksets/nobody", fmt.Sprintf(`"nets": ["203.0.113.%d/32"]`, i))
		addPod(t, l, fmt.Sprintf("passing%d", i), "node-1")
		if i%5 == 4 {
			if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.StopEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	aside := pod(t, l, "a1").Addr.String() // to whom nobody knocks
	run(t, l, "node-1", "ip", "route", "del", aside)
	eventually(t, l, has(aside), "ip", "route") // so there was a round without etcd
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.StartEtcd(t.Context()), l.StartAgent(t.Context(), "node-1")); err != nil {
		t.Fatal(err)
	}
	for i, k := range denied {
		if sent, seen := k.stop(t); seen != 0 || sent < 100 {
			t.Errorf("denied flows %d: %d of %d datagrams got through", i, seen, sent)
		}
	}
	for i, k := range allowed {
		if sent, seen := k.stop(t); seen != sent || sent < 100 {
			t.Errorf("allowed flows %d: %d of %d datagrams were lost", i, sent-seen, sent)
		}
	}
	for name, got := range stopAll(t, streams) {
		if got.lost != 0 {
			t.Errorf("%s: %d of %d packets were lost", name, got.lost, got.sent)
		}
	}
	if log := agentLog(t, l, "node-1"); strings.Contains(log, "table=policy") {
		t.Errorf("the agent repaired what nobody had changed:\n%s", log)
	}
}

// TestNewPodIsNeverReachedPastItsPolicy floods all addresses that a node gives out. What comes in at a pod, its own counters tell.
func TestNewPodIsNeverReachedPastItsPolicy(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	policy(t, l, "all", `"selector": "app == 'web'", "types": ["Ingress"]`)
	first := pod(t, l, "a1").Addr
	block := netip.PrefixFrom(first, 26).Masked()
	end, ended := make(chan struct{}), make(chan struct{})
	var rounds atomic.Int64
	var out net.PacketConn
	if err := l.WithinPod("b1", func() (err error) { out, err = net.ListenPacket("udp4", ":0"); return err }); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(ended)
		for a := block.Addr(); ; a = a.Next() {
			if !block.Contains(a) {
				a = block.Addr()
				rounds.Add(1)
				select {
				case <-end:
					return
				case <-time.After(500 * time.Microsecond):
				}
			}
			_, _ = out.WriteTo([]byte("flood"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, knockPort))) // refused is as good
		}
	}()
	came := func(name string) int {
		var n int
		var b strings.Builder
		if err := l.PodExec(t.Context(), name, lab.Command{Args: []string{"cat", "/proc/net/snmp"}, Stdout: &b}); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "Udp:" && f[1] != "InDatagrams" {
				for _, word := range f[1:3] { // received, and received where nobody listens
					v, err := strconv.Atoi(word)
					if err != nil {
						t.Fatal(err)
					}
					n += v
				}
			}
		}
		return n
	}
	for i := range 5 {
		name := fmt.Sprintf("new%d", i)
		if p := addPodOf(t, l, lab.PodSpec{Name: name, Node: "node-1", Labels: map[string]string{"app": "web"}}); !block.Contains(p.Addr) {
			t.Fatalf("%s has %v, which nobody floods", name, p.Addr)
		}
		after := rounds.Load()
		nettest.Eventually(t, func() error { return atLeast(int(rounds.Load()-after), 10) })
		if n := came(name); n != 0 {
			t.Errorf("%d datagrams reached %s past its policy", n, name)
		}
	}
	remove(t, l, "networkpolicies/default/default.all")
	nettest.Eventually(t, func() error { return atLeast(came("new0"), 1) })
	close(end)
	<-ended
}

func TestHostsEndpointKeepsItsFailsafePorts(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	node := nodesOf(t, l)[0]
	pings := func() error {
		return l.Exec(t.Context(), "outside", lab.Command{Args: []string{"ping", "-c1", "-W1", node.Addr.String()}})
	}
	if err := pings(); err != nil {
		t.Fatalf("without policy: %v", err)
	}
	resource(t, l, "HostEndpoint", "hostendpoints/node-1-eth0", `"node": "node-1", "interfaceName": "eth0"`)
	resource(t, l, "GlobalNetworkPolicy", "globalnetworkpolicies/default.hosts", `"selector": "!has(projectcalico.org/orchestrator)", "types": ["Ingress", "Egress"]`)
	nettest.Eventually(t, func() error {
		if pings() == nil {
			return errors.New("the host answers still")
		}
		return nil
	})
	addPod(t, l, "later", "node-1") // by etcd, whose port is a failsafe one
	if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
		t.Fatal(err)
	}
	listenTCP(t, l, "a1", 80)
	ways(t, l, "through the tunnel of a host with policy", reach{"a2", "a1", 80, true})
	remove(t, l, "globalnetworkpolicies/default.hosts")
	remove(t, l, "hostendpoints/node-1-eth0")
	nettest.Eventually(t, pings)
}

func TestPodsSendNeitherFromOthersAddressesNorThroughTunnels(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 1, lab.VXLAN, true })
	target := pod(t, l, "b1")
	try := func(args ...string) { _ = l.PodExec(t.Context(), "a1", lab.Command{Args: args}) }
	try("ip", "addr", "add", "10.99.0.9/32", "dev", "eth0")
	try("ip", "addr", "add", "fd00:99::9/128", "dev", "eth0", "nodad")
	for own, to := range map[string]string{"10.99.0.9": target.Addr.String(), "fd00:99::9": target.Addr6.String()} {
		before := counted(t, l, "r-spoof")
		nettest.Eventually(t, func() error {
			try("ping", "-c1", "-W1", to) // to know the gateway, which answers nobody who asks by that address
			try("ping", "-c1", "-W1", "-I", own, to)
			return atLeast(counted(t, l, "r-spoof")-before, 1)
		})
	}
	vxlan := netip.AddrPortFrom(target.Addr, 4789).String()
	send := func(network, to string) error {
		return l.WithinPod("a1", func() error {
			c, err := net.Dial(network, to)
			if err != nil {
				return err
			}
			_, err = c.Write(make([]byte, 64))
			return errors.Join(err, c.Close())
		})
	}
	for _, way := range []struct{ network, to string }{
		{"udp", vxlan}, {"udp", netip.AddrPortFrom(target.Addr6, 4789).String()}, {"ip4:4", target.Addr.String()}, // protocol 4 is IP in IP
	} {
		before := counted(t, l, "r-tunnel")
		nettest.Eventually(t, func() error {
			return errors.Join(send(way.network, way.to), atLeast(counted(t, l, "r-tunnel")-before, 1))
		})
	}
	setFelix(t, l, toHost+`, "allowVXLANPacketsFromWorkloads": true, "allowIPIPPacketsFromWorkloads": true`)
	for _, way := range []struct{ network, at, to string }{{"udp", vxlan, vxlan}, {"ip4:4", target.Addr.String(), target.Addr.String()}} {
		var in net.PacketConn
		if err := l.WithinPod("b1", func() (err error) { in, err = net.ListenPacket(way.network, way.at); return err }); err != nil {
			t.Fatal(err)
		}
		nettest.Eventually(t, func() error {
			err := errors.Join(send(way.network, way.to), in.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
			if err == nil {
				_, _, err = in.ReadFrom(make([]byte, 128))
			}
			return err
		})
		_ = in.Close()
	}
}

// TestConnectionsOfAPodThatIsGoneAreForgotten looks at what node-1 tracks: the next pod of that address must not inherit what was allowed.
func TestConnectionsOfAPodThatIsGoneAreForgotten(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 1, lab.VXLAN, true })
	p := pod(t, l, "a1")
	tracked := func() (n int) {
		err := l.Within("node-1", func() error {
			h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer h.Close()
			for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
				flows, err := h.ConntrackTableList(netlink.ConntrackTable, family)
				if err != nil {
					return err
				}
				for _, f := range flows {
					if f.Forward.DstIP.Equal(p.Addr.AsSlice()) || f.Forward.DstIP.Equal(p.Addr6.AsSlice()) {
						n++
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, got := range stopAll(t, map[string]*stream{"4": startStream(t, l, "b1", "a1"), "6": startStream6(t, l, "b1", "a1")}) {
		if got.lost != 0 {
			t.Errorf("%d of %d packets were lost", got.lost, got.sent)
		}
	}
	if n := tracked(); n != 2 {
		t.Errorf("%d flows to the pod are tracked, want 2", n)
	}
	if err := l.RemovePod(t.Context(), "a1"); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, func() error {
		if n := tracked(); n > 0 {
			return fmt.Errorf("%d flows to the pod are tracked", n)
		}
		return nil
	})
}
