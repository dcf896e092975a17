package controllers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/muslin-cni/muslin/pkg/api"
)

func readFrom(values ...string) (environment, error) {
	return readEnvironment(lookup(values))
}

func TestEnvironmentIsReadAsCalicosManifestHasIt(t *testing.T) {
	e, err := readFrom("ENABLED_CONTROLLERS=policy,namespace,serviceaccount,workloadendpoint,node,loadbalancer", "DATASTORE_TYPE=etcdv3", "LOG_LEVEL=warning",
		"SYNC_NODE_LABELS=false", "AUTO_HOST_ENDPOINTS=enabled", "COMPACTION_PERIOD=0", "PROFILE_WORKERS=3")
	if err != nil || len(e.enabled) != 5 || len(e.passedOver) != 1 || e.workers[controllerAccount] != 3 || e.workers[controllerPolicy] != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	got := inForce(newConfiguration().Spec, e)
	if got.LogSeverityScreen != "Warning" || got.Controllers.Node.SyncLabels != "Disabled" || got.Controllers.Node.HostEndpoint.AutoCreate != "Enabled" ||
		got.EtcdV3CompactionPeriod.Duration != 0 || got.Controllers.LoadBalancer != nil {
		t.Errorf("%+v", got)
	}
}

func TestWhatTheEnvironmentDoesNotMeanIsRefusedByName(t *testing.T) {
	for _, v := range []string{"ENABLED_CONTROLLERS=policies", "ENABLED_CONTROLLERS=flannelmigration", "DATASTORE_TYPE=kubernetes", "RECONCILER_PERIOD=5", "RECONCILER_PERIOD=0s",
		"COMPACTION_PERIOD=-1m", "NODE_WORKERS=0", "SYNC_NODE_LABELS=perhaps", "LOG_LEVEL=loud", "LEADER_ELECTION=x"} {
		if _, err := readFrom(v); err == nil || !strings.Contains(err.Error(), strings.SplitN(v, "=", 2)[0]) {
			t.Errorf("%s: %v", v, err)
		}
	}
}

func TestConfigurationSaysWhichControllersRunUnlessTheEnvironmentDoes(t *testing.T) {
	spec := api.KubeControllersConfigurationSpec{Controllers: api.Controllers{Policy: &api.PeriodicController{}, LoadBalancer: &api.LoadBalancerController{}}}
	got := inForce(spec, environment{})
	if c := got.Controllers; c.Policy == nil || c.Policy.ReconcilerPeriod.Duration != defaultPeriod || c.Node != nil || c.Namespace != nil || c.LoadBalancer != nil {
		t.Errorf("%+v", c)
	}
	got = inForce(spec, environment{enabled: []string{controllerNode}})
	if c := got.Controllers; c.Policy != nil || c.Node == nil || c.Node.LeakGracePeriod.Duration != defaultGrace || c.Node.SyncLabels != "Enabled" {
		t.Errorf("%+v", c)
	}
	if spec.Controllers.Policy.ReconcilerPeriod != nil {
		t.Error("the configuration itself was changed")
	}
}

func TestCheckTellsReadyFromAliveAndStuckFromBoth(t *testing.T) {
	file := filepath.Join(t.TempDir(), "status", "status.json")
	run := func(name string, args ...string) (int, string) {
		var out bytes.Buffer
		code := Main(t.Context(), Process{Name: name, Args: args, Environ: []string{"STATUS_FILE=" + file}, Stdout: &out, Stderr: &out})
		return code, out.String()
	}
	now := time.Now()
	h := newHealth(func() time.Time { return now })
	expect := func(when string, ready, live int) {
		t.Helper()
		for _, c := range []struct {
			want int
			name string
			args []string
		}{{ready, "muslin-controllers", []string{"--check"}}, {ready, "/usr/bin/check-status", []string{"-r"}}, {live, "check-status", []string{"-l"}}, {live, "m", []string{"--check", "-l"}}} {
			if got, out := run(c.name, c.args...); got != c.want {
				t.Errorf("%s: %s %v exits with %d: %s", when, c.name, c.args, got, out)
			}
		}
	}
	expect("before it was written", 1, 1)
	if err := writeStatus(file, h.status()); err != nil {
		t.Fatal(err)
	}
	expect("at first", 1, 0)
	for _, part := range []string{partStartup, partEtcd, partKube} {
		h.set(part, nil)
	}
	if err := writeStatus(file, h.status()); err != nil {
		t.Fatal(err)
	}
	expect("when all is well", 0, 0)
	h.beat = now.Add(-2 * staleAfter)
	if err := writeStatus(file, h.status()); err != nil {
		t.Fatal(err)
	}
	expect("when it is stuck", 1, 1)
	if code, _ := run("m", "--nonsense"); code != 2 {
		t.Errorf("an unknown argument exits with %d", code)
	}
	if code, out := run("m", "--help"); code != 0 || !strings.Contains(out, "ENABLED_CONTROLLERS") {
		t.Errorf("help exits with %d: %s", code, out)
	}
}

