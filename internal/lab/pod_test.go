package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// recorder is a plugin that keeps what it was called with in its node's /run, and fails on request.
const recorder = `#!/bin/sh
cat >/run/$CNI_COMMAND.json
env >/run/$CNI_COMMAND.env
ls "$CNI_NETNS" >/run/$CNI_COMMAND.netns
if [ -e /run/fail-$CNI_COMMAND ]; then
  echo '{"cniVersion":"1.0.0","code":11,"msg":"the agent does not answer","details":"start it"}'
  exit 1
fi
if [ $CNI_COMMAND = ADD ]; then
  echo '{"cniVersion":"1.0.0","ips":[{"address":"192.168.0.5/32"}]}'
fi
`

// scripted is a lab whose agent and plugin are scripts: what is under test is how the lab calls them.
func scripted(t *testing.T, agent, plugin string) Config {
	t.Helper()
	cfg := bare(t)
	cfg.Options.NoAgents, cfg.Options.Nodes, cfg.Options.Subnets = false, 1, 1
	bin := t.TempDir()
	for name, text := range map[string]string{"muslin-node": agent, "muslin": plugin, "muslin-ipam": plugin} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(cfg.Bin, "muslin-lab"), filepath.Join(bin, "muslin-lab")); err != nil {
		t.Fatal(err)
	}
	cfg.Bin = bin
	return cfg
}

// answering is an agent that does nothing but accept on its socket: this test's own program.
func answering(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return "#!/bin/sh\n" + listenVar + "=1 exec " + self + "\n"
}

// listenVar makes this program the answering agent.
const listenVar = "MUSLIN_LAB_TEST_LISTEN"

// acceptAll accepts where an agent does, until it is killed.
func acceptAll() error {
	if err := os.MkdirAll(filepath.Dir(attach.Socket), 0o700); err != nil {
		return err
	}
	ln, err := net.Listen("unix", attach.Socket)
	if err != nil {
		return err
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		_ = conn.Close()
	}
}

const idle = "#!/bin/sh\nexec sleep 1000\n"

func TestUpShowsTheLogOfAnAgentThatEnds(t *testing.T) {
	cfg := scripted(t, "#!/bin/sh\necho no interface named eth0 >&2\nexit 1\n", recorder)
	_, err := Up(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "agent of node-1: it ended at once") || !strings.Contains(err.Error(), "no interface named eth0") {
		t.Errorf("error = %v, want one that names the agent and shows its log", err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab's folder is left: %v", err)
	}
}

func TestUpDoesNotWaitForEverForAnAgent(t *testing.T) {
	cfg := scripted(t, idle, recorder)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := Up(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "agent of node-1") {
		t.Errorf("error = %v, want one that names the agent", err)
	}
}

func TestUpNamesMissingPrograms(t *testing.T) {
	cfg := scripted(t, idle, recorder)
	if err := os.Remove(filepath.Join(cfg.Bin, "muslin-ipam")); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "muslin-ipam not found in "+cfg.Bin) {
		t.Errorf("error = %v, want one that names the program", err)
	}
}

func TestAgentIsStoppedKilledAndStarted(t *testing.T) {
	l := up(t, scripted(t, answering(t), recorder))
	agent := func() process {
		nodes, err := l.Nodes()
		if err != nil {
			t.Fatal(err)
		}
		return nodes[0].Agent
	}
	first := agent()
	if !first.alive() {
		t.Fatal("no agent runs")
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", first.PID))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"NODENAME": "node-1", "ETCD_ENDPOINTS": Defaults().endpoint(), "IP": "autodetect", "CALICO_IPV4POOL_VXLAN": "Always",
		"CALICO_IPV4POOL_CIDR": "192.168.0.0/16", "CALICO_IPV4POOL_BLOCK_SIZE": "26",
	} {
		if !hasVar(environ, name, value) {
			t.Errorf("the agent does not have %s=%s", name, value)
		}
	}
	for _, end := range []func(*Lab, context.Context, string) error{(*Lab).StopAgent, (*Lab).KillAgent} {
		before := agent()
		if err := errors.Join(end(l, t.Context(), "node-1"), end(l, t.Context(), "node-1")); err != nil {
			t.Fatal(err)
		}
		if before.alive() || agent() != (process{}) {
			t.Error("the agent is still there")
		}
		if err := errors.Join(l.StartAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
			t.Fatal(err)
		}
		if !agent().alive() || agent() == before {
			t.Error("no new agent runs")
		}
	}
}

func TestProcessThatIgnoresTheSignalIsKilled(t *testing.T) {
	needRoot(t)
	log := filepath.Join(t.TempDir(), "log")
	c, err := daemon{args: []string{"/bin/sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 1; done"}, log: log}.start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := poll(ctx, func() bool { return strings.Contains(tail(log), "trapped") }); err != nil {
		t.Fatal(err)
	}
	late, err := c.endWithin(t.Context(), 50*time.Millisecond, unix.SIGTERM)
	if late == nil || err != nil || c.alive() {
		t.Errorf("late is %v, error %v, alive %v; want it killed and said so", late, err, c.alive())
	}
}

