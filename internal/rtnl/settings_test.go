package rtnl

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// toSet is a change of a setting of the device of that index, or of the host.
func toSet(index int, path, value string) kernel.Change[kernel.SysctlKey, string] {
	return kernel.Change[kernel.SysctlKey, string]{Key: kernel.SysctlKey{Path: path, Index: index}, New: &value}
}

func TestSettingsOfDevicesAreSetAsByTheirFiles(t *testing.T) {
	h := newHost(t)
	h.Exec("ip", "link", "add", "cali1", "type", "bridge")
	h.Exec("ip", "link", "add", "cali2", "type", "bridge")
	one, two := h.Index("cali1"), h.Index("cali2")
	const conf, neigh = "net/ipv4/conf/", "net/ipv4/neigh/"
	set := []kernel.Change[kernel.SysctlKey, string]{
		toSet(one, conf+"cali1/route_localnet", "1"), toSet(one, conf+"cali1/proxy_arp", "1"), toSet(one, conf+"cali1/forwarding", "1"), toSet(one, conf+"cali1/rp_filter", "2"),
		toSet(one, neigh+"cali1/proxy_delay", "0"), toSet(two, neigh+"cali2/proxy_delay", "7"), toSet(two, conf+"cali2/rp_filter", "1"), toSet(two, conf+"cali2/forwarding", "0"),
	}
	others := []kernel.Change[kernel.SysctlKey, string]{
		toSet(one, conf+"cali1/arp_ignore", "1"), toSet(one, conf+"cali1/rp_filter", "strict"), toSet(one, neigh+"cali1/gc_stale_time", "9"),
		toSet(one, "net/ipv6/conf/cali1/forwarding", "1"), toSet(one, conf+"cali1/rp_filter", "-1"), {Key: kernel.SysctlKey{Path: conf + "cali2/proxy_arp", Index: two}},
	}
	gone := []kernel.Change[kernel.SysctlKey, string]{toSet(99, conf+"cali9/forwarding", "1"), toSet(99, neigh+"cali9/proxy_delay", "0")}
	got := h.Settings().Apply(t.Context(), append(append(append(set[:4:4], others...), gone...), set[4:]...))
	if diff := cmp.Diff(others, got); diff != "" {
		t.Errorf("left for files (-want +got):\n%s", diff)
	}
	for _, x := range set {
		if have := strings.TrimSpace(h.Exec("cat", "/proc/sys/"+x.Key.Path)); have != *x.New {
			t.Errorf("%s is %s, want %s", x.Key.Path, have, *x.New)
		}
	}
	if have := h.Exec("cat", "/proc/sys/net/ipv4/conf/cali2/proxy_arp", "/proc/sys/net/ipv4/conf/cali2/route_localnet"); have != "0\n0\n" {
		t.Errorf("what nobody has set is %q", have)
	}
}

func TestSettingsThatAreNotSetAreForFiles(t *testing.T) {
	h := newHost(t)
	change := toSet(h.Index("cali0"), "net/ipv4/conf/cali0/route_localnet", "1")
	withHosts := []kernel.Change[kernel.SysctlKey, string]{change, toSet(0, "net/ipv4/ip_forward", "1")}
	if diff := cmp.Diff(withHosts, h.Settings().Apply(t.Context(), withHosts)); diff != "" {
		t.Errorf("with a setting of the host (-want +got):\n%s", diff)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if diff := cmp.Diff([]kernel.Change[kernel.SysctlKey, string]{change}, h.Settings().Apply(ended, []kernel.Change[kernel.SysctlKey, string]{change})); diff != "" {
		t.Errorf("once it is over (-want +got):\n%s", diff)
	}
	if have := h.Exec("cat", "/proc/sys/net/ipv4/conf/cali0/route_localnet"); have != "0\n" {
		t.Errorf("it was set all the same: %q", have)
	}
	h.sender.close() // nothing can be sent any more
	if diff := cmp.Diff([]kernel.Change[kernel.SysctlKey, string]{change}, h.Settings().Apply(t.Context(), []kernel.Change[kernel.SysctlKey, string]{change})); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}