func TestHealthAndMetricsAreServed(t *testing.T) {
	w, ns, in := auditWorld(t)
	w.put(resources+"ippools/p", `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"cidr":"10.0.0.0/24","blockSize":30}}`)
	w.pod(ns, "lives", in, nil)
	w.address(ns, "lives", "n1", "10.0.0.0/30")
	s, _ := w.start()
	get := func(path string) (int, string) {
		r := httptest.NewRecorder()
		s.handler().ServeHTTP(r, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		return r.Code, r.Body.String()
	}
	w.until("the audit has counted", func() bool { _, text := get("/metrics"); return strings.Contains(text, "ipam_blocks{") })
	_, text := get("/metrics")
	for _, line := range []string{`ipam_allocations_in_use{ippool="p",node="n1"} 1`, `ipam_blocks{ippool="p",node="n1"} 1`, `ipam_ippool_size{ippool="p"} 256`, `ipam_allocations_borrowed{ippool="p",node="n1"} 0`,
		`ipam_allocations_gc_candidates{ippool="p",node="n1"} 0`, `ipam_allocations_per_node{node="n1"} 1`, "muslin_controllers_leader 1"} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%s is not there", line)
		}
	}
	if code, text := get("/readiness"); code != 503 || !strings.Contains(text, partKube) {
		t.Errorf("readiness before the API server was asked: %d %s", code, text)
	}
	if code, _ := get("/liveness"); code != 200 {
		t.Errorf("liveness: %d", code)
	}
}

func TestApiServerThatCannotBeAskedDeletesNothing(t *testing.T) {
	w := newWorld(t)
	fakes, ok := w.kube.(*fake.Clientset)
	if !ok {
		t.Skip("a real API server always answers")
	}
	fakes.PrependReactor("get", "namespaces", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("the API server is away")
	})
	gone := profiles + "kns.gone"
	w.put(gone, `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.gone"},"spec":{}}`)
	w.start()
	w.until("the log says why it stays", func() bool { return w.log.count("the API server is away") > 0 })
	if w.get(gone) == "" {
		t.Error("it was deleted")
	}
	if w.log.count("an object is not in etcd as it should be") != 1 {
		t.Error("the log says it more than once")
	}
}

func TestWorkStopsWhileTheLeaseCannotBeRenewed(t *testing.T) {
	w := newWorld(t)
	fakes, ok := w.kube.(*fake.Clientset)
	if !ok {
		t.Skip("a real API server always answers")
	}
	away := make(chan bool, 1)
	fakes.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case is := <-away:
			away <- is
			return is, nil, fmt.Errorf("the API server is away")
		default:
			return false, nil, nil
		}
	})
	w.start()
	w.watched(1, "namespaces")
	w.until("it works", func() bool { return w.log.count("this process does the work now") > 0 })
	away <- true
	w.until("work stops", func() bool { return w.log.count("work stops until it is held again") > 0 })
	ns := w.namespace("-a", nil)
	<-away
	w.until("it goes on and has missed nothing", func() bool { return w.get(profiles+"kns."+ns) != "" })
}

func TestNothingIsDeletedBeforeTheCachesAreComplete(t *testing.T) {
	w := newWorld(t)
	fakes, ok := w.kube.(*fake.Clientset)
	if !ok {
		t.Skip("a real API server always answers")
	}
	ns := w.namespace("-a", nil)
	w.put(profiles+"kns."+ns, `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.`+ns+`"},"spec":{}}`)
	w.put(profiles+"kns.gone", `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.gone"},"spec":{}}`)
	let := make(chan struct{})
	fakes.PrependReactor("list", "namespaces", func(clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case <-let:
			return false, nil, nil
		default:
			return true, nil, errors.New("not yet")
		}
	})
	before := w.count(profiles)
	w.start()
	w.until("the log says what it waits for", func() bool { return w.log.count("Kubernetes does not tell of objects") == 1 })
	if w.count(profiles) != before || w.log.count("this process does the work") > 0 {
		t.Error("it began")
	}
	close(let)
	w.until("then it begins", func() bool { return w.get(profiles+"kns.gone") == "" })
}

func TestCompactionFollowsThePeriod(t *testing.T) {
	w := newWorld(t)
	old := must[int64](w)(w.c.Revision(w.Context()))
	w.put("/calico/x", "1")
	w.start("COMPACTION_PERIOD", "100ms")
	w.until("the beginning is forgotten", func() bool {
		_, err := w.etcd.Etcd().Get(context.Background(), "/calico/x", clientv3.WithRev(old))
		return err != nil && strings.Contains(err.Error(), "compacted")
	})
}

func TestPodsAreRememberedWithoutWhatNobodyReads(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"big": "x"}},
		Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "s", Containers: make([]corev1.Container, 3)}}
	o, err := trim(p)
	got, ok := o.(*corev1.Pod)
	if err != nil || !ok || got.Labels["a"] != "b" || got.Spec.NodeName != "n" || got.Spec.ServiceAccountName != "s" || got.Spec.Containers != nil || got.Annotations != nil {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := os.Stat(defaultStatusFile); err == nil {
		t.Error("a test wrote the real status file")
	}
}
