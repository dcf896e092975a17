package probe

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
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
	n.Spec.Wireguard = &api.NodeWireguard{InterfaceIPv4Address: netip.MustParseAddr(fmt.Sprintf("192.168.%d.3", host)),
		InterfaceIPv6Address: netip.MustParseAddr(fmt.Sprintf("fd00:192::%d:3", host))}
	return n
}

// tells gives a node keys of both families.
func tells(n *api.Node) {
	n.Status.WireguardPublicKey, n.Status.WireguardPublicKeyV6 = kernel.PublicKey{4}.String(), kernel.PublicKey{6}.String()
}

// encrypts turns on both families' WireGuard.
func encrypts(s *Settings) {
	s.WireGuard = Encryption{On: true, Device: kernel.WireGuardDevice, Port: 51820}
	s.WireGuard6 = Encryption{On: true, Device: kernel.WireGuard6Device, Port: 51821}
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

func TestEncryptedPathsAreByWireGuardWhateverPoolsSay(t *testing.T) {
	pools := []*api.IPPool{pool("192.168.0.0/17", api.Always, api.Never), pool("192.168.128.0/17", api.Never, api.Never), pool("fd00:192::/48", api.CrossSubnet, api.Never)}
	nodes := cluster()
	tells(nodes[1])
	nodes[2].Status.WireguardPublicKeyV6 = "nonsense"
	for _, c := range []struct {
		name   string
		change func(*Settings)
		want   []string
	}{
		{"on for both families", encrypts, []string{
			"node-2 IPv4 wireguard 192.168.1.3>192.168.2.3 wireguard.cali 51820", "node-2 IPv6 wireguard fd00:192::1:3>fd00:192::2:3 wg-v6.cali 51821",
			"node-3 IPv4 wireguard 192.168.1.3>192.168.3.3 wireguard.cali 51820 keyless", "node-3 IPv6 wireguard fd00:192::1:3>fd00:192::3:3 wg-v6.cali 51821 keyless"}},
		{"on for one", func(s *Settings) { encrypts(s); s.WireGuard6.On = false }, []string{
			"node-2 IPv4 wireguard 192.168.1.3>192.168.2.3 wireguard.cali 51820", "node-2 IPv6 direct fd00:1::1>fd00:1::2  0 encrypts",
			"node-3 IPv4 wireguard 192.168.1.3>192.168.3.3 wireguard.cali 51820 keyless", "node-3 IPv6 vxlan fd00:192::1>fd00:192::3 vxlan-v6.calico 4789"}},
		{"in clear to those without a key", func(s *Settings) { encrypts(s); s.WireGuard.Plain, s.WireGuard6.On = true, false }, []string{
			"node-2 IPv4 wireguard 192.168.1.3>192.168.2.3 wireguard.cali 51820", "node-2 IPv6 direct fd00:1::1>fd00:1::2  0 encrypts",
			"node-3 IPv4 vxlan 192.168.1.2>192.168.3.2 vxlan.calico 4789", "node-3 IPv6 vxlan fd00:192::1>fd00:192::3 vxlan-v6.calico 4789"}},
		{"where no mode would lead", func(s *Settings) { encrypts(s); off := false; s.VXLANEnabled, s.IPv6 = &off, false }, []string{
			"node-2 IPv4 wireguard 192.168.1.3>192.168.2.3 wireguard.cali 51820", "node-3 IPv4 wireguard 192.168.1.3>192.168.3.3 wireguard.cali 51820 keyless"}},
	} {
		s := settings()
		c.change(&s)
		var got []string
		for _, x := range Targets(nodes, pools, s) {
			text := fmt.Sprintf("%s %s %s %v>%v %s %d", x.Peer, x.Family(), x.Kind, x.From, x.To, x.Device, x.TunnelPort)
			for word, is := range map[string]bool{" keyless": x.Keyless, " encrypts": x.Encrypts} {
				if is {
					text += word
				}
			}
			got = append(got, text)
			if said := strings.Contains(x.Lacking(), "has told no WireGuard key"); said != x.Keyless {
				t.Errorf("%s: %s lacks %q", c.name, text, x.Lacking())
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	s := settings()
	encrypts(&s)
	if got := Targets(nodes, nil, s); len(got) > 0 {
		t.Errorf("without a pool there are %v", got)
	}
}

func TestNodesThatLackAnAddressAreTargetsThatAreNotReady(t *testing.T) {
	nodes := cluster()
	nodes[1].Spec.IPv4VXLANTunnelAddr = netip.Addr{}
	nodes[2].Spec.BGP = nil
	got := Targets(nodes, []*api.IPPool{pool("192.168.0.0/16", api.Always, api.Never)}, settings())
	if len(got) != 1 || got[0].Peer != "node-2" || got[0].Lacking() != "the peer has no tunnel address of that kind yet" {
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
	if d := cmp.Diff([]string{"172.30.1.2/32", "192.168.2.1/32", "192.168.2.2/32", "192.168.2.3/32", "fd00:1::2/128", "fd00:192::2/128", "fd00:192::2:3/128"}, got); d != "" {
		t.Error(d)
	}
}

func TestFindingsNameTheRemedy(t *testing.T) {
	target := func(kind api.PathKind, v6 bool) Target {
		s := settings()
		encrypts(&s)
		out := s.target(kind, v6, node("node-1", 1, 1), node("node-2", 2, 2))
		out.Local, out.Remote = netip.MustParseAddr("172.30.1.1"), netip.MustParseAddr("172.30.2.2")
		return out
	}
	refuses, refuses6 := target(api.PathVXLAN, false), target(api.PathDirect, true)
	refuses.Encrypts, refuses6.Encrypts = true, true
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
		{target(api.PathWireGuard, false), Answers{Plain: NoAnswer}, api.PathBad, api.FaultNoAnswer, "UDP 51820 (WireGuard) does not pass between 172.30.1.1 and 172.30.2.2: open it"},
		{target(api.PathWireGuard, true), Answers{Plain: NoAnswer}, api.PathBad, api.FaultNoAnswer, "UDP 51821 (WireGuard) does not pass"},
		{refuses, Answers{Plain: NoAnswer}, api.PathBad, api.FaultNoAnswer, "node-2 encrypts by WireGuard and node-1 does not, so that it may refuse to answer: " +
			"set wireguardEnabled alike on both, or MUSLIN_WIREGUARD_PLAINTEXT=true on node-2"},
		{refuses6, Answers{Plain: NoAnswer}, api.PathBad, api.FaultNoAnswer, "set wireguardEnabledV6 alike"},
		{refuses, Answers{Plain: Answered, Offloaded: Answered, Largest: 1450}, api.PathOK, "", ""},
		{vxlan, Answers{Plain: Refused}, api.PathUnknown, "", "no agent answers"},
		{vxlan, Answers{Unable: "no route"}, api.PathUnknown, "", "no route"},
		{vxlan, Answers{Plain: Answered, Offloaded: Answered, Largest: 1400}, api.PathBad, api.FaultMTU,
			"the largest packet is 1400 of 1450, larger ones are lost: raise the MTU between 172.30.1.1 and 172.30.2.2 by 50 bytes, or set vxlanMTU (FELIX_VXLANMTU) to 1400"},
		{target(api.PathVXLAN, true), Answers{Plain: Answered, Offloaded: Answered, Largest: 1400}, api.PathBad, api.FaultMTU, "set vxlanMTUV6 (FELIX_VXLANMTUV6) to 1400"},
		{target(api.PathIPIP, false), Answers{Plain: Answered, Offloaded: Answered, Largest: 1400}, api.PathBad, api.FaultMTU, "set ipipMTU (FELIX_IPIPMTU) to 1400"},
		{target(api.PathWireGuard, false), Answers{Plain: Answered, Offloaded: Answered, Largest: 1328}, api.PathBad, api.FaultMTU, "by 122 bytes, or set wireguardMTU (FELIX_WIREGUARDMTU) to 1328"},
		{target(api.PathWireGuard, true), Answers{Plain: Answered, Offloaded: Answered, Largest: 1328}, api.PathBad, api.FaultMTU, "set wireguardMTUV6 (FELIX_WIREGUARDMTUV6) to 1328"},
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
