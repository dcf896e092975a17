package cni

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// taking is an agent that gives pods the addresses that they bring.
func taking() *fakeAgent {
	return &fakeAgent{onAdd: func(req attach.Request, r *attach.Reply) { r.Addrs = req.Addrs }}
}

// hostLocal is the section of the CNI project's host-local module, which keeps its leases on the node's /run.
const hostLocal = `"nodename_file_optional":true,"nodename":"node-1","ipam":{"type":"host-local","dataDir":"/run/leases","ranges":[[{"subnet":"10.9.0.0/24"}],[{"subnet":"fd09::/64"}]]%s}`

func hostLocalConf(inIPAM, more string) conf {
	return conf{members: fmt.Sprintf(hostLocal, inIPAM) + more}
}

// leases lists the addresses that host-local has given out.
func (n *node) leases() (out []string) {
	n.t.Helper()
	n.do(func() {
		entries, err := os.ReadDir("/run/leases/hc-net")
		if err != nil && !os.IsNotExist(err) {
			n.t.Fatal(err)
		}
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err == nil {
				out = append(out, e.Name())
			}
		}
	})
	return out
}

func TestAddressesComeFromAForeignIPAM(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	a := taking().start(n)
	c := hostLocalConf("", "")
	res := n.mustAdd(c, p)
	req := a.lastRequest()
	if req.ForeignIPAM != "host-local" || fmt.Sprint(req.Addrs) != "[10.9.0.2 fd09::2]" {
		t.Errorf("the agent is told %+v", req)
	}
	if diff := cmp.Diff("default via 169.254.1.1 dev eth0\n169.254.1.1 dev eth0 scope link\n", squeeze(p.Exec("ip", "route"))); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	if got := p.Exec("ip", "-6", "route", "show", "default"); !strings.HasPrefix(got, "default via fe80::ecee:eeff:feee:eeee") {
		t.Errorf("IPv6 default route is %q", got)
	}
	if got := fmt.Sprint(res.IPs[0].Address.String(), res.IPs[0].Gateway, res.IPs[1].Address.String()); got != "10.9.0.2/32<nil>fd09::2/128" && got != "10.9.0.2/32 <nil> fd09::2/128" {
		t.Errorf("result's addresses: %s", got)
	}
	if diff := cmp.Diff([]string{"10.9.0.2", "fd09::2"}, n.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
	if _, err := n.add(c, p); err == nil || !strings.Contains(err.Error(), "has an interface eth0 already") {
		t.Errorf("ADD again: %v, want a refusal", err)
	}
	if a.registered() != 1 || len(n.leases()) != 2 || len(n.links()) != 1 {
		t.Errorf("the refused ADD has changed something: %d, %v, %v", a.registered(), n.leases(), n.links())
	}
	for range 2 {
		n.mustDel(c, p)
		if got := n.leases(); len(got)+len(n.links())+a.registered() > 0 {
			t.Errorf("after DEL: leases %v, links %v, %d pods", got, n.links(), a.registered())
		}
	}
}

// What a container has is taken back also where nobody can say any more which range the node has.
func TestForeignIPAMGivesOutOfTheNodesRangeInKubernetes(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	a := taking()
	a.ranges = []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24"), netip.MustParsePrefix("fd08::/64")}
	a.start(n)
	c := conf{members: `"nodename_file_optional":true,"nodename":"node-1","ipam":{"type":"host-local","dataDir":"/run/leases","ranges":[[{"subnet":"usePodCidr"}],[{"subnet":"usePodCidrIPv6"}]]}`}
	n.mustAdd(c, p)
	if req := a.lastRequest(); fmt.Sprint(req.Addrs) != "[10.8.0.2 fd08::2]" {
		t.Errorf("the agent is told %+v", req)
	}
	a.mu.Lock()
	a.ranges = nil
	a.mu.Unlock()
	other := newPod(t, "c2", "late")
	if _, err := n.add(c, other); err == nil || !strings.Contains(err.Error(), "has given this node no range of that family") {
		t.Errorf("ADD without a range: %v", err)
	}
	n.mustDel(c, p)
	if got := n.leases(); len(got)+len(n.links())+a.registered() > 0 {
		t.Errorf("after DEL: leases %v, links %v, %d pods", got, n.links(), a.registered())
	}
}

func TestRoutesOfAForeignIPAMStandInForTheDefaultRoutes(t *testing.T) {
	const some = `,"routes":[{"dst":"10.0.0.0/8","gw":"10.9.0.1"},{"dst":"fd00::/8"}]`
	for _, c := range []struct{ inIPAM, more, want, want6 string }{
		{some, "", "10.0.0.0/8 via 169.254.1.1 dev eth0\n169.254.1.1 dev eth0 scope link\n", "fd00::/8 via fe80::ecee:eeff:feee:eeee dev eth0"},
		{some, `,"include_default_routes":true`, "default via 169.254.1.1 dev eth0\n10.0.0.0/8 via 169.254.1.1 dev eth0\n169.254.1.1 dev eth0 scope link\n", "default via fe80::ecee:eeff:feee:eeee dev eth0"},
		{`,"routes":[{"dst":"0.0.0.0/0"}]`, `,"include_default_routes":true`, "default via 169.254.1.1 dev eth0\n169.254.1.1 dev eth0 scope link\n", "default via fe80::ecee:eeff:feee:eeee dev eth0"},
	} {
		n, p := newNode(t), newPod(t, "c1", "nginx")
		taking().start(n)
		n.mustAdd(hostLocalConf(c.inIPAM, c.more), p)
		if diff := cmp.Diff(c.want, squeeze(p.Exec("ip", "route"))); diff != "" {
			t.Errorf("%s%s (-want +got):\n%s", c.inIPAM, c.more, diff)
		}
		if got := p.Exec("ip", "-6", "route"); !strings.Contains(got, c.want6) {
			t.Errorf("%s%s: IPv6 routes are %s", c.inIPAM, c.more, got)
		}
	}
}

func TestFailedAddEndsTheLease(t *testing.T) {
	for name, agent := range map[string]*fakeAgent{
		"refused": {onAdd: func(_ attach.Request, r *attach.Reply) {
			r.Error = &attach.Error{Code: attach.CodeTryAgain, Msg: "not ready"}
		}},
		"etcd away": {onAdd: func(_ attach.Request, r *attach.Reply) {
			r.Error = &attach.Error{Code: attach.CodeDatastore, Msg: "etcd does not answer"}
		}},
		"not programmed": {
			onAdd:    func(req attach.Request, r *attach.Reply) { r.Addrs = req.Addrs },
			onLinked: func(attach.Linked) *attach.Error { return &attach.Error{Code: attach.CodeTryAgain, Msg: "no route"} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, p := newNode(t), newPod(t, "c1", "nginx")
			agent.start(n)
			if _, err := n.add(hostLocalConf("", ""), p); err == nil {
				t.Error("ADD succeeded")
			}
			if got := n.leases(); len(got)+len(n.links())+agent.registered() > 0 {
				t.Errorf("left behind: leases %v, links %v, %d pods", got, n.links(), agent.registered())
			}
		})
	}
}

func TestLeaseEndsWhereAnAnnotationGivesThePodOthers(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	(&fakeAgent{onAdd: func(_ attach.Request, r *attach.Reply) {
		r.Addrs = []netip.Addr{netip.MustParseAddr("10.200.0.1"), netip.MustParseAddr("fd20::1")}
	}}).start(n)
	c := conf{members: strings.Replace(fmt.Sprintf(hostLocal, ""), `,[{"subnet":"fd09::/64"}]`, "", 1)}
	n.mustAdd(c, p)
	if got := n.leases(); len(got) > 0 {
		t.Errorf("leases %v", got)
	}
	if got := p.Exec("ip", "-o", "addr", "show", "eth0"); !strings.Contains(got, "10.200.0.1/32") || !strings.Contains(got, "fd20::1/128") {
		t.Errorf("addresses %s", got)
	}
	n.mustDel(c, p)
}

func TestForeignIPAMsErrorsAreTold(t *testing.T) {
	n, p, q := newNode(t), newPod(t, "c1", "nginx"), newPod(t, "c2", "other")
	a := taking().start(n)
	c := conf{members: `"nodename_file_optional":true,"nodename":"node-1","ipam":{"type":"host-local","dataDir":"/run/leases","ranges":[[{"subnet":"10.9.0.0/30"}]]}`}
	n.mustAdd(c, p)
	if _, err := n.add(c, q); err == nil || !strings.Contains(err.Error(), "no IP addresses available") {
		t.Errorf("got %v, want host-local's own words", err)
	}
	if a.registered() != 1 || len(n.leases()) != 1 {
		t.Errorf("%d pods, leases %v", a.registered(), n.leases())
	}
	if _, err := n.add(conf{members: `"ipam":{"type":"nobodys-ipam"}`}, q); codeOf(err) != attach.CodeBadEnv || !strings.Contains(err.Error(), `find IPAM module "nobodys-ipam"`) {
		t.Errorf("got %v, want an error that names the module", err)
	}
}

func TestStaticAddressesAndDNSComeFromAForeignIPAM(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	taking().start(n)
	res := n.mustAdd(conf{version: "0.3.1", members: `"dns":{"nameservers":["10.0.0.10"]},"ipam":{"type":"static","addresses":[{"address":"10.9.0.7/24","gateway":"10.9.0.1"}],"dns":{"nameservers":["10.0.0.53"]}}`}, p)
	if len(res.IPs) != 1 || res.IPs[0].Address.String() != "10.9.0.7/32" || fmt.Sprint(res.DNS.Nameservers) != "[10.0.0.53]" {
		t.Errorf("result %s", toJSON(t, res))
	}
}

func TestWithoutAgentTheModuleRegistersForeignAddresses(t *testing.T) {
	t.Parallel() // it waits
	n, p := newNode(t), newPod(t, "c1", "nginx")
	d := newDatastore(n)
	c := hostLocalConf("", fmt.Sprintf(`,"etcd_endpoints":%q%s`, d.url, noWait))
	n.mustAdd(c, p)
	if got := n.Exec("ip", "route"); !strings.HasPrefix(got, "10.9.0.2 dev calic440f455693 proto 80") {
		t.Errorf("routes are %s", got)
	}
	if diff := cmp.Diff([]string{"/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-nginx-eth0"}, d.keys()); diff != "" || d.allocated() != 0 {
		t.Errorf("%d addresses allocated; keys (-want +got):\n%s", d.allocated(), diff)
	}
	d.Stop()
	if err := n.del(c, p); codeOf(err) != attach.CodeDatastore || len(n.leases()) != 2 {
		t.Errorf("DEL without etcd: %v, leases %v; want the lease to last as long as the endpoint", err, n.leases())
	}
	d.Start()
	n.mustDel(c, p)
	d.wantNothing()
	if got := n.leases(); len(got) > 0 {
		t.Errorf("leases after DEL: %v", got)
	}
}

// TestConfigurationsInUseAttachPods takes internal/cni/netconf's examples as they are written.
func TestConfigurationsInUseAttachPods(t *testing.T) {
	files, err := filepath.Glob("netconf/testdata/*.conf*")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			n, p := newNode(t), newPod(t, "c1", "nginx")
			a := (&fakeAgent{}).start(n)
			n.write("/var/lib/calico/nodename", "node-1")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			version := attachAndDetach(t, n, p, a, strings.HasSuffix(file, ".conflist"), b)
			if !strings.Contains(string(b), `"`+version+`"`) && version != "0.2.0" {
				t.Errorf("the result has version %s", version)
			}
		})
	}
}

