package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
)

// waitLong bounds what daemons do in their own time; retries after a lost session take up to 30 seconds.
const waitLong = time.Minute

const meshBIRD = template + `
router id 10.0.0.2;
protocol static { ipv4; route 172.20.2.0/26 blackhole; }
protocol bgp Mesh_10_0_0_1 from t { neighbor 10.0.0.1 as 64512; source address 10.0.0.2; }
`

func meshModel(more ...*api.Node) peering.Model {
	return peering.Model{
		Nodes: append([]*api.Node{node("a", "10.0.0.1/24"), node("b", "10.0.0.2/24")}, more...),
		Pools: []*api.IPPool{pool("172.20.0.0/16")}, Blocks: blocks("172.20.1.0/26"),
	}
}

func TestMeshWithBIRDOfACalicoNode(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	a, b := seg.host("10.0.0.1/24"), seg.host("10.0.0.2/24")
	ours, theirs := startSpeaker(t, a, "first"), startBIRD(t, b, meshBIRD)
	configured(ours, "a", meshModel())
	got := ours.eventually(learns("172.20.2.0/26 via 10.0.0.2"))
	theirs.has("172.20.1.0/26", "via 10.0.0.1", "BGP.local_pref: 2147482623", "BGP.origin: IGP")
	if s := statusOf(got, "10.0.0.2"); !s.Established() || s.Kind != peering.Mesh || s.Accepted != 1 || s.LastError != "" {
		t.Errorf("status %+v", s)
	}
	if routes := peering.Kernel(got.Learned, peering.Rules{}); len(routes) != 1 || routes[0].Metric != 1024 {
		t.Errorf("routes for the kernel: %+v", routes)
	}

	t.Log("a killed speaker's routes stay until it is back")
	watch := watchRoutes(t, b)
	ours.kill()
	ours = startSpeaker(t, a, "restarting")
	configured(ours, "a", meshModel())
	ours.eventually(learns("172.20.2.0/26 via 10.0.0.2"))
	theirs.has("172.20.1.0/26", "via 10.0.0.1")
	theirs.resumed("Mesh_10_0_0_1")
	watch("172.20.1.0/26")

	t.Log("a closed speaker's routes stay until it is back")
	watch = watchRoutes(t, b)
	ours.do(request{Close: true})
	ours.kill()
	ours = startSpeaker(t, a, "restarting")
	configured(ours, "a", meshModel())
	ours.eventually(learns("172.20.2.0/26 via 10.0.0.2"))
	theirs.resumed("Mesh_10_0_0_1")
	watch("172.20.1.0/26")

	t.Log("a route that is no longer announced is gone")
	m := meshModel()
	m.Blocks = blocks("172.20.5.0/26")
	configured(ours, "a", m)
	theirs.has("172.20.5.0/26", "via 10.0.0.1")
	within(t, waitLong, func() error {
		if out := theirs.show("route"); strings.Contains(out, "172.20.1.0/26") {
			return fmt.Errorf("the old block is there: %s", out)
		}
		return nil
	})
}

// watchRoutes records the kernel's route events in a namespace. The function that it returns fails the test if one of them took the
// prefix away.
func watchRoutes(t *testing.T, ns *nettest.NS) func(prefix string) {
	t.Helper()
	out := monitor(t, ns)
	return func(prefix string) {
		t.Helper()
		if text := out(); strings.Contains(text, "Deleted "+prefix) {
			t.Errorf("the route to %s was away:\n%s", prefix, text)
		}
	}
}

func torConfig(id string, as int, more string) string {
	return fmt.Sprintf(`ip route 192.0.2.0/24 blackhole
router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 neighbor 10.0.0.1 remote-as 64512
 neighbor 10.0.0.1 password s3cret
 neighbor 10.0.0.1 timers 3 9
 neighbor 10.0.0.1 timers connect 2
 neighbor 10.0.0.1 ebgp-multihop 255
 address-family ipv4 unicast
  network 192.0.2.0/24
  maximum-paths 8
 exit-address-family
%s`, as, id, more)
}

