package controllers

import (
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/ipamtest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// nodeWithPods has a Node whose node Kubernetes does not have, with two pods that are gone too, a tunnel address and an identity.
func nodeWithPods(t *testing.T) *world {
	w := newWorld(t)
	w.node("n1", w.tag+"-gone", "")
	w.endpoint("ns", "a", "n1", "10.0.0.0/30")
	w.endpoint("ns", "b", "n1", "10.0.0.4/30")
	w.holding("n1", "10.0.0.8/30", api.VXLANHandle("n1", false), map[string]string{api.AttrNode: "n1", api.AttrType: api.AttrTypeVXLAN})
	w.put(api.IdentityKey("n1"), `{"machineID":"m","nodeUID":"u"}`)
	w.put(resources+"felixconfigurations/node.n1", `{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"node.n1"},"spec":{}}`)
	return w
}

// left is what etcd still has of a node.
func (w *world) left(node string) (keys []string) {
	got, err := w.etcd.Etcd().Get(w.Context(), "/", clientv3.WithPrefix())
	if err != nil {
		return []string{err.Error()}
	}
	for _, kv := range got.Kvs {
		if strings.Contains(string(kv.Key)+string(kv.Value), node) {
			keys = append(keys, string(kv.Key))
		}
	}
	return keys
}

func TestNodeGoesWithItsNodeOfKubernetesAndAllThatItHeld(t *testing.T) {
	w := nodeWithPods(t)
	other := w.kubeNode("-other", nil)
	w.node("m2", other, "")
	w.endpoint("ns", "c", "m2", "10.0.1.0/30")
	w.start()
	w.until("nothing is left of it", func() bool { return len(w.left("n1")) == 0 })
	if w.get(api.NodeKey("m2")) == "" || w.freed("10.0.1.0/30") {
		t.Error("another node lost something")
	}
	w.sound()
}

func TestNodeDeletionGoesOnWhereItWasKilled(t *testing.T) {
	for stopAt := int64(1); stopAt <= 5; stopAt++ {
		w := nodeWithPods(t)
		from := must[int64](w)(w.c.Revision(w.Context())) + 1
		watch := w.etcd.Etcd().Watch(w.Context(), "/calico/ipam/", clientv3.WithPrefix(), clientv3.WithRev(from))
		_, stop := w.start("ENABLED_CONTROLLERS", "node")
		deadline := time.Now().Add(20 * time.Second)
		for n := int64(0); n < stopAt && w.get(api.NodeKey("n1")) != ""; {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d writes after 20 seconds", n, stopAt)
			}
			n += int64(len(w.next(watch)))
		}
		stop() // as near to a kill as one process comes
		_, stop = w.start("ENABLED_CONTROLLERS", "node")
		w.until("nothing is left of it", func() bool { return len(w.left("n1")) == 0 })
		stop() // the next one waits for its lease
		w.sound()
	}
}

func TestNodeStaysWhileSomethingMayUseItsAddresses(t *testing.T) {
	for what, prepare := range map[string]func(w *world){
		"a pod": func(w *world) { w.pod(w.namespace("-a", nil), "p", w.tag+"-gone", nil) },
		"an endpoint of somebody else": func(w *world) {
			w.put(resources+"workloadendpoints/ns/x", `{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"x","namespace":"ns"},"spec":{"orchestrator":"cni","node":"n1","endpoint":"eth0","containerID":"x","interfaceName":"cali9"}}`)
		},
		"an address of nobody knows": func(w *world) { w.holding("n1", "10.0.0.12/30", "net.x", map[string]string{api.AttrNode: "n1"}) },
	} {
		t.Run(what, func(t *testing.T) {
			w := nodeWithPods(t)
			prepare(w)
			w.start()
			w.until("the log says why it stays", func() bool { return w.log.count("the Node stays") == 1 })
			if w.get(api.NodeKey("n1")) == "" || w.freed("10.0.0.0/30") {
				t.Error("the Node, or an address, is gone")
			}
		})
	}
}

