package main

import (
	"context"
	"encoding/json"
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

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/authority"
)

// What Muslin's pools are, unless a cluster asks for others.
const (
	podsV4 = "192.168.0.0/16"
	podsV6 = "fd00:192:168::/48"
)

// kubeconfigOnNode is where a node has what Muslin needs to reach the API server.
const kubeconfigOnNode = "/etc/cni/net.d/calico-kubeconfig"

// muslin is how Muslin is put onto a cluster by hand, without its manifest and images: as programs on each node.
type muslin struct {
	Bin       string            // folder of the programs
	DualStack bool              // pods have IPv6 too
	VXLAN     string            // mode of the pools; "": Always
	Env       map[string]string // more for the agents
}

// install puts Muslin onto every node, or puts newer programs in the place of older ones, and returns when all nodes are ready. Pods go on running meanwhile.
func (c *cluster) install(ctx context.Context, m muslin) error {
	for _, n := range c.nodes() {
		if err := c.installNode(ctx, n, m); err != nil {
			return fmt.Errorf("install Muslin on %s: %w", n.Name, err)
		}
	}
	if err := c.installControllers(ctx, m); err != nil {
		return fmt.Errorf("install Muslin's controllers: %w", err)
	}
	return waitFor(ctx, 3*time.Minute, "all nodes to be ready", func() error {
		_, err := output(c.kubectl(ctx, "wait", "nodes", "--all", "--for=condition=Ready", "--timeout=1s"))
		return err
	})
}

// installNode goes in the order of an installer: programs, agent, and once that serves, the configuration that makes the node ready.
func (c *cluster) installNode(ctx context.Context, n node, m muslin) error {
	dir := c.nodeDir(n.Name)
	for _, program := range []string{"muslin", "muslin-ipam"} {
		if err := replaceFile(filepath.Join(dir, "cni-bin", program), filepath.Join(m.Bin, program), 0o755); err != nil {
			return err
		}
	}
	for _, file := range []string{authority.CAFile, authority.CertFile, authority.KeyFile} {
		if err := replaceFile(filepath.Join(dir, "cni-conf", "calico-tls", file), filepath.Join(c.etcdClientDir(), file), 0o600); err != nil {
			return err
		}
	}
	if err := errors.Join(
		replaceFile(filepath.Join(dir, "cni-conf", "calico-kubeconfig"), c.kubeconfig(), 0o600),
		replaceFile(filepath.Join(dir, "muslin", "muslin-node"), filepath.Join(m.Bin, "muslin-node"), 0o755),
		replaceFile(filepath.Join(dir, "muslin", "muslinctl"), filepath.Join(m.Bin, "muslinctl"), 0o755),
		writeFile(filepath.Join(dir, "services", "muslin-node"), agentScript(n, m), 0o755),
	); err != nil {
		return err
	}
	if err := c.restart(ctx, n.Name, "muslin-node"); err != nil {
		return err
	}
	if err := waitFor(ctx, time.Minute, "the agent to serve", func() error {
		_, err := output(c.onNode(ctx, n.Name, "test", "-S", attach.Socket))
		return err
	}); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "cni-conf", "10-muslin.conflist"), conflist(n, m), 0o600)
}

// etcdEnv is how to reach etcd from a node.
func etcdEnv() map[string]string {
	const certificates = "/etc/cni/net.d/calico-tls/"
	return map[string]string{
		"ETCD_ENDPOINTS":    "https://" + controlIP + ":2379",
		"ETCD_CA_CERT_FILE": certificates + authority.CAFile,
		"ETCD_CERT_FILE":    certificates + authority.CertFile,
		"ETCD_KEY_FILE":     certificates + authority.KeyFile,
	}
}

// agentScript is the agent as a service of the node.
func agentScript(n node, m muslin) string {
	mode := m.VXLAN
	if mode == "" {
		mode = "Always"
	}
	env := map[string]string{
		"NODENAME": n.Name, "CALICO_K8S_NODE_REF": n.Name, "IP": "autodetect", "CALICO_NETWORKING_BACKEND": "vxlan", "CLUSTER_TYPE": "k8s",
		"CALICO_IPV4POOL_CIDR": podsV4, "CALICO_IPV4POOL_VXLAN": mode, "FELIX_IPV6SUPPORT": fmt.Sprint(m.DualStack), "KUBECONFIG": kubeconfigOnNode,
		"FELIX_HEALTHENABLED": "true", "FELIX_DEFAULTENDPOINTTOHOSTACTION": "ACCEPT",
	}
	if m.DualStack {
		maps.Copy(env, map[string]string{"IP6": "autodetect", "CALICO_IPV6POOL_CIDR": podsV6, "CALICO_IPV6POOL_VXLAN": mode, "CALICO_IPV6POOL_NAT_OUTGOING": "true"})
	}
	maps.Copy(env, etcdEnv())
	maps.Copy(env, m.Env)
	return serviceScript("muslin-node", env)
}

