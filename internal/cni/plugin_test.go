package cni

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// squeeze takes out of ip's output what differs from machine to machine.
func squeeze(s string) string {
	for _, r := range []struct{ pattern, with string }{
		{`(?m)[ \t]+$`, ""},
		{`if\d+`, "ifN"},
		{`(?m)^\d+: `, ""},
		{` link-netns\w+ \S+`, ""},
		{`fe80::[0-9a-f:]+/64`, "fe80::LL/64"},
	} {
		s = regexp.MustCompile(r.pattern).ReplaceAllString(s, r.with)
	}
	return s
}

func TestAddGivesThePodTheInterfaceThatCalicoGives(t *testing.T) {
	n, p := newNode(t), newPod(t, "hcx-0", "")
	(&fakeAgent{onAdd: func(_ attach.Request, r *attach.Reply) { r.MAC = "42:22:76:e0:4d:73" }}).start(n)
	res := n.mustAdd(conf{members: `"mtu":1450,` + usual}, p)

	for _, c := range []struct {
		ns   *nettest.NS
		args string
		want string
	}{
		{p.NS, "ip -4 -o addr show eth0", "eth0    inet 10.244.62.192/32 scope global eth0\\       valid_lft forever preferred_lft forever\n"},
		{p.NS, "ip -o link show eth0", `eth0@ifN: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP mode DEFAULT group default qlen 1000\    link/ether 42:22:76:e0:4d:73 brd ff:ff:ff:ff:ff:ff` + "\n"},
		{p.NS, "ip route", "default via 169.254.1.1 dev eth0\n169.254.1.1 dev eth0 scope link\n"},
		{p.NS, "cat /proc/sys/net/ipv4/ip_forward", "0\n"},
		{n.NS, "ip -o link show calihcx-0", `calihcx-0@ifN: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP mode DEFAULT group default qlen 1000\    link/ether ee:ee:ee:ee:ee:ee brd ff:ff:ff:ff:ff:ff` + "\n"},
		{n.NS, "ip route", ""}, // the agent's business
		{n.NS, "cat /proc/sys/net/ipv4/conf/calihcx-0/proxy_arp", "0\n"}, // the agent's business
	} {
		if diff := cmp.Diff(c.want, squeeze(c.ns.Exec(strings.Fields(c.args)...))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.args, diff)
		}
	}
	want := `{
  "cniVersion": "1.1.0",
  "interfaces": [
    {
      "mac": "ee:ee:ee:ee:ee:ee",
      "mtu": 1450,
      "name": "calihcx-0"
    },
    {
      "mac": "42:22:76:e0:4d:73",
      "mtu": 1450,
      "name": "eth0",
      "sandbox": "` + p.Path() + `"
    }
  ],
  "ips": [
    {
      "address": "10.244.62.192/32",
      "interface": 1
    }
  ],
  "routes": [
    {
      "dst": "169.254.1.1/32"
    },
    {
      "dst": "0.0.0.0/0",
      "gw": "169.254.1.1"
    }
  ]
}
`
	if diff := cmp.Diff(want, toJSON(t, res)); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestAddTellsTheAgentEverythingAboutThePod(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	a := (&fakeAgent{}).start(n)
	p.rt.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{"cni.projectcalico.org/ipv4pools": `["blue"]`, hwAddrAnnotation: "02:00:00:00:00:07"}}
	n.mustAdd(conf{members: usual[:len(usual)-1] + `},"args":{"cni":{"labels":[{"key":"app","value":"web"}]}}`}, p)
	want := attach.Request{
		Version: 1, Verb: attach.Add, Network: "hc-net", ContainerID: "c1", IfName: "eth0", HostIf: "calic440f455693", MAC: "02:00:00:00:00:07",
		Netns: p.Path(), Pod: attach.Pod{Namespace: "default", Name: "nginx", UID: "u-c1"}, AssignIPv4: true,
		Labels:      attach.Strings{"app": "web"},
		Annotations: attach.Strings{"cni.projectcalico.org/ipv4pools": `["blue"]`, hwAddrAnnotation: "02:00:00:00:00:07"},
	}
	if diff := cmp.Diff(want, a.lastRequest()); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if got := p.Exec("cat", "/sys/class/net/eth0/address"); !strings.Contains(p.Exec("ip", "link", "show", "eth0"), "02:00:00:00:00:07") {
		t.Errorf("the pod's MAC is %s", got)
	}
}

