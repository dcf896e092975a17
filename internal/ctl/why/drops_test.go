package why

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// host is a node with two pods, a namespace each, whose policies are in etcd and in its kernel.
type host struct {
	t      *testing.T
	client *store.Client
	env    cli.Env
	ns     *nettest.NS
	pods   map[string]*nettest.NS
	conn   *nft.Conn
	layout *ruleset.Layout
	keeper *nft.Keeper
	engine *policy.Engine
}

func newHost(t *testing.T) *host {
	t.Helper()
	nettest.Need(t, "nft")
	h := &host{t: t, ns: nettest.New(t), pods: map[string]*nettest.NS{}, engine: policy.New("node-1")}
	etcd := etcdtest.New(t)
	connect := func(context.Context) (*store.Client, error) {
		return store.New(store.Config{Endpoints: []string{etcd.Endpoint()}})
	}
	var err error
	if h.client, err = connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.client.Close() })
	h.env = cli.Env{Program: "muslinctl", Err: io.Discard, Now: time.Now, Connect: connect}
	h.ns.Do(func() {
		if h.conn, err = nft.Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = h.conn.Close() })
	h.keeper = nft.NewKeeper(h.conn, ruleset.Table)
	h.layout = ruleset.New(ruleset.Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000, VXLANPort: 4789, LogGroup: ruleset.LogGroup})
	h.ns.Exec("sysctl", "-qw", "net.ipv4.ip_forward=1")
	h.pod("client", "cali1", "10.65.0.1")
	h.pod("web", "cali2", "10.65.0.2")
	return h
}

// pod makes a pod with its endpoint.
func (h *host) pod(name, device, addr string) {
	h.t.Helper()
	pod := nettest.New(h.t)
	h.pods[name] = pod
	nettest.Pair(h.ns, device, pod, "eth0")
	h.ns.Exec("ip", "route", "add", addr+"/32", "dev", device)
	pod.Exec("ip", "addr", "add", addr+"/32", "dev", "eth0")
	mac := strings.Fields(h.ns.Exec("ip", "-br", "link", "show", "dev", device))[2]
	pod.Exec("ip", "neigh", "add", "169.254.1.1", "lladdr", mac, "dev", "eth0")
	pod.Exec("ip", "route", "add", "169.254.1.1/32", "dev", "eth0")
	pod.Exec("ip", "route", "add", "default", "via", "169.254.1.1")
	w := &api.WorkloadEndpoint{}
	w.Metadata.Namespace, w.Metadata.Name = "default", "node--1-k8s-"+name+"-eth0"
	w.Metadata.Labels = map[string]string{"app": name, "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "k8s"}
	w.Spec = api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: "node-1", Pod: name, Endpoint: "eth0", InterfaceName: device, Profiles: []string{"projectcalico-default-allow"},
		IPNetworks: []api.Prefix{{Prefix: netip.PrefixFrom(netip.MustParseAddr(addr), 32)}},
	}
	put(h.t, h.client, w)
}

func put[T api.Value](t *testing.T, c *store.Client, v *T) {
	t.Helper()
	o := any(v).(api.Object)
	if _, err := store.Create(t.Context(), c, api.KeyOf(o), v); err != nil {
		t.Fatal(err)
	}
}

// deny makes a policy for the web pod that denies datagrams to a port and allows the rest.
func (h *host) deny(name string, port uint16) {
	h.t.Helper()
	p := &api.NetworkPolicy{}
	p.Metadata.Namespace, p.Metadata.Name = "default", name
	udp := api.ProtocolNamed("UDP")
	order := float64(port)
	p.Spec = api.NetworkPolicySpec{
		Order: &order, Selector: "app == 'web'", Types: []api.PolicyType{api.Ingress},
		Ingress: []api.Rule{
			{Action: api.Allow, Protocol: &udp, Destination: api.EntityRule{Ports: []api.Port{{Min: 7, Max: 7}}}},
			{Action: api.Deny, Protocol: &udp, Destination: api.EntityRule{Ports: []api.Port{{Min: port, Max: port}}}},
		},
	}
	put(h.t, h.client, p)
}

// enforce brings what etcd says into the kernel.
func (h *host) enforce() {
	h.t.Helper()
	f, err := read(h.t.Context(), h.client)
	if err != nil {
		h.t.Fatal(err)
	}
	h.layout.Update(h.engine.Apply(f.all))
	d := h.layout.Take()
	if _, err := h.keeper.Apply(h.t.Context(), h.layout.Table(), d, false); err != nil {
		h.t.Fatal(err)
	}
}

// send sends a datagram from the client to the web pod.
func (h *host) send(port int) {
	h.t.Helper()
	h.pods["client"].Do(func() {
		c, err := net.Dial("udp", fmt.Sprintf("10.65.0.2:%d", port))
		if err != nil {
			h.t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			h.t.Fatal(err)
		}
	})
}

// run runs "drops" on the host.
func (h *host) run(ctx context.Context, out io.Writer, args ...string) (err error) {
	env := h.env
	env.Out = out
	c := DropsCommand(env)
	c.SetArgs(append([]string{}, args...)) // of nil, cobra would take the test's
	c.SilenceErrors, c.SilenceUsage = true, true
	h.ns.Do(func() { err = c.ExecuteContext(ctx) })
	return err
}

