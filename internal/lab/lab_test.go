package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/internal/embedetcd"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// TestMain builds the program that the lab's own processes run.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getenv(listenVar) != "" {
			fmt.Fprintln(os.Stderr, acceptAll())
			return 1
		}
		if os.Getenv("MUSLIN_LAB_TEST_BIN") != "" { // started by a test
			return m.Run()
		}
		bin, err := os.MkdirTemp("", "muslin-lab-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(bin) }()
		if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "github.com/muslin-cni/muslin/cmd/muslin-lab").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build muslin-lab: %v\n%s", err, out)
			return 1
		}
		if err := os.Setenv("MUSLIN_LAB_TEST_BIN", bin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("NETTEST") == "require" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}

// bare is a lab of nodes and fabric only.
func bare(t *testing.T) Config {
	t.Helper()
	needRoot(t)
	o := Defaults()
	o.NoAgents, o.Nodes, o.Subnets = true, 2, 2
	return Config{Dir: filepath.Join(t.TempDir(), "lab"), Bin: os.Getenv("MUSLIN_LAB_TEST_BIN"), Options: o, Guarded: true}
}

func up(t *testing.T, cfg Config) *Lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := Up(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	return l
}

// output runs a command on a node of the lab.
func output(t *testing.T, l *Lab, where string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := l.Exec(t.Context(), where, Command{Args: args, Stdout: &out, Stderr: &out}); err != nil {
		t.Fatalf("%s: %v: %v\n%s", where, args, err, &out)
	}
	return strings.TrimSpace(out.String())
}

