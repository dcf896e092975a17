package netconf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/members"
)

// everyKey holds each key of Calico's configuration, with the type that Calico gives it.
const everyKey = `{
	"name": "k8s-pod-network", "type": "calico", "cniVersion": "0.3.1", "datastore_type": "etcdv3",
	"etcd_endpoints": "http://10.0.0.1:2379", "etcd_discovery_srv": "", "etcd_key_file": "", "etcd_cert_file": "", "etcd_ca_cert_file": "",
	"etcd_authority": "", "etcd_scheme": "",
	"log_level": "info", "log_file_path": "/var/log/calico/cni/cni.log", "log_file_max_size": 100, "log_file_max_age": 30, "log_file_max_count": 10,
	"mtu": 1440, "require_mtu_file": true, "num_queues": 2,
	"nodename": "node-1", "nodename_file": "/somewhere", "nodename_file_optional": true, "hostname": "h",
	"ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "false", "ipv4_pools": ["10.0.0.0/24", "blue"], "ipv6_pools": ["fd00::/64"]},
	"policy": {"type": "k8s", "k8s_api_root": "", "k8s_auth_token": "t", "k8s_client_certificate": "", "k8s_client_key": "", "k8s_certificate_authority": ""},
	"kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig", "k8s_api_root": "", "node_name": ""},
	"container_settings": {"allow_ip_forwarding": true}, "feature_control": {"ip_addrs_no_ipam": true, "floating_ips": true},
	"include_default_routes": true, "ipam_lock_file": "/var/run/calico/ipam.lock", "readiness_gates": ["http://localhost:9099/readiness"],
	"policy_setup_timeout_seconds": 10, "endpoint_status_dir": "/var/run/calico/endpoint-status", "mode": "", "vxlan_mac_prefix": "", "vxlan_vni": 4096,
	"windows_use_single_network": false, "calico_api_group": "", "qps": 5, "burst": 10, "dataplane_options": {"type": "grpc"}, "policy_wait": "none"
}`

