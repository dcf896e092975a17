package register

import (
	"context"
	"fmt"
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

// FreeOrphan takes an orphan out: its endpoint, and every address of its handle. It returns those. Where the endpoint is not any more what was judged, it
// does nothing, and the error matches ErrJudgedAnew. Only the machine that has the node's name may do it: another one does
// not see that machine's links. The caller holds the attach lock of the endpoint's interface. Otherwise as Add.
func (h *Handler) FreeOrphan(ctx context.Context, o Orphan) ([]netip.Prefix, error) {
	w := o.Endpoint.Value
	j := &job{
		req:      attach.Request{ContainerID: w.Spec.ContainerID},
		endpoint: *w, endpointKey: o.Endpoint.Key, asHolder: true, done: make(chan struct{}),
	}
	if o.Handle != "" {
		j.handleKey = api.HandleKey(o.Handle)
	}
	j.plan = func(ctx context.Context, p *ipam.Plan, j *job, was prior) error {
		if was.endpoint.Rev != o.Endpoint.Rev {
			return ErrJudgedAnew
		}
		p.AsHolder()
		return h.planDel(ctx, p, j, was)
	}
	if err := h.do(ctx, j); err != nil {
		return nil, failure("free", j, err)
	}
	return j.addrs, nil
}

// ErrJudgedAnew means that an endpoint changed after it was judged.
var ErrJudgedAnew = fmt.Errorf("the endpoint is not any more what was judged")
