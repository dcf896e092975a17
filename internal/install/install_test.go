package install

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// host is a host's folders and what is offered to it.
type host struct {
	t    *testing.T
	root string
	env  map[string]string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir(), env: map[string]string{}}
	for _, dir := range []string{"host/opt/cni/bin", "host/etc/cni/net.d", "image", "secret"} {
		if err := os.MkdirAll(filepath.Join(h.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"muslin", "muslin-ipam", "portmap", "muslin-node"} {
		h.write("image/"+name, "program "+name)
	}
	h.env["TLS_ASSETS_DIR"] = filepath.Join(h.root, "secret")
	return h
}

func (h *host) write(path, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.root, path), []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(path string) string {
	b, err := os.ReadFile(filepath.Join(h.root, path))
	if err != nil {
		return "(" + errors.Unwrap(err).Error() + ")"
	}
	return string(b)
}

// files are the names in a folder of the host.
func (h *host) files(dir string) (out []string) {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.root, dir))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (h *host) settings() Settings {
	h.t.Helper()
	s, err := FromEnv(func(name string) string { return h.env[name] }, Places{Host: filepath.Join(h.root, "host"), Source: filepath.Join(h.root, "image")})
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *host) installer() *Installer {
	h.t.Helper()
	i, err := New(h.settings(), func(name string) string { return h.env[name] }, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	return i
}

func ready() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

const (
	bin  = "host/opt/cni/bin"
	nets = "host/etc/cni/net.d"
)

func TestConfigurationComesLastAndOnlyOnceTheAgentServes(t *testing.T) {
	h := newHost(t)
	h.write("secret/etcd-ca", "CA")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.installer().Once(ctx, make(chan struct{})); !errors.Is(err, context.Canceled) {
		t.Errorf("without an agent: %v", err)
	}
	if diff := cmp.Diff([]string{receiptName, "calico", "calico-ipam", "muslin", "muslin-ipam", "portmap"}, h.files(bin)); diff != "" {
		t.Errorf("programs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{tlsName}, h.files(nets)); diff != "" {
		t.Errorf("before the agent serves (-want +got):\n%s", diff)
	}
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10-calico.conflist", tlsName}, h.files(nets)); diff != "" {
		t.Errorf("once it serves (-want +got):\n%s", diff)
	}
	if got := h.read(bin + "/calico"); got != "program muslin" {
		t.Errorf("calico is %q", got)
	}
}

func TestTemplateOfCalicosManifestIsFilledIn(t *testing.T) {
	h := newHost(t)
	h.write("secret/etcd-ca", "CA")
	h.write("secret/etcd-key", "\n") // a Secret that was not filled in
	h.env["ETCD_ENDPOINTS"], h.env["CNI_MTU"], h.env["CNI_NET_DIR"] = "https://e1:2379,https://e2:2379", "1400", "/etc/cni/other"
	h.env["CNI_NETWORK_CONFIG"] = `{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","etcd_endpoints":"__ETCD_ENDPOINTS__","etcd_key_file":"__ETCD_KEY_FILE__",
"etcd_ca_cert_file":"__ETCD_CA_CERT_FILE__","mtu":__CNI_MTU__,"log_level":"__LOG_LEVEL__","kubernetes":{"kubeconfig":"__KUBECONFIG_FILEPATH__"},"token":"__SERVICEACCOUNT_TOKEN__"}]}`
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	want := `{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","etcd_endpoints":"https://e1:2379,https://e2:2379","etcd_key_file":"",
"etcd_ca_cert_file":"/etc/cni/other/calico-tls/etcd-ca","mtu":1400,"log_level":"info","kubernetes":{"kubeconfig":"/etc/cni/other/calico-kubeconfig"},"token":""}]}`
	if diff := cmp.Diff(want, h.read(nets+"/10-calico.conflist")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := h.files(nets); len(got) != 2 {
		t.Errorf("there is more than configuration and certificates: %q", got)
	}
}

func TestConfigurationThatNoRuntimeWouldTakeIsRefusedWithItsReason(t *testing.T) {
	for _, c := range []struct{ name, text, says string }{
		{"a.conflist", `{"name":"n","plugins":[{"type":"muslin"}]`, "unexpected end"},
		{"a.conflist", `{"name":"n","type":"muslin"}`, `"plugins" is missing`},
		{"a.conf", `{"name":"n","plugins":[{"type":"muslin"}]}`, "must end with .conflist"},
		{"a.conflist", `{"plugins":[{"type":"muslin"}]}`, `"name" is missing`},
		{"a.conflist", `{"name":"n","plugins":[{"type":"__PLUGIN_OF_MINE__"}]}`, "__PLUGIN_OF_MINE__"},
	} {
		h := newHost(t)
		h.env["CNI_CONF_NAME"], h.env["CNI_NETWORK_CONFIG"] = c.name, c.text
		_, err := New(h.settings(), nil, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.text, err, c.says)
		}
	}
}

func TestBuiltInConfigurationIsTakenAndTheOldOneGoes(t *testing.T) {
	h := newHost(t)
	h.env["CNI_CONF_NAME"] = "10-muslin.conflist"
	h.write(nets+"/10-calico.conflist", "{}")
	h.write(nets+"/99-other.conflist", "{}")
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10-muslin.conflist", "99-other.conflist"}, h.files(nets)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Renewed certificates are put in place all at once, while the installer goes on.
func TestRenewedCertificatesReachTheHost(t *testing.T) {
	h := newHost(t)
	h.write("secret/etcd-cert", "cert 1")
	h.write("secret/etcd-key", "key 1")
	i := h.installer()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); i.Run(ctx, ready()) }()
		synctest.Wait()
		first := h.read(nets + "/10-calico.conflist")
		if !strings.Contains(first, `"etcd_cert_file": "/etc/cni/net.d/calico-tls/etcd-cert"`) || !strings.Contains(first, `"etcd_ca_cert_file": ""`) {
			t.Errorf("with two of three:\n%s", first)
		}
		for name, text := range map[string]string{"etcd-ca": "CA", "etcd-cert": "cert 2", "etcd-key": "key 2"} {
			h.write("secret/"+name, text)
		}
		if err := os.Remove(filepath.Join(h.root, bin, "portmap")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(interval + time.Second) // of the bubble's clock
		synctest.Wait()
		cancel()
		<-done
	})
	if got := h.read(nets+"/calico-tls/etcd-cert") + " " + h.read(nets+"/calico-tls/etcd-key"); got != "cert 2 key 2" {
		t.Errorf("the host has %s", got)
	}
	if got := h.read(nets + "/10-calico.conflist"); !strings.Contains(got, `"etcd_ca_cert_file": "/etc/cni/net.d/calico-tls/etcd-ca"`) {
		t.Errorf("the configuration does not name the new certificate:\n%s", got)
	}
	if got := h.files(nets + "/calico-tls"); len(got) != 5 { // one version, the link to it, and three files
		t.Errorf("left over: %q", got)
	}
	if got := h.read(bin + "/portmap"); got != "program portmap" {
		t.Errorf("a program that went is not put back: %s", got)
	}
	info, err := os.Stat(filepath.Join(h.root, nets, "calico-tls/etcd-key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key: %v, %v", info.Mode(), err)
	}
}