func TestAddHeedsTheSettingsOfTheInterface(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	(&fakeAgent{}).start(n)
	n.write("/var/lib/calico/mtu", "1390\n")
	n.mustAdd(conf{members: usual + `,"num_queues":3,"container_settings":{"allow_ip_forwarding":true}`}, p)
	if got := p.Exec("ip", "-d", "link", "show", "eth0"); !strings.Contains(got, "mtu 1390") || !strings.Contains(got, "numtxqueues 3 numrxqueues 3") {
		t.Errorf("want MTU 1390 and 3 queues, got %s", got)
	}
	if got := n.Exec("ip", "-d", "link", "show", "calic1"); !strings.Contains(got, "mtu 1390") || !strings.Contains(got, "numtxqueues 3 numrxqueues 3") {
		t.Errorf("want MTU 1390 and 3 queues, got %s", got)
	}
	if got := p.Exec("cat", "/proc/sys/net/ipv4/ip_forward"); got != "1\n" {
		t.Errorf("ip_forward is %q, want 1", got)
	}
}

func TestAddGivesIPv6AddressesAUsableRoute(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	for _, ns := range []*nettest.NS{n.NS, p.NS} { // as on hosts that are careful with IPv6
		ns.Exec("sh", "-c", "cd /proc/sys/net/ipv6/conf && echo 1 >default/disable_ipv6 && echo 1 >default/accept_dad && echo 1 >default/addr_gen_mode")
	}
	(&fakeAgent{v6: true}).start(n)
	n.mustAdd(conf{members: `"ipam":{"type":"calico-ipam","assign_ipv6":"true"}`}, p)
	if got := p.Exec("ip", "-6", "route", "show", "default"); !strings.HasPrefix(got, "default via fe80::ecee:eeff:feee:eeee dev eth0") {
		t.Errorf("IPv6 default route is %q", got)
	}
	if got := p.Exec("ip", "-6", "-o", "addr", "show", "eth0", "scope", "global"); !strings.Contains(got, "fd00:10:244::c0/128") || strings.Contains(got, "tentative") {
		t.Errorf("IPv6 addresses are %q", got)
	}
	if got := p.Exec("ip", "-6", "neigh", "show", "nud", "permanent"); !strings.Contains(got, "fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee") {
		t.Errorf("the pod's neighbours are %q", got)
	}
	if got := p.Exec("cat", "/proc/sys/net/ipv6/conf/all/forwarding"); got != "0\n" {
		t.Errorf("the pod forwards IPv6: %q", got)
	}
	nettest.Eventually(t, func() error { // the kernel makes it a moment after the carrier came
		got := n.Exec("ip", "-6", "-o", "addr", "show", "dev", n.links()[0])
		if !strings.Contains(got, "fe80::ecee:eeff:feee:eeee/64") || strings.Contains(got, "tentative") {
			return fmt.Errorf("the host's side has %q", got)
		}
		return nil
	})
}

func TestIPv6OnlyPodHasNoIPv4(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	(&fakeAgent{v6: true, onAdd: func(_ attach.Request, r *attach.Reply) { r.Addrs = r.Addrs[1:] }}).start(n)
	res := n.mustAdd(conf{members: `"ipam":{"type":"calico-ipam","assign_ipv4":"false","assign_ipv6":"true"},"container_settings":{"allow_ip_forwarding":true}`}, p)
	if len(res.IPs) != 1 || res.IPs[0].Address.String() != "fd00:10:244::c0/128" {
		t.Errorf("the result's addresses are %v", res.IPs)
	}
	if got := p.Exec("ip", "-4", "-o", "addr", "show", "eth0") + p.Exec("ip", "-4", "route"); got != "" {
		t.Errorf("the pod has IPv4: %q", got)
	}
	if got := p.Exec("cat", "/proc/sys/net/ipv6/conf/all/forwarding"); got != "1\n" {
		t.Errorf("the pod's IPv6 forwarding is %q, want 1", got)
	}
}

