package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// ownFolders are where our programs write on a host.
var ownFolders = []string{"/run/muslin", "/etc/cni", "/var/lib/calico", "/var/log/calico", "/opt/cni"}

func TestFilesAndSocketsOfOursAreRootsAlone(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.TLS = 1, lab.VXLAN, true })
	addPod(t, l, "late", "node-1")
	sh := ownHost(t, l, "node-1")
	if _, err := sh("umask 0; for f in etcd-ca etcd-cert etcd-key; do echo SECRET > /etc/cni/secret/$f; done; muslin-node install"); err != nil {
		t.Fatal(err)
	}
	list, err := sh( // without the mount of ownHost
		"find " + strings.Join(ownFolders, " ") + ` ! -path /etc/cni -printf '%y %m %U %p\n' 2>/dev/null || true`)
	if err != nil {
		t.Fatal(err)
	}
	sockets, secrets := 0, 0
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		kind, mode, owner, path := f[0], f[1], f[2], f[3]
		if kind == "l" || strings.HasPrefix(path, "/etc/cni/secret") { // a link has no mode, and the Secret is mounted by the kubelet
			continue
		}
		if owner != "0" || strings.ContainsAny(mode[len(mode)-2:], "2367") {
			t.Errorf("others may write %s: mode %s, owner %s", path, mode, owner)
		}
		holds := kind == "f" && (strings.HasSuffix(path, ".conflist") || strings.HasSuffix(path, "kubeconfig") || strings.Contains(path, "calico-tls") || strings.Contains(path, "muslin-tls"))
		switch {
		case kind == "s":
			sockets++
		case holds:
			secrets++
		default:
			continue
		}
		if mode != "600" {
			t.Errorf("%s has the mode %s, want 600", path, mode)
		}
	}
	if sockets < 2 || secrets < 4 {
		t.Errorf("%d sockets and %d files with secrets: this test sees nothing in\n%s", sockets, secrets, list)
	}
}

// TestSecretsAreNeverSaid has everything said that can be: at level debug, by programs that get on and by those that are refused, and in what an operator sends away.
func TestSecretsAreNeverSaid(t *testing.T) {
	const password, wrong = "open-4711-sesame", "shut-4712-sesame"
	etcd := etcdtest.New(t)
	etcd.EnableAuth("calico", password, "/calico/", "/muslin/")
	t.Setenv("ETCD_USERNAME", "calico") // the plugins' environment is the runtime's
	t.Setenv("ETCD_PASSWORD", password)
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.Etcd = 1, lab.VXLAN, etcd.Endpoint()
		o.AgentEnv = []string{"ETCD_USERNAME=calico", "ETCD_PASSWORD=" + password, "FELIX_LOGSEVERITYSCREEN=Debug", "FELIX_PROMETHEUSMETRICSENABLED=true"}
	})
	var said strings.Builder
	note := func(what, text string) { fmt.Fprintf(&said, "--- %s\n%s\n", what, text) }
	anyway := func(env []string, args ...string) { // what fails is said, too
		var out bytes.Buffer
		err := l.Exec(t.Context(), "node-1", lab.Command{Args: args, Env: env, Stdout: &out, Stderr: &out})
		note(strings.Join(args, " "), fmt.Sprint(out.String(), err))
	}
	run(t, l, "node-1", "sed", "-i", `s#"type": "muslin"#"log_level": "debug", "log_file_path": "/run/logs/cni.log", "policy_wait": "none", &#`, "/etc/cni/net.d/10-muslin.conflist")
	run(t, l, "node-1", "mkdir", "-p", "/run/logs", "/run/diags")
	addPod(t, l, "one", "node-1")
	for _, line := range []string{"muslinctl node status", "muslinctl ipam check", "muslinctl get nodes -o yaml", "muslinctl node diags --log-dir=/run/logs --output-dir=/run/diags"} {
		anyway(nil, strings.Fields(line)...)
	}
	anyway(nil, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9091; printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3; cat <&3")
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	addPod(t, l, "two", "node-1") // by the module
	for _, env := range [][]string{{"ETCD_PASSWORD=" + wrong}, {"ETCD_ENDPOINTS=http://calico:" + wrong + "@172.30.0.1:2379"}} {
		anyway(append(env, "FELIX_LOGSEVERITYSCREEN=Debug"), "timeout", "3", "muslin-node")
		anyway(env, "timeout", "5", "muslinctl", "get", "nodes")
	}
	t.Setenv("ETCD_PASSWORD", wrong)
	_, err := l.AddPod(t.Context(), lab.PodSpec{Name: "refused", Node: "node-1"})
	note("ADD", fmt.Sprint(err))
	t.Setenv("ETCD_PASSWORD", password)
	if err := forget(l, "refused"); err != nil {
		t.Error(err)
	}
	note("the agent's log", agentLog(t, l, "node-1"))
	note("the plugin's log", run(t, l, "node-1", "sh", "-c", "cat /run/logs/*"))
	note("diags", unpacked(t, l, "node-1", "/run/diags"))
	text := said.String()
	for _, secret := range []string{password, wrong} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("%s is said:\n%s", secret, text[max(0, i-500):min(len(text), i+200)])
		}
	}
	for _, part := range []string{"level=DEBUG", "muslin_request_seconds", "commands/", "10-muslin.conflist", "etcd refused our credentials"} {
		if !strings.Contains(text, part) {
			t.Errorf("nothing of what was collected holds %q: this test does not see it", part)
		}
	}
}

