package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// probes are a pod on each node that answers by HTTP, also on its host's port 8085, and Services for them. %s is the image.
const probes = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: web, image: %s, args: [netexec, --http-port=8080], ports: [{containerPort: 8080, hostPort: 8085}]}
---
apiVersion: v1
kind: Service
metadata: {name: probe}
spec: {type: NodePort, selector: {app: probe}, ipFamilyPolicy: PreferDualStack, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`

// TestIptables walks a cluster whose kube-proxy uses iptables through what operators do to one.
func TestIptables(t *testing.T) {
	w := newWorld(t, options{Nodes: 3, ProxyMode: "iptables"}, muslin{DualStack: true})
	defer w.keep("iptables")
	w.startProbes()
	w.step("pods of three nodes reach each other", world.podsReachEachOther)
	w.step("services answer", world.servicesAnswer)
	w.step("host ports answer", world.hostPortsAnswer)
	w.step("sixty pods come and go", world.sixtyPodsComeAndGo)
	w.step("agents know their pods", world.agentsKnowTheirPods)
	w.step("kubelets and containerds are restarted", world.runtimesRestart)
	w.step("agents are killed under traffic", world.agentsKilledUnderTraffic)
	w.step("agents are upgraded and put back under traffic", world.agentsUpgradedUnderTraffic)
	w.step("pods and namespaces choose pools", world.poolsByAnnotation)
	w.step("datacentres get pools of their own", world.datacentresGetPools)
	w.step("certificates are asked for and renewed", world.certificatesServe)
	w.step("pods go while no agent runs", world.podsGoWithoutAgents)
	w.step("a node is drained", world.nodeIsDrained)
	w.step("a node reboots", world.nodeReboots)
	w.step("a node's machine is replaced", world.nodeIsReplaced)
	w.step("a node is made anew under its old name", world.nodeIsNew)
	w.step("the books balance", world.booksBalance)
	w.step("Muslin is taken off the hosts", world.takenOff)
}

// TestNftables does the same for what kube-proxy's mode may change.
func TestNftables(t *testing.T) {
	w := newWorld(t, options{Nodes: 3, ProxyMode: "nftables"}, muslin{DualStack: true})
	defer w.keep("nftables")
	w.startProbes()
	w.step("pods of three nodes reach each other", world.podsReachEachOther)
	w.step("services answer", world.servicesAnswer)
	w.step("host ports answer", world.hostPortsAnswer)
	w.step("the books balance", world.booksBalance)
	w.step("Muslin is taken off the hosts", world.takenOff)
}

// step runs a part of the walk as a subtest, on the same cluster, and notes how it went.
func (w world) step(what string, do func(world)) {
	began := time.Now()
	passed := w.Run(what, func(t *testing.T) { do(w.within(t)) })
	w.diary.note(what, passed, time.Since(began))
}

func (w world) startProbes() {
	w.Helper()
	w.apply(fmt.Sprintf(probes, ownImage))
	w.eventually("a probe to be ready on each node", w.probesReady)
}

func (w world) probesReady() error {
	ready := w.kubectl("get", "daemonset", "probe", "-o", "jsonpath={.status.numberReady}/{.status.updatedNumberScheduled}")
	if want := strconv.Itoa(len(w.nodes())); ready != want+"/"+want {
		return fmt.Errorf("%s are ready", ready)
	}
	return nil
}

// pod is what Kubernetes says of one.
type pod struct {
	name, node string
	addresses  []netip.Addr
}

// pods lists the running pods with that label.
func (w world) pods(label string) []pod {
	w.Helper()
	const each = `{range .items[*]}{.metadata.name}{" "}{.spec.nodeName}{range .status.podIPs[*]}{" "}{.ip}{end}{"\n"}{end}`
	var pods []pod
	for line := range strings.Lines(w.kubectl("get", "pods", "-l", label, "--field-selector=status.phase=Running", "-o", "jsonpath="+each)) {
		fields := strings.Fields(line)
		p := pod{name: fields[0], node: fields[1]}
		for _, text := range fields[2:] {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				w.Fatal(err)
			}
			p.addresses = append(p.addresses, addr)
		}
		pods = append(pods, p)
	}
	return pods
}

// url is an address's, as curl -g takes it.
func url(addr netip.Addr, port uint16) string {
	return "http://" + netip.AddrPortFrom(addr, port).String() + "/hostname"
}

// podsReachEachOther asks every probe from every probe, by both families.
func (w world) podsReachEachOther() {
	w.Helper()
	w.eventually("all probes to reach each other", func() error {
		pods := w.pods("app=probe")
		if len(pods) != len(w.nodes()) {
			return fmt.Errorf("%d pods run on %d nodes", len(pods), len(w.nodes()))
		}
		var urls []string
		for _, to := range pods {
			if len(to.addresses) != 2 {
				return fmt.Errorf("%s has the addresses %v, want one of each family", to.name, to.addresses)
			}
			urls = append(urls, url(to.addresses[0], 8080), url(to.addresses[1], 8080))
		}
		return w.askFromPods(pods, urls)
	})
}

// ask is a shell's line that fails unless every URL answers.
func ask(urls []string) string {
	return fmt.Sprintf("for url in %s; do curl -gsS --max-time 5 -o /dev/null $url || { echo $url >&2; exit 1; }; done", strings.Join(urls, " "))
}

func (w world) askFromPods(pods []pod, urls []string) error {
	for _, from := range pods {
		if _, err := w.in(from.name, "sh", "-c", ask(urls)); err != nil {
			return fmt.Errorf("from %s: %w", from.name, err)
		}
	}
	return nil
}

func (w world) askFromNodes(urls []string) error {
	for _, from := range w.nodes() {
		if _, err := output(w.onNode(w.Context(), from.Name, "sh", "-c", ask(urls))); err != nil {
			return fmt.Errorf("from %s: %w", from.Name, err)
		}
	}
	return nil
}

// servicesAnswer asks each Service address from each pod and each node, and each node's port from each node.
func (w world) servicesAnswer() {
	var cluster, nodes []string
	for _, text := range strings.Fields(w.kubectl("get", "service", "probe", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			w.Fatal(err)
		}
		cluster = append(cluster, url(addr, 80))
	}
	if len(cluster) != 2 {
		w.Errorf("the Service has the addresses %v, want one of each family", cluster)
	}
	for _, to := range w.nodes() {
		nodes = append(nodes, url(netip.MustParseAddr(to.IP), 30080), url(netip.MustParseAddr(to.IP6), 30080))
	}
	w.eventually("the Service to answer all pods", func() error { return w.askFromPods(w.pods("app=probe"), cluster) })
	w.eventually("the Service to answer all nodes", func() error { return w.askFromNodes(slices.Concat(cluster, nodes)) })
}

// hostPortsAnswer asks each node's port from each node and each pod, the pod's own node among them.
func (w world) hostPortsAnswer() {
	var urls []string
	for _, to := range w.nodes() {
		urls = append(urls, url(netip.MustParseAddr(to.IP), 8085), url(netip.MustParseAddr(to.IP6), 8085))
	}
	w.eventually("host ports to answer all nodes", func() error { return w.askFromNodes(urls) })
	w.eventually("host ports to answer all pods", func() error { return w.askFromPods(w.pods("app=probe"), urls) })
}

// sixtyPodsComeAndGo holds that sixty pods have sixty addresses, and that none of these is taken when they are gone.
func (w world) sixtyPodsComeAndGo() {
	const sixty = 60
	w.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 0
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: pause, image: %s, args: [pause]}]
`, ownImage))
	before := w.endpoints()
	w.kubectl("scale", "deployment/many", fmt.Sprintf("--replicas=%d", sixty))
	w.kubectl("rollout", "status", "deployment/many", "--timeout=300s")
	taken := make(map[netip.Addr]string)
	for _, p := range w.pods("app=many") {
		for _, addr := range p.addresses {
			if other := taken[addr]; other != "" {
				w.Errorf("%s and %s have both %v", other, p.name, addr)
			}
			taken[addr] = p.name
		}
	}
	if len(taken) != 2*sixty {
		w.Errorf("%d pods have %d addresses, want two each", sixty, len(taken))
	}
	if got := w.endpoints(); got != before+sixty {
		w.Errorf("%d endpoints, want %d", got, before+sixty)
	}
	w.kubectl("scale", "deployment/many", "--replicas=0")
	w.eventually("the pods to go", func() error {
		if got := w.endpoints(); got != before {
			return fmt.Errorf("%d endpoints, want %d", got, before)
		}
		return nil
	})
}

