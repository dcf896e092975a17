package rtnl

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func ourRules() map[kernel.Rule]struct{} {
	host := func(a string) netip.Prefix {
		return netip.PrefixFrom(netip.MustParseAddr(a), netip.MustParseAddr(a).BitLen())
	}
	return map[kernel.Rule]struct{}{
		{Priority: 99, Invert: true, Mark: 1 << 31, Mask: 1 << 31, Table: 1, Protocol: 80}:                                            {},
		{V6: true, Priority: 99, Invert: true, Mark: 1 << 31, Mask: 1 << 31, Table: 300, Protocol: 80}:                                {},
		{Priority: 98, Dst: host("172.30.0.2"), IPProto: 6, DstPort: 2379, Table: kernel.MainTable, Protocol: 80}:                     {},
		{Priority: 98, Local: true, Src: host("172.30.0.1"), IPProto: 6, SrcPort: 9099, Table: kernel.MainTable, Protocol: 80}:        {},
		{Priority: 98, Local: true, Dst: netip.MustParsePrefix("172.30.1.0/24"), IPProto: 6, DstPort: 9099, Table: 254, Protocol: 80}: {},
		{V6: true, Priority: 98, Dst: host("fd00:172:30::2"), IPProto: 6, DstPort: 2379, Table: kernel.MainTable, Protocol: 80}:       {},
	}
}

func TestRulesAreMadeAndRemovedAndThoseOfOthersStay(t *testing.T) {
	h := newHost(t)
	h.Exec("ip", "rule", "add", "from", "10.9.0.0/16", "lookup", "7", "priority", "50")
	before := h.Exec("ip", "rule") + h.Exec("ip", "-6", "rule")
	mustBecome(t, h.Rules(), ourRules())
	out := strings.ReplaceAll(h.Exec("ip", "rule")+h.Exec("ip", "-6", "rule"), "\t", " ")
	for want := range ourRules() {
		text, _, _ := strings.Cut(want.String(), " lookup")
		text = strings.Replace(text, "ipproto 6", "ipproto tcp", 1)
		if !strings.Contains(out, text) {
			t.Errorf("ip rule lacks %q:\n%s", text, out)
		}
	}
	if err := h.Rules().Apply(t.Context(), kernel.Diff(nil, ourRules())); err != nil {
		t.Errorf("made twice: %v", err)
	}
	mustBecome(t, h.Rules(), map[kernel.Rule]struct{}{})
	if d := cmp.Diff(before, h.Exec("ip", "rule")+h.Exec("ip", "-6", "rule")); d != "" {
		t.Errorf("others' rules differ (-before +after):\n%s", d)
	}
	if err := h.Rules().Apply(t.Context(), kernel.Diff(ourRules(), nil)); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}