// attachAndDetach runs a configuration through libcni and returns the version of the result.
func attachAndDetach(t *testing.T, n *node, p *pod, a *fakeAgent, isList bool, b []byte) (version string) {
	t.Helper()
	n.do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		var add func() (types.Result, error)
		var del func() error
		if isList {
			list, err := libcni.NetworkConfFromBytes(b)
			if err != nil {
				t.Fatal(err)
			}
			add = func() (types.Result, error) { return n.libcni().AddNetworkList(ctx, list, p.rt) }
			del = func() error { return n.libcni().DelNetworkList(ctx, list, p.rt) }
		} else {
			single, err := libcni.NetworkPluginConfFromBytes(b)
			if err != nil {
				t.Fatal(err)
			}
			add = func() (types.Result, error) { return n.libcni().AddNetwork(ctx, single, p.rt) }
			del = func() error { return n.libcni().DelNetwork(ctx, single, p.rt) }
		}
		res, err := add()
		if err != nil {
			t.Fatal(err)
		}
		version = res.Version()
		if full, err := types100.NewResultFromResult(res); err != nil || len(full.IPs) == 0 || a.registered() != 1 {
			t.Errorf("result %v, %v; %d pods", res, err, a.registered())
		}
		if err := del(); err != nil || a.registered() != 0 {
			t.Errorf("DEL: %v; %d pods", err, a.registered())
		}
	})
	return version
}