// endpoints counts the WorkloadEndpoints.
func (w world) endpoints() int {
	w.Helper()
	return strings.Count(w.muslinctl("get", "workloadendpoints", "-A", "-o", "name"), "\n") + 1
}

// runtimesRestart ends each node's kubelet and containerd. Pods that run stay as they are, and new ones come.
func (w world) runtimesRestart() {
	before := w.pods("app=probe")
	for _, n := range w.nodes() {
		for _, service := range []string{"kubelet", "containerd"} {
			if err := w.restart(w.Context(), n.Name, service); err != nil {
				w.Fatal(err)
			}
		}
	}
	w.eventually("all nodes to be ready again", func() error {
		_, err := output(w.cluster.kubectl(w.Context(), "wait", "nodes", "--all", "--for=condition=Ready", "--timeout=1s"))
		return err
	})
	w.sixtyPodsComeAndGo()
	w.podsReachEachOther()
	if after := w.pods("app=probe"); !slices.EqualFunc(before, after, func(a, b pod) bool { return a.name == b.name && slices.Equal(a.addresses, b.addresses) }) {
		w.Errorf("pods were %v, and are %v", before, after)
	}
}

// chosenPools are pools that only pods get who ask for them, a namespace that asks for one, and pods that ask or do not.
const (
	chosenPools = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: chosen-by-pod}