// output is what a command that runs has written so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// following runs "drops --follow" until the test ends, and returns what it writes and what it returned.
func (h *host) following(args ...string) (out *output, end func() error) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	out = &output{}
	done := make(chan error, 1)
	go func() { done <- h.run(ctx, out, append([]string{"--follow"}, args...)...) }()
	end = func() error {
		cancel()
		return <-done
	}
	nettest.Eventually(h.t, func() error {
		var taken bool // to try whether the group is free would keep it from whom it is for
		h.ns.Do(func() { _, taken = nft.ReaderOf(ruleset.LogGroup) })
		if !taken {
			return errors.New("nobody listens yet")
		}
		return nil
	})
	return out, end
}

// sees sends datagrams until one is told of as wanted, for the reader may still have been about to begin.
func (h *host) sees(out *output, port int, want string) {
	h.t.Helper()
	nettest.Eventually(h.t, func() error {
		h.send(port)
		if !regexp.MustCompile(want).MatchString(out.text()) {
			return fmt.Errorf("no line matches %s in:\n%s", want, out.text())
		}
		return nil
	})
}

func TestFollowedDropsNamePolicyAndRule(t *testing.T) {
	h := newHost(t)
	h.deny("no-81", 81)
	h.enforce()
	out, end := h.following()
	h.sees(out, 81, `(?m)^\S+Z forward 10\.65\.0\.1 \(default/client, cali1\) > 10\.65\.0\.2 \(default/web, cali2\) UDP from port \d+ to port 81 in ingress: `+
		`dropped by NetworkPolicy\(default/no-81\) ingress rule 1 \([0-9a-f]{16}\)$`)
	// What no rule decides, the end of the tier drops.
	h.sees(out, 90, `(?m)to port 90 in ingress: dropped by the end of tier default in ingress \(`)
	// A policy that comes later is found when its first packet is dropped.
	h.deny("no-70", 70)
	h.enforce()
	h.sees(out, 70, `(?m)to port 70 in ingress: dropped by NetworkPolicy\(default/no-70\) ingress rule 1 \(`)
	// A packet that pretends to be another's is dropped by no rule.
	h.pods["client"].Exec("ip", "addr", "add", "10.65.0.9/32", "dev", "eth0")
	h.pods["client"].Exec("ip", "route", "change", "default", "via", "169.254.1.1", "src", "10.65.0.9")
	h.sees(out, 7, `(?m)^\S+Z prerouting 10\.65\.0\.9 \(default/client, cali1\) > 10\.65\.0\.2 UDP .*: dropped by the source is not the pod's own address$`)
	if err := end(); err != nil {
		t.Errorf("interrupted, it returned %v", err)
	}
}

func TestFollowedDropsAreJSONLines(t *testing.T) {
	h := newHost(t)
	h.deny("no-81", 81)
	h.enforce()
	out, end := h.following("-o", "json")
	h.sees(out, 81, `\n`)
	if err := end(); err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(out.text(), "\n")
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	for _, changing := range []string{"time", "sourcePort", "id"} {
		if got[changing] == nil {
			t.Errorf("%s is missing in %s", changing, line)
		}
		delete(got, changing)
	}
	want := map[string]any{
		"hook": "forward", "in": "cali1", "out": "cali2", "from": "default/client", "to": "default/web",
		"source": "10.65.0.1", "destination": "10.65.0.2", "protocol": "UDP", "port": 81.0,
		"by": "NetworkPolicy(default/no-81) ingress rule 1", "action": "Deny", "policy": "NetworkPolicy(default/no-81)",
		"tier": "default", "direction": "ingress", "rule": 1.0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSecondFollowerIsRefused(t *testing.T) {
	h := newHost(t)
	h.enforce()
	_, end := h.following()
	err := h.run(t.Context(), io.Discard, "--follow")
	if err == nil || !strings.Contains(err.Error(), `is "muslinctl node drops --follow" running already?`) {
		t.Errorf("the second got %v", err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

func TestDropsAreCountedByRule(t *testing.T) {
	h := newHost(t)
	if err := h.run(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "this host has no table muslin") {
		t.Errorf("without a table: %v", err)
	}
	h.deny("no-81", 81)
	h.enforce()
	for range 3 {
		h.send(81)
	}
	h.send(90)
	h.send(7)
	var out bytes.Buffer
	nettest.Eventually(t, func() error { // packets cross on the sender's processor, or soon after
		out.Reset()
		if err := h.run(t.Context(), &out); err != nil {
			return err
		}
		want := regexp.MustCompile(`^\+-.*\n\| PACKETS \| BYTES \| ACTION \| +BY +\| +ID +\|\n\+-.*\n` +
			`\| +3 \| +87 \| Deny   \| NetworkPolicy\(default/no-81\) ingress rule 1 \| [0-9a-f]{16} \|\n` +
			`\| +1 \| +29 \| Deny   \| the end of tier default in ingress +\| [0-9a-f]{16} \|\n\+-.*\n$`)
		if !want.MatchString(out.String()) {
			return fmt.Errorf("got\n%s", out.String())
		}
		return nil
	})
	out.Reset()
	if err := h.run(t.Context(), &out, "--all", "-o", "json"); err != nil {
		t.Fatal(err)
	}
	var rows []counted
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, r := range rows {
		got[fmt.Sprint(r.By, ": ", r.Action)] = r.Packets
	}
	for what, n := range map[string]uint64{
		"NetworkPolicy(default/no-81) ingress rule 0: Allow":        1,
		"NetworkPolicy(default/no-81) ingress rule 1: Deny":         3,
		"Profile(projectcalico-default-allow) egress rule 0: Allow": 5,
		"the source is not the pod's own address: Deny":             0,
	} {
		if got[what] != n {
			t.Errorf("%s: %d packets, want %d", what, got[what], n)
		}
	}
}
