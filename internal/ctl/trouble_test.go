package ctl_test

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/ctl"
	"github.com/muslin-cni/muslin/internal/etcdtest"
)

// output is what a command prints, and its exit code.
type output struct {
	stdout, stderr string
	code           int
}

// muslinctl runs a command with an environment of its own.
func muslinctl(t *testing.T, env map[string]string, stdin string, args ...string) output {
	t.Helper()
	set := settings()
	var stdout, stderr bytes.Buffer
	set.In, set.Out, set.Err = strings.NewReader(stdin), &stdout, &stderr
	set.Env = func(name string) string { return env[name] }
	code := ctl.Run(t.Context(), set, args)
	return output{stdout.String(), stderr.String(), code}
}

const aTier = `{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{"order":5}}`

// writes are a command of every verb that writes, on what aTier is.
func writes() [][]string {
	return [][]string{
		{"apply", "-f", "-"}, {"create", "-f", "-"}, {"replace", "-f", "-"}, {"delete", "tier", "a"}, {"patch", "tier", "a", "-p", `{"spec":{"order":6}}`},
		{"label", "tier", "a", "k=v"}, {"ipam", "configure", "--strictaffinity=true"}, {"datastore", "migrate", "lock"},
	}
}

func TestUserThatMayOnlyReadIsToldSo(t *testing.T) {
	etcd := etcdtest.New(t)
	env := map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}
	if got := muslinctl(t, env, aTier, "create", "-f", "-"); got.code != 0 {
		t.Fatal(got.stderr)
	}
	etcd.EnableAuth("reader", "pw")
	c := etcd.Etcd()
	if _, err := c.RoleGrantPermission(t.Context(), "reader", "/", "0", clientv3.PermissionType(clientv3.PermRead)); err != nil {
		t.Fatal(err)
	}
	env["ETCD_USERNAME"], env["ETCD_PASSWORD"] = "reader", "pw"
	if got := muslinctl(t, env, "", "get", "tier", "a"); got.code != 0 || !strings.Contains(got.stdout, "a      5") {
		t.Errorf("get: %+v", got)
	}
	for _, args := range writes() {
		got := muslinctl(t, env, aTier, args...)
		if args[0] == "create" {
			continue // it is there, and that is said first
		}
		if got.code != 1 || !strings.Contains(got.stderr, "etcd refused our credentials") || !strings.Contains(got.stderr, "readwrite") {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

func TestEtcdThatIsFullIsNamed(t *testing.T) {
	etcd := etcdtest.New(t)
	env := map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}
	if got := muslinctl(t, env, aTier, "create", "-f", "-"); got.code != 0 {
		t.Fatal(got.stderr)
	}
	if _, err := pb.NewMaintenanceClient(etcd.Etcd().ActiveConnection()).Alarm(t.Context(),
		&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		t.Fatal(err)
	}
	for _, args := range writes() {
		if args[0] == "create" || args[0] == "delete" { // what is there takes no space, and neither does what goes
			continue
		}
		got := muslinctl(t, env, aTier, args...)
		if got.code != 1 || !strings.Contains(got.stderr, "etcd is full") {
			t.Errorf("%v: %+v", args, got)
		}
	}
	many := "[" + strings.TrimSuffix(strings.Repeat(aTier+",", 300), ",") + "]"
	for _, verb := range []string{"apply", "replace"} {
		got := muslinctl(t, env, many, verb, "-f", "-")
		if n := strings.Count(got.stderr, "\n"); got.code != 1 || n != 1 {
			t.Errorf("%s of many: %d lines: %s", verb, n, got.stderr)
		}
	}
}

// TestEtcdThatIsAwayIsNamedByEveryVerb has a deadline that is the test's: every verb waits for one request at most.
func TestEtcdThatIsAwayIsNamedByEveryVerb(t *testing.T) {
	const endpoint = "http://127.0.0.1:1"
	verbs := append(writes(), [][]string{
		{"get", "tiers"}, {"get", "tier", "a", "b", "c"}, {"get", "tiers", "-w"}, {"diff", "-f", "-"}, {"delete", "node", "a", "b"}, {"ipam", "show"}, {"ipam", "show", "--ip=10.0.0.1"},
		{"ipam", "check"}, {"ipam", "release", "--ip=10.0.0.1"}, {"ipam", "split", "2", "--name=a"}, {"datastore", "migrate", "unlock"},
		{"datastore", "migrate", "export", "--backup"}, {"cluster", "diags"},
	}...)
	var all sync.WaitGroup // and no parallel subtests, of which only a few run at a time: they wait and do nothing
	for _, args := range verbs {
		for _, more := range [][]string{{"-l", "debug"}, {"-l", "debug", "--allow-version-mismatch"}} {
			line := slices.Concat(args, more)
			all.Go(func() {
				got := muslinctl(t, map[string]string{"ETCD_ENDPOINTS": endpoint}, aTier, line...)
				if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "etcd cannot be reached: "+endpoint) {
					t.Errorf("%v: %+v", line, got)
				}
				if n := strings.Count(got.stderr, "etcd: "); n != 1 {
					t.Errorf("%v: %d requests were waited for:\n%s", line, n, got.stderr)
				}
			})
		}
	}
	all.Wait()
}
