package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// kubernetes is an API server that knows what a test has put into it. It lists and watches, and takes what nodes say of themselves without noting it.
type kubernetes struct {
	t *testing.T

	mu      sync.Mutex
	objects map[string]map[string]any // by path: /api/v1/namespaces/shop/services/web
	changes []change
	more    chan struct{} // closed by the next change
}

type change struct {
	Type   string         `json:"type"`
	Object map[string]any `json:"object"`
	path   string
}

const (
	kubePort      = "6443"
	kubeNamespace = "kube-system" // of agents whose kubeconfig names none
)

// kubeLab brings a lab of one node up that speaks BGP, in a cluster with this API server.
func kubeLab(t *testing.T, change func(*lab.Options)) (*lab.Lab, *kubernetes) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	const text = `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:` + kubePort + `"}}], "users": [{"name": "u", "user": {}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l := upBGP(t, func(o *lab.Options) {
		o.Nodes, o.AgentEnv = 1, []string{"KUBECONFIG=" + file}
		change(o)
	})
	k := &kubernetes{t: t, objects: map[string]map[string]any{}, more: make(chan struct{})}
	var listener net.Listener
	err := l.Within("node-1", func() (err error) { listener, err = net.Listen("tcp", "127.0.0.1:"+kubePort); return err })
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: k, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), <-ended); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l, k
}

// put creates or replaces an object.
func (k *kubernetes) put(at, text string) {
	k.t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		k.t.Fatalf("%v: %s", err, text)
	}
	rest, name := path.Split(at)
	namespace := ""
	if _, in, ok := strings.Cut(rest, "/namespaces/"); ok {
		namespace, _, _ = strings.Cut(in, "/")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	kind := "ADDED"
	if k.objects[at] != nil {
		kind = "MODIFIED"
	}
	meta, _ := o["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
	}
	meta["name"], meta["namespace"], meta["uid"], meta["resourceVersion"] = name, namespace, "uid-of-"+name, strconv.Itoa(len(k.changes)+1)
	o["metadata"] = meta
	k.objects[at] = o
	k.tell(change{kind, o, at})
}

// remove deletes an object.
func (k *kubernetes) remove(at string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.objects[at]
	delete(k.objects, at)
	k.tell(change{"DELETED", o, at})
}

// tell is called with mu held.
func (k *kubernetes) tell(c change) {
	k.changes = append(k.changes, c)
	close(k.more)
	k.more = make(chan struct{})
}

// ServeHTTP answers an agent.
func (k *kubernetes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPatch:
		_, _ = w.Write([]byte(`{"kind": "Node", "apiVersion": "v1"}`)) // who asks sees if it does not come
	case q.Get("sendInitialEvents") == "true": // lists are had by asking for them
		k.refuse(w, http.StatusUnprocessableEntity, "Invalid")
	case q.Get("watch") == "true":
		k.watch(w, r)
	case kinds()[path.Base(r.URL.Path)] != "":
		k.list(w, r)
	default:
		k.mu.Lock()
		o := k.objects[r.URL.Path]
		k.mu.Unlock()
		if o == nil {
			k.refuse(w, http.StatusNotFound, "NotFound")
			return
		}
		_ = json.NewEncoder(w).Encode(o) // as above
	}
}

func (k *kubernetes) refuse(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}) // as above
}

// kinds are those that an agent follows, by their names in paths.
func kinds() map[string]string {
	return map[string]string{"pods": "Pod", "namespaces": "Namespace", "nodes": "Node", "secrets": "Secret", "services": "Service", "endpointslices": "EndpointSlice"}
}

// meant tells whether a request for a resource is for the object at the path.
func meant(r *http.Request, at string) bool {
	folder, name := path.Split(at)
	if path.Base(folder) != path.Base(r.URL.Path) || !strings.HasPrefix(at, path.Dir(r.URL.Path)+"/") {
		return false
	}
	_, wanted, one := strings.Cut(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	return !one || wanted == name
}

func (k *kubernetes) list(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	kind, items := kinds()[path.Base(r.URL.Path)], []any{}
	for at, o := range k.objects {
		if meant(r, at) {
			items = append(items, o)
		}
	}
	version := "v1"
	if kind == "EndpointSlice" {
		version = "discovery.k8s.io/v1"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{ // who asks sees if it does not come
		"kind": kind + "List", "apiVersion": version, "items": items, "metadata": map[string]any{"resourceVersion": strconv.Itoa(len(k.changes))},
	})
}

func (k *kubernetes) watch(w http.ResponseWriter, r *http.Request) {
	seen, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")) // none: from the first on
	out := json.NewEncoder(w)
	for {
		k.mu.Lock()
		news, more := slices.Clone(k.changes[seen:]), k.more
		k.mu.Unlock()
		seen += len(news)
		for _, c := range news {
			if meant(r, c.path) && out.Encode(c) != nil {
				return
			}
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-more:
		}
	}
}

// secret makes a Secret of the agents' namespace say so; "" takes it away.
func (k *kubernetes) secret(name, key, value string) {
	k.t.Helper()
	at := "/api/v1/namespaces/" + kubeNamespace + "/secrets/" + name
	if value == "" {
		k.remove(at)
		return
	}
	text, err := json.Marshal(map[string]any{"kind": "Secret", "apiVersion": "v1", "data": map[string][]byte{key: []byte(value)}})
	if err != nil {
		k.t.Fatal(err)
	}
	k.put(at, string(text))
}

// notEstablished waits until a session is not up, and its line in `node status` says one of the reasons.
func notEstablished(t *testing.T, l *lab.Lab, node, peer string, reasons ...string) {
	t.Helper()
	converges(t, func() error {
		p, ok := sessionsOf(t, l, node)[peer]
		if ok && !p.Established() && slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(strings.ToLower(p.Info), r) }) {
			return nil
		}
		return fmt.Errorf("session: %+v, want one that is not established, by one of %q", p, reasons)
	})
}

// TestPasswordsHoldTimerAndFlapsOfFRR is a node below two FRR switches with a network behind them. Whatever becomes of the one, the session with the other
// stays, and what is behind them is reached. The subtests build on each other.
func TestPasswordsHoldTimerAndFlapsOfFRR(t *testing.T) {
	const first, second = "172.30.1.201", "172.30.1.202"
	l, k := kubeLab(t, func(o *lab.Options) {
		o.AgentEnv = append(o.AgentEnv, "FELIX_ROUTEREFRESHINTERVAL=2", "FELIX_LOGSEVERITYSCREEN=Debug")
	})
	addRouter(t, l, lab.RouterSpec{Name: "tor-1", Kind: lab.FRR, AS: 65001, Password: "s3cret", Announce: []netip.Prefix{netip.MustParsePrefix(outer)}})
	addRouter(t, l, lab.RouterSpec{Name: "tor-2", Kind: lab.FRR, AS: 65001, Announce: []netip.Prefix{netip.MustParsePrefix(outer)}})
	const spec = `{peerIP: ` + first + `, asNumber: %d, password: {secretKeyRef: {name: bgp, key: tor-1}}}`
	peerWith(t, l, "tor-2", "{peerIP: "+second+", asNumber: 65001}")
	peerWith(t, l, "tor-1", fmt.Sprintf(spec, 65001))
	kernelLearns(t, l, "node-1", outer, second)
	before := since(t, l, "node-1", first)
	both := func(t *testing.T) {
		t.Helper()
		kernelLearns(t, l, "node-1", outer, first, second)
		sameSessions(t, l, "node-1", first, before)
	}
	one := func(t *testing.T) {
		t.Helper()
		kernelLearns(t, l, "node-1", outer, second)
		sameSessions(t, l, "node-1", first, before)
	}

	t.Run("no session without the password that it shall have", func(t *testing.T) {
		if p, ok := sessionsOf(t, l, "node-1")[first]; ok {
			t.Errorf("there is a session: %+v", p)
		}
		one(t)
	})
	t.Run("a wrong password, and the right one", func(t *testing.T) {
		k.secret("bgp", "tor-1", "wrong")
		notEstablished(t, l, "node-1", first, "socket: ", "active", "connect")
		one(t)
		k.secret("bgp", "tor-1", "s3cret")
		both(t)
		statusShows(t, l, "node-1", all(global, first, second))
		frrLearns(t, l, "tor-1", blockRoutes(t, l, "node-1")...)
	})
	t.Run("a wrong AS number", func(t *testing.T) {
		peerWith(t, l, "tor-1", fmt.Sprintf(spec, 65009))
		notEstablished(t, l, "node-1", first, "bad peer as", "notification")
		one(t)
		peerWith(t, l, "tor-1", fmt.Sprintf(spec, 65001))
		both(t)
	})
	t.Run("the hold timer expires", func(t *testing.T) {
		bgpd := daemonOf(t, l, "tor-1")
		signal(t, bgpd, syscall.SIGSTOP)
		notEstablished(t, l, "node-1", first, "hold", "graceful", "socket: ", "active", "connect", "opensent", "idle")
		one(t)
		signal(t, bgpd, syscall.SIGCONT)
		both(t)
	})
	t.Run("flaps", func(t *testing.T) {
		for range 3 {
			if err := l.StopRouter(t.Context(), "tor-1"); err != nil {
				t.Fatal(err)
			}
			one(t)
			if err := l.StartRouter(t.Context(), "tor-1"); err != nil {
				t.Fatal(err)
			}
			both(t)
		}
	})
	t.Run("a route of somebody else's in a learned one's place", func(t *testing.T) { someoneElsesRoute(t, l, second) })
	if log := agentLog(t, l, "node-1"); strings.Contains(log, "s3cret") || !strings.Contains(log, "level=DEBUG") {
		t.Error("the log shows the password, or too little to tell")
	}
}

// someoneElsesRoute puts a route into the place of the learned one, which says so and comes back when it may.
func someoneElsesRoute(t *testing.T, l *lab.Lab, via string) {
	operator(t, l, "", "delete", "bgppeer", "tor-1")
	kernelLearns(t, l, "node-1", outer, via)
	_, metric, _ := strings.Cut(run(t, l, "node-1", "ip", "route", "show", outer), " metric ")
	theirs := []string{outer, "dev", "eth0", "proto", "static", "metric", strings.Fields(metric)[0]}
	operator(t, l, "", "delete", "bgppeer", "tor-2")
	unreachableNow(t, l, "node-1", outer)
	run(t, l, "node-1", append([]string{"ip", "route", "add"}, theirs...)...)
	peerWith(t, l, "tor-2", "{peerIP: "+via+", asNumber: 65001}")
	nettest.Eventually(t, func() error {
		var log strings.Builder
		if err := l.Log("node-1", &log); err != nil {
			return err
		}
		return has("which is not ours; if it is not needed, `ip route del " + outer + " dev eth0")(log.String())
	})
	addPod(t, l, "late", "node-1") // nothing else waits
	run(t, l, "node-1", append([]string{"ip", "route", "del"}, theirs...)...)
	kernelLearns(t, l, "node-1", outer, via)
}

