package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// prefixes are the beginnings of the names of workloads' devices. One that has turned out to fit a device of the host itself counts no more until the
// setting is another: policy and the sweep of routes would take the node off its network, and away from the etcd in which the setting stands.
type prefixes struct {
	asked   []string          // as set
	refused map[string]string // with the reason
}

// heed returns those that count.
func (p *prefixes) heed(asked []string, node *api.Node, h kernel.Host) []string {
	if !slices.Equal(asked, p.asked) || p.refused == nil {
		p.asked, p.refused = asked, map[string]string{}
	}
	for dev, addr := range hostsOwn(node, h) {
		for _, prefix := range asked {
			if strings.HasPrefix(dev, prefix) && p.refused[prefix] == "" {
				p.refused[prefix] = fmt.Sprintf("interfacePrefix: %q does not count, for %s begins with it too, the device of this node's address %v; choose another prefix", prefix, dev, addr)
			}
		}
	}
	out := slices.DeleteFunc(slices.Clone(asked), func(prefix string) bool { return p.refused[prefix] != "" })
	if !slices.Contains(out, kernel.WorkloadPrefix) {
		out = append(out, kernel.WorkloadPrefix) // which the plugin's devices have in any case
	}
	return out
}

// problems says what is refused.
func (p *prefixes) problems() (out []string) {
	for _, prefix := range p.asked {
		if why := p.refused[prefix]; why != "" {
			out = append(out, why)
		}
	}
	return out
}

// hostsOwn are the devices that hold the node's addresses.
func hostsOwn(node *api.Node, h kernel.Host) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	if node == nil {
		return out
	}
	for _, v6 := range []bool{false, true} {
		addr, known := node.Address(v6)
		if dev, held := h.Holder(addr.Addr()); known && held {
			out[dev.Name] = addr.Addr()
		}
	}
	return out
}
