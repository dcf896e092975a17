package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// world is a host with two pods, a and b, and a machine outside, each a namespace.
type world struct {
	t                testing.TB
	c                *Conn
	k                *Keeper
	host, a, b, away *nettest.NS
	layout           *ruleset.Layout
}

// Addresses of the world.
const (
	addrA, addrB, addrAway, addrHost = "10.65.0.1", "10.65.0.2", "192.0.2.2", "192.0.2.1"
)

func settings() ruleset.Settings {
	return ruleset.Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000, VXLANPort: 4789, LogGroup: 9, Spoofing: true}
}

func newWorld(t testing.TB, s ruleset.Settings) *world {
	t.Helper()
	nettest.Need(t, "nft")
	w := &world{t: t, host: nettest.New(t), a: nettest.New(t), b: nettest.New(t), away: nettest.New(t), layout: ruleset.New(s)}
	w.c = openIn(t, w.host)
	w.k = NewKeeper(w.c, ruleset.Table)
	nettest.Pair(w.host, "eth0", w.away, "eth0")
	w.host.Exec("ip", "addr", "add", addrHost+"/24", "dev", "eth0")
	w.away.Exec("ip", "addr", "add", addrAway+"/24", "dev", "eth0")
	w.away.Exec("ip", "route", "add", "10.65.0.0/16", "via", addrHost)
	for i, pod := range []*nettest.NS{w.a, w.b} {
		dev, addr := fmt.Sprint("cali", i+1), []string{addrA, addrB}[i]
		nettest.Pair(w.host, dev, pod, "eth0")
		w.host.Exec("ip", "route", "add", addr+"/32", "dev", dev)
		pod.Exec("ip", "addr", "add", addr+"/32", "dev", "eth0")
		gateway(pod, w.host, dev)
	}
	w.host.Exec("sysctl", "-qw", "net.ipv4.ip_forward=1")
	return w
}

// gateway makes the host a pod's gateway, with the neighbour entry that spares everybody asking for it.
func gateway(pod, host *nettest.NS, dev string) {
	mac := strings.Fields(host.Exec("ip", "-br", "link", "show", "dev", dev))[2]
	pod.Exec("ip", "neigh", "add", "169.254.1.1", "lladdr", mac, "dev", "eth0")
	pod.Exec("ip", "route", "add", "169.254.1.1/32", "dev", "eth0")
	pod.Exec("ip", "route", "add", "default", "via", "169.254.1.1")
}

// apply brings an update into the kernel.
func (w *world) apply(u policy.Update) {
	w.t.Helper()
	w.layout.Update(u)
	d := w.layout.Take()
	if _, err := w.k.Apply(w.t.Context(), w.layout.Table(), d, false); err != nil {
		w.t.Fatal(err)
	}
}

// policyOf makes a policy. Its rules are named after it.
func policyOf(id string, direction api.PolicyType, rules ...policy.Rule) *policy.Policy {
	p := &policy.Policy{ID: policy.PolicyID(id), Kind: "NetworkPolicy", Name: id, Direction: direction, Rules: rules}
	for i := range p.Rules {
		p.Rules[i].Index = i
		p.Rules[i].ID = policy.RuleID(fmt.Sprintf("%s-%s-%d", strings.ToLower(string(p.Rules[i].Action)), id, i))
	}
	return p
}

func listOf(id string, direction api.PolicyType, tiers ...policy.TierPart) *policy.List {
	return &policy.List{ID: policy.ListID(id), Direction: direction, Tiers: tiers, End: api.Deny, EndID: policy.RuleID("deny-end-" + id)}
}

func tier(name string, end api.Action, policies ...policy.PolicyID) policy.TierPart {
	return policy.TierPart{Tier: name, Policies: policies, End: end, EndID: policy.RuleID("deny-tier-" + name)}
}

func pod(name, iface, addr, ingress, egress string) *policy.Endpoint {
	return &policy.Endpoint{Key: policy.EndpointKey{Name: name}, Interface: iface, Addrs: []netip.Addr{netip.MustParseAddr(addr)},
		Ingress: policy.ListID(ingress), Egress: policy.ListID(egress)}
}

