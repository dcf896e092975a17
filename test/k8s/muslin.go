package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/authority"
)

// What Muslin's pools are, unless a cluster asks for others.
const (
	podsV4 = "192.168.0.0/16"
	podsV6 = "fd00:192:168::/48"
)

// system is the namespace that the manifest puts Muslin into.
const system = "kube-system"

// muslin is how Muslin is put onto a cluster: by its manifest, with the images of `make image`.
type muslin struct {
	Dist      string            // folder of the images
	DualStack bool              // pods have IPv6 too
	VXLAN     string            // mode of the pools; "": Always
	Env       map[string]string // more for the agents
}

// archives are the images' files in Dist; a node's state folder has them too, so that a node that lost everything gets them when it boots.
func archives() []string {
	return []string{"muslin-node.tar", "muslin-controllers.tar", "muslin-ctl.tar"}
}

// install applies Muslin's manifest, or one with newer images over an older one, and returns when all nodes and all of Muslin are ready.
func (c *cluster) install(ctx context.Context, m muslin) error {
	tag, err := c.importImages(ctx, m)
	if err != nil {
		return fmt.Errorf("import Muslin's images: %w", err)
	}
	overlay, err := c.writeOverlay(m, tag)
	if err != nil {
		return fmt.Errorf("write overlay of Muslin's manifest: %w", err)
	}
	if _, err := output(c.kubectl(ctx, "apply", "-k", overlay)); err != nil {
		return err
	}
	return c.waitInstalled(ctx)
}

// waitInstalled returns when the nodes can have pods and Muslin's own say that they are well.
func (c *cluster) waitInstalled(ctx context.Context) error {
	for _, what := range []string{"daemonset/muslin-node", "deployment/muslin-controllers", "deployment/muslinctl", "deployment/coredns"} {
		if _, err := output(c.kubectl(ctx, "rollout", "status", "--namespace="+system, "--timeout=5m", what)); err != nil {
			return err
		}
	}
	return waitFor(ctx, 3*time.Minute, "all nodes to be ready", func() error {
		_, err := output(c.kubectl(ctx, "wait", "nodes", "--all", "--for=condition=Ready", "--timeout=1s"))
		return err
	})
}

// importImages gives every node the images, and returns their tag.
func (c *cluster) importImages(ctx context.Context, m muslin) (tag string, err error) {
	for _, n := range c.nodes() {
		for _, archive := range archives() {
			if err := replaceFile(filepath.Join(c.nodeDir(n.Name), "images", archive), filepath.Join(m.Dist, archive)); err != nil {
				return "", fmt.Errorf("%w (make image makes it)", err)
			}
			said, err := output(c.onNode(ctx, n.Name, "ctr", "-n", "k8s.io", "images", "import", "--snapshotter=overlayfs", "/node/images/"+archive))
			if err != nil {
				return "", err
			}
			_, name, _ := strings.Cut(said, "unpacking ") // … docker.io/library/muslin-node:v1 (sha256:…)...done
			name, _, _ = strings.Cut(name, " ")
			tag = name[strings.LastIndex(name, ":")+1:]
		}
	}
	return tag, nil
}

// writeOverlay writes what kustomize makes of Muslin's manifest for this cluster, and returns its folder.
func (c *cluster) writeOverlay(m muslin, tag string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(c.Dir, "overlay")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), os.CopyFS(filepath.Join(dir, "base"), os.DirFS(filepath.Join(root, "deploy", "kubernetes")))); err != nil {
		return "", err
	}
	patches, err := c.patches(m, dir)
	if err != nil {
		return "", err
	}
	var images, changes []any
	for _, archive := range archives() {
		images = append(images, map[string]any{"name": strings.TrimSuffix(archive, ".tar"), "newTag": tag})
	}
	for _, patch := range patches {
		text, err := yaml.Marshal(patch)
		if err != nil {
			return "", err
		}
		changes = append(changes, map[string]any{"patch": string(text)})
	}
	overlay, err := yaml.Marshal(map[string]any{
		"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
		"resources": []string{"base", "base/muslinctl.yaml"}, "images": images, "patches": changes,
	})
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), overlay, 0o644)
}

// object is one of Kubernetes, as far as it is to be changed.
type object = map[string]any