func TestUpStartsADeadAgentAgain(t *testing.T) {
	cfg := scripted(t, answering(t), recorder)
	l := up(t, cfg)
	nodes, err := l.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Agent.end(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	up(t, cfg)
	if nodes, err = l.Nodes(); err != nil || !nodes[0].Agent.alive() {
		t.Errorf("no agent runs: %v", err)
	}
}

func TestPodIsAttachedAsARuntimeDoes(t *testing.T) {
	l := up(t, scripted(t, answering(t), recorder))
	spec := PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"x/y": "z"}}
	pod, err := l.AddPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if pod.Addr != netip.MustParseAddr("192.168.0.5") || pod.Took <= 0 {
		t.Errorf("address %s in %s, want what the plugin answered", pod.Addr, pod.Took)
	}
	var conf struct {
		Name, Type, Nodename string
		Args                 struct {
			Cni struct{ Labels json.RawMessage }
		}
		RuntimeConfig json.RawMessage
		Etcd          string `json:"etcd_endpoints"`
	}
	if err := json.Unmarshal([]byte(output(t, l, "node-1", "cat", "/run/ADD.json")), &conf); err != nil {
		t.Fatal(err)
	}
	got := []string{conf.Name, conf.Type, conf.Nodename, conf.Etcd, string(conf.Args.Cni.Labels), string(conf.RuntimeConfig)}
	want := []string{
		"k8s-pod-network", "muslin", "node-1", "http://172.30.0.1:2379",
		`[{"key":"a","value":"1"},{"key":"b","value":"2"}]`, `{"io.kubernetes.cri.pod-annotations":{"x/y":"z"}}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	env := strings.Split(output(t, l, "node-1", "cat", "/run/ADD.env"), "\n")
	for _, v := range []string{
		"CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/web", "CNI_CONTAINERID=" + pod.ContainerID,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=" + pod.UID,
	} {
		if !contains(env, v) {
			t.Errorf("the plugin does not have %s", v)
		}
	}
	if got := output(t, l, "node-1", "cat", "/run/ADD.netns"); got != "/run/netns/web" {
		t.Errorf("the plugin sees the namespace as %q", got)
	}
	if got := podOutput(t, l, "web", "sh", "-c", "hostname; ls /sys/class/net; ip -o link"); !strings.HasPrefix(got, "web\n") || strings.Contains(got, "eth0@") {
		t.Errorf("inside the pod: %q, want its own name and links", got)
	}
	var links []net.Interface
	err = l.WithinPod("web", func() (err error) {
		links, err = net.Interfaces()
		return err
	})
	if err != nil || len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links of the pod: %v %v, want lo, up", links, err)
	}
	if err := l.RemovePod(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if got := output(t, l, "node-1", "sh", "-c", "grep -c . /run/DEL.json; ls /run/netns"); got == "" || strings.Contains(got, "web") {
		t.Errorf("after the removal: %q", got)
	}
	if pods, err := l.Pods(); err != nil || len(pods) != 0 {
		t.Errorf("pods left: %v %v", pods, err)
	}
}

func contains(list []string, want string) bool {
	for _, have := range list {
		if have == want {
			return true
		}
	}
	return false
}

func podOutput(t *testing.T, l *Lab, pod string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := l.PodExec(t.Context(), pod, Command{Args: args, Stdout: &out, Stderr: &out}); err != nil {
		t.Fatalf("%s: %v: %v\n%s", pod, args, err, &out)
	}
	return out.String()
}

func TestFailedAddLeavesNothingAndFailedDelCanBeRepeated(t *testing.T) {
	l := up(t, scripted(t, answering(t), recorder))
	spec := PodSpec{Name: "web", Node: "node-1"}
	output(t, l, "node-1", "touch", "/run/fail-ADD")
	_, err := l.AddPod(t.Context(), spec)
	if err == nil || !strings.Contains(err.Error(), "add pod web to node-1: CNI ADD") || !strings.Contains(err.Error(), "the agent does not answer; start it") {
		t.Errorf("error = %v, want one with the plugin's words", err)
	}
	if got := output(t, l, "node-1", "sh", "-c", "rm /run/fail-ADD; ls /run/netns"); got != "" {
		t.Errorf("namespaces left: %s", got)
	}
	if _, err := l.AddPod(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddPod(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "pod web exists already, on node-1") {
		t.Errorf("a second pod of that name: %v", err)
	}
	output(t, l, "node-1", "touch", "/run/fail-DEL")
	if err := l.RemovePod(t.Context(), "web"); err == nil || !strings.Contains(err.Error(), "CNI DEL") {
		t.Errorf("error = %v, want the plugin's", err)
	}
	output(t, l, "node-1", "rm", "/run/fail-DEL")
	if err := l.RemovePod(t.Context(), "web"); err != nil {
		t.Errorf("remove again: %v", err)
	}
}

func TestBadPodsAreRefused(t *testing.T) {
	l := up(t, scripted(t, answering(t), recorder))
	for _, tc := range []struct {
		spec PodSpec
		want string
	}{
		{PodSpec{Name: "Web", Node: "node-1"}, "want a DNS label"},
		{PodSpec{Name: "../x", Node: "node-1"}, "want a DNS label"},
		{PodSpec{Name: strings.Repeat("a", 64), Node: "node-1"}, "want a DNS label"},
		{PodSpec{Name: "web"}, `node "" does not exist`},
		{PodSpec{Name: "web", Node: "node-2"}, `node "node-2" does not exist: this lab has node-1`},
	} {
		if _, err := l.AddPod(t.Context(), tc.spec); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.spec, err, tc.want)
		}
	}
}

func TestCheckReportsAPodWithoutItsAddress(t *testing.T) {
	t.Parallel()
	l := up(t, scripted(t, answering(t), recorder)) // this plugin sets no address
	if _, err := l.AddPod(t.Context(), PodSpec{Name: "web", Node: "node-1"}); err != nil {
		t.Fatal(err)
	}
	report, err := l.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Pairs {
		concerned := p.From == "web" || p.To == "web"
		if p.OK == concerned || concerned && !strings.Contains(p.Problem, "web cannot take part") {
			t.Errorf("%s to %s: ok is %v, problem %q", p.From, p.To, p.OK, p.Problem)
		}
	}
}

// router is a plugin that makes a pod with `ip` and knows nothing of other nodes: node-N's pod has 192.168.N.1.
const router = `#!/bin/sh
set -e
[ $CNI_COMMAND = ADD ] || exit 0
addr=192.168.$(hostname | tr -dc 0-9).1
pod=$(basename $CNI_NETNS)
ip link add cali0 type veth peer name eth0 netns $pod
ip link set cali0 up
ip route add $addr dev cali0
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv4/conf/cali0/proxy_arp
ip -n $pod addr add $addr/32 dev eth0
ip -n $pod link set eth0 up
ip -n $pod route add 169.254.1.1 dev eth0
ip -n $pod route add default via 169.254.1.1
echo '{"cniVersion":"1.0.0","ips":[{"address":"'$addr'/32"}]}'
`

func TestCheckTellsRoutesNATAndMTUApart(t *testing.T) {
	t.Parallel() // most of it is waiting
	cfg := scripted(t, answering(t), router)
	cfg.Options.Mode, cfg.Options.Nodes, cfg.Options.Subnets = Direct, 3, 2 // node-2 is on the other subnet
	l := up(t, cfg)
	for i := range 3 {
		if _, err := l.AddPod(t.Context(), PodSpec{Name: fmt.Sprintf("pod-%d", i+1), Node: fmt.Sprintf("node-%d", i+1)}); err != nil {
			t.Fatal(err)
		}
	}
	output(t, l, "node-1", "ip", "route", "add", "192.168.3.0/24", "via", "172.30.1.3")
	output(t, l, "node-3", "ip", "route", "add", "192.168.1.0/24", "via", "172.30.1.1")
	var report Report
	way := func(from, to string) Pair {
		for _, p := range report.Pairs {
			if p.From == from && p.To == to {
				return p
			}
		}
		t.Fatalf("%s to %s was not tried", from, to)
		return Pair{}
	}
	// finds checks until it finds what is so: on a machine with much else to do an answer may come too late.
	finds := func(wrong func() error) {
		t.Helper()
		nettest.Eventually(t, func() (err error) {
			if report, err = l.Check(t.Context()); err != nil {
				return err
			}
			return wrong()
		})
	}
	finds(func() error {
		if p := way("pod-1", "pod-3"); !p.OK || p.MTU != 1500 || p.Seen != netip.MustParseAddr("192.168.1.1") {
			return fmt.Errorf("pod-1 to pod-3: %+v, want all in order", p)
		}
		return nil
	})
	for _, pair := range [][2]string{{"pod-1", "pod-2"}, {"pod-2", "pod-3"}, {"node-2", "pod-1"}} {
		if p := way(pair[0], pair[1]); p.OK || !p.Expected || !strings.Contains(p.Problem, "mode direct has no tunnel") {
			t.Errorf("%v: %+v, want a failure that the mode explains", pair, p)
		}
	}
	if p := way("pod-1", "outside"); p.OK || p.Expected || p.Reached || p.Problem != "TCP: no answer; UDP: no answer" {
		t.Errorf("pod-1 to outside: %+v, want no answer, for there is no NAT", p)
	}
	output(t, l, "outside", "ip", "route", "add", "192.168.1.0/24", "via", "172.30.254.254")
	output(t, l, "fabric", "ip", "route", "add", "192.168.1.0/24", "via", "172.30.1.1")
	output(t, l, "fabric", "ip", "link", "set", "node-3", "mtu", "1400")
	finds(func() error {
		if p := way("pod-1", "outside"); p.OK || !p.Reached || p.Problem != "its source is seen as 192.168.1.1, not as the node's 172.30.1.1 (outgoing NAT)" {
			return fmt.Errorf("pod-1 to outside: %+v, want a wrong source", p)
		}
		if p := way("pod-1", "pod-3"); p.OK || !p.Reached || !strings.HasPrefix(p.Problem, "small messages pass") {
			return fmt.Errorf("pod-1 to pod-3: %+v, want that full-size packets are lost", p)
		}
		return nil
	})
}
