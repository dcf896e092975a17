package rtnl

import (
	"context"
	"fmt"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Host reads the host facts once. Who wants them kept has a Monitor.
func (c *Conn) Host(ctx context.Context) (kernel.Host, error) {
	devices, err := c.devices(ctx)
	if err != nil {
		return kernel.Host{}, err
	}
	addrs, err := c.addresses(ctx)
	if err != nil {
		return kernel.Host{}, err
	}
	return hostOf(devices, addrs), nil
}

func hostOf(devices map[int]device, addrs []address) kernel.Host {
	h := kernel.Host{Links: make(map[string]kernel.HostLink, len(devices))}
	for _, d := range devices {
		h.Links[d.name] = d.host
	}
	for _, a := range addrs {
		if d, ok := devices[a.index]; ok {
			h.Addrs = append(h.Addrs, kernel.HostAddr{Dev: d.name, Addr: a.addr, Temporary: a.temporary})
		}
	}
	return h
}

// Names lists the names of all devices of the namespace, whoever made them.
func (c *Conn) Names(ctx context.Context) (map[string]bool, error) {
	devices, err := c.devices(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(devices))
	for _, d := range devices {
		out[d.name] = true
	}
	return out, nil
}

// Exists asks the kernel whether the namespace has a device of that name now.
func (c *Conn) Exists(name string) (bool, error) {
	_, err := c.h.LinkByName(name)
	if gone(err) || isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for device %s: %w", name, err)
	}
	return true, nil
}

// RemovePair removes a device, which must be one end of a veth pair, and with it the other end. One that is not there is no error.
func (c *Conn) RemovePair(name string) error {
	l, err := c.h.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err == nil && l.Type() != "veth" {
		return fmt.Errorf("remove device %s: it is of type %s and not one end of a veth pair, so it is somebody else's", name, l.Type())
	}
	if err == nil {
		err = c.h.LinkDel(l)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// WireGuards lists the WireGuard devices that are ours.
func (c *Conn) WireGuards(ctx context.Context) ([]kernel.Dev, error) {
	devices, err := c.devices(ctx)
	if err != nil {
		return nil, err
	}
	var out []kernel.Dev
	for _, d := range devices {
		if d.host.Kind == kindWireGuard && d.ours() {
			out = append(out, d.dev())
		}
	}
	return out, nil
}