func TestForeignMainPluginsGetAddressesFromOurModule(t *testing.T) {
	t.Parallel() // it waits
	for name, plugin := range map[string]string{
		"bridge":  `"type":"bridge","bridge":"cni0"`,
		"macvlan": `"type":"macvlan","master":"parent","mode":"bridge"`,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if name == "macvlan" {
				nettest.Need(t, "macvlan")
				nettest.Pair(n.NS, "parent", n.NS, "other")
			}
			d := newDatastore(n)
			if _, err := d.etcd.Put(t.Context(), "/calico/resources/v3/projectcalico.org/ippools/six", `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"six","uid":"4"},"spec":{"cidr":"fd00:10::/48"}}`); err != nil {
				t.Fatal(err)
			}
			list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil,
				`{"cniVersion":"1.0.0","name":"hc-net","plugins":[{%s,"nodename_file_optional":true,"nodename":"node-1","etcd_endpoints":%q,"ipam":{"type":"calico-ipam","assign_ipv6":"true"}}]}`, plugin, d.url))
			if err != nil {
				t.Fatal(err)
			}
			p, q := newPod(t, "c1", "nginx"), newPod(t, "c2", "other")
			addrs := map[*pod][]string{}
			n.do(func() {
				ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
				defer cancel()
				for _, pod := range []*pod{p, q} {
					res, err := n.libcni().AddNetworkList(ctx, list, pod.rt)
					if err != nil {
						t.Fatal(err)
					}
					full, err := types100.NewResultFromResult(res)
					if err != nil || len(full.IPs) != 2 {
						t.Fatalf("%v, %v", full, err)
					}
					for _, ip := range full.IPs {
						addrs[pod] = append(addrs[pod], ip.Address.String())
					}
				}
			})
			if diff := cmp.Diff([]string{"/calico/ipam/v2/handle/hc-net.c1", "/calico/ipam/v2/handle/hc-net.c2"}, d.keysBut("/ippools/six")); diff != "" || d.allocated() != 4 {
				t.Errorf("%d addresses allocated; keys (-want +got):\n%s", d.allocated(), diff)
			}
			for i, length := range []string{"/26", "/122"} {
				if got := p.Exec("ip", "-o", "addr", "show", "eth0"); !strings.HasSuffix(addrs[p][i], length) || !strings.Contains(got, addrs[p][i]) {
					t.Errorf("result %v; the pod has %s", addrs[p], got)
				}
				to := strings.TrimSuffix(addrs[q][i], length)
				nettest.Eventually(t, func() error { // once duplicate address detection is over; who begins before may hang
					_, err := p.Try("timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+to+"/7777")
					if err == nil || !strings.Contains(err.Error(), "refused") {
						return fmt.Errorf("connect to a closed port of %s: %s, want it refused: packets go both ways", to, fmt.Sprint(err))
					}
					return nil
				})
			}
			n.do(func() {
				ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
				defer cancel()
				for _, pod := range []*pod{p, q, p} {
					if err := n.libcni().DelNetworkList(ctx, list, pod.rt); err != nil {
						t.Error(err)
					}
				}
			})
			if keys := d.keysBut("/ippools/six"); len(keys) > 0 || d.allocated() > 0 {
				t.Errorf("left in etcd: %v and %d addresses", keys, d.allocated())
			}
		})
	}
}