// rack is a node of ours below FRR top-of-rack switches.
func rack(tors ...string) peering.Model {
	m := peering.Model{
		Nodes: []*api.Node{node("a", "10.0.0.1/24")}, Pools: []*api.IPPool{pool("172.20.0.0/16")}, Blocks: blocks("172.20.1.0/26"),
		Passwords: map[peering.Secret]string{{Name: "bgp", Key: "tor"}: "s3cret", {Name: "bgp", Key: "wrong"}: "other"},
	}
	for _, ip := range tors {
		m.Peers = append(m.Peers, peer("tor-"+ip, api.BGPPeerSpec{PeerIP: ip, ASNumber: 65001, Password: secret("tor")}))
	}
	return m
}

func secret(key string) *api.BGPPassword {
	return &api.BGPPassword{SecretKeyRef: &api.SecretKeyRef{Name: "bgp", Key: key}}
}

func TestTopOfRackFRRWithPasswordAndECMP(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	a, one, two := seg.host("10.0.0.1/24"), seg.host("10.0.0.3/24"), seg.host("10.0.0.4/24")
	ours := startSpeaker(t, a, "first")
	tor1 := startFRR(t, one, torConfig("10.0.0.3", 65001, ""))
	tor2 := startFRR(t, two, torConfig("10.0.0.4", 65001, ""))
	m := rack("10.0.0.3", "10.0.0.4")
	configured(ours, "a", m)
	got := ours.eventually(learns("192.0.2.0/24 via 10.0.0.3", "192.0.2.0/24 via 10.0.0.4"))
	for _, tor := range []*frr{tor1, tor2} {
		tor.has("show bgp ipv4 unicast 172.20.1.0/26", "10.0.0.1 from 10.0.0.1", "64512", "valid, external")
	}
	routes := peering.Kernel(got.Learned, peering.Rules{Pools: m.Pools})
	if len(routes) != 1 || len(routes[0].Gateways) != 2 || routes[0].Tunnel {
		t.Errorf("routes for the kernel: %+v", routes)
	}

	t.Log("a change of one peer does not touch the other")
	m.Peers[1] = peer("tor-2", api.BGPPeerSpec{PeerIP: "10.0.0.4", ASNumber: 65001, Password: secret("wrong")})
	configured(ours, "a", m)
	got = ours.eventually(learns("192.0.2.0/24 via 10.0.0.3"))
	if s := statusOf(got, "10.0.0.3"); s.Flaps != 0 || !s.Established() {
		t.Errorf("the other session: %+v", s)
	}
	ours.eventually(saysOf("10.0.0.4", "", "Socket: "))
	m.Peers[1] = peer("tor-2", api.BGPPeerSpec{PeerIP: "10.0.0.4", ASNumber: 65001, Password: secret("tor")})
	configured(ours, "a", m)
	ours.eventually(learns("192.0.2.0/24 via 10.0.0.3", "192.0.2.0/24 via 10.0.0.4"))

	t.Log("a peer that falls silent leaves stale routes that are not used")
	tor2.bgpd.signal(syscall.SIGSTOP)
	got = ours.eventually(learns("192.0.2.0/24 via 10.0.0.3", "192.0.2.0/24 via 10.0.0.4 stale"))
	routes = peering.Kernel(got.Learned, peering.Rules{})
	if len(routes) != 1 || len(routes[0].Gateways) != 1 || routes[0].Gateways[0] != netip.MustParseAddr("10.0.0.3") {
		t.Errorf("routes for the kernel: %+v", routes)
	}
	tor2.bgpd.signal(syscall.SIGCONT)
	ours.eventually(learns("192.0.2.0/24 via 10.0.0.3", "192.0.2.0/24 via 10.0.0.4"))
}

func TestFRRWithAnotherASNumberIsRefused(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	ours := startSpeaker(t, seg.host("10.0.0.1/24"), "first")
	startFRR(t, seg.host("10.0.0.3/24"), torConfig("10.0.0.3", 65099, ""))
	configured(ours, "a", rack("10.0.0.3"))
	ours.eventually(saysOf("10.0.0.3", "", "bad peer AS"))
}

