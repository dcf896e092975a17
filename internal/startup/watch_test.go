package startup_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func nodes(t *testing.T, c *store.Client) []*api.Node {
	t.Helper()
	list, _, err := store.List[api.Node](t.Context(), c, api.ResourcesRoot+"nodes/")
	if err != nil {
		t.Fatal(err)
	}
	var out []*api.Node
	for _, e := range list {
		out = append(out, e.Value)
	}
	return out
}

// Whoever compares the texts says a problem once.
func TestStartNamesAProblemAsLaterLooksDo(t *testing.T) {
	c := etcdtest.New(t).Store()
	d := deps(c, hostWith("eth0 172.30.1.1/24"))
	if problems, err := startup.Run(t.Context(), "node-1", settings(t, "IP=autodetect"), d); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	cfg := settings(t, "IP=autodetect", "IP_AUTODETECTION_METHOD=cidr=10.0.0.0/8", "IP6=fd00::9")
	atStart, err := startup.Run(t.Context(), "node-1", cfg, d)
	if err != nil || len(atStart) != 2 {
		t.Fatalf("problems %q, %v; want that the address is kept and that IP6 is nobody's", atStart, err)
	}
	later, err := startup.Readdress(t.Context(), "node-1", cfg, d, nodes(t, c))
	if diff := cmp.Diff(atStart, later); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestDetectedAddressOfAnotherNodeIsGivenBack(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	start := func(node, ip string, more ...string) error {
		cfg := settings(t, append(more, "IP="+ip)...)
		_, err := startup.Run(t.Context(), node, cfg, deps(c, hostWith("eth0 172.30.1.1/24")))
		return err
	}
	for _, err := range []error{start("node-1", "autodetect"), start("node-2", "172.30.1.2")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	taken := []string{`node "node-1" is already using the IPv4 address 172.30.1.1`, "IP_AUTODETECTION_METHOD", "delete that node"}
	for _, s := range []struct {
		ip, stored, want string
	}{
		{"autodetect", "172.30.1.1/24", ""},              // given back
		{"172.30.1.1", "172.30.1.1/24", "172.30.1.1/24"}, // by hand: it stays
		{"autodetect", "172.30.1.9/24", "172.30.1.9/24"}, // was another one, which may be right
	} {
		put := `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-2","uid":"v"},"spec":{"bgp":{"ipv4Address":"` + s.stored +
			`"},"addresses":[{"address":"` + s.stored + `","type":"CalicoNodeIP"},{"address":"192.0.2.1","type":"ExternalIP"}]}}`
		if _, err := srv.Etcd().Put(t.Context(), api.ResourcesRoot+"nodes/node-2", put); err != nil {
			t.Fatal(err)
		}
		err := start("node-2", s.ip)
		for _, part := range taken {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("IP=%s: error %v, want %q in it", s.ip, err, part)
			}
		}
		if got := addressOf(t, c, "node-2", false); got != s.want {
			t.Errorf("IP=%s, stored %s: now %q", s.ip, s.stored, got)
		}
	}
	if err := start("node-2", "autodetect", "DISABLE_NODE_IP_CHECK=true"); err != nil {
		t.Errorf("with DISABLE_NODE_IP_CHECK: %v", err)
	}
}

func TestNodeFollowsItsHost(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	cfg := settings(t, "IP=autodetect", "CALICO_K8S_NODE_REF=kube-1")
	if _, err := startup.Run(t.Context(), "node-1", cfg, deps(c, hostWith("eth0 172.30.1.1/24"))); err != nil {
		t.Fatal(err)
	}
	if _, err := startup.Run(t.Context(), "node-2", settings(t, "IP=172.30.1.2"), deps(c, hostWith("eth0 172.30.1.2/24"))); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		name    string
		host    kernel.Host
		want    string
		problem string
		writes  bool
	}{
		{"nothing new", hostWith("eth0 172.30.1.1/24"), "172.30.1.1/24", "", false},
		{"a second address", hostWith("eth0 172.30.1.5/24", "eth0 172.30.1.1/24"), "172.30.1.1/24", "", true}, // spec.interfaces
		{"the first one gone", hostWith("eth0 172.30.1.5/24"), "172.30.1.5/24", "", true},
		{"another subnet", hostWith("eth0 172.30.1.5/16"), "172.30.1.5/16", "", true},
		{"no address at all", hostWith("lo 127.0.0.1/8"), "172.30.1.5/16", "the node keeps its stored IPv4 address", true},
		{"several", hostWith("eth0 172.30.1.7/24", "eth1 172.30.2.7/24"), "172.30.1.5/16", "eth1 172.30.2.7/24, eth0 172.30.1.7/24", true},
		{"another node's", hostWith("eth0 172.30.1.2/24"), "172.30.1.5/16", `node "node-2" is already using`, true},
	} {
		before, err := c.Revision(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		problems, err := startup.Readdress(t.Context(), "node-1", cfg, deps(c, s.host), nodes(t, c))
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		if text := strings.Join(problems, "\n"); !strings.Contains(text, s.problem) || (s.problem == "") != (text == "") {
			t.Errorf("%s: problems %q", s.name, problems)
		}
		if got := addressOf(t, c, "node-1", false); got != s.want {
			t.Errorf("%s: address %q, want %q", s.name, got, s.want)
		}
		after, err := c.Revision(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if (after != before) != s.writes {
			t.Errorf("%s: revision %d, then %d", s.name, before, after)
		}
	}
}

func TestDeletedNodeIsNotMadeAgainByALook(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	cfg := settings(t, "IP=autodetect")
	if _, err := startup.Run(t.Context(), "node-1", cfg, deps(c, hostWith("eth0 172.30.1.1/24"))); err != nil {
		t.Fatal(err)
	}
	known := nodes(t, c)
	if _, err := srv.Etcd().Delete(t.Context(), node1); err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]*api.Node{known, nil} {
		if _, err := startup.Readdress(t.Context(), "node-1", cfg, deps(c, hostWith("eth0 172.30.1.9/24")), list); err != nil {
			t.Error(err)
		}
	}
	if got := len(nodes(t, c)); got != 0 {
		t.Errorf("%d nodes", got)
	}
}

func TestAnotherMachinesNodeIsLeftAlone(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	cfg := settings(t, "IP=autodetect")
	if _, err := startup.Run(t.Context(), "node-1", cfg, deps(c, hostWith("eth0 172.30.1.1/24"))); err != nil {
		t.Fatal(err)
	}
	if err := startup.Adopt(t.Context(), c, "node-1", otherMachine); err != nil {
		t.Fatal(err)
	}
	if _, err := startup.Readdress(t.Context(), "node-1", cfg, deps(c, hostWith("eth0 172.30.1.9/24")), nodes(t, c)); err == nil {
		t.Error("the address of another machine's node was changed")
	}
	if got := addressOf(t, c, "node-1", false); got != "172.30.1.1/24" {
		t.Errorf("address %s", got)
	}
}

func TestBackendNoneLooksAfterNoAddress(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	cfg := settings(t, "IP=autodetect", "CALICO_NETWORKING_BACKEND=none", "AS=65001")
	if _, err := startup.Run(t.Context(), "node-1", cfg, deps(c, hostWith("eth0 172.30.1.1/24"))); err != nil {
		t.Fatal(err)
	}
	n, err := store.Get[api.Node](t.Context(), c, node1)
	if err != nil || n.Value.Spec.BGP != nil || n.Value.Spec.Interfaces != nil || cfg.Looks() {
		t.Errorf("%s, %v", n.Raw(), err)
	}
}

func TestShutdownIsWrittenDownUntilTheNodeIsUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calico", "shutdownTS")
	at := time.Date(2026, 11, 21, 9, 0, 0, 5, time.FixedZone("east", 3600))
	if err := startup.SayDown(path, at); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "2026-11-21T08:00:00Z" {
		t.Errorf("%q, %v", b, err)
	}
	for range 2 {
		if err := startup.SayUp(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
}