func TestProgramsOfOthersStay(t *testing.T) {
	h := newHost(t)
	h.env["SKIP_CNI_BINARIES"] = "portmap, calico-ipam"
	h.write(bin+"/portmap", "another's portmap")
	h.write(bin+"/bridge", "another's bridge")
	h.write(bin+"/"+unfinished+"123", "of a run that was cut off")
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{receiptName, "bridge", "calico", "muslin", "muslin-ipam", "portmap"}, h.files(bin)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := h.read(bin + "/portmap"); got != "another's portmap" {
		t.Errorf("portmap was replaced: %s", got)
	}
	if err := h.settings().RemoveFiles(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"bridge", "portmap"}, h.files(bin)); diff != "" {
		t.Errorf("after the removal (-want +got):\n%s", diff)
	}
}

func TestUpdateReplacesProgramsAndTakesAwayWhatTheNewVersionLacks(t *testing.T) {
	h := newHost(t)
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	h.write("image/muslin", "program muslin 2")
	if err := os.Remove(filepath.Join(h.root, "image/portmap")); err != nil {
		t.Fatal(err)
	}
	h.env["UPDATE_CNI_BINARIES"] = "false"
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	if got := h.read(bin + "/muslin"); got != "program muslin" {
		t.Errorf("replaced though it was not to be: %s", got)
	}
	h.env["UPDATE_CNI_BINARIES"] = ""
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	if got := h.read(bin + "/muslin"); got != "program muslin 2" {
		t.Errorf("not replaced: %s", got)
	}
	if got := h.read(bin + "/portmap"); !strings.HasPrefix(got, "(no such file") {
		t.Errorf("portmap is still there: %s", got)
	}
}

func TestRemovalTakesEveryConfigurationThatCallsUs(t *testing.T) {
	h := newHost(t)
	h.env["CNI_CONF_NAME"] = "05-mine.conflist"
	h.write("secret/etcd-ca", "CA")
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	h.write(nets+"/20-other.conflist", `{"name":"o","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`)
	h.write(nets+"/30-ipam.conf", `{"name":"o","type":"bridge","ipam":{"type":"muslin-ipam"}}`)
	h.write(nets+"/notes.txt", `{"name":"o","type":"muslin"}`)
	removed, err := h.settings().RemoveConfiguration()
	want := Removed{Files: []string{filepath.Join(h.settings().NetDir, "05-mine.conflist"), filepath.Join(h.settings().NetDir, "30-ipam.conf")},
		Logs: []string{"/var/log/calico/cni/cni.log"}}
	if diff := cmp.Diff(want, removed); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := h.settings().RemoveFiles(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"20-other.conflist", "notes.txt"}, h.files(nets)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := h.files(bin); len(got) != 0 {
		t.Errorf("left of the programs: %q", got)
	}
}

// fakeAccount hands out numbered kubeconfigs that are good for an hour.
type fakeAccount struct {
	asked int
	now   func() time.Time
}

func (f *fakeAccount) kubeconfig(context.Context) ([]byte, time.Time, error) {
	f.asked++
	return []byte{byte('0' + f.asked)}, f.now().Add(time.Hour), nil
}

func TestKubeconfigIsThereOnlyOnRequestAndRenewedInTime(t *testing.T) {
	h := newHost(t)
	i := h.installer()
	if err := i.Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	if got := h.read(nets + "/" + kubeconfigName); !strings.HasPrefix(got, "(no such file") {
		t.Errorf("a token is on the host's disk though nobody asked for one: %s", got)
	}
	now := time.Unix(1000, 0)
	i.now = func() time.Time { return now }
	account := &fakeAccount{now: i.now}
	i.account = account
	for _, c := range []struct {
		after time.Duration
		want  string
	}{{0, "1"}, {29 * time.Minute, "1"}, {2 * time.Minute, "2"}} {
		now = now.Add(c.after)
		if err := i.kubeconfig(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := h.read(nets + "/" + kubeconfigName); got != c.want {
			t.Errorf("after %v more: %s, want %s", c.after, got, c.want)
		}
	}
}
