package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/store"
)

func deployed(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// setting is the value of a name in a file of "name=value" lines.
func setting(t *testing.T, text, name string) string {
	t.Helper()
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

func TestNetworkManagerIsToldOfAllOurDevices(t *testing.T) {
	got := strings.Split(setting(t, deployed(t, "networkmanager/muslin.conf"), "unmanaged-devices"), ";")
	matches := func(device string) bool {
		return slices.ContainsFunc(got, func(pattern string) bool {
			ok, err := filepath.Match(strings.TrimPrefix(pattern, "interface-name:"), device)
			return err == nil && ok
		})
	}
	for _, device := range []string{kernel.WorkloadPrefix + "0a1b2c3d4e5", kernel.IPIPDevice, kernel.VXLANDevice, kernel.VXLAN6Device, "wireguard.cali", "wg-v6.cali"} {
		if !matches(device) {
			t.Errorf("%s is left to NetworkManager by %q", device, got)
		}
	}
	if matches("eth0") || matches("ens3") {
		t.Errorf("%q takes the host's own devices away", got)
	}
}

func TestExampleEnvironmentIsOneThatTheAgentTakes(t *testing.T) {
	var environ []string
	for line := range strings.Lines(deployed(t, "systemd/muslin-node.env")) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "#"))
		if name, _, ok := strings.Cut(line, "="); ok && !strings.Contains(name, " ") {
			environ = append(environ, strings.TrimSuffix(line, "="))
		}
	}
	env := func(name string) string {
		for _, pair := range environ {
			if v, ok := strings.CutPrefix(pair, name+"="); ok {
				return v
			}
		}
		return ""
	}
	known, unknown := config.Unheeded(environ)
	if len(environ) < 10 || len(known)+len(unknown) > 0 {
		t.Errorf("of %q these change nothing: %q %q", environ, known, unknown)
	}
	if _, err := config.FromEnv(env); err != nil {
		t.Error(err)
	}
	if _, err := store.FromEnv(env); err != nil {
		t.Error(err)
	}
	if _, problems := config.Effective(config.Sources{Env: env}); len(problems) > 0 {
		t.Error(problems)
	}
}

func TestVariablesInTheDocumentsAreKnown(t *testing.T) {
	names := regexp.MustCompile(`\b(CALICO|FELIX|IP|IP6|ETCD|MUSLIN|CLUSTER|NO_DEFAULT)_[A-Z0-9_]*[A-Z0-9]\b`)
	var environ []string
	for _, file := range []string{"../README.md", "../ARCHITECTURE.md", "../CHANGELOG.md", "systemd/muslin-node.service"} {
		for _, name := range names.FindAllString(deployed(t, file), -1) {
			environ = append(environ, name+"=x")
		}
	}
	if _, unknown := config.Unheeded(environ); len(environ) == 0 || len(unknown) > 0 {
		t.Errorf("of %d, nobody knows %q", len(environ), unknown)
	}
}

