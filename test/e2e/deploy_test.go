package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

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

// The unit takes away all capabilities but a few; with these the agent must do everything.
func TestAgentNeedsNoOtherCapabilitiesThanTheUnitLeaves(t *testing.T) {
	nettest.Need(t, "setpriv")
	var keep []string
	for _, c := range strings.Fields(setting(t, deployed(t, "systemd/muslin-node.service"), "CapabilityBoundingSet")) {
		keep = append(keep, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"ip", "link", "del", kernel.VXLANDevice}, {"ip", "route", "flush", "proto", "80"}, {"iptables-nft", "-t", "nat", "-F"}, {"sysctl", "-qw", "net.ipv4.ip_forward=0"}} {
		run(t, l, "node-1", args...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan string, 1)
	go func() {
		var out bytes.Buffer
		args := []string{"setpriv", "--no-new-privs", "--bounding-set=-all," + strings.Join(keep, ","), "--inh-caps=-all", "muslin-node"}
		err := l.Exec(ctx, "node-1", lab.Command{
			Args: args, Env: []string{"IP=autodetect", "CALICO_NETWORKING_BACKEND=vxlan", "FELIX_IPV6SUPPORT=false"}, Stdout: &out, Stderr: &out,
		})
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
}