// etcdOf is a client of the lab's etcd on one of its nodes.
func etcdOf(t *testing.T, l *Lab, node string) *clientv3.Client {
	t.Helper()
	dial := func(ctx context.Context, addr string) (conn net.Conn, err error) {
		err = l.Within(node, func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", strings.TrimPrefix(addr, "http://"))
			return err
		})
		return conn, err
	}
	s, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints:   strings.Split(s.Options.endpoint(), ","),
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func get(t *testing.T, c *clientv3.Client, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	res, err := c.Get(ctx, key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	if len(res.Kvs) == 0 {
		return ""
	}
	return string(res.Kvs[0].Value)
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func TestNodesOfTwoSubnetsReachEachOtherTheOutsideAndEtcd(t *testing.T) {
	cfg := bare(t)
	cfg.Options.Nodes, cfg.Options.DualStack = 3, true
	l := up(t, cfg)
	report, err := l.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * 3 * 3; len(report.Pairs) != want || !report.OK {
		var text bytes.Buffer
		report.WriteText(&text)
		t.Errorf("%d ways, want %d that all work:\n%s", len(report.Pairs), want, &text)
	}
	put(t, etcdOf(t, l, "node-1"), "/a", "1")
	if got := get(t, etcdOf(t, l, "node-2"), "/a"); got != "1" {
		t.Errorf("node-2 reads %q from etcd, want 1 as node-1 wrote", got)
	}
}

func TestEtcdKeepsItsDataWhileItIsAway(t *testing.T) {
	l := up(t, bare(t))
	c := etcdOf(t, l, "node-1")
	put(t, c, "/a", "1")
	if err := l.StopEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, "/a"); err == nil {
		t.Error("a stopped etcd answers")
	}
	if err := errors.Join(l.StartEtcd(t.Context()), l.StartEtcd(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := get(t, etcdOf(t, l, "node-1"), "/a"); got != "1" {
		t.Errorf("after the restart /a is %q, want 1", got)
	}
}

func TestEtcdOutsideIsReachedByTheSameEndpoint(t *testing.T) {
	cfg := bare(t)
	outer, err := embedetcd.Start(t.Context(), embedetcd.Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(outer.Close)
	cfg.Options.Etcd = outer.Endpoint()
	l := up(t, cfg)
	put(t, etcdOf(t, l, "node-1"), "/a", "1")
	direct, err := clientv3.New(clientv3.Config{Endpoints: []string{outer.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	if got := get(t, direct, "/a"); got != "1" {
		t.Errorf("the etcd outside holds %q, want 1 as node-1 wrote", got)
	}
}

func TestUnreachableEtcdOutsideFailsUpAndLeavesNothing(t *testing.T) {
	cfg := bare(t)
	cfg.Options.Etcd = "http://127.0.0.1:1"
	_, err := Up(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "reach etcd at 127.0.0.1:1") {
		t.Errorf("error = %v, want one that names the etcd", err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab's folder is left: %v", err)
	}
}

// machine is what a lab must not change.
func machine(t *testing.T) map[string]string {
	t.Helper()
	seen := make(map[string]string)
	for _, args := range [][]string{{"ip", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "route", "show", "table", "all"}, {"ip", "neigh"}, {"hostname"}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		seen[strings.Join(args, " ")] = string(out)
	}
	delete(seen, "ip neigh") // ages by itself
	for _, path := range []string{"/proc/self/mountinfo", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/rp_filter", "/proc/sys/net/ipv6/conf/all/disable_ipv6"} {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		seen[path] = string(b)
	}
	return seen
}

func TestMachineStaysAsItWas(t *testing.T) {
	cfg := bare(t)
	before := machine(t)
	l := up(t, cfg)
	if diff := cmp.Diff(before, machine(t)); diff != "" {
		t.Errorf("while the lab is up (-before +now):\n%s", diff)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, machine(t)); diff != "" {
		t.Errorf("after the lab is down (-before +now):\n%s", diff)
	}
}

func TestNodesHaveStateOfTheirOwn(t *testing.T) {
	l := up(t, bare(t))
	for _, node := range []string{"node-1", "node-2", "fabric"} {
		if got := output(t, l, node, "hostname"); got != node {
			t.Errorf("host name of %s is %q", node, got)
		}
		if got := output(t, l, node, "ls", "-A", "/var/lib/calico", "/var/lib/cni", "/etc/cni/net.d", "/run/netns"); strings.Contains(got, "conf") {
			t.Errorf("%s was born with state:\n%s", node, got)
		}
	}
	one, two := output(t, l, "node-1", "cat", "/etc/machine-id"), output(t, l, "node-2", "cat", "/etc/machine-id")
	if len(one) != 32 || one == two {
		t.Errorf("machine ids %q and %q, want two of 32 digits", one, two)
	}
	for _, path := range []string{"/run/x", "/etc/cni/x", "/var/lib/calico/x", "/var/lib/cni/x"} {
		output(t, l, "node-1", "touch", path)
		if got := output(t, l, "node-2", "sh", "-c", "ls "+path+" 2>/dev/null || echo absent"); got != "absent" {
			t.Errorf("node-2 sees %s of node-1", path)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the machine sees %s of node-1", path)
		}
	}
	if got := output(t, l, "node-1", "sh", "-c", "ls /sys/class/net; stat -c %a /etc/passwd"); got != "eth0\nlo\n644" {
		t.Errorf("node-1 shows %q, want its own links and the machine's files", got)
	}
}

func TestExecSetsEnvironmentAndPassesExitCodeOn(t *testing.T) {
	l := up(t, bare(t))
	got := output(t, l, "node-2", "sh", "-c", "echo $NODENAME $ETCD_ENDPOINTS; command -v muslin-lab")
	want := "node-2 http://172.30.0.1:2379\n" + filepath.Join(os.Getenv("MUSLIN_LAB_TEST_BIN"), "muslin-lab")
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	err := l.Exec(t.Context(), "node-1", Command{Args: []string{"sh", "-c", "exit 7"}})
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 {
		t.Errorf("error = %v, want exit code 7", err)
	}
}

func TestProgramsBelowRunStayVisible(t *testing.T) {
	cfg := bare(t)
	bin, err := os.MkdirTemp("/run", "muslin-lab-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(bin) }()
	program, err := os.ReadFile(filepath.Join(cfg.Bin, "muslin-lab"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "muslin-lab"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg.Bin = bin
	l := up(t, cfg)
	if got := output(t, l, "node-1", "sh", "-c", "command -v muslin-lab"); got != filepath.Join(bin, "muslin-lab") {
		t.Errorf("muslin-lab is found at %q", got)
	}
}

func TestCheckNamesTheWaysThatFail(t *testing.T) {
	t.Parallel() // most of it is waiting
	l := up(t, bare(t))
	output(t, l, "fabric", "ip", "link", "set", "node-2", "down")
	report, err := l.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	works := make(map[string]bool)
	for _, p := range report.Pairs {
		works[p.From+" "+p.To] = p.OK
		if p.OK == (p.Problem != "") {
			t.Errorf("%s to %s: ok is %v, problem %q", p.From, p.To, p.OK, p.Problem)
		}
	}
	want := map[string]bool{"node-1 node-2": false, "node-1 outside": true, "node-2 node-1": false, "node-2 outside": false}
	if diff := cmp.Diff(want, works); diff != "" || report.OK || report.Failed() != 3 {
		t.Errorf("ok is %v, %d failed (-want +got):\n%s", report.OK, report.Failed(), diff)
	}
}

func TestUpTwiceKeepsTheLabAndRefusesOtherOptions(t *testing.T) {
	cfg := bare(t)
	l := up(t, cfg)
	before, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	up(t, cfg)
	after, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("a second up changed the lab:\n%s", diff)
	}
	cfg.Options.Nodes = 3
	if _, err := Up(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "muslin-lab down") {
		t.Errorf("error = %v, want one that says what to do", err)
	}
}

func TestUpStartsADeadEtcdAgain(t *testing.T) {
	cfg := bare(t)
	l := up(t, cfg)
	s, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Etcd[0].end(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	up(t, cfg)
	put(t, etcdOf(t, l, "node-1"), "/a", "1")
}

func TestEtcdOfThreeMembersOutlivesOne(t *testing.T) {
	cfg := bare(t)
	cfg.Options.Nodes, cfg.Options.Subnets, cfg.Options.Members = 1, 1, 3
	l := up(t, cfg)
	c := etcdOf(t, l, "node-1")
	put(t, c, "/a", "1")
	for member := range 3 {
		if err := l.SignalEtcd(t.Context(), member, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		nettest.Eventually(t, func() error { // a write is refused while the members elect another leader
			_, err := c.Put(t.Context(), "/a", fmt.Sprint(member))
			return err
		})
		if err := l.StartEtcd(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.SignalEtcd(t.Context(), 0, unix.SIGSTOP), l.StartEtcd(t.Context()), l.StopEtcd(t.Context()), l.StartEtcd(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := get(t, etcdOf(t, l, "node-1"), "/a"); got != "2" {
		t.Errorf("/a holds %q, want 2", got)
	}
	if err := l.SignalEtcd(t.Context(), 3, unix.SIGSTOP); err == nil {
		t.Error("a member that there is not was stopped")
	}
}

func TestDownAfterKillOfAnything(t *testing.T) {
	for _, tc := range []struct {
		name    string
		victims func(*state) []process
	}{
		{"a node's holder", func(s *state) []process { return []process{s.Nodes[0].Holder} }},
		{"the fabric's holder", func(s *state) []process { return []process{s.Fabric} }},
		{"etcd", func(s *state) []process { return s.Etcd }},
		{"all", func(s *state) []process {
			return append(s.Etcd, s.Fabric, s.Outside, s.Nodes[0].Holder, s.Nodes[1].Holder)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := bare(t)
			l := up(t, cfg)
			s, err := l.load()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range tc.victims(s) {
				if err := p.end(t.Context(), unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			expectDown(t, cfg, s)
		})
	}
}

func TestDownOfAHalfBuiltLab(t *testing.T) {
	cfg := bare(t)
	l := up(t, cfg)
	s, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	half := &state{ID: s.ID, Since: s.Since, Options: s.Options, Bin: s.Bin} // what `up` has written before it starts anything
	if err := l.save(half); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg.Dir); err == nil || !strings.Contains(err.Error(), "muslin-lab down") {
		t.Errorf("open: %v, want an error that says what to do", err)
	}
	if _, err := Up(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "muslin-lab down") {
		t.Errorf("up: %v, want an error that says what to do", err)
	}
	expectDown(t, cfg, s)
}

func TestDownEndsWhatRunsInsideAndNothingElse(t *testing.T) {
	cfg, other := bare(t), bare(t)
	l, second := up(t, cfg), up(t, other)
	s, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	output(t, l, "node-1", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
	var others []process
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := poll(ctx, func() bool { // the shell ends before what it starts has become a sleep
		_, others = marked(s.ID, s.Since)
		return len(others) == 2
	}); err != nil {
		t.Errorf("%d processes besides the holders, want etcd and a sleep", len(others))
	}
	expectDown(t, cfg, s)
	if report, err := second.Check(t.Context()); err != nil || !report.OK {
		t.Errorf("the lab beside it no longer works: %v, ok is %v", err, report.OK)
	}
}

// expectDown takes the lab down twice and looks for anything left.
func expectDown(t *testing.T, cfg Config, s *state) {
	t.Helper()
	for range 2 {
		if err := Down(t.Context(), cfg.Dir); err != nil {
			t.Fatal(err)
		}
	}
	if holders, others := marked(s.ID, 0); len(holders)+len(others) != 0 {
		t.Errorf("processes left: %v %v", holders, others)
	}
	left, err := filepath.Glob(cfg.Dir + "*")
	if err != nil || len(left) != 0 {
		t.Errorf("files left: %v %v", left, err)
	}
	if _, err := Open(cfg.Dir); !errors.Is(err, ErrNotUp) {
		t.Errorf("open: %v, want %v", err, ErrNotUp)
	}
}

func TestLockWaitsForTheOtherCommand(t *testing.T) {
	l := newLab(filepath.Join(t.TempDir(), "lab"), nil)
	unlock, err := l.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v, want to wait until the deadline", err)
	}
	unlock()
	again, err := l.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestUnknownThingsAreNamedWithARemedy(t *testing.T) {
	l := up(t, bare(t))
	ctx := t.Context()
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"exec on an unknown node", l.Exec(ctx, "node-9", Command{Args: []string{"true"}}), `node "node-9" does not exist: this lab has node-1 to node-2`},
		{"agent of an unknown node", l.StopAgent(ctx, "web"), `node "web" does not exist`},
		{"unknown pod", l.RemovePod(ctx, "web"), `pod "web" does not exist`},
		{"exec in an unknown pod", l.PodExec(ctx, "web", Command{Args: []string{"true"}}), `pod "web" does not exist`},
		{"unknown program", l.Exec(ctx, "node-1", Command{Args: []string{"no-such-program"}}), "no-such-program: executable file not found"},
		{"log of an unknown node", l.Log("web", &bytes.Buffer{}), `node "web" does not exist`},
	} {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, tc.err, tc.want)
		}
	}
}