// keysBut is keys without those that end with suffix.
func (d *datastore) keysBut(suffix string) (out []string) {
	d.t.Helper()
	for _, key := range d.keys() {
		if !strings.HasSuffix(key, suffix) {
			out = append(out, key)
		}
	}
	return out
}

func TestCheckAndGCReachTheForeignIPAMToo(t *testing.T) {
	n, p, q := newNode(t), newPod(t, "c1", "nginx"), newPod(t, "c2", "other")
	d := newDatastore(n)
	c := hostLocalConf(`,"routes":[{"dst":"10.0.0.0/8"},{"dst":"fd00::/8"}]`, fmt.Sprintf(`,"etcd_endpoints":%q%s`, d.url, noWait))
	n.mustAdd(c, p)
	n.mustAdd(c, q)
	if err := n.check(c, p); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	n.mustGC(c, "c2")
	if len(d.keys()) != 1 || len(n.links()) != 1 { // the leases are the module's: this host-local has no GC
		t.Errorf("after GC: keys %v, links %v; want one pod's", d.keys(), n.links())
	}
	if err := n.check(c, q); err != nil {
		t.Errorf("CHECK of the pod that lives: %v", err)
	}
	n.do(func() {
		if err := os.RemoveAll("/run/leases"); err != nil {
			t.Fatal(err)
		}
	})
	if err := n.check(c, q); err == nil || !strings.Contains(err.Error(), "host-local") {
		t.Errorf("CHECK without a lease: %v, want host-local's own words", err)
	}
}