func TestFiltersTowardsFRR(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	ours := startSpeaker(t, seg.host("10.0.0.1/24"), "first")
	tor := startFRR(t, seg.host("10.0.0.3/24"), torConfig("10.0.0.3", 65001, "")+" address-family ipv4 unicast\n  network 198.51.100.0/24\n  network 203.0.113.0/24\n exit-address-family\n")
	m := rack("10.0.0.3")
	m.Blocks = blocks("172.20.1.0/26", "172.20.2.0/26")
	filter := &api.BGPFilter{Spec: api.BGPFilterSpec{
		ExportV4: []api.BGPFilterRule{
			{CIDR: "172.20.2.0/24", MatchOperator: "In", Action: "Reject"},
			{CIDR: "172.20.1.0/26", MatchOperator: "Equal", PeerType: "eBGP", Action: "Accept", Operations: []api.BGPFilterChange{
				{AddCommunity: &api.AddCommunity{Value: "64512:77"}}, {AddCommunity: &api.AddCommunity{Value: "64512:1:2"}},
				{PrependASPath: &api.PrependASPath{Prefix: []api.ASN{64512, 64512}}},
			}},
		},
		ImportV4: []api.BGPFilterRule{
			{CIDR: "198.51.100.0/24", MatchOperator: "NotEqual", ASPathPrefix: []api.ASN{65001}, Action: "Accept"},
			{Action: "Reject"},
		},
	}}
	filter.Metadata.Name = "f"
	m.Filters = []*api.BGPFilter{filter}
	m.Peers[0].Spec.Filters = []string{"f"}
	configured(ours, "a", m)
	ours.eventually(learns("192.0.2.0/24 via 10.0.0.3", "203.0.113.0/24 via 10.0.0.3"))
	tor.has("show bgp ipv4 unicast 172.20.1.0/26", "64512 64512 64512", "Community: 64512:77", "Large Community: 64512:1:2")

	t.Log("a new filter takes effect on what was exchanged, and keeps the session")
	changed := *filter
	changed.Spec = api.BGPFilterSpec{ImportV4: []api.BGPFilterRule{{CIDR: "203.0.113.0/24", MatchOperator: "In", Action: "Reject"}}}
	m.Filters = []*api.BGPFilter{&changed}
	configured(ours, "a", m)
	got := ours.eventually(learns("192.0.2.0/24 via 10.0.0.3", "198.51.100.0/24 via 10.0.0.3"))
	tor.has("show bgp ipv4 unicast 172.20.2.0/26", "10.0.0.1 from 10.0.0.1")
	if s := statusOf(got, "10.0.0.3"); s.Flaps != 0 {
		t.Errorf("the session has flapped: %+v", s)
	}
}

func TestTwoReflectorsWithThreeClientsOneOfThemBIRD(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	m := peering.Model{Pools: []*api.IPPool{pool("172.20.0.0/16")}, Configs: []*api.BGPConfiguration{{Spec: api.BGPConfigurationSpec{NodeToNodeMeshEnabled: new(false)}}}}
	m.Configs[0].Metadata.Name = "default"
	var speakers []*speaker
	for i := 1; i <= 5; i++ {
		n := node(fmt.Sprintf("n%d", i), fmt.Sprintf("10.0.0.%d/24", i))
		if i <= 2 {
			n.Metadata.Labels = map[string]string{"rr": "yes"}
			n.Spec.BGP.RouteReflectorClusterID = "244.0.0.1"
		}
		m.Nodes = append(m.Nodes, n)
	}
	m.Peers = []*api.BGPPeer{peer("rr", api.BGPPeerSpec{NodeSelector: "all()", PeerSelector: "rr == 'yes'"})}
	for i := 1; i <= 4; i++ {
		s := startSpeaker(t, seg.host(fmt.Sprintf("10.0.0.%d/24", i)), "first")
		m.Blocks = blocks(fmt.Sprintf("172.20.%d.0/26", i))
		configured(s, fmt.Sprintf("n%d", i), m)
		speakers = append(speakers, s)
	}
	five := startBIRD(t, seg.host("10.0.0.5/24"), template+`
router id 10.0.0.5;
protocol static { ipv4; route 172.20.5.0/26 blackhole; }
protocol bgp Node_10_0_0_1 from t { neighbor 10.0.0.1 as 64512; source address 10.0.0.5; }
protocol bgp Node_10_0_0_2 from t { neighbor 10.0.0.2 as 64512; source address 10.0.0.5; }
`)
	for i, s := range speakers {
		want := map[string]bool{}
		for j := 1; j <= 5; j++ {
			if j != i+1 {
				want[fmt.Sprintf("172.20.%d.0/26 via 10.0.0.%d", j, j)] = true
			}
		}
		got := s.eventually(func(r reply) error {
			for _, line := range table(r) {
				delete(want, line)
			}
			if len(want) > 0 {
				return fmt.Errorf("n%d has %q, lacks %v", i+1, table(r), want)
			}
			return nil
		})
		if sessions := len(got.Status); i < 2 && sessions != 4 || i >= 2 && sessions != 2 {
			t.Errorf("n%d has %d sessions", i+1, sessions)
		}
		for _, st := range got.Status {
			if st.Kind != peering.ForNode {
				t.Errorf("n%d: %+v", i+1, st)
			}
		}
	}
	for j := 1; j <= 4; j++ {
		five.has(fmt.Sprintf("172.20.%d.0/26", j), fmt.Sprintf("via 10.0.0.%d", j))
	}
	five.has("172.20.3.0/26", "BGP.cluster_list", "BGP.originator_id: 10.0.0.3")
}

