package rtnl

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Ways asks the kernel how it would send to some addresses. An address that it has no route to is left out. Where it would send straight to the
// address, that is the way's gateway, on the link.
func (c *Conn) Ways(ctx context.Context, to []netip.Addr) (map[netip.Addr]kernel.Hop, error) {
	out := make(map[netip.Addr]kernel.Hop, len(to))
	if len(to) == 0 {
		return out, nil
	}
	devices, err := c.devices(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range to {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		routes, err := c.h.RouteGet(toIP(a))
		switch {
		case is(err, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.EACCES):
			continue
		case err != nil:
			return nil, fmt.Errorf("look up the way to %v: %w", a, err)
		case len(routes) == 0 || devices[routes[0].LinkIndex].name == "lo":
			continue
		}
		hop := kernel.Hop{Gateway: a, Dev: devices[routes[0].LinkIndex].dev(), Onlink: true}
		if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
			hop.Gateway, hop.Onlink = gw.Unmap(), false
		}
		out[a] = hop
	}
	return out, nil
}
