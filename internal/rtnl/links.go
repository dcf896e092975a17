package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// ErrNoIPIP says that the kernel has no IP-in-IP devices.
var ErrNoIPIP = errors.New("the kernel has no IP-in-IP devices; load its module with `modprobe ipip`")

// ErrNoWireGuard says that the kernel has no WireGuard devices.
var ErrNoWireGuard = errors.New("WireGuard not supported by this kernel; load its module with `modprobe wireguard`, which kernels have since 5.6")

// Links is the table of our VXLAN and WireGuard devices and of the IPIP device. Their mark is the name; that of a WireGuard device, which settings may
// name, is its alias too.
//
// The kernel's module ipip makes tunl0 itself, in every namespace and at the latest when one is asked for, and never removes it
// (net/ipv4/ip_tunnel.c, the fallback device). So the device is in the table while it is up: to create it is to set it up, and to
// remove it is to set it down, so that it takes in no packets once no rule says whose.
type Links struct{ c *Conn }

// Links returns the table of our devices.
func (c *Conn) Links() Links { return Links{c} }

// List returns our devices. One that is down has MTU 0 in the list, and one that is set up in a way that we would never choose is
// all zero, so that neither equals a wanted device.
func (t Links) List(ctx context.Context) (map[string]kernel.Link, error) {
	devices, err := t.c.devices(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]kernel.Link{}
	for _, d := range devices {
		if !d.ours() {
			continue
		}
		l, err := t.c.h.LinkByIndex(d.host.Index)
		if gone(err) || isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read device %s: %w", d.name, err)
		}
		if listed(l) {
			out[d.name] = linkOf(l, func(i int) kernel.Dev { return devices[i].dev() })
		}
	}
	return out, nil
}

// listed tells whether a device of a name of ours counts as there.
func listed(l netlink.Link) bool {
	return l.Attrs().Name != kernel.IPIPDevice || l.Attrs().Flags&net.FlagUp != 0
}

// linkOf describes a device. parent names the device of an index.
func linkOf(l netlink.Link, parent func(int) kernel.Dev) kernel.Link {
	switch d := l.(type) {
	case *netlink.Vxlan:
		return vxlanOf(d, parent)
	case *netlink.Iptun:
		return ipipOf(d)
	case *netlink.Wireguard:
		return wireGuardOf(d)
	}
	return kernel.Link{}
}

func ipipOf(d *netlink.Iptun) kernel.Link {
	if unspecified(d.Local) && unspecified(d.Remote) && d.Link == 0 && !d.FlowBased {
		return kernel.Link{Type: kernel.IPIP, MTU: d.MTU}
	}
	return kernel.Link{}
}

func wireGuardOf(d *netlink.Wireguard) kernel.Link {
	out := kernel.Link{Type: kernel.WireGuardLink, MTU: d.MTU}
	if d.Flags&net.FlagUp == 0 {
		out.MTU = 0
	}
	return out
}

func unspecified(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }

func vxlanOf(v *netlink.Vxlan, parent func(int) kernel.Dev) kernel.Link {
	if v.Learning || v.GBP || v.FlowBased {
		return kernel.Link{}
	}
	out := kernel.Link{Type: kernel.VXLAN, VNI: uint32(v.VxlanId), Port: uint16(v.Port), MTU: v.MTU}
	out.Local, _ = netip.AddrFromSlice(v.SrcAddr)
	if v.VtepDevIndex != 0 {
		out.Parent = parent(v.VtepDevIndex)
	}
	copy(out.MAC[:], v.HardwareAddr)
	if v.Flags&net.FlagUp == 0 {
		out.MTU = 0
	}
	return out
}

// Apply makes, changes and removes devices. What the kernel cannot change on a device that is there, the device is made anew for; an
// MTU is changed in place, and a device that is down is set up.
func (t Links) Apply(ctx context.Context, changes []kernel.Change[string, kernel.Link]) error {
	return kernel.Each(changes, func(c kernel.Change[string, kernel.Link]) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("change device %s: %w", c.Key, err)
		}
		if c.New == nil {
			return t.remove(c.Key)
		}
		return t.put(c.Key, *c.New)
	})
}