func TestNodeWithoutANodeOfKubernetesIsNobodysToDelete(t *testing.T) {
	w := newWorld(t)
	w.put(api.NodeKey("metal"), `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"metal"},"spec":{"orchRefs":[{"nodeName":"x","orchestrator":"openstack"}]}}`)
	w.endpoint("ns", "a", "metal", "10.0.0.0/30")
	w.grace(250 * time.Millisecond)
	w.node("n1", w.tag+"-gone", "")
	w.start()
	w.until("the other one is gone", func() bool { return w.get(api.NodeKey("n1")) == "" })
	if w.get(api.NodeKey("metal")) == "" || w.freed("10.0.0.0/30") {
		t.Error("the Node, or its address, is gone")
	}
}

// auditWorld has a Node of Kubernetes that reports, and a pod in a namespace of its own.
func auditWorld(t *testing.T) (w *world, ns, in string) {
	w = newWorld(t)
	w.grace(500 * time.Millisecond)
	in = w.kubeNode("-k", nil)
	w.node("n1", in, "")
	return w, w.namespace("-a", nil), in
}

func TestAddressOfAPodThatIsGoneIsFreedAfterTheGrace(t *testing.T) {
	w, ns, in := auditWorld(t)
	w.pod(ns, "lives", in, nil)
	alive := w.endpoint(ns, "lives", "n1", "10.0.0.0/30")
	w.pod(ns, "dies", in, nil)
	dead := w.endpoint(ns, "dies", "n1", "10.0.0.4/30")
	w.address(ns, "bare", "n1", "10.0.0.8/30")
	w.start()
	w.watched(1, "pods")
	w.until("the one without endpoint is freed", func() bool { return w.freed("10.0.0.8/30") })
	if w.freed("10.0.0.4/30") {
		t.Fatal("a pod that Kubernetes has lost its address")
	}
	w.dropPod(ns, "dies")
	w.until("that pod's is freed when it is gone", func() bool { return w.freed("10.0.0.4/30") && w.get(dead) == "" })
	if w.freed("10.0.0.0/30") || w.get(alive) == "" {
		t.Error("a pod that lives lost its address")
	}
	w.until("the log tells of both", func() bool { return w.log.count("freed the addresses of a pod that is gone") == 2 })
}

func TestAddressThatMayBeInUseIsKept(t *testing.T) {
	w, ns, in := auditWorld(t)
	silent := w.kubeNode("-silent", nil)
	w.ready(silent, corev1.ConditionUnknown)
	w.node("m2", silent, "")
	w.node("m3", in, "")
	w.put(api.IdentityKey("m3"), `{"machineID":"m","nodeUID":"u"}`)
	w.address(ns, "cut-off", "m2", "10.0.0.0/30")                                                      // its node does not report
	w.endpoint(ns, "agents", "m3", "10.0.0.4/30")                                                      // an agent of ours sees to it
	w.holding("n1", "10.0.0.8/30", "net.x", map[string]string{api.AttrNode: "n1"})                     // nobody knows whose
	w.holding("n1", "10.0.0.12/30", "t", map[string]string{api.AttrNode: "n1", api.AttrType: "other"}) // no pod's
	w.pod(ns, "second", in, nil)
	w.address(ns, "second", "n1", "10.0.0.16/30") // not among the addresses that the pod reports: of another network
	w.address(ns, "leak", "n1", "10.0.0.20/30")   // shows that the audit has come round
	w.start()
	w.watched(1, "nodes")
	w.until("the leak is freed", func() bool { return w.freed("10.0.0.20/30") })
	w.address(ns, "leak", "n1", "10.0.0.24/30")
	w.until("another leak is freed", func() bool { return w.freed("10.0.0.24/30") })
	for _, block := range []string{"10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/30", "10.0.0.12/30", "10.0.0.16/30"} {
		if w.freed(block) {
			t.Errorf("%s was freed", block)
		}
	}
	w.ready(silent, corev1.ConditionTrue)
	w.until("a node that reports again is judged", func() bool { return w.freed("10.0.0.0/30") })
}

