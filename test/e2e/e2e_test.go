// Package e2e proves on the real kernel and a real etcd what no single package can: whole nodes in a lab, with real packets.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// labEtcd is the lab's etcd as the nodes reach it.
const labEtcd = "http://172.30.0.1:2379"

func TestMain(m *testing.M) {
	if prefix := os.Getenv(keysVar); prefix != "" {
		if err := talkToEtcd(prefix); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// up brings a lab up with two pods on every node, and takes it down with the test.
func up(t *testing.T, change func(*lab.Options)) *lab.Lab {
	t.Helper()
	return upWith(t, programs(t), change)
}

// upWith is up with the programs of a folder.
func upWith(t *testing.T, bin string, change func(*lab.Options)) *lab.Lab {
	t.Helper()
	l, nodes := upBare(t, bin, change)
	for n := range nodes {
		for _, p := range []string{"a", "b"} {
			addPod(t, l, fmt.Sprintf("%s%d", p, n+1), fmt.Sprintf("node-%d", n+1))
		}
	}
	return l
}

// upBare is upWith without pods. It returns the number of nodes too.
func upBare(t *testing.T, bin string, change func(*lab.Options)) (l *lab.Lab, nodes int) {
	t.Helper()
	nettest.Need(t, "root")
	o := lab.Defaults()
	change(&o)
	dir := filepath.Join("/run", fmt.Sprintf("muslin-e2e-%d-%x", os.Getpid(), fnv32(t.Name())))
	ctx, cancel := context.WithTimeout(t.Context(), nettest.Patience(time.Minute))
	defer cancel()
	l, err := lab.Up(ctx, lab.Config{Dir: dir, Bin: bin, Options: o, Guarded: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			logs(t, l, o.Nodes)
		}
		if err := l.Down(ctx); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
	})
	return l, o.Nodes
}

// fnv32 makes a short name of a long one.
func fnv32(s string) uint32 {
	h := fnv.New32()
	_, _ = h.Write([]byte(s)) // never fails
	return h.Sum32()
}

func addPod(t *testing.T, l *lab.Lab, name, node string) lab.Pod {
	t.Helper()
	return addPodOf(t, l, lab.PodSpec{Name: name, Node: node})
}

func addPodOf(t *testing.T, l *lab.Lab, spec lab.PodSpec) lab.Pod {
	t.Helper()
	pod, err := l.AddPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// programs is the folder of the built programs: `make build` comes before the tests.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "muslin-node")); err != nil {
		t.Fatalf("the programs are not built: %v; run make build", err)
	}
	return dir
}

func logs(t *testing.T, l *lab.Lab, nodes int) {
	for n := range nodes {
		var b bytes.Buffer
		name := fmt.Sprintf("node-%d", n+1)
		if err := l.Log(name, &b); err != nil {
			t.Logf("log of %s: %v", name, err)
		}
		t.Logf("log of %s:\n%s", name, b.String())
	}
}

