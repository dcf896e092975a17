package deploy

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the manifests from the chart")

const heading = "# Made of deploy/helm/muslin by `make golden`: change the chart.\n"

// plain takes helm's own remarks out of what it has rendered.
func plain(text string) string {
	var b strings.Builder
	b.WriteString(heading)
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "# Source: ") {
			b.WriteString(strings.TrimRight(line, " \n") + "\n")
		}
	}
	return b.String()
}

func TestGoldenManifestsAreTheChart(t *testing.T) {
	for name, args := range map[string][]string{
		"muslin.yaml":    {"-f", "deploy/helm/manifest-values.yaml"},
		"uninstall.yaml": {"-f", "deploy/helm/manifest-values.yaml", "--set", "uninstall.enabled=true", "--show-only", "templates/uninstall.yaml"},
		"muslinctl.yaml": {"-f", "deploy/helm/manifest-values.yaml", "--set", "ctl.enabled=true", "--show-only", "templates/muslinctl.yaml"},
	} {
		text, err := rendered(args...)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, "deploy/kubernetes", name)
		if *update {
			if err := os.WriteFile(path, []byte(plain(text)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(plain(text), string(have)); diff != "" {
			t.Errorf("%s is not what the chart says; make golden (-chart +file):\n%s", name, diff)
		}
	}
}

// documents are the objects of a manifest, by kind and name.
func documents(t *testing.T, text string) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for _, doc := range strings.Split("\n"+text, "\n---") {
		var o map[string]any
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o == nil {
			continue
		}
		meta, _ := o["metadata"].(map[string]any)
		name, _ := meta["name"].(string)
		kind, _ := o["kind"].(string)
		if _, twice := out[kind+" "+name]; twice || name == "" || kind == "" {
			t.Errorf("%s %q is there twice, or is not named", kind, name)
		}
		out[kind+" "+name] = o
	}
	return out
}

func file(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestKustomizeYieldsTheSameObjects(t *testing.T) {
	text, err := tool("kustomize", "build", "deploy/kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(documents(t, file(t, "kubernetes/muslin.yaml")), documents(t, text)); diff != "" {
		t.Errorf("(-manifest +kustomize):\n%s", diff)
	}
}

func TestOverlayReplacesWhereEtcdIs(t *testing.T) {
	dir, err := os.MkdirTemp(filepath.Join(root, "test/deploy"), "overlay-") // kustomize wants a relative base
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	overlay := `{resources: [../../../deploy/kubernetes], patches: [{patch: '{apiVersion: v1, kind: ConfigMap, metadata: {name: muslin-config, namespace: kube-system}, data: {etcd_endpoints: "https://10.0.0.1:2379"}}'}]}`
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o644); err != nil {
		t.Fatal(err)
	}
	text, err := tool("kustomize", "build", filepath.Join("test/deploy", filepath.Base(dir)))
	if err != nil || !strings.Contains(text, "etcd_endpoints: https://10.0.0.1:2379") || !strings.Contains(text, "veth_mtu:") {
		t.Errorf("%v:\n%s", err, text)
	}
}

func TestSchemaRefusesWhatCannotWork(t *testing.T) {
	const good = "etcd.endpoints=https://10.0.0.1:2379"
	if _, err := rendered("--set", good); err != nil {
		t.Errorf("the least that works: %v", err)
	}
	for _, c := range []struct {
		values []string
		says   string
	}{
		{nil, "endpoints"},
		{[]string{"etcd.endpoints=10.0.0.1:2379"}, "endpoints"},
		{[]string{good, "nodes.env.IP=autodetect"}, "nodes"},
		{[]string{good, "backend=ospf"}, "backend"},
		{[]string{good, "mtu=100"}, "mtu"},
		{[]string{good, "node.env.FELIX_IPV6SUPPORT=false"}, "FELIX_IPV6SUPPORT"}, // a variable is text
		{[]string{good, "controllers.replicas=0"}, "replicas"},
		{[]string{good, "node.cniConfName=10-muslin.conf"}, "cniConfName"},
		{[]string{good, "etcd.tls.enabled=true"}, "etcd.tls.ca"},
	} {
		var args []string
		for _, v := range c.values {
			args = append(args, "--set", v)
		}
		if _, err := rendered(args...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v, want a word on %s", c.values, err, c.says)
		}
	}
}

func TestValuesReachWhatTheyAreFor(t *testing.T) {
	text, err := rendered("--set", "etcd.endpoints=https://10.0.0.1:2379,etcd.tls.enabled=true,etcd.tls.ca=CA,ctl.enabled=true,image.prefix=example.org/net/muslin,image.tag=v9",
		"--set", "image.pullSecrets={a},node.cniBinDir=/usr/libexec/cni,node.skipPrograms=portmap,node.nodeSelector.a=b",
		"--set-json", "node.passwordSecrets=[]", "--set-string", "node.env.CLUSTER_TYPE=,node.env.CALICO_IPV4POOL_CIDR=10.1.0.0/16,controllers.env.LOG_LEVEL=debug")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`etcd_ca: "/calico-secrets/etcd-ca"`, "etcd-ca: Q0E=", "image: example.org/net/muslin-node:v9", "image: example.org/net/muslin-controllers:v9", "image: example.org/net/muslin-ctl:v9",
		"- name: a\n", "path: /usr/libexec/cni", "value: \"portmap\"", "a: b", "value: \"10.1.0.0/16\"", "value: \"debug\"", "value: \"autodetect\"",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q", want)
		}
	}
	docs := documents(t, text)
	if _, there := docs["Role muslin-node"]; there || strings.Contains(text, "CLUSTER_TYPE") {
		t.Error("what was emptied is still there")
	}
	var kinds []string
	for name := range docs {
		kinds = append(kinds, name)
	}
	if !slices.Contains(kinds, "Deployment muslinctl") {
		t.Errorf("there is no muslinctl: %q", kinds)
	}
}
