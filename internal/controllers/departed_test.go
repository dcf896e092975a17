package controllers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// slow is a way to etcd on which a commit is held until it is let go, long after its caller was told that the connection is gone. It is for one goroutine.
type slow struct {
	pb.KVClient
	before int // so many commits are carried out before one is held; negative: none is held
	held   *pb.TxnRequest
}

// Txn implements pb.KVClient.
func (s *slow) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if slices.ContainsFunc(r.Success, func(op *pb.RequestOp) bool { return op.GetRequestRange() == nil }) {
		if s.before--; s.before == -1 {
			s.held = r
			return nil, grpcstatus.Error(codes.Unavailable, "the connection is broken")
		}
	}
	return s.KVClient.Txn(ctx, r, opts...)
}

// apart is Cleaners whose looks a test makes, one by one, on a Kubernetes that it makes up.
type apart struct {
	*world
	Cleaners
	way   *slow
	clock time.Time
	nodes map[string]*corev1.Node
	pods  map[string]*corev1.Pod // by namespace/name
}

func newApart(t *testing.T, w *world) *apart {
	a := &apart{world: w, way: &slow{KVClient: clientv3.RetryKVClient(w.etcd.Etcd()), before: -1}, clock: time.Now(), nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{}}
	f := feed.New(w.c, slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	a.Cleaners = NewCleaners(CleanersDeps{Store: store.Over(store.Services{KV: a.way}, 0), Feed: f, Kube: a, Now: func() time.Time { return a.clock },
		UUID: func() string { return "new" }, NodeGrace: time.Minute, LeakGrace: time.Minute, Log: slog.New(slog.NewTextHandler(w.log, nil))})
	return a
}

// caughtUp waits until the feed has all that etcd has.
func (a *apart) caughtUp() {
	a.Helper()
	rev := must[int64](a.world)(a.c.Revision(a.Context()))
	if err := a.Cleaners.nodes.feed.WaitFor(a.Context(), rev); err != nil {
		a.Fatal(err)
	}
	a.until("the record is there", func() bool {
		e, err := store.Get[api.NodeIdentity](a.Context(), a.c, api.IdentityKey("n1"))
		s, _ := a.Cleaners.nodes.feed.Snapshot()
		return (err == nil || errors.Is(err, store.ErrNotFound)) && s.Identity("n1").Rev == e.Rev
	})
}

// look has the Node looked at.
func (a *apart) look() error {
	a.Helper()
	a.caughtUp()
	_, err := a.Cleaners.Node(a.Context(), "n1")
	return err
}

// lookTwice has the Node looked at, and once more when it has been missing for long enough.
func (a *apart) lookTwice() error {
	a.Helper()
	if err := a.look(); err != nil {
		a.Fatal(err)
	}
	a.clock = a.clock.Add(2 * time.Minute)
	return a.look()
}

// audits has the audit look so often, more than the grace apart.
func (a *apart) audits(n int) {
	a.Helper()
	for range n {
		a.caughtUp()
		if err := a.Audit(a.Context()); err != nil {
			a.Fatal(err)
		}
		a.clock = a.clock.Add(2 * time.Minute)
	}
}

// registers writes what an agent of the machine writes at its start: the record of whose the name is, where it says anything else.
func (a *apart) registers() {
	a.Helper()
	const record = `{"machineID":"m","nodeUID":"u"}`
	if a.get(api.NodeKey("n1")) == "" {
		a.node("n1", a.tag+"-gone", "")
	}
	if a.get(api.IdentityKey("n1")) != record {
		a.put(api.IdentityKey("n1"), record)
	}
}

// letGo has etcd carry out what was held, and reports whether it did.
func (a *apart) letGo() bool {
	a.Helper()
	res, err := a.way.KVClient.Txn(a.Context(), a.way.held)
	if err != nil {
		a.Fatal(err)
	}
	return res.Succeeded
}

func (a *apart) Node(name string) (*corev1.Node, error) { return a.nodes[name], nil }
func (a *apart) Pod(namespace, name string) (*corev1.Pod, error) {
	return a.pods[namespace+"/"+name], nil
}
func (a *apart) PodNow(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	return a.Pod(namespace, name)
}

func (a *apart) PodsOn(node string) (out []*corev1.Pod, err error) {
	for _, p := range a.pods {
		if p.Spec.NodeName == node {
			out = append(out, p)
		}
	}
	return out, nil
}

func (a *apart) NodeNow(_ context.Context, name string) (*corev1.Node, error) {
	return a.nodes[name], nil
}

func (a *apart) RunsNow(_ context.Context, node string) (*corev1.Pod, error) {
	if list, _ := a.PodsOn(node); len(list) > 0 {
		return list[0], nil
	}
	return nil, nil
}

// A deletion's transactions are held one by one, so that nobody knows what has become of them, and come to etcd when the host is back.
func TestDeletionThatComesLateTakesNothingFromANodeThatIsBack(t *testing.T) {
	for how, comesBack := range map[string]func(a *apart){
		"its agent has registered": func(a *apart) { a.registers() },
		"Kubernetes has it again": func(a *apart) {
			a.nodes[a.tag+"-gone"] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.tag + "-gone"}}
			if err := a.look(); err != nil {
				a.Error(err)
			}
		},
	} {
		t.Run(how, func(t *testing.T) {
			for late := 0; ; late++ {
				a := newApart(t, nodeWithPods(t))
				a.way.before = late
				err := a.lookTwice()
				if a.way.held == nil {
					if err != nil || late < 3 || a.get(api.NodeKey("n1")) != "" {
						t.Errorf("after %d transactions: %v", late, err)
					}
					return // that was all of them
				}
				if !errors.Is(err, store.ErrUnknown) {
					t.Errorf("transaction %d: %v", late, err)
				}
				comesBack(a)
				rev := must[int64](a.world)(a.c.Revision(a.Context()))
				if a.letGo() && strings.Contains(fmt.Sprint(a.way.held.Success), "request_delete_range") {
					t.Errorf("transaction %d was carried out when the host was back: %v", late, a.way.held.Success)
				}
				if a.get(api.NodeKey("n1")) == "" {
					t.Errorf("transaction %d, at revision %d, has deleted the Node of a host that lives", late, rev)
				}
			}
		})
	}
}