func TestPodAndHostReachEachOther(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	(&fakeAgent{onLinked: func(l attach.Linked) *attach.Error {
		n.Exec("ip", "route", "add", "10.244.62.192/32", "dev", l.HostIf, "scope", "link")
		n.Exec("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/"+l.HostIf+"/proxy_arp")
		n.Exec("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
		return nil
	}}).start(n)
	nettest.Pair(n.NS, "eth0", nettest.New(t), "eth0") // proxy ARP answers for what the host has a route to
	n.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	n.Exec("ip", "route", "add", "default", "via", "192.0.2.254")
	n.mustAdd(conf{}, p)
	_, err := p.Try("bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/7777")
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("connect to a closed port of the host: got %v, want it refused: packets go both ways", err)
	}
}

func TestDelRemovesThePodAndMayBeRepeated(t *testing.T) {
	for _, c := range []struct {
		name  string
		netns func(string) string
	}{
		{"namespace present", func(p string) string { return p }},
		{"namespace not named", func(string) string { return "" }},
		{"namespace gone", func(string) string { return "/run/netns/gone" }},
		{"namespace unmounted", func(string) string { return "/run/empty" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, p := newNode(t), newPod(t, "c1", "nginx")
			a := (&fakeAgent{}).start(n)
			n.write("/run/empty", "")
			n.mustAdd(conf{}, p)
			n.mustDel(conf{}, p)
			if got := n.links(); len(got) > 0 || a.registered() != 0 {
				t.Fatalf("after DEL: links %v, %d pods with the agent", got, a.registered())
			}
			p.rt.NetNS = c.netns(p.rt.NetNS)
			n.mustDel(conf{}, p)
			n.mustDel(conf{}, newPod(t, "never-added", "other"))
		})
	}
}

// TestDelSucceedsWhereAnAddIsRefused: a pod whose ADD cannot succeed must not stay for ever because its DEL cannot either. (The host's own
// namespace is the CNI library's to refuse, which does so for DEL too.)
func TestDelSucceedsWhereAnAddIsRefused(t *testing.T) {
	n := newNode(t)
	(&fakeAgent{}).start(n)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, netns := range map[string]string{"a file": file, "below a file": file + "/net", "none": "/run/netns/none", "not of a network": "/proc/self/ns/mnt"} {
		p := newPod(t, "c1", "nginx")
		p.rt.NetNS = netns
		if _, err := n.add(conf{}, p); codeOf(err) != attach.CodeBadEnv {
			t.Errorf("%s: ADD: got %d %v, want code 4", name, codeOf(err), err)
		}
		if err := n.del(conf{}, p); err != nil {
			t.Errorf("%s: DEL: %v", name, err)
		}
	}
}

func TestDelOfAnOldContainerSparesTheNewOne(t *testing.T) {
	n, old, young := newNode(t), newPod(t, "old", "nginx"), newPod(t, "young", "nginx")
	a := (&fakeAgent{}).start(n)
	n.mustAdd(conf{}, old)
	n.mustAdd(conf{}, young)
	before := n.Exec("ip", "-o", "link", "show", "calic440f455693")
	n.mustDel(conf{}, old)
	if after := n.Exec("ip", "-o", "link", "show", "calic440f455693"); after != before {
		t.Errorf("interface of the new container was\n%s and is\n%s", before, after)
	}
	if got := young.Exec("ip", "route"); got == "" {
		t.Error("the new container has no routes any more")
	}
	if a.registered() != 1 {
		t.Errorf("%d pods with the agent, want 1", a.registered())
	}
}

