package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
)

// datastore is an etcd that a node reaches at an address of its own.
type datastore struct {
	*etcdtest.Server
	t    *testing.T
	etcd *clientv3.Client
	url  string // inside the node
}

// A cluster of one node, one pool and nothing else.
var seed = map[string]string{
	"/calico/resources/v3/projectcalico.org/ippools/blue":                `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"blue","uid":"1"},"spec":{"cidr":"10.244.0.0/16","vxlanMode":"Always"}}`,
	"/calico/resources/v3/projectcalico.org/nodes/node-1":                `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-1","uid":"2"},"spec":{"bgp":{"ipv4Address":"172.30.0.1/16"}},"status":{}}`,
	"/calico/resources/v3/projectcalico.org/clusterinformations/default": `{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default","uid":"3"},"spec":{"clusterGUID":"0","datastoreReady":true}}`,
}

func newDatastore(n *node) *datastore {
	n.t.Helper()
	return seeded(n, etcdtest.New(n.t))
}

// seeded is a server as the node's datastore.
func seeded(n *node, s *etcdtest.Server) *datastore {
	n.t.Helper()
	d := &datastore{Server: s, t: n.t}
	d.etcd = d.Etcd()
	for key, value := range seed {
		if _, err := d.etcd.Put(n.t.Context(), key, value); err != nil {
			n.t.Fatal(err)
		}
	}
	scheme, addr, _ := strings.Cut(d.Endpoint(), "://")
	d.url = scheme + "://" + forward(n, addr)
	return d
}

// forward hands the node's connections to a server outside, and returns the address inside.
func forward(n *node, to string) string {
	n.t.Helper()
	var l net.Listener
	n.do(func() {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			n.t.Fatal(err)
		}
	})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { join(c, to) })
		}
	})
	n.t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

// join copies both ways until either end closes.
func join(inside net.Conn, to string) {
	defer inside.Close()
	outside, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer outside.Close()
	go func() {
		_, _ = io.Copy(outside, inside)
		_ = outside.Close()
	}()
	_, _ = io.Copy(inside, outside)
}

