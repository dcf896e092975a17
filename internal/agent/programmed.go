package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// programmed knows which workload devices have their routes in the kernel. The loop publishes, connections wait.
type programmed struct {
	mu      sync.Mutex
	devs    map[string]int            // name → index
	routes  map[netip.Addr]kernel.Dev // by destination
	changed chan struct{}             // closed and replaced at every publish
}

func newProgrammed() *programmed {
	return &programmed{devs: map[string]int{}, changed: make(chan struct{})}
}

// publish replaces the set by the devices of the workload routes that the kernel is known to hold.
func (p *programmed) publish(routes map[kernel.RouteKey]kernel.Route) {
	devs, to := make(map[string]int), make(map[netip.Addr]kernel.Dev)
	for k, r := range routes {
		if strings.HasPrefix(r.Dev.Name, kernel.WorkloadPrefix) && r.Protocol == kernel.RouteProtocol {
			devs[r.Dev.Name], to[k.Dst.Addr()] = r.Dev.Index, r.Dev
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devs, p.routes = devs, to
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait returns once the device's routes are in the kernel, or with an error that says "try again" when ctx ends.
func (p *programmed) wait(ctx context.Context, dev string, index int) error {
	there := func() bool {
		i, ok := p.devs[dev]
		return ok && i == index
	}
	if p.until(ctx, there) {
		return nil
	}
	return &attach.Error{Code: attach.CodeTryAgain,
		Msg:     fmt.Sprintf("program %s: its routes did not get into the kernel in time", dev),
		Details: "the runtime will try again; the agent's log names what is in the way"}
}

// confirm returns once each of the addresses has its route to the device in the kernel. When ctx ends before, the error names those
// that have none.
func (p *programmed) confirm(ctx context.Context, dev kernel.Dev, addrs []netip.Addr) error {
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
	return &attach.Error{Code: attach.CodeMissing,
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