func TestAddAgainKeepsAddressAndMAC(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	(&fakeAgent{}).start(n)
	first, second := n.mustAdd(conf{}, p), n.mustAdd(conf{}, p)
	if diff := cmp.Diff(toJSON(t, first), toJSON(t, second)); diff != "" {
		t.Errorf("second ADD (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"calic440f455693"}, n.links()); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	if got := p.Exec("ip", "link", "show", "eth0"); !strings.Contains(got, first.Interfaces[1].Mac) {
		t.Errorf("want MAC %s, got %s", first.Interfaces[1].Mac, got)
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	t.Parallel() // it waits
	for _, c := range []struct {
		name  string
		agent *fakeAgent // nil: one that works
		conf  conf
		prep  func(*node, *pod)
		code  uint
		says  string
	}{
		{name: "agent has no address", code: attach.CodeNoAddress, says: "pools are full", agent: &fakeAgent{onAdd: func(_ attach.Request, r *attach.Reply) {
			r.Error = &attach.Error{Code: attach.CodeNoAddress, Msg: "pools are full", Details: "add a pool"}
		}}},
		{name: "agent gives no address", code: attach.CodeNoAddress, says: "holds no address", agent: &fakeAgent{onAdd: func(_ attach.Request, r *attach.Reply) { r.Addrs = nil }}},
		{name: "agent gives a bad MAC", code: attach.CodeInternal, says: "parse MAC", agent: &fakeAgent{onAdd: func(_ attach.Request, r *attach.Reply) { r.MAC = "x" }}},
		{name: "agent cannot program", code: attach.CodeTryAgain, says: "no route", agent: &fakeAgent{onLinked: func(attach.Linked) *attach.Error {
			return &attach.Error{Code: attach.CodeTryAgain, Msg: "no route"}
		}}},
		{name: "agent hangs up", code: attach.CodeTryAgain, says: "EOF", agent: &fakeAgent{hangUp: true}},
		{name: "agent never answers", code: attach.CodeTryAgain, says: "no answer within 1s", agent: &fakeAgent{hangAdd: true}, conf: conf{plugin: hurried}},
		{name: "agent never programs", code: attach.CodeTryAgain, says: "no answer within 1s", agent: &fakeAgent{hangLinks: true}, conf: conf{plugin: hurried}},
		{name: "pod has another eth0", code: attach.CodeKernel, says: "not ours", prep: func(_ *node, p *pod) {
			p.Exec("ip", "link", "add", "eth0", "type", "bridge")
		}},
		{name: "pod has a default route", code: attach.CodeKernel, says: "add route 0.0.0.0/0", prep: func(_ *node, p *pod) {
			p.Exec("ip", "link", "add", "other", "type", "bridge")
			p.Exec("ip", "link", "set", "other", "up")
			p.Exec("ip", "route", "add", "default", "dev", "other")
		}},
		{name: "bad MAC annotation", code: attach.CodeBadConfig, says: hwAddrAnnotation, prep: func(_ *node, p *pod) {
			p.rt.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{hwAddrAnnotation: "01:00:5e:00:00:01"}}
		}},
		{name: "no such namespace", code: attach.CodeBadEnv, says: "/run/netns/none", prep: func(_ *node, p *pod) { p.rt.NetNS = "/run/netns/none" }},
		{name: "the host's own namespace", code: attach.CodeBadEnv, says: "the host's own", prep: func(n *node, p *pod) { p.rt.NetNS = n.Path() }},
		{name: "MTU too small for IPv6", code: attach.CodeKernel, says: "an MTU of 1200 has no IPv6", agent: &fakeAgent{v6: true},
			conf: conf{members: `"mtu":1200,"ipam":{"type":"calico-ipam","assign_ipv6":"true"}`}},
		{name: "MTU file unreadable", code: attach.CodeBadConfig, says: "holds", prep: func(n *node, _ *pod) { n.write("/var/lib/calico/mtu", "big") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, p := newNode(t), newPod(t, "c1", "nginx")
			if c.agent == nil {
				c.agent = &fakeAgent{}
			}
			c.agent.start(n)
			if c.prep != nil {
				c.prep(n, p)
			}
			_, err := n.add(c.conf, p)
			if codeOf(err) != c.code || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got error %d %v, want %d with %q", codeOf(err), err, c.code, c.says)
			}
			if got := n.links(); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
			if c.agent.registered() != 0 {
				t.Error("left behind: the pod's registration")
			}
		})
	}
}

