package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// dualNode is a node with a pod and pools of both families, which masquerade.
const dualNode = `kind: IPPool
metadata: {name: four}
spec: {cidr: 10.244.0.0/16, natOutgoing: true, vxlanMode: Always}
---
kind: IPPool
metadata: {name: six}
spec: {cidr: fd00:244::/48, natOutgoing: true}
---
kind: Node
metadata: {name: node-1}
spec: {bgp: {ipv4Address: 172.30.1.1/24, ipv6Address: 'fd00:30::1/64'}}
---
kind: WorkloadEndpoint
metadata: {name: a, namespace: default}
spec: {interfaceName: tap1, ipNetworks: [10.244.0.1/32, 'fd00:244::1/128']}`

func TestSettingsShapeThePlan(t *testing.T) {
	m := model(t, dualNode+blocksYAML("10.244.0.0/26 node-1"))
	h := host(t, "eth0 2 1500 up 172.30.1.1/24 fd00:30::1/64\ntap1 7 1500 up")
	for _, c := range []struct {
		name       string
		set        func(*Settings)
		want, lack []string // lines, or parts of them
	}{
		{name: "nothing", set: func(*Settings) {},
			want: []string{`"tap1" does not begin with "cali"`, "net/ipv4/ip_forward = 1", "net/ipv6/conf/all/forwarding = 1", "blackhole 10.244.0.0/26 proto 80"},
			lack: []string{"dev tap1"}},
		{name: "prefixes", set: func(s *Settings) { s.Ours.Prefixes = []string{"cali", "tap"} },
			want: []string{"10.244.0.1 dev tap1 proto 80 scope link metric 1024"}},
		{name: "mark of policy", set: func(s *Settings) { s.AcceptMark = 0x20 },
			want: []string{"cali-FORWARD -m mark --mark 0x20/0x20 -j ACCEPT", "cali-INPUT -m mark --mark 0x20/0x20 -j ACCEPT"}, lack: []string{"0x10000"}},
		{name: "routes of their own", set: func(s *Settings) {
			s.Ours = kernel.Ownership{Protocol: 90, Prefixes: []string{"tap"}}
			s.PodMetric4, s.PodMetric6, s.RouteSource = 7, 8, netip.MustParseAddr("172.30.1.1")
		},
			want: []string{"10.244.0.1 dev tap1 proto 90 scope link src 172.30.1.1 metric 7", "fd00:244::1 dev tap1 proto 90 scope link metric 8", "blackhole 10.244.0.0/26 proto 90"},
			lack: []string{"proto 80"}},
		{name: "source that is not there", set: func(s *Settings) { s.Ours.Prefixes = []string{"tap"}; s.RouteSource = netip.MustParseAddr("192.0.2.1") },
			want: []string{"deviceRouteSourceAddress 192.0.2.1 is on no device", "10.244.0.1 dev tap1 proto 80 scope link metric"}},
		{name: "forwarding is the host's", set: func(s *Settings) { s.LeaveForwarding = true }, lack: []string{"ip_forward", "all/forwarding"}},
		{name: "masquerade", set: func(s *Settings) { s.NATAddress, s.NATPorts = netip.MustParseAddr("192.0.2.9"), "1000-2000" },
			want: []string{"-p tcp -m set --match-set cali40masq", "-j SNAT --to-source 192.0.2.9:1000-2000 --random-fully", "dst -j SNAT --to-source 192.0.2.9 --random-fully",
				"-j MASQUERADE --to-ports 1000-2000 --random-fully"}},
		{name: "peers", set: func(s *Settings) {
			s.TunnelPeers = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("fd00:9::/64")}
			s.VXLANEnabled = ptr(true)
		}, want: []string{"[192.0.2.0/28 fd00:9::/64]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := settings()
			c.set(&s)
			r := Compute(m, s, h)
			text := r.State.Text() + fmt.Sprintln(r.Tunnels.VXLANPeers)
			for _, p := range r.Problems {
				text += p.String() + "\n"
			}
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("there is no %q", w)
				}
			}
			for _, l := range c.lack {
				if strings.Contains(text, l) {
					t.Errorf("there is %q", l)
				}
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}
