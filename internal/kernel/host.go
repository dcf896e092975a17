package kernel

import "net/netip"

// Host is what a node's kernel says about itself: the facts that a plan is computed from.
type Host struct {
	Links map[string]HostLink // by name; every device of the namespace
	Addrs []HostAddr          // in the kernel's order
}

// HostLink is a device as found.
type HostLink struct {
	Index int
	MTU   int
	MAC   MAC
	Kind  string // veth, vxlan, bridge …; "" for a physical device
	Up    bool   // administratively: routes may hang on it
	Live  bool   // up, and its carrier is there or unknown: packets can pass
}

// HostAddr is an address as found, with the prefix length of its subnet.
type HostAddr struct {
	Dev       string
	Addr      netip.Prefix
	Temporary bool // made for privacy, to be given up soon (RFC 8981)
}

// Dev returns the device of that name if it exists and is up.
func (h Host) Dev(name string) (Dev, bool) {
	l, ok := h.Links[name]
	return Dev{Name: name, Index: l.Index}, ok && l.Up
}

// Holder returns the device that holds an address.
func (h Host) Holder(a netip.Addr) (Dev, bool) {
	for _, x := range h.Addrs {
		if x.Addr.Addr() == a {
			return h.Dev(x.Dev)
		}
	}
	return Dev{}, false
}
