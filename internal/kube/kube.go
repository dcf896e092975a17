// Package kube follows what a node needs of Kubernetes: its own pods, the namespaces, and, once somebody asks, services, single Secrets and its Node.
//
//  1. What is asked for at every pod is in memory, and asking costs no round trip. What is not there yet is read from the API server itself, once
//     and with a deadline.
//  2. Only what is used is kept, and only what somebody has asked for is followed: services of a large cluster are many.
//  3. While the API server is away, what is known stays.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// API is an API server: Server, or a test's.
type API interface {
	Lists(Resource, Only) cache.ListerWatcher
	Get(ctx context.Context, r Resource, namespace, name string) (runtime.Object, error)
	PatchNode(ctx context.Context, name string, conditions ...corev1.NodeCondition) error
}

// Config is what a Node works with.
type Config struct {
	API       API
	Name      string // the node's, in Kubernetes
	Namespace string // that Secrets are looked for in
	Log       *slog.Logger
}

// askTimeout bounds what is read from the API server for one pod.
const askTimeout = 5 * time.Second

// patience is how long what has been asked for may be on its way before it counts as unknown.
const patience = 10 * time.Second

// Node is what one node knows of Kubernetes. All methods may be called concurrently.
type Node struct {
	cfg              Config
	pods, namespaces *follower
	demanded         chan struct{} // that followers wait to be run
	advertise        chan struct{}
	members          chan struct{}

	mu       sync.Mutex
	waiting  []*follower // to be run; guarded by mu, as are all below
	services *follower   // nil until somebody asks, as are the next two
	slices   *follower
	node     *follower
	secrets  map[string]*follower
	asked    map[string]struct{} // services whose members somebody wants

	known, unknown atomic.Uint64 // pods that Pod had in memory, and those that it had to ask for
}

// New prepares a Node. Nothing is asked before Run.
func New(cfg Config) *Node {
	n := &Node{
		cfg: cfg, demanded: make(chan struct{}, 1), advertise: make(chan struct{}, 1), members: make(chan struct{}, 1),
		secrets: map[string]*follower{}, asked: map[string]struct{}{},
	}
	nobody := func(any) {}
	n.pods = n.demand(Pods, Only{Fields: "spec.nodeName=" + cfg.Name}, nobody)
	n.namespaces = n.demand(Namespaces, Only{}, nobody)
	return n
}

// demand has a resource followed from now on. The caller holds mu, or nobody else knows of n.
func (n *Node) demand(r Resource, only Only, changed func(any)) *follower {
	f := follow(n.cfg.API, r, only, changed, n.cfg.Log)
	n.waiting = append(n.waiting, f)
	signal(n.demanded)
	return f
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run follows Kubernetes until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		for _, f := range n.take() {
			running.Go(func() { f.run(ctx) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.demanded:
		}
	}
}

func (n *Node) take() []*follower {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.waiting
	n.waiting = nil
	return out
}

// errOther is the error of a pod that has another one's name.
var errOther = errors.New("the API server has another pod of that name")

// Pod returns a pod of this node and its namespace, from memory if it is the one that is meant. Else it asks the API server, and waits for ctx and
// five seconds at most. The objects are not to be modified, and hold what strip leaves.
func (n *Node) Pod(ctx context.Context, ref attach.Pod) (*corev1.Pod, *corev1.Namespace, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pod, ok := held[*corev1.Pod](n.pods, ref.Namespace+"/"+ref.Name)
	if ok && kubeconv.IsPod(pod, ref.UID) && ref.UID != "" {
		n.known.Add(1)
	} else {
		n.unknown.Add(1)
		var err error
		if pod, err = ask[*corev1.Pod](ctx, n.cfg.API, Pods, ref.Namespace, ref.Name); err != nil {
			return nil, nil, err
		}
		if !kubeconv.IsPod(pod, ref.UID) {
			return nil, nil, fmt.Errorf("%w: its UID is %s, and the runtime's is %s", errOther, pod.UID, ref.UID)
		}
	}
	ns, ok := held[*corev1.Namespace](n.namespaces, ref.Namespace)
	if !ok {
		var err error
		if ns, err = ask[*corev1.Namespace](ctx, n.cfg.API, Namespaces, "", ref.Namespace); err != nil {
			return nil, nil, fmt.Errorf("namespace %s: %w", ref.Namespace, err)
		}
	}
	return pod, ns, nil
}

// Looked counts how often Pod had what it was asked for in memory, and how often it had to ask the API server.
func (n *Node) Looked() (known, unknown uint64) { return n.known.Load(), n.unknown.Load() }

// held is an object that a follower has.
func held[T any](f *follower, key string) (out T, ok bool) {
	o, found, err := f.informer.GetStore().GetByKey(key)
	if err != nil || !found {
		return out, false
	}
	out, ok = o.(T)
	return out, ok
}

func ask[T any](ctx context.Context, server API, r Resource, namespace, name string) (out T, err error) {
	o, err := server.Get(ctx, r, namespace, name)
	if err != nil {
		return out, err
	}
	out, ok := o.(T)
	if !ok {
		return out, fmt.Errorf("the API server answered with a %T", o)
	}
	return out, nil
}

// Secret returns the value of a key of a Secret. ok is false while it is not known or absent; Changed tells when it is there.
func (n *Node) Secret(name, key string) (value string, ok bool) {
	n.mu.Lock()
	f := n.secrets[name]
	if f == nil {
		f = n.demand(Secrets, Only{Namespace: n.cfg.Namespace, Fields: "metadata.name=" + name}, func(any) { signal(n.advertise) })
		n.secrets[name] = f
	}
	n.mu.Unlock()
	s, ok := held[*corev1.Secret](f, n.cfg.Namespace+"/"+name)
	if !ok {
		return "", false
	}
	b, ok := s.Data[key]
	return string(b), ok
}

// Changed delivers when Secret or Advertised may say something else.
func (n *Node) Changed() <-chan struct{} { return n.advertise }

// MembersChanged delivers when Members may say something else.
func (n *Node) MembersChanged() <-chan struct{} { return n.members }

// Knowledge is how well an answer is founded.
type Knowledge uint8

// What may be known of something.
const (
	Known   Knowledge = iota // as the API server had it when it last answered
	Coming                   // it has been asked for just now
	Unknown                  // the API server does not answer
)

func (f *follower) knowledge() Knowledge {
	switch {
	case f.synced():
		return Known
	case time.Since(f.since) < patience:
		return Coming
	}
	return Unknown
}

// Founded tells how well founded is what Secret and Advertised have answered so far: as well as the least known of what they were asked for. While something
// is Coming, for some seconds at most, the answers may lack it.
func (n *Node) Founded() Knowledge {
	n.mu.Lock()
	defer n.mu.Unlock()
	asked := slices.Collect(maps.Values(n.secrets))
	if n.services != nil {
		asked = append(asked, n.services, n.node, n.slices)
	}
	out := Known
	for _, f := range asked {
		switch f.knowledge() {
		case Coming:
			return Coming
		case Unknown:
			out = Unknown
		}
	}
	return out
}

// Members is where a service's endpoints are, for rules that match it; see kubeconv.ServiceMembers. They count only where they are Known.
func (n *Node) Members(namespace, name string) ([]policy.PortMember, Knowledge) {
	key := namespace + "/" + name
	n.mu.Lock()
	n.asked[key] = struct{}{}
	f := n.followSlices()
	n.mu.Unlock()
	if k := f.knowledge(); k != Known {
		return nil, k
	}
	return kubeconv.ServiceMembers(slicesOf(f, key)), Known
}

// followSlices is called with mu held.
func (n *Node) followSlices() *follower {
	if n.slices == nil {
		n.slices = n.demand(EndpointSlices, Only{}, func(o any) {
			if n.concerns(o) {
				signal(n.members)
			}
			if n.advertises() {
				signal(n.advertise)
			}
		})
	}
	return n.slices
}

// concerns tells whether a slice is of a service whose members somebody wants, or all may be.
func (n *Node) concerns(o any) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	keys, _ := serviceOfSlice(o) // it has no error
	return o == nil && len(n.asked) > 0 || slices.ContainsFunc(keys, func(k string) bool { _, ok := n.asked[k]; return ok })
}

