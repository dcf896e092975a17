package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/sysctl"
	"github.com/muslin-cni/muslin/internal/xtables"
)

// node is a namespace with an uplink and a workload, and everything that an agent has open in it.
type node struct {
	*nettest.NS
	t       *testing.T
	peer    *nettest.NS
	conn    *rtnl.Conn
	sets    *xtables.Sets
	monitor *rtnl.Monitor
	watch   *xtables.Watch
	r       *Reconciler
	told    []Repair // by the rounds so far
}

func newNode(t *testing.T) *node {
	t.Helper()
	nettest.Need(t, "vxlan", "set", "iptables-nft", "ipset")
	n := &node{NS: nettest.New(t), t: t, peer: nettest.New(t)}
	nettest.Pair(n.NS, "eth0", n.peer, "eth0")
	nettest.Pair(n.NS, "cali0", n.peer, "pod0")
	n.Exec("ip", "addr", "add", "172.30.0.1/24", "dev", "eth0")
	n.Do(func() {
		var err error
		if n.conn, err = rtnl.Open(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.conn.Close)
		if n.sets, err = xtables.OpenSets(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.sets.Close)
		if n.monitor, err = rtnl.NewMonitor(t.Context(), n.conn, silent()); err != nil {
			t.Fatal(err)
		}
	})
	follow(t, n.monitor.Run)
	n.restart()
	return n
}

// follow runs what follows events until the test ends.
func follow(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("follow events: %v", err)
		}
	})
}

// restart replaces the reconciler by one without memory.
func (n *node) restart() {
	n.t.Helper()
	var tables Tables
	n.Do(func() {
		chains, err := xtables.OpenChains(n.t.Context(), xtables.NFT)
		if err != nil {
			n.t.Fatal(err)
		}
		if n.watch, err = chains.Watch(silent()); err != nil {
			n.t.Fatal(err)
		}
		settings, err := sysctl.Open(sysctl.Root)
		if err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() { _ = settings.Close() })
		tables = Tables{
			Sysctls: settings, Links: n.conn.Links(), Addrs: n.conn.Addrs(), Neighs: n.conn.Neighs(), FDB: n.conn.FDB(),
			Sets: n.sets, Routes: n.conn.Routes(), Chains: chains,
		}
	})
	follow(n.t, n.watch.Run)
	n.r = New(tables, silent())
}

// want is what a plan would compute from the present facts: what hangs on a device only when the device is up.
func (n *node) want() kernel.State {
	h, s := n.monitor.Host(), kernel.NewState()
	s.Sysctls[kernel.SysctlKey{Path: "net/ipv4/ip_forward"}] = "1"
	eth0, ok := h.Dev("eth0")
	if ok {
		s.Links[kernel.VXLANDevice] = kernel.Link{
			Type: kernel.VXLAN, VNI: 4096, Port: 4789, Local: netip.MustParseAddr("172.30.0.1"), Parent: eth0, MAC: kernel.MAC{0x66, 1}, MTU: 1450,
		}
		s.Routes[dst("10.244.2.0/26")] = kernel.Route{Dev: eth0, Gateway: netip.MustParseAddr("172.30.0.2"), Onlink: true, Protocol: 80}
	}
	s.Addrs[kernel.AddrKey{Link: kernel.VXLANDevice, Addr: netip.MustParsePrefix("10.244.0.0/32")}] = struct{}{}
	s.Routes[dst("10.244.0.0/26")] = blackhole
	if dev, ok := h.Dev(kernel.VXLANDevice); ok {
		tunnel := netip.MustParseAddr("10.244.1.0")
		s.Neighs[kernel.NeighKey{Dev: dev, Addr: tunnel}] = kernel.MAC{0x66, 2}
		s.FDB[kernel.FDBKey{Dev: dev, MAC: kernel.MAC{0x66, 2}}] = netip.MustParseAddr("172.30.0.3")
		s.Routes[dst("10.244.1.0/26")] = kernel.Route{Dev: dev, Gateway: tunnel, Onlink: true, Protocol: 80}
	}
	if dev, ok := h.Dev("cali0"); ok {
		pod := netip.MustParseAddr("10.244.0.5")
		s.Routes[kernel.RouteKey{Dst: netip.PrefixFrom(pod, 32), Metric: 1024}] = kernel.Route{Scope: kernel.LinkScope, Dev: dev, Protocol: 80}
		s.Neighs[kernel.NeighKey{Dev: dev, Addr: pod}] = kernel.MAC{2, 5}
		s.Sysctls[kernel.SysctlKey{Path: "net/ipv4/conf/cali0/proxy_arp", Index: dev.Index}] = "1"
		s.Sysctls[kernel.SysctlKey{Path: "net/ipv4/conf/cali0/route_localnet", Index: dev.Index}] = "1"
	}
	s.Sets["cali40pools"] = kernel.Set{Members: "10.244.0.0/16"}
	s.Chains[kernel.ChainKey{Table: "nat", Chain: "POSTROUTING"}] = kernel.Chain{Rules: "-j cali-POSTROUTING"}
	s.Chains[kernel.ChainKey{Table: "nat", Chain: "cali-POSTROUTING"}] = kernel.Chain{
		Rules: "-m set --match-set cali40pools src -m set ! --match-set cali40pools dst -j MASQUERADE --random-fully"}
	return s
}