func endpoints(es ...*policy.Endpoint) map[policy.EndpointKey]*policy.Endpoint {
	out := map[policy.EndpointKey]*policy.Endpoint{}
	for _, e := range es {
		out[e.Key] = e
	}
	return out
}

func policies(ps ...*policy.Policy) map[policy.PolicyID]*policy.Policy {
	out := map[policy.PolicyID]*policy.Policy{}
	for _, p := range ps {
		out[p.ID] = p
	}
	return out
}

func lists(ls ...*policy.List) map[policy.ListID]*policy.List {
	out := map[policy.ListID]*policy.List{}
	for _, l := range ls {
		out[l.ID] = l
	}
	return out
}

func ports(first, last uint16) policy.Match {
	return policy.Match{Ports: []policy.PortRange{{Min: first, Max: last}}}
}

// twoPods is an update with two pods: a may send everywhere, b gets what one policy allows.
func twoPods(in *policy.Policy, more ...*policy.Policy) policy.Update {
	all := policyOf("all", api.Egress, policy.Rule{Action: api.Allow})
	anyIn := policyOf("any", api.Ingress, policy.Rule{Action: api.Allow})
	return policy.Update{
		Policies: policies(append(more, all, anyIn, in)...),
		Lists: lists(listOf("out", api.Egress, tier("o", api.Deny, "all")), listOf("in", api.Ingress, tier("i", api.Deny, in.ID)),
			listOf("anyin", api.Ingress, tier("i", api.Deny, "any"))),
		Endpoints: endpoints(pod("a", "cali1", addrA, "anyin", "out"), pod("b", "cali2", addrB, "in", "out")),
	}
}

// listener receives datagrams in a namespace.
func (w *world) listener(ns *nettest.NS, at string) *net.UDPConn {
	w.t.Helper()
	var l *net.UDPConn
	ns.Do(func() {
		var err error
		if l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))); err != nil {
			w.t.Fatal(err)
		}
	})
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

func (w *world) dialer(ns *nettest.NS, from, to string) *net.UDPConn {
	w.t.Helper()
	var c *net.UDPConn
	ns.Do(func() {
		var local *net.UDPAddr
		if from != "" {
			local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
		}
		var err error
		if c, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
			w.t.Fatal(err)
		}
	})
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// sends sends a datagram and returns what became of it: "arrived", or the counter that says who dropped it.
func (w *world) sends(from *nettest.NS, source string, to *nettest.NS, at string) string {
	w.t.Helper()
	l := w.listener(to, at)
	before := w.counters()
	c := w.dialer(from, source, at)
	if _, err := c.Write([]byte("x")); err != nil {
		return err.Error()
	}
	var fate string
	buf := make([]byte, 1)
	nettest.Eventually(w.t, func() error {
		_ = l.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, _, err := l.ReadFrom(buf); err == nil {
			fate = "arrived"
			return nil
		}
		for name, n := range w.counters() {
			if drops(name) && n.Packets > before[name].Packets {
				fate = name
				return nil
			}
		}
		return fmt.Errorf("neither arrived nor was counted: %s", w.host.Exec("nft", "list", "counters"))
	})
	_ = l.Close()
	return fate
}

// drops tells whether a counter is of something that drops.
func drops(counter string) bool {
	return strings.HasPrefix(counter, "r-deny-") ||
		slices.Contains([]string{"r-spoof", "r-unknown-if", "r-to-host", "r-tunnel", "r-peer", "r-undecided"}, counter)
}

func (w *world) counters() map[string]nftable.Counted {
	w.t.Helper()
	n, err := w.c.Counters(w.t.Context(), ruleset.Table)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) expect(want string, from *nettest.NS, source string, to *nettest.NS, at string) {
	w.t.Helper()
	if got := w.sends(from, source, to, at); got != want {
		w.t.Errorf("to %s from %q: %s, want %s", at, source, got, want)
	}
}