func TestTenThousandRoutesFromBIRD(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	var routes strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&routes, "route 10.%d.%d.%d/32 blackhole;\n", 100+i/65536, i/256%256, i%256)
	}
	ours := startSpeaker(t, seg.host("10.0.0.1/24"), "first")
	theirs := startBIRD(t, seg.host("10.0.0.2/24"), strings.Replace(meshBIRD, "route 172.20.2.0/26 blackhole;", routes.String(), 1))
	configured(ours, "a", meshModel())
	ours.eventually(func(r reply) error {
		if n := len(peering.Kernel(r.Learned, peering.Rules{})); n != 10000 {
			return fmt.Errorf("%d routes for the kernel", n)
		}
		return nil
	})
	if err := contains(theirs.show("protocols", "all", "Mesh_10_0_0_1"), "10000 exported"); err != nil {
		t.Error(err)
	}
}

func TestMeshOverIPv6WithBIRD(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	a, b := seg.host("10.0.0.1/24", "fd00::1/64"), seg.host("fd00::2/64")
	m := peering.Model{Nodes: []*api.Node{node("a", "10.0.0.1/24"), node("b", "10.0.0.2/24")}, Blocks: blocks("fd00:244::/122"), Pools: []*api.IPPool{pool("fd00:244::/64")}}
	m.Nodes[0].Spec.BGP.IPv6Address = api.Prefix{Prefix: netip.MustParsePrefix("fd00::1/64")}
	m.Nodes[1].Spec.BGP = &api.NodeBGP{IPv6Address: api.Prefix{Prefix: netip.MustParsePrefix("fd00::2/64")}}
	ours := startSpeaker(t, a, "first")
	theirs := startBIRD(t, b, `
router id 10.0.0.2;
protocol device {}
protocol direct { ipv6; }
protocol static { ipv6; route fd00:244::40/122 blackhole; }
protocol bgp Mesh_fd00__1 { local as 64512; multihop; neighbor fd00::1 as 64512; source address fd00::2; connect delay time 1; connect retry time 2;
  graceful restart; ipv6 { import all; export where source = RTS_STATIC; add paths on; }; }
`)
	configured(ours, "a", m)
	ours.eventually(learns("fd00:244::40/122 via fd00::2"))
	theirs.has("fd00:244::/122", "via fd00::1")
}

