package cni

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
)

func (n *node) check(c conf, p *pod) (err error) {
	n.t.Helper()
	list := c.list(n.t)
	n.do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		err = n.libcni().CheckNetworkList(ctx, list, p.rt)
	})
	return err
}

const nginxEndpoint = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-nginx-eth0"

func TestCheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	d := newDatastore(n)
	const hostIf = "calic440f455693"
	for i, c := range []struct {
		name   string
		damage func(t *testing.T, p *pod)
		says   string // "": nothing is wrong
	}{
		{"nothing", func(*testing.T, *pod) {}, ""},
		{"more addresses than ours", func(_ *testing.T, p *pod) { p.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0") }, ""},
		{"interface", func(_ *testing.T, p *pod) { p.Exec("ip", "link", "del", "eth0") }, "interface eth0 is missing"},
		{"another interface", func(_ *testing.T, p *pod) {
			p.Exec("ip", "link", "del", "eth0")
			p.Exec("ip", "link", "add", "eth0", "type", "bridge")
		}, "eth0 is a bridge, want a veth device"},
		{"an interface without a MAC", func(_ *testing.T, p *pod) {
			p.Exec("ip", "link", "del", "eth0")
			p.Exec("ip", "tuntap", "add", "eth0", "mode", "tun")
		}, "eth0 is a tuntap, want a veth device"},
		{"state", func(_ *testing.T, p *pod) { p.Exec("ip", "link", "set", "eth0", "down") }, "eth0 is down"},
		{"MAC", func(_ *testing.T, p *pod) { p.Exec("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99") }, "has the MAC 02:00:00:00:00:99"},
		{"MTU", func(_ *testing.T, p *pod) { p.Exec("ip", "link", "set", "eth0", "mtu", "1300") }, "has the MTU 1300, "},
		{"address", func(_ *testing.T, p *pod) { p.Exec("ip", "addr", "flush", "dev", "eth0") }, "/32 is missing on eth0"},
		{"default route", func(_ *testing.T, p *pod) { p.Exec("ip", "route", "del", "default") }, "route 0.0.0.0/0 via 169.254.1.1 dev eth0 is missing"},
		{"gateway route", func(_ *testing.T, p *pod) {
			p.Exec("ip", "route", "flush", "dev", "eth0")
		}, "route 169.254.1.1/32 scope link dev eth0 is missing"},
		{"host's side down", func(*testing.T, *pod) { n.Exec("ip", "link", "set", hostIf, "down") }, hostIf + " is down"},
		{"host's side renamed", func(*testing.T, *pod) {
			n.Exec("ip", "link", "set", hostIf, "down")
			n.Exec("ip", "link", "set", hostIf, "name", "calithief")
		}, "interface " + hostIf + " is missing"},
		{"host's side of another pair", func(*testing.T, *pod) {
			n.Exec("ip", "link", "set", hostIf, "down")
			n.Exec("ip", "link", "set", hostIf, "name", "calithief")
			n.Exec("ip", "link", "add", hostIf, "up", "type", "veth", "peer", "name", "other")
		}, hostIf + " is not the other side"},
		{"host's route", func(*testing.T, *pod) { n.Exec("ip", "route", "flush", "dev", hostIf) }, "on the host are missing the route 10.244."},
		{"host's neighbour", func(*testing.T, *pod) { n.Exec("ip", "neigh", "flush", "nud", "permanent", "dev", hostIf) }, "on the host are missing the neighbour 10.244."},
		{"handle", func(_ *testing.T, p *pod) { d.put("/calico/ipam/v2/handle/hc-net."+p.id, "") }, "etcd has no /calico/ipam/v2/handle/hc-net."},
		{"block", func(*testing.T, *pod) { d.put("/calico/ipam/v2/assignment/", "") }, "none of them gives it one"},
		{"endpoint", func(*testing.T, *pod) { d.put(nginxEndpoint, "") }, "etcd has no " + nginxEndpoint},
		{"endpoint's container", func(t *testing.T, p *pod) {
			d.edit(nginxEndpoint, `"containerID":"`+p.id+`"`, `"containerID":"thief"`)
		}, "is another container's: thief"},
		{"endpoint's addresses", func(*testing.T, *pod) { d.edit(nginxEndpoint, `"ipNetworks":["10.244`, `"ipNetworks":["10.245`) }, "has the addresses 10.245."},
		{"network namespace", func(_ *testing.T, p *pod) { p.rt.NetNS = "/run/netns/gone" }, "network namespace is gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPod(t, fmt.Sprintf("c%d", i), "nginx")
			cf := d.conf(noWait + `,"mtu":1400`)
			n.mustAdd(cf, p)
			c.damage(t, p)
			err := n.check(cf, p)
			if c.says == "" && err != nil || c.says != "" && (codeOf(err) != attach.CodeMissing || !strings.Contains(fmt.Sprint(err), c.says) || !strings.Contains(fmt.Sprint(err), p.id)) {
				t.Errorf("got %d %v, want code %d with %q", codeOf(err), err, attach.CodeMissing, c.says)
			}
			n.mustDel(cf, p)
			for _, link := range n.links() {
				n.Exec("ip", "link", "del", link)
			}
		})
	}
}