func (n *Node) advertises() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.services != nil
}

func slicesOf(f *follower, service string) (out []*discoveryv1.EndpointSlice) {
	found, _ := f.informer.GetIndexer().ByIndex(byService, service) // there is such an index
	for _, o := range found {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			out = append(out, s)
		}
	}
	return out
}

// Advertised are the services' addresses that this node shall attract, sorted: whole ranges, and the addresses of single services. It is none while
// the Node has the label that takes it out of external load balancers' choice. While Kubernetes' part is not known yet, it is the ranges.
func (n *Node) Advertised(configs []*api.BGPConfiguration) []netip.Prefix {
	ranges := kubeconv.RangesOf(configs)
	if ranges.Empty() {
		return nil
	}
	services, endpoints, node := n.followServices()
	if o, ok := held[*corev1.Node](node, n.cfg.Name); ok {
		if _, excluded := o.Labels[corev1.LabelNodeExcludeBalancers]; excluded {
			return nil
		}
	}
	out := ranges.Whole()
	for _, o := range services.informer.GetStore().List() {
		s, ok := o.(*corev1.Service)
		if !ok {
			continue
		}
		local := slices.ContainsFunc(slicesOf(endpoints, s.Namespace+"/"+s.Name), func(e *discoveryv1.EndpointSlice) bool { return kubeconv.IsLocal(e, n.cfg.Name) })
		out = append(out, ranges.Addresses(s, local)...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// followServices has all followed that Advertised needs.
func (n *Node) followServices() (services, endpoints, node *follower) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.services == nil {
		n.services = n.demand(Services, Only{}, func(any) { signal(n.advertise) })
	}
	return n.services, n.followSlices(), n.followNode()
}

// followNode is called with mu held.
func (n *Node) followNode() *follower {
	if n.node == nil {
		n.node = n.demand(Nodes, Only{Fields: "metadata.name=" + n.cfg.Name}, func(any) {
			if n.advertises() {
				signal(n.advertise)
			}
		})
	}
	return n.node
}

// PodRanges are the ranges that Kubernetes has given to this node's pods, at most one of each family. It asks the API server the first time, and waits
// for ctx and five seconds at most.
func (n *Node) PodRanges(ctx context.Context) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	n.mu.Lock()
	f := n.followNode()
	n.mu.Unlock()
	node, ok := held[*corev1.Node](f, n.cfg.Name)
	if !ok {
		var err error
		if node, err = ask[*corev1.Node](ctx, n.cfg.API, Nodes, "", n.cfg.Name); err != nil {
			return nil, fmt.Errorf("read Node %s from Kubernetes: %w", n.cfg.Name, err)
		}
	}
	return kubeconv.PodRanges(node), nil
}

// SayNetwork tells Kubernetes whether pods on this node have a network: the scheduler sends none to a Node whose condition NetworkUnavailable is
// True. It waits for ctx.
func (n *Node) SayNetwork(ctx context.Context, up bool) error {
	return SayNetwork(ctx, n.cfg.API, n.cfg.Name, up)
}