func TestPasswordTakenAwayLetsFRRInWithout(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	a, b := seg.host("10.0.0.1/24"), seg.host("10.0.0.3/24")
	ours := startSpeaker(t, a, "first")
	m := rack("10.0.0.3")
	plain := strings.ReplaceAll(torConfig("10.0.0.3", 65001, ""), " neighbor 10.0.0.1 password s3cret\n", "")
	configured(ours, "a", m)
	m.Peers = nil
	configured(ours, "a", m)
	m.Peers = []*api.BGPPeer{peer("tor", api.BGPPeerSpec{PeerIP: "10.0.0.3", ASNumber: 65001})}
	r := peering.Compute("a", m)
	r.Speaker.Sessions[0].Passive = true // so that it is FRR who dials
	ours.do(request{Apply: &r.Speaker})
	startFRR(t, b, plain)
	ours.eventually(learns("192.0.2.0/24 via 10.0.0.3"))
}

// dualConfig gives FRR a network of each family, and one IPv4 session that carries both.
func dualConfig() string {
	return torConfig("10.0.0.3", 65001, `
 address-family ipv6 unicast
  network 2001:db8:9::/48
  neighbor 10.0.0.1 activate
 exit-address-family
`)
}

func TestOneSessionCarriesBothFamiliesWithFRRAndBIRD(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	ours := startSpeaker(t, seg.host("10.0.0.1/24", "fd00::1/64"), "first")
	tor := startFRR(t, seg.host("10.0.0.3/24", "fd00::3/64"), dualConfig())
	router := startBIRD(t, seg.host("10.0.0.4/24", "fd00::4/64"), `
router id 10.0.0.4;
protocol device {}
protocol static { ipv4; route 198.51.100.0/24 blackhole; }
protocol static { ipv6; route 2001:db8:8::/48 blackhole; }
protocol bgp ours { local as 65002; multihop; neighbor 10.0.0.1 as 64512; source address 10.0.0.4; connect delay time 1; connect retry time 2; graceful restart;
  ipv4 { import all; export where source = RTS_STATIC; }; ipv6 { import all; export where source = RTS_STATIC; next hop address fd00::4; }; }
`)
	plain := startBIRD(t, seg.host("10.0.0.5/24"), `
router id 10.0.0.5;
protocol device {}
protocol static { ipv4; route 203.0.113.0/24 blackhole; }
protocol bgp ours { local as 65003; multihop; neighbor 10.0.0.1 as 64512; source address 10.0.0.5; connect delay time 1; connect retry time 2; ipv4 { import all; export where source = RTS_STATIC; }; }
`)
	m := rack("10.0.0.3")
	m.Nodes[0].Spec.BGP.IPv6Address = api.Prefix{Prefix: netip.MustParsePrefix("fd00::1/64")}
	m.Pools, m.Blocks = append(m.Pools, pool("fd00:244::/64")), append(m.Blocks, blocks("fd00:244::/122")...)
	m.Peers = append(m.Peers, peer("router", api.BGPPeerSpec{PeerIP: "10.0.0.4", ASNumber: 65002}), peer("plain", api.BGPPeerSpec{PeerIP: "10.0.0.5", ASNumber: 65003}))
	configured(ours, "a", m)
	got := ours.eventually(learns("192.0.2.0/24 via 10.0.0.3", "198.51.100.0/24 via 10.0.0.4", "2001:db8:8::/48 via fd00::4", "2001:db8:9::/48 via fd00::3", "203.0.113.0/24 via 10.0.0.5"))
	if len(got.Status) != 3 {
		t.Errorf("sessions %+v", got.Status)
	}
	tor.has("show bgp ipv6 unicast fd00:244::/122", "fd00::1 from 10.0.0.1", "valid, external")
	tor.has("show bgp ipv4 unicast 172.20.1.0/26", "10.0.0.1 from 10.0.0.1")
	router.has("fd00:244::/122", "BGP.next_hop: fd00::1")
	router.has("172.20.1.0/26", "BGP.next_hop: 10.0.0.1")
	plain.has("172.20.1.0/26", "BGP.next_hop: 10.0.0.1") // it takes no IPv6, and keeps its session
}

// routerBIRD is a router of a data centre with static routes, a line each, and one session with us that has these options. Its attributes are set by filter.
func routerBIRD(id string, as int, options, filter string, routes ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "router id %s;\nprotocol device {}\nprotocol static { ipv4;\n", id)
	for _, r := range routes {
		fmt.Fprintf(&b, "  route %s blackhole;\n", r)
	}
	fmt.Fprintf(&b, "}\nfilter say {\n  if source != RTS_STATIC then reject;\n%s  accept;\n}\n", filter)
	fmt.Fprintf(&b, `protocol bgp ours { local %s as %d; neighbor 10.0.0.1 %s; connect delay time 1; connect retry time 2; graceful restart;
  ipv4 { import all; export filter say; }; }
`, id, as, options)
	return b.String()
}