func TestPacketsFareAsPolicySays(t *testing.T) {
	w := newWorld(t, settings())
	u := twoPods(policyOf("web", api.Ingress,
		policy.Rule{Action: api.Deny, Protocol: 17, Destination: ports(85, 85), Source: policy.Match{Sets: []policy.SetID{"friends"}}},
		policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(80, 89), Source: policy.Match{Sets: []policy.SetID{"friends"}}},
		policy.Rule{Action: api.Allow, Destination: policy.Match{PortSets: []policy.SetID{"named"}}},
		policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(90, 90), Source: policy.Match{NotSets: []policy.SetID{"friends"}}},
	))
	u.Sets = map[policy.SetID]policy.SetChange{
		"friends": {Set: &policy.Set{ID: "friends"}, Added: policy.Members{Addrs: []netip.Addr{netip.MustParseAddr(addrA)}}},
		"named": {Set: &policy.Set{ID: "named", Kind: policy.Ports}, Added: policy.Members{
			Ports: []policy.PortMember{{Addr: netip.MustParseAddr(addrB), Protocol: 17, Port: 5353}}}},
	}
	w.apply(u)
	w.expect("arrived", w.a, "", w.b, addrB+":80")
	w.expect("r-deny-web-0", w.a, "", w.b, addrB+":85")
	w.expect("arrived", w.a, "", w.b, addrB+":5353") // by the name of the port
	w.expect("arrived", w.away, "", w.b, addrB+":5353")
	w.expect("r-deny-tier-i", w.a, "", w.b, addrB+":79")
	w.expect("r-deny-tier-i", w.away, "", w.b, addrB+":80")
	w.expect("arrived", w.away, "", w.b, addrB+":90")
	w.expect("r-deny-tier-i", w.a, "", w.b, addrB+":90")

	away := netip.MustParsePrefix("192.0.2.0/24")
	w.apply(policy.Update{Sets: map[policy.SetID]policy.SetChange{"friends": {Added: policy.Members{Nets: []netip.Prefix{away}}}}})
	w.expect("arrived", w.away, "", w.b, addrB+":80")
	w.expect("arrived", w.a, "", w.b, addrB+":80")
	w.expect("r-deny-tier-i", w.away, "", w.b, addrB+":90")
	w.apply(policy.Update{Sets: map[policy.SetID]policy.SetChange{"friends": {Removed: policy.Members{Nets: []netip.Prefix{away}}}}})
	w.expect("r-deny-tier-i", w.away, "", w.b, addrB+":80")

	w.a.Exec("ip", "addr", "add", "10.65.0.99/32", "dev", "eth0")
	w.expect("r-spoof", w.a, "10.65.0.99", w.b, addrB+":80")
	w.expect("r-tunnel", w.a, "", w.b, addrB+":4789")
	w.apply(policy.Update{Endpoints: endpoints(&policy.Endpoint{Key: policy.EndpointKey{Name: "a"}, Interface: "cali1",
		Addrs: []netip.Addr{netip.MustParseAddr(addrA)}, Spoofable: []netip.Prefix{netip.MustParsePrefix("10.65.0.96/28")}, Ingress: "anyin", Egress: "out"})})
	w.expect("arrived", w.a, "10.65.0.99", w.b, addrB+":5353")
}

func TestTiersPassAndStagedPoliciesOnlyCount(t *testing.T) {
	w := newWorld(t, settings())
	staged := policyOf("staged", api.Ingress, policy.Rule{Action: api.Deny})
	staged.Staged, staged.Rules[0].ID = true, "staged"
	first := policyOf("first", api.Ingress,
		policy.Rule{Action: api.Pass, Protocol: 17, Destination: ports(80, 89)},
		policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(90, 90)})
	u := twoPods(policyOf("second", api.Ingress, policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(80, 80)}), first, staged)
	u.Lists["in"] = listOf("in", api.Ingress, tier("one", api.Deny, "staged", "first"), tier("two", api.Deny, "second"))
	w.apply(u)
	w.expect("arrived", w.a, "", w.b, addrB+":80")
	w.expect("r-deny-tier-two", w.a, "", w.b, addrB+":81")
	w.expect("arrived", w.a, "", w.b, addrB+":90")
	w.expect("r-deny-tier-one", w.a, "", w.b, addrB+":91")
	if n := w.counters()["r-staged"].Packets; n != 4 {
		t.Errorf("the staged policy has counted %d packets of 4", n)
	}
}

