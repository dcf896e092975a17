package probe

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

// node is a node in 172.30.subnet.0/24 with all the addresses that it may have.
func node(name string, subnet, host int) *api.Node {
	n := &api.Node{}
	n.Metadata.Name = name
	n.Spec.BGP = &api.NodeBGP{}
	n.Spec.BGP.IPv4Address.Prefix = netip.MustParsePrefix(fmt.Sprintf("172.30.%d.%d/24", subnet, host))
	n.Spec.BGP.IPv6Address.Prefix = netip.MustParsePrefix(fmt.Sprintf("fd00:%d::%d/64", subnet, host))
	n.Spec.BGP.IPv4IPIPTunnelAddr = netip.MustParseAddr(fmt.Sprintf("192.168.%d.1", host))
	n.Spec.IPv4VXLANTunnelAddr = netip.MustParseAddr(fmt.Sprintf("192.168.%d.2", host))
	n.Spec.IPv6VXLANTunnelAddr = netip.MustParseAddr(fmt.Sprintf("fd00:192::%d", host))
	return n
}

func pool(cidr string, vxlan, ipip api.EncapMode) *api.IPPool {
	p := &api.IPPool{}
	p.Spec.CIDR, p.Spec.VXLANMode, p.Spec.IPIPMode = netip.MustParsePrefix(cidr), vxlan, ipip
	return p
}

func settings() Settings {
	return Settings{Node: "node-1", IPv6: true, MTU: 1450, Port: 9097, VXLANPort: 4789}
}

// cluster has node-2 on the subnet of node-1 and node-3 beyond it.
func cluster() []*api.Node {
	return []*api.Node{node("node-1", 1, 1), node("node-2", 1, 2), node("node-3", 2, 3)}
}