// A fresh agent knows its routes in any table by their protocol, and leaves those of others in the same table.
func TestRoutesOfOtherTablesAreListedByTheirProtocol(t *testing.T) {
	h := newHost(t)
	h.Exec("ip", "route", "add", "10.7.0.0/16", "dev", "eth0", "table", "1")
	h.Exec("ip", "route", "add", "10.7.0.0/16", "dev", "cali0", "table", "300", "proto", "boot") // which in the main table would be ours
	key := func(dst string, table int) kernel.RouteKey {
		k := routeKey(dst, 0)
		if k.Dst.Addr().Is6() {
			k.Metric = 1024
		}
		k.Table = table
		return k
	}
	eth0 := kernel.Route{Scope: kernel.LinkScope, Dev: h.dev("eth0"), Protocol: 80}
	refused, throw := kernel.Route{Type: kernel.Prohibit, Protocol: 80}, kernel.Route{Type: kernel.Throw, Protocol: 80}
	fromOurs := eth0
	fromOurs.Src = netip.MustParseAddr("172.30.0.1")
	want := map[kernel.RouteKey]kernel.Route{
		key("10.244.0.64/26", 0): eth0, key("10.244.0.64/26", 1): eth0, key("10.244.0.128/26", 1): refused, key("10.244.0.70/32", 1): throw,
		key("172.30.0.2/32", 300): fromOurs, key("fd00:10::40/122", 1): eth0, key("fd00:10::80/122", 1): refused, key("fd00:10::41/128", 300): throw,
	}
	mustBecome(t, h.Routes(), want)
	out := h.Exec("ip", "route", "show", "table", "1")
	for _, line := range []string{"10.7.0.0/16 dev eth0", "10.244.0.64/26 dev eth0", "prohibit 10.244.0.128/26", "throw 10.244.0.70"} {
		if !strings.Contains(out, line) {
			t.Errorf("table 1 lacks %q:\n%s", line, out)
		}
	}
	for k, r := range want { // each becomes what another one is, at no moment gone
		switch {
		case k.Table == 0:
		case r.Type == kernel.Unicast:
			want[k] = refused
		default:
			want[k] = eth0
		}
	}
	mustBecome(t, h.Routes(), want)
	mustBecome(t, h.Routes(), map[kernel.RouteKey]kernel.Route{})
	if out := h.Exec("ip", "route", "show", "table", "1") + h.Exec("ip", "route", "show", "table", "300"); strings.Count(out, "10.7.0.0/16") != 2 {
		t.Errorf("others' routes are gone:\n%s", out)
	}
}

func TestMonitorTellsOfRules(t *testing.T) {
	h := newHost(t)
	m := watch(t, h)
	mustBecome(t, h.Rules(), ourRules())
	h.Exec("ip", "rule", "add", "from", "10.9.0.0/16", "lookup", "7", "priority", "50")
	h.Exec("ip", "rule", "del", "priority", "99")
	seen := map[kernel.Rule]*struct{}{}
	nettest.Eventually(t, func() error {
		for r, there := range m.Events().Rules {
			seen[r] = there
		}
		for r := range ourRules() {
			at, told := seen[r]
			if gone := r.Priority == 99 && !r.V6; !told || (at == nil) != gone {
				return errors.New("not told of " + r.String())
			}
		}
		return nil
	})
	if len(seen) != len(ourRules()) {
		t.Errorf("told of %d rules, want %d", len(seen), len(ourRules()))
	}
}

func TestKernelWithoutWireGuardIsNamed(t *testing.T) {
	h := newHost(t)
	link := kernel.Link{Type: kernel.WireGuardLink, MTU: 1440}
	err := h.Links().Apply(t.Context(), kernel.Diff(nil, map[string]kernel.Link{kernel.WireGuardDevice: link}))
	if err == nil {
		t.Skip("this kernel has WireGuard")
	}
	if !errors.Is(err, ErrNoWireGuard) || !strings.Contains(err.Error(), "WireGuard not supported by this kernel") {
		t.Errorf("got %v, want ErrNoWireGuard", err)
	}
}

func TestVMWireGuardDevicesOfAnyNameAreKnownByTheirAlias(t *testing.T) {
	nettest.Need(t, "wireguard")
	h := newHost(t)
	h.Exec("ip", "link", "add", "wg-other", "type", "wireguard")
	mustBecome(t, h.Links(), map[string]kernel.Link{
		kernel.WireGuardDevice: {Type: kernel.WireGuardLink, MTU: 1440}, "wg-mine": {Type: kernel.WireGuardLink, MTU: 1420},
	})
	mustBecome(t, h.Addrs(), map[kernel.AddrKey]struct{}{{Link: "wg-mine", Addr: netip.MustParsePrefix("10.244.0.0/32")}: {}})
	h.Exec("ip", "link", "set", "wg-mine", "down")
	mustBecome(t, h.Links(), map[string]kernel.Link{"wg-mine": {Type: kernel.WireGuardLink, MTU: 1400}})
	mustBecome(t, h.Links(), map[string]kernel.Link{})
	if out := h.Exec("ip", "-o", "link"); !strings.Contains(out, "wg-other") {
		t.Errorf("another's device is gone:\n%s", out)
	}
}
