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
	policy  error                     // why the last policy is not in force; nil: it is
	changed chan struct{}             // closed and replaced at every publish
	waiting int                       // connections that do
	wanted  chan struct{}             // cap 1: one has begun to wait
}

func newProgrammed() *programmed {
	return &programmed{changed: make(chan struct{}), wanted: make(chan struct{}, 1)}
}

// awaited tells whether somebody waits for a route.
func (p *programmed) awaited() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting > 0
}

// publish replaces the set by the devices of the workload routes that the kernel is known to hold. A workload has no route until its
// policy is in force; policy is the error that is in the way of that.
func (p *programmed) publish(routes map[kernel.RouteKey]kernel.Route, ours kernel.Ownership, policy error) {
	to := make(map[netip.Addr]kernel.Dev)
	for k, r := range routes {
		if ours.Workload(r.Dev.Name) && r.Protocol == ours.RouteProtocol() {
			to[k.Dst.Addr()] = r.Dev
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.routes, p.policy = to, policy
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait returns once each of the addresses has its route to the device in the kernel, and that is once policy is in force at a revision that
// includes the endpoint. When ctx ends before, the error has the given code and names the addresses that have no route.
func (p *programmed) wait(ctx context.Context, dev kernel.Dev, addrs []netip.Addr, code uint) error {
	var lacking []netip.Addr
	var policy error
	there := func() bool {
		lacking, policy = nil, p.policy
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
	details := "the agent's log on this node names what is in the way"
	if policy != nil {
		details = "the pod's policy is not in the kernel: " + policy.Error()
	}
	return &attach.Error{Code: code,
		Msg:     fmt.Sprintf("on the host are missing the routes to %v through %s (index %d)", lacking, dev.Name, dev.Index),
		Details: details}
}

// until waits until there, which is called with the lock held, reports true after a publish; it returns false when ctx ends before.
func (p *programmed) until(ctx context.Context, there func() bool) bool {
	look := func() (bool, <-chan struct{}) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return there(), p.changed
	}
	if ok, _ := look(); ok {
		return true
	}
	p.expect(1)
	defer p.expect(-1)
	poke(p.wanted)
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

// expect counts so many more that wait.
func (p *programmed) expect(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting += n
}