func TestTargetsAreTheWaysOfPodsPackets(t *testing.T) {
	off := false
	for _, c := range []struct {
		name   string
		pools  []*api.IPPool
		change func(*Settings)
		want   []string
	}{
		{"VXLAN everywhere", []*api.IPPool{pool("192.168.0.0/16", api.Always, api.Never)}, nil,
			[]string{"node-2 IPv4 vxlan 192.168.1.2>192.168.2.2", "node-3 IPv4 vxlan 192.168.1.2>192.168.3.2"}},
		{"VXLAN between subnets, of both families", []*api.IPPool{pool("192.168.0.0/16", api.CrossSubnet, api.Never), pool("fd00:192::/48", api.CrossSubnet, api.Never)}, nil,
			[]string{"node-2 IPv4 direct 172.30.1.1>172.30.1.2", "node-2 IPv6 direct fd00:1::1>fd00:1::2",
				"node-3 IPv4 vxlan 192.168.1.2>192.168.3.2", "node-3 IPv6 vxlan fd00:192::1>fd00:192::3"}},
		{"IP-in-IP", []*api.IPPool{pool("192.168.0.0/16", api.Never, api.Always)}, nil,
			[]string{"node-2 IPv4 ipip 192.168.1.1>192.168.2.1", "node-3 IPv4 ipip 192.168.1.1>192.168.3.1"}},
		{"no encapsulation: only the subnet", []*api.IPPool{pool("192.168.0.0/16", api.Never, api.Never)}, nil,
			[]string{"node-2 IPv4 direct 172.30.1.1>172.30.1.2"}},
		{"with BGP beyond it too", []*api.IPPool{pool("192.168.0.0/16", api.Never, api.Never)}, func(s *Settings) { s.BGP = true },
			[]string{"node-2 IPv4 direct 172.30.1.1>172.30.1.2", "node-3 IPv4 direct 172.30.1.1>172.30.2.3"}},
		{"pools of two modes", []*api.IPPool{pool("192.168.0.0/17", api.Always, api.Never), pool("192.168.128.0/17", api.Never, api.CrossSubnet)}, nil,
			[]string{"node-2 IPv4 direct 172.30.1.1>172.30.1.2", "node-2 IPv4 vxlan 192.168.1.2>192.168.2.2",
				"node-3 IPv4 ipip 192.168.1.1>192.168.3.1", "node-3 IPv4 vxlan 192.168.1.2>192.168.3.2"}},
		{"a mode that is switched off has no routes", []*api.IPPool{pool("192.168.0.0/16", api.Always, api.Never)}, func(s *Settings) { s.VXLANEnabled = &off }, nil},
		{"a host without IPv6", []*api.IPPool{pool("fd00:192::/48", api.Always, api.Never)}, func(s *Settings) { s.IPv6 = false }, nil},
		{"no pool", nil, nil, nil},
	} {
		s := settings()
		if c.change != nil {
			c.change(&s)
		}
		var got []string
		for _, x := range Targets(cluster(), c.pools, s) {
			got = append(got, fmt.Sprintf("%s %s %s %v>%v", x.Peer, x.Family(), x.Kind, x.From, x.To))
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestNodesThatLackAnAddressAreTargetsThatAreNotReady(t *testing.T) {
	nodes := cluster()
	nodes[1].Spec.IPv4VXLANTunnelAddr = netip.Addr{}
	nodes[2].Spec.BGP = nil
	got := Targets(nodes, []*api.IPPool{pool("192.168.0.0/16", api.Always, api.Never)}, settings())
	if len(got) != 1 || got[0].Peer != "node-2" || got[0].Ready() {
		t.Errorf("targets are %+v", got)
	}
	if ends := Ends(got); len(ends) != 1 || ends[0] != netip.MustParseAddr("192.168.1.2") {
		t.Errorf("ends are %v", ends)
	}
}

func TestOnlyNodesAddressesMayAsk(t *testing.T) {
	var got []string
	for _, p := range Peers(cluster()[:2], "node-1") {
		got = append(got, p.String())
	}
	if d := cmp.Diff([]string{"172.30.1.2/32", "192.168.2.1/32", "192.168.2.2/32", "fd00:1::2/128", "fd00:192::2/128"}, got); d != "" {
		t.Error(d)
	}
}

func TestFindingsNameTheRemedy(t *testing.T) {
	target := func(kind api.PathKind, v6 bool) Target {
		out := Target{Key: Key{Peer: "node-2", V6: v6, Kind: kind}, Self: "node-1", MTU: 1450, Port: 9097, VXLANPort: 4789, Device: device(kind, v6),
			Local: netip.MustParseAddr("172.30.1.1"), Remote: netip.MustParseAddr("172.30.2.2")}
		return out
	}
	vxlan := target(api.PathVXLAN, false)
	for _, c := range []struct {
		t     Target
		a     Answers
		state api.PathState
		fault api.PathFault
		text  string
	}{
		{vxlan, Answers{Plain: Answered, Offloaded: Answered, Largest: 1450}, api.PathOK, "", ""},
		{vxlan, Answers{Plain: NoAnswer}, api.PathBad, api.FaultNoAnswer, "UDP 4789 does not pass between 172.30.1.1 and 172.30.2.2: open it"},
		{target(api.PathIPIP, false), Answers{Plain: NoAnswer}, api.PathBad, api.FaultNoAnswer, "IP protocol 4 (IP-in-IP) does not pass"},
		{target(api.PathDirect, false), Answers{Plain: NoAnswer}, api.PathBad, api.FaultNoAnswer, "UDP 9097 does not pass"},
		{vxlan, Answers{Plain: Refused}, api.PathUnknown, "", "no agent answers"},
		{vxlan, Answers{Unable: "no route"}, api.PathUnknown, "", "no route"},
		{vxlan, Answers{Plain: Answered, Offloaded: Answered, Largest: 1400}, api.PathBad, api.FaultMTU,
			"the largest packet is 1400 of 1450, larger ones are lost: raise the MTU between 172.30.1.1 and 172.30.2.2 by 50 bytes, or set vxlanMTU (FELIX_VXLANMTU) to 1400"},
		{target(api.PathVXLAN, true), Answers{Plain: Answered, Offloaded: Answered, Largest: 1400}, api.PathBad, api.FaultMTU, "set vxlanMTUV6 (FELIX_VXLANMTUV6) to 1400"},
		{target(api.PathIPIP, false), Answers{Plain: Answered, Offloaded: Answered, Largest: 1400}, api.PathBad, api.FaultMTU, "set ipipMTU (FELIX_IPIPMTU) to 1400"},
		{target(api.PathDirect, false), Answers{Plain: Answered, Offloaded: Answered, Largest: 1400}, api.PathBad, api.FaultMTU, "set the MTU of the nodes' devices to 1400"},
		{vxlan, Answers{Plain: Answered, Offloaded: NoAnswer, Largest: 1450}, api.PathBad, api.FaultChecksum, "ethtool -K vxlan.calico tx-checksum-ip-generic off"},
		{target(api.PathDirect, false), Answers{Plain: Answered, Offloaded: NoAnswer, Largest: 1450}, api.PathBad, api.FaultChecksum, "ethtool -K DEVICE tx off"},
		{vxlan, Answers{Plain: Answered, Offloaded: Refused, Largest: 1450}, api.PathOK, "", ""}, // its agent ended in between
	} {
		got := Judge(c.t, c.a)
		if got.State != c.state || got.Fault != c.fault || !strings.Contains(got.Text, c.text) {
			t.Errorf("%v, %+v:\n%+v, want %s %s with %q", c.t, c.a, got, c.state, c.fault, c.text)
		}
	}
	if got := target(api.PathVXLAN, true).String(); got != "path node-1 to node-2 by VXLAN over IPv6" {
		t.Errorf("the path is called %q", got)
	}
}
