// Command floor attaches a pod with nothing but the netlink messages that cannot be left out: the cost below which no CNI
// plugin that is a process of its own can go.
//
//	floor add NETNS HOSTIF ADDRESS
//	floor del NETNS
//	floor noop
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func main() {
	runtime.GOMAXPROCS(1)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "add":
		return add(args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "del":
		return del(args[1])
	case len(args) == 1 && args[0] == "noop":
		return nil
	}
	return errors.New("usage: floor add NETNS HOSTIF ADDRESS | floor del NETNS | floor noop")
}

func add(path, hostIf, address string) error {
	pod, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	host, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: hostIf, MTU: 1450, HardwareAddr: net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}, Flags: net.FlagUp},
		PeerName:         "eth0",
		PeerHardwareAddr: net.HardwareAddr{0x0a, 0, 0, 0, 0, 1},
		PeerNamespace:    netlink.NsFd(int(pod)),
	}
	if err := host.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	link, err := host.LinkByName(hostIf)
	if err != nil {
		return err
	}
	if err := host.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", hostIf, err)
	}
	ip := &net.IPNet{IP: net.ParseIP(address), Mask: net.CIDRMask(32, 32)}
	if err := podSide(pod, ip); err != nil {
		return err
	}
	return host.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ip, Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC, Priority: 1024})
}

func podSide(pod netns.NsHandle, ip *net.IPNet) error {
	h, err := netlink.NewHandleAt(pod)
	if err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	gateway := net.IPv4(169, 254, 1, 1)
	index := eth.Attrs().Index
	for _, step := range []func() error{
		func() error { return h.LinkSetUp(eth) },
		func() error { return h.AddrAdd(eth, &netlink.Addr{IPNet: ip}) },
		func() error {
			return h.RouteAdd(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}})
		},
		func() error { return h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gateway}) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("set the pod's side: %w", err)
		}
	}
	return nil
}

func del(path string) error {
	pod, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(pod)
	if err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	return h.LinkDel(eth)
}
