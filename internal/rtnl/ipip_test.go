package rtnl

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func tunl0(mtu int) map[string]kernel.Link {
	return map[string]kernel.Link{kernel.IPIPDevice: {Type: kernel.IPIP, MTU: mtu}}
}

func TestVMIPIPDeviceIsSetUpAndDownAndNeverRemoved(t *testing.T) {
	nettest.Need(t, "ipip")
	h := newHost(t)
	if have := mustList(t, h.Links()); len(have) != 0 {
		t.Errorf("a device that is down is listed: %v", have)
	}
	mustBecome(t, h.Links(), tunl0(1480))
	for _, want := range []string{"NOARP,UP", "mtu 1480", "ipip any remote any local any"} {
		if out := h.Exec("ip", "-d", "link", "show", kernel.IPIPDevice); !strings.Contains(out, want) {
			t.Errorf("ip -d link lacks %q:\n%s", want, out)
		}
	}
	index := h.Index(kernel.IPIPDevice)
	mustBecome(t, h.Links(), tunl0(1440))
	for _, spoil := range [][]string{{"down"}, {"mtu", "1300"}} {
		h.Exec(append([]string{"ip", "link", "set", kernel.IPIPDevice}, spoil...)...)
		mustBecome(t, h.Links(), tunl0(1440))
	}
	mustBecome(t, h.Links(), map[string]kernel.Link{})
	if out := h.Exec("ip", "link", "show", kernel.IPIPDevice); !strings.Contains(out, "state DOWN") || h.Index(kernel.IPIPDevice) != index {
		t.Errorf("after it was left:\n%s", out)
	}
}

func TestVMIPIPDevicesOfOthersStay(t *testing.T) {
	nettest.Need(t, "ipip")
	h := newHost(t)
	h.Exec("ip", "link", "add", "tun99", "type", "ipip", "remote", "172.30.0.9", "local", "172.30.0.1")
	h.Exec("ip", "link", "set", "tun99", "up")
	h.Exec("ip", "addr", "add", "10.99.0.1/32", "dev", "tun99")
	h.Exec("ip", "link", "add", "vx99", "type", "vxlan", "id", "99", "dstport", "4789", "dev", "eth0")
	h.Exec("ip", "link", "set", kernel.IPIPDevice, "up")
	h.Exec("ip", "route", "add", "10.98.0.0/24", "via", "172.30.0.9", "dev", kernel.IPIPDevice, "onlink", "proto", "12")
	before := h.Exec("ip", "-o", "addr", "show", "dev", "tun99")
	mustBecome(t, h.Links(), tunl0(1480))
	mustBecome(t, h.Addrs(), map[kernel.AddrKey]struct{}{{Link: kernel.IPIPDevice, Addr: netip.MustParsePrefix("10.244.0.0/32")}: {}})
	want := map[kernel.RouteKey]kernel.Route{routeKey("10.244.1.0/26", 0): {
		Gateway: netip.MustParseAddr("172.30.0.9"), Dev: h.dev(kernel.IPIPDevice), Onlink: true, Protocol: kernel.RouteProtocol,
	}}
	mustBecome(t, h.Routes(), want)
	out := h.Exec("ip", "route")
	if !strings.Contains(out, "10.244.1.0/26 via 172.30.0.9 dev tunl0 proto 80 onlink") || !strings.Contains(out, "10.98.0.0/24 via 172.30.0.9 dev tunl0 proto bird onlink") {
		t.Errorf("routes:\n%s", out)
	}
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{})
	mustBecome(t, h.Addrs(), map[kernel.AddrKey]struct{}{})
	mustBecome(t, h.Links(), map[string]kernel.Link{})
	if after := h.Exec("ip", "-o", "addr", "show", "dev", "tun99"); after != before {
		t.Errorf("tun99 was\n%snow\n%s", before, after)
	}
	if out := h.Exec("ip", "link"); !strings.Contains(out, "vx99") {
		t.Errorf("vx99 is gone:\n%s", out)
	}
}