// round is one turn of an agent's loop. It tells what it changed, and whether it listed a table.
func (n *node) round(want func() kernel.State) (changed int, listed bool, err error) {
	n.Do(func() {
		n.r.Observe(n.monitor.Events())
		if v4, _ := n.watch.Spoiled(); v4 {
			n.r.MarkDirty(Chains)
		}
		var errList, errApply error
		listed, errList = n.r.Refresh(n.t.Context())
		var res Result
		res, errApply = n.r.Apply(n.t.Context(), want())
		n.told = append(n.told, res.Repairs...)
		changed, err = res.Changed, errors.Join(errList, errApply)
	})
	return changed, listed, err
}

// settle runs rounds until one has nothing to list or to change and the kernel holds all of the plan.
func (n *node) settle() {
	n.t.Helper()
	nettest.Eventually(n.t, func() error {
		changed, listed, err := n.round(n.want)
		if err != nil || changed > 0 || listed {
			return fmt.Errorf("changed %d, listed %v: %w", changed, listed, errors.Join(err, errors.New("not settled")))
		}
		return n.missing()
	})
}

// missing looks with the usual tools whether the kernel holds all of the plan.
func (n *node) missing() error {
	var missing []error
	for _, c := range []struct{ command, want string }{
		{"ip -d link show vxlan.calico", "mtu 1450"},
		{"ip -d link show vxlan.calico", "vxlan id 4096 local 172.30.0.1 dev eth0"},
		{"ip addr show vxlan.calico", "inet 10.244.0.0/32 scope global"},
		{"ip neigh show dev vxlan.calico", "10.244.1.0 lladdr 66:02:00:00:00:00 PERMANENT"},
		{"ip neigh show dev cali0", "10.244.0.5 lladdr 02:05:00:00:00:00 PERMANENT"},
		{"bridge fdb show dev vxlan.calico", "66:02:00:00:00:00 dst 172.30.0.3 self permanent"},
		{"ip route", "blackhole 10.244.0.0/26 proto 80"},
		{"ip route", "10.244.1.0/26 via 10.244.1.0 dev vxlan.calico proto 80 onlink"},
		{"ip route", "10.244.2.0/26 via 172.30.0.2 dev eth0 proto 80 onlink"},
		{"ip route", "10.244.0.5 dev cali0 proto 80 scope link metric 1024"},
		{"cat /proc/sys/net/ipv4/conf/cali0/proxy_arp", "1"},
		{"cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"ipset list cali40pools", "10.244.0.0/16"},
		{"iptables-nft -t nat -S POSTROUTING", "-j cali-POSTROUTING"},
		{"iptables-nft -t nat -S cali-POSTROUTING", "-j MASQUERADE --random-fully"},
	} {
		out, err := n.Try(strings.Fields(c.command)...)
		if err != nil || !strings.Contains(out, c.want) {
			missing = append(missing, fmt.Errorf("%s lacks %q: %w", c.command, c.want, errors.Join(err, errors.New(out))))
		}
	}
	return errors.Join(missing...)
}

// foreign adds objects of others, and returns a check that they are still there.
func (n *node) foreign() func() {
	n.Exec("ip", "route", "add", "10.99.0.0/16", "via", "172.30.0.9", "proto", "bird")
	n.Exec("ip", "neigh", "add", "172.30.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent")
	n.Exec("ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472")
	n.Exec("ipset", "create", "others", "hash:net")
	n.Exec("ip", "rule", "add", "from", "192.0.2.0/24", "lookup", "99")
	n.Exec("ip", "route", "add", "blackhole", "192.0.2.0/24", "table", "99", "proto", "80")
	n.Exec("bridge", "fdb", "add", "02:00:00:00:00:77", "dev", "flannel.1", "dst", "172.30.0.77")
	n.Exec("nft", "add table inet other; add chain inet other cali-not-ours; add rule inet other cali-not-ours accept")
	n.Exec("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.0/24", "-j", "MASQUERADE")
	return func() {
		n.t.Helper()
		for _, c := range []struct{ command, want string }{
			{"ip route", "10.99.0.0/16 via 172.30.0.9"},
			{"ip neigh show dev eth0", "172.30.0.9 lladdr"},
			{"ip addr show eth0", "172.30.0.1/24"},
			{"ip link", "flannel.1"},
			{"ipset list -n", "others"},
			{"iptables-nft -t nat -S POSTROUTING", "-s 192.0.2.0/24 -j MASQUERADE"},
		} {
			if out := n.Exec(strings.Fields(c.command)...); !strings.Contains(out, c.want) {
				n.t.Errorf("%s lacks %q:\n%s", c.command, c.want, out)
			}
		}
	}
}

// eventsUntilNow returns the events up to a change that this function makes itself and leaves out.
func (n *node) eventsUntilNow() kernel.Events {
	n.t.Helper()
	n.Exec("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	nettest.Eventually(n.t, func() error {
		if _, ok := n.monitor.Host().Holder(netip.MustParseAddr("198.51.100.1")); !ok {
			return errors.New("the monitor lags")
		}
		return nil
	})
	e := n.monitor.Events()
	n.Exec("ip", "addr", "del", "198.51.100.1/32", "dev", "lo")
	nettest.Eventually(n.t, func() error {
		if !n.monitor.Events().RoutesLost {
			return errors.New("the monitor lags")
		}
		return nil
	})
	return e
}

