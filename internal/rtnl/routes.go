package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// Routes is the table of our routes in the main table. Their mark is the protocol, and on our own devices the device.
type Routes struct{ c *Conn }

// Routes returns the table of our routes.
func (c *Conn) Routes() Routes { return Routes{c} }

// List returns every route of our protocol; on our VXLAN devices every unicast route but those that the kernel makes for
// addresses; and on workloads' devices, as Own says, the same or only those of protocol boot, which plugins have made for us. IPv6 routes
// always have a metric: where none was asked for, the kernel chose 1024.
func (t Routes) List(ctx context.Context) (map[kernel.RouteKey]kernel.Route, error) {
	out, own := map[kernel.RouteKey]kernel.Route{}, t.c.ownership()
	err := t.all(ctx, func(r route) {
		if ourRoute(own, r.val) {
			out[r.key] = r.val
		}
	})
	return out, err
}

// all calls f for every route of the main table.
func (t Routes) all(ctx context.Context, f func(route)) error {
	devices, err := t.c.devices(ctx)
	if err != nil {
		return err
	}
	msgs, err := t.c.dump(ctx, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, m := range msgs {
		r, ok, err := decodeRoute(m)
		if err != nil {
			return err
		}
		if ok {
			r.val.Dev.Name = devices[r.val.Dev.Index].name
			f(r)
		}
	}
	return nil
}

func ourRoute(own kernel.Ownership, r kernel.Route) bool {
	switch {
	case own.HasProtocol(r.Protocol):
		return true
	case r.Type != kernel.Unicast || r.Protocol == unix.RTPROT_KERNEL:
		return false
	case ourTunnel(r.Dev.Name):
		return true
	case !own.Workload(r.Dev.Name):
		return false
	default: // where others may have routes, those of a plugin are ours, unless a protocol was chosen that tells them apart
		return own.External || r.Protocol == unix.RTPROT_BOOT && own.RouteProtocol() == kernel.RouteProtocol
	}
}

// Apply adds, replaces and removes routes, the removals last, so that a destination that moves from one route to another has
// one at every moment. A route that is not ours is never overwritten: then the new one is refused.
func (t Routes) Apply(ctx context.Context, changes []kernel.Change[kernel.RouteKey, kernel.Route]) error {
	x := routing{Routes: t}
	return kernel.Each(changes, func(c kernel.Change[kernel.RouteKey, kernel.Route]) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("change route to %v: %w", c.Key.Dst, err)
		}
		if c.New == nil {
			return t.remove(c.Key, *c.Old)
		}
		var err error
		if c.Old == nil {
			err = x.add(ctx, c.Key, *c.New)
		} else {
			err = t.replace(c.Key, *c.New)
		}
		if err != nil {
			return err
		}
		return fault.At(fault.ApplyRoutePut)
	})
}

// routing is one Apply.
type routing struct {
	Routes
	foreign map[kernel.RouteKey]kernel.Route // nil until it is needed
}

func (x *routing) add(ctx context.Context, k kernel.RouteKey, r kernel.Route) error {
	err := x.make(k, r, x.c.h.RouteAdd)
	if !is(err, unix.EEXIST) {
		return putError(k, r, err)
	}
	// Nobody told us of this route. It may still be ours: made since the list, or by a request whose answer was lost.
	if err := x.listForeign(ctx); err != nil {
		return putError(k, r, err)
	}
	if inTheWay, ok := x.foreign[k]; ok {
		text := kernel.RouteText(k, inTheWay)
		return fmt.Errorf("add route %s: there is already %q, which is not ours; if it is not needed, `ip route del %s`",
			kernel.RouteText(k, r), text, text)
	}
	return x.replace(k, r)
}

func (x *routing) listForeign(ctx context.Context) error {
	if x.foreign != nil {
		return nil
	}
	foreign, own := map[kernel.RouteKey]kernel.Route{}, x.c.ownership()
	err := x.all(ctx, func(have route) {
		if !ourRoute(own, have.val) {
			foreign[have.key] = have.val
		}
	})
	if err == nil {
		x.foreign = foreign
	}
	return err
}

// replace relies on the kernel taking (destination, metric) for a route's identity, and swapping the rest in one step.
func (t Routes) replace(k kernel.RouteKey, r kernel.Route) error {
	return putError(k, r, t.make(k, r, t.c.h.RouteReplace))
}

// make adds or replaces a route. IPv6 does not take a gateway that it knows behind another device, even for onlink: such is the remote tunnel address
// in a block that was routed without a tunnel until now. Such a route is made while another leads to the gateway alone by the right device. Who is
// killed between leaves that one, which is marked as ours and which nobody wants.
func (t Routes) make(k kernel.RouteKey, r kernel.Route, put func(*netlink.Route) error) error {
	err := put(encodeRoute(k, r))
	if !is(err, unix.EINVAL) || !r.Onlink || !r.Gateway.Is6() {
		return err
	}
	way := kernel.RouteKey{Dst: netip.PrefixFrom(r.Gateway, r.Gateway.BitLen()), Metric: 1}
	x := encodeRoute(way, kernel.Route{Dev: r.Dev, Protocol: kernel.RouteProtocol})
	if err := t.c.h.RouteAdd(x); err != nil && !is(err, unix.EEXIST) {
		return fmt.Errorf("make the gateway known: %w", err)
	}
	err = put(encodeRoute(k, r))
	if gone := t.c.h.RouteDel(x); gone != nil && !is(gone, unix.ESRCH) {
		err = errors.Join(err, fmt.Errorf("forget the gateway: %w", gone))
	}
	return err
}

func putError(k kernel.RouteKey, r kernel.Route, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("add route %s: %w", kernel.RouteText(k, r), err)
}

// remove names all that it knows of the route, so that one that somebody has put in its place stays. The kernel takes metric 0
// for any metric, and then removes the first match, which is the one with the lowest.
func (t Routes) remove(k kernel.RouteKey, r kernel.Route) error {
	x := encodeRoute(k, r)
	x.Scope = netlink.SCOPE_NOWHERE // any
	x.Gw, x.Src, x.Flags = nil, nil, 0
	if r.Type != kernel.Unicast && r.Type != kernel.Blackhole {
		x.Type = int(r.Type) - otherType
	}
	if err := t.c.h.RouteDel(x); err != nil && !gone(err) {
		return fmt.Errorf("remove route %s: %w", kernel.RouteText(k, r), err)
	}
	return nil
}

func encodeRoute(k kernel.RouteKey, r kernel.Route) *netlink.Route {
	x := &netlink.Route{
		Dst:       toIPNet(k.Dst),
		Priority:  k.Metric,
		Table:     unix.RT_TABLE_MAIN,
		Protocol:  netlink.RouteProtocol(r.Protocol),
		LinkIndex: r.Dev.Index,
		Gw:        toIP(r.Gateway),
		Src:       toIP(r.Src),
		Type:      unix.RTN_UNICAST,
	}
	if r.Type == kernel.Blackhole {
		x.Type = unix.RTN_BLACKHOLE
	}
	if r.Scope == kernel.LinkScope {
		x.Scope = netlink.SCOPE_LINK
	}
	if r.Onlink {
		x.Flags = unix.RTNH_F_ONLINK
	}
	return x
}
