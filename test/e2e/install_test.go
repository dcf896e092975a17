package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// ownHost gives a node folders of its own where the host's would be the machine's, and returns how to run a shell line there.
func ownHost(t *testing.T, l *lab.Lab, node string) func(line string) (string, error) {
	t.Helper()
	run(t, l, node, "sh", "-c", "for d in /opt /etc/cni; do mkdir -p $d; mount -t tmpfs tmpfs $d; done; mkdir -p /opt/cni/bin /etc/cni/net.d /etc/cni/secret /etc/cni/log; echo CA > /etc/cni/secret/etcd-ca")
	return func(line string) (string, error) {
		return try(t, l, node, "env", "TLS_ASSETS_DIR=/etc/cni/secret", "SLEEP=false", "CNI_CONF_NAME=10-muslin.conflist", "LOG_FILE_PATH=/etc/cni/log/cni.log", "sh", "-c", line)
	}
}

func TestUninstallLeavesNothingOfOurs(t *testing.T) {
	nettest.Need(t, "ipset", "nft")
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	if _, err := l.AddPod(t.Context(), lab.PodSpec{Name: "late", Node: "node-1"}); err != nil {
		t.Fatal(err)
	}
	sh := ownHost(t, l, "node-1")
	if _, err := sh("muslin-node install"); err != nil {
		t.Fatal(err)
	}
	if got, _ := sh("cd /etc/cni/net.d; ls"); strings.Join(strings.Fields(got), " ") != "10-muslin.conflist calico-tls" {
		t.Errorf("installed: %q", got)
	}
	if _, err := sh("cd /etc/cni/log; touch cni.log cni-2026-11-21T05-46-19.123.log others.log"); err != nil {
		t.Fatal(err)
	}
	run(t, l, "node-1", "iptables-legacy", "-N", "cali-of-before") // by an agent that was set to the other backend
	run(t, l, "node-1", "iptables-nft", "-N", "ANOTHERS")
	if _, err := sh("muslin-node uninstall"); err == nil || !strings.Contains(err.Error(), "another agent runs") {
		t.Errorf("while the agent runs: %v", err)
	}
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := sh("muslin-node uninstall"); err == nil || !strings.Contains(err.Error(), "drain the node") {
		t.Errorf("while pods are attached: %v", err)
	}
	answers(t, l, "node-2", pod(t, l, "late")) // the refusal has changed nothing
	if _, err := sh("muslin-node uninstall --force"); err != nil {
		t.Fatal(err)
	}
	for what, line := range map[string]string{
		"routes":         "ip route show proto 80; ip -6 route show proto 80",
		"devices":        "ip -o link | grep -E 'cali|vxlan' || true",
		"neighbours":     "ip neigh show nud permanent",
		"sets":           "ipset list -n",
		"rules":          "for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $p-save 2>/dev/null | grep cali || true; done",
		"policy":         "nft list tables | grep muslin || true",
		"files":          "ls -A /run/muslin /opt/cni/bin /etc/cni/net.d | grep -v ':$' || true",
		"node's files":   "ls /var/lib/calico | grep -E 'nodename|mtu' || true",
		"programs alone": "find /opt/cni -type f",
		"logs":           "ls /etc/cni/log | grep -v others.log || true",
	} {
		if got, err := sh(line); err != nil || strings.TrimSpace(got) != "" {
			t.Errorf("%s are left: %s (%v)", what, got, err)
		}
	}
	if _, err := sh("iptables-nft -L ANOTHERS"); err != nil {
		t.Errorf("another's chain: %v", err)
	}
	if _, err := sh("ls /etc/cni/log/others.log"); err != nil {
		t.Errorf("another's log: %v", err)
	}
	if _, err := sh("muslin-node uninstall"); err != nil {
		t.Errorf("once more: %v", err)
	}
}

func TestNothingStartsBesideCalicosAgent(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes = 1 })
	sh := ownHost(t, l, "node-1")
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	const beside = "mkdir /etc/cni/x; cp /bin/sleep /etc/cni/x/calico-node; /etc/cni/x/calico-node 60 & other=$!; trap 'kill $other' EXIT; "
	for _, verb := range []string{"", "install", "uninstall"} {
		_, err := sh("rm -rf /etc/cni/x; " + beside + "muslin-node " + verb)
		if err == nil || !strings.Contains(err.Error(), "Calico's agent runs on this host") || !strings.Contains(err.Error(), "nodeSelector") {
			t.Errorf("muslin-node %s: %v", verb, err)
		}
	}
	if _, err := os.Stat(attach.Socket); err == nil {
		t.Error("this test has worked on the machine itself")
	}
}