// noneByItself keeps the kernel of the VM from making tunl0 in new namespaces, until the test ends.
func noneByItself(t *testing.T) {
	t.Helper()
	const knob = "/proc/sys/net/core/fb_tunnels_only_for_init_net" // of the whole machine
	was, err := os.ReadFile(knob)
	if err == nil {
		err = os.WriteFile(knob, []byte("1"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(knob, was, 0); err != nil {
			t.Error(err)
		}
	})
}

// Where the kernel makes tunl0 in no namespace but the machine's own, the device that we ask for does the same.
func TestVMIPIPDeviceIsMadeWhereTheKernelMakesNone(t *testing.T) {
	nettest.Need(t, "ipip", "vm")
	noneByItself(t)
	bare := newHost(t)
	if out := bare.Exec("ip", "link"); strings.Contains(out, kernel.IPIPDevice) {
		t.Fatalf("the kernel has made one:\n%s", out)
	}
	mustBecome(t, bare.Links(), tunl0(1480))
	mustBecome(t, bare.Links(), map[string]kernel.Link{})
	mustBecome(t, bare.Links(), tunl0(1440))
}

func TestVMIPIPDeviceOfAnotherKindIsMadeAnew(t *testing.T) {
	nettest.Need(t, "ipip", "vm")
	noneByItself(t)
	bare := newHost(t)
	bare.Exec("ip", "link", "add", kernel.IPIPDevice, "type", "ipip", "remote", "172.30.0.9")
	bare.Exec("ip", "link", "set", kernel.IPIPDevice, "up")
	mustBecome(t, bare.Links(), tunl0(1480))
	if out := bare.Exec("ip", "-d", "link", "show", kernel.IPIPDevice); !strings.Contains(out, "remote any") {
		t.Errorf("still with an endpoint:\n%s", out)
	}
}

func TestVMMonitorSeesTheIPIPDevice(t *testing.T) {
	nettest.Need(t, "ipip")
	h := newHost(t)
	var m *Monitor
	h.Do(func() {
		var err error
		if m, err = NewMonitor(t.Context(), h.Conn, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	if m == nil {
		t.FailNow()
	}
	done := make(chan error, 1)
	go func() { done <- m.Run(t.Context()) }()
	mustBecome(t, h.Links(), tunl0(1480))
	eventually(t, m, func(e kernel.Events) bool {
		l := e.Links[kernel.IPIPDevice]
		return l != nil && *l == kernel.Link{Type: kernel.IPIP, MTU: 1480}
	})
	h.Exec("ip", "link", "set", kernel.IPIPDevice, "down")
	eventually(t, m, func(e kernel.Events) bool {
		l, said := e.Links[kernel.IPIPDevice]
		return said && l == nil && len(e.Down) == 1
	})
}

// eventually takes events until they are as asked for.
func eventually(t *testing.T, m *Monitor, ok func(kernel.Events) bool) {
	t.Helper()
	nettest.Eventually(t, func() error {
		if e := m.Events(); !ok(e) {
			return errors.New("the events do not say so")
		}
		return nil
	})
}

// A kernel without the module names it; other devices are made all the same.
func TestLinksNameTheModuleThatTheKernelLacks(t *testing.T) {
	nettest.Need(t, "vxlan")
	h := newHost(t)
	if err := h.Netlink().LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "probe"}}); err == nil || h.has(t, kernel.IPIPDevice) {
		t.Skip("this kernel has IP-in-IP devices")
	}
	want := tunl0(1480)
	want[kernel.VXLANDevice] = h.tunnel()
	err := h.Links().Apply(t.Context(), kernel.Diff(nil, want))
	if !errors.Is(err, ErrNoIPIP) || !strings.Contains(err.Error(), "modprobe ipip") {
		t.Errorf("error %v", err)
	}
	if keys, all := kernel.Failed[string](err); !all || len(keys) != 1 || keys[0] != kernel.IPIPDevice {
		t.Errorf("failed: %v", keys)
	}
	if !h.has(t, kernel.VXLANDevice) {
		t.Error("the other device was not made")
	}
}

func (h host) has(t *testing.T, dev string) bool {
	t.Helper()
	there, err := h.Exists(dev)
	if err != nil {
		t.Fatal(err)
	}
	return there
}
