package hosts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/doctor"
)

func TestBootSettingsAreThoseOfTheLastFile(t *testing.T) {
	got, err := examiner{root: host(t, map[string]string{
		"etc/sysctl.d/50-a.conf":     "# net.ipv4.ip_forward=7\nnet.ipv4.ip_forward = 0\n-net/ipv6/conf/all/forwarding=0\n",
		"usr/lib/sysctl.d/50-a.conf": "net.ipv4.ip_forward=9\n", // of the same name: it does not count
		"usr/lib/sysctl.d/60-b.conf": "; a comment\nnet.ipv4.conf.all.forwarding=0\n",
		"etc/sysctl.d/70-c.saved":    "net.ipv4.ip_forward=8\n",
		"etc/sysctl.conf":            "net.ipv6.conf.all.forwarding=1\n",
	})}.bootSettings(t.Context())
	want := map[string]doctor.BootSetting{
		"net/ipv4/ip_forward": {Value: "0", File: "/etc/sysctl.d/50-a.conf"}, "net/ipv4/conf/all/forwarding": {Value: "0", File: "/usr/lib/sysctl.d/60-b.conf"},
		"net/ipv6/conf/all/forwarding": {Value: "1", File: "/etc/sysctl.conf"},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, d)
	}
}

func TestNetworkdIsReadFromItsFiles(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  doctor.Networkd
	}{
		{"nothing", nil, doctor.Networkd{Routes: true, Rules: true}},
		{"settings, the last one counts", map[string]string{
			"etc/systemd/networkd.conf":               "[Network]\n#ManageForeignRoutes=yes\nManageForeignRoutes=yes\n[DHCPv4]\nManageForeignRoutingPolicyRules=no\n",
			"etc/systemd/networkd.conf.d/muslin.conf": "[Network]\nManageForeignRoutes=no\n",
		}, doctor.Networkd{Rules: true}},
		{"networks by name alone", map[string]string{
			"etc/systemd/network/20-all.network":     "[Match]\nName=* \n[Network]\nDHCP=yes\n",
			"run/systemd/network/10-ours.network":    "[Match]\nName=cali* vxlan.calico\nName=tunl0\n[Link]\nUnmanaged=yes\n",
			"usr/lib/systemd/network/30-one.network": "[Match]\nName=eth*\nDriver=virtio_net\n",
			"usr/lib/systemd/network/40-any.network": "[Network]\nDHCP=yes\n",
			"usr/lib/systemd/network/99-x.link":      "[Match]\nName=*\n",
		}, doctor.Networkd{Routes: true, Rules: true, Files: []doctor.NetworkFile{
			{Path: "/run/systemd/network/10-ours.network", Names: []string{"cali*", "vxlan.calico", "tunl0"}, Unmanaged: true},
			{Path: "/etc/systemd/network/20-all.network", Names: []string{"*"}},
		}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := examiner{root: host(t, c.files)}.networkd(t.Context())
			if d := cmp.Diff(c.want, got); d != "" || err != nil {
				t.Errorf("error %v, (-want +got):\n%s", err, d)
			}
		})
	}
}

func TestRuntimesSayWhereTheyLook(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		want             doctor.Folders
	}{
		{"containerd", "etc/containerd/config.toml", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/opt/cni/bin\"\n  conf_dir = '/etc/cni/net.d'\n", doctor.Folders{Conf: "/etc/cni/net.d", Bins: []string{"/opt/cni/bin"}}},
		{"containerd 2", "etc/containerd/config.toml", "bin_dirs = ['/a/bin', \"/b/bin\"]\n", doctor.Folders{Bins: []string{"/a/bin", "/b/bin"}}},
		{"k3s", "var/lib/rancher/k3s/agent/etc/containerd/config.toml", "conf_dir = \"/k\"\n# bin_dir = \"/no\"\n", doctor.Folders{Conf: "/k"}},
		{"CRI-O", "etc/crio/crio.conf", "[crio.network]\nnetwork_dir = \"/etc/cni/net.d/\"\nplugin_dirs = [\"/opt/cni/bin/\"]\n", doctor.Folders{Conf: "/etc/cni/net.d/", Bins: []string{"/opt/cni/bin/"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := examiner{root: host(t, map[string]string{"etc/containerd/config.toml": "# nothing\n", c.file: c.text})}.runtimeConf(t.Context())
			if d := cmp.Diff(doctor.RuntimeConf{File: "/" + c.file, Folders: c.want}, got); d != "" || err != nil {
				t.Errorf("error %v, (-want +got):\n%s", err, d)
			}
		})
	}
	if got, err := (examiner{root: t.TempDir()}).runtimeConf(t.Context()); !cmp.Equal(got, doctor.RuntimeConf{}) || err != nil {
		t.Errorf("without any: %+v, %v", got, err)
	}
}

func TestDiskOfAFolderThatIsNotThereIsWhereItWouldBe(t *testing.T) {
	root := host(t, map[string]string{"var/lib/x": ""})
	got, err := examiner{root: root, socket: "/run/muslin/agent.sock", confDir: "/etc/cni/net.d"}.disks(config.Node{})(t.Context())
	if err != nil || len(got) != 1 || got[0].Path != "/run/muslin" || got[0].Size == 0 || got[0].ReadOnly {
		t.Errorf("of folders on one file system: %+v, %v", got, err)
	}
}

func TestOurProgramsAreAskedForTheirVersion(t *testing.T) {
	root := host(t, map[string]string{"opt/cni/bin/muslin": "#!/bin/sh\necho \"v0.9 $*\"\n", "opt/cni/bin/portmap": "#!/bin/sh\necho v1\n"})
	for _, name := range []string{"muslin", "portmap"} {
		if err := os.Chmod(filepath.Join(root, "opt/cni/bin", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(root, "opt/cni/bin")
	got, err := examiner{root: "/", binDirs: []string{bin}}.programs(t.Context())
	if d := cmp.Diff(map[string]doctor.Program{"muslin": {Runs: true, Version: "v0.9 -v"}, "portmap": {Runs: true}}, got); d != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, d)
	}
}

func TestSettingsOfWireGuardCountByTheSourceThatTheAgentTakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "felix.cfg")
	if err := os.WriteFile(file, []byte("[global]\nWireguardEnabled = true\nWireguardMTU = 1300\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"the settings file", map[string]string{config.FileEnv: file}, true},
		{"the environment over it", map[string]string{config.FileEnv: file, "FELIX_WIREGUARDENABLED": "false"}, false},
		{"what cannot be read counts as not said", map[string]string{"FELIX_WIREGUARDENABLED": "perhaps"}, false},
		{"any word for yes", map[string]string{"FELIX_WIREGUARDENABLED": "1"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.env["ETCD_ENDPOINTS"] = "http://127.0.0.1:1"
			x := examiner{env: env(c.env), root: "/", proc: host(t, map[string]string{"thread-self/x": ""}), socket: "/run/muslin/agent.sock"}
			v := x.view(t.Context())
			if v.Settings.WireGuard.Enabled != c.want || strings.Contains(c.name, "file") && c.want && v.Settings.WireGuard.MTU != 1300 {
				t.Errorf("%+v", v.Settings.WireGuard)
			}
		})
	}
}