// put writes a key, or deletes it where the value is "".
func (d *datastore) put(key, value string) {
	d.t.Helper()
	var err error
	if value == "" {
		_, err = d.etcd.Delete(d.t.Context(), key, clientv3.WithPrefix())
	} else {
		_, err = d.etcd.Put(d.t.Context(), key, value)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// keys returns the keys in etcd beyond the seed and what allocations leave: blocks and their affinities.
func (d *datastore) keys() (out []string) {
	d.t.Helper()
	res, err := d.etcd.Get(d.t.Context(), "/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		d.t.Fatal(err)
	}
	for _, kv := range res.Kvs {
		key := string(kv.Key)
		if _, seeded := seed[key]; !seeded && !strings.Contains(key, "/block/") && !strings.HasSuffix(key, "/profiles/hc-net") {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// allocated returns how many addresses the cluster's blocks have given out.
func (d *datastore) allocated() (count int) {
	d.t.Helper()
	res, err := d.etcd.Get(d.t.Context(), "/calico/ipam/v2/assignment/", clientv3.WithPrefix())
	if err != nil {
		d.t.Fatal(err)
	}
	for _, kv := range res.Kvs {
		var block struct{ Allocations []*int }
		if err := json.Unmarshal(kv.Value, &block); err != nil {
			d.t.Fatal(err)
		}
		for _, a := range block.Allocations {
			if a != nil {
				count++
			}
		}
	}
	return count
}

// conf is a configuration for this etcd with more members.
func (d *datastore) conf(more string) conf {
	return conf{members: fmt.Sprintf(`%s,"etcd_endpoints":%q%s`, usual, d.url, more)}
}

func (d *datastore) wantNothing() {
	d.t.Helper()
	if keys, count := d.keys(), d.allocated(); len(keys) > 0 || count > 0 {
		d.t.Errorf("left in etcd: %v and %d addresses", keys, count)
	}
}

const noWait = `,"policy_wait":"none"`

func TestWithoutAgentThePluginWritesWhatTheAgentWould(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	d := newDatastore(n)
	res := n.mustAdd(d.conf(noWait), p)
	addr := strings.TrimSuffix(res.IPs[0].Address.String(), "/32")
	for command, want := range map[string]string{
		"ip route": addr + " dev calic440f455693 proto 80 scope link metric 1024\n",
		"ip neigh": addr + " dev calic440f455693 lladdr " + res.Interfaces[1].Mac + " PERMANENT\n",
		"cat /proc/sys/net/ipv4/conf/calic440f455693/proxy_arp": "1\n",
	} {
		if diff := cmp.Diff(want, squeeze(n.Exec(strings.Fields(command)...))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", command, diff)
		}
	}
	endpoint := "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-nginx-eth0"
	if diff := cmp.Diff([]string{"/calico/ipam/v2/handle/hc-net.c1", endpoint}, d.keys()); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	got, err := d.etcd.Get(t.Context(), endpoint)
	if err != nil || len(got.Kvs) != 1 {
		t.Fatalf("endpoint: %v, %v", got, err)
	}
	for _, want := range []string{`"interfaceName":"calic440f455693"`, `"mac":"` + res.Interfaces[1].Mac + `"`, `"ipNetworks":["` + addr + `/32"]`} {
		if !strings.Contains(string(got.Kvs[0].Value), want) {
			t.Errorf("endpoint %s lacks %s", got.Kvs[0].Value, want)
		}
	}
	again := n.mustAdd(d.conf(noWait), p)
	if diff := cmp.Diff(toJSON(t, res), toJSON(t, again)); diff != "" {
		t.Errorf("second ADD (-first +second):\n%s", diff)
	}
	n.mustDel(d.conf(noWait), p)
	n.mustDel(d.conf(noWait), p)
	d.wantNothing()
	if got := n.Exec("ip", "route"); got != "" {
		t.Errorf("routes after DEL: %s", got)
	}
}

func TestWithoutAgentADualStackPodGetsBothFamilies(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	d := newDatastore(n)
	const pool = `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"six","uid":"6"},"spec":{"cidr":"fd00:244::/48"}}`
	if _, err := d.etcd.Put(t.Context(), "/calico/resources/v3/projectcalico.org/ippools/six", pool); err != nil {
		t.Fatal(err)
	}
	dual := conf{members: strings.Replace(d.conf(noWait).members, `"muslin-ipam"`, `"muslin-ipam","assign_ipv6":"true"`, 1)}
	res := n.mustAdd(dual, p)
	if len(res.IPs) != 2 {
		t.Fatalf("the result holds %v", res.IPs)
	}
	addr := strings.TrimSuffix(res.IPs[1].Address.String(), "/128")
	for command, want := range map[string]string{
		"ip -6 route show " + addr:                              addr + " dev calic440f455693 proto 80 metric 1024 pref medium\n",
		"ip -6 neigh show nud permanent":                        addr + " dev calic440f455693 lladdr " + res.Interfaces[1].Mac + " PERMANENT\n",
		"cat /proc/sys/net/ipv6/conf/calic440f455693/proxy_ndp": "1\n",
		"cat /proc/sys/net/ipv6/conf/calic440f455693/accept_ra": "0\n",
	} {
		if diff := cmp.Diff(want, squeeze(n.Exec(strings.Fields(command)...))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", command, diff)
		}
	}
	n.mustDel(dual, p)
	if count := d.allocated(); count != 0 {
		t.Errorf("%d addresses are left", count)
	}
}

func TestDelWorksWithoutAgent(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	d := newDatastore(n)
	n.mustAdd(d.conf(noWait), p)
	n.mustDel(d.conf(""), p)
	d.wantNothing()
}

func TestParallelAddsWithoutAgentGetDistinctAddresses(t *testing.T) {
	const count = 8
	n := newNode(t)
	d := newDatastore(n)
	each := parallel(t, count)
	each(func(p *pod) error { _, err := n.add(d.conf(noWait), p); return err })
	if routes := strings.Count(n.Exec("ip", "route"), "proto 80"); routes != count || d.allocated() != count {
		t.Errorf("%d routes and %d addresses, want %d", routes, d.allocated(), count)
	}
	each(func(p *pod) error { return n.del(d.conf(""), p) })
	d.wantNothing()
}

func TestLateDelLeavesTheNewContainersEndpointAndAddress(t *testing.T) {
	n, old, young := newNode(t), newPod(t, "old", "nginx"), newPod(t, "young", "nginx")
	d := newDatastore(n)
	first := n.mustAdd(d.conf(noWait), old)
	second := n.mustAdd(d.conf(noWait), young)
	if first.IPs[0].Address.String() == second.IPs[0].Address.String() {
		t.Errorf("both containers have %v while both live", first.IPs[0].Address)
	}
	n.mustDel(d.conf(""), old)
	if diff := cmp.Diff([]string{"hc-net.young"}, d.handles()); diff != "" || d.allocated() != 1 {
		t.Errorf("%d addresses, handles (-want +got):\n%s", d.allocated(), diff)
	}
	if err := n.check(d.conf(noWait), young); err != nil {
		t.Errorf("CHECK of the new container: %v", err)
	}
	n.mustDel(d.conf(""), young)
	n.mustDel(d.conf(""), newPod(t, "never-added", "nginx"))
	d.wantNothing()
}

func TestFailedAddLeavesNothingInEtcd(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	d := newDatastore(n)
	p.Exec("ip", "link", "add", "eth0", "type", "bridge")
	if _, err := n.add(d.conf(noWait), p); codeOf(err) != attach.CodeKernel {
		t.Fatalf("got %v, want a kernel error", err)
	}
	d.wantNothing()
}

func TestEtcdAwayIsToldAndDelFinishesLater(t *testing.T) {
	t.Parallel() // it waits
	n, p, q := newNode(t), newPod(t, "c1", "nginx"), newPod(t, "c2", "other")
	d := newDatastore(n)
	n.mustAdd(d.conf(noWait), p)
	d.Stop()
	if _, err := n.add(d.conf(noWait), q); codeOf(err) != attach.CodeDatastore || strings.Contains(err.Error(), "undone") {
		t.Errorf("ADD: got %d %v, want code 100 and no word of undoing what was not done", codeOf(err), err)
	}
	if err := n.del(d.conf(""), p); codeOf(err) != attach.CodeDatastore {
		t.Errorf("DEL: got %d %v, want code 100", codeOf(err), err)
	}
	if got := n.links(); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
	d.Start()
	n.mustDel(d.conf(""), p)
	n.mustDel(d.conf(""), q)
	d.wantNothing()
}

func TestModuleServesForeignPluginsWithAddressesAlone(t *testing.T) {
	n := newNode(t)
	d := newDatastore(n)
	stdin := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"hc-net","type":"bridge","mtu":"any","nodename_file_optional":true,"nodename":"node-1","etcd_endpoints":%q,"ipam":{"type":"muslin-ipam"}}`, d.url)
	env := []string{"CNI_CONTAINERID=c1", "CNI_NETNS=/run/netns/c1", "CNI_IFNAME=eth0"}
	out, err := n.run("muslin-ipam", stdin, append(env, "CNI_COMMAND=ADD")...)
	if err != nil || !strings.Contains(out, `/26"`) || strings.Contains(out, "interfaces") || strings.Contains(out, "routes") {
		t.Errorf("ADD: %v, %s; want an address with its block's length and nothing else", err, out)
	}
	if diff := cmp.Diff([]string{"/calico/ipam/v2/handle/hc-net.c1"}, d.keys()); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	for range 2 {
		if out, err := n.run("muslin-ipam", stdin, append(env, "CNI_COMMAND=DEL")...); err != nil {
			t.Errorf("DEL: %v, %s", err, out)
		}
	}
	d.wantNothing()
}

func TestModuleSaysWhatIsWrongWithItsSettings(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct{ members, says string }{
		{`"nodename_file_optional":true,"nodename":"node-1"`, "no etcd endpoints specified"},
		{`"nodename_file_optional":true,"etcd_endpoints":"127.0.0.1:2379"`, `etcd endpoint \"127.0.0.1:2379\"`},
		{`"etcd_endpoints":"http://127.0.0.1:1"`, "/var/lib/calico/nodename"},
		{`"nodename_file_optional":true,"etcd_endpoints":"http://127.0.0.1:1","etcd_key_file":"/k"`, "set both ETCD_KEY_FILE and ETCD_CERT_FILE"},
		{`"nodename_file_optional":true,"nodename":"node-1","etcd_endpoints":"https://127.0.0.1:1","etcd_ca_cert_file":"/none/ca"`, "/none/ca: no such file"},
		{`"muslin":{"version":7,"verb":"add"}`, "version 7"},
	} {
		out, err := n.run("muslin-ipam", `{"cniVersion":"1.0.0","name":"n","type":"muslin","ipam":{"type":"muslin-ipam"},`+c.members+`}`,
			"CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_NETNS=/run/netns/c", "CNI_IFNAME=eth0", "ETCD_ENDPOINTS=")
		if err == nil || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v, %s; want an error with %q", c.members, err, out, c.says)
		}
	}
}

func TestModuleTakesEtcdFromTheEnvironment(t *testing.T) {
	n := newNode(t)
	d := newDatastore(n)
	n.write("/var/lib/calico/nodename", "node-1\n")
	out, err := n.run("muslin-ipam", `{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{"type":"muslin-ipam"}}`,
		"CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_NETNS=/run/netns/c", "CNI_IFNAME=eth0", "ETCD_ENDPOINTS="+d.url)
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestMissingModuleIsNamed(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	out, err := n.run("muslin", `{"cniVersion":"1.0.0","name":"n","type":"muslin","ipam":{"type":"calico-ipam"},"policy_wait":"none"}`,
		"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_NETNS="+p.Path(), "CNI_IFNAME=eth0", "CNI_PATH="+t.TempDir())
	if err == nil || !strings.Contains(out, `find IPAM module \"calico-ipam\"`) {
		t.Errorf("got %v, %s; want an error that names the module", err, out)
	}
	if got := n.links(); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestModuleThatHangsIsLeftBehind(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/hangs", []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := &moduleDoor{program: dir + "/hangs", netconf: map[string]json.RawMessage{}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.register(ctx, attach.Request{})(); err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("got %v, want it given up", err)
	}
}

func TestCertainAddressIsAskedForByArguments(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	d := newDatastore(n)
	p.rt.Args = append(p.rt.Args, [2]string{"IP", "10.244.7.7"})
	if res := n.mustAdd(d.conf(noWait), p); res.IPs[0].Address.String() != "10.244.7.7/32" {
		t.Errorf("muslin: %s", toJSON(t, res))
	}
	stdin := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"hc-net","type":"bridge","nodename_file_optional":true,"nodename":"node-1","etcd_endpoints":%q,"ipam":{"type":"muslin-ipam"}}`, d.url)
	env := []string{"CNI_CONTAINERID=c2", "CNI_NETNS=/run/netns/c2", "CNI_IFNAME=eth0"}
	if out, err := n.run("muslin-ipam", stdin, append(env, "CNI_COMMAND=ADD", "CNI_ARGS=IP=10.244.7.9")...); err != nil || !strings.Contains(out, `"10.244.7.9/26"`) {
		t.Errorf("muslin-ipam: %v, %s", err, out)
	}
	if out, err := n.run("muslin-ipam", stdin, append(env, "CNI_COMMAND=DEL")...); err != nil {
		t.Errorf("DEL: %v, %s", err, out)
	}
	n.mustDel(d.conf(noWait), p)
	d.wantNothing()
}