// What another program's deletion of a Node left is taken back as a whole, also what is of another IPAM; what may live stays.
func TestWhatAnotherProgramLeftOfANodeIsTakenBack(t *testing.T) {
	foreign := func(pod, orchestrator string) (key, value string) {
		return resources + "workloadendpoints/ns/" + "n1-" + orchestrator + "-" + pod + "-eth0", fmt.Sprintf(
			`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"n1-%s-%s-eth0","namespace":"ns"},"spec":{"orchestrator":%q,"node":"n1","pod":%[2]q,"endpoint":"eth0","containerID":"c","interfaceName":"cali7","ipNetworks":["192.0.2.7/32"]}}`,
			orchestrator, pod, orchestrator)
	}
	for what, c := range map[string]struct {
		orchestrator string
		prepare      func(a *apart)
		stays        bool
	}{
		"all are gone":           {"k8s", func(*apart) {}, false},
		"its name is recorded":   {"k8s", func(a *apart) { a.put(api.IdentityKey("n1"), `{"machineID":"m","nodeUID":"u"}`) }, false},
		"Kubernetes has the pod": {"k8s", func(a *apart) { a.pods["ns/p"] = &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}} }, true},
		"a pod has it on a node by another name": {"k8s", func(a *apart) {
			a.pods["ns/p"] = &corev1.Pod{Spec: corev1.PodSpec{NodeName: "k1"}, Status: corev1.PodStatus{PodIP: "192.0.2.7"}}
		}, true},
		"a pod of the name is elsewhere": {"k8s", func(a *apart) {
			a.pods["ns/p"] = &corev1.Pod{Spec: corev1.PodSpec{NodeName: "k1"}, Status: corev1.PodStatus{PodIP: "192.0.2.8"}}
		}, false},
		"Kubernetes has the node": {"k8s", func(a *apart) { a.nodes["n1"] = &corev1.Node{} }, true},
		"it is not Kubernetes'":   {"cni", func(*apart) {}, true},
	} {
		t.Run(what, func(t *testing.T) {
			a := newApart(t, newWorld(t))
			key, value := foreign("p", c.orchestrator)
			a.put(key, value)
			a.put(blockKey("10.0.0.0/30"), `{"cidr":"10.0.0.0/30","affinity":"host:n1","allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":[],"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}`)
			a.put("/calico/ipam/v2/host/n1/ipv4/block/10.0.0.0-30", `{"state":"confirmed","deleted":false}`)
			c.prepare(a)
			a.audits(3)
			left := a.left("n1")
			if c.stays && (a.get(key) == "" || a.get(blockKey("10.0.0.0/30")) == "") {
				t.Errorf("something was taken; left is %v", left)
			}
			if !c.stays && len(left) > 0 {
				t.Errorf("left is %v", left)
			}
		})
	}
}