// unpacked is the names and contents of all files in a folder's archives.
func unpacked(t *testing.T, l *lab.Lab, node, dir string) string {
	t.Helper()
	var out strings.Builder
	packed := run(t, l, node, "sh", "-c", "cat "+dir+"/*.tar.gz")
	zipped, err := gzip.NewReader(strings.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(zipped); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n%s\n", h.Name, text)
	}
}

// TestSocketOutlivesWhateverIsSentToIt has connections that say nothing, too much and nonsense, many at a time.
func TestSocketOutlivesWhateverIsSentToIt(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	dial := func() (c net.Conn) {
		t.Helper()
		if err := l.Within("node-1", func() (err error) { c, err = net.Dial("unix", attach.Socket); return err }); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		return c
	}
	for range 300 {
		dial() // and says nothing
	}
	long := dial()
	_ = long.SetDeadline(time.Now().Add(nettest.Patience(20 * time.Second)))
	_, _ = long.Write(bytes.Repeat([]byte("x"), 4<<20)) // it may be closed meanwhile
	if n, err := long.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a line of 4 MiB: %d bytes, error %v, want the connection closed", n, err)
	}
	for _, line := range []string{"\n", "null\n", "[]\n", strings.Repeat("[", 100_000) + "\n", `{"version":1,"verb":"` + strings.Repeat("v", 100_000) + "\"}\n", `{"version":-1}` + "\n"} {
		_, _ = dial().Write([]byte(line)) // as above
	}
	addPod(t, l, "late", "node-1")
	mustOK(t, l)
	said(t, l, "node-1", "longer than 1048576 bytes", 0)
}

// odd are names that no validation lets through, and values that nobody means.
func odd() (names, values []string) {
	names = []string{"..", "../../../../etc/passwd", "a/../../b", "/", "//", "%2e%2e%2f", "x\x00y", "x\ny", strings.Repeat("n", 4000), "\xff\xfe", "default/../x", "-rf", "$(reboot)", "192.168.0.0-99"}
	deep := strings.Repeat(`{"spec":`, 5000) + "1" + strings.Repeat("}", 5000)
	values = []string{
		"", "null", "7", `"text"`, "[]", "{", "\x00", deep, strings.Repeat("[", 100_000), `{"metadata":[],"spec":{}}`, `{"metadata":{"name":{}},"spec":7}`,
		`{"metadata":{"name":"../../x","namespace":"/","labels":{"a":7}},"spec":{"node":"../..","pool":"../","interfaceName":"../../x","cidr":"::/0","peer":"` + strings.Repeat("p", 1<<20) + `"}}`,
		`{"spec":{"selector":"` + strings.Repeat("!", 50_000) + `","nodeSelector":"` + strings.Repeat("(", 50_000) + `","order":"x","types":{},"ingress":{},"cidr":[],"peerIP":{},"node":[]}}`,
	}
	return names, values
}

// TestObjectsOfEveryFollowedKindMayBeAnything stores what makes no sense below every prefix that anybody follows. Nothing changes but the log.
func TestObjectsOfEveryFollowedKindMayBeAnything(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.BGP = 2, lab.VXLAN, true })
	allWell(t, l)
	c := startChat(t, l, "a1", "a2", pod(t, l, "a2").Addr, 5*time.Millisecond)
	c.mark()
	before := kernelState(t, l, "node-1")
	prefixes := []string{api.BlocksPrefix(false), api.BlocksPrefix(true), api.HostsRoot, api.HandlesRoot, api.IdentitiesRoot, api.AffinitiesPrefix("node-1")}
	for _, k := range api.Kinds() {
		prefixes = append(prefixes, k.Prefix())
	}
	etcd := dialEtcd(t, l, "172.30.0.1:2379")
	names, values := odd()
	for i, prefix := range prefixes {
		for j, value := range values {
			key := prefix + names[(i+j)%len(names)]
			if prefix != api.HandlesRoot && j%2 == 0 {
				key = prefix + "default/" + names[(i+j)%len(names)]
			}
			if _, err := etcd.Put(t.Context(), key, value); err != nil {
				t.Fatalf("put %q: %v", key, err)
			}
		}
	}
	now, err := etcd.Get(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	addPod(t, l, "during", "node-1")
	if err := l.RemovePod(t.Context(), "during"); err != nil {
		t.Error(err)
	}
	nettest.Eventually(t, func() error {
		if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
			return fmt.Errorf("at revision %d the kernel differs (-before +after):\n%s", now.Header.Revision, d)
		}
		return nil
	})
	for _, node := range []string{"node-1", "node-2"} { // what they followed they have to list
		if err := errors.Join(l.KillAgent(t.Context(), node), l.StartAgent(t.Context(), node)); err != nil {
			t.Fatal(err)
		}
		if log := agentLog(t, l, node); strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
			t.Errorf("the agent of %s panicked:\n%s", node, log)
		}
	}
	addPod(t, l, "after", "node-2")
	if err := getsThrough(l, "node-1", pod(t, l, "after").Addr); err != nil {
		t.Error(err)
	}
	if cost := c.goesOn(t); cost.lost > 0 {
		t.Errorf("%d datagrams were lost", cost.lost)
	}
}
