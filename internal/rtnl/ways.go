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
	devices := map[int]kernel.Dev{}
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
		case len(routes) == 0:
			continue
		}
		dev, err := c.named(routes[0].LinkIndex, devices)
		if err != nil {
			return nil, err
		}
		if dev.Name == "lo" {
			continue
		}
		hop := kernel.Hop{Gateway: a, Dev: dev, Onlink: true}
		if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
			hop.Gateway, hop.Onlink = gw.Unmap(), false
		}
		out[a] = hop
	}
	return out, nil
}

// named is the device with that index, which is asked for once; the zero Dev if there is none. Ways are looked up for the sake of few devices, and a node has as
// many as it has pods.
func (c *Conn) named(index int, known map[int]kernel.Dev) (kernel.Dev, error) {
	if dev, ok := known[index]; ok {
		return dev, nil
	}
	l, err := c.h.LinkByIndex(index)
	switch {
	case gone(err) || isNotFound(err):
		known[index] = kernel.Dev{}
	case err != nil:
		return kernel.Dev{}, fmt.Errorf("look up device %d: %w", index, err)
	default:
		known[index] = kernel.Dev{Name: l.Attrs().Name, Index: index}
	}
	return known[index], nil
}
