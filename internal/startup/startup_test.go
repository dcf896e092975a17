package startup_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func hostWith(addrs ...string) kernel.Host {
	h := kernel.Host{Links: map[string]kernel.HostLink{}}
	for i, s := range addrs {
		dev, addr, _ := strings.Cut(s, " ")
		h.Links[dev] = kernel.HostLink{Index: i + 2, MTU: 1500, Up: true, Live: true}
		h.Addrs = append(h.Addrs, kernel.HostAddr{Dev: dev, Addr: netip.MustParsePrefix(addr)})
	}
	return h
}

// machine is the id of the tests' machine.
const machine = "11111111111111111111111111111111"

// deps are those of a host without a default route and without Kubernetes.
func deps(c *store.Client, h kernel.Host) startup.Deps {
	return startup.Deps{Store: c, Host: h, Machine: machine, IPv6: true, Now: time.Now, UUID: uuid.NewString, Log: slog.New(slog.DiscardHandler)}
}

func settings(t *testing.T, pairs ...string) config.Node {
	t.Helper()
	cfg, err := config.FromEnv(func(name string) string {
		for _, p := range pairs {
			if k, v, _ := strings.Cut(p, "="); k == name {
				return v
			}
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func dump(t *testing.T, s *etcdtest.Server) map[string]int64 {
	t.Helper()
	got, err := s.Etcd().Get(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, kv := range got.Kvs {
		out[string(kv.Key)] = kv.Version
	}
	return out
}

func TestFreshClusterHoldsWhatCalicoWouldWrite(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	cfg := settings(t, "IP=autodetect", "CALICO_IPV4POOL_CIDR=10.244.0.0/16", "CALICO_IPV4POOL_VXLAN=CrossSubnet", "CLUSTER_TYPE=k8s,bgp", "CALICO_K8S_NODE_REF=kube-1")
	d := deps(c, hostWith("eth0 172.30.1.1/24"))
	for range 2 {
		if _, err := startup.Run(t.Context(), "node-1", cfg, d); err != nil {
			t.Fatal(err)
		}
	}
	const r = api.ResourcesRoot
	want := map[string]int64{ // key → version: nothing is written the second time
		r + "clusterinformations/default":     1,
		r + "bgpconfigurations/default":       1,
		r + "tiers/default":                   1,
		r + "tiers/kube-admin":                1,
		r + "tiers/kube-baseline":             1,
		r + "felixconfigurations/default":     1,
		r + "felixconfigurations/node.node-1": 1,
		r + "ippools/default-ipv4-ippool":     1,
		r + "nodes/node-1":                    1,
		api.IPAMConfigKey:                     1,
		api.IdentityKey("node-1"):             1,
	}
	if diff := cmp.Diff(want, dump(t, srv)); diff != "" {
		t.Errorf("etcd holds (-want +got):\n%s", diff)
	}
	n, err := store.Get[api.Node](t.Context(), c, r+"nodes/node-1")
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := n.Value.Address(false); a.String() != "172.30.1.1/24" || n.Value.Spec.OrchRefs[0].NodeName != "kube-1" {
		t.Errorf("node: %s", n.Raw())
	}
	p, err := store.Get[api.IPPool](t.Context(), c, r+"ippools/default-ipv4-ippool")
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Value.Spec; s.CIDR.String() != "10.244.0.0/16" || s.VXLANMode != api.CrossSubnet || s.BlockSize != 26 || !s.NATOutgoing {
		t.Errorf("pool: %s", p.Raw())
	}
	ci, err := store.Get[api.ClusterInformation](t.Context(), c, r+"clusterinformations/default")
	if err != nil {
		t.Fatal(err)
	}
	if s := ci.Value.Spec; !ci.Value.Ready() || len(s.ClusterGUID) != 32 || s.CalicoVersion != "v3.32.1" || s.ClusterType != "k8s,bgp" {
		t.Errorf("cluster information: %s", ci.Raw())
	}
}

func TestWhatOthersWroteIsKept(t *testing.T) {
	srv := etcdtest.New(t)
	const r = api.ResourcesRoot
	seed := map[string]string{
		r + "clusterinformations/default": `{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default","uid":"u"},"spec":{"clusterGUID":"g","clusterType":"typha","calicoVersion":"v9.9.9","datastoreReady":false,"extra":1}}`,
		r + "nodes/node-1":                `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-1","uid":"u","labels":{"a":"b"}},"spec":{"bgp":{"ipv4Address":"172.30.1.9/24","asNumber":65001},"wireguard":{"interfaceIPv4Address":"10.1.1.1"}},"status":{"wireguardPublicKey":"k"}}`,
		r + "ippools/mine":                `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"mine","uid":"u"},"spec":{"cidr":"10.9.0.0/16","disabled":true}}`,
	}
	for k, v := range seed {
		if _, err := srv.Etcd().Put(t.Context(), k, v); err != nil {
			t.Fatal(err)
		}
	}
	cfg := settings(t, "CLUSTER_TYPE=k8s")
	if _, err := startup.Run(t.Context(), "node-1", cfg, deps(srv.Store(), hostWith("eth0 172.30.1.1/24"))); err != nil {
		t.Fatal(err)
	}
	keys := dump(t, srv)
	if _, made := keys[r+"ippools/default-ipv4-ippool"]; made {
		t.Error("a default pool was made beside a disabled one of the same family")
	}
	for key, parts := range map[string][]string{
		r + "clusterinformations/default": {`"clusterGUID":"g"`, `"clusterType":"typha,k8s"`, `"calicoVersion":"v9.9.9"`, `"datastoreReady":false`, `"extra":1`},
		r + "nodes/node-1":                {`"ipv4Address":"172.30.1.9/24"`, `"asNumber":65001`, `"wireguard":{"interfaceIPv4Address":"10.1.1.1"}`, `"wireguardPublicKey":"k"`, `"labels":{"a":"b"}`},
	} {
		got, err := srv.Etcd().Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			if !strings.Contains(string(got.Kvs[0].Value), p) {
				t.Errorf("%s lost %s: %s", key, p, got.Kvs[0].Value)
			}
		}
	}
}

func TestNodesThatStartTogetherMakeOneOfEach(t *testing.T) {
	srv := etcdtest.New(t)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		c := srv.Store()
		wg.Go(func() {
			cfg := settings(t, fmt.Sprintf("CLUSTER_TYPE=t%d", i))
			_, errs[i] = startup.Run(t.Context(), fmt.Sprintf("node-%d", i), cfg, deps(c, hostWith(fmt.Sprintf("eth0 172.30.1.%d/24", i+1))))
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("node-%d: %v", i, err)
		}
	}
	ci, err := store.Get[api.ClusterInformation](t.Context(), srv.Store(), api.ResourcesRoot+"clusterinformations/default")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Split(ci.Value.Spec.ClusterType, ",")); n != len(errs) {
		t.Errorf("clusterType has %d of %d words: %s", n, len(errs), ci.Value.Spec.ClusterType)
	}
}

func TestAddressTakenByAnotherNodeIsRefused(t *testing.T) {
	srv := etcdtest.New(t)
	h := hostWith("eth0 172.30.1.1/24")
	if _, err := startup.Run(t.Context(), "node-1", settings(t), deps(srv.Store(), h)); err != nil {
		t.Fatal(err)
	}
	_, err := startup.Run(t.Context(), "node-2", settings(t), deps(srv.Store(), h))
	if err == nil || !strings.Contains(err.Error(), `node "node-1" is already using the IPv4 address 172.30.1.1`) {
		t.Errorf("error: %v", err)
	}
}

func TestDualStackNodeHasBothAddressesAndPools(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	h := hostWith("eth0 172.30.1.1/24", "eth0 fd00:1::1/64")
	for range 2 {
		if _, err := startup.Run(t.Context(), "node-1", settings(t, "IP=autodetect", "IP6=autodetect"), deps(c, h)); err != nil {
			t.Fatal(err)
		}
	}
	n, err := store.Get[api.Node](t.Context(), c, api.ResourcesRoot+"nodes/node-1")
	if err != nil {
		t.Fatal(err)
	}
	v4, _ := n.Value.Address(false)
	v6, _ := n.Value.Address(true)
	want := []api.NodeAddress{{Address: "172.30.1.1/24", Type: "CalicoNodeIP"}, {Address: "fd00:1::1/64", Type: "CalicoNodeIP"}}
	if diff := cmp.Diff(want, n.Value.Spec.Addresses); diff != "" || v4.String() != "172.30.1.1/24" || v6.String() != "fd00:1::1/64" {
		t.Errorf("addresses %v %v (-want +got):\n%s", v4, v6, diff)
	}
	const six = api.ResourcesRoot + "ippools/default-ipv6-ippool"
	p, err := store.Get[api.IPPool](t.Context(), c, six)
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Value.Spec; !netip.MustParsePrefix("fd00::/8").Overlaps(s.CIDR) || s.CIDR.Bits() != 48 || s.BlockSize != 122 || s.NATOutgoing || s.VXLANMode != api.Never {
		t.Errorf("pool: %s", p.Raw())
	}
	if keys := dump(t, srv); keys[six] != 1 || keys[api.ResourcesRoot+"nodes/node-1"] != 1 {
		t.Errorf("something was written the second time: %v", keys)
	}
	_, err = startup.Run(t.Context(), "node-2", settings(t, "IP=none", "IP6=fd00:1::1"), deps(c, h))
	if err == nil || !strings.Contains(err.Error(), `node "node-1" is already using the IPv6 address fd00:1::1: set IP6 or IP6_AUTODETECTION_METHOD`) {
		t.Errorf("the address of another node: %v", err)
	}
}

func TestIPv6PoolNeedsAReason(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		with func(*startup.Deps)
		want string
	}{
		{"nothing asks for it", nil, nil, ""},
		{"a range is given", []string{"CALICO_IPV6POOL_CIDR=fd00:244::/48", "CALICO_IPV6POOL_VXLAN=Always"}, nil, "fd00:244::/48"},
		{"none", []string{"IP6=autodetect", "CALICO_IPV6POOL_CIDR=none"}, nil, ""},
		{"no support", []string{"IP6=autodetect", "FELIX_IPV6SUPPORT=false"}, nil, ""},
		{"no kernel", []string{"IP6=autodetect", "CALICO_IPV6POOL_CIDR=fd00:244::/48"}, func(d *startup.Deps) { d.IPv6 = false }, ""},
	} {
		srv := etcdtest.New(t)
		d := deps(srv.Store(), hostWith("eth0 172.30.1.1/24", "eth0 fd00:1::1/64"))
		if c.with != nil {
			c.with(&d)
		}
		if _, err := startup.Run(t.Context(), "node-1", settings(t, c.env...), d); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := ""
		p, err := store.Get[api.IPPool](t.Context(), d.Store, api.ResourcesRoot+"ippools/default-ipv6-ippool")
		if err == nil {
			got = p.Value.Spec.CIDR.String()
		} else if !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("%s: pool %q, want %q", c.name, got, c.want)
		}
	}
}

func TestEtcdAwayIsSaidWithinTheDeadline(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	srv.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := startup.Run(ctx, "node-1", settings(t), deps(c, hostWith("eth0 172.30.1.1/24")))
	if err == nil || !strings.Contains(err.Error(), "hold the node's name") || !strings.Contains(err.Error(), store.ErrUnavailable.Error()) {
		t.Errorf("error: %v", err)
	}
	if ctx.Err() != nil {
		t.Error("it took longer than the call's own deadline")
	}
}

func TestNodeNameSources(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nodename")
	if err := startup.WriteFile(file, "from-file"); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		cfg            config.Node
		hostname, want string
	}{
		{config.Node{NodeName: "set", NodeNameFile: file}, "HOST", "set"},
		{config.Node{NodeNameFile: file}, "HOST", "from-file"},
		{config.Node{NodeNameFile: none}, "HOST", "host"},
		{config.Node{NodeName: "Bad_Name", NodeNameFile: file}, "HOST", ""},
		{config.Node{NodeNameFile: none}, "  ", ""},
	} {
		got, err := startup.NodeName(c.cfg, func(string) string { return c.hostname })
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%+v: got %q, %v; want %q", c.cfg, got, err, c.want)
		}
	}
}

func TestWriteFileLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "mtu")
	for _, text := range []string{"1450", "1450", "1400"} {
		if err := startup.WriteFile(path, text); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("entries: %v, %v", entries, err)
	}
}

func TestWhatCannotBeReadStopsNoNode(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	const r = api.ResourcesRoot
	broken := []string{
		r + "nodes/other", r + "ippools/other", r + "tiers/default", r + "felixconfigurations/default",
		r + "clusterinformations/default", api.IPAMConfigKey,
	}
	for _, key := range broken {
		if _, err := srv.Etcd().Put(t.Context(), key, "{"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := startup.Run(t.Context(), "node-1", settings(t, "IP=autodetect"), deps(c, hostWith("eth0 172.30.1.1/24"))); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get[api.Node](t.Context(), c, r+"nodes/node-1"); err != nil {
		t.Error(err)
	}
	for key, version := range dump(t, srv) {
		if strings.HasPrefix(key, r+"ippools/") && key != r+"ippools/other" {
			t.Errorf("%s was made beside a pool that cannot be read", key)
		}
		if slices.Contains(broken, key) && version != 1 {
			t.Errorf("%s was written over", key)
		}
	}
}

func TestFailedWriteFileSaysTheSameEachTime(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "file", "below"), "/proc/none"} {
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		first, second := startup.WriteFile(path, "1450"), startup.WriteFile(path, "1450")
		if first == nil || second == nil || first.Error() != second.Error() || !strings.HasPrefix(first.Error(), "write "+path+": ") {
			t.Errorf("%s: %v, and then %v", path, first, second)
		}
	}
}