func TestPacketsToTheHostFollowTheSetting(t *testing.T) {
	s := settings()
	w := newWorld(t, s)
	out := policyOf("out", api.Egress, policy.Rule{Action: api.Deny, Protocol: 17, Destination: ports(99, 99)}, policy.Rule{Action: api.Allow})
	u := twoPods(policyOf("in", api.Ingress, policy.Rule{Action: api.Allow}), out)
	u.Lists["out"] = listOf("out", api.Egress, tier("o", api.Deny, "out"))
	w.apply(u)
	w.expect("r-to-host", w.a, "", w.host, addrHost+":80")
	// A host that drops by itself: a workload's own policy is not to open it.
	w.host.Exec("iptables", "-P", "INPUT", "DROP")
	w.host.Exec("iptables", "-A", "INPUT", "-m", "mark", "--mark", "0x10000/0x10000", "-j", "ACCEPT")
	s.ToHost = ruleset.AcceptToHost
	w.layout.SetSettings(s)
	w.apply(policy.Update{})
	w.expect("arrived", w.a, "", w.host, addrHost+":80")
	w.expect("r-deny-out-0", w.a, "", w.host, addrHost+":99")
	s.ToHost = ruleset.ReturnToHost
	w.layout.SetSettings(s)
	w.apply(policy.Update{})
	w.host.Exec("iptables", "-Z", "INPUT")
	c := w.dialer(w.a, "", addrHost+":80")
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, func() error {
		if out := w.host.Exec("iptables", "-L", "INPUT", "-v", "-x"); !strings.Contains(out, "policy DROP 1 packets") {
			return fmt.Errorf("the host's own rules did not judge: %s", out)
		}
		return nil
	})
	w.host.Exec("iptables", "-P", "INPUT", "ACCEPT")
	w.expect("arrived", w.a, "", w.host, addrHost+":81")
}

func TestAcceptHoldsAgainstADroppingForwardPolicy(t *testing.T) {
	nettest.Need(t, "iptables")
	w := newWorld(t, settings())
	w.apply(twoPods(policyOf("in", api.Ingress, policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(80, 80)})))
	w.host.Exec("iptables", "-P", "FORWARD", "DROP")
	w.host.Exec("iptables", "-I", "FORWARD", "-m", "mark", "--mark", "0x10000/0x10000", "-j", "ACCEPT")
	w.expect("arrived", w.a, "", w.b, addrB+":80")
	w.expect("arrived", w.a, "", w.away, addrAway+":80")
	w.expect("r-deny-tier-i", w.a, "", w.b, addrB+":81")
	if out := w.host.Exec("iptables", "-L", "FORWARD", "-v", "-x"); !strings.Contains(out, "policy DROP 0 packets") {
		t.Errorf("FORWARD has dropped something: %s", out)
	}
}