func TestNodeIsBuiltKeptAndSwept(t *testing.T) {
	n := newNode(t)
	intact := n.foreign()
	n.settle()
	n.eventsUntilNow()

	n.restart()
	n.Do(func() {
		if listed, err := n.r.Refresh(t.Context()); !listed || err != nil {
			t.Fatalf("listed %v, err %v", listed, err)
		}
		if res, err := n.r.Apply(t.Context(), n.want()); res.Changed != 0 || err != nil {
			t.Errorf("a fresh reconciler changes what is right: %+v, %v", res, err)
		}
	})
	if e := n.eventsUntilNow(); !e.Empty() {
		t.Errorf("the kernel saw writes: %+v", e)
	}
	if err := n.missing(); err != nil {
		t.Error(err)
	}

	n.restart()
	if _, _, err := n.round(kernel.NewState); err != nil {
		t.Fatal(err)
	}
	intact()
	left := n.Exec("ip", "link") + n.Exec("ip", "route") + n.Exec("ipset", "list") + n.Exec("iptables-nft-save") + n.Exec("ip", "neigh")
	for _, word := range []string{"vxlan.calico", "proto 80", "cali40", "cali-", "cali:", "10.244."} {
		if strings.Contains(left, word) {
			t.Errorf("%q is left:\n%s", word, left)
		}
	}
}

func TestOwnWritesCauseNoList(t *testing.T) {
	n := newNode(t)
	n.settle()
	n.eventsUntilNow()
	s := n.want()
	s.Routes[dst("10.244.9.0/26")] = blackhole
	s.Routes[dst("10.244.0.0/26")] = kernel.Route{Type: kernel.Unicast, Scope: kernel.LinkScope, Dev: s.Routes[dst("10.244.2.0/26")].Dev, Protocol: 80}
	delete(s.Routes, dst("10.244.2.0/26"))
	for k := range s.Neighs {
		s.Neighs[k] = kernel.MAC{2, 9}
	}
	if changed, _, err := n.round(func() kernel.State { return s }); changed < 5 || err != nil {
		t.Fatalf("changed %d, %v", changed, err)
	}
	if e := n.eventsUntilNow(); e.Empty() || n.r.Observe(e) {
		t.Errorf("own writes make a table dirty: %+v", e)
	}
}