// TestEveryFieldOfBGPFilterWithBIRD lets through what one of the rules names, each by another field, and nothing else.
func TestEveryFieldOfBGPFilterWithBIRD(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	ours := startSpeaker(t, seg.host("10.0.0.1/24"), "first")
	inner := startBIRD(t, seg.host("10.0.0.2/24"), routerBIRD("10.0.0.2", 64512, "as 64512; multihop", `
  if net = 198.51.100.0/24 then bgp_community.add((64512,7));
  if net = 198.51.101.0/24 then bgp_large_community.add((64512,1,2));
  if net = 198.51.102.0/24 then bgp_local_pref = 2147483135;
  if net = 203.0.113.0/24 then bgp_path.prepend(65077);
`, "198.51.100.0/24", "198.51.101.0/24", "198.51.102.0/24", "198.51.103.0/25", "198.51.103.0/26", "203.0.113.0/24", "192.0.2.0/24", "192.0.3.0/24"))
	startBIRD(t, seg.host("10.0.0.4/24"), routerBIRD("10.0.0.4", 65002, "as 64512; multihop", "", "100.64.0.0/24", "100.65.0.0/24"))
	m := rack()
	m.Peers = []*api.BGPPeer{
		peer("inner", api.BGPPeerSpec{PeerIP: "10.0.0.2", ASNumber: 64512, Filters: []string{"absent", "f"}}), peer("outer", api.BGPPeerSpec{PeerIP: "10.0.0.4", ASNumber: 65002}),
	}
	pod := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{InterfaceName: "cali1", IPNetworks: []api.Prefix{{Prefix: netip.MustParsePrefix("172.20.9.9/32")}}}}
	m.Endpoints = []*api.WorkloadEndpoint{pod}
	in := []api.BGPFilterRule{
		{Communities: &api.CommunityMatch{Values: []string{"64512:7"}}, Action: "Accept", Operations: []api.BGPFilterChange{{SetPriority: &api.SetPriority{Value: new(100)}}}},
		{Communities: &api.CommunityMatch{Values: []string{"64512:1:2"}}, Action: "Accept"},
		{Priority: new(512), Action: "Accept"},
		{CIDR: "198.51.103.0/24", MatchOperator: "In", PrefixLength: &api.PrefixLength{Min: new(int32(25)), Max: new(int32(25))}, Action: "Accept"},
		{ASPathPrefix: []api.ASN{65077}, PeerType: "iBGP", Action: "Accept"},
		{PeerType: "eBGP", Action: "Accept"},
		{CIDR: "192.0.2.0/24", MatchOperator: "NotIn", Source: "RemotePeers", Action: "Reject"},
	}
	out := []api.BGPFilterRule{
		{Interface: "cali*", Action: "Accept", Operations: []api.BGPFilterChange{{SetPriority: &api.SetPriority{Value: new(512)}}, {AddCommunity: &api.AddCommunity{Value: "64512:3"}}}},
		{Interface: "eth*", Action: "Reject"},
		{CIDR: "100.64.0.0/24", MatchOperator: "Equal", Source: "RemotePeers", Action: "Accept"},
	}
	m.Filters = []*api.BGPFilter{{Spec: api.BGPFilterSpec{ImportV4: in, ExportV4: out}}}
	m.Filters[0].Metadata.Name = "f"
	configured(ours, "a", m)
	got := ours.eventually(learns("100.64.0.0/24 via 10.0.0.4", "100.65.0.0/24 via 10.0.0.4", "192.0.2.0/24 via 10.0.0.2", "198.51.100.0/24 via 10.0.0.2",
		"198.51.101.0/24 via 10.0.0.2", "198.51.102.0/24 via 10.0.0.2", "198.51.103.0/25 via 10.0.0.2", "203.0.113.0/24 via 10.0.0.2"))
	metrics := map[string]int{}
	for _, k := range peering.Kernel(got.Learned, peering.Rules{}) {
		metrics[k.Dst.String()] = k.Metric
	}
	if metrics["198.51.100.0/24"] != 100 || metrics["198.51.102.0/24"] != 512 {
		t.Errorf("metrics %v", metrics)
	}
	inner.has("172.20.9.9/32", "BGP.local_pref: 2147483135", "BGP.community: (64512,3)")
	inner.has("100.64.0.0/24", "BGP.as_path: 65002")
	inner.has("172.20.1.0/26", "BGP.local_pref: 2147482623")
	if text := inner.show("route"); strings.Contains(text, "100.65.0.0") {
		t.Errorf("a route that is in no pool was sent:\n%s", text)
	}
}

