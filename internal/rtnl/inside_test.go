package rtnl

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func openPod() (*Pod, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return OpenPodBy(fd)
}

func TestSocketOfAnotherKindIsRefusedAndClosed(t *testing.T) {
	for name, open := range map[string]func(int) error{
		"pod":   func(fd int) error { _, err := OpenPodBy(fd); return err },
		"veths": func(fd int) error { _, err := OpenVethsBy(fd); return err },
	} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := open(fd); err == nil {
			t.Errorf("%s: it is taken", name)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("%s: it is still open: %v", name, err)
		}
	}
}

func TestPodsInterfaceIsSetUpAtOnce(t *testing.T) {
	host, pod := nettest.New(t), nettest.New(t)
	nettest.Pair(host, "cali0", pod, "eth0")
	pod.Exec("ip", "link", "set", "eth0", "down", "mtu", "1450")
	mac := kernel.MAC{2, 0, 0, 0, 0, 7}
	want := Inside{
		Name: "eth0", MAC: &mac, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")},
		Neighs: []InsideNeigh{{netip.MustParseAddr("fe80::1"), kernel.MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}}},
		Routes: []InsideRoute{
			{Dst: netip.MustParsePrefix("169.254.1.1/32")},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("169.254.1.1")},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::1")},
		},
	}
	pod.Do(func() {
		p, err := openPod()
		if err != nil {
			t.Error(err)
			return
		}
		defer p.Close()
		for _, forwards := range []string{"1", "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(forwards), 0o644); err != nil {
				t.Error(err)
			}
			if got, err := p.Forwards(); err != nil || got != (forwards == "1") {
				t.Errorf("ip_forward is %s, and the pod is said to forward: %t, %v", forwards, got, err)
			}
		}
		if _, _, err := p.Device("eth9"); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "eth9") {
			t.Errorf("a device that is not there: %v", err)
		}
		if _, _, err := p.Device("a-name-that-is-too-long"); err == nil {
			t.Error("a name that none can have is found")
		}
		index, mtu, err := p.Device("eth0")
		if err != nil || mtu != 1450 {
			t.Errorf("MTU %d, %v", mtu, err)
		}
		want.Index = index
		if err := p.SetUp(want); err != nil {
			t.Error(err)
		}
		if err := p.SetUp(want); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "add route 169.254.1.1/32 scope link") {
			t.Errorf("the same again: %v", err)
		}
		want.Index = 99
		if err := p.SetUp(want); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "set eth0 up") {
			t.Errorf("a device that is gone: %v", err)
		}
	})
	for _, c := range []struct{ want, command string }{
		{"02:00:00:00:00:07", "ip link show dev eth0 up"},
		{"10.0.0.7/32 scope global", "ip addr show dev eth0"},
		{"fd00::7/128 scope global nodad", "ip addr show dev eth0"},
		{"fe80::1 lladdr ee:ee:ee:ee:ee:ee", "ip -6 neigh show dev eth0 nud permanent"},
		{"169.254.1.1 dev eth0 scope link", "ip route show proto boot"},
		{"default via 169.254.1.1 dev eth0", "ip route show proto boot"},
		{"default via fe80::1 dev eth0", "ip -6 route show"},
	} {
		if got := pod.Exec(strings.Fields(c.command)...); !strings.Contains(got, c.want) {
			t.Errorf("%s says:\n%s\nwant %q in it", c.command, got, c.want)
		}
	}
}
