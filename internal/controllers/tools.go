package controllers

import (
	"log/slog"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// tools are what every controller works with. They may be used concurrently.
type tools struct {
	store  *store.Client
	feed   *feed.Feed
	kube   *cluster
	limit  flowcontrol.RateLimiter // of writes to etcd, for all controllers together
	now    func() time.Time
	uuid   func() string
	meters *meters
	log    *slog.Logger
}

// object is a pointer to a resource that is stored.
type object[T any] interface {
	*T
	api.Object
}

// locked reports whether an operator has locked the datastore: nothing is written then.
func locked(snap feed.Snapshot) bool {
	c := snap.Cluster()
	return c.Exists() && !c.Value.Ready()
}

// settled reports whether what etcd lacks may be taken as gone: an etcd without ClusterInformation has not been set up yet, or has lost
// its data.
func settled(snap feed.Snapshot) bool { return snap.Cluster().Exists() && !locked(snap) }

// kubeName is the name that Kubernetes has for a node. ok is false if Kubernetes does not have it at all: its Node names no node of Kubernetes. Where
// there is no Node any more, both names are taken to be one.
func kubeName(snap feed.Snapshot, node string) (name string, ok bool) {
	e := snap.Node(node)
	if !e.Exists() {
		return node, true
	}
	return kubeconv.KubernetesName(e.Value)
}
