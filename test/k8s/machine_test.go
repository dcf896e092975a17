package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/authority"
)

// certificatesServe holds that etcd serves nobody without a certificate, so that all who work here have one, and that renewed ones reach agents' hosts and, all
// programs going on, their connections.
func (w world) certificatesServe() {
	ca, err := authority.Open(w.etcdAuthorityDir())
	if err != nil {
		w.Fatal(err)
	}
	renewed, err := ca.Client("client", authority.Forever())
	if err != nil {
		w.Fatal(err)
	}
	const etcd = "https://" + controlIP + ":2379/version"
	if out, err := output(w.command(w.Context(), "curl", "-sS", "--max-time", "5", "--cacert", filepath.Join(w.etcdClientDir(), authority.CAFile), etcd)); err == nil {
		w.Fatalf("etcd answers without a certificate: %s", out)
	}
	if err := ca.Write(w.etcdClientDir(), renewed); err != nil {
		w.Fatal(err)
	}
	secret, err := w.etcdSecret(w.etcdClientDir())
	if err != nil {
		w.Fatal(err)
	}
	text, err := json.Marshal(secret)
	if err != nil {
		w.Fatal(err)
	}
	w.apply(string(text))
	w.eventually("the module's certificate to be the new one on each node", func() error {
		for _, n := range w.nodes() {
			cert, err := os.ReadFile(filepath.Join(w.nodeDir(n.Name), "cni-conf", "calico-tls", authority.CertFile))
			if err != nil {
				return err
			}
			if !slices.Equal(cert, renewed.Cert) {
				return errors.New(n.Name + " has the old one")
			}
		}
		return nil
	})
	w.sixtyPodsComeAndGo()
}

// podsGoWithoutAgents takes all agents away, which leaves pods their network, and then pods: the IPAM module alone frees what they had, by its own certificate.
func (w world) podsGoWithoutAgents() {
	w.startSome(12)
	before := w.endpoints()
	w.kubectl("delete", "daemonset", "muslin-node", "--namespace="+system, "--wait")
	w.eventually("the agents to go", func() error {
		if pods := w.kubectl("get", "pods", "--namespace="+system, "-l", "k8s-app=muslin-node", "-o", "name"); pods != "" {
			return errors.New(pods)
		}
		return nil
	})
	w.podsReachEachOther()
	w.kubectl("delete", "deployment", "some", "--wait")
	w.eventually("the endpoints to go", func() error {
		if got := w.endpoints(); got != before-12 {
			return fmt.Errorf("%d endpoints, want %d", got, before-12)
		}
		return nil
	})
	w.kubectl("apply", "-k", filepath.Join(w.Dir, "overlay"))
	w.eventually("the agents to be back", func() error { return w.waitInstalled(w.Context()) })
	w.podsReachEachOther()
}

// startSome starts a Deployment of that many pods that may run anywhere.
func (w world) startSome(pods int) {
	w.Helper()
	w.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: some}
spec:
  replicas: %d
  selector: {matchLabels: {app: some}}
  template:
    metadata: {labels: {app: some}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: %s, args: [netexec]}]
