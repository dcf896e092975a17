package agent

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// programmed knows which addresses of workloads have their routes in the kernel. The loop publishes, connections wait.
type programmed struct {
	mu      sync.Mutex
	routes  map[netip.Addr]kernel.Dev // by destination
	changed chan struct{}             // closed and replaced at every publish
}

func newProgrammed() *programmed {
	return &programmed{changed: make(chan struct{})}
}

// publish replaces the set by the devices of the workload routes that the kernel is known to hold.
func (p *programmed) publish(routes map[kernel.RouteKey]kernel.Route, ours kernel.Ownership) {
	to := make(map[netip.Addr]kernel.Dev)
	for k, r := range routes {
		if ours.Workload(r.Dev.Name) && r.Protocol == ours.RouteProtocol() {
			to[k.Dst.Addr()] = r.Dev
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.routes = to
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait returns once each of the addresses has its route to the device in the kernel. When ctx ends before, the error has the given code
// and names the addresses that have none.
func (p *programmed) wait(ctx context.Context, dev kernel.Dev, addrs []netip.Addr, code uint) error {
	var lacking []netip.Addr
	there := func() bool {
		lacking = nil
		for _, a := range addrs {
			if p.routes[a] != dev {
				lacking = append(lacking, a)
			}
		}
		return len(lacking) == 0
	}
	if p.until(ctx, there) {
		return nil
	}
	return &attach.Error{Code: code,
		Msg:     fmt.Sprintf("on the host are missing the routes to %v through %s (index %d)", lacking, dev.Name, dev.Index),
		Details: "the agent's log on this node names what is in the way"}
}

// until waits until there, which is called with the lock held, reports true after a publish; it returns false when ctx ends before.
func (p *programmed) until(ctx context.Context, there func() bool) bool {
	look := func() (bool, <-chan struct{}) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return there(), p.changed
	}
	for {
		ok, changed := look()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
