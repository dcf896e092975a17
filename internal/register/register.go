// Package register connects workloads to the network in etcd: it gives each its addresses and writes its endpoint.
//
// The goals, and how each is met:
//
//  1. One transaction for an ADD, one for a DEL: addresses, handle, endpoint and the network's profile change together.
//  2. Any command may be repeated, and come late: the handle is created only if it is absent, and an ADD that finds it returns
//     what it holds; a DEL touches an endpoint only if it still is the same container's.
//  3. Many at once cost little more than one: whoever comes while a transaction is under way is carried out together with all
//     who wait, in the next one.
//  4. What was undone stays undone: an ADD whose commit reaches etcd late, behind the DEL that found nothing of it, fails there, since that DEL wrote
//     what the ADD compares (planFence). So does one whose outcome is unknown, from the next transaction on.
//  5. In the steady state nothing is read: an ADD is planned on what the agent's feed has in memory, and a DEL on that and on what this
//     handler wrote for the ADD. What turns out to be out of date, or would be refused, is planned again on etcd itself.
package register

import (
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Source is what is in memory of etcd at one moment. Its answers may be out of date, and fit each other. All methods may be
// called concurrently.
type Source interface {
	ipam.Source
	// Endpoint returns the endpoint with that key; Rev 0 if there is none.
	Endpoint(key string) store.Entry[api.WorkloadEndpoint]
	// EndpointsOn yields the node's endpoints.
	EndpointsOn(node string) iter.Seq2[string, store.Entry[api.WorkloadEndpoint]]
	// Profile returns the profile of that name; Rev 0 if there is none.
	Profile(name string) store.Entry[api.Profile]
}

// Pod is what Kubernetes says of a pod.
type Pod struct {
	Labels, Annotations                   map[string]string
	NamespaceLabels, NamespaceAnnotations map[string]string // of the pod's namespace
	Profiles                              []string          // in the order of precedence
	Ports                                 []api.WEPort
	ServiceAccount, GenerateName          string // "": none
}

// PodFacts asks Kubernetes about a pod. It returns within ctx.
type PodFacts func(ctx context.Context, pod attach.Pod) (Pod, error)

// Config is what a Handler works with.
type Config struct {
	Client *store.Client
	Source func() Source // what is in memory now, asked for each transaction; nil, or a nil Source: everything is read from etcd
	Node   string
	// Machine is the id of this machine. Nothing is given out under the name of a node that is recorded to be another's. "": unknown, so
	// that any record is another's.
	Machine string
	Log     *slog.Logger // nil: no log
	// PodFacts serves networks with policy type k8s; nil: they are refused.
	PodFacts PodFacts
	// Committed is told of each commit before the next one is planned, so that the agent's feed can show it at once: without,
	// the next ADD finds its picture out of date and has to read etcd. It must not block. nil: nobody is told.
	Committed func([]store.KV)
	// Refused is told what etcd holds where a transaction was refused because of it, likewise: without, a job that met such a write has to
	// read etcd. A key that is gone has a revision at which it is. nil: nobody is told.
	Refused func([]store.KV)
	// Took is told how long each stage of an ADD took, also of one that failed in it. nil: nobody is told.
	Took func(stage string, took time.Duration)
	// Gather is called before a transaction, with the time at which the last one began; who arrives until it returns may come along. It returns soon, and at once when ctx has ended.
	// nil: it is not waited.
	Gather func(ctx context.Context, last time.Time)
	// Pause is called where a command met others' writes so often that it does not go into the next transaction by itself; it returns when the command is to be
	// tried again. attempt is 0 at the first time. nil: ipam.Pause.
	Pause func(ctx context.Context, attempt int) error
	Now   func() time.Time // nil: time.Now
	UUID  func() string    // nil: random
}

// The stages of an ADD that are a Handler's.
const (
	StageFacts = "facts" // what Kubernetes says of the pod, and readiness gates
	StageEtcd  = "etcd"  // the wait for transactions under way, the plan, and the transaction itself
)

// Handler registers workloads of one node. All methods may be called concurrently. They return when their ctx ends, or up to
// 10 seconds later: a transaction that is under way is seen through, often with others' commands in it. The error of a command
// that may have been done all the same says so, and matches store.ErrUnknown.
type Handler struct {
	cfg   Config
	gates gates

	turn    chan struct{} // held, by a value in it, while a transaction is under way
	began   time.Time     // belongs to whoever has the turn: when the last transaction was begun
	written written       // likewise
	doubt   bool          // likewise: the outcome of a commit is unknown, and it may reach etcd yet
	mu      sync.Mutex
	waiting []*job // in order of arrival; guarded by mu
}

// New makes a handler.
func New(cfg Config) *Handler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.UUID == nil {
		cfg.UUID = uuid.NewString
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Committed == nil {
		cfg.Committed = func([]store.KV) {}
	}
	if cfg.Gather == nil {
		cfg.Gather = func(context.Context, time.Time) {}
	}
	if cfg.Pause == nil {
		cfg.Pause = ipam.Pause
	}
	if cfg.Took == nil {
		cfg.Took = func(string, time.Duration) {}
	}
	// What an agent before this one has left under way, its first transaction breaks. An executable lives for one command, and knows of none before.
	return &Handler{cfg: cfg, gates: gates{askHTTP}, turn: make(chan struct{}, 1), written: written{}, doubt: cfg.Source != nil}
}

// Add gives the container its addresses and writes its endpoint. The reply holds what stands in etcd then: for a repeated ADD,
// the addresses and MAC of the first. What was written goes to Config.Committed. Errors match *attach.Error.
func (h *Handler) Add(ctx context.Context, req attach.Request) (reply attach.Reply, err error) {
	began := time.Now()
	j, err := h.newAdd(ctx, req)
	known := time.Now()
	h.cfg.Took(StageFacts, known.Sub(began))
	if err != nil {
		return attach.Reply{}, err
	}
	err = h.do(ctx, j)
	h.cfg.Took(StageEtcd, time.Since(known))
	if err != nil {
		return attach.Reply{}, failure("register", j.subject(), err)
	}
	reply.MAC = j.mac
	for _, a := range j.addrs {
		reply.Addrs = append(reply.Addrs, a.Addr())
	}
	h.cfg.Log.Debug("registered", "container", req.ContainerID, "endpoint", j.endpointKey, "addresses", j.addrs)
	return reply, nil
}

// Del takes back the container's addresses and deletes its endpoint, unless that is another container's by now. It succeeds
// if there is nothing to do. The addresses stay where another interface of the container has an endpoint, and this one has none. Otherwise
// as Add.
func (h *Handler) Del(ctx context.Context, req attach.Request) error {
	j, err := newJob(h.cfg.Node, req)
	if err != nil {
		return err
	}
	j.plan, j.frees, j.recalls = h.planUnregister, true, true
	if err := h.do(ctx, j); err != nil {
		return failure("unregister", j.subject(), err)
	}
	h.cfg.Log.Debug("unregistered", "container", req.ContainerID, "endpoint", j.endpointKey, "addresses", j.addrs)
	return nil
}

// Allocate gives the container addresses and writes no endpoint, for a main plugin of another project. Each address has
// its block's prefix length. A repeated call returns the same.
func (h *Handler) Allocate(ctx context.Context, req attach.Request) ([]netip.Prefix, error) {
	j, err := h.newAllocation(ctx, req)
	if err != nil {
		return nil, err
	}
	j.endpointKey, j.profileKey = "", ""
	if err := h.do(ctx, j); err != nil {
		return nil, failure("allocate", j.subject(), err)
	}
	return j.addrs, nil
}

// Release undoes Allocate. It succeeds if there is nothing to do.
func (h *Handler) Release(ctx context.Context, req attach.Request) error {
	j, err := newJob(h.cfg.Node, req)
	if err != nil {
		return err
	}
	j.endpointKey, j.plan, j.frees, j.recalls = "", h.planUndo, true, true
	if err := h.do(ctx, j); err != nil {
		return failure("release", j.subject(), err)
	}
	return nil
}