func TestEstablishedFlowsGoOnWhereNewOnesAreDenied(t *testing.T) {
	w := newWorld(t, settings())
	w.apply(twoPods(policyOf("in", api.Ingress, policy.Rule{Action: api.Allow})))
	l, c := w.listener(w.b, addrB+":80"), w.dialer(w.a, "", addrB+":80")
	buf := make([]byte, 16)
	roundTrip := func() {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		_, _ = l.SetReadDeadline(deadline), c.SetReadDeadline(deadline)
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		_, from, err := l.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.WriteTo([]byte("pong"), from); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	roundTrip()
	u := twoPods(policyOf("shut", api.Ingress, policy.Rule{Action: api.Deny}))
	u.Lists = lists(listOf("closed", api.Ingress, tier("i", api.Deny, "shut")))
	u.Lists["in"] = nil
	u.Policies["in"] = nil
	u.Endpoints = endpoints(pod("b", "cali2", addrB, "closed", "out"))
	w.apply(u)
	roundTrip()
	_ = l.Close()
	w.expect("r-deny-shut-0", w.a, "", w.b, addrB+":80")
}

// TestSwappedPolicyLosesNothingAndLetsNothingThrough sends to an open and to a closed port in turn while the policy is replaced by one that says the
// same with other chains and sets. One-way datagrams never become an established flow: each is judged by the rules of its moment.
func TestSwappedPolicyLosesNothingAndLetsNothingThrough(t *testing.T) {
	w := newWorld(t, settings())
	version := func(i int) (*policy.Policy, *policy.List, policy.SetID) {
		set := policy.SetID(fmt.Sprint("set", i))
		in := policyOf(fmt.Sprint("in", i), api.Ingress,
			policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(80, 80), Source: policy.Match{Sets: []policy.SetID{set}}})
		return in, listOf(fmt.Sprint("list", i), api.Ingress, tier("i", api.Deny, in.ID)), set
	}
	swap := func(i int) policy.Update {
		in, list, set := version(i)
		u := policy.Update{
			Policies: policies(in), Lists: lists(list), Endpoints: endpoints(pod("b", "cali2", addrB, string(list.ID), "out")),
			Sets: map[policy.SetID]policy.SetChange{set: {Set: &policy.Set{ID: set}, Added: policy.Members{Addrs: []netip.Addr{netip.MustParseAddr(addrA)}}}},
		}
		if i > 0 {
			oldIn, oldList, oldSet := version(i - 1)
			u.Policies[oldIn.ID], u.Lists[oldList.ID], u.Sets[oldSet] = nil, nil, policy.SetChange{Gone: true}
		}
		return u
	}
	w.apply(twoPods(policyOf("in", api.Ingress)))
	w.apply(swap(0))
	open, closed := w.listener(w.b, addrB+":80"), w.listener(w.b, addrB+":81")
	toOpen, toClosed := w.dialer(w.a, "", addrB+":80"), w.dialer(w.a, "", addrB+":81")
	stop, ended := make(chan struct{}), make(chan error, 1)
	sent := uint32(0)
	go func() {
		buf := make([]byte, 4)
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			sent++
			_, _ = toClosed.Write(buf)
			if _, err := toOpen.Write(binary.BigEndian.AppendUint32(nil, sent)); err != nil {
				ended <- err
				return
			}
			_ = open.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, _, err := open.ReadFrom(buf); err != nil || binary.BigEndian.Uint32(buf) != sent {
				ended <- fmt.Errorf("datagram %d was lost: %w", sent, err)
				return
			}
		}
	}()
	for i := 1; i <= 400; i++ {
		w.apply(swap(i))
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if sent < 400 {
		t.Fatalf("only %d datagrams were sent while policy was replaced 400 times", sent)
	}
	_ = closed.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, _, err := closed.ReadFrom(make([]byte, 4)); err == nil {
		t.Fatal("a datagram to the closed port has got through")
	}
	if d := nftable.Diff(w.listing(), w.layout.Table()); !d.Empty() {
		t.Fatalf("the kernel holds something else in the end: %+v", d)
	}
}

