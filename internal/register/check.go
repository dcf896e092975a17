package register

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Check compares what etcd holds of the container with what Add leaves there, and returns it: the handle with its addresses, which the
// blocks give to it, and the endpoint, which is this container's and names the same addresses. It reads etcd itself and changes
// nothing. Errors match *attach.Error: CodeMissing for a difference, CodeTryAgain where etcd does not answer.
func (h *Handler) Check(ctx context.Context, req attach.Request) (attach.Reply, error) {
	j, err := newJob(h.cfg.Node, req)
	if err != nil {
		return attach.Reply{}, err
	}
	was, addrs, err := h.held(ctx, j)
	if err != nil {
		return attach.Reply{}, err
	}
	if err := j.checkEndpoint(was.endpoint, addrs); err != nil {
		return attach.Reply{}, err
	}
	return attach.Reply{Addrs: addrs, MAC: was.endpoint.Value.Spec.MAC}, nil
}

// CheckAllocation is Check without the endpoint, for a main plugin of another project. It returns the addresses.
func (h *Handler) CheckAllocation(ctx context.Context, req attach.Request) ([]netip.Addr, error) {
	j, err := newJob(h.cfg.Node, req)
	if err != nil {
		return nil, err
	}
	j.endpointKey = ""
	_, addrs, err := h.held(ctx, j)
	return addrs, err
}

// held reads what etcd holds of the job's container, and finds its addresses: those that the request brings along, else those that
// blocks give to the handle, or those that an annotation had it bring along, which only the endpoint knows.
func (h *Handler) held(ctx context.Context, j *job) (prior, []netip.Addr, error) {
	found, err := h.readPriors(ctx, []*job{j})
	if err != nil {
		return prior{}, nil, checkFailure(j, err)
	}
	was := found[j]
	if was.err != nil {
		return prior{}, nil, checkFailure(j, was.err)
	}
	if len(j.req.Addrs) > 0 {
		return was, j.req.Addrs, nil
	}
	if !was.handle.Exists() && j.broughtTo(was.endpoint) {
		return was, addrsIn(was.endpoint.Value.Spec.IPNetworks), nil
	}
	if !was.handle.Exists() {
		return was, nil, j.missing("its allocation is missing: etcd has no %s", j.handleKey)
	}
	prefixes, err := ipam.NewPlan(ipam.Etcd{Client: h.cfg.Client}, h.cfg.Node, ipam.Facts{}, h.cfg.Now()).Held(ctx, was.handle)
	if err != nil {
		return was, nil, checkFailure(j, err)
	}
	if len(prefixes) == 0 {
		return was, nil, j.missing("its addresses are missing: %s counts some in the blocks %v, and none of them gives it one", j.handleKey, was.handle.Value.Block)
	}
	var addrs []netip.Addr
	for _, p := range prefixes {
		addrs = append(addrs, p.Addr())
	}
	return was, addrs, nil
}

// checkEndpoint holds the endpoint to the container and its addresses.
func (j *job) checkEndpoint(e store.Entry[api.WorkloadEndpoint], addrs []netip.Addr) error {
	if !e.Exists() {
		return j.missing("its endpoint is missing: etcd has no %s", j.endpointKey)
	}
	s := e.Value.Spec
	if s.ContainerID != j.req.ContainerID {
		return j.missing("the endpoint %s is another container's: %s", j.endpointKey, s.ContainerID)
	}
	listed := addrsIn(s.IPNetworks)
	want := slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	slices.SortFunc(listed, netip.Addr.Compare)
	if !slices.Equal(listed, want) {
		return j.missing("the endpoint %s has the addresses %s, and allocated are %s", j.endpointKey, list(listed), list(want))
	}
	if j.req.HostIf != "" && s.InterfaceName != j.req.HostIf {
		return j.missing("the endpoint %s names the host interface %q, want %q", j.endpointKey, s.InterfaceName, j.req.HostIf)
	}
	return nil
}

// missing is what Check says of a difference.
func (j *job) missing(format string, args ...any) error {
	return &attach.Error{
		Code: attach.CodeMissing, Msg: fmt.Sprintf("check %s in etcd: %s", j.subject(), fmt.Sprintf(format, args...)),
		Details: "delete the pod; what replaces it is attached anew",
	}
}

func checkFailure(j *job, err error) error {
	out := failure("check", j.subject(), err)
	var f *failed
	if errors.As(out, &f) && errors.Is(err, store.ErrUnavailable) {
		f.cni.Code = attach.CodeTryAgain
	}
	return out
}

func addrsIn(networks []api.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(networks))
	for i, n := range networks {
		out[i] = n.Addr()
	}
	return out
}

func list(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "none"
	}
	names := make([]string, len(addrs))
	for i, a := range addrs {
		names[i] = a.String()
	}
	return strings.Join(names, ", ")
}

// Serves reports whether this node may be given pods, as far as is known in memory: whether it is registered, and its name this
// machine's. Whether etcd answers, and is not locked, is not asked: that is no node's own matter, and all nodes that are not ready at
// once is worse than an ADD that has to be tried again. Errors match *attach.Error, with CodeNotAvailable.
func (h *Handler) Serves(ctx context.Context) error {
	_, known := h.source(false)
	if known == nil {
		return nil
	}
	facts, err := known.Facts(ctx, h.cfg.Node)
	if err != nil || facts.Cluster.Value == nil {
		return err // etcd without its data says nothing of this node
	}
	if !facts.Node.Exists() {
		return unregistered(h.cfg.Node)
	}
	return unavailable(ipam.Holds(facts.Identity, h.cfg.Node, h.cfg.Machine))
}

// unavailable is a refusal as STATUS reports it; other errors stay as they are.
func unavailable(err error) error {
	var refusal *ipam.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	return &attach.Error{Code: attach.CodeNotAvailable, Msg: "see whether pods can be attached: " + refusal.Msg, Details: refusal.Remedy}
}

func unregistered(node string) error {
	return &attach.Error{
		Code: attach.CodeNotAvailable, Msg: fmt.Sprintf("see whether pods can be attached: node %s is not registered", node),
		Details: "start the agent on this node once, or correct the node's name",
	}
}

// Ready reports whether an ADD could be served: whether etcd answers, the datastore is ready, the node is registered and its name this
// machine's. It reads etcd itself. Errors match *attach.Error, with CodeNotAvailable.
func (h *Handler) Ready(ctx context.Context) error {
	facts, err := ipam.Etcd{Client: h.cfg.Client}.Facts(ctx, h.cfg.Node)
	if err == nil {
		err = cmp.Or(ipam.Ready(facts.Cluster), facts.Err)
	}
	var refusal *ipam.Refusal
	var unreadable *store.UnreadableError
	switch {
	case errors.As(err, &refusal):
		return unavailable(err)
	case errors.As(err, &unreadable):
		return &failed{attach.Error{Code: attach.CodeNotAvailable, Msg: fmt.Sprintf("see whether pods can be attached: %v", err), Details: correct(unreadable)}, err}
	case err != nil:
		return &failed{attach.Error{
			Code: attach.CodeNotAvailable, Msg: fmt.Sprintf("see whether pods can be attached: %v", err),
			Details: "see whether etcd runs and can be reached from this host",
		}, err}
	case !facts.Node.Exists():
		return unregistered(h.cfg.Node)
	}
	return unavailable(ipam.Holds(facts.Identity, h.cfg.Node, h.cfg.Machine))
}
