package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// Routes is the table of our routes, in the main table and in any other. Their mark is the protocol, and in the main table on our own devices the device.
type Routes struct{ c *Conn }

// Routes returns the table of our routes.
func (c *Conn) Routes() Routes { return Routes{c} }

// List returns every route of our protocol; of the main table also on our tunnels' devices every unicast route but those that the kernel makes for
// addresses; and on workloads' devices, as Own says, the same or only those of protocol boot, which plugins have made for us. IPv6 routes
// always have a metric: where none was asked for, the kernel chose 1024.
func (t Routes) List(ctx context.Context) (map[kernel.RouteKey]kernel.Route, error) {
	out, own := map[kernel.RouteKey]kernel.Route{}, t.c.ownership()
	err := t.all(ctx, func(r route) {
		if ourRoute(own, r) {
			out[r.key] = r.val
		}
	})
	return out, err
}

// all calls f for every route but the kernel's own to the host's addresses.
func (t Routes) all(ctx context.Context, f func(route)) error {
	devices, err := t.c.devices(ctx)
	if err != nil {
		return err
	}
	msgs, err := t.c.dump(ctx, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{}, 0)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, m := range msgs {
		r, ok, err := decodeRoute(m)
		if err != nil {
			return err
		}
		if ok {
			r.name(func(index int) string { return devices[index].name })
			f(r)
		}
	}
	return nil
}

