package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	auditTimeout = 30 * time.Second // for etcd to tell all that it knows, and for one release
	skew         = 5 * time.Minute  // by which nodes' clocks and the API server's may differ
)

// audit finds addresses of pods that went without a DEL, where no agent does.
//
//  1. An address in use is never freed. It is in use while Kubernetes has a pod of that name on that node which has not ended; where the allocation is
//     older than the pod, only while the pod reports the address.
//  2. Where an agent of ours runs and an endpoint has the address, that agent is the judge: it sees whether the interface is there. A node
//     that does not report to Kubernetes may run what Kubernetes has given up, so nothing of it is judged until it reports again or is deleted.
//  3. What is not known to be a pod's is never freed, nor is one address of a handle while another of it is in use.
//  4. A leak must be one at every look for the grace period, and at the end the API server itself is asked. On a node that is gone two looks are enough.
//  5. Each release is one transaction, which depends on what was judged: endpoint, Node or that there is none, whose machine has the node's name, and that the
//     datastore is not locked. So one that comes late takes nothing from a node that has registered meanwhile.
//  6. What a name has left that neither etcd nor Kubernetes has a node for goes as a whole: endpoints with another IPAM's addresses, blocks, tunnel addresses.
//
// run owns it.
type audit struct {
	*tools
	kube  Cluster
	grace time.Duration // 0: nothing is freed
	every time.Duration // between two looks

	since   map[string]time.Time    // handles that may be leaked
	looks   map[string]int          // how often in a row they were found so
	empty   map[netip.Prefix]vacant // blocks of nodes without an agent of ours that are empty
	strays  map[string]time.Time    // names of nodes that nobody knows and that have left something
	failing string                  // why the last look failed, as said
}

// vacant is since when a block is empty, as it is.
type vacant struct {
	rev   int64
	since time.Time
}

func newAudit(t *tools, grace, every time.Duration) *audit {
	return &audit{tools: t, kube: t.kube, grace: grace, every: every, since: map[string]time.Time{}, looks: map[string]int{},
		empty: map[netip.Prefix]vacant{}, strays: map[string]time.Time{}}
}

