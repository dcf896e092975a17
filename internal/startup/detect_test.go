package startup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/apiserver"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// detection is one node's start: what is set, what the host has, and the address that comes of it.
type detection struct {
	ip, method string
	stored     string   // the Node's address before
	defaults   []string // devices of the default route
	want, err  string
}

// run starts node-1 and returns its address of the family afterwards.
func (c detection) run(t *testing.T, srv *etcdtest.Server, v6 bool, h kernel.Host, change func(*startup.Deps)) (string, error) {
	t.Helper()
	st := srv.Store()
	name, field, off := "IP", "ipv4Address", "IP6=none"
	if v6 {
		name, field, off = "IP6", "ipv6Address", "IP=none"
	}
	if _, err := srv.Etcd().Delete(t.Context(), node1); err != nil {
		t.Fatal(err)
	}
	if c.stored != "" {
		text := fmt.Sprintf(`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-1","uid":"u"},"spec":{"bgp":{"%s":"%s"}}}`, field, c.stored)
		if _, err := srv.Etcd().Put(t.Context(), node1, text); err != nil {
			t.Fatal(err)
		}
	}
	d := deps(st, h)
	d.Default = func(context.Context, bool) ([]string, error) { return c.defaults, nil }
	if change != nil {
		change(&d)
	}
	_, err := startup.Run(t.Context(), "node-1", settings(t, off, name+"="+c.ip, name+"_AUTODETECTION_METHOD="+c.method), d)
	return addressOf(t, st, "node-1", v6), err
}

func addressOf(t *testing.T, c *store.Client, node string, v6 bool) string {
	t.Helper()
	n, err := store.Get[api.Node](t.Context(), c, api.ResourcesRoot+"nodes/"+node)
	if errors.Is(err, store.ErrNotFound) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := n.Value.Address(v6); ok {
		return a.String()
	}
	return ""
}

func (c detection) check(t *testing.T, got string, err error) {
	t.Helper()
	if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
		t.Errorf("%+v: error %v", c, err)
	}
	if c.err == "" && err != nil {
		t.Errorf("%+v: %v", c, err)
	}
	if got != c.want {
		t.Errorf("%+v: address %q", c, got)
	}
}

func TestAddressComesFromTheMethod(t *testing.T) {
	h := hostWith("lo 127.0.0.1/8", "eth0 172.30.1.1/24", "docker0 172.17.0.1/16", "eth1 10.5.0.7/16", "cali123 10.244.0.1/32", "eth10 10.6.0.7/16")
	h.Links["down0"] = kernel.HostLink{Index: 90}
	h.Addrs = append(h.Addrs, kernel.HostAddr{Dev: "down0", Addr: netip.MustParsePrefix("10.7.0.7/16")})
	const several = "there are several, and no single one of these devices has the default route: eth10 10.6.0.7/16, eth1 10.5.0.7/16, eth0 172.30.1.1/24; say which by IP=<address>"
	srv := etcdtest.New(t)
	for _, c := range []detection{
		{ip: "autodetect", method: "first-found", err: several},
		{ip: "", method: "", err: several},
		{ip: "autodetect", method: "first-found", defaults: []string{"eth0"}, want: "172.30.1.1/24"},
		{ip: "autodetect", method: "first-found", defaults: []string{"eth0", "eth1"}, err: several},
		{ip: "autodetect", method: "first-found", defaults: []string{"eth0"}, stored: "10.5.0.7/16", want: "10.5.0.7/16"},
		{ip: "autodetect", method: "first-found", stored: "10.5.0.7/24", want: "10.5.0.7/16"}, // the host knows the subnet better
		{ip: "autodetect", method: "first-found", stored: "10.99.0.7/24", want: "10.99.0.7/24"},
		{ip: "autodetect", method: "first-found", defaults: []string{"eth0"}, stored: "10.99.0.7/24", want: "172.30.1.1/24"},
		{ip: "", method: "interface=eth0", want: "172.30.1.1/24"},
		{ip: "", method: "interface=eth0", stored: "10.5.0.7/16", want: "10.5.0.7/16"},
		{ip: "autodetect", method: "interface=eth1", want: "10.5.0.7/16"}, // and not eth10, which it matches too
		{ip: "autodetect", method: "interface=eth1.+,wlan", want: "10.6.0.7/16"},
		{ip: "autodetect", method: "interface=docker", want: "172.17.0.1/16"}, // which first-found leaves out
		{ip: "autodetect", method: "interface=eth", err: several},
		{ip: "autodetect", method: "interface=wlan", err: "seen: eth0 172.30.1.1/24, docker0 172.17.0.1/16, eth1 10.5.0.7/16, cali123 10.244.0.1/32, eth10 10.6.0.7/16, down0 10.7.0.7/16"},
		{ip: "autodetect", method: "interface=wlan", stored: "10.5.0.7/16", want: "10.5.0.7/16"},
		{ip: "autodetect", method: "interface=down0", err: "no device that is up"},
		{ip: "autodetect", method: "interface=", err: "names no interface"},
		{ip: "autodetect", method: "interface=(", err: "IP_AUTODETECTION_METHOD=interface=("},
		{ip: "autodetect", method: "skip-interface=eth1", want: "172.30.1.1/24"},
		{ip: "autodetect", method: "skip-interface=eth1,eth0", err: "no device that is up"},
		{ip: "autodetect", method: "cidr=172.17.0.0/16", want: "172.17.0.1/16"},
		{ip: "autodetect", method: "cidr=10.6.0.0/16,192.168.0.0/16", want: "10.6.0.7/16"},
		{ip: "autodetect", method: "cidr=10.0.0.0/8", defaults: []string{"eth1"}, want: "10.5.0.7/16"},
		{ip: "autodetect", method: "cidr=10.0.0", err: "IP_AUTODETECTION_METHOD=cidr=10.0.0"},
		{ip: "autodetect", method: "guess", err: "Invalid IP autodetection method: guess"},
		{ip: "autodetect", method: "guess", stored: "10.5.0.7/16", want: "10.5.0.7/16", err: "Invalid IP autodetection method: guess"},
		{ip: "172.30.1.1", want: "172.30.1.1/24"},
		{ip: "172.30.1.1/16", want: "172.30.1.1/16"},
		{ip: "192.0.2.7", want: "192.0.2.7/32"},
		{ip: "192.0.2.7", method: "guess", want: "192.0.2.7/32"},
		{ip: "none", want: ""},
		{ip: "none", stored: "10.5.0.7/16", want: "10.5.0.7/16"},
		{ip: "many", err: "IP=many: want"},
		{ip: "127.0.0.1", err: "IP=127.0.0.1: want"},
		{ip: "fd00::1", err: "IP=fd00::1: want"},
	} {
		got, err := c.run(t, srv, false, h, nil)
		c.check(t, got, err)
	}
}

