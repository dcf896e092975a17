package rtnl

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Addrs is the table of the addresses on our devices, the IPIP device included. Their mark is the device.
type Addrs struct{ c *Conn }

// Addrs returns the table of our devices' addresses.
func (c *Conn) Addrs() Addrs { return Addrs{c} }

// List returns the addresses on our devices, without the link-local IPv6 addresses that the kernel gives every device.
func (t Addrs) List(ctx context.Context) (map[kernel.AddrKey]struct{}, error) {
	devices, err := t.c.devices(ctx)
	if err != nil {
		return nil, err
	}
	all, err := t.c.addresses(ctx)
	if err != nil {
		return nil, err
	}
	out := map[kernel.AddrKey]struct{}{}
	for _, a := range all {
		if d := devices[a.index]; ourAddr(d, a) {
			out[kernel.AddrKey{Link: d.name, Addr: a.addr}] = struct{}{}
		}
	}
	return out, nil
}

func ourAddr(d device, a address) bool {
	ip := a.addr.Addr()
	return d.ours() && !(ip.Is6() && ip.IsLinkLocalUnicast())
}

// Apply adds and removes addresses.
func (t Addrs) Apply(ctx context.Context, changes []kernel.Change[kernel.AddrKey, struct{}]) error {
	return kernel.Each(changes, func(c kernel.Change[kernel.AddrKey, struct{}]) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("change address %v of %s: %w", c.Key.Addr, c.Key.Link, err)
		}
		l, err := t.c.h.LinkByName(c.Key.Link)
		if isNotFound(err) && c.New == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("change address %v: find device %s: %w", c.Key.Addr, c.Key.Link, err)
		}
		addr := &netlink.Addr{IPNet: toIPNet(c.Key.Addr)}
		if c.Key.Addr.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // it has one owner by allocation, and nobody would answer on a tunnel
		}
		if c.New == nil {
			if err := t.c.h.AddrDel(l, addr); err != nil && !gone(err) {
				return fmt.Errorf("remove address %v of %s: %w", c.Key.Addr, c.Key.Link, err)
			}
			return nil
		}
		if err := t.c.h.AddrAdd(l, addr); err != nil && !is(err, unix.EEXIST) {
			return fmt.Errorf("add address %v to %s: %w", c.Key.Addr, c.Key.Link, err)
		}
		return nil
	})
}
