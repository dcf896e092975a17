package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// programmed knows which workload devices have their routes in the kernel. The loop publishes, connections wait.
type programmed struct {
	mu      sync.Mutex
	devs    map[string]int // name → index
	changed chan struct{}  // closed and replaced at every publish
}

func newProgrammed() *programmed {
	return &programmed{devs: map[string]int{}, changed: make(chan struct{})}
}

// publish replaces the set by the devices of the workload routes that the kernel is known to hold.
func (p *programmed) publish(routes map[kernel.RouteKey]kernel.Route) {
	devs := make(map[string]int)
	for _, r := range routes {
		if strings.HasPrefix(r.Dev.Name, kernel.WorkloadPrefix) && r.Protocol == kernel.RouteProtocol {
			devs[r.Dev.Name] = r.Dev.Index
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devs = devs
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *programmed) has(dev string, index int) (bool, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.devs[dev]
	return ok && i == index, p.changed
}

// wait returns once the device's routes are in the kernel, or with an error that says "try again" when ctx ends.
func (p *programmed) wait(ctx context.Context, dev string, index int) error {
	for {
		ok, changed := p.has(dev, index)
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &attach.Error{Code: attach.CodeTryAgain,
				Msg:     fmt.Sprintf("program %s: its routes did not get into the kernel in time", dev),
				Details: "the runtime will try again; the agent's log names what is in the way"}
		}
	}
}
