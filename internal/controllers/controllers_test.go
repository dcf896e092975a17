package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

const profiles = resources + "profiles/"

func (w *world) policy(ns, name string) {
	w.Helper()
	must[*networkingv1.NetworkPolicy](w)(w.kube.NetworkingV1().NetworkPolicies(ns).Create(w.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}, metav1.CreateOptions{}))
}

func (w *world) patchLabels(what func(context.Context, string, types.PatchType, []byte, metav1.PatchOptions) error, name, labels string) {
	w.Helper()
	if err := what(w.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{}); err != nil {
		w.Fatal(err)
	}
}

func TestObjectsAreMirroredFollowedAndRemoved(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.watched(1, "namespaces", "serviceaccounts", "networkpolicies")
	ns := w.namespace("-a", map[string]string{"team": "x"})
	must[*corev1.ServiceAccount](w)(w.kube.CoreV1().ServiceAccounts(ns).Create(w.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "sa.one"}}, metav1.CreateOptions{}))
	w.policy(ns, "web")
	kns, ksa := profiles+"kns."+ns, profiles+"ksa."+ns+".sa.one"
	knp := resources + "networkpolicies/" + ns + "/knp.default.web"
	w.until("all three are mirrored", func() bool { return w.get(kns) != "" && w.get(ksa) != "" && w.get(knp) != "" })
	for key, parts := range map[string][]string{
		kns: {`"ingress":[{"action":"Allow","source":{},"destination":{}}]`, `"egress":[{"action":"Allow","source":{},"destination":{}}]`, `"pcns.team":"x"`, `"pcns.projectcalico.org/name":"` + ns + `"`},
		ksa: {`"pcsa.projectcalico.org/name":"sa.one"`},
		knp: {`"order":1000`, `"selector":"projectcalico.org/orchestrator == 'k8s'"`, `"types":["Ingress"]`, `"projectcalico.org/metadata":"{\"name\":\"knp.default.web\"}"`},
	} {
		for _, part := range parts {
			if got := w.get(key); !strings.Contains(got, part) {
				t.Errorf("%s lacks %s: %s", key, part, got)
			}
		}
	}
	w.patchLabels(func(ctx context.Context, n string, p types.PatchType, b []byte, o metav1.PatchOptions) error {
		_, err := w.kube.CoreV1().Namespaces().Patch(ctx, n, p, b, o)
		return err
	}, ns, `{"team":"y"}`)
	w.until("the new label is there", func() bool { return strings.Contains(w.get(kns), `"pcns.team":"y"`) })
	if err := w.kube.NetworkingV1().NetworkPolicies(ns).Delete(w.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.kube.CoreV1().ServiceAccounts(ns).Delete(w.Context(), "sa.one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.dropNamespace(ns)
	w.until("all are gone", func() bool { return w.get(kns) == "" && w.get(ksa) == "" && w.get(knp) == "" })
}

func TestWhatOthersDoIsPutRightAndWhatIsTheirsIsLeft(t *testing.T) {
	w := newWorld(t)
	ns := w.namespace("-a", nil)
	kns := profiles + "kns." + ns
	theirs := map[string]string{
		profiles + "mine":                             `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"mine"},"spec":{}}`,
		profiles + "ksax." + ns:                       `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"x"},"spec":{}}`,
		resources + "networkpolicies/" + ns + "/mine": `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"mine","namespace":"` + ns + `"},"spec":{}}`,
		api.NodeKey("metal"):                          `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"metal"},"spec":{}}`,
	}
	for key, v := range theirs {
		w.put(key, v)
	}
	w.put(kns, `{"spec":`) // nobody can read this
	w.put(profiles+"kns.gone", `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.gone"},"spec":{}}`)
	w.put(profiles+"ksa.gone.x", `garbage`)
	w.put(resources+"networkpolicies/gone/knp.default.x", `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"knp.default.x","namespace":"gone"},"spec":{}}`)
	w.start()
	w.until("garbage is replaced and what is gone is removed", func() bool {
		return strings.Contains(w.get(kns), `"pcns.projectcalico.org/name"`) && w.get(profiles+"kns.gone") == "" && w.get(profiles+"ksa.gone.x") == "" &&
			w.get(resources+"networkpolicies/gone/knp.default.x") == ""
	})
	w.put(kns, strings.Replace(w.get(kns), `"spec":{`, `"spec":{"future":7,`, 1))
	w.put(kns, strings.Replace(w.get(kns), `"pcns.projectcalico.org/name"`, `"wrong"`, 1))
	w.until("a wrong label is put right, and what is not known stays", func() bool {
		return strings.Contains(w.get(kns), `"pcns.projectcalico.org/name"`) && strings.Contains(w.get(kns), `"future":7`)
	})
	for key, v := range theirs {
		if got := w.get(key); got != v {
			t.Errorf("%s became %q", key, got)
		}
	}
}

func TestPoliciesUnderTheNamesOfOldReleasesGoOnceTheNewAreThere(t *testing.T) {
	w := newWorld(t)
	ns := w.namespace("-a", nil)
	w.policy(ns, "web")
	old := resources + "networkpolicies/" + ns + "/default.knp.default.web"
	w.put(old, `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.knp.default.web","namespace":"`+ns+`"},"spec":{}}`)
	watch := w.etcd.Etcd().Watch(w.Context(), resources+"networkpolicies/", clientv3.WithPrefix())
	w.start()
	var order []string
	for len(order) < 2 {
		for _, e := range (<-watch).Events {
			order = append(order, e.Type.String()+" "+string(e.Kv.Key))
		}
	}
	if diff := cmp.Diff([]string{"PUT " + resources + "networkpolicies/" + ns + "/knp.default.web", "DELETE " + old}, order); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNothingIsWrittenToALockedDatastore(t *testing.T) {
	w := newWorld(t)
	w.put(clusterKey, `{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":false}}`)
	ns := w.namespace("-a", nil)
	gone := profiles + "kns.gone"
	w.put(gone, `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.gone"},"spec":{}}`)
	s, _ := w.start()
	w.until("everything was looked at", func() bool { return w.log.count("this process does the work now") > 0 && s.status(partStartup) == "" })
	w.put(profiles+"kns.another", `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.another"},"spec":{}}`)
	w.until("the change was looked at", func() bool { return w.looks(s, controllerNamespace) >= 3 })
	if w.get(profiles+"kns."+ns) != "" || w.get(gone) == "" {
		t.Error("a locked datastore was written to")
	}
	w.put(clusterKey, `{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":true}}`)
	w.until("it is done once it is unlocked", func() bool { return w.get(profiles+"kns."+ns) != "" && w.get(gone) == "" })
}

func TestNothingIsDeletedInAnEtcdWithoutClusterInformation(t *testing.T) {
	w := newWorld(t)
	if _, err := w.etcd.Etcd().Delete(w.Context(), clusterKey); err != nil {
		t.Fatal(err)
	}
	ns := w.namespace("-a", nil)
	gone := profiles + "kns.gone"
	w.put(gone, `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.gone"},"spec":{}}`)
	s, _ := w.start()
	w.until("what is missing is written", func() bool { return w.get(profiles+"kns."+ns) != "" && w.looks(s, controllerNamespace) >= 2 })
	if w.get(gone) == "" {
		t.Error("a profile was deleted")
	}
}

// status is why a part is not well.
func (s *service) status(part string) string { return s.health.status().Parts[part] }

// looks is how often a controller looked at an object.
func (w *world) looks(s *service, controller string) (n float64) {
	families, err := s.meters.registry.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "muslin_controllers_objects_total" && l.GetName() == "controller" && l.GetValue() == controller {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

func TestNodesGetTheLabelsOfKubernetesAndKeepTheirOwn(t *testing.T) {
	w := newWorld(t)
	in := w.kubeNode("-k", map[string]string{"zone": "a", "gone": "soon"})
	w.node("n1", in, `,"labels":{"own":"1","zone":"z"},"annotations":{"mine":"2"}`)
	w.start()
	w.watched(1, "nodes")
	w.until("the labels are there", func() bool { return strings.Contains(w.get(api.NodeKey("n1")), `"zone":"a"`) })
	got := must[store.Entry[api.Node]](w)(store.Get[api.Node](w.Context(), w.c, api.NodeKey("n1")))
	if l := got.Value.Metadata.Labels; l["own"] != "1" || l["gone"] != "soon" || !strings.Contains(string(got.Raw()), `"future":1`) {
		t.Errorf("the Node became %s", got.Raw())
	}
	var had map[string]string
	if err := json.Unmarshal([]byte(got.Value.Metadata.Annotations["projectcalico.org/kube-labels"]), &had); err != nil || had["zone"] != "a" || had["own"] != "" {
		t.Errorf("annotations %v, %v", got.Value.Metadata.Annotations, err)
	}
	w.patchLabels(func(ctx context.Context, n string, p types.PatchType, b []byte, o metav1.PatchOptions) error {
		_, err := w.kube.CoreV1().Nodes().Patch(ctx, n, p, b, o)
		return err
	}, in, `{"gone":null,"zone":"b"}`)
	w.until("a label goes with Kubernetes'", func() bool {
		e := must[store.Entry[api.Node]](w)(store.Get[api.Node](w.Context(), w.c, api.NodeKey("n1")))
		l := e.Value.Metadata.Labels
		_, there := l["gone"]
		return !there && l["zone"] == "b" && l["own"] == "1" && e.Value.Metadata.Annotations["mine"] == "2"
	})
}

func TestEndpointFollowsItsPod(t *testing.T) {
	w := newWorld(t)
	ns := w.namespace("-a", nil)
	in := w.kubeNode("-k", nil)
	w.node("n1", in, "")
	w.pod(ns, "web", in, map[string]string{"app": "web"})
	key := w.endpoint(ns, "web", "n1", "10.0.0.0/30")
	left := w.endpoint(ns, "ended", "n1", "10.0.0.4/30")
	w.start()
	w.watched(1, "pods")
	w.until("the pod's labels are there", func() bool { return strings.Contains(w.get(key), `"app":"web"`) })
	e := must[store.Entry[api.WorkloadEndpoint]](w)(store.Get[api.WorkloadEndpoint](w.Context(), w.c, key))
	want := map[string]string{"app": "web", api.LabelNamespace: ns, api.LabelOrchestrator: "k8s", "projectcalico.org/serviceaccount": "runner"}
	if diff := cmp.Diff(want, e.Value.Metadata.Labels); diff != "" || e.Value.Spec.ServiceAccountName != "runner" || e.Value.Spec.ContainerID != "c-web" {
		t.Errorf("endpoint %s (-want +got):\n%s", e.Raw(), diff)
	}
	w.patchLabels(func(ctx context.Context, n string, p types.PatchType, b []byte, o metav1.PatchOptions) error {
		_, err := w.kube.CoreV1().Pods(ns).Patch(ctx, n, p, b, o)
		return err
	}, "web", `{"app":"api"}`)
	w.until("the label follows", func() bool { return strings.Contains(w.get(key), `"app":"api"`) })
	if got := w.get(left); !strings.Contains(got, `"old":"1"`) {
		t.Errorf("the endpoint of no pod became %q", got)
	}
	w.dropPod(ns, "web")
	if w.get(key) == "" {
		t.Error("the endpoint went with the pod: that is the agent's business")
	}
}

func TestTwoThousandNamespacesAreThereSoon(t *testing.T) {
	w := newWorld(t)
	const n = 2000
	if w.real {
		t.Skip("this one is about our own pace, and a real API server takes its time")
	}
	for i := range n {
		w.namespace(fmt.Sprintf("-%d", i), nil)
	}
	began := time.Now()
	_, stop := w.start()
	deadline := time.After(2 * time.Minute)
	for w.count(profiles+"kns.") < n {
		select {
		case <-deadline:
			t.Fatalf("%d of %d after two minutes", w.count(profiles+"kns."), n)
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Logf("%d profiles in %v", n, time.Since(began))
	stop()
	before := must[int64](w)(w.c.Revision(w.Context()))
	s, stop := w.start()
	w.until("all were looked at again", func() bool { return w.looks(s, controllerNamespace) >= n })
	stop()
	if after := must[int64](w)(w.c.Revision(w.Context())); after != before {
		t.Errorf("a second start wrote %d times", after-before)
	}
}

func TestEtcdThatGoesAndComesBackMissesNothing(t *testing.T) {
	w := newWorld(t)
	first := w.namespace("-a", nil)
	w.start()
	w.watched(1, "namespaces")
	w.until("the first is mirrored", func() bool { return w.get(profiles+"kns."+first) != "" })
	w.etcd.Stop()
	second := w.namespace("-b", nil)
	w.dropNamespace(first)
	w.until("the log says so", func() bool { return w.log.count("cannot write to etcd") > 0 })
	w.etcd.Start()
	w.until("both are as they should be", func() bool { return w.get(profiles+"kns."+first) == "" && w.get(profiles+"kns."+second) != "" })
}

func TestTwoInstancesTakeTurns(t *testing.T) {
	w := newWorld(t)
	_, stop := w.start()
	w.until("one does the work", func() bool { return w.log.count("this process does the work now") > 0 })
	w.start()
	w.watched(2, "namespaces")
	w.until("the other waits", func() bool { return w.log.count("another process does the work") > 0 })
	stop()
	w.until("the other takes over", func() bool { return w.log.count("this process does the work now") > 1 })
	ns := w.namespace("-a", nil)
	w.until("and works", func() bool { return w.get(profiles+"kns."+ns) != "" })
}

func TestTwoAtOnceWithoutALeaseAgree(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		w.start("LEADER_ELECTION", "false")
	}
	w.watched(2, "namespaces")
	const n = 40
	var names []string
	for i := range n {
		names = append(names, w.namespace(fmt.Sprintf("-%d", i), nil))
	}
	w.until("all are there", func() bool { return w.count(profiles+"kns."+w.tag) == n })
	for _, ns := range names[:n/2] {
		w.dropNamespace(ns)
	}
	w.until("half are gone", func() bool { return w.count(profiles+"kns."+w.tag) == n/2 })
}

func TestConfigurationIsMadeReportedAndFollowed(t *testing.T) {
	w := newWorld(t)
	in := w.kubeNode("-k", map[string]string{"zone": "a"})
	w.start("ENABLED_CONTROLLERS", "namespace,node,loadbalancer", "RECONCILER_PERIOD", "1m")
	read := func() *api.KubeControllersConfiguration {
		e, err := store.Get[api.KubeControllersConfiguration](w.Context(), w.c, configKey())
		if err != nil {
			return &api.KubeControllersConfiguration{}
		}
		return e.Value
	}
	w.until("the status is written", func() bool { return read().Status.RunningConfig != nil })
	k := read()
	running := k.Status.RunningConfig.Controllers
	if running.Policy != nil || running.Namespace.ReconcilerPeriod.Duration != time.Minute || k.Spec.Controllers.Policy == nil || k.Spec.Controllers.Namespace.ReconcilerPeriod.Duration != defaultPeriod {
		t.Errorf("spec %+v, running %+v", k.Spec.Controllers, running)
	}
	if diff := cmp.Diff(map[string]string{"ENABLED_CONTROLLERS": "namespace,node,loadbalancer", "RECONCILER_PERIOD": "1m"}, k.Status.EnvironmentVars); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	k.Spec.Controllers.Node.HostEndpoint.AutoCreate = "Enabled"
	w.put(configKey(), string(must[[]byte](w)(api.EncodeObject(k, nil))))
	w.node("n1", in, "")
	hep := resources + "hostendpoints/n1-auto-hep"
	w.until("a host endpoint is made, with the node's labels", func() bool { return strings.Contains(w.get(hep), `"zone":"a"`) })
	for _, part := range []string{`"interfaceName":"*"`, `"expectedIPs":["172.30.0.1"]`, `"profiles":["projectcalico-default-allow"]`, `"projectcalico.org/created-by":"calico-kube-controllers"`} {
		if got := w.get(hep); !strings.Contains(got, part) {
			t.Errorf("%s lacks %s", got, part)
		}
	}
	w.put(resources+"hostendpoints/own-auto-hep", `{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"own-auto-hep"},"spec":{"node":"n1","interfaceName":"eth9"}}`)
	k = read()
	k.Spec.Controllers.Node.HostEndpoint.AutoCreate = "Disabled"
	w.put(configKey(), string(must[[]byte](w)(api.EncodeObject(k, nil))))
	w.until("it goes when it is not wanted", func() bool { return w.get(hep) == "" })
	if w.get(resources+"hostendpoints/own-auto-hep") == "" {
		t.Error("somebody's own host endpoint went with it")
	}
}
