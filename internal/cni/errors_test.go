package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
)

// call is one ADD as a runtime makes it, for a test to spoil.
type call struct {
	stdin map[string]any
	raw   string // in the place of stdin, if not ""
	env   map[string]string
}

// TestEveryFailureHasItsCodeItsObjectAndARemedy goes through what users and operators can do wrong.
func TestEveryFailureHasItsCodeItsObjectAndARemedy(t *testing.T) {
	t.Parallel()
	const pool = "/calico/resources/v3/projectcalico.org/ippools/blue"
	const cluster = "/calico/resources/v3/projectcalico.org/clusterinformations/default"
	type world struct {
		*testing.T
		n *node
		d *datastore
		p *pod
		c *call
	}
	for _, c := range []struct {
		name  string
		spoil func(w world)
		code  uint
		says  string
		bare  bool // the CNI library says it, which knows no remedy
	}{
		{"configuration is no JSON", func(w world) { w.c.raw = "{" }, attach.CodeDecode, "JSON", true},
		{"network has no name", func(w world) { delete(w.c.stdin, "name") }, attach.CodeBadConfig, "missing network name", true},
		{"network's name is bad", func(w world) { w.c.stdin["name"] = "a b" }, attach.CodeBadConfig, "invalid characters found in network name", true},
		{"key of a wrong type", func(w world) { w.c.stdin["mtu"] = "big" }, attach.CodeBadConfig, `"mtu" has the type string`, false},
		{"MTU out of range", func(w world) { w.c.stdin["mtu"] = 7 }, attach.CodeBadConfig, `"mtu" is 7`, false},
		{"unknown IPAM", func(w world) { w.c.stdin["ipam"] = map[string]any{"type": ""} }, attach.CodeBadConfig, `"ipam.type"`, false},
		{"no family", func(w world) {
			w.c.stdin["ipam"] = map[string]any{"type": "muslin-ipam", "assign_ipv4": "false"}
		}, attach.CodeBadConfig, `"ipam.assign_ipv4"`, false},
		{"unknown pool", func(w world) {
			w.c.stdin["ipam"] = map[string]any{"type": "muslin-ipam", "ipv4_pools": []string{"red"}}
		}, attach.CodeBadConfig, "red", false},
		{"another datastore", func(w world) { w.c.stdin["datastore_type"] = "kubernetes" }, attach.CodeBadConfig, `"datastore_type" is "kubernetes"`, false},
		{"bad CNI_ARGS", func(w world) { w.c.env["CNI_ARGS"] = "K8S_POD_NAME" }, attach.CodeBadEnv, "read CNI_ARGS", false},
		{"no container", func(w world) { delete(w.c.env, "CNI_CONTAINERID") }, attach.CodeBadEnv, "CNI_CONTAINERID", true},
		{"bad container", func(w world) { w.c.env["CNI_CONTAINERID"] = "a/b" }, attach.CodeBadEnv, "invalid characters in containerID", true},
		{"pod's name with a slash", func(w world) { w.c.env["CNI_ARGS"] = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a/b" }, attach.CodeBadEnv, `K8S_POD_NAME is "a/b"`, false},
		{"interface name too long", func(w world) { w.c.env["CNI_IFNAME"] = "a234567890123456" }, attach.CodeBadEnv, "interface name is too long", true},
		{"no namespace", func(w world) { w.c.env["CNI_NETNS"] = "/run/netns/none" }, attach.CodeBadEnv, "/run/netns/none", false},
		{"namespace is a file", func(w world) { w.c.env["CNI_NETNS"] = "/etc/hostname" }, attach.CodeBadEnv, "/etc/hostname", false},
		{"host's own namespace", func(w world) { w.c.env["CNI_NETNS"] = w.n.Path() }, attach.CodeBadEnv, "the host's own", false},
		{"interface is there and not ours", func(w world) { w.p.Exec("ip", "link", "add", "eth0", "type", "bridge") }, attach.CodeKernel, "interface eth0", false},
		{"no agent", func(w world) { delete(w.c.stdin, "policy_wait") }, attach.CodeTryAgain, "agent is not running on this node", false},
		{"no module", func(w world) { w.c.env["CNI_PATH"] = w.TempDir() }, attach.CodeBadEnv, `find IPAM module "muslin-ipam"`, false},
		{"no node name", func(w world) {
			delete(w.c.stdin, "nodename_file_optional")
		}, attach.CodeTryAgain, "/var/lib/calico/nodename", false},
		{"no etcd in the configuration", func(w world) { delete(w.c.stdin, "etcd_endpoints") }, attach.CodeBadConfig, "no etcd endpoints specified", false},
		{"etcd away", func(w world) { w.d.Stop() }, attach.CodeDatastore, "etcd cannot be reached", false},
		{"datastore locked", func(w world) { w.d.edit(cluster, `"datastoreReady":true`, `"datastoreReady":false`) }, attach.CodeTryAgain, "not ready", false},
		{"node unknown", func(w world) { w.c.stdin["nodename"] = "node-7" }, attach.CodeTryAgain, "node-7", false},
		{"no pool", func(w world) { w.d.put(pool, "") }, attach.CodeNoAddress, "pool", false},
		{"pools exhausted", func(w world) {
			w.d.put(pool, strings.Replace(seed[pool], `"10.244.0.0/16"`, `"10.244.0.0/30","blockSize":30`, 1))
			for i := range 4 {
				w.n.mustAdd(w.d.conf(noWait), newPod(w.T, fmt.Sprintf("full-%d", i), fmt.Sprintf("full-%d", i)))
			}
		}, attach.CodeNoAddress, "blue", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			w := world{T: t, n: n, d: newDatastore(n), p: newPod(t, "c1", "")}
			w.c = &call{env: map[string]string{
				"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": w.p.Path(), "CNI_IFNAME": "eth0", "CNI_PATH": os.Getenv(binEnv),
				"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx",
			}}
			if err := json.Unmarshal(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"hc-net","type":"muslin",%s}`, w.d.conf(noWait).members), &w.c.stdin); err != nil {
				t.Fatal(err)
			}
			c.spoil(w)
			before, netnsBefore := n.links(), w.p.Exec("ip", "-o", "link")
			told := w.c.fail(t, n)
			if told.Code != c.code || !strings.Contains(told.Msg+told.Details, c.says) {
				t.Errorf("got code %d, %q, %q; want %d with %q", told.Code, told.Msg, told.Details, c.code, c.says)
			}
			if told.Code == attach.CodeBadConfig && strings.Contains(told.Details, "undone") {
				t.Errorf("%q: %q, though nothing was done", told.Msg, told.Details)
			}
			if !c.bare && told.Details == "" {
				t.Errorf("%q comes without a remedy", told.Msg)
			}
			if got := n.links(); fmt.Sprint(got) != fmt.Sprint(before) || w.p.Exec("ip", "-o", "link") != netnsBefore {
				t.Errorf("left behind: %v, and in the pod\n%s, where was\n%s", got, w.p.Exec("ip", "-o", "link"), netnsBefore)
			}
			if c.name != "etcd away" {
				for _, id := range w.d.handles() {
					if strings.HasSuffix(id, ".c1") {
						t.Errorf("left behind: the handle %s", id)
					}
				}
			}
		})
	}
}

// fail makes the call, which must fail, and returns what the plugin printed.
func (c *call) fail(t *testing.T, n *node) types.Error {
	t.Helper()
	stdin, err := json.Marshal(c.stdin)
	if err != nil {
		t.Fatal(err)
	}
	if c.raw != "" {
		stdin = []byte(c.raw)
	}
	var env []string
	for k, v := range c.env {
		env = append(env, k+"="+v)
	}
	out, err := n.run("muslin", string(stdin), env...)
	if err == nil {
		t.Fatalf("ADD succeeded: %s", out)
	}
	var told types.Error
	if err := json.Unmarshal([]byte(out), &told); err != nil {
		t.Fatalf("ADD printed %q: %v", out, err)
	}
	return told
}