func TestAddressOlderThanThePodOfItsNameIsALeak(t *testing.T) {
	w, ns, in := auditWorld(t)
	w.pod(ns, "db-0", in, nil)
	old := time.Now().Add(-time.Hour).UTC().String()
	w.holding("n1", "10.0.0.0/30", "net.before", map[string]string{api.AttrNode: "n1", api.AttrNamespace: ns, api.AttrPod: "db-0", api.AttrTimestamp: old})
	w.address(ns, "db-0", "n1", "10.0.0.4/30")
	w.start()
	w.until("the old one is freed", func() bool { return w.freed("10.0.0.0/30") })
	if w.freed("10.0.0.4/30") {
		t.Error("the pod's own was freed too")
	}
}

func TestHandleIsFreedWholeOrNotAtAll(t *testing.T) {
	w, ns, in := auditWorld(t)
	w.pod(ns, "lives", in, nil)
	w.address(ns, "lives", "n1", "10.0.0.0/30")
	w.address(ns, "gone", "n1", "10.0.0.4/30")
	for _, b := range []string{"10.0.0.0/30", "10.0.0.4/30"} {
		w.put(blockKey(b), strings.NewReplacer("net.c-lives", "net.both", "net.c-gone", "net.both").Replace(w.get(blockKey(b))))
	}
	w.put(api.HandleKey("net.both"), `{"block":{"10.0.0.0/30":1,"10.0.0.4/30":1},"deleted":false}`)
	w.address(ns, "leak", "n1", "10.0.0.20/30")
	w.start()
	w.until("the leak is freed", func() bool { return w.freed("10.0.0.20/30") })
	if w.freed("10.0.0.0/30") || w.freed("10.0.0.4/30") {
		t.Error("an address of a handle that is in use was freed")
	}
}

func TestNoGraceMeansThatNothingIsFreed(t *testing.T) {
	w, ns, _ := auditWorld(t)
	w.grace(0)
	w.address(ns, "gone", "n1", "10.0.0.0/30")
	s, _ := w.start()
	w.until("the audit has counted", func() bool {
		s.meters.mu.Lock()
		defer s.meters.mu.Unlock()
		return len(s.meters.gauges) > 0
	})
	if w.freed("10.0.0.0/30") {
		t.Error("it was freed")
	}
}

func TestBlocksOfANodeThatNobodyKnowsAreFreed(t *testing.T) {
	w, ns, _ := auditWorld(t)
	w.endpoint(ns, "gone", "ghost", "10.0.0.0/30")
	w.holding("ghost", "10.0.0.4/30", api.VXLANHandle("ghost", false), map[string]string{api.AttrNode: "ghost", api.AttrType: api.AttrTypeVXLAN})
	w.start()
	w.until("nothing of it is left", func() bool { return len(w.left("ghost")) == 0 })
}

func TestGarbageStopsNothingElse(t *testing.T) {
	w, ns, _ := auditWorld(t)
	w.put(blockKey("10.9.0.0/30"), `{`)
	w.put(api.HandleKey("net.c-bad"), `{`)
	w.address(ns, "bad", "n1", "10.0.0.4/30")
	w.put(api.HandleKey("net.c-bad"), `{`)
	w.put(api.NodeKey("bad"), `{`)
	w.put(resources+"workloadendpoints/ns/bad", `[]`)
	w.put(resources+"hostendpoints/n1-auto-hep", `7`)
	w.address(ns, "leak", "n1", "10.0.0.0/30")
	w.start()
	w.until("the leak is freed", func() bool { return w.freed("10.0.0.0/30") })
	w.until("the profile is there", func() bool { return w.get(profiles+"kns."+ns) != "" })
	if w.freed("10.0.0.4/30") {
		t.Error("an address of a handle that cannot be read was freed")
	}
}

// next is what the next message of a watch tells; nothing if none comes soon.
func (w *world) next(watch clientv3.WatchChan) []*clientv3.Event {
	select {
	case r := <-watch:
		return r.Events
	case <-time.After(time.Second):
		return nil
	}
}

// sound holds all that etcd says of addresses against itself.
func (w *world) sound() {
	w.Helper()
	v, err := ipamtest.Read(w.Context(), w.c)
	if err == nil {
		err = v.Sound()
	}
	if err != nil {
		w.Error(err)
	}
}