// run looks now and then until ctx ends. The caches must be complete.
func (a *audit) run(ctx context.Context) error {
	next := time.NewTicker(a.every)
	defer next.Stop()
	for {
		a.say(ctx, a.look(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
	}
}

func (a *audit) say(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		a.failing = ""
	case err.Error() != a.failing:
		a.failing = err.Error()
		a.log.Warn("the audit of addresses is not complete; it is tried again", "error", err)
	}
}

// look judges all addresses once, as etcd has them now, and frees what is due.
func (a *audit) look(ctx context.Context) error {
	snap, err := a.picture(ctx)
	if err != nil {
		return err
	}
	if !settled(snap) {
		return nil
	}
	c := a.census(snap)
	a.meters.count(snap, c.leaks)
	if a.grace <= 0 {
		return nil
	}
	errs := []error{a.freeDue(ctx, snap, c)}
	errs = append(errs, a.freeStrays(ctx, snap, c), a.returnBlocks(ctx, snap))
	return errors.Join(errs...)
}

// picture is what etcd holds, not older than this call.
func (a *audit) picture(ctx context.Context) (feed.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	rev, err := a.store.Revision(ctx)
	if err != nil {
		return feed.Snapshot{}, err
	}
	if err := a.feed.WaitFor(ctx, rev); err != nil {
		return feed.Snapshot{}, err
	}
	snap, _ := a.feed.Snapshot()
	return snap, nil
}

// held is an address and what is known of it.
type held struct {
	ipam.Holding
	endpoint store.Entry[api.WorkloadEndpoint] // that has the address; it may not exist
	gone     bool                              // Kubernetes does not have its node
}

// census is the outcome of one look.
type census struct {
	leaks map[string][]held // by handle: all that it holds, and all of it leaked
	nodes map[string]bool   // names of nodes on which something is in use
}

// census judges every address.
func (a *audit) census(snap feed.Snapshot) census {
	users := map[netip.Addr]store.Entry[api.WorkloadEndpoint]{}
	c := census{leaks: map[string][]held{}, nodes: map[string]bool{}}
	for _, e := range snap.Endpoints() {
		c.nodes[e.Value.Spec.Node] = c.nodes[e.Value.Spec.Node] || a.lives(snap, e.Value, a.kube.Pod)
		for _, n := range e.Value.Spec.IPNetworks {
			users[n.Addr()] = e
		}
	}
	alive := map[string]bool{}
	for _, e := range snap.Blocks() {
		for _, h := range ipam.Holdings(e.Value) {
			is := held{Holding: h, endpoint: users[h.Addr]}
			switch {
			case h.Attrs[api.AttrType] != "": // a tunnel's: it goes with its node
			case a.leaked(snap, &is):
				c.leaks[h.Handle] = append(c.leaks[h.Handle], is)
			default:
				alive[h.Handle] = true
				c.nodes[h.Attrs[api.AttrNode]] = true
			}
		}
	}
	for handle := range alive {
		delete(c.leaks, handle)
	}
	return c
}

// leaked reports whether nobody can be using an address, as far as the caches know, and whether its node is gone.
func (a *audit) leaked(snap feed.Snapshot, h *held) bool {
	node, ns, pod := h.Attrs[api.AttrNode], h.Attrs[api.AttrNamespace], h.Attrs[api.AttrPod]
	if h.Handle == "" || node == "" || ns == "" || pod == "" {
		return false
	}
	in, ok := kubeName(snap, node)
	if !ok {
		return false
	}
	on, err := a.kube.Node(in)
	if err != nil {
		return false
	}
	p, err := a.kube.Pod(ns, pod)
	if err != nil || uses(snap, p, in, h.Holding) {
		return false
	}
	if on == nil {
		h.gone = true
		return !snap.Node(node).Exists() // else its addresses go when the Node does
	}
	return reports(on) && (!h.endpoint.Exists() || !snap.Identity(node).Exists())
}

// uses reports whether a pod may be using an address that was given out on a node, which Kubernetes has by a name. nil is no pod. Where there is no Node, its
// name in Kubernetes may have been another: then a pod on any node counts that does not report other addresses.
func uses(snap feed.Snapshot, p *corev1.Pod, node string, h ipam.Holding) bool {
	if p == nil || finished(p) {
		return false
	}
	if p.Spec.NodeName != node {
		named := snap.Node(h.Attrs[api.AttrNode]).Exists()
		return !named && p.Spec.NodeName != "" && (p.Status.PodIP == "" || has(p, h.Addr))
	}
	given, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", h.Attrs[api.AttrTimestamp])
	if err != nil || !given.Add(skew).Before(p.CreationTimestamp.Time) {
		return true
	}
	return has(p, h.Addr)
}

// has reports whether a pod reports an address.
func has(p *corev1.Pod, a netip.Addr) bool {
	return slices.ContainsFunc(p.Status.PodIPs, func(i corev1.PodIP) bool { return i.IP == a.String() }) || p.Status.PodIP == a.String()
}

// reports reports whether a node's kubelet is in touch with Kubernetes, so that it has ended what Kubernetes has deleted.
func reports(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// freeDue frees what has been leaked for long enough, and remembers the rest.
func (a *audit) freeDue(ctx context.Context, snap feed.Snapshot, c census) error {
	since, looks := a.since, a.looks
	a.since, a.looks = map[string]time.Time{}, map[string]int{}
	var errs []error
	for _, handle := range slices.Sorted(maps.Keys(c.leaks)) {
		list := c.leaks[handle]
		first, known := since[handle]
		if !known {
			first = a.now()
		}
		a.since[handle], a.looks[handle] = first, looks[handle]+1
		due := a.now().Sub(first) >= a.grace || list[0].gone && a.looks[handle] > 1
		if !due || ctx.Err() != nil {
			continue
		}
		if err := a.free(ctx, snap, handle, list); err != nil {
			errs = append(errs, fmt.Errorf("free handle %s: %w", handle, err))
		}
	}
	return errors.Join(errs...)
}

// free asks the API server whether a leak is one, and ends it.
func (a *audit) free(ctx context.Context, snap feed.Snapshot, handle string, list []held) error {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	for _, h := range list {
		in, _ := kubeName(snap, h.Attrs[api.AttrNode])
		on, err := a.kube.NodeNow(ctx, in)
		if err != nil {
			return err
		}
		p, err := a.kube.PodNow(ctx, h.Attrs[api.AttrNamespace], h.Attrs[api.AttrPod])
		if err != nil {
			return err
		}
		if uses(snap, p, in, h.Holding) || h.gone != (on == nil) || on != nil && !reports(on) {
			delete(a.since, handle)
			return nil
		}
	}
	freed, err := a.release(ctx, snap, handle, list)
	if errors.Is(err, store.ErrConflict) || len(freed) == 0 && err == nil {
		return nil // something has changed: the next look sees it
	}
	if err != nil {
		return err
	}
	delete(a.since, handle)
	a.meters.reclaimed(snap, list)
	h := list[0].Attrs
	a.log.Warn("freed the addresses of a pod that is gone without a DEL", "namespace", h[api.AttrNamespace], "pod", h[api.AttrPod], "node", h[api.AttrNode],
		"handle", handle, "addresses", freed)
	return nil
}

// release frees a handle with the endpoints that have its addresses, if all is as it was judged. The error is a store.ErrConflict where it is not.
func (a *audit) release(ctx context.Context, snap feed.Snapshot, handle string, list []held) ([]netip.Prefix, error) {
	node := list[0].Attrs[api.AttrNode]
	plan := ipam.NewPlan(ipam.Etcd{Client: a.store}, node, ipam.Facts{Cluster: snap.Cluster(), Identity: identityOf(snap, node)}, a.now())
	h, err := store.Get[api.Handle](ctx, a.store, api.HandleKey(handle))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	freed, err := plan.Release(ctx, h)
	if err != nil || len(freed) != len(list) {
		return nil, err
	}
	for _, l := range list {
		if !slices.ContainsFunc(freed, func(p netip.Prefix) bool { return p.Addr() == l.Addr }) {
			return nil, nil
		}
	}
	plan.AsHolder()
	txn := plan.Txn()
	txn.Expect(ipam.ClusterKey(), snap.Cluster().Rev)
	txn.Expect(api.NodeKey(node), snap.Node(node).Rev)
	gone := map[string]bool{}
	for _, l := range list {
		s := l.Attrs
		if e := l.endpoint; e.Exists() && !gone[e.Key] {
			gone[e.Key] = true
			txn.Delete(e.Key, e.Rev)
		}
		txn.ExpectBelow(api.WorkloadEndpointsPrefix(s[api.AttrNamespace], node, "k8s", s[api.AttrPod]), snap.Rev)
	}
	changed, err := a.store.Commit(ctx, txn)
	if err != nil {
		return nil, err
	}
	a.feed.Commit(changed)
	a.meters.wrote("release")
	return freed, nil
}

// identityOf is the record of whose a node's name is, as the snapshot has it, with its key where there is none.
func identityOf(snap feed.Snapshot, node string) store.Entry[api.NodeIdentity] {
	e := snap.Identity(node)
	e.Key = api.IdentityKey(node)
	return e
}

// lives reports whether an endpoint may be a pod's that runs: one that is not Kubernetes' nobody here can judge. pod is by which Kubernetes is asked.
func (a *audit) lives(snap feed.Snapshot, e *api.WorkloadEndpoint, pod func(namespace, name string) (*corev1.Pod, error)) bool {
	in, ok := kubeName(snap, e.Spec.Node)
	if !ok || e.Spec.Orchestrator != "k8s" || e.Spec.Pod == "" {
		return true
	}
	p, err := pod(e.Metadata.Namespace, e.Spec.Pod)
	return err != nil || slices.ContainsFunc(e.Spec.IPNetworks, func(n api.Prefix) bool {
		return uses(snap, p, in, ipam.Holding{Addr: n.Addr(), Attrs: map[string]string{api.AttrNode: e.Spec.Node}})
	})
}

// freeStrays takes what is left of names that neither etcd nor Kubernetes has a node for and under which nothing lives: what a node's deletion left that
// another program began.
func (a *audit) freeStrays(ctx context.Context, snap feed.Snapshot, c census) error {
	before := a.strays
	a.strays = map[string]time.Time{}
	var errs []error
	for _, name := range strays(snap, c) {
		if on, err := a.kube.Node(name); on != nil || err != nil {
			continue
		}
		first, known := before[name]
		if !known {
			first = a.now()
		}
		a.strays[name] = first
		if a.now().Sub(first) < a.grace {
			continue
		}
		if err := a.freeStray(ctx, snap, name); err != nil && !errors.Is(err, errStale) {
			errs = append(errs, fmt.Errorf("free what node %s left, which does not exist: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// strays lists, in order, the names of nodes that have blocks or endpoints, and no Node, and nothing in use. Those with leaks come after these.
func strays(snap feed.Snapshot, c census) []string {
	left := map[string]bool{}
	for _, e := range snap.Blocks() {
		if host, ok := e.Value.Host(); ok {
			left[host] = true
		}
	}
	for _, e := range snap.Endpoints() {
		left[e.Value.Spec.Node] = true
	}
	for _, list := range c.leaks {
		for _, h := range list {
			delete(left, h.Attrs[api.AttrNode])
		}
	}
	maps.DeleteFunc(left, func(name string, _ bool) bool { return c.nodes[name] || snap.Node(name).Exists() })
	return slices.Sorted(maps.Keys(left))
}

// freeStray asks the API server whether nothing lives under a name, and takes what is left there.
func (a *audit) freeStray(ctx context.Context, snap feed.Snapshot, name string) error {
	dead := false
	err := a.takeAll(ctx, name, store.Entry[api.Node]{}, identityOf(snap, name), func() (_ bool, err error) {
		dead, err = a.dead(ctx, snap, name)
		return dead, err
	})
	if err != nil || !dead {
		return err
	}
	delete(a.strays, name)
	a.log.Warn("freed what a node left that does not exist: its blocks, and endpoints with another IPAM's addresses", "node", name)
	return nil
}

// dead asks the API server whether nothing can live under a name.
func (a *audit) dead(ctx context.Context, snap feed.Snapshot, name string) (bool, error) {
	if on, err := a.kube.NodeNow(ctx, name); on != nil || err != nil {
		return false, err
	}
	now := func(namespace, pod string) (*corev1.Pod, error) { return a.kube.PodNow(ctx, namespace, pod) }
	for _, e := range snap.EndpointsOn(name) {
		if a.lives(snap, e.Value, now) {
			return false, nil
		}
	}
	return true, nil
}

// returnBlocks gives back empty blocks of nodes without an agent of ours, which would do so itself: those that have been empty for the grace period, but
// for the last of each family.
func (a *audit) returnBlocks(ctx context.Context, snap feed.Snapshot) error {
	before := a.empty
	a.empty = map[netip.Prefix]vacant{}
	left := map[string]int{}
	family := func(host string, cidr netip.Prefix) string { return fmt.Sprint(host, cidr.Addr().Is6()) }
	for _, e := range snap.Blocks() {
		if host, ok := e.Value.Host(); ok {
			left[family(host, e.Value.CIDR)]++
		}
	}
	var errs []error
	for _, e := range snap.Blocks() {
		host, ok := e.Value.Host()
		cidr := e.Value.CIDR
		if !ok || !block.Empty(e.Value) || snap.Identity(host).Exists() || !snap.Node(host).Exists() || left[family(host, cidr)] <= 1 {
			continue
		}
		was, known := before[cidr]
		if !known || was.rev != e.Rev {
			was = vacant{e.Rev, a.now()}
		}
		a.empty[cidr] = was
		if a.now().Sub(was.since) < a.grace {
			continue
		}
		changed, err := ipam.ReturnBlock(ctx, a.store, ipam.Unused{
			Block: e, Affinity: affinityOf(snap, host, cidr), Identity: identityOf(snap, host), Cluster: snap.Cluster(),
		})
		switch {
		case errors.Is(err, store.ErrConflict): // somebody uses it
		case err != nil:
			errs = append(errs, err)
		default:
			left[family(host, cidr)]--
			a.feed.Commit(changed)
			a.log.Info("gave back a block that was empty", "block", cidr, "node", host)
		}
	}
	return errors.Join(errs...)
}

func affinityOf(snap feed.Snapshot, host string, cidr netip.Prefix) store.Entry[api.Affinity] {
	e := snap.Affinity(host, cidr)
	e.Key = api.AffinityKey(host, cidr)
	return e
}