`, pods, ownImage))
	w.kubectl("rollout", "status", "deployment/some", "--timeout=300s")
}

// pinned are the endpoints of a node, one a line.
func (w world) pinned(node string) []string {
	w.Helper()
	var on []string
	for line := range strings.Lines(w.muslinctl("get", "workloadendpoints", "-A", "-o", "custom-columns=NODE,NAMESPACE,WORKLOAD")) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == node {
			on = append(on, strings.Join(fields[1:], "/"))
		}
	}
	return on
}

// nodeIsDrained empties a node of all but its DaemonSets' pods, and gives it back.
func (w world) nodeIsDrained() {
	w.startSome(12)
	w.drain("node2")
	if left := w.pinned("node2"); len(left) != 1 || !strings.Contains(left[0], "probe") {
		w.Errorf("endpoints of the drained node: %v, want the probe's alone", left)
	}
	w.booksBalance()
	w.kubectl("uncordon", "node2")
	w.kubectl("delete", "deployment", "some", "--wait")
	w.startSome(12)
	w.podsReachEachOther()
}

func (w world) drain(node string) {
	w.Helper()
	w.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s")
	w.eventually("endpoints of "+node+" to go", func() error {
		if left := w.pinned(node); len(left) > 1 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
}

// nodeReboots takes a node's power away and gives it back. Its pods come back with addresses that nobody has, and nobody else's changes.
func (w world) nodeReboots() {
	others := w.besides("node2")
	if err := w.powerOff(w.Context(), "node2"); err != nil {
		w.Fatal(err)
	}
	w.eventually("Kubernetes to miss the node", func() error { return w.readyIs("node2", "Unknown") })
	if err := w.powerOn("node2"); err != nil {
		w.Fatal(err)
	}
	w.eventually("the node to be back", func() error { return w.readyIs("node2", "True") })
	w.settled(others)
}

// nodeIsReplaced gives a node's name to a machine that knows nothing of the old one, which nobody has declared dead. Its agent touches nothing until the
// operator says so.
func (w world) nodeIsReplaced() {
	others, identity := w.besides("node3"), w.identity("node3")
	if err := errors.Join(w.powerOff(w.Context(), "node3"), w.wipe("node3"), w.powerOn("node3")); err != nil {
		w.Fatal(err)
	}
	w.eventually("the new machine's agent to be refused", func() error {
		logs, err := filepath.Glob(filepath.Join(w.nodeDir("node3"), "var/log/pods", system+"_muslin-node*/*/*.log"))
		if err != nil {
			return err
		}
		for _, file := range logs {
			if log, err := os.ReadFile(file); err == nil && strings.Contains(string(log), "the node name node3 belongs to machine") {
				return nil
			}
		}
		return fmt.Errorf("none of %v says so", logs)
	})
	if got := w.identity("node3"); got != identity {
		w.Errorf("the name is held by %s, and was by %s", got, identity)
	}
	id, err := os.ReadFile(filepath.Join(w.nodeDir("node3"), "machine-id"))
	if err != nil {
		w.Fatal(err)
	}
	w.operator(string(id), "node", "adopt", "node3", "--machine-id-file=/dev/stdin")
	w.kubectl("delete", "pods", "--namespace="+system, "-l", "k8s-app=muslin-node", "--field-selector=spec.nodeName=node3", "--wait") // sooner than the kubelet tries again
	w.eventually("the node to be there again", func() error { return w.readyIs("node3", "True") })
	w.settled(others)
}

// nodeIsNew is what an operator does who makes a machine anew: the node goes out of Kubernetes, and with it everything of it out of Muslin, before the name comes back.
func (w world) nodeIsNew() {
	w.drain("node3")
	others, identity := w.besides("node3"), w.identity("node3")
	if err := w.powerOff(w.Context(), "node3"); err != nil {
		w.Fatal(err)
	}
	w.kubectl("delete", "node", "node3")
	w.eventually("the controllers to delete the Node", func() error {
		if nodes := w.muslinctl("get", "nodes", "-o", "name"); strings.Contains(nodes, "node3") {
			return errors.New(nodes)
		}
		return nil
	})
	w.booksBalance()
	if err := errors.Join(w.wipe("node3"), w.powerOn("node3")); err != nil {
		w.Fatal(err)
	}
	w.eventually("the node to be there again", func() error { return w.readyIs("node3", "True") })
	w.kubectl("label", "nodes", "node3", "dc=east")
	w.settled(others)
	if again := w.identity("node3"); again == identity {
		w.Errorf("the name is held by %s, as before", again)
	}
}

// besides are the addresses of the pods that run on other nodes.
func (w world) besides(node string) []string {
	w.Helper()
	var found []string
	for _, p := range slices.Concat(w.pods("app=probe"), w.pods("app=some")) {
		if p.node != node {
			found = append(found, fmt.Sprint(p.name, p.addresses))
		}
	}
	return found
}

// settled holds that all of Muslin and all pods are well, that those others are as they were, that no two have one address, and that the books balance.
func (w world) settled(others []string) {
	w.Helper()
	w.eventually("Muslin to be ready", func() error { return w.waitInstalled(w.Context()) })
	w.eventually("a probe to be ready on each node", w.probesReady)
	w.kubectl("rollout", "status", "deployment/some", "--timeout=300s")
	w.podsReachEachOther()
	have := w.besides("")
	for _, other := range others {
		if !slices.Contains(have, other) {
			w.Errorf("%s is not there any more", other)
		}
	}
	seen := make(map[string]string)
	for _, p := range slices.Concat(w.pods("app=probe"), w.pods("app=some")) {
		for _, addr := range p.addresses {
			if twice := seen[addr.String()]; twice != "" {
				w.Errorf("%s and %s have both %v", twice, p.name, addr)
			}
			seen[addr.String()] = p.name
		}
	}
	w.booksBalance()
}

// readyIs tells whether Kubernetes thinks so of the node.
func (w world) readyIs(node, want string) error {
	got, err := output(w.cluster.kubectl(w.Context(), "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`))
	if err == nil && got != want {
		err = fmt.Errorf("ready is %q, want %q", got, want)
	}
	return err
}

// identity is what etcd says of who holds a node's name.
func (w world) identity(node string) string {
	w.Helper()
	pki := func(file string) string { return filepath.Join(w.etcdClientDir(), file) }
	question := fmt.Sprintf(`{"key": %q}`, base64.StdEncoding.EncodeToString([]byte("/muslin/v1/nodes/"+node)))
	out, err := output(w.command(w.Context(), "curl", "-sS", "--max-time", "10", "--cacert", pki(authority.CAFile), "--cert", pki(authority.CertFile), "--key", pki(authority.KeyFile),
		"--data", question, "https://"+controlIP+":2379/v3/kv/range"))
	if err != nil {
		w.Fatal(err)
	}
	var answer struct {
		KVs []struct{ Value []byte }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.KVs) != 1 {
		w.Fatalf("etcd says of who holds %s: %s (%v)", node, out, err)
	}
	return string(answer.KVs[0].Value)
}