spec: {cidr: 10.51.0.0/24, blockSize: 28, vxlanMode: Always, assignmentMode: Manual}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: chosen-by-namespace}
spec: {cidr: 10.52.0.0/24, blockSize: 28, vxlanMode: Always, assignmentMode: Manual}
`
	choosers = `
apiVersion: v1
kind: Namespace
metadata:
  name: choosy
  annotations: {cni.projectcalico.org/ipv4pools: '["chosen-by-namespace"]'}
---
apiVersion: v1
kind: Pod
metadata: {name: by-namespace, namespace: choosy}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: %[1]s, args: [netexec]}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: by-pod
  namespace: choosy
  annotations: {cni.projectcalico.org/ipv4pools: '["chosen-by-pod"]'}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: %[1]s, args: [netexec]}]}
`
)

func (w world) poolsByAnnotation() {
	w.operator(chosenPools, "apply", "-f", "-")
	w.apply(fmt.Sprintf(choosers, ownImage))
	for name, pool := range map[string]string{"by-namespace": "10.52.0.0/24", "by-pod": "10.51.0.0/24"} {
		w.kubectl("wait", "--namespace=choosy", "pod/"+name, "--for=condition=Ready", "--timeout=120s")
		addr := netip.MustParseAddr(w.kubectl("get", "pod", name, "--namespace=choosy", "-o", "jsonpath={.status.podIP}"))
		if !netip.MustParsePrefix(pool).Contains(addr) {
			w.Errorf("%s has %v, want one of %s", name, addr, pool)
		}
		w.reaches(w.pods("app=probe")[0].name, url(addr, 8080))
	}
	w.kubectl("delete", "namespace", "choosy", "--wait")
}

// operator runs muslinctl with the text of a file as its standard input.
func (w world) operator(file string, args ...string) {
	w.Helper()
	cmd, err := w.cluster.muslinctl(w.Context(), args...)
	if err != nil {
		w.Fatal(err)
	}
	cmd.Stdin = strings.NewReader(file)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.Fatalf("muslinctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

const datacentrePools = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: east}
spec: {cidr: 10.1.0.0/24, blockSize: 28, vxlanMode: Always, natOutgoing: true, nodeSelector: dc == "east"}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: west}
spec: {cidr: 10.2.0.0/24, blockSize: 28, vxlanMode: Always, natOutgoing: true, nodeSelector: dc == "west"}
`

// datacentresGetPools is an operator's walk from the default pool to one for each datacentre. Nodes learn where they are from Kubernetes' labels.
func (w world) datacentresGetPools() {
	pools := map[string]netip.Prefix{"node1": netip.MustParsePrefix("10.1.0.0/24"), "node2": netip.MustParsePrefix("10.2.0.0/24"), "node3": netip.MustParsePrefix("10.1.0.0/24")}
	for node, dc := range map[string]string{"node1": "east", "node2": "west", "node3": "east"} {
		w.kubectl("label", "nodes", node, "dc="+dc)
	}
	w.eventually("the nodes' labels to arrive", func() error {
		if got := strings.Count(w.muslinctl("get", "nodes", "-o", "yaml"), " dc: "); got != len(pools) {
			return fmt.Errorf("%d nodes have one", got)
		}
		return nil
	})
	w.operator(datacentrePools, "apply", "-f", "-")
	w.muslinctl("patch", "ippool", "default-ipv4-ippool", "--patch", `{"spec":{"disabled":true}}`)
	w.podsReachEachOther() // old ones, while tunnels' addresses move
	w.kubectl("delete", "pods", "-l", "app=probe", "--wait")
	w.kubectl("rollout", "restart", "deployment/coredns", "--namespace="+system)
	w.kubectl("rollout", "status", "deployment/coredns", "--namespace="+system, "--timeout=180s")
	w.eventually("a probe to be ready on each node", w.probesReady)
	for _, p := range w.pods("app=probe") {
		if !pools[p.node].Contains(p.addresses[0]) {
			w.Errorf("%s on %s has %v, want one of %v", p.name, p.node, p.addresses[0], pools[p.node])
		}
	}
	w.podsReachEachOther()
	w.muslinctl("delete", "ippool", "default-ipv4-ippool")
	w.podsReachEachOther()
	w.servicesAnswer()
}

// booksBalance holds addresses, handles and endpoints against each other. (A pod that Kubernetes has forgotten may not have had its DEL yet.)
func (w world) booksBalance() {
	w.eventually("the books to balance", func() error {
		out, err := output(w.cluster.muslinctl(w.Context(), "ipam", "check"))
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}
