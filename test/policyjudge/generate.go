package policyjudge

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// The world that clusters are made in. It is the one that the tests with real packets build: six workloads' devices on a host, of which the last is never an
// endpoint's, and one device that leads to everything else.
const (
	node    = "n1"
	uplink  = "eth0"
	devices = 6
)

func device(i int) string { return fmt.Sprintf("cali%d", i) }

func localAddrs(i int) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 65, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd65::%d", i+1))
}

func hostAddrs() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.64.0.1"), netip.MustParseAddr("fd64::1")}
}

// remotes are addresses on the other side of the uplink: other nodes' workloads, another host, and nobody's.
func remotes() []netip.Addr {
	var out []netip.Addr
	for _, a := range []string{
		"10.65.0.0", "10.65.0.8", "10.65.1.0", "10.65.1.1", "10.65.1.2", "10.65.1.3", "10.65.1.255", "10.65.2.0", "10.64.0.2", "192.0.2.1", "192.0.2.127",
		"192.0.2.128", "198.51.100.7", "fd65::", "fd65::8", "fd65:0:0:1::1", "fd65:0:0:1::2", "fd65:0:0:1:ffff:ffff:ffff:ffff", "fd65:0:0:2::",
		"2001:db8::1", "2001:db8::8000", "fd64::2",
	} {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// route is the device by which the host sends to an address; "" to itself.
func route(a netip.Addr) string {
	for i := range devices {
		if v4, v6 := localAddrs(i); a == v4 || a == v6 {
			return device(i)
		}
	}
	if slices.Contains(hostAddrs(), a) {
		return ""
	}
	return uplink
}

// Generate makes the cluster of a seed: equal seeds give equal clusters. All objects are valid.
func Generate(seed uint64) *Cluster {
	g := &generator{rand.New(rand.NewPCG(seed, 0))}
	c := &Cluster{Node: node, Host: Host{
		Devices: map[string][]netip.Addr{uplink: hostAddrs()},
		ToHost:  pick(g, api.Allow, api.Allow, api.Deny),
		FailIn:  []Failsafe{{tcp, 22}, {udp, 68}}, FailOut: []Failsafe{{udp, 67}, {tcp, 179}},
	}}
	g.profiles(c)
	g.endpoints(c)
	g.sets(c)
	g.tiers(c)
	for i := range 1 + g.IntN(7) {
		c.add(g.policy(i))
	}
	for _, s := range []Service{{Namespace: "x", Name: "v"}, {Namespace: "x", Name: "w"}, {Namespace: "y", Name: "v"}} {
		if g.in(2) {
			s.Members = g.sockets()
			c.Services = append(c.Services, s)
		}
	}
	return c
}

// add adds an object with defaults, unless it is not valid or one of that name is there.
func (c *Cluster) add(o api.Object) {
	api.SetDefaults(o)
	same := func(other api.Object) bool { return api.KeyOf(o) == api.KeyOf(other) }
	if api.Validate(o) == nil && !slices.ContainsFunc(c.Objects, same) {
		c.Objects = append(c.Objects, o)
	}
}

type generator struct{ *rand.Rand }

// in is true once in n times.
func (g *generator) in(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

// some are up to n of them.
func some[T any](g *generator, n int, from ...T) []T {
	var out []T
	for range g.IntN(n + 1) {
		out = append(out, pick(g, from...))
	}
	return out
}

func named[T api.Object](o T, namespace, name string) T {
	o.Meta().Namespace, o.Meta().Name = namespace, name
	return o
}

func (g *generator) labels() map[string]string {
	out := map[string]string{}
	for _, key := range []string{"a", "b"} {
		if !g.in(3) {
			out[key] = pick(g, "x", "y", "")
		}
	}
	if b, ok := out["b"]; ok && b == "" {
		out["pcns.a"] = "x" // as if it were the namespace's
	}
	return out
}

func (g *generator) profiles(c *Cluster) {
	for _, ns := range []string{"x", "y"} {
		p := named(&api.Profile{}, "", "kns."+ns)
		p.Spec.LabelsToApply = map[string]string{"pcns.projectcalico.org/name": ns}
		if !g.in(3) {
			p.Spec.LabelsToApply["pcns.a"] = pick(g, "x", "y")
		}
		p.Spec.Ingress, p.Spec.Egress = []api.Rule{{Action: api.Allow}}, []api.Rule{{Action: api.Allow}}
		c.add(p)
		for _, account := range []string{"s", "t"} {
			p := named(&api.Profile{}, "", "ksa."+ns+"."+account)
			p.Spec.LabelsToApply = map[string]string{"pcsa.a": pick(g, "x", "y"), "b": "y"}
			c.add(p)
		}
	}
	p := named(&api.Profile{}, "", "own")
	p.Spec.LabelsToApply = g.labels()
	p.Spec.Ingress, p.Spec.Egress = g.rules(true, true), g.rules(false, true)
	c.add(p)
}

func (g *generator) endpoints(c *Cluster) {
	for i := range devices - 1 {
		if g.in(8) {
			continue
		}
		v4, v6 := localAddrs(i)
		c.add(g.workload(node, i, v4, v6))
	}
	for i, a := range []string{"10.65.1.1", "10.65.1.2", "10.65.1.3"} {
		if g.in(2) {
			c.add(g.workload("n2", 10+i, netip.MustParseAddr(a), netip.MustParseAddr(fmt.Sprintf("fd65:0:0:1::%d", i+1))))
		}
	}
	if g.in(3) {
		c.add(g.host("n2", "remote", "10.64.0.2", "fd64::2"))
	}
	if !g.in(3) {
		c.add(g.host(node, "local", "10.64.0.1", "fd64::1"))
	}
}

func (g *generator) workload(node string, i int, v4, v6 netip.Addr) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{}
	ns := pick(g, "x", "y")
	w.Spec = api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: node, Pod: fmt.Sprint("p", i), Endpoint: "eth0", InterfaceName: device(i)}
	w.Spec.Workload = ns + "/" + w.Spec.Pod
	if !g.in(10) {
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, api.HostPrefix(v4))
	}
	if !g.in(10) {
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, api.HostPrefix(v6))
	}
	if g.in(12) {
		w.Spec.AllowSpoofed = []string{pick(g, "10.65.0.0/30", "192.0.2.0/25", "fd65::/126", "198.51.100.7")}
	}
	w.Spec.ServiceAccountName = pick(g, "s", "t", "")
	w.Spec.Profiles = g.profilesOf(ns, w.Spec.ServiceAccountName)
	for _, p := range g.ports() {
		w.Spec.Ports = append(w.Spec.Ports, api.WEPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	named(w, ns, api.WorkloadEndpointName(w.Spec))
	w.Metadata.Labels = g.labels()
	w.Metadata.Labels[api.LabelNamespace], w.Metadata.Labels[api.LabelOrchestrator] = ns, "k8s"
	return w
}

func (g *generator) profilesOf(ns, account string) []string {
	switch g.IntN(8) {
	case 0:
		return nil
	case 1:
		return []string{"own", "kns." + ns}
	case 2:
		return []string{"kns." + ns, pick(g, "gone", api.DefaultAllowProfile)}
	}
	if account == "" {
		return []string{"kns." + ns}
	}
	return []string{"kns." + ns, "ksa." + ns + "." + account}
}

func (g *generator) ports() []api.EndpointPort {
	return some(g, 2, api.EndpointPort{Name: "web", Protocol: api.Protocol{Name: "TCP"}, Port: 80},
		api.EndpointPort{Name: "web", Protocol: api.Protocol{Name: "UDP"}, Port: 81}, api.EndpointPort{Name: "dns", Protocol: api.Protocol{Name: "UDP"}, Port: 53},
		api.EndpointPort{Name: "web", Protocol: api.Protocol{Name: "TCP"}, Port: 8000})
}

func (g *generator) host(node, name string, expected ...string) *api.HostEndpoint {
	h := named(&api.HostEndpoint{}, "", name)
	h.Metadata.Labels = g.labels()
	h.Spec = api.HostEndpointSpec{Node: node, InterfaceName: pick(g, uplink, "*", ""), ExpectedIPs: expected, Ports: g.ports()}
	h.Spec.Profiles = pick(g, nil, []string{"own"}, []string{api.DefaultAllowProfile})
	return h
}

func (g *generator) sets(c *Cluster) {
	for i, ns := range some(g, 3, "", "x", "y") {
		nets := some(g, 3, nets4()...)
		nets = append(nets, some(g, 2, nets6()...)...)
		name := fmt.Sprint("s", i)
		if ns == "" {
			s := named(&api.GlobalNetworkSet{}, "", name)
			s.Metadata.Labels, s.Spec.Nets = g.labels(), nets
			c.add(s)
			continue
		}
		s := named(&api.NetworkSet{}, ns, name)
		s.Metadata.Labels, s.Spec.Nets = g.labels(), nets
		c.add(s)
	}
}

func nets4() []string {
	return []string{"10.65.0.0/30", "10.65.0.2", "10.65.0.0/16", "10.65.1.0/24", "192.0.2.0/25", "192.0.2.1/32", "198.51.100.7", "10.64.0.0/24", "0.0.0.0/0"}
}

func nets6() []string {
	return []string{"fd65::/126", "fd65::2", "fd65::/48", "fd65:0:0:1::/64", "2001:db8::/113", "fd64::/64", "::/0"}
}

func (g *generator) tiers(c *Cluster) {
	for _, s := range api.StaticTiers() {
		t := named(&api.Tier{}, "", s.Name)
		t.Spec.Order, t.Spec.DefaultAction = &s.Order, s.Action
		c.add(t)
	}
	for _, name := range []string{"red", "blue"} {
		if g.in(3) {
			continue // policies may name it all the same
		}
		t := named(&api.Tier{}, "", name)
		t.Spec.Order, t.Spec.DefaultAction = g.order(), pick(g, api.Deny, api.Deny, api.Pass)
		c.add(t)
	}
}

func (g *generator) order() *float64 {
	o := pick(g, 1, 1, 2, 1e6, 2e6)
	return pick(g, &o, &o, &o, nil)
}

func (g *generator) sockets() []Socket {
	var out []Socket
	for range 1 + g.IntN(4) {
		v4, v6 := localAddrs(g.IntN(devices))
		addr := pick(g, v4, v6, netip.MustParseAddr("10.65.1.1"), netip.MustParseAddr("192.0.2.1"))
		out = append(out, Socket{addr, pick[uint8](g, tcp, udp), pick[uint16](g, 80, 81, 8000)})
	}
	return out
}

// policy makes a policy of any kind. Names collide, and sort otherwise with what follows them than alone.
func (g *generator) policy(i int) api.Object {
	name := pick(g, "p", "p-q", "p.q", "q", fmt.Sprint("r", i))
	tier := pick(g, "default", "default", "default", "default", "default", "red", "blue", "kube-admin", "kube-baseline")
	ns := pick(g, "x", "y")
	s := api.GlobalNetworkPolicySpec{Tier: tier, Order: g.order(), Selector: g.selector()}
	s.Types = pick(g, nil, []api.PolicyType{api.Ingress}, []api.PolicyType{api.Egress}, []api.PolicyType{api.Ingress, api.Egress})
	if g.in(6) {
		s.ServiceAccountSelector = pick(g, "a == 'x'", "has(a)", "all()")
	}
	s.Ingress, s.Egress = g.rules(true, false), g.rules(false, false)
	local := api.NetworkPolicySpec{Tier: s.Tier, Order: s.Order, Selector: s.Selector, Types: s.Types, ServiceAccountSelector: s.ServiceAccountSelector,
		Ingress: s.Ingress, Egress: s.Egress}
	switch g.IntN(13) {
	case 0:
		p := named(&api.StagedNetworkPolicy{}, ns, name)
		p.Spec.NetworkPolicySpec = local
		return p
	case 12:
		return named(&api.StagedKubernetesNetworkPolicy{}, ns, name) // denies all ingress of its namespace, once it is not staged any more
	case 1:
		p := named(&api.StagedGlobalNetworkPolicy{}, "", name)
		p.Spec.GlobalNetworkPolicySpec = s
		return p
	case 2, 3, 4, 5:
		p := named(&api.NetworkPolicy{}, ns, name)
		p.Spec = local
		return p
	case 6, 7, 8:
		s.NamespaceSelector = pick(g, "", "", "", "a == 'x'", "all()", "has(a)", "a != 'x'", "global()", "projectcalico.org/name == 'x'")
	default:
		g.ofHosts(&s)
	}
	p := named(&api.GlobalNetworkPolicy{}, "", name)
	p.Spec = s
	return p
}

// ofHosts makes a policy one for hosts' endpoints, as which it has to be valid.
func (g *generator) ofHosts(s *api.GlobalNetworkPolicySpec) {
	s.Selector = pick(g, "", s.Selector)
	switch g.IntN(5) {
	case 0:
		s.DoNotTrack, s.ApplyOnForward = true, true
	case 1:
		s.PreDNAT, s.ApplyOnForward = true, true
		s.Types, s.Egress = []api.PolicyType{api.Ingress}, nil
	case 2:
		s.ApplyOnForward = true
	}
}

func (g *generator) selector() string {
	term := func() string {
		return pick(g, "a == 'x'", "a == 'y'", "b == 'x'", "a != 'x'", "has(a)", "!has(b)", "a in {'x', 'y'}", "b not in {'y'}", "all()", "a starts with 'x'",
			"projectcalico.org/namespace == 'x'", "pcns.a == 'x'")
	}
	switch g.IntN(8) {
	case 0, 1:
		return ""
	case 2:
		return term() + " && " + term()
	case 3:
		return term() + " || " + term()
	case 4:
		return "!(" + term() + " && " + term() + ")"
	}
	return term()
}

// rules makes up to four valid rules.
func (g *generator) rules(ingress, profile bool) []api.Rule {
	var out []api.Rule
	for range g.IntN(5) {
		for range 50 {
			r := g.rule(ingress)
			if valid(r, ingress, profile) {
				out = append(out, r)
				break
			}
		}
	}
	return out
}

// valid tells whether a rule is valid in policies of all kinds.
func valid(r api.Rule, ingress, profile bool) bool {
	rules := []api.Rule{r}
	in, out := rules, []api.Rule(nil)
	if !ingress {
		in, out = nil, rules
	}
	if profile {
		p := named(&api.Profile{}, "", "p")
		p.Spec.Ingress, p.Spec.Egress = in, out
		return api.Validate(p) == nil
	}
	global, local := named(&api.GlobalNetworkPolicy{}, "", "p"), named(&api.NetworkPolicy{}, "x", "p")
	global.Spec.Ingress, global.Spec.Egress = in, out
	local.Spec.Ingress, local.Spec.Egress = in, out
	return api.Validate(global) == nil && api.Validate(local) == nil
}

func (g *generator) rule(ingress bool) api.Rule {
	r := api.Rule{Action: pick(g, api.Allow, api.Allow, api.Allow, api.Deny, api.Deny, api.Pass, api.Log)}
	six := g.in(3)
	if g.in(8) {
		r.IPVersion = new(pick(g, 4, 6))
	}
	if g.in(2) {
		r.Protocol = &api.Protocol{Name: pick(g, "TCP", "TCP", "UDP", "UDP", "SCTP", "ICMP", "ICMPv6", "")}
		if r.Protocol.Name == "" {
			r.Protocol.Number = pick[uint8](g, tcp, udp, icmp, 47)
		}
	}
	if g.in(8) {
		r.NotProtocol = &api.Protocol{Name: pick(g, "TCP", "UDP", "ICMP")}
	}
	if r.Protocol != nil && (r.Protocol.Is("ICMP") || r.Protocol.Is("ICMPv6")) {
		if g.in(2) {
			r.ICMP = g.icmp()
		}
		if g.in(3) {
			r.NotICMP = g.icmp()
		}
	}
	r.Source, r.Destination = g.entity(six, ingress), g.entity(six, !ingress)
	return r
}

func (g *generator) icmp() *api.ICMP {
	k := &api.ICMP{Type: new(pick(g, 8, 13, 128))}
	if g.in(2) {
		k.Code = new(pick(g, 0, 1))
	}
	return k
}

func (g *generator) entity(six, peer bool) api.EntityRule {
	var e api.EntityRule
	nets := nets4()
	if six {
		nets = nets6()
	}
	if peer && g.in(14) {
		e.Services = &api.ServiceMatch{Name: pick(g, "v", "w"), Namespace: pick(g, "x", "y")}
		return e
	}
	if g.in(7) {
		e.Nets = some(g, 3, nets...)
	}
	if g.in(9) {
		e.NotNets = some(g, 2, nets[:len(nets)-1]...)
	}
	if g.in(5) {
		e.Selector = g.selector()
	}
	if g.in(11) {
		e.NamespaceSelector = pick(g, "all()", "a == 'x'", "has(a)", "a != 'x'", "global()", "projectcalico.org/name == 'y'")
	}
	if g.in(12) {
		e.NotSelector = g.selector()
	}
	if g.in(16) {
		e.ServiceAccounts = pick(g, &api.ServiceAccountMatch{Names: []string{pick(g, "s", "t")}}, &api.ServiceAccountMatch{Names: []string{"t", "s"}},
			&api.ServiceAccountMatch{Names: some(g, 2, "s", "t"), Selector: pick(g, "a == 'x'", "has(a)", "a != 'x'")})
	}
	if g.in(4) {
		e.Ports = some(g, 3, g.port(), g.port())
	}
	if g.in(8) {
		e.NotPorts = some(g, 2, g.port(), g.port())
	}
	return e
}

func (g *generator) port() api.Port {
	return pick(g, api.Port{Min: 80, Max: 80}, api.Port{Min: 81, Max: 81}, api.Port{Min: 8000, Max: 8010}, api.Port{Min: 1, Max: 1024}, api.Port{Min: 80, Max: 8005},
		api.Port{Min: 1, Max: 65535}, api.Port{Name: "web"}, api.Port{Name: "dns"}, api.Port{Name: "none"})
}
