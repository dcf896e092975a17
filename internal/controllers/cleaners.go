package controllers

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Cluster is what Kubernetes has, for those controllers that take addresses back. An object that does not exist is nil without an error. Objects are not to be
// modified.
type Cluster interface {
	// Node, Pod and PodsOn, which lists the pods that a node runs, are out of caches, which may be behind.
	Node(name string) (*corev1.Node, error)
	Pod(namespace, name string) (*corev1.Pod, error)
	PodsOn(node string) ([]*corev1.Pod, error)
	// NodeNow, PodNow and RunsNow, which is a pod that a node runs, are what the API server itself says.
	NodeNow(ctx context.Context, name string) (*corev1.Node, error)
	PodNow(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	RunsNow(ctx context.Context, node string) (*corev1.Pod, error)
}

// Cleaners are the controllers that take addresses back, without what makes them look: a simulation decides of that.
type Cleaners struct {
	nodes *nodes
	audit *audit
}

// CleanersDeps are what Cleaners work with.
type CleanersDeps struct {
	Store     *store.Client
	Feed      *feed.Feed
	Kube      Cluster
	Now       func() time.Time
	UUID      func() string
	NodeGrace time.Duration // for which Kubernetes must not have a node
	LeakGrace time.Duration // for which an address must be leaked
	Log       *slog.Logger
}

// NewCleaners makes Cleaners that remember nothing, as those of a process that has just begun.
func NewCleaners(d CleanersDeps) Cleaners {
	t := &tools{store: d.Store, feed: d.Feed, now: d.Now, uuid: d.UUID, meters: newMeters(), log: d.Log}
	a := newAudit(t, d.LeakGrace, 0)
	a.kube = d.Kube
	return Cleaners{
		nodes: &nodes{tools: t, kube: d.Kube, grace: d.NodeGrace, missing: map[string]time.Time{}, kept: map[string]string{}},
		audit: a,
	}
}

// Audit looks once at all addresses, and frees what is due. One caller at a time.
func (c Cleaners) Audit(ctx context.Context) error { return c.audit.look(ctx) }

// Came tells that the caches have heard of a node of Kubernetes that there is.
func (c Cleaners) Came(node string) { c.nodes.came(node) }

// Node looks once whether Kubernetes still has the node that a Node stands for, and takes all back that it had if not. again is when to look
// anew although nothing failed, 0 for when something changes. It may be called concurrently for several Nodes.
func (c Cleaners) Node(ctx context.Context, name string) (again time.Duration, err error) {
	return c.nodes.put(ctx, api.NodeKey(name))
}