func ourRoute(own kernel.Ownership, found route) bool {
	r := found.val
	switch {
	case own.HasProtocol(r.Protocol):
		return true
	case found.key.Table != 0: // whoever has a table of his own puts there what he likes
		return false
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
	return each(ctx, t.c.sender, changes, way[kernel.RouteKey, kernel.Route]{
		encode: func(m *messages, c kernel.Change[kernel.RouteKey, kernel.Route]) {
			switch {
			case c.New == nil:
				appendRemoval(m, c.Key, *c.Old)
			case c.Old == nil:
				appendRoute(m, addFlags, c.Key, *c.New)
			default:
				appendRoute(m, replaceFlags, c.Key, *c.New)
			}
		},
		refused: func(c kernel.Change[kernel.RouteKey, kernel.Route], err error) error {
			switch {
			case c.New == nil && gone(err):
				return nil
			case c.New == nil:
				return fmt.Errorf("remove route %s: %w", kernel.RouteText(c.Key, *c.Old), err)
			case c.Old == nil:
				return x.addRefused(ctx, c.Key, *c.New, err)
			default:
				return putError(c.Key, *c.New, t.refused(replaceFlags, c.Key, *c.New, err))
			}
		},
		made: func(c kernel.Change[kernel.RouteKey, kernel.Route]) error {
			if c.New == nil {
				return nil
			}
			return fault.At(fault.ApplyRoutePut)
		},
	})
}

// How a route is put.
const (
	addFlags     = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	replaceFlags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE // the kernel takes (destination, metric) for a route's identity, and swaps the rest in one step
)

// OccupiedError says that a route was not added, since another's has its destination and metric. Both are as `ip route` writes them.
type OccupiedError struct{ Route, There string }

// Error says what to do, too.
func (e *OccupiedError) Error() string {
	return fmt.Sprintf("add route %s: there is already %q, which is not ours; if it is not needed, `ip route del %s`", e.Route, e.There, e.There)
}

// routing is one Apply.
type routing struct {
	Routes
	foreign map[kernel.RouteKey]kernel.Route // nil until it is needed
}

// addRefused looks at what is in the way of a route.
func (x *routing) addRefused(ctx context.Context, k kernel.RouteKey, r kernel.Route, err error) error {
	err = x.refused(addFlags, k, r, err)
	if !is(err, unix.EEXIST) {
		return putError(k, r, err)
	}
	// Nobody told us of this route. It may still be ours: made since the list, or by a request whose answer was lost.
	if err := x.listForeign(ctx); err != nil {
		return putError(k, r, err)
	}
	if inTheWay, ok := x.foreign[k]; ok {
		return &OccupiedError{Route: kernel.RouteText(k, r), There: kernel.RouteText(k, inTheWay)}
	}
	return putError(k, r, x.put(replaceFlags, k, r))
}

func (x *routing) listForeign(ctx context.Context) error {
	if x.foreign != nil {
		return nil
	}
	foreign, own := map[kernel.RouteKey]kernel.Route{}, x.c.ownership()
	err := x.all(ctx, func(have route) {
		if !ourRoute(own, have) {
			foreign[have.key] = have.val
		}
	})
	if err == nil {
		x.foreign = foreign
	}
	return err
}

// put adds or replaces a route, alone.
func (t Routes) put(flags uint16, k kernel.RouteKey, r kernel.Route) error {
	return t.refused(flags, k, r, t.c.sender.one(func(m *messages) { appendRoute(m, flags, k, r) }))
}

// refused makes a second attempt where there is one. IPv6 does not take a gateway that it knows behind another device, even for onlink: such is the
// remote tunnel address in a block that was routed without a tunnel until now. Such a route is made while another leads to the gateway alone by the
// right device. Who is killed between leaves that one, which is marked as ours and which nobody wants.
func (t Routes) refused(flags uint16, k kernel.RouteKey, r kernel.Route, err error) error {
	if !is(err, unix.EINVAL) || !r.Onlink || !r.Gateway.Is6() {
		return err
	}
	key := kernel.RouteKey{Dst: netip.PrefixFrom(r.Gateway, r.Gateway.BitLen()), Metric: 1, Table: k.Table}
	way := kernel.Route{Dev: r.Dev, Protocol: kernel.RouteProtocol}
	if err := t.c.sender.one(func(m *messages) { appendRoute(m, addFlags, key, way) }); err != nil && !is(err, unix.EEXIST) {
		return fmt.Errorf("make the gateway known: %w", err)
	}
	err = t.c.sender.one(func(m *messages) { appendRoute(m, flags, k, r) })
	if gone := t.c.sender.one(func(m *messages) { appendRemoval(m, key, way) }); gone != nil && !is(gone, unix.ESRCH) {
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

// appendRoute adds the message that puts a route.
func appendRoute(m *messages, flags uint16, k kernel.RouteKey, r kernel.Route) {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if r.Scope == kernel.LinkScope {
		scope = unix.RT_SCOPE_LINK
	}
	var onlink uint32
	if r.Onlink {
		onlink = unix.RTNH_F_ONLINK
	}
	m.begin(unix.RTM_NEWROUTE, flags, rtmsg(k, r, scope, onlink)...)
	m.addr(unix.RTA_DST, k.Dst.Addr())
	m.addr(unix.RTA_PREFSRC, r.Src)
	m.addr(unix.RTA_GATEWAY, r.Gateway)
	m.uint32(unix.RTA_PRIORITY, k.Metric)
	m.uint32(unix.RTA_TABLE, k.Table)
	m.uint32(unix.RTA_OIF, r.Dev.Index)
	if r.Hops != "" {
		m.attr(unix.RTA_MULTIPATH, encodeHops(r.Hops.List()))
	}
}

// encodeHops undoes decodeHops.
func encodeHops(hops []kernel.Hop) []byte {
	var out []byte
	for _, h := range hops {
		gateway := h.Gateway.AsSlice()
		size := unix.SizeofRtNexthop + unix.SizeofRtAttr + len(gateway)
		flags := byte(0)
		if h.Onlink {
			flags = unix.RTNH_F_ONLINK
		}
		out = binary.NativeEndian.AppendUint16(out, uint16(size))
		out = append(out, flags, 0) // a weight of one
		out = binary.NativeEndian.AppendUint32(out, uint32(h.Dev.Index))
		out = binary.NativeEndian.AppendUint16(out, uint16(size-unix.SizeofRtNexthop))
		out = binary.NativeEndian.AppendUint16(out, unix.RTA_GATEWAY)
		out = append(out, gateway...) // of a length that needs no filling up
	}
	return out
}

// appendRemoval adds the message that removes a route. It names all that it knows of it, so that one that somebody has put in its place stays. The
// kernel takes metric 0 for any metric, and then removes the first match, which is the one with the lowest.
func appendRemoval(m *messages, k kernel.RouteKey, r kernel.Route) {
	m.begin(unix.RTM_DELROUTE, 0, rtmsg(k, r, unix.RT_SCOPE_NOWHERE, 0)...) // of any scope
	m.addr(unix.RTA_DST, k.Dst.Addr())
	m.uint32(unix.RTA_PRIORITY, k.Metric)
	m.uint32(unix.RTA_TABLE, k.Table)
	m.uint32(unix.RTA_OIF, r.Dev.Index)
}

// rtmsg is struct rtmsg (rtnetlink(7)) of a route. The number of a table other than the main one is in an attribute, where it may be larger.
func rtmsg(k kernel.RouteKey, r kernel.Route, scope byte, flags uint32) []byte {
	kind := byte(unix.RTN_UNICAST)
	switch r.Type {
	case kernel.Unicast:
	case kernel.Blackhole:
		kind = unix.RTN_BLACKHOLE
	case kernel.Prohibit:
		kind = unix.RTN_PROHIBIT
	case kernel.Throw:
		kind = unix.RTN_THROW
	default:
		kind = byte(r.Type - otherType)
	}
	table := byte(unix.RT_TABLE_MAIN)
	if k.Table != 0 {
		table = unix.RT_TABLE_UNSPEC
	}
	b := []byte{family(k.Dst.Addr()), byte(k.Dst.Bits()), 0, 0, table, byte(r.Protocol), scope, kind}
	return binary.NativeEndian.AppendUint32(b, flags)
}