func TestAddWithoutAgentFailsBeforeItAllocates(t *testing.T) {
	for _, name := range []string{"no socket", "nobody listens"} {
		t.Run(name, func(t *testing.T) {
			n, p := newNode(t), newPod(t, "c1", "nginx")
			if name == "nobody listens" {
				n.write(attach.Socket, "")
			}
			_, err := n.add(conf{}, p)
			if codeOf(err) != attach.CodeTryAgain || !strings.Contains(fmt.Sprint(err), "agent is not running on this node") {
				t.Errorf("got %d %v, want code 11 that names the agent", codeOf(err), err)
			}
			if got := n.links(); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

func TestLockedInterfaceIsLeftAlone(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	(&fakeAgent{}).start(n)
	var lock *attachlock.Lock
	n.do(func() {
		var err error
		if lock, err = attachlock.Acquire(context.Background(), attach.LockDir, "calic440f455693"); err != nil {
			t.Fatal(err)
		}
	})
	_, err := n.add(conf{plugin: hurried}, p)
	if codeOf(err) != attach.CodeTryAgain || !strings.Contains(fmt.Sprint(err), "another process holds it") {
		t.Errorf("got %v, want code 11 that names the lock", err)
	}
	n.do(lock.Release)
	n.mustAdd(conf{plugin: hurried}, p)
}

func TestAddHoldsTheLockUntilTheAgentHasProgrammed(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	var held bool
	(&fakeAgent{onLinked: func(l attach.Linked) *attach.Error {
		n.do(func() { held, _ = attachlock.Held(attach.LockDir, l.HostIf) })
		if want := n.Index(l.HostIf); l.Index != want {
			t.Errorf("the agent is told of index %d, it is %d", l.Index, want)
		}
		return nil
	}}).start(n)
	n.mustAdd(conf{}, p)
	if !held {
		t.Error("the lock was free while the agent programmed the interface")
	}
}

func TestHostsSideStaysTheAgentsWhereOneRuns(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	a := (&fakeAgent{}).start(n)
	n.mustAdd(conf{members: usual + noWait}, p)
	if got := n.Exec("ip", "route") + n.Exec("ip", "neigh"); got != "" || a.registered() != 1 {
		t.Errorf("the plugin wrote %q itself; %d pods with the agent", got, a.registered())
	}
}

func TestChosenMACsAreDistinctAndLocallyAdministered(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		m, err := chooseMAC(nil)
		if err != nil || m[0]&3 != 2 {
			t.Fatalf("%v, %v: want a locally administered MAC of one station", m, err)
		}
		seen[m.String()] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d distinct MACs of 1000", len(seen))
	}
}

// parallel makes pods, and returns a function that calls another on all of them at once and reports its errors.
func parallel(t *testing.T, count int) func(func(*pod) error) {
	t.Helper()
	pods := make([]*pod, count)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprintf("c%d", i), fmt.Sprintf("pod-%d", i))
	}
	return func(f func(*pod) error) {
		var wg sync.WaitGroup
		for _, p := range pods {
			wg.Go(func() {
				if err := f(p); err != nil {
					t.Errorf("%s: %v", p.id, err)
				}
			})
		}
		wg.Wait()
	}
}

func TestParallelAddsAndDelsOfManyPods(t *testing.T) {
	const count = 16
	n := newNode(t)
	a := (&fakeAgent{}).start(n)
	each := parallel(t, count)
	each(func(p *pod) error { _, err := n.add(conf{}, p); return err })
	if got := len(n.links()); got != count || a.registered() != count {
		t.Fatalf("%d links and %d pods with the agent, want %d", got, a.registered(), count)
	}
	each(func(p *pod) error { return n.del(conf{}, p) })
	if got := n.links(); len(got) > 0 || a.registered() != 0 {
		t.Fatalf("after DEL: links %v, %d pods with the agent", got, a.registered())
	}
}

func TestAddReplacesAnInterfaceThatAnEarlierPodLeft(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	(&fakeAgent{}).start(n)
	n.Exec("ip", "link", "add", "calic440f455693", "type", "veth", "peer", "name", "left")
	n.mustAdd(conf{}, p)
	if out, err := n.Try("ip", "link", "show", "left"); err == nil {
		t.Errorf("the old pair is still there: %s", out)
	}
}

func TestAddRefusesToReplaceAForeignInterface(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	(&fakeAgent{}).start(n)
	n.Exec("ip", "link", "add", "calic440f455693", "type", "bridge")
	if _, err := n.add(conf{}, p); !strings.Contains(fmt.Sprint(err), "no veth device but a bridge") {
		t.Errorf("got %v, want a refusal", err)
	}
	n.Exec("ip", "link", "show", "calic440f455693")
}

func TestPodRoutesOfAddressesOfBothFamilies(t *testing.T) {
	got := fmt.Sprint(podRoutes([]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, nil))
	want := "[169.254.1.1/32 scope link 0.0.0.0/0 via 169.254.1.1 ::/0 via fe80::ecee:eeff:feee:eeee]"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if hostside.MAC != "ee:ee:ee:ee:ee:ee" {
		t.Errorf("gateway6 belongs to another MAC than %s", hostside.MAC)
	}
}

func TestErrorOfAnAddThatCouldNotBeUndoneSaysSo(t *testing.T) {
	cause := &attach.Error{Code: attach.CodeKernel, Msg: "make veth pair", Details: "look at dmesg"}
	err := netconf.AsCNI(unclean(cause, os.ErrDeadlineExceeded))
	want := types.NewError(attach.CodeKernel, "make veth pair", "look at dmesg; moreover, this ADD could not be undone, DEL will do it: i/o timeout")
	if diff := cmp.Diff(want, err); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfigurationBoundsTheWaitForTheAgent(t *testing.T) {
	t.Parallel() // it waits
	n, p := newNode(t), newPod(t, "c1", "nginx")
	var told attach.Linked
	a := (&fakeAgent{onLinked: func(l attach.Linked) *attach.Error { told = l; return nil }}).start(n)
	n.mustAdd(conf{members: usual + `,"policy_setup_timeout_seconds":7`}, p)
	if told.Wait != 7 {
		t.Errorf("the agent is told of %d seconds, want 7", told.Wait)
	}
	n.mustDel(conf{}, p)
	a.hangLinks = true
	_, err := n.add(conf{members: usual + `,"policy_setup_timeout_seconds":1`}, p)
	if codeOf(err) != attach.CodeTryAgain || !strings.Contains(err.Error(), "no answer within 3s") { // the agent's second, and two to say so
		t.Errorf("got %d %v, want code 11 after the second", codeOf(err), err)
	}
	if got := n.links(); len(got)+a.registered() > 0 {
		t.Errorf("left behind: %v and %d pods", got, a.registered())
	}
}

func TestReadinessGatesAreTheAgentsToAsk(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	a := (&fakeAgent{}).start(n)
	n.mustAdd(conf{members: usual + `,"readiness_gates":["http://127.0.0.1:9099/readiness"]`}, p)
	if got := a.lastRequest().ReadinessGates; fmt.Sprint(got) != "[http://127.0.0.1:9099/readiness]" {
		t.Errorf("the agent is told of %v", got)
	}
}

func TestAgentThatAsksReadinessGatesHasMoreTime(t *testing.T) {
	asked, stop := make(chan struct{}), make(chan struct{})
	here, there := net.Pipe()
	defer here.Close()
	defer close(stop)
	go func() { // it takes the request, and answers after more than the plugin's usual turn
		defer there.Close()
		c := attach.NewConn(there)
		var req attach.Request
		if c.Receive(&req) != nil {
			return
		}
		close(asked)
		<-stop
	}()
	d := &agentDoor{turn: time.Millisecond, conn: here, msgs: attach.NewConn(here)}
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := d.register(ctx, attach.Request{ReadinessGates: []string{"http://a"}})()
		answered <- err
	}()
	defer cancel()
	<-asked
	select {
	case err := <-answered:
		t.Errorf("gave up after its usual turn: %v", err)
	case <-time.After(20 * time.Millisecond): // far more than the turn
	}
}

func TestStagesAreLoggedToTheFile(t *testing.T) {
	n, p, q := newNode(t), newPod(t, "c1", "nginx"), newPod(t, "c2", "other")
	a := (&fakeAgent{}).start(n)
	c := conf{members: usual + `,"log_level":"debug","log_file_path":"/run/log/cni.log","policy":{"type":"k8s","k8s_auth_token":"secret-token"}`}
	n.mustAdd(c, p)
	a.onAdd = func(_ attach.Request, r *attach.Reply) {
		r.Error = &attach.Error{Code: attach.CodeNoAddress, Msg: "pools are full"}
	}
	if _, err := n.add(c, q); err == nil {
		t.Fatal("ADD succeeded")
	}
	n.mustDel(c, p)
	var log string
	n.do(func() {
		b, err := os.ReadFile("/run/log/cni.log")
		if err != nil {
			t.Fatal(err)
		}
		log = string(b)
	})
	var got []string
	for line := range strings.Lines(log) {
		m := regexp.MustCompile(`level=(\w+) msg=("[^"]*"|\w+) program=muslin command=(\w+) container=(\w+) interface=eth0`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line %s", line)
		}
		got = append(got, strings.Join([]string{m[3], m[4], m[1], strings.Trim(m[2], `"`)}, " "))
	}
	want := []string{
		"ADD c1 DEBUG begin", "ADD c1 DEBUG locked, and door open", "ADD c1 DEBUG registered, and interface made", "ADD c1 DEBUG pod's side set",
		"ADD c1 DEBUG host's side in the kernel", "ADD c1 INFO done",
		"ADD c2 DEBUG begin", "ADD c2 DEBUG locked, and door open", "ADD c2 ERROR failed",
		"DEL c1 DEBUG begin", "DEL c1 DEBUG interface removed", "DEL c1 DEBUG released", "DEL c1 INFO done",
	}
	if diff := cmp.Diff(want, got); diff != "" || strings.Contains(log, "secret-token") || !strings.Contains(log, "code=101 error=\"register pod with the agent: pools are full\"") {
		t.Errorf("log (-want +got):\n%s\nall of it:\n%s", diff, log)
	}
}

func TestPodWithTooMuchToSayIsRefusedAndForgotten(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	a := (&fakeAgent{}).start(n)
	c := conf{members: usual + `,"args":{"cni":{"labels":[{"key":"k","value":"` + strings.Repeat("x", 2<<20) + `"}]}}`}
	if _, err := n.add(c, p); codeOf(err) != attach.CodeBadConfig || !strings.Contains(fmt.Sprint(err), "longer than") || strings.Contains(fmt.Sprint(err), "undone") {
		t.Errorf("got %d %v, want code 7 and nothing left", codeOf(err), err)
	}
	n.mustDel(c, p)
	if links := n.links(); len(links) > 0 || a.registered() > 0 {
		t.Errorf("left behind: %v, %d registered", links, a.registered())
	}
}

// TestAddNeverCutsAnotherContainersWire: the host's side is named after the first characters of a container's id, or after its pod, so
// that two attachments can come to the same name.
func TestAddNeverCutsAnotherContainersWire(t *testing.T) {
	n := newNode(t)
	agent := (&fakeAgent{}).start(n)
	for name, c := range map[string]struct{ first, second *pod }{
		"ids that begin alike":            {newPod(t, "container-a-1", ""), newPod(t, "container-a-2", "")},
		"second interface of a pod":       {newPod(t, "c1", "web"), nil},
		"second interface of a container": {newPod(t, "container-b-1", ""), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if c.second == nil {
				rt := *c.first.rt
				rt.IfName = "eth1"
				c.second = &pod{NS: c.first.NS, id: c.first.id, rt: &rt}
			}
			n.mustAdd(conf{}, c.first)
			links, inside := n.links(), c.first.Exec("ip", "-o", "link", "show", "eth0")
			_, err := n.add(conf{}, c.second)
			if codeOf(err) != attach.CodeKernel || !strings.Contains(fmt.Sprint(err), "cali") {
				t.Errorf("got %d %v, want code %d that names the interface", codeOf(err), err, attach.CodeKernel)
			}
			if d := cmp.Diff(links, n.links()); d != "" || c.first.Exec("ip", "-o", "link", "show", "eth0") != inside {
				t.Errorf("the first one's wire is cut: %s", d)
			}
			if got := agent.registered(); got != 1 {
				t.Errorf("%d are registered", got)
			}
			n.mustAdd(conf{}, c.first) // again
			n.mustDel(conf{}, c.first)
		})
	}
}