func (w *world) listing() nftable.Listing {
	w.t.Helper()
	l, _, err := w.c.List(w.t.Context(), ruleset.Table)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

func TestHostsEndpointsAreAskedAtTheirPlaces(t *testing.T) {
	s := settings()
	s.FailsafeIn = []ruleset.Failsafe{{Protocol: 17, Port: 68}}
	w := newWorld(t, s)
	u := twoPods(policyOf("in", api.Ingress, policy.Rule{Action: api.Allow}),
		policyOf("hostin", api.Ingress, policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(80, 80)}),
		policyOf("fwd", api.Ingress, policy.Rule{Action: api.Deny, Protocol: 17, Destination: ports(81, 81)}),
		policyOf("raw", api.Ingress, policy.Rule{Action: api.Deny, Protocol: 17, Destination: ports(82, 82)},
			policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(83, 83)}),
		policyOf("dnat", api.Ingress, policy.Rule{Action: api.Deny, Protocol: 17, Destination: ports(84, 84)}))
	open := func(id string) *policy.List {
		return &policy.List{ID: policy.ListID("l" + id), Direction: api.Ingress, End: api.Pass, Tiers: []policy.TierPart{
			{Tier: "x", Policies: []policy.PolicyID{policy.PolicyID(id)}, End: api.Pass}}}
	}
	for _, l := range []*policy.List{open("fwd"), open("raw"), open("dnat"), listOf("lhost", api.Ingress, tier("h", api.Deny, "hostin"))} {
		u.Lists[l.ID] = l
	}
	host := &policy.Endpoint{Key: policy.EndpointKey{Kind: policy.Host, Name: "n1-eth0"}, Addrs: []netip.Addr{netip.MustParseAddr(addrHost)},
		Ingress: "lhost", Egress: "out", ForwardIngress: "lfwd", UntrackedIngress: "lraw", PreDNAT: "ldnat"}
	u.Endpoints[host.Key] = host
	w.layout.SetDevices(map[string][]netip.Addr{"eth0": {netip.MustParseAddr(addrHost)}})
	w.apply(u)
	w.expect("arrived", w.away, "", w.host, addrHost+":80")
	w.expect("r-deny-tier-h", w.away, "", w.host, addrHost+":79")
	w.expect("arrived", w.away, "", w.host, addrHost+":68") // failsafe
	w.expect("r-deny-raw-0", w.away, "", w.host, addrHost+":82")
	w.expect("arrived", w.away, "", w.host, addrHost+":83") // untracked, and so no other list is asked
	w.expect("r-deny-dnat-0", w.away, "", w.host, addrHost+":84")
	w.expect("r-deny-fwd-0", w.away, "", w.b, addrB+":81")
	w.expect("r-deny-dnat-0", w.away, "", w.b, addrB+":84")
	w.expect("arrived", w.away, "", w.b, addrB+":80")
	w.expect("arrived", w.a, "", w.b, addrB+":81") // not by eth0
	w.expect("arrived", w.host, "", w.away, addrAway+":80")
}

// IPv6 addresses of the world.
const a6, b6, away6 = "fd00:65::1", "fd00:65::2", "2001:db8::2"

// addIPv6 gives the world IPv6 too.
func (w *world) addIPv6() {
	w.host.Exec("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	for i, pod := range []*nettest.NS{w.a, w.b} {
		dev, addr := fmt.Sprint("cali", i+1), []string{a6, b6}[i]
		w.host.Exec("ip", "-6", "addr", "add", "fe80::1/64", "dev", dev, "nodad")
		w.host.Exec("ip", "-6", "route", "add", addr, "dev", dev)
		pod.Exec("ip", "-6", "addr", "add", addr+"/128", "dev", "eth0", "nodad")
		pod.Exec("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
	}
	w.host.Exec("ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	w.away.Exec("ip", "-6", "addr", "add", away6+"/64", "dev", "eth0", "nodad")
	w.away.Exec("ip", "-6", "route", "add", "fd00:65::/32", "via", "2001:db8::1")
}

// bothAddrs gives the pods of twoPods their IPv6 addresses too.
func bothAddrs(u policy.Update) {
	for key, addr := range map[string]string{"a": a6, "b": b6} {
		e := u.Endpoints[policy.EndpointKey{Name: key}]
		e.Addrs = append(e.Addrs, netip.MustParseAddr(addr))
	}
}

func TestPoliciesHoldForIPv6(t *testing.T) {
	w := newWorld(t, settings())
	w.addIPv6()
	u := twoPods(policyOf("web", api.Ingress,
		policy.Rule{Action: api.Allow, Protocol: 17, Destination: ports(80, 80), Source: policy.Match{Sets: []policy.SetID{"friends"}}},
		policy.Rule{Action: api.Allow, Protocol: 17, Source: policy.Match{Nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
	))
	u.Sets = map[policy.SetID]policy.SetChange{"friends": {Set: &policy.Set{ID: "friends"}, Added: policy.Members{Addrs: []netip.Addr{netip.MustParseAddr(a6)}}}}
	bothAddrs(u)
	w.apply(u)
	w.expect("arrived", w.a, "", w.b, "["+b6+"]:80")
	w.expect("r-deny-tier-i", w.a, "", w.b, "["+b6+"]:81")
	w.expect("arrived", w.a, "", w.b, addrB+":81")
	w.a.Exec("ip", "-6", "addr", "add", "fd00:65::99/128", "dev", "eth0", "nodad")
	w.expect("r-spoof", w.a, "fd00:65::99", w.b, "["+b6+"]:80")
}