func TestIPv6AddressComesFromTheMethod(t *testing.T) {
	h := hostWith("lo ::1/128", "eth0 172.30.1.1/24", "eth0 fd00:1::1/64", "eth0 fe80::1/64", "docker0 fd00:d::1/64", "eth1 fd00:5::7/64", "eth2 10.0.0.1/8")
	h.Links["eth3"] = kernel.HostLink{Index: 99, MTU: 1500, Up: true, Live: true}
	h.Addrs = append(h.Addrs, kernel.HostAddr{Dev: "eth3", Addr: netip.MustParsePrefix("2001:db8::7/64"), Temporary: true})
	srv := etcdtest.New(t)
	for _, c := range []detection{
		{ip: "autodetect", err: "devices has the default route: eth1 fd00:5::7/64, eth0 fd00:1::1/64; say which by IP6=<address> or IP6_AUTODETECTION_METHOD="},
		{ip: "autodetect", defaults: []string{"eth1"}, want: "fd00:5::7/64"},
		{ip: "autodetect", method: "interface=eth0", want: "fd00:1::1/64"},
		{ip: "autodetect", method: "skip-interface=eth1", want: "fd00:1::1/64"},
		{ip: "autodetect", method: "cidr=fd00:d::/32", want: "fd00:d::1/64"},
		{ip: "fd00:1::1", want: "fd00:1::1/64"},
		{ip: "2001:db8::1/48", want: "2001:db8::1/48"},
		{ip: "none", want: ""},
		{ip: "", want: ""},
		{ip: "", stored: "fd00:9::1/64", want: "fd00:9::1/64"},
		{ip: "autodetect", method: "interface=eth3", err: "eth3 2001:db8::7/64"}, // which has a temporary one only
		{ip: "autodetect", method: "interface=wlan", err: "detect the IPv6 address by interface=wlan"},
		{ip: "autodetect", method: "guess", err: "IP6_AUTODETECTION_METHOD=guess"},
		{ip: "172.30.1.1", err: "IP6=172.30.1.1"},
	} {
		got, err := c.run(t, srv, true, h, nil)
		c.check(t, got, err)
	}
}

// kube answers with objects by their paths.
type kube map[string]string

func (k kube) Get(_ context.Context, path string, into any) error {
	text, ok := k[path]
	if !ok {
		return apiserver.ErrNotFound
	}
	return json.Unmarshal([]byte(text), into)
}

