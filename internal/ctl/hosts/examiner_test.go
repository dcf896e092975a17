package hosts

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/doctor"
	"github.com/muslin-cni/muslin/pkg/store"
)

func env(values map[string]string) cli.Env {
	get := func(name string) string { return values[name] }
	return cli.Env{Now: time.Now, Getenv: get, Etcd: func() (store.Config, error) { return store.FromEnv(get) }}
}

func TestWhatHangsIsGivenUpAndWhatFailsSaysWhy(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	hangs := fact(ctx, func(context.Context) (int, error) { <-t.Context().Done(); return 1, nil })
	if hangs.Err == nil || !strings.Contains(hangs.Err.Error(), "given up") {
		t.Errorf("what hangs: %+v", hangs)
	}
	fails := fact(ctx, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, errors.New("no answer") })
	if fails.Err == nil || fails.Err.Error() != "no answer" {
		t.Errorf("what ends in time: %+v", fails)
	}
	if works := fact(t.Context(), func(context.Context) (int, error) { return 7, nil }); works.Value != 7 || works.Err != nil {
		t.Errorf("what works: %+v", works)
	}
}

func TestNetworkManagerIsKeptFromDevicesByAnyOfItsFiles(t *testing.T) {
	snippet, err := os.ReadFile("../../../deploy/networkmanager/muslin.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  doctor.NetworkManager
	}{
		{"nothing", nil, doctor.NetworkManager{}},
		{"our snippet", map[string]string{"etc/NetworkManager/conf.d/muslin.conf": string(snippet)},
			doctor.NetworkManager{Unmanaged: []string{"cali*", "tunl*", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali"}}},
		{"sections for devices", map[string]string{
			"etc/NetworkManager/NetworkManager.conf":     "[main]\nplugins=keyfile\n[device-a]\nmatch-device = interface-name:cali*\nmanaged = 0\n[device-b]\nmanaged=0\n",
			"usr/lib/NetworkManager/conf.d/10-all.conf":  "[keyfile]\nunmanaged-devices=*,except:type:wifi\n",
			"run/NetworkManager/conf.d/10-managed.conf":  "[device-c]\nmatch-device=interface-name:tunl0\nmanaged=1\n",
			"etc/NetworkManager/conf.d/notes.conf.saved": "[keyfile]\nunmanaged-devices=interface-name:none\n",
		}, doctor.NetworkManager{Unmanaged: []string{"cali*", "*"}}},
		{"its own word", map[string]string{"run/NetworkManager/devices/7": "[device]\nmanaged=true\n", "run/NetworkManager/devices/8": "[device]\nmanaged=false\n"},
			doctor.NetworkManager{Manages: map[int]bool{7: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := examiner{root: host(t, c.files)}.networkManager(t.Context())
			if c.want.Manages == nil {
				c.want.Manages = map[int]bool{}
			}
			if d := cmp.Diff(c.want, got); d != "" || err != nil {
				t.Errorf("error %v, (-want +got):\n%s", err, d)
			}
		})
	}
}

func TestUFWIsReadFromItsFiles(t *testing.T) {
	got, err := examiner{root: host(t, map[string]string{"etc/ufw/ufw.conf": "# a comment\nENABLED=yes\n", "etc/default/ufw": "DEFAULT_FORWARD_POLICY=\"DROP\"\n"})}.ufw(t.Context())
	if want := (doctor.UFW{Enabled: true, DropsForward: true}); got != want || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestSavedLegacyChainsAreRead(t *testing.T) {
	got := parseSaved("# Generated\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:60]\n:KUBE-X - [0:0]\n-A FORWARD -j KUBE-X\nCOMMIT\n*nat\n:WEAVE - [0:0]\n:broken\nCOMMIT\n", true)
	want := []doctor.LegacyChain{{V6: true, Table: "filter", Name: "INPUT"}, {V6: true, Table: "filter", Name: "FORWARD", Drop: true}, {V6: true, Table: "filter", Name: "KUBE-X"}, {V6: true, Table: "nat", Name: "WEAVE"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestProgramsAreFilesThatMayBeExecuted(t *testing.T) {
	root := host(t, map[string]string{"opt/cni/bin/plain": "", "opt/cni/bin/fine": "", "usr/lib/cni/fine": "", "usr/lib/cni/other": ""})
	for _, f := range []string{"opt/cni/bin/fine", "usr/lib/cni/other"} {
		if err := os.Chmod(filepath.Join(root, f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nothing", filepath.Join(root, "opt/cni/bin/dangling")); err != nil {
		t.Fatal(err)
	}
	got, err := examiner{root: root, binDirs: []string{"/opt/cni/bin", "/usr/lib/cni", "/no/such"}}.programs(t.Context())
	if d := cmp.Diff(map[string]doctor.Program{"plain": {}, "fine": {Runs: true}, "other": {Runs: true}}, got); d != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, d)
	}
}

func TestMTUThatCannotBeReadIsSaid(t *testing.T) {
	x := examiner{root: host(t, map[string]string{"good": "1450\n", "bad": "many"})}
	if n, err := x.podMTU("/good")(t.Context()); n != 1450 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := x.podMTU("/none")(t.Context()); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := x.podMTU("/bad")(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestUnitsEnvironmentCountsWhileNoAgentRuns(t *testing.T) {
	root := host(t, map[string]string{"etc/muslin/muslin-node.env": "# ETCD_ENDPOINTS=http://no\nETCD_ENDPOINTS=\"http://10.0.0.9:2379\"\nNODENAME=from-unit\n"})
	x := examiner{env: env(map[string]string{"NODENAME": "mine"}), root: root, proc: host(t, map[string]string{"thread-self/x": ""})}
	s := x.settings()
	if d := cmp.Diff([]string{"http://10.0.0.9:2379"}, s.etcd.Endpoints); d != "" || s.err != nil || s.owner != "agent" {
		t.Errorf("error %v, owner %s, %s", s.err, s.owner, d)
	}
	inside := examiner{env: env(nil), proc: x.proc, root: host(t, map[string]string{"etc/muslin/muslin-node.env": "ETCD_ENDPOINTS=https://e:1\nETCD_CA_CERT_FILE=/ca\n", "ca": "", "etc/calico/felix.cfg": "WireguardEnabled=true\n"})}
	if s := inside.settings(); s.etcd.TLS.CAFile != filepath.Join(inside.root, "ca") || s.get("FELIX_WIREGUARDENABLED") != "" || s.file.Path == "" {
		t.Errorf("in a container: %+v", s)
	}
	own := examiner{env: env(map[string]string{"ETCD_ENDPOINTS": "https://e:1", "ETCD_CA_CERT_FILE": filepath.Join(root, "etc")}), proc: x.proc, root: t.TempDir()}
	if s := own.settings(); s.etcd.TLS.CAFile != filepath.Join(root, "etc") {
		t.Errorf("this process's own paths: %+v", s.etcd.TLS)
	}
	if got, err := x.name(s); got != "mine" || err != nil {
		t.Errorf("name %s, %v", got, err)
	}
}

// write puts a client's files of an authority into the folder.
func write(t *testing.T, dir string, end time.Time) {
	t.Helper()
	ca, err := authority.New("test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Client("node-1", end)
	if err == nil {
		err = ca.Write(dir, pair)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestCertificatesAreThoseOfAgentPluginAndCommand(t *testing.T) {
	root := t.TempDir()
	end := time.Now().Add(120 * time.Hour)
	write(t, filepath.Join(root, "a"), end)
	write(t, filepath.Join(root, "b"), end)
	at := func(dir string) store.TLS {
		return store.TLS{CAFile: filepath.Join(root, dir, authority.CAFile), CertFile: filepath.Join(root, dir, authority.CertFile), KeyFile: filepath.Join(root, dir, authority.KeyFile)}
	}
	mixed := at("a")
	mixed.KeyFile = at("b").KeyFile
	own := map[string]string{"ETCD_ENDPOINTS": "https://e:1", "ETCD_CA_CERT_FILE": filepath.Join(root, "none"), "ETCD_CERT_FILE": mixed.CertFile, "ETCD_KEY_FILE": mixed.KeyFile}
	x := examiner{env: env(own), root: root}
	conf := []doctor.ConfFile{{Name: "x.conflist", Text: []byte(`{"plugins":[{"type":"muslin","etcd_endpoints":"https://e:1","etcd_cert_file":"/a/` + authority.CertFile + `"},{"type":"portmap"}]}`)}, {Name: "y", Text: []byte("no JSON")}}
	got := map[string]doctor.Certificate{}
	for _, c := range x.certificates(settings{owner: "agent", etcd: store.Config{Endpoints: []string{"https://e:1"}, TLS: mixed}}, conf) {
		got[c.Path] = c
	}
	if len(got) != 4 {
		t.Errorf("%d files: %v", len(got), got)
	}
	cert, key, ca := got[mixed.CertFile], got[mixed.KeyFile], got[mixed.CAFile]
	if cert.Owner != "agent and plugin and muslinctl" || cert.Err != nil || !cert.To.Equal(end.UTC().Truncate(time.Second)) || cert.From.IsZero() {
		t.Errorf("certificate %+v", cert)
	}
	if key.Kind != doctor.KeyKind || key.Err == nil || !strings.Contains(key.Err.Error(), "private key") || key.Mode.Perm() != 0o600 {
		t.Errorf("key %+v", key)
	}
	if ca.Err != nil || !ca.To.After(end) {
		t.Errorf("CA %+v", ca)
	}
	if none := got[filepath.Join(root, "none")]; !errors.Is(none.Err, fs.ErrNotExist) {
		t.Errorf("missing CA %+v", none)
	}
	if plain := x.certificates(settings{owner: "muslinctl", etcd: store.Config{Endpoints: []string{"http://e:1"}, TLS: mixed}}, nil); len(plain) != 0 {
		t.Errorf("without TLS: %v", plain)
	}
}

func TestFindingsAreALineEach(t *testing.T) {
	var out strings.Builder
	err := tell(&out, []doctor.Finding{
		{Check: "certificates", Severity: doctor.OK},
		{Check: "etcd", Severity: doctor.Error, Object: "http://e", What: "does not\nanswer", Remedy: "start it"},
		{Check: "blocks", Severity: doctor.Unknown, What: "not known", Follows: "etcd"},
	}, "")
	want := "ok       certificates\nerror    etcd: http://e: does not answer\n         -> start it\nunknown  blocks: not known (comes of etcd)\n1 wrong, 0 suspicious, 1 not known\n"
	if d := cmp.Diff(want, out.String()); d != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, d)
	}
}

func TestDoctorsExitCodeSaysHowBadItIs(t *testing.T) {
	for _, c := range []struct {
		args []string
		want error
		says string
	}{
		{[]string{"--only=etcd"}, cli.ErrReported, "error    etcd: http://127.0.0.1:1: does not answer"},
		{[]string{"--only=etcd,expiry", "-o", "json"}, cli.ErrReported, `"check": "expiry",` + "\n    " + `"severity": "ok"`},
		{[]string{"--only=blocks"}, nil, "unknown  blocks: not known while etcd cannot be read (comes of etcd)\n0 wrong, 0 suspicious, 1 not known\n"},
		{[]string{"--only=blocks", "--strict"}, cli.ErrReported, "unknown  blocks"},
		{[]string{"--only=expiry", "--strict"}, nil, "ok       expiry\n"},
	} {
		var out strings.Builder
		e := env(map[string]string{"ETCD_ENDPOINTS": "http://127.0.0.1:1", "NODENAME": "node-1"})
		e.Out = &out
		cmd := DoctorCommand(e)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(append(c.args, "--root", t.TempDir()))
		if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, c.want) || !strings.Contains(out.String(), c.says) {
			t.Errorf("%v: error %v and\n%s\nwant %v and %q", c.args, err, out.String(), c.want, c.says)
		}
	}
	for _, args := range [][]string{{"--only=moon"}, {"-o", "xml"}} {
		cmd := DoctorCommand(env(nil))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil || errors.Is(err, cli.ErrReported) {
			t.Errorf("%v: error %v", args, err)
		}
	}
}
