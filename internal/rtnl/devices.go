package rtnl

import (
	"context"
	"fmt"
)

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