func (t Links) remove(name string) error {
	l, err := t.c.h.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	switch {
	case err != nil:
	case name == kernel.IPIPDevice:
		err = t.c.h.LinkSetDown(l)
	default:
		err = t.c.h.LinkDel(l)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

func (t Links) put(name string, want kernel.Link) error {
	l, err := t.c.h.LinkByName(name)
	if isNotFound(err) {
		return t.create(name, want)
	}
	if err != nil {
		return fmt.Errorf("read device %s: %w", name, err)
	}
	have := t.described(l, want)
	if have.MTU = want.MTU; have != want {
		if err := t.c.h.LinkDel(l); err != nil && !gone(err) {
			return fmt.Errorf("remove device %s: %w", name, err)
		}
		if err := fault.At(fault.ApplyLinkTaken); err != nil {
			return err
		}
		return t.create(name, want)
	}
	return t.adjust(l, want)
}

// adjust sets what can be changed on a device that is there.
func (t Links) adjust(l netlink.Link, want kernel.Link) error {
	name := l.Attrs().Name
	if l.Attrs().MTU != want.MTU {
		if err := t.c.h.LinkSetMTU(l, want.MTU); err != nil {
			return fmt.Errorf("set MTU %d of device %s: %w", want.MTU, name, err)
		}
	}
	if want.Type == kernel.WireGuardLink && l.Attrs().Alias != kernel.LinkAlias {
		if err := t.c.h.LinkSetAlias(l, kernel.LinkAlias); err != nil {
			return fmt.Errorf("mark device %s as ours: %w", name, err)
		}
	}
	if err := t.c.h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set device %s up: %w", name, err)
	}
	return nil
}

func (t Links) create(name string, want kernel.Link) error {
	switch want.Type {
	case kernel.IPIP:
		return t.createIPIP(name, want)
	case kernel.WireGuardLink:
		return t.createWireGuard(name, want)
	}
	return t.createVXLAN(name, want)
}

func (t Links) createWireGuard(name string, want kernel.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, want.MTU
	err := t.c.h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("add device %s: %w", name, ErrNoWireGuard)
	case err != nil:
		return fmt.Errorf("add device %s: %w", name, err)
	}
	l, err := t.c.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("read device %s: %w", name, err)
	}
	return t.adjust(l, want)
}

// createIPIP asks for the device. The kernel loads the module for that, which makes the device itself: then the answer is that it is
// there already. Where such devices are kept to the machine's own namespace (sysctl net.core.fb_tunnels_only_for_init_net) the one that
// was asked for is made, and does the same.
func (t Links) createIPIP(name string, want kernel.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := t.c.h.LinkAdd(&netlink.Iptun{LinkAttrs: attrs, Proto: unix.IPPROTO_IPIP})
	switch {
	case is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("add device %s: %w", name, ErrNoIPIP)
	case err != nil && !is(err, unix.EEXIST):
		return fmt.Errorf("add device %s: %w", name, err)
	}
	l, err := t.c.h.LinkByName(name)
	if isNotFound(err) {
		return fmt.Errorf("add device %s: another IP-in-IP device without endpoints is there already; remove it", name)
	}
	if err != nil {
		return fmt.Errorf("read device %s: %w", name, err)
	}
	return t.adjust(l, want)
}

func (t Links) createVXLAN(name string, want kernel.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags = name, want.MTU, net.FlagUp
	attrs.HardwareAddr = want.MAC[:]
	err := t.c.h.LinkAdd(&netlink.Vxlan{
		LinkAttrs:    attrs,
		VxlanId:      int(want.VNI),
		Port:         int(want.Port),
		SrcAddr:      toIP(want.Local),
		VtepDevIndex: want.Parent.Index,
		UDPCSum:      true,
	})
	switch {
	case err == nil:
		return nil
	case is(err, unix.EEXIST):
		return t.instead(name, want, err)
	case is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("add device %s: the kernel has no VXLAN devices; load its module with `modprobe vxlan`: %w", name, err)
	case gone(err):
		return fmt.Errorf("add device %s: its parent device %v is not there any more: %w", name, want.Parent, err)
	default:
		return fmt.Errorf("add device %s: %w", name, err)
	}
}

// instead deals with a device that has the VNI and port of the one that is to be made. If it is that one in all but its name, somebody has
// renamed ours: no other device has the MAC that is made of this node's name. It gets its name back. Any other is not ours to touch.
func (t Links) instead(name string, want kernel.Link, exists error) error {
	all, err := t.c.h.LinkList()
	if err != nil {
		return fmt.Errorf("add device %s: look for the device in its place: %w", name, err)
	}
	for _, l := range all {
		v, ok := l.(*netlink.Vxlan)
		have := t.described(l, want)
		if !ok || v.VxlanId != int(want.VNI) || v.Port != int(want.Port) || v.Name == kernel.VXLANDevice || v.Name == kernel.VXLAN6Device {
			continue // ours may share both with that of the other family
		}
		if have.MTU = want.MTU; have == want {
			return t.rename(l, name, want)
		}
		exists = fmt.Errorf("device %s has VNI %d and UDP port %d already; remove it, or set vxlanVNI or vxlanPort in FelixConfiguration: %w",
			v.Name, want.VNI, want.Port, exists)
		break
	}
	return fmt.Errorf("add device %s: %w", name, exists)
}

// rename gives a device its name, for which it is set down, and up again.
func (t Links) rename(l netlink.Link, name string, want kernel.Link) error {
	was := l.Attrs().Name
	if err := errors.Join(t.c.h.LinkSetDown(l), t.c.h.LinkSetName(l, name)); err != nil {
		return fmt.Errorf("give device %s its name %s back: %w", was, name, err)
	}
	l.Attrs().Name = name
	return t.adjust(l, want)
}

// described is what a device is, with the parent that it is to have named as that if it has it.
func (t Links) described(l netlink.Link, want kernel.Link) kernel.Link {
	return linkOf(l, func(i int) kernel.Dev {
		if i == want.Parent.Index {
			return want.Parent
		}
		return kernel.Dev{Index: i}
	})
}

func isNotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}