// installControllers runs the controllers on the first node.
func (c *cluster) installControllers(ctx context.Context, m muslin) error {
	env := etcdEnv()
	env["KUBECONFIG"], env["STATUS_FILE"], env["POD_NAMESPACE"], env["POD_NAME"] = kubeconfigOnNode, "/run/muslin-controllers.json", "kube-system", "by-hand"
	dir := c.nodeDir(c.nodes()[0].Name)
	if err := errors.Join(
		replaceFile(filepath.Join(dir, "muslin", "muslin-controllers"), filepath.Join(m.Bin, "muslin-controllers"), 0o755),
		writeFile(filepath.Join(dir, "services", "muslin-controllers"), serviceScript("muslin-controllers", env), 0o755),
	); err != nil {
		return err
	}
	return c.restart(ctx, c.nodes()[0].Name, "muslin-controllers")
}

// serviceScript is a program of Muslin as a service of a node.
func serviceScript(program string, env map[string]string) string {
	var script strings.Builder
	script.WriteString("#!/bin/sh\n")
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&script, "export %s='%s'\n", name, env[name])
	}
	fmt.Fprintf(&script, "exec /node/muslin/%s\n", program)
	return script.String()
}

// conflist is the node's CNI configuration.
func conflist(n node, m muslin) string {
	ipam := map[string]any{"type": "muslin-ipam"}
	if m.DualStack {
		ipam["assign_ipv6"] = "true"
	}
	plugin := map[string]any{
		"type": "muslin", "nodename": n.Name, "nodename_file_optional": true, "ipam": ipam,
		"policy": map[string]any{"type": "k8s"}, "kubernetes": map[string]any{"kubeconfig": kubeconfigOnNode},
	}
	for name, value := range etcdEnv() {
		plugin[strings.ToLower(name)] = value
	}
	portmap := map[string]any{"type": "portmap", "snat": true, "capabilities": map[string]any{"portMappings": true}}
	bandwidth := map[string]any{"type": "bandwidth", "capabilities": map[string]any{"bandwidth": true}}
	list, _ := json.MarshalIndent(map[string]any{ // strings and maps of them always encode
		"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": []any{plugin, portmap, bandwidth},
	}, "", "  ")
	return string(list) + "\n"
}

// restart ends a service of a node, which the node then starts again. It returns when the old one is gone; one that does not run is no error.
func (c *cluster) restart(ctx context.Context, node, service string) error {
	return c.signal(ctx, node, service, "TERM")
}

// signal is restart by another signal than TERM.
func (c *cluster) signal(ctx context.Context, node, service, signal string) error {
	const script = `read -r pid 2>/dev/null </run/services/$0 || exit 0; kill -$1 "$pid" 2>/dev/null || exit 0; while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done`
	_, err := output(c.onNode(ctx, node, "sh", "-c", script, service, signal))
	return err
}

// muslinctl is muslinctl on the first node, with its certificates.
func (c *cluster) muslinctl(ctx context.Context, args ...string) (*exec.Cmd, error) {
	node := c.nodes()[0].Name
	cmd, err := c.onNode(ctx, node, append([]string{"/node/muslin/muslinctl"}, args...)...)
	if err != nil {
		return nil, err
	}
	for name, value := range etcdEnv() {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, "NODENAME="+node, "DATASTORE_TYPE=etcdv3")
	return cmd, nil
}

// replaceFile copies a file such that whoever opens the copy sees the old one or the new one, whole.
func replaceFile(to, from string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	content, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	return writeFile(to, string(content), mode)
}

func writeFile(to, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".next")
	if err := os.WriteFile(next, []byte(content), mode); err != nil {
		return err
	}
	return os.Rename(next, to)
}
