package controllers

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// apart is Cleaners whose looks a test makes, one by one, on a Kubernetes that it makes up.
type apart struct {
	*world
	Cleaners
	clock time.Time
	nodes map[string]*corev1.Node
	pods  map[string]*corev1.Pod // by namespace/name
	asked func()                 // is called whenever the API server is asked for a node; nil: nothing
}

func newApart(t *testing.T) *apart {
	a := &apart{world: newWorld(t), clock: time.Now(), nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{}}
	f := feed.New(a.c, slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	a.Cleaners = NewCleaners(CleanersDeps{Store: a.c, Feed: f, Kube: a, Now: func() time.Time { return a.clock }, UUID: func() string { return "new" },
		NodeGrace: time.Minute, LeakGrace: time.Minute, Log: slog.New(slog.NewTextHandler(a.log, nil))})
	return a
}

// caughtUp waits until the feed has all that etcd has.
func (a *apart) caughtUp() {
	a.Helper()
	if _, err := a.audit.picture(a.Context()); err != nil {
		a.Fatal(err)
	}
	a.until("the records are there", func() bool {
		s, _ := a.audit.feed.Snapshot()
		got := must[store.Entry[api.NodeIdentity]](a.world)
		_ = got
		e, err := store.Get[api.NodeIdentity](a.Context(), a.c, api.IdentityKey("n1"))
		return errors.Is(err, store.ErrNotFound) && !s.Identity("n1").Exists() || err == nil && s.Identity("n1").Rev == e.Rev
	})
}

// looks has the Node looked at, and once more when it has been missing for long enough.
func (a *apart) lookTwice() error {
	a.Helper()
	a.caughtUp()
	if _, err := a.Cleaners.Node(a.Context(), "n1"); err != nil {
		a.Fatal(err)
	}
	a.clock = a.clock.Add(2 * time.Minute)
	_, err := a.Cleaners.Node(a.Context(), "n1")
	return err
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

func (a *apart) Node(name string) (*corev1.Node, error)                { return a.nodes[name], nil }
func (a *apart) Pod(namespace, name string) (*corev1.Pod, error)       { return a.pods[namespace+"/"+name], nil }
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
	is := a.nodes[name]
	if a.asked != nil {
		a.asked()
	}
	return is, nil
}

func (a *apart) RunsNow(_ context.Context, node string) (*corev1.Pod, error) {
	if list, _ := a.PodsOn(node); len(list) > 0 {
		return list[0], nil
	}
	return nil, nil
}