// daemonOf is the process of a router's last daemon: FRR's bgpd, or BIRD.
func daemonOf(t *testing.T, l *lab.Lab, router string) int {
	t.Helper()
	routers, err := l.Routers()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routers {
		if r.Spec.Name == router && len(r.Daemons) > 0 {
			return r.Daemons[len(r.Daemons)-1].PID
		}
	}
	t.Fatalf("%s runs no daemon", router)
	return 0
}

func signal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

const (
	webService   = "/api/v1/namespaces/shop/services/web"
	webSlice     = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-1"
	serviceTypes = `{"kind": "Service", "apiVersion": "v1", "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "externalIPs": ["198.51.100.7"],
		"externalTrafficPolicy": "%s", "ports": [{"port": 80}]}, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}`
)

// endpointOn is a slice of the service with one endpoint on a node.
func endpointOn(node string) string {
	return fmt.Sprintf(`{"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
		"endpoints": [{"addresses": ["192.168.0.9"], "nodeName": %q, "conditions": {"ready": true}}], "ports": [{"port": 80}]}`, node)
}

// TestServicesAreAdvertisedToBIRDAndFRR has a router of each kind hold what a node says of services, through changes of these and of the node, and an
// agent's end.
func TestServicesAreAdvertisedToBIRDAndFRR(t *testing.T) {
	l, k := kubeLab(t, func(*lab.Options) {})
	k.put("/api/v1/nodes/node-1", `{"kind": "Node", "apiVersion": "v1"}`)
	k.put(webService, fmt.Sprintf(serviceTypes, "Local"))
	k.put(webSlice, endpointOn("node-1"))
	addRouter(t, l, lab.RouterSpec{Name: "tor-1", Kind: lab.BIRD})
	addRouter(t, l, lab.RouterSpec{Name: "tor-2", Kind: lab.FRR})
	peerWith(t, l, "tors", "{peerIP: 172.30.1.201, asNumber: 65000}")
	peerWith(t, l, "tors-frr", "{peerIP: 172.30.1.202, asNumber: 65000}")
	operator(t, l, `{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, spec: {serviceClusterIPs: [{cidr: 10.96.0.0/16}],
		serviceExternalIPs: [{cidr: 198.51.100.0/24}], serviceLoadBalancerIPs: [{cidr: 203.0.113.0/24}]}}`, "apply", "-f", "-")
	known := func(services ...string) {
		t.Helper()
		want := blockRoutes(t, l, "node-1")
		for _, s := range services {
			want = append(want, s+" via 172.30.1.1")
		}
		slices.Sort(want)
		birdLearns(t, l, "tor-1", "peer_", want...)
		frrLearns(t, l, "tor-2", want...)
	}
	ranges := []string{"10.96.0.0/16", "198.51.100.0/24", "203.0.113.0/24"}
	single := []string{"10.96.0.7/32", "198.51.100.7/32", "203.0.113.7/32"}
	known(append(single, ranges...)...)

	gone := watchRoutes(t, l, "tor-1")
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	statusShows(t, l, "node-1", all(global, "172.30.1.201", "172.30.1.202"))
	known(append(single, ranges...)...)
	if lines := gone(); lines != "" {
		t.Errorf("while the agent was away, BIRD's kernel lost\n%s", lines)
	}

	k.put(webSlice, endpointOn("node-2"))
	known(ranges...)
	k.put(webService, fmt.Sprintf(serviceTypes, "Cluster")) // any node will do, so that the ranges stand for it
	known(ranges...)
	k.put("/api/v1/nodes/node-1", `{"kind": "Node", "apiVersion": "v1", "metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}}`)
	known()
	k.put("/api/v1/nodes/node-1", `{"kind": "Node", "apiVersion": "v1"}`)
	operator(t, l, `{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, spec: {serviceLoadBalancerIPs: [{cidr: 203.0.113.0/24}],
		serviceLoadBalancerAggregation: Disabled, communities: [{name: blue, value: "64512:5"}], prefixAdvertisements: [{cidr: 203.0.113.0/24, communities: [blue]}]}}`, "apply", "-f", "-")
	known("203.0.113.7/32")
	if err := has("(64512,5)")(run(t, l, "tor-1", "birdc", "show", "route", "for", "203.0.113.7/32", "all")); err != nil {
		t.Error(err)
	}
	k.remove(webService)
	known()
}
