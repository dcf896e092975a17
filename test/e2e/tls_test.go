package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// withoutWaiting lets a node's ADDs do without the agent.
func withoutWaiting(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	run(t, l, node, "sed", "-i", `s/"type": "muslin"/"policy_wait": "none", &/`, "/etc/cni/net.d/10-muslin.conflist")
}

// said waits until a node's agent has logged a text more often than before.
func said(t *testing.T, l *lab.Lab, node, text string, before int) {
	t.Helper()
	nettest.Eventually(t, func() error {
		if log := agentLog(t, l, node); strings.Count(log, text) <= before {
			return fmt.Errorf("the agent of %s did not say %q", node, text)
		}
		return nil
	})
}

func mustOK(t *testing.T, l *lab.Lab) {
	t.Helper()
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}

// distrust gives a node the certificates of another authority.
func distrust(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	other, err := authority.New("stranger")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := other.Client(node, authority.Forever())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Within(node, func() error { return other.Write(lab.CertificateDir, pair) }); err != nil {
		t.Fatal(err)
	}
}

func TestEverythingWorksOverTLS(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.TLS = 2, lab.VXLAN, true })
	mustOK(t, l)
	if endpoint := run(t, l, "node-1", "sh", "-c", "echo $ETCD_ENDPOINTS"); !strings.HasPrefix(endpoint, "https://") {
		t.Errorf("etcd is at %s", endpoint)
	}
	if modes := strings.Fields(run(t, l, "node-1", "sh", "-c", "stat -c %a "+lab.CertificateDir+"/*")); len(modes) != 3 || strings.Join(modes, " ") != "600 600 600" {
		t.Errorf("the certificates' files have the modes %v, want 600 three times", modes)
	}
	// By the other door, with nobody behind the first one.
	withoutWaiting(t, l, "node-1")
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	addPod(t, l, "alone", "node-1")
	if err := errors.Join(l.RemovePod(t.Context(), "alone"), l.StartAgent(t.Context(), "node-1")); err != nil {
		t.Fatal(err)
	}
	// Renewed certificates, and connections that have to be made with them.
	for _, where := range []string{"node-1", "node-2", "fabric"} {
		if err := l.RenewCertificate(where); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.StopEtcd(t.Context()), l.StartEtcd(t.Context())); err != nil {
		t.Fatal(err)
	}
	said(t, l, "node-2", "etcd is back", 0)
	addPod(t, l, "renewed", "node-2")
	mustOK(t, l)
}

func TestWrongCAIsNamedAndForgivenOncePutRight(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.TLS = 1, lab.Direct, true })
	distrust(t, l, "node-1")
	if err := errors.Join(l.StopEtcd(t.Context()), l.StartEtcd(t.Context())); err != nil {
		t.Fatal(err)
	}
	const why = "unknown authority"
	said(t, l, "node-1", why, 0) // while it runs
	if _, err := l.AddPod(t.Context(), lab.PodSpec{Name: "early", Node: "node-1"}); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("ADD: error = %v, want one that says %q", err, why)
	}
	if err := l.RenewCertificate("node-1"); err != nil {
		t.Fatal(err)
	}
	said(t, l, "node-1", "etcd is back", 0)
	if err := l.RemovePod(t.Context(), "early"); err != nil { // its DEL failed too
		t.Fatal(err)
	}
	addPod(t, l, "later", "node-1")
	// The same for an agent that starts.
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	distrust(t, l, "node-1")
	before := strings.Count(agentLog(t, l, "node-1"), why)
	started := make(chan error, 1)
	go func() { started <- l.StartAgent(t.Context(), "node-1") }()
	said(t, l, "node-1", why, before)
	if err := l.RenewCertificate("node-1"); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	mustOK(t, l)
}

func TestUserOfTwoPrefixesSufficesForNodesAndPods(t *testing.T) {
	etcd := etcdtest.New(t)
	etcd.EnableAuth("calico", "secret", "/calico/", "/muslin/")
	t.Setenv("ETCD_USERNAME", "calico") // the plugins' environment is the runtime's
	t.Setenv("ETCD_PASSWORD", "secret")
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.Etcd = 2, lab.VXLAN, etcd.Endpoint()
		o.AgentEnv = []string{"ETCD_USERNAME=calico", "ETCD_PASSWORD=secret"}
	})
	mustOK(t, l)
	withoutWaiting(t, l, "node-1")
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	addPod(t, l, "alone", "node-1")
	if err := errors.Join(l.RemovePod(t.Context(), "alone"), l.StartAgent(t.Context(), "node-1"), l.RemovePod(t.Context(), "a1")); err != nil {
		t.Fatal(err)
	}
	mustOK(t, l)
	for _, node := range []string{"node-1", "node-2"} {
		if log := agentLog(t, l, node); strings.Contains(log, "secret") || strings.Contains(log, "permission denied") {
			t.Errorf("the log of %s shows the password or a refusal:\n%s", node, log)
		}
	}
}

func TestDownTakesTheKeysAway(t *testing.T) {
	nettest.Need(t, "root")
	o := lab.Defaults()
	o.Nodes, o.TLS, o.NoAgents = 1, true, true
	dir := filepath.Join("/run", fmt.Sprintf("muslin-e2e-%d-keys", os.Getpid()))
	l, err := lab.Up(t.Context(), lab.Config{Dir: dir, Bin: programs(t), Options: o, Guarded: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tls", "ca", authority.KeyFile)); err != nil {
		t.Errorf("the lab has no keys: %v", err)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after down: %v, want nothing", err)
	}
	if _, err := os.Stat(lab.CertificateDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab wrote keys to the machine: %v", err)
	}
}