func TestUnitIsOneThatSystemdTakes(t *testing.T) {
	nettest.Need(t, "systemd-analyze")
	unit := deployed(t, "systemd/muslin-node.service")
	if dir := filepath.Join("/run", setting(t, unit, "RuntimeDirectory")); dir != filepath.Dir(attach.Socket) {
		t.Errorf("the unit makes %s, and the socket is %s", dir, attach.Socket)
	}
	program := filepath.Join(programs(t), "muslin-node")
	file := filepath.Join(t.TempDir(), "muslin-node.service")
	text := strings.Replace(unit, setting(t, unit, "ExecStart"), program, 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", file).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// capabilities are those that the unit, and the manifest, leave to the agent, as setpriv names them.
func capabilities(t *testing.T) map[string][]string {
	t.Helper()
	_, list, found := strings.Cut(deployed(t, "kubernetes/muslin.yaml"), "add: [")
	list, _, closed := strings.Cut(list, "]")
	if !found || !closed {
		t.Fatal("the manifest adds no capabilities")
	}
	out := map[string][]string{}
	for from, names := range map[string][]string{
		"the unit":     strings.Fields(strings.ReplaceAll(setting(t, deployed(t, "systemd/muslin-node.service"), "CapabilityBoundingSet"), "CAP_", "")),
		"the manifest": strings.Split(list, ", "),
	} {
		for _, name := range names {
			out[from] = append(out[from], "+"+strings.ToLower(name))
		}
	}
	return out
}

// The unit and the manifest take away all capabilities but a few; with these the agent must do everything: links, routes, NAT, settings, policy, the
// plugins' socket, BGP's port, the folders of the host, and to see Calico's agent.
func TestAgentNeedsNoOtherCapabilitiesThanItIsLeft(t *testing.T) {
	nettest.Need(t, "setpriv")
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	keep := capabilities(t)
	for _, from := range []string{"the unit", "the manifest"} { // which leaves the host with folders of its own
		t.Run(from, func(t *testing.T) { runsOn(t, l, keep[from]) })
	}
}

func runsOn(t *testing.T, l *lab.Lab, keep []string) {
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	env := []string{"IP=autodetect", "CALICO_NETWORKING_BACKEND=bird", "FELIX_IPV6SUPPORT=false"}
	reduced := append([]string{"setpriv", "--no-new-privs", "--bounding-set=-all," + strings.Join(keep, ","), "--inh-caps=-all", "--"}, "muslin-node")
	rival := exec.Command("sleep", "60")
	rival.Args[0] = "calico-node"
	if err := l.Within("node-1", rival.Start); err != nil {
		t.Fatal(err)
	}
	refusal, err := try(t, l, "node-1", append([]string{"timeout", "30", "env"}, append(env, reduced...)...)...)
	if err == nil || !strings.Contains(err.Error()+refusal, "Calico's agent runs on this host") {
		t.Errorf("beside calico-node: %s, %v; want a refusal", refusal, err)
	}
	_ = rival.Process.Kill()
	_ = rival.Wait() // killed
	for _, args := range [][]string{{"ip", "link", "del", kernel.VXLANDevice}, {"ip", "route", "flush", "proto", "80"}, {"iptables-nft", "-t", "nat", "-F"}, {"sysctl", "-qw", "net.ipv4.ip_forward=0"}} {
		run(t, l, "node-1", args...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan string, 1)
	go func() {
		var out bytes.Buffer
		err := l.Exec(ctx, "node-1", lab.Command{Args: reduced, Env: env, Stdout: &out, Stderr: &out})
		done <- fmt.Sprint(out.String(), err)
	}()
	defer func() {
		cancel()
		if text := <-done; t.Failed() || strings.Contains(text, "not permitted") {
			t.Errorf("the agent's log:\n%s", text)
		}
	}()
	soon(t, "the agent does not listen", func() bool {
		_, err := try(t, l, "node-1", "ip", "link", "show", kernel.VXLANDevice)
		return err == nil
	})
	soon(t, "no pod can be added", func() bool {
		_, err := l.AddPod(t.Context(), lab.PodSpec{Name: "later", Node: "node-1"})
		return err == nil
	})
	answers(t, l, "node-1", pod(t, l, "a2"))
	answers(t, l, "node-2", pod(t, l, "later"))
	if v := strings.TrimSpace(run(t, l, "node-1", "cat", "/proc/sys/net/ipv4/ip_forward")); v != "1" {
		t.Errorf("ip_forward is %s", v)
	}
	policy(t, l, "later", `"selector": "!has(app)", "types": ["Ingress"]`)
	soon(t, "policy is not enforced", func() bool { return getsThrough(l, "node-2", pod(t, l, "later").Addr) != nil })
	remove(t, l, "networkpolicies/default/default.later")
	speaker := net.JoinHostPort(nodesOf(t, l)[0].Addr.String(), "179")
	soon(t, "nobody listens for BGP", func() bool {
		return l.Within("node-1", func() error {
			c, err := net.DialTimeout("tcp", speaker, time.Second)
			if err == nil {
				err = c.Close()
			}
			return err
		}) == nil
	})
	if err := l.RemovePod(t.Context(), "later"); err != nil {
		t.Error(err)
	}
	if slices.Contains(keep, "+dac_override") { // it is the manifest, whose agent installs, and the host's folder of programs may be another user's
		sh := ownHost(t, l, "node-1")
		out, err := sh("chown -R 1001:1001 /opt/cni && chmod 755 /opt/cni/bin && " + strings.Join(reduced, " ") + " install && ls /opt/cni/bin")
		if err != nil || !strings.Contains(out, "muslin-ipam") {
			t.Errorf("installed: %q, %v", out, err)
		}
	}
}