// others is all that the namespace holds and that is not ours, as the usual tools print it. What changes by itself is left out.
func (n *node) others() string {
	var lines []string
	for _, c := range []string{"ip -d link", "ip addr", "ip route show table all", "ip -6 route show table all", "ip rule", "ip neigh show nud permanent", "bridge fdb", "ipset list", "iptables-nft-save", "nft list table inet other"} {
		for line := range strings.Lines(counters.ReplaceAllString(n.Exec(strings.Fields(c)...), "")) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && !ours.MatchString(line) {
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

var (
	counters = regexp.MustCompile(`\[\d+:\d+\]|(?m)^\d+: |(?m)^ .*|hashsize \d+ |initval 0x[0-9a-f]+|Size in memory: \d+|fe80::\S+|ff00::\S+`)
	ours     = regexp.MustCompile(`proto kernel .*pref medium|self permanent|cali|10\.244\.|proto 80|66:0|eth0.*172\.30\.0\.1\b`)
)

func TestWhatOthersChangeIsRepairedAndTold(t *testing.T) {
	n := newNode(t)
	n.foreign()
	n.settle()
	for _, c := range []struct{ spoil, object, found string }{
		{"ip route del 10.244.1.0/26", "10.244.1.0/26", "gone"},
		{"ip route replace 10.244.2.0/26 via 172.30.0.77 proto static", "10.244.2.0/26", "gone"},
		{"ip route replace 10.244.2.0/26 via 172.30.0.77 proto 80", "10.244.2.0/26", "changed to 10.244.2.0/26 via 172.30.0.77"},
		{"ip route add 10.77.0.0/16 via 172.30.0.2 proto 80", "10.77.0.0/16", "added by others: 10.77.0.0/16 via 172.30.0.2"},
		{"ip route del 10.244.0.5", "10.244.0.5/32", "gone"},
		{"ip route flush proto 80", "10.244.0.0/26", "gone"},
		{"ip neigh del 10.244.1.0 dev vxlan.calico", "10.244.1.0 dev vxlan.calico", "gone"},
		{"ip neigh replace 10.244.0.5 lladdr 02:99:00:00:00:00 dev cali0 nud permanent", "10.244.0.5 dev cali0", "changed to lladdr 02:99"},
		{"bridge fdb del 66:02:00:00:00:00 dev vxlan.calico dst 172.30.0.3", "66:02:00:00:00:00 dev vxlan.calico", "gone"},
		{"ip addr del 10.244.0.0/32 dev vxlan.calico", "10.244.0.0/32 dev vxlan.calico", "gone"},
		{"ip addr flush dev vxlan.calico", "10.244.0.0/32 dev vxlan.calico", "gone"},
		{"ip addr add 10.9.9.9/32 dev vxlan.calico", "10.9.9.9/32 dev vxlan.calico", "added by others"},
		{"ip link set vxlan.calico mtu 1300", "vxlan.calico", "changed to mtu 1300"},
		{"ip link set vxlan.calico down", "vxlan.calico", "changed to down"},
		{"ip link del vxlan.calico", "vxlan.calico", "gone"},
		{"rename ip link set vxlan.calico down name vx0", "vxlan.calico", "gone"},
		{"remake ip link add vxlan.calico type vxlan id 9 dstport 4789 dev eth0 local 172.30.0.1", "vxlan.calico", "changed to"},
		{"ip link set cali0 down", "10.244.0.5/32", "gone"},
		{"ip link set eth0 down", "10.244.2.0/26", "gone"},
		{"iptables-nft -t nat -F cali-POSTROUTING", "cali-POSTROUTING of table nat", "1 of 1 rule missing"},
		{"iptables-nft -t nat -I cali-POSTROUTING -j ACCEPT", "cali-POSTROUTING of table nat", "1 rule too many"},
		{"iptables-nft -t nat -D POSTROUTING 1", "POSTROUTING of table nat", "gone"},
		{"iptables-nft -t nat -I POSTROUTING -s 192.0.2.9 -j ACCEPT", "POSTROUTING of table nat", "1 rule of others where ours belong"},
		{"iptables-nft -t nat -N cali-stray", "cali-stray of table nat", "added by others"},
		{"write 0 net/ipv4/conf/cali0/proxy_arp", "net/ipv4/conf/cali0/proxy_arp", "changed to 0"},
		{"write 0 net/ipv4/ip_forward", "net/ipv4/ip_forward", "changed to 0"},
	} {
		t.Run(c.spoil, func(t *testing.T) {
			before := n.others()
			n.told = nil
			n.spoil(c.spoil)
			n.settle()
			n.tells(t, c.object, c.found)
			n.clear(c.spoil)
			if d := cmp.Diff(before, n.others()); d != "" {
				t.Errorf("what is others' differs (-before +after):\n%s", d)
			}
		})
	}
}

// spoil does what others do.
func (n *node) spoil(what string) {
	n.t.Helper()
	args := strings.Fields(what)
	switch args[0] {
	case "write":
		n.Exec("sh", "-c", "echo "+args[1]+" >/proc/sys/"+args[2])
		return
	case "rename":
		n.Exec("sh", "-c", strings.Join(args[1:], " ")+"; ip link set vx0 up")
		return
	case "remake":
		n.Exec("sh", "-c", "ip link del "+args[4]+" && "+strings.Join(args[1:], " "))
		return
	}
	n.Exec(args...)
	if strings.HasSuffix(what, "proto static") {
		n.Exec("ip", "route", "del", "10.244.2.0/26") // a foreign route in the way is not ours to remove
	}
	if dev := args[min(3, len(args)-1)]; strings.HasSuffix(what, "down") && dev != kernel.VXLANDevice {
		n.Exec("ip", "link", "set", dev, "up") // not ours to repair; what hung on it is
	}
}

// clear takes back what of a spoiling is others' to keep.
func (n *node) clear(what string) {
	switch {
	case strings.HasSuffix(what, "192.0.2.9 -j ACCEPT"):
		n.Exec("iptables-nft", "-t", "nat", "-D", "POSTROUTING", "-s", "192.0.2.9", "-j", "ACCEPT")
	case strings.HasSuffix(what, "eth0 down"):
		n.Exec("ip", "route", "add", "10.99.0.0/16", "via", "172.30.0.9", "proto", "bird")
		n.Exec("ip", "neigh", "add", "172.30.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent")
	}
}

// tells runs rounds until a repair is told, since its event may be under way.
func (n *node) tells(t *testing.T, object, found string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		for _, r := range n.told {
			if r.Object == object && strings.HasPrefix(r.Found, found) && r.Done != "" {
				return nil
			}
		}
		_, _, err := n.round(n.want)
		return errors.Join(err, fmt.Errorf("nothing is told of %s found %q: %+v", object, found, n.told))
	})
	n.settle()
}

// A firewall that is reloaded takes all rules with it, ours too.
func TestReloadedFirewallIsRepairedAndTold(t *testing.T) {
	n := newNode(t)
	n.settle()
	for _, reload := range []string{"iptables-nft -t nat -F", "nft flush ruleset", "nft delete table ip nat", "iptables-nft-restore"} {
		t.Run(reload, func(t *testing.T) {
			n.told = nil
			if reload == "iptables-nft-restore" {
				n.Exec("sh", "-c", "printf '*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE\nCOMMIT\n' | iptables-nft-restore")
			} else {
				n.Exec(strings.Fields(reload)...)
			}
			n.settle()
			n.tells(t, "POSTROUTING of table nat", "gone")
		})
	}
}

// No event tells of these: only the lists of a refresh find them.
func TestWhatNoEventTellsIsRepairedOnRefresh(t *testing.T) {
	n := newNode(t)
	n.settle()
	for _, c := range []struct {
		spoil, object, found string
		table                Name
	}{
		{"ipset flush cali40pools", "cali40pools", "1 of 1 member missing", Sets},
		{"ipset add cali40pools 192.0.2.0/24", "cali40pools", "1 member too many", Sets},
		{"ipset create cali40stray hash:net", "cali40stray", "added by others", Sets},
		{"write 0 net/ipv4/conf/cali0/route_localnet", "net/ipv4/conf/cali0/route_localnet", "changed to 0", Sysctls},
	} {
		n.told = nil
		n.spoil(c.spoil)
		n.r.MarkDirty(c.table)
		n.settle()
		n.tells(t, c.object, c.found)
	}
}

// What the wanted state asks for is no repair, nor is it when we make a device anew ourselves.
func TestWhatIsWantedOtherwiseIsNoRepair(t *testing.T) {
	n := newNode(t)
	n.settle()
	n.told = nil
	other := func() kernel.State {
		s := n.want()
		if l, ok := s.Links[kernel.VXLANDevice]; ok {
			l.VNI = 4097
			s.Links[kernel.VXLANDevice] = l
		}
		delete(s.Routes, dst("10.244.0.0/26"))
		return s
	}
	nettest.Eventually(t, func() error {
		changed, listed, err := n.round(other)
		if err != nil || changed > 0 || listed || !strings.Contains(n.Exec("ip", "route"), "10.244.1.0/26 via 10.244.1.0 dev vxlan.calico") {
			return fmt.Errorf("changed %d: %w", changed, errors.Join(err, errors.New("not settled")))
		}
		return nil
	})
	n.Exec("ip", "link", "del", "cali0") // as a pod ends
	n.eventsUntilGone("cali0")
	if _, _, err := n.round(other); err != nil {
		t.Fatal(err)
	}
	if len(n.told) > 0 {
		t.Errorf("told as repairs: %+v", n.told)
	}
}

// The kernel takes the routes of a device with its last IPv4 address. When that goes by our own doing nobody else is to blame, and they come back
// in the same turn.
func TestRoutesThatGoWithATunnelAddressComeBackAndAreNoRepair(t *testing.T) {
	n := newNode(t)
	n.settle()
	n.told = nil
	without := func() kernel.State {
		s := n.want()
		clear(s.Addrs)
		return s
	}
	if _, _, err := n.round(without); err != nil {
		t.Fatal(err)
	}
	if out := n.Exec("ip", "route"); !strings.Contains(out, "10.244.1.0/26 via 10.244.1.0 dev vxlan.calico") {
		t.Errorf("the tunnel's routes went with its address:\n%s", out)
	}
	n.settle()
	if len(n.told) > 0 {
		t.Errorf("told as repairs: %+v", n.told)
	}
}

// eventsUntilGone waits until the monitor knows that a device is gone.
func (n *node) eventsUntilGone(dev string) {
	n.t.Helper()
	nettest.Eventually(n.t, func() error {
		if _, ok := n.monitor.Host().Links[dev]; ok {
			return errors.New("the monitor lags")
		}
		return nil
	})
}

func TestSettledUntilSomethingHappens(t *testing.T) {
	n := newNode(t)
	if n.r.Settled() {
		t.Error("settled before anything was applied")
	}
	n.settle()
	for _, spoil := range []string{"ip route del 10.244.1.0/26", "ip link del vxlan.calico", "write 0 net/ipv4/ip_forward"} {
		if n.eventsUntilNow(); !n.r.Settled() {
			t.Fatal("not settled after the last round")
		}
		n.spoil(spoil)
		nettest.Eventually(t, func() error {
			if n.r.Observe(n.monitor.Events()); n.r.Settled() {
				return fmt.Errorf("settled after %q", spoil)
			}
			return nil
		})
		n.settle()
	}
}

func TestDeviceRemadeUnderItsNameGetsEverythingAgain(t *testing.T) {
	n := newNode(t)
	n.settle()
	before := n.Index("cali0")
	n.Exec("ip", "link", "del", "cali0")
	nettest.Pair(n.NS, "cali0", n.peer, "pod0")
	if n.Index("cali0") == before {
		t.Fatal("the new device has the old index")
	}
	n.settle()
}

func TestPartialFailureIsReportedAndRecovers(t *testing.T) {
	n := newNode(t)
	n.Exec("ip", "route", "add", "10.244.2.0/26", "via", "172.30.0.77", "proto", "static")
	var last error
	nettest.Eventually(t, func() error {
		_, _, last = n.round(n.want)
		missing := n.missing()
		if missing == nil || strings.Count(missing.Error(), "lacks") > 1 {
			return fmt.Errorf("want all but one: %w", errors.Join(missing, last))
		}
		return nil
	})
	if last == nil || !strings.Contains(last.Error(), "10.244.2.0/26") || !strings.Contains(last.Error(), "172.30.0.77") {
		t.Errorf("got %v", last)
	}
	n.Exec("ip", "route", "del", "10.244.2.0/26")
	n.settle()
}

func TestSpoiledSettingIsRepairedOnRefresh(t *testing.T) {
	n := newNode(t)
	n.settle()
	n.Exec("sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/cali0/proxy_arp")
	n.r.MarkDirty(Sysctls)
	if changed, listed, err := n.round(n.want); changed != 1 || !listed || err != nil {
		t.Errorf("changed %d, listed %v, %v", changed, listed, err)
	}
	n.settle()
}