func run(t *testing.T, l *lab.Lab, where string, args ...string) string {
	t.Helper()
	out, err := try(t, l, where, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try is run for what may fail, such as iptables-save while rules and their sets go.
func try(t *testing.T, l *lab.Lab, where string, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	if err := l.Exec(t.Context(), where, lab.Command{Args: args, Stdout: &out, Stderr: &errs}); err != nil {
		return "", fmt.Errorf("%s: %s: %w: %s", where, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func check(t *testing.T, l *lab.Lab) lab.Report {
	t.Helper()
	r, err := l.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// failing lists the pairs that do not work.
func failing(r lab.Report) []string {
	var out []string
	for _, p := range r.Pairs {
		if !p.OK {
			out = append(out, fmt.Sprintf("%s -> %s (IPv6 %t): %s", p.From, p.To, p.IPv6, p.Problem))
		}
	}
	return out
}

func TestDirectFailsExactlyAcrossSubnets(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Mode, o.Subnets, o.DualStack = lab.Direct, 2, true })
	r := check(t, l)
	if six := len(r.Pairs) - slices.IndexFunc(r.Pairs, func(p lab.Pair) bool { return p.IPv6 }); six < len(r.Pairs)/2 {
		t.Errorf("only %d of %d ways are IPv6", six, len(r.Pairs))
	}
	at := placesOf(t, l)
	var wrong []string
	for _, p := range r.Pairs {
		// The way to a pod needs a route to it, and so does the answer to one; to nodes and beyond pods are masqueraded.
		across := at[p.To].pod && at[p.From].subnet != at[p.To].subnet
		if p.OK == across {
			wrong = append(wrong, fmt.Sprintf("%s -> %s: IPv6 %t, ok %t, across subnets %t: %s", p.From, p.To, p.IPv6, p.OK, across, p.Problem))
		}
	}
	if len(wrong) > 0 {
		t.Errorf("not as it should be:\n%s", strings.Join(wrong, "\n"))
	}
}

// packetsOwn are members of sets that rules fill.
var packetsOwn = regexp.MustCompile(`^\s*(elements = \{ )?"[^"]*" (\. 0x[0-9a-f]+ ct count over|timeout) `)

// kernelState is what the agent has programmed on a node, as the usual tools print it. Lines whose order says nothing are sorted, and
// link-local addresses left out, which settle by themselves.
func kernelState(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	state, err := tryKernelState(t, l, node)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// tryKernelState is kernelState for a kernel that is just changing.
func tryKernelState(t *testing.T, l *lab.Lab, node string) (string, error) {
	t.Helper()
	var b strings.Builder
	for _, cmd := range []string{"ip route", "ip -6 route", "ip rule", "ip -6 rule", "ip -o -d link", "ip -o addr", "ip neigh show nud permanent", "bridge fdb show", "iptables-save", "ip6tables-save", "ipset list"} {
		out, err := try(t, l, node, strings.Fields(cmd)...)
		if err != nil {
			return "", err
		}
		lines := slices.DeleteFunc(strings.Split(out, "\n"), func(s string) bool {
			return strings.HasPrefix(s, "#") || strings.Contains(s, "inet6 fe80") || strings.HasPrefix(s, "fe80::/64")
		})
		if strings.HasPrefix(cmd, "ip ") || strings.HasPrefix(cmd, "bridge ") {
			slices.Sort(lines)
		}
		b.WriteString("$ " + cmd + "\n" + counters.ReplaceAllString(strings.Join(lines, "\n"), "") + "\n")
	}
	// Rules have their place in the hash of their comment; members of sets have none. Those that packets have put in come and go.
	out, err := try(t, l, node, "nft", "-s", "list", "table", "inet", "muslin")
	if err != nil {
		return "", err
	}
	policy := strings.Split(strings.ReplaceAll(out, ", ", "\n"), "\n")
	for i := range policy {
		policy[i], _, _ = strings.Cut(strings.Trim(policy[i], " \t,"), " # ")
		if strings.HasPrefix(policy[i], "flags") { // some say whether an agent runs, to whom the table belongs
			policy[i] = ""
		}
	}
	policy = slices.DeleteFunc(policy, packetsOwn.MatchString)
	slices.Sort(policy)
	b.WriteString("$ nft list table inet muslin\n" + strings.Join(policy, "\n") + "\n")
	return b.String(), nil
}

func TestKilledAgentComesBackWithoutTouchingWhatIsRight(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Mode, o.Subnets, o.DualStack = lab.CrossSubnet, 2, true })
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	before := kernelState(t, l, "node-1")
	streams := map[string]*stream{
		"through the tunnel":         startStream(t, l, "a1", "a2"),
		"on the subnet":              startStream(t, l, "b1", "a3"),
		"through the tunnel by IPv6": startStream6(t, l, "a1", "a2"),
		"on the subnet by IPv6":      startStream6(t, l, "b1", "a3"),
	}
	for range 3 {
		if err := l.KillAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
	}
	for name, got := range stopAll(t, streams) {
		if got.lost != 0 {
			t.Errorf("%s: %d of %d packets were lost", name, got.lost, got.sent)
		}
	}
	if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
		t.Errorf("the kernel differs (-before +after):\n%s", d)
	}
	var log bytes.Buffer
	if err := l.Log("node-1", &log); err != nil {
		t.Fatal(err)
	}
	after := log.String()[strings.LastIndex(log.String(), "agent started"):]
	if strings.Contains(after, "kernel changed") {
		t.Errorf("the agent wrote to a kernel that was right:\n%s", after)
	}
}

func TestPodGetsBothAddressesOrNone(t *testing.T) {
	for _, c := range []struct {
		pool   string
		shrink func(*lab.Options)
	}{
		{"default-ipv4-ippool", func(o *lab.Options) { o.Pool, o.BlockSize = netip.MustParsePrefix("10.9.0.0/30"), 30 }},
		{"default-ipv6-ippool", func(o *lab.Options) { o.Pool6, o.BlockSize6 = netip.MustParsePrefix("fd00:9::/126"), 126 }},
	} {
		t.Run(c.pool+" is full", func(t *testing.T) {
			l := up(t, func(o *lab.Options) {
				o.Nodes, o.Mode, o.DualStack = 1, lab.Direct, true
				c.shrink(o)
			})
			for _, name := range []string{"c1", "d1"} { // four with those of up
				if pod := addPod(t, l, name, "node-1"); len(pod.Addrs()) != 2 {
					t.Fatalf("%s has %v", name, pod.Addrs())
				}
			}
			held := func() map[string]string {
				all := values(t, l, "/calico/ipam/")
				maps.Copy(all, values(t, l, api.ResourcesRoot+"workloadendpoints/"))
				return all
			}
			before := held()
			_, err := l.AddPod(t.Context(), lab.PodSpec{Name: "e1", Node: "node-1"})
			if err == nil || !strings.Contains(err.Error(), c.pool) {
				t.Errorf("ADD: %v, want an error that names %s", err, c.pool)
			}
			if d := cmp.Diff(before, held()); d != "" { // a block that was written and put right again would have another sequence number
				t.Errorf("etcd differs (-before +after):\n%s", d)
			}
			if n := strings.Count(run(t, l, "node-1", "ip", "-o", "link"), ": cali"); n != 4 {
				t.Errorf("%d workload devices, want 4", n)
			}
		})
	}
}

func TestForwardingGoesOnWithoutEtcdAndAddsFailClearly(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	s := startStream(t, l, "a1", "a2")
	if err := l.StopEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := kernelState(t, l, "node-1")
	start := time.Now()
	_, err := l.AddPod(t.Context(), lab.PodSpec{Name: "late", Node: "node-1"})
	if err == nil || !strings.Contains(err.Error(), "etcd") {
		t.Errorf("an ADD without etcd: error %v after %v, want one that names etcd", err, time.Since(start))
	}
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
		t.Errorf("the kernel changed while etcd was away (-before +after):\n%s", d)
	}
	if err := l.StartEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if got := s.stop(t); got.lost != 0 {
		t.Errorf("%d of %d packets were lost while etcd was away", got.lost, got.sent)
	}
	if err := l.RemovePod(t.Context(), "late"); err != nil {
		t.Errorf("DEL after the failed ADD: %v", err)
	}
	addPod(t, l, "late", "node-1")
	if r := check(t, l); !r.OK {
		t.Errorf("with etcd back these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}

func TestRemovedPodsLeaveNothing(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	for _, p := range []string{"a1", "b1"} {
		if err := l.RemovePod(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	nettest.Eventually(t, func() error {
		if out := run(t, l, "node-1", "ip", "route"); strings.Contains(out, "cali") {
			return fmt.Errorf("routes are left: %s", out)
		}
		if out := run(t, l, "node-1", "ip", "-o", "link"); strings.Contains(out, "cali") {
			return fmt.Errorf("devices are left: %s", out)
		}
		return nil
	})
	if out := keys(t, l, "/calico/ipam/v2/handle/"); len(out) > 0 {
		t.Errorf("handles are left: %v", out)
	}
	if out := keys(t, l, "/calico/resources/v3/projectcalico.org/workloadendpoints/"); len(out) > 0 {
		t.Errorf("endpoints are left: %v", out)
	}
}

func TestWhatSomebodyTookAwayComesBack(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	before := kernelState(t, l, "node-1")
	for _, family := range []string{"-4", "-6"} {
		routes := func() string { return run(t, l, "node-1", "ip", family, "route", "show", "proto", "80") }
		want := routes()
		run(t, l, "node-1", "ip", family, "route", "flush", "proto", "80")
		nettest.Eventually(t, func() error {
			if d := cmp.Diff(want, routes()); d != "" {
				return fmt.Errorf("routes differ: %s", d)
			}
			return nil
		})
	}
	run(t, l, "node-1", "ip", "link", "set", "vxlan-v6.calico", "down") // with it go its IPv6 addresses too
	nettest.Eventually(t, func() error {
		if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
			return fmt.Errorf("the kernel differs: %s", d)
		}
		return nil
	})
	run(t, l, "node-1", "ip", "link", "del", "vxlan.calico")
	run(t, l, "node-1", "ip", "link", "del", "vxlan-v6.calico")
	nettest.Eventually(t, func() error {
		if d := cmp.Diff(unnumbered(before), unnumbered(kernelState(t, l, "node-1"))); d != "" {
			return fmt.Errorf("the kernel differs: %s", d)
		}
		return nil
	})
	if r := check(t, l); !r.OK {
		t.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}