// TestFieldsOfBGPPeerWithBIRD has three routers see on the wire what a BGPPeer says.
func TestFieldsOfBGPPeerWithBIRD(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	ours := startSpeaker(t, seg.host("10.0.0.1/24"), "first")
	inner := startBIRD(t, seg.host("10.0.0.2/24"), routerBIRD("10.0.0.2", 64512, "as 64512; multihop", ""))
	startBIRD(t, seg.host("10.0.0.4/24"), routerBIRD("10.0.0.4", 65002, "as 64512; multihop", "  if net = 100.66.0.0/24 then bgp_path.prepend(64512);\n", "100.64.0.0/24", "100.66.0.0/24"))
	outer := startBIRD(t, seg.host("10.0.0.5/24"), routerBIRD("10.0.0.5", 65003, "as 64777; direct; ttl security on", "", "100.67.0.0/24"))
	m := rack()
	pass := &api.BGPFilter{Spec: api.BGPFilterSpec{ExportV4: []api.BGPFilterRule{{Action: "Accept"}}}}
	pass.Metadata.Name = "all"
	m.Filters = []*api.BGPFilter{pass}
	m.Peers = []*api.BGPPeer{
		peer("inner", api.BGPPeerSpec{PeerIP: "10.0.0.2", ASNumber: 64512, NextHopMode: "Self", MaxRestartTime: &api.Duration{Duration: 75 * time.Second}, Filters: []string{"all"}}),
		peer("middle", api.BGPPeerSpec{PeerIP: "10.0.0.4", ASNumber: 65002}),
		peer("outer", api.BGPPeerSpec{
			PeerIP: "10.0.0.5", ASNumber: 65003, LocalASNumber: new(api.ASN(64777)), TTLSecurity: new(uint8(1)), KeepOriginalNextHop: true, SourceAddress: "None", Filters: []string{"all"},
		}),
	}
	configured(ours, "a", m)
	ours.eventually(learns("100.64.0.0/24 via 10.0.0.4", "100.67.0.0/24 via 10.0.0.5")) // 100.66.0.0/24 has come by our AS
	inner.has("100.64.0.0/24", "BGP.next_hop: 10.0.0.1", "BGP.as_path: 65002")
	outer.has("100.64.0.0/24", "BGP.next_hop: 10.0.0.4", "BGP.as_path: 64777")
	if err := contains(inner.show("protocols", "all", "ours"), "Restart time: 75"); err != nil {
		t.Error(err)
	}
	m.Peers[1] = peer("middle", api.BGPPeerSpec{PeerIP: "10.0.0.4", ASNumber: 65002, NumAllowedLocalASNumbers: new(int32(1))})
	configured(ours, "a", m)
	ours.eventually(learns("100.64.0.0/24 via 10.0.0.4", "100.66.0.0/24 via 10.0.0.4", "100.67.0.0/24 via 10.0.0.5"))
	m.Peers[2] = peer("outer", api.BGPPeerSpec{PeerIP: "10.0.0.5", ASNumber: 65003, LocalASNumber: new(api.ASN(64777)), TTLSecurity: new(uint8(1)), NextHopMode: "Auto", Filters: []string{"all"}})
	configured(ours, "a", m)
	outer.has("100.64.0.0/24", "BGP.next_hop: 10.0.0.1")
}