func TestParseAcceptsEveryKeyOfCalico(t *testing.T) {
	got, err := Parse([]byte(everyKey))
	if err != nil {
		t.Fatal(err)
	}
	want := Conf{
		Module: Module{
			CNIVersion: "0.3.1", Name: "k8s-pod-network", Type: "calico", Datastore: "etcdv3",
			Etcd: Etcd{EtcdEndpoints: "http://10.0.0.1:2379"},
			Log:  Log{Level: "info", Path: "/var/log/calico/cni/cni.log", MaxSize: 100, MaxAge: 30, MaxCount: 10},
			Node: Node{Nodename: "node-1", NodenameFile: "/somewhere", NodenameFileOptional: true, Hostname: "h"},
			IPAM: IPAM{
				Type: "calico-ipam", AssignIPv4: "true", AssignIPv6: "false",
				IPv4Pools: []string{"10.0.0.0/24", "blue"}, IPv6Pools: []string{"fd00::/64"},
			},
			Policy:     Policy{Type: "k8s", Token: "t"},
			Kubernetes: Kubernetes{Kubeconfig: "/etc/cni/net.d/calico-kubeconfig"},
		},
		MTU: 1440, RequireMTUFile: true, NumQueues: 2, ContainerSettings: ContainerSettings{AllowIPForwarding: true}, PolicyWait: "none",
		Features: Features{AddrsNoIPAM: true, FloatingIPs: true}, DefaultRoutes: true, ReadinessGates: []string{"http://localhost:9099/readiness"}, PolicyTimeout: 10,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

// TestParseAcceptsConfigurationsInUse reads what stands in testdata as written: the installer's template with its placeholders
// filled in, single files of old releases, and lists. (internal/cni has each attach and detach a pod.)
func TestParseAcceptsConfigurationsInUse(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf*")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".conflist") {
			list, err := libcni.NetworkConfFromBytes(b)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			b = list.Plugins[0].Bytes
		}
		if _, err := Parse(b); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestMembersAreThoseOfTheTags(t *testing.T) {
	for _, o := range []members.Object{&Conf{}, &Module{}, &IPAM{}, &Log{}, &chained{}} {
		if want, got := members.Tagged(o), o.Members(); !slices.Equal(got, want) {
			t.Errorf("%T: %v, want as by its tags %v", o, got, want)
		}
	}
}

func TestParseAcceptsWhatIsNotSaid(t *testing.T) {
	for _, conf := range []string{
		`{"name":"n","type":"muslin","ipam":{"type":"muslin-ipam","assign_ipv4":true,"assign_ipv6":true}}`,
		`{"name":"n","type":"muslin","cniVersion":"1.1.0","ipam":{"type":"muslin-ipam"},
			"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/32"}]},"cni.dev/valid-attachments":[]}`,
		`{"name":"n","type":"muslin","ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`,
	} {
		if _, err := Parse([]byte(conf)); err != nil {
			t.Errorf("%s: %v", conf, err)
		}
	}
}

func TestRequestCarriesWhatTheHandlerNeeds(t *testing.T) {
	conf, err := Parse([]byte(`{"name":"n","ipam":{"type":"muslin-ipam"},"readiness_gates":["http://a"],"feature_control":{"ip_addrs_no_ipam":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := conf.Request(attach.Add, &skel.CmdArgs{ContainerID: "c", IfName: "eth0", Args: "IP=10.0.0.7,fd00::7"})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.Wanted, got.ReadinessGates, got.Features, got.ForeignIPAM) != "[10.0.0.7 fd00::7] [http://a] {true false}" {
		t.Errorf("request is %+v", got)
	}
	if _, err := conf.Request(attach.Del, &skel.CmdArgs{ContainerID: "c", IfName: "eth0", Args: "IP=nonsense"}); err != nil {
		t.Errorf("DEL heeds IP: %v", err)
	}
	conf.IPAM.Type = "static"
	got, err = conf.Request(attach.Add, &skel.CmdArgs{ContainerID: "c", IfName: "eth0", Args: "IP=10.0.0.7/24"})
	if err != nil || got.ForeignIPAM != "static" || len(got.Wanted) > 0 {
		t.Errorf("what a foreign IPAM module is to read is read: %+v, %v", got, err)
	}
}

func TestConfigurationOfNoSensibleSizeIsRefused(t *testing.T) {
	big := []byte(`{"type":"muslin","name":"` + strings.Repeat("n", maxConf) + `"}`)
	_, plugin := Parse(big)
	_, module := ParseModule(big)
	_, gc := ValidAttachments(big)
	for what, err := range map[string]error{"plugin": plugin, "module": module, "GC": gc} {
		if err == nil || !strings.Contains(err.Error(), "at most 16777216 are read") {
			t.Errorf("%s: error %v, want one that names the limit", what, err)
		}
	}
}

func TestParseNamesTheKeyThatIsWrong(t *testing.T) {
	for _, c := range []struct{ member, says string }{
		{`"mtu":"1440"`, `key "mtu" has the type string, want whole number`},
		{`"mtu":1.5`, `key "mtu" has the type number 1.5, want whole number`},
		{`"mtu":67`, `key "mtu" is 67, want 0 or 68 to 65535`},
		{`"num_queues":-1`, `key "num_queues" is -1`},
		{`"nodename":7`, `key "nodename" has the type number, want string`},
		{`"etcd_key_file":"key"`, `key "etcd_key_file" is "key", want an absolute path`},
		{`"etcd_ca_cert_file":"../ca"`, `key "etcd_ca_cert_file" is "../ca", want an absolute path`},
		{`"etcd_endpoints":["http://a"]`, `key "etcd_endpoints" has the type array, want string`},
		{`"nodename_file_optional":"true"`, `key "nodename_file_optional" has the type string, want bool`},
		{`"ipam":"muslin-ipam"`, `key "ipam" has the type string, want object`},
		{`"ipam":{"type":"../host-local"}`, `key "ipam.type" is "../host-local"`},
		{`"policy_setup_timeout_seconds":-1`, `key "policy_setup_timeout_seconds" is -1`},
		{`"readiness_gates":"http://a"`, `key "readiness_gates" has the type string, want array`},
		{`"log_file_max_size":"100"`, `key "log_file_max_size" has the type string, want whole number`},
		{`"ipam":{"type":""}`, `key "ipam.type" is ""`},
		{`"ipam":{"type":"muslin-ipam","assign_ipv4":"yes"}`, `key "ipam.assign_ipv4" is yes`},
		{`"ipam":{"type":"muslin-ipam","assign_ipv6":[]}`, `key "ipam.assign_ipv6" is []`},
		{`"ipam":{"type":"muslin-ipam","assign_ipv4":"false"}`, `key "ipam.assign_ipv4" is false`},
		{`"ipam":{"type":"muslin-ipam","ipv4_pools":"10.0.0.0/8"}`, `key "ipam.ipv4_pools" has the type string, want array`},
		{`"ipam":{"type":"muslin-ipam","ipv4_pools":["fd00::/64"]}`, `key "ipam.ipv4_pools" holds "fd00::/64"`},
		{`"ipam":{"type":"muslin-ipam","ipv6_pools":["10.0.0.0/8"]}`, `key "ipam.ipv6_pools" holds "10.0.0.0/8"`},
		{`"policy":{"type":"none"}`, `key "policy.type" is "none"`},
		{`"policy_wait":"never"`, `key "policy_wait" is "never"`},
		{`"datastore_type":"kubernetes"`, `key "datastore_type" is "kubernetes"`},
		{`"container_settings":{"allow_ip_forwarding":1}`, `key "container_settings.allow_ip_forwarding" has the type number, want bool`},
		{`"args":{"cni":{"labels":{"a":"b"}}}`, `key "args.cni.labels" has the type object, want array`},
		{`"runtimeConfig":{"io.kubernetes.cri.pod-annotations":[]}`, `key "runtimeConfig.io.kubernetes.cri.pod-annotations" has the type array, want object`},
	} {
		_, err := Parse([]byte(`{"name":"n","ipam":{"type":"muslin-ipam"},` + c.member + `}`))
		var told *attach.Error
		if !errors.As(err, &told) || told.Code != attach.CodeBadConfig || !strings.Contains(told.Msg, c.says) {
			t.Errorf("%s: got %v, want code %d with %q", c.member, err, attach.CodeBadConfig, c.says)
		}
	}
}

func TestParseModuleIgnoresAForeignPluginsKeys(t *testing.T) {
	got, err := ParseModule([]byte(`{"name":"n","type":"bridge","mtu":"big","policy_wait":7,"args":[],"ipam":{"type":"muslin-ipam"}}`))
	if err != nil || got.Type != "bridge" || got.Muslin != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRequestTakesThePodFromTheArguments(t *testing.T) {
	conf, err := Parse([]byte(`{"name":"n","ipam":{"type":"muslin-ipam","assign_ipv6":"true"},"args":{"cni":{"labels":[{"key":"a","value":"1"},{"key":"b","value":"2"}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	base := attach.Request{
		Version: attach.Version, Verb: attach.Add, Network: "n", ContainerID: "0123456789abcdef", IfName: "eth0", AssignIPv4: true, AssignIPv6: true,
		Labels: attach.Strings{"a": "1", "b": "2"},
	}
	for _, c := range []struct {
		args, hostIf string
		pod          attach.Pod
	}{
		{"", "cali0123456789a", attach.Pod{}},
		{"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c;OTHER=x", "calic440f455693", attach.Pod{Namespace: "default", Name: "nginx", UID: "u"}},
		{"K8S_POD_NAME=nginx", "cali0123456789a", attach.Pod{}},
	} {
		want := base
		want.HostIf, want.Pod = c.hostIf, c.pod
		got, err := conf.Request(attach.Add, &skel.CmdArgs{ContainerID: base.ContainerID, IfName: "eth0", Args: c.args})
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.args, diff)
		}
	}
}

func TestRequestRefusesArgumentsItCannotHeed(t *testing.T) {
	conf, err := Parse([]byte(`{"name":"n","ipam":{"type":"muslin-ipam"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"K8S_POD_NAME", "OTHER=x", "IP=10.0.0", "IP=10.0.0.1,10.0.0.2", "IP=10.0.0.1,fd00::1,10.0.0.2", "IP=fe80::1%eth0", "IgnoreUnknown=maybe"} {
		_, err := conf.Request(attach.Add, &skel.CmdArgs{ContainerID: "c", IfName: "eth0", Args: args})
		var told *attach.Error
		if !errors.As(err, &told) || told.Code != attach.CodeBadEnv {
			t.Errorf("%q: got %v, want code %d", args, err, attach.CodeBadEnv)
		}
	}
}

func TestNodeNameComesFromTheFirstSourceThatHasIt(t *testing.T) {
	dir := t.TempDir()
	file, none := filepath.Join(dir, "nodename"), filepath.Join(dir, "none")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		node Node
		want string // "": an error
	}{
		{Node{Nodename: "key", NodenameFile: file, Hostname: "old"}, "key"},
		{Node{NodenameFile: file, Hostname: "old"}, "from-file"},
		{Node{NodenameFile: none, NodenameFileOptional: true, Hostname: "old"}, "old"},
		{Node{NodenameFile: none, NodenameFileOptional: true}, strings.ToLower(host)},
		{Node{NodenameFile: none}, ""},
		{Node{NodenameFile: none, Nodename: "key"}, ""}, // the file also says that the agent has started
	} {
		got, err := c.node.Name()
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: got %q, %v, want %q", c.node, got, err, c.want)
		}
	}
}

func TestPodMTUComesFromTheKeyElseTheFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad, none := write("good", "1400\n"), write("bad", "-7"), filepath.Join(dir, "none")
	long := write("long", "1400"+strings.Repeat("\n", 100)+"more")
	for _, c := range []struct {
		conf Conf
		file string
		want int
		ok   bool
	}{
		{Conf{MTU: 1300}, good, 1300, true},
		{Conf{}, good, 1400, true},
		{Conf{}, none, 0, true},
		{Conf{RequireMTUFile: true}, none, 0, false},
		{Conf{}, bad, 0, false},
		{Conf{}, long, 0, false},
		{Conf{}, dir, 0, false},
	} {
		got, err := c.conf.PodMTU(c.file)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("key %d, file %s: got %d, %v, want %d", c.conf.MTU, c.file, got, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everyKey))
	f.Add([]byte(`{"ipam":{"assign_ipv4":{"a":[]}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := Parse(b)
		var told *attach.Error
		if err != nil && !errors.As(err, &told) {
			t.Errorf("an error without a code: %v", err)
		}
	})
}

// FuzzRequest checks that arguments of any kind end in a request or in an error with a code.
func FuzzRequest(f *testing.F) {
	for _, args := range []string{
		"", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web", "IgnoreUnknown=1;X=y;IP=10.0.0.1,fd00::1", "CommonArgs=1", "IP=1;IP=2", "=;=", "IgnoreUnknown=perhaps", "K8S_POD_NAME==",
	} {
		f.Add(args)
	}
	f.Fuzz(func(t *testing.T, args string) {
		req, err := (&Conf{}).Request(attach.Add, &skel.CmdArgs{ContainerID: "c1", IfName: "eth0", Args: args})
		var told *attach.Error
		switch {
		case err != nil && (!errors.As(err, &told) || told.Code != attach.CodeBadEnv || told.Details == ""):
			t.Fatalf("%q: %v, want code 4 and a remedy", args, err)
		case err == nil && (req.HostIf == "" || len(req.HostIf) > 15 || len(req.Wanted) > 2):
			t.Fatalf("%q: %+v", args, req)
		}
	})
}

// FuzzPrevResult checks that what a runtime passes on ends in a result or in an error with a code.
func FuzzPrevResult(f *testing.F) {
	for _, stdin := range []string{
		`{`, `{}`, `{"prevResult":null}`, `{"cniVersion":"0.4.0","prevResult":{"ips":[{"version":"4","address":"10.0.0.1/32","interface":-1}],"routes":[{"dst":"0.0.0.0/0"}]}}`,
		`{"cniVersion":"1.1.0","prevResult":{"cniVersion":"1.1.0","interfaces":[null]}}`, `{"cniVersion":"1.1.0","prevResult":{"ips":[null]}}`,
		`{"cniVersion":"0.4.0","prevResult":{"ips":[null]}}`, `{"cniVersion":"0.3.1","prevResult":{"interfaces":[null]}}`, `{"cniVersion":"1.0.0","prevResult":{"routes":[null]}}`,
		`{"cniVersion":"1.0.0","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"fd00::1/128","interface":7}]},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`,
		`{"cni.dev/valid-attachments":null}`, `{"cni.dev/valid-attachments":[{}]}`,
	} {
		f.Add([]byte(stdin))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		result, err := PrevResult(stdin)
		if err == nil && (slices.Contains(result.Interfaces, nil) || slices.Contains(result.IPs, nil) || slices.Contains(result.Routes, nil)) {
			t.Fatalf("%q: %v holds nil", stdin, result)
		}
		_, err2 := ValidAttachments(stdin)
		for _, err := range []error{err, err2} {
			var told *attach.Error
			if err != nil && !errors.As(err, &told) {
				t.Fatalf("%q: %v has no code", stdin, err)
			}
		}
	})
}
