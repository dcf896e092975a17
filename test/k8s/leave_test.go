package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// agentsKnowTheirPods holds that agents take what they must know of pods from what they follow, and seldom ask the API server for one.
func (w world) agentsKnowTheirPods() {
	counted := map[string]int{}
	for _, n := range w.nodes() {
		text, err := output(w.onNode(w.Context(), n.Name, "curl", "-gsS", "--max-time", "5", "http://127.0.0.1:9091/metrics"))
		if err != nil {
			w.Fatal(err)
		}
		for _, from := range []string{"memory", "api-server"} {
			_, after, _ := strings.Cut(text, fmt.Sprintf("muslin_pod_facts_total{from=%q} ", from))
			value, _, _ := strings.Cut(after, "\n")
			count, err := strconv.Atoi(value)
			if err != nil {
				w.Fatalf("%s does not count pods that are known from %s: %v", n.Name, from, err)
			}
			counted[from] += count
		}
	}
	w.Logf("pods whose facts came from: %v", counted)
	if counted["memory"] <= counted["api-server"] {
		w.Errorf("facts of pods came from %v, want most of them from memory", counted)
	}
}

// takenOff ends Muslin on this cluster, by its manifest: first with a pod that is still attached, for which its host waits, then without.
func (w world) takenOff() {
	w.kubectl("delete", "daemonsets,deployments,pods", "--all", "--wait")
	w.kubectl("scale", "deployment/coredns", "--namespace="+system, "--replicas=0")
	w.apply(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: last}, spec: {nodeName: node2, terminationGracePeriodSeconds: 0, containers: [{name: web, image: %s, args: [netexec]}]}}`, ownImage))
	w.kubectl("wait", "pod/last", "--for=condition=Ready", "--timeout=120s")
	w.eventually("all pods but one to end", func() error {
		var attached []string
		for line := range strings.Lines(w.kubectl("get", "pods", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.hostNetwork}{"\n"}{end}`)) {
			if name, onHost, _ := strings.Cut(strings.TrimSpace(line), " "); onHost != "true" {
				attached = append(attached, name)
			}
		}
		if len(attached) != 1 || attached[0] != "last" {
			return fmt.Errorf("there are %v", attached)
		}
		return nil
	})
	image := w.kubectl("get", "daemonset/muslin-node", "--namespace="+system, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	w.kubectl("delete", "daemonset/muslin-node", "deployment/muslin-controllers", "--namespace="+system, "--wait", "--cascade=foreground")
	w.apply(w.uninstaller(image))
	w.eventually("two hosts to be clean, and one to wait for its pod", func() error {
		return w.uninstalled("2")
	})
	if logs := w.kubectl("logs", "--namespace="+system, "-l", "k8s-app=muslin-uninstall", "-c", "uninstall", "--tail=-1", "--prefix"); !strings.Contains(logs, "1 pods are attached") {
		w.Errorf("nobody says what is waited for: %s", logs)
	}
	w.kubectl("delete", "pod/last", "--wait")
	w.eventually("all hosts to be clean", func() error { return w.uninstalled(strconv.Itoa(len(w.nodes()))) })
	w.kubectl("delete", "daemonset/muslin-uninstall", "--namespace="+system, "--wait", "--cascade=foreground")
	for _, n := range w.nodes() {
		w.nothingOfOurs(n.Name)
	}
}

// uninstaller is the manifest that takes Muslin off, with the image that the cluster has.
func (w world) uninstaller(image string) string {
	root, err := moduleRoot()
	if err != nil {
		w.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "deploy", "kubernetes", "uninstall.yaml"))
	if err != nil {
		w.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "image: ")
	written, _, _ := strings.Cut(after, "\n")
	return strings.ReplaceAll(string(text), "image: "+written+"\n", "image: "+image+"\n")
}

// uninstalled holds that so many hosts are clean, as Kubernetes sees it.
func (w world) uninstalled(want string) error {
	if ready := w.kubectl("get", "daemonset/muslin-uninstall", "--namespace="+system, "-o", "jsonpath={.status.numberReady}"); ready != want {
		return fmt.Errorf("%s are, want %s", ready, want)
	}
	return nil
}

// nothingOfOurs looks for what an agent or a plugin makes on a host.
func (w world) nothingOfOurs(node string) {
	w.Helper()
	for what, line := range map[string]string{
		"routes":   "ip route show proto 80; ip -6 route show proto 80",
		"devices":  "ip -o link | grep -E 'cali|vxlan' || true",
		"sets":     "ipset list -n | grep cali || true",
		"rules":    "for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $p-save 2>/dev/null | grep cali || true; done",
		"policy":   "nft list tables | grep muslin || true",
		"files":    "find /run/muslin /etc/cni/net.d /var/lib/calico /var/log/calico -type f",
		"programs": "ls /opt/cni/bin | grep -E 'muslin|calico' || true",
	} {
		if got, err := output(w.onNode(w.Context(), node, "sh", "-c", line)); err != nil || strings.TrimSpace(got) != "" {
			w.Errorf("%s of ours are left on %s: %s (%v)", what, node, got, err)
		}
	}
}
