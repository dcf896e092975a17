package rtnl

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Neighs is the table of the permanent neighbour entries on our VXLAN devices and on the host's side of workloads. Their
// mark is the device.
type Neighs struct{ c *Conn }

// Neighs returns the table of permanent neighbours.
func (c *Conn) Neighs() Neighs { return Neighs{c} }

// List returns the permanent neighbour entries on our devices. What the kernel has learned is not among them.
func (t Neighs) List(ctx context.Context) (map[kernel.NeighKey]kernel.MAC, error) {
	out := map[kernel.NeighKey]kernel.MAC{}
	err := t.c.neighbours(ctx, unix.AF_UNSPEC, func(d device, n neighbour) {
		if t.c.ourNeigh(d.name, n) {
			out[kernel.NeighKey{Dev: d.dev(), Addr: n.addr}] = n.mac
		}
	})
	return out, err
}

func (c *Conn) ourNeigh(dev string, n neighbour) bool {
	return !n.bridge && n.permanent && c.ourDevice(dev)
}

// neighbours calls f for every entry of a family's tables.
func (c *Conn) neighbours(ctx context.Context, family uint8, f func(device, neighbour)) error {
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	msgs, err := c.dump(ctx, unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: family})
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, m := range msgs {
		n, err := decodeNeigh(m)
		if err != nil {
			return err
		}
		f(devices[n.index], n)
	}
	return nil
}

// Apply sets and removes neighbour entries.
func (t Neighs) Apply(ctx context.Context, changes []kernel.Change[kernel.NeighKey, kernel.MAC]) error {
	return kernel.Each(changes, func(c kernel.Change[kernel.NeighKey, kernel.MAC]) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("change neighbour %v on %v: %w", c.Key.Addr, c.Key.Dev, err)
		}
		n := &netlink.Neigh{LinkIndex: c.Key.Dev.Index, IP: toIP(c.Key.Addr), State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST}
		if c.New == nil {
			if err := t.c.h.NeighDel(n); err != nil && !gone(err) {
				return fmt.Errorf("remove neighbour %v on %v: %w", c.Key.Addr, c.Key.Dev, err)
			}
			return nil
		}
		n.HardwareAddr = c.New[:]
		if err := t.c.h.NeighSet(n); err != nil {
			return fmt.Errorf("set neighbour %v on %v: %w", c.Key.Addr, c.Key.Dev, err)
		}
		return nil
	})
}

// FDB is the table of the permanent forwarding entries of our VXLAN devices. Their mark is the device.
type FDB struct{ c *Conn }

// FDB returns the table of forwarding entries.
func (c *Conn) FDB() FDB { return FDB{c} }

// List returns the permanent forwarding entries that name another node's address.
func (t FDB) List(ctx context.Context) (map[kernel.FDBKey]netip.Addr, error) {
	out := map[kernel.FDBKey]netip.Addr{}
	err := t.c.neighbours(ctx, unix.AF_BRIDGE, func(d device, n neighbour) {
		if ourFDB(d.name, n) {
			out[kernel.FDBKey{Dev: d.dev(), MAC: n.mac}] = n.addr
		}
	})
	return out, err
}

func ourFDB(dev string, n neighbour) bool {
	return n.bridge && n.permanent && n.self && n.addr.IsValid() && ourTunnel(dev)
}

// Apply sets and removes forwarding entries.
func (t FDB) Apply(ctx context.Context, changes []kernel.Change[kernel.FDBKey, netip.Addr]) error {
	return kernel.Each(changes, func(c kernel.Change[kernel.FDBKey, netip.Addr]) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("change forwarding entry %v of %v: %w", c.Key.MAC, c.Key.Dev, err)
		}
		n := &netlink.Neigh{
			LinkIndex:    c.Key.Dev.Index,
			Family:       unix.AF_BRIDGE,
			Flags:        netlink.NTF_SELF,
			State:        netlink.NUD_PERMANENT,
			HardwareAddr: c.Key.MAC[:],
		}
		if c.New == nil {
			n.IP = toIP(*c.Old)
			if err := t.c.h.NeighDel(n); err != nil && !gone(err) {
				return fmt.Errorf("remove forwarding entry %v of %v: %w", c.Key.MAC, c.Key.Dev, err)
			}
			return nil
		}
		n.IP = toIP(*c.New)
		if err := t.c.h.NeighSet(n); err != nil {
			return fmt.Errorf("set forwarding entry %v dst %v of %v: %w", c.Key.MAC, *c.New, c.Key.Dev, err)
		}
		return nil
	})
}
