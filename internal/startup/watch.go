package startup

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Readdress looks for the node's addresses again and writes its Node if they are others. nodes are all Nodes as last seen: where nothing is
// new, etcd is not asked. A Node that is not among them is not made. What is wrong and leaves an address as it is comes back as texts,
// such as that another node has it; the error is that of a write, or of a method that cannot be read.
func Readdress(ctx context.Context, node string, cfg config.Node, d Deps, nodes []*api.Node) (problems []string, err error) {
	s := &starter{Deps: d, cfg: cfg, node: node}
	own := s.own(nodes)
	if own == nil {
		return nil, nil
	}
	addrs := settled{}
	for _, f := range families {
		addr, err := s.settle(ctx, f, nodes)
		var taken *takenError
		switch {
		case errors.As(err, &taken):
			s.warn("%v", err)
		case err != nil && s.stored(f, nodes).IsValid():
			return s.problems, err
		case err != nil:
			s.warn("%v", err)
		default:
			addrs[f] = addr
		}
	}
	if seen := *own; !s.address(&seen, addrs) {
		return s.problems, nil
	}
	if err := s.ensureNode(ctx, false, func(n *api.Node) bool { return s.address(n, addrs) }); err != nil {
		return s.problems, err
	}
	s.sayAddresses(own, addrs)
	return s.problems, nil
}

// Candidates are the addresses of a host that could be a node's; where they stay the same, there is no reason to look again. The devices
// of pods and tunnels are left out, which come and go.
func Candidates(h kernel.Host) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range usable(h) {
		if !ourDevice.MatchString(a.Dev) {
			out = append(out, a.Addr)
		}
	}
	return slices.Clip(out)
}