func TestKubernetesNamesTheAddressOfItsNode(t *testing.T) {
	h := hostWith("eth0 172.30.1.1/24", "eth1 10.5.0.7/16", "eth1 fd00:5::7/64")
	node := func(addrs string) kube {
		return kube{"/api/v1/nodes/node-1": `{"status":{"addresses":[{"type":"Hostname","address":"node-1"},` + addrs + `]}}`}
	}
	const internal = `{"type":"InternalIP","address":"%s"}`
	both := node(fmt.Sprintf(internal+","+internal, "fd00:5::7", "10.5.0.7"))
	srv := etcdtest.New(t)
	for _, c := range []struct {
		detection
		v6   bool
		kube startup.Kubernetes
	}{
		{detection{want: "10.5.0.7/16"}, false, both},
		{detection{want: "fd00:5::7/64"}, true, both},
		{detection{err: "InternalIP 10.9.0.7, which is on no device"}, false, node(fmt.Sprintf(internal, "10.9.0.7"))},
		{detection{err: "no InternalIP of IPv6"}, true, node(fmt.Sprintf(internal, "10.5.0.7"))},
		{detection{err: "set CALICO_K8S_NODE_REF"}, false, kube{}},
		{detection{err: "set KUBECONFIG"}, false, nil},
		{detection{stored: "172.30.1.1/24", want: "172.30.1.1/24"}, false, nil},
	} {
		c.ip, c.method = "autodetect", "kubernetes-internal-ip"
		got, err := c.run(t, srv, c.v6, h, func(d *startup.Deps) { d.Kube = c.kube })
		c.check(t, got, err)
	}
}

func TestKubeadmsRangesAndNameAreTakenOver(t *testing.T) {
	srv := etcdtest.New(t)
	st := srv.Store()
	d := deps(st, hostWith("eth0 172.30.1.1/24", "eth0 fd00:1::1/64"))
	const maps = "/api/v1/namespaces/kube-system/configmaps/"
	d.Kube = kube{
		maps + "kubeadm-config":     `{"data":{"ClusterConfiguration":"kind: ClusterConfiguration\nnetworking:\n  podSubnet: 10.77.0.0/16,fd00:77::/48\n"}}`,
		maps + "full-cluster-state": `{"data":{}}`,
	}
	if _, err := startup.Run(t.Context(), "node-1", settings(t, "IP=autodetect", "CLUSTER_TYPE=k8s,bgp"), d); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"default-ipv4-ippool": "10.77.0.0/16", "default-ipv6-ippool": "fd00:77::/48"} {
		p, err := store.Get[api.IPPool](t.Context(), st, api.ResourcesRoot+"ippools/"+name)
		if err != nil || p.Value.Spec.CIDR.String() != want {
			t.Errorf("%s: %s, %v; want %s", name, p.Raw(), err, want)
		}
	}
	c, err := store.Get[api.ClusterInformation](t.Context(), st, api.ResourcesRoot+"clusterinformations/default")
	if err != nil || c.Value.Spec.ClusterType != "k8s,bgp,kubeadm,rancher" {
		t.Errorf("%s, %v", c.Raw(), err)
	}
}

// deaf is an API server that does not answer.
type deaf struct{}

func (deaf) Get(ctx context.Context, _ string, _ any) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestStartGoesOnWithoutKubernetesAndDNS(t *testing.T) {
	srv := etcdtest.New(t)
	h := hostWith("eth0 172.30.1.1/24")
	silent := func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c := detection{ip: "autodetect", method: "can-reach=api.example.com", err: "look up api.example.com: context deadline exceeded"}
	got, err := c.run(t, srv, false, h, func(d *startup.Deps) { d.Kube, d.Resolve = deaf{}, silent })
	c.check(t, got, err)
}

func TestInterfacesAreListedWhereTheNodeLooksAtThem(t *testing.T) {
	h := hostWith("lo 127.0.0.1/8", "eth0 172.30.1.1/24", "eth0 fd00:1::1/64", "docker0 172.17.0.1/16", "eth1 10.5.0.7/16")
	srv := etcdtest.New(t)
	st := srv.Store()
	for _, c := range []struct {
		ip, as string
		want   []string
	}{
		{"none", "", nil},
		{"172.30.1.1", "1.10", []string{"eth1 10.5.0.7/16", "eth0 172.30.1.1/24 fd00:1::1/64"}},
		{"", "", []string{"eth1 10.5.0.7/16", "eth0 172.30.1.1/24 fd00:1::1/64"}}, // as it was
	} {
		if _, err := startup.Run(t.Context(), "node-1", settings(t, "IP="+c.ip, "AS="+c.as), deps(st, h)); err != nil {
			t.Fatal(err)
		}
		n, err := store.Get[api.Node](t.Context(), st, node1)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range n.Value.Spec.Interfaces {
			got = append(got, i.Name+" "+strings.Join(i.Addresses, " "))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("IP=%s: interfaces %q, want %q", c.ip, got, c.want)
		}
		if c.as != "" && *n.Value.Spec.BGP.ASNumber != 65546 {
			t.Errorf("AS=%s: %s", c.as, n.Raw())
		}
	}
}