// patches are what an operator fills in: where etcd is, the certificates for it, and what pods shall have.
func (c *cluster) patches(m muslin, dir string) ([]object, error) {
	certificates, err := c.etcdSecret(c.etcdClientDir())
	if err != nil {
		return nil, err
	}
	data := map[string]string{
		"etcd_endpoints": "https://" + controlIP + ":2379",
		"etcd_ca":        "/calico-secrets/" + authority.CAFile, "etcd_cert": "/calico-secrets/" + authority.CertFile, "etcd_key": "/calico-secrets/" + authority.KeyFile,
	}
	if m.DualStack {
		if data["cni_network_config"], err = dualStackConfig(filepath.Join(dir, "base", "muslin.yaml")); err != nil {
			return nil, err
		}
	}
	var env []any
	for name, value := range agentEnv(m) {
		env = append(env, object{"name": name, "value": value})
	}
	slices.SortFunc(env, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	agent := object{"containers": []any{object{"name": "muslin-node", "env": env}}}
	return []object{
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": named("muslin-config"), "data": data},
		certificates,
		{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": named("muslin-node"), "spec": object{"template": object{"spec": agent}}},
	}, nil
}

func named(name string) object { return object{"name": name, "namespace": system} }

// etcdSecret is the Secret with the certificates of a folder.
func (c *cluster) etcdSecret(dir string) (object, error) {
	data := make(map[string]string)
	for _, file := range []string{authority.CAFile, authority.CertFile, authority.KeyFile} {
		content, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		data[file] = base64.StdEncoding.EncodeToString(content)
	}
	return object{"apiVersion": "v1", "kind": "Secret", "metadata": named("muslin-etcd-secrets"), "data": data}, nil
}

// dualStackConfig is the plugins' configuration of the manifest with addresses of both families asked for.
func dualStackConfig(manifest string) (string, error) {
	text, err := os.ReadFile(manifest)
	if err != nil {
		return "", err
	}
	const one, both = `{"type": "muslin-ipam"}`, `{"type": "muslin-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}`
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var o struct {
			Kind string            `json:"kind"`
			Data map[string]string `json:"data"`
		}
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			return "", err
		}
		if o.Kind == "ConfigMap" && strings.Contains(o.Data["cni_network_config"], one) {
			return strings.Replace(o.Data["cni_network_config"], one, both, 1), nil
		}
	}
	return "", fmt.Errorf("%s does not configure %s", manifest, one)
}

// agentEnv are the agents' variables in which this cluster differs from the manifest.
func agentEnv(m muslin) map[string]string {
	mode := m.VXLAN
	if mode == "" {
		mode = "Always"
	}
	env := map[string]string{"CALICO_IPV4POOL_CIDR": podsV4, "CALICO_IPV4POOL_VXLAN": mode}
	if m.DualStack {
		maps.Copy(env, map[string]string{"FELIX_IPV6SUPPORT": "true", "IP6": "autodetect",
			"CALICO_IPV6POOL_CIDR": podsV6, "CALICO_IPV6POOL_VXLAN": mode, "CALICO_IPV6POOL_NAT_OUTGOING": "true"})
	}
	maps.Copy(env, m.Env)
	return env
}

// agentVersion is the version of the agents that run.
func (c *cluster) agentVersion(ctx context.Context) (string, error) {
	version, err := output(c.kubectl(ctx, "exec", "--namespace="+system, "daemonset/muslin-node", "--", "/usr/bin/muslin-node", "--version"))
	return strings.TrimSpace(version), err
}

// muslinctl is the operator's command in the image, where the manifest mounts it its certificates.
func (c *cluster) muslinctl(ctx context.Context, args ...string) (*exec.Cmd, error) {
	return c.kubectl(ctx, append([]string{"exec", "--namespace=" + system, "--stdin", "deployment/muslinctl", "--", "/calicoctl"}, args...)...)
}

// restart ends a service of a node, which the node then starts again. It returns when the old one is gone; one that does not run is no error.
func (c *cluster) restart(ctx context.Context, node, service string) error {
	const script = `read -r pid 2>/dev/null </run/services/$0.pid || exit 0; kill -TERM "$pid" 2>/dev/null || exit 0; while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done`
	_, err := output(c.onNode(ctx, node, "sh", "-c", script, service))
	return err
}

// killAgent kills a node's agent as the kernel does when memory is short. The kubelet starts it again.
func (c *cluster) killAgent(ctx context.Context, node string) error {
	const script = `for exe in /proc/[0-9]*/exe; do if [ "$(readlink "$exe")" = /usr/bin/muslin-node ]; then pid=${exe#/proc/}; exec kill -KILL "${pid%/exe}"; fi; done; exit 1`
	_, err := output(c.onNode(ctx, node, "sh", "-c", script))
	return err
}

// replaceFile copies a file such that whoever opens the copy sees the old one or the new one, whole.
func replaceFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	next, err := os.Create(filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".next"))
	if err != nil {
		return err
	}
	if _, err := io.Copy(next, in); err != nil {
		return errors.Join(err, next.Close())
	}
	return errors.Join(next.Close(), os.Rename(next.Name(), to))
}
