package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// compact has etcd forget all that it held before now.
func compact(t *testing.T, l *lab.Lab) {
	t.Helper()
	put(t, l, "/compact", compacted)
}

// apart keeps a node from etcd while fn runs; etcd itself goes on.
func apart(t *testing.T, l *lab.Lab, node string, fn func()) {
	t.Helper()
	run(t, l, node, "ip", "route", "add", "blackhole", "172.30.0.1/32")
	fn()
	run(t, l, node, "ip", "route", "del", "blackhole", "172.30.0.1/32")
}

// What an agent has missed may be gone from etcd's history when it is back, whether it was away itself or only its connection was.
func TestHistoryThatAnAgentHasMissedMayBeGone(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	allWell(t, l)
	s := startStream(t, l, "a1", "a2")
	missed := func() {
		addPod(t, l, "new2", "node-2")
		amend(t, l, poolKey, "IPPool", map[string]any{"natOutgoing": false})
		compact(t, l)
	}
	apart(t, l, "node-1", missed)
	soon(t, "node-1 masquerades still", func() bool {
		rules, err := try(t, l, "node-1", "iptables-save")
		return err == nil && !strings.Contains(rules, "cali-nat-outgoing")
	})
	answers(t, l, "node-1", pod(t, l, "new2"))
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	amend(t, l, poolKey, "IPPool", map[string]any{"natOutgoing": true})
	compact(t, l)
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, l, has("cali-nat-outgoing"), "iptables-save")
	if got := s.stop(t); got.lost != 0 {
		t.Errorf("%d of %d packets were lost", got.lost, got.sent)
	}
	allWell(t, l)
}

// An etcd that lost its data while a connection was away costs pods nothing; an agent that is started then begins with an empty cluster, and
// what its pods had is theirs again when they are made again.
func TestEtcdThatIsEmptiedWhileAnAgentIsAway(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	before := kernelState(t, l, "node-1")
	apart(t, l, "node-1", func() {
		put(t, l, "/calico/", gone)
		put(t, l, "/muslin/", gone)
		compact(t, l)
	})
	soon(t, "the agent does not say that data are lost", func() bool { return strings.Contains(agentLog(t, l, "node-1"), "seems to have lost its data") })
	if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
		t.Errorf("the kernel differs (-before +after):\n%s", d)
	}
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a1", "b1"} {
		recreate(t, l, name)
	}
	allWell(t, l)
}

// A host whose /run is full is told so, with the file and what to do; packets go on, and so does the agent.
func TestFullRunIsNamedAndForwardingGoesOn(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	allWell(t, l)
	s := startStream(t, l, "a1", "a2")
	run(t, l, "node-1", "sh", "-c", "mount -o remount,size=1m /run && ! cat /dev/zero >/run/filler 2>/dev/null")
	setFelix(t, l, toHost+`, "deviceRouteProtocol": 81`)
	nettest.Eventually(t, func() error {
		return has(`write /run/muslin/route-protocols: no space left on device: make room on that file system`)(agentLog(t, l, "node-1"))
	})
	eventually(t, l, has("proto 81"), "ip", "route")
	addPod(t, l, "later", "node-1")
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if got := s.stop(t); got.lost != 0 {
		t.Errorf("%d of %d packets were lost", got.lost, got.sent)
	}
	allWell(t, l)
}

// byHand runs node-1's agent with more in its environment until the test ends it; said is what it has logged so far.
type byHand struct {
	said  bytes.Buffer
	ended chan error
	end   context.CancelFunc
}

func startByHand(t *testing.T, l *lab.Lab, env ...string) *byHand {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	h := &byHand{ended: make(chan error, 1), end: cancel}
	go func() {
		h.ended <- l.Exec(ctx, "node-1", lab.Command{Args: []string{"muslin-node"}, Env: env, Stdout: &h.said, Stderr: &h.said})
	}()
	t.Cleanup(cancel)
	return h
}

// serveNode is an API server that knows one Node, outside at the address that node-1 reaches.
func serveNode(t *testing.T, l *lab.Lab, name, ip string) (kubeconfig string) {
	t.Helper()
	var door net.Listener
	if err := l.Within("fabric", func() (err error) { door, err = net.Listen("tcp", "172.30.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes/"+name, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}]}}`, name, ip)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(door) }()
	t.Cleanup(func() { _ = s.Close() })
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"clusters":[{"name":"c","cluster":{"server":"http://%s"}}],"users":[{"name":"u","user":{}}]}`, door.Addr())
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

func TestAddressThatKubernetesKnowsIsTheNodes(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	run(t, l, "node-1", "ip", "address", "add", "172.30.1.99/24", "dev", "eth0")
	kubeconfig := serveNode(t, l, "worker", "172.30.1.99")
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	startByHand(t, l, "NODENAME=node-1", "IP=autodetect", "IP_AUTODETECTION_METHOD=kubernetes-internal-ip", "CALICO_K8S_NODE_REF=worker", "KUBECONFIG="+kubeconfig)
	key := api.ResourcesRoot + "nodes/node-1"
	soon(t, "the Node has another address", func() bool { return strings.Contains(values(t, l, key)[key], `"ipv4Address":"172.30.1.99/24"`) })
}

func TestNodeWithSeveralEqualAddressesAsksAtItsFirstStart(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	run(t, l, "node-1", "sh", "-ec", `ip link add dc0 type veth peer name dc1; ip link set dc0 up; ip link set dc1 up; ip address add 10.77.0.1/24 dev dc0; ip route del default
		ip route add 172.30.0.0/16 via 172.30.1.254; rm -f /var/lib/calico/nodename`)
	put(t, l, api.ResourcesRoot+"nodes/node-1", gone)
	h := startByHand(t, l, "NODENAME=node-1", "IP=autodetect")
	select {
	case err := <-h.ended:
		if err == nil || !strings.Contains(h.said.String(), "dc0 10.77.0.1/24") || !strings.Contains(h.said.String(), "eth0 172.30.1.1/24") || !strings.Contains(h.said.String(), "IP_AUTODETECTION_METHOD=interface=") {
			t.Errorf("ended with %v: %s", err, h.said.String())
		}
	case <-time.After(nettest.Patience(30 * time.Second)):
		t.Error("the agent chose")
	}
}

func TestSettingsFileStandsBetweenEnvironmentAndDatastore(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.AgentEnv = 1, lab.VXLAN, []string{"FELIX_VXLANMTU=1400"} })
	run(t, l, "node-1", "sh", "-ec", `mkdir /etc/calico; printf '[global]\nVXLANPort = 4790\nVXLANMTU = 1300\nLogFilePath = None\nNoSuchThing = 1\n' >/etc/calico/felix.cfg`)
	setFelix(t, l, toHost+`, "vxlanPort": 4791, "vxlanVNI": 77`)
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"dstport 4790", "mtu 1400", "vxlan id 77 "} { // by the file, the environment, the datastore
		eventually(t, l, has(part), "ip", "-d", "link", "show", kernel.VXLANDevice)
	}
	shown, err := try(t, l, "node-1", "muslin-node", "config")
	if err == nil {
		t.Errorf("the file has a setting that there is not, and nothing is wrong:\n%s", shown)
	}
	const unknown = "/etc/calico/felix.cfg: nosuchthing is no setting"
	if text := agentLog(t, l, "node-1"); strings.Count(text, unknown) != 1 {
		t.Errorf("the log says not once %q:\n%s", unknown, text)
	}
}
