package register

import (
	"context"
	"errors"
	"net/netip"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Orphan is an endpoint of this node whose container is gone without a DEL.
type Orphan struct {
	Endpoint store.Entry[api.WorkloadEndpoint] // as it was judged
	Handle   string                            // that holds its addresses; "": they are not of our pools
}

// FreeOrphan takes an orphan out: its endpoint, and every address of its handle. It returns those. Where the endpoint is not any more what
// was judged, it does nothing, and the error is ErrJudgedAnew. The caller holds the attach lock of the endpoint's interface. Otherwise as
// Add.
func (h *Handler) FreeOrphan(ctx context.Context, o Orphan) ([]netip.Prefix, error) {
	w := o.Endpoint.Value
	j := &job{req: attach.Request{ContainerID: w.Spec.ContainerID}, endpoint: *w, endpointKey: o.Endpoint.Key}
	if o.Handle != "" {
		j.handleKey = api.HandleKey(o.Handle)
	}
	freed, err := h.freeJudged(ctx, j, func(was prior) bool { return was.endpoint.Rev == o.Endpoint.Rev })
	if err != nil {
		return nil, err
	}
	if !freed {
		return nil, ErrJudgedAnew
	}
	return j.addrs, nil
}

// ErrJudgedAnew means that an endpoint changed after it was judged.
var ErrJudgedAnew = errors.New("the endpoint is not any more what was judged")

// freeJudged takes the job's addresses and endpoint out, if what etcd holds of them still is what somebody judged to be dead. Where it is
// not, nothing is changed, and freed is false. Only the machine that has the node's name may do it: another one does not see what lives
// on that one.
func (h *Handler) freeJudged(ctx context.Context, j *job, still func(prior) bool) (freed bool, err error) {
	matched := false // as the transaction found it; whoever carries it out may outlive this call
	j.asHolder = true
	j.plan = func(ctx context.Context, p *ipam.Plan, j *job, was prior) error {
		if matched = still(was); !matched {
			return nil
		}
		p.AsHolder()
		return h.planDel(ctx, p, j, was)
	}
	if err := h.do(ctx, j); err != nil {
		return false, failure("free", j.subject(), err)
	}
	return matched, nil
}