// edit replaces text in a value.
func (d *datastore) edit(key, from, to string) {
	d.t.Helper()
	got, err := d.etcd.Get(d.t.Context(), key)
	if err != nil || len(got.Kvs) != 1 || !strings.Contains(string(got.Kvs[0].Value), from) {
		d.t.Fatalf("%s does not hold %s: %v, %v", key, from, got, err)
	}
	d.put(key, strings.Replace(string(got.Kvs[0].Value), from, to, 1))
}

func TestCheckAsksTheAgentAboutTheHost(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	var wrong *attach.Error
	a := (&fakeAgent{onLinked: func(l attach.Linked) *attach.Error {
		if l.Index != n.Index(l.HostIf) {
			t.Errorf("the agent is told of index %d of %s", l.Index, l.HostIf)
		}
		return wrong
	}}).start(n)
	n.mustAdd(conf{}, p)
	if err := n.check(conf{}, p); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if a.lastRequest().Verb != attach.Check {
		t.Errorf("the agent was asked %+v", a.lastRequest())
	}
	wrong = &attach.Error{Code: attach.CodeMissing, Msg: "no route"}
	if err := n.check(conf{}, p); codeOf(err) != attach.CodeMissing || !strings.Contains(fmt.Sprint(err), "no route") {
		t.Errorf("CHECK: got %v, want what the agent says", err)
	}
}

func TestCheckWithoutAgentOrEtcdIsToBeTriedAgain(t *testing.T) {
	t.Parallel() // it waits
	n, p := newNode(t), newPod(t, "c1", "nginx")
	d := newDatastore(n)
	n.mustAdd(d.conf(noWait), p)
	if err := n.check(d.conf(""), p); codeOf(err) != attach.CodeTryAgain || !strings.Contains(fmt.Sprint(err), "agent is not running") {
		t.Errorf("without agent: got %d %v, want code 11 that names it", codeOf(err), err)
	}
	d.Stop()
	if err := n.check(d.conf(noWait), p); codeOf(err) != attach.CodeTryAgain || !strings.Contains(fmt.Sprint(err), "etcd cannot be reached") {
		t.Errorf("without etcd: got %d %v, want code 11 that names it", codeOf(err), err)
	}
}

func TestCheckNeedsTheResultOfTheAdd(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	env := []string{"CNI_COMMAND=CHECK", "CNI_CONTAINERID=c1", "CNI_NETNS=" + p.Path(), "CNI_IFNAME=eth0"}
	for _, c := range []struct{ version, prev, says string }{
		{"1.0.0", "", `"code": 7`},
		{"1.0.0", `,"prevResult":null`, `"code": 7`},
		{"1.0.0", `,"prevResult":{"cniVersion":"1.0.0"}`, "lists no interface eth0"},
		{"1.0.0", `,"prevResult":[]`, `"code": 6`},
		{"0.3.1", "", "config version does not allow CHECK"},
	} {
		for _, plugin := range []string{"muslin", "muslin-ipam"} {
			if plugin == "muslin-ipam" && c.says == "lists no interface eth0" {
				continue // asks etcd first
			}
			stdin := fmt.Sprintf(`{"cniVersion":%q,"name":"n","type":"muslin","nodename":"node-1","nodename_file_optional":true,"etcd_endpoints":"http://127.0.0.1:1","ipam":{"type":"muslin-ipam"}%s}`, c.version, c.prev)
			if out, err := n.run(plugin, stdin, env...); err == nil || !strings.Contains(out, c.says) {
				t.Errorf("%s with %q: %v, %s; want %q", plugin, c.prev, err, out, c.says)
			}
		}
	}
}

func TestModuleChecksTheAllocationForForeignPlugins(t *testing.T) {
	n := newNode(t)
	d := newDatastore(n)
	stdin := func(more string) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"hc-net","type":"bridge","nodename_file_optional":true,"nodename":"node-1","etcd_endpoints":%q,"ipam":{"type":"muslin-ipam"}%s}`, d.url, more)
	}
	env := []string{"CNI_CONTAINERID=c1", "CNI_NETNS=/run/netns/c1", "CNI_IFNAME=eth0"}
	result, err := n.run("muslin-ipam", stdin(""), append(env, "CNI_COMMAND=ADD")...)
	if err != nil {
		t.Fatalf("ADD: %v, %s", err, result)
	}
	check := func(result string) (string, error) {
		return n.run("muslin-ipam", stdin(`,"prevResult":`+result), append(env, "CNI_COMMAND=CHECK")...)
	}
	if out, err := check(result); err != nil || out != "" {
		t.Errorf("CHECK: %v, %s; want success without a word", err, out)
	}
	if out, err := check(strings.Replace(result, "10.244.", "10.245.", 1)); err == nil || !strings.Contains(out, "and its result does not") {
		t.Errorf("CHECK of another address: %v, %s", err, out)
	}
	d.put("/calico/ipam/v2/handle/hc-net.c1", "")
	if out, err := check(result); err == nil || !strings.Contains(out, `"code": 104`) {
		t.Errorf("CHECK of what is not allocated: %v, %s", err, out)
	}
}
