package register_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// golden reads keys and values on alternating lines.
func golden(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		key := s.Text()
		s.Scan()
		out[key] = s.Text()
	}
	return out
}

// script returns the values one after the other, and the last one from then on.
func script[T any](values ...T) func() T {
	return func() T {
		v := values[0]
		if len(values) > 1 {
			values = values[1:]
		}
		return v
	}
}

// TestStoredFormEqualsCalicos replays an ADD and a DEL that were recorded from Calico's plugin (testdata: given is what
// etcd held before, add what it wrote, del what was left of that after the DEL).
func TestStoredFormEqualsCalicos(t *testing.T) {
	w := newWorld(t)
	given := golden(t, "given.golden")
	for k, v := range given {
		w.putRaw(k, v)
	}
	h := register.New(register.Config{
		Client: w.c, Node: "hc-node1",
		Now:  script(time.Unix(0, 1795191731743730113), time.Unix(0, 1795191731752366561)),
		UUID: script("9f68c344-0607-4f2e-b43b-8a8cb0931822", "f6955e6b-0b2b-47f6-ad05-21461b88e98b", "none"),
	})
	req := attach.Request{Network: "hc-net", ContainerID: "hcx-0", IfName: "eth0", HostIf: "calihcx-0", MAC: "42:22:76:e0:4d:73"}

	reply := w.add(h, req)
	want := attach.Reply{Addrs: []netip.Addr{netip.MustParseAddr("10.244.62.192")}, MAC: "42:22:76:e0:4d:73"}
	if diff := cmp.Diff(want, reply, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("reply (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(merged(given, golden(t, "add.golden")), w.dump()); diff != "" {
		t.Errorf("after ADD (-calico +muslin):\n%s", diff)
	}

	rev := w.revision()
	if again := w.add(h, req); fmt.Sprint(again) != fmt.Sprint(reply) {
		t.Errorf("second ADD returns %v, the first %v", again, reply)
	}
	if now := w.revision(); now != rev {
		t.Errorf("second ADD wrote: revision %d, was %d", now, rev)
	}

	w.del(h, req)
	del := golden(t, "del.golden")
	// The one deliberate difference: Calico forgets to remove the address's sequence number when it releases by handle.
	for k, v := range del {
		del[k] = strings.Replace(v, `"sequenceNumberForAllocation":{"0":1795191731752366561}`, `"sequenceNumberForAllocation":{}`, 1)
	}
	if diff := cmp.Diff(merged(given, del), w.dump()); diff != "" {
		t.Errorf("after DEL (-calico +muslin):\n%s", diff)
	}
	rev = w.revision()
	w.del(h, req)
	if now := w.revision(); now != rev {
		t.Errorf("second DEL wrote: revision %d, was %d", now, rev)
	}
}

func merged(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

func TestPodEndpointCarriesItsIdentity(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	req := podRequest("c1", "web-0")
	req.Labels = attach.Strings{"app": "web"}
	reply := w.add(h, req)

	e, err := store.Get[api.WorkloadEndpoint](w.ctx(), w.c, "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-web--0-eth0")
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"app": "web", "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "k8s"}
	if diff := cmp.Diff(labels, e.Value.Metadata.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	spec := api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: "node-1", ContainerID: "c1", Pod: "web-0", Endpoint: "eth0", Profiles: []string{"net"},
		IPNetworks: []api.Prefix{api.HostPrefix(reply.Addrs[0])}, InterfaceName: "calic1", MAC: "02:00:00:00:00:01",
	}
	if diff := cmp.Diff(spec, e.Value.Spec, cmp.Comparer(func(a, b api.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if dump := w.dump()["/calico/resources/v3/projectcalico.org/profiles/net"]; !strings.Contains(dump, `"ingress":[{"action":"Allow","source":{},"destination":{}}]`) {
		t.Errorf("profile of a Kubernetes network: %s", dump)
	}
	b := listOf[api.Block](w, api.BlocksPrefix(false))[0].Value
	if got := b.Attributes[0].Secondary; got["pod"] != "web-0" || got["namespace"] != "default" || got["node"] != "node-1" {
		t.Errorf("owner attributes: %v", got)
	}
	w.consistent()
}

func TestNewContainerOfAPodReplacesTheEndpoint(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	w.add(h, podRequest("old", "web"))
	before := w.endpoints()[0].Value
	second := podRequest("new", "web")
	second.MAC = "02:00:00:00:00:02"
	reply := w.add(h, second)

	after := w.endpoints()
	if len(after) != 1 {
		t.Fatalf("%d endpoints, want the one", len(after))
	}
	e := after[0].Value
	if e.Metadata.UID != before.Metadata.UID || !e.Metadata.CreationTimestamp.Equal(before.Metadata.CreationTimestamp) {
		t.Errorf("identity changed from %v to %v", before.Metadata, e.Metadata)
	}
	if e.Spec.ContainerID != "new" || e.Spec.MAC != second.MAC || reply.MAC != second.MAC || e.Spec.IPNetworks[0] == before.Spec.IPNetworks[0] {
		t.Errorf("endpoint is still the old container's: %+v", e.Spec)
	}

	w.del(h, podRequest("old", "web")) // late
	if got := w.endpoints(); len(got) != 1 || got[0].Value.Spec.ContainerID != "new" {
		t.Errorf("the late DEL of the old container touched the new one's endpoint: %v", got)
	}
	if n := w.consistent(); n != 1 {
		t.Errorf("%d addresses are held, want 1", n)
	}
}

func TestRepeatedAddKeepsTheFirstMAC(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	w.add(w.handler("node-1"), request("c"))
	again := request("c")
	again.MAC = "02:00:00:00:00:99"
	if got := w.add(w.handler("node-1"), again); got.MAC != "02:00:00:00:00:01" {
		t.Errorf("MAC %s, want the first ADD's", got.MAC)
	}
}

func TestBothFamiliesComeInOneTransaction(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool4", "10.0.0.0/24", 26)
	w.pool("pool6", "fd00:10::/48", 122)
	h := w.handler("node-1")
	req := request("c")
	req.AssignIPv4, req.AssignIPv6 = true, true
	rev := w.revision()
	reply := w.add(h, req)
	if len(reply.Addrs) != 2 || !reply.Addrs[0].Is4() || !reply.Addrs[1].Is6() {
		t.Errorf("addresses %v, want one of each family", reply.Addrs)
	}
	if now := w.revision(); now != rev+1 {
		t.Errorf("%d transactions, want 1", now-rev)
	}
	w.consistent()
	w.del(h, req)
	if n := w.consistent(); n != 0 {
		t.Errorf("%d addresses are left", n)
	}
	w.pool("pool6", "fd00:10::/48", 122, disabled)
	if _, err := h.Add(w.ctx(), req); !errors.Is(err, ipam.ErrNoPool) {
		t.Errorf("ADD without a pool of the second family: %v", err)
	}
	if n := w.consistent(); n != 0 {
		t.Errorf("the refused ADD holds %d addresses", n)
	}
}

func TestPoolsAreChosenByAnnotationThenNetconfThenSelector(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", map[string]string{"zone": "b"})
	w.pool("auto", "10.0.0.0/24", 26)
	w.pool("manual", "10.1.0.0/24", 26, func(s *api.IPPoolSpec) { s.AssignmentMode = api.AssignManual })
	w.pool("zone-a", "10.2.0.0/24", 26, func(s *api.IPPoolSpec) { s.NodeSelector = `zone == "a"` })
	h := w.handler("node-1")
	for i, c := range []struct {
		netconf    []string
		annotation string
		want       string
	}{
		{nil, "", "10.0.0.0/24"},
		{[]string{"manual"}, "", "10.1.0.0/24"},
		{[]string{"10.2.0.0/24"}, "", "10.2.0.0/24"},
		{[]string{"manual"}, `["zone-a"]`, "10.2.0.0/24"},
	} {
		req := request(fmt.Sprint("c", i))
		req.IPv4Pools = c.netconf
		if c.annotation != "" {
			req.Annotations = attach.Strings{"cni.projectcalico.org/ipv4pools": c.annotation}
		}
		if got := w.add(h, req).Addrs[0]; !netip.MustParsePrefix(c.want).Contains(got) {
			t.Errorf("netconf %v, annotation %q: %v, want one of %s", c.netconf, c.annotation, got, c.want)
		}
	}
}

func TestRefusalsNameCodeObjectAndRemedy(t *testing.T) {
	for _, c := range []struct {
		name   string
		world  func(*world)
		change func(*attach.Request)
		code   uint
		says   string
		isa    error
	}{
		{"node missing", func(w *world) { w.delete("/calico/resources/v3/projectcalico.org/nodes/node-1") }, nil, 11, "node node-1 is not in the datastore", ipam.ErrNoNode},
		{"cluster locked", func(w *world) { w.lock(true) }, nil, 11, "not ready to process requests", ipam.ErrNotReady},
		{"no cluster", func(w *world) { w.delete(ipam.ClusterKey()) }, nil, 11, "not ready to process requests", ipam.ErrNotReady},
		{"pools disabled", func(w *world) { w.pool("pool", "10.0.0.0/30", 31, disabled) }, nil, 101, "cannot find a qualified ippool", ipam.ErrNoPool},
		{"pool unknown", nil, func(r *attach.Request) { r.IPv4Pools = []string{"nope"} }, 7, "the given pool (nope) does not exist, or is not enabled", ipam.ErrRequest},
		{"pool of the other family", func(w *world) { w.pool("six", "fd00::/64", 122) }, func(r *attach.Request) { r.IPv4Pools = []string{"six"} }, 7, `"six" isn't an IPv4 pool`, ipam.ErrRequest},
		{"not selected", func(w *world) {
			w.pool("pool", "10.0.0.0/30", 31, func(s *api.IPPoolSpec) { s.NodeSelector = "has(x)" })
		}, nil, 101, "no configured Calico pools for node node-1", ipam.ErrNoPool},
		{"use not allowed", func(w *world) {
			w.pool("pool", "10.0.0.0/30", 31, func(s *api.IPPoolSpec) { s.AllowedUses = []api.Use{api.UseTunnel} })
		}, nil, 101, "no pools match the required use (Workload)", ipam.ErrNoPool},
		{"claims forbidden", func(w *world) { w.putRaw(api.IPAMConfigKey, `{"strict_affinity":true}`) }, nil, 101, "failed to find or claim a block", ipam.ErrNoAddress},
		{"annotation broken", nil, func(r *attach.Request) {
			r.Annotations = attach.Strings{"cni.projectcalico.org/ipv4pools": "pool"}
		}, 7, "cni.projectcalico.org/ipv4pools", nil},
		{"policy without Kubernetes", nil, func(r *attach.Request) { r.PolicyType = "k8s" }, 7, "no access to Kubernetes", nil},
		{"policy unknown", nil, func(r *attach.Request) { r.PolicyType = "other" }, 7, `policy.type "other"`, nil},
		{"container ID with a slash", nil, func(r *attach.Request) { r.ContainerID = "a/b" }, 4, "CNI_CONTAINERID", nil},
		{"no network name", nil, func(r *attach.Request) { r.Network = "" }, 7, "network", nil},
		{"pool unreadable", func(w *world) {
			w.putRaw("/calico/resources/v3/projectcalico.org/ippools/pool", `{"spec":{"cidr":"nonsense"}}`)
		}, nil, 101, "could not be read", ipam.ErrNoPool},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.node("node-1", nil)
			w.pool("pool", "10.0.0.0/30", 31)
			if c.world != nil {
				c.world(w)
			}
			req := request("c")
			if c.change != nil {
				c.change(&req)
			}
			before := w.dump()
			_, err := w.handler("node-1").Add(w.ctx(), req)
			var cni *attach.Error
			if !errors.As(err, &cni) {
				t.Fatalf("error %v, want a CNI error", err)
			}
			if cni.Code != c.code || !strings.Contains(cni.Error(), c.says) || cni.Details == "" {
				t.Errorf("got code %d, %q, remedy %q; want code %d and %q", cni.Code, cni.Msg, cni.Details, c.code, c.says)
			}
			if c.isa != nil && !errors.Is(err, c.isa) {
				t.Errorf("%v does not match %v", err, c.isa)
			}
			if diff := cmp.Diff(before, w.dump()); diff != "" {
				t.Errorf("the refused ADD wrote (-before +after):\n%s", diff)
			}
		})
	}
}

func TestDelHeedsTheLockAndNeedsNeitherNodeNorPool(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	w.add(h, request("c"))
	w.lock(true)
	if err := h.Del(w.ctx(), request("c")); !errors.Is(err, ipam.ErrNotReady) {
		t.Errorf("DEL in a locked cluster: %v", err)
	}
	w.lock(false)
	w.delete("/calico/resources/v3/projectcalico.org/nodes/node-1")
	w.delete("/calico/resources/v3/projectcalico.org/ippools/pool")
	w.del(h, request("c"))
	if n := w.consistent(); n != 0 || len(w.endpoints()) != 0 {
		t.Errorf("%d addresses, %d endpoints left", n, len(w.endpoints()))
	}
}

func TestPolicyNetworksTakeLabelsAndProfilesFromKubernetes(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	w.pool("other", "10.1.0.0/24", 26, func(s *api.IPPoolSpec) { s.AssignmentMode = api.AssignManual })
	h := register.New(register.Config{Client: w.c, Node: "node-1", PodFacts: func(_ context.Context, pod attach.Pod) (register.Pod, error) {
		if pod.Name == "gone" {
			return register.Pod{}, os.ErrNotExist
		}
		return register.Pod{
			Labels:      map[string]string{"app": pod.Name},
			Annotations: map[string]string{"cni.projectcalico.org/ipv4pools": `["other"]`},
			Profiles:    []string{"kns.default", "ksa.default.default"},
		}, nil
	}})
	req := podRequest("c", "web")
	req.PolicyType = "k8s"
	reply := w.add(h, req)
	e := w.endpoints()[0].Value
	if e.Metadata.Labels["app"] != "web" || fmt.Sprint(e.Spec.Profiles) != "[kns.default ksa.default.default]" || !netip.MustParsePrefix("10.1.0.0/24").Contains(reply.Addrs[0]) {
		t.Errorf("endpoint %+v %+v", e.Metadata, e.Spec)
	}
	if _, ok := w.dump()["/calico/resources/v3/projectcalico.org/profiles/net"]; ok {
		t.Error("a network with policy got a profile of its own")
	}
	req.Pod.Name = "gone"
	var cni *attach.Error
	if _, err := h.Add(w.ctx(), req); !errors.As(err, &cni) || cni.Code != attach.CodeTryAgain || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pod that Kubernetes does not know: %v", err)
	}
}

func TestForeignPluginGetsAddressesWithoutEndpoint(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 28)
	h := w.handler("node-1")
	first, err := h.Allocate(w.ctx(), request("c"))
	if err != nil {
		t.Fatal(err)
	}
	if len(first) != 1 || first[0].Bits() != 28 {
		t.Errorf("addresses %v, want one with its block's length", first)
	}
	again, err := h.Allocate(w.ctx(), request("c"))
	if err != nil || fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("repeated: %v, %v; want %v", again, err, first)
	}
	if n := len(w.endpoints()); n != 0 {
		t.Errorf("%d endpoints were written", n)
	}
	if v := w.view(); v.Sound() != nil || v.Allocated() != 1 {
		t.Errorf("%d addresses, want 1: %v", v.Allocated(), v.Sound())
	}
	for range 2 {
		if err := h.Release(w.ctx(), request("c")); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.consistent(); n != 0 {
		t.Errorf("%d addresses left", n)
	}
}

// TestSteadyStateIsOneTransaction counts what the server does, by its own metrics.
func TestSteadyStateIsOneTransaction(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	f := w.follow()
	h := register.New(register.Config{Client: w.c, Source: register.FromFeed(f), Node: "node-1", Committed: f.Commit})
	w.add(h, request("first")) // claims the block, creates the profile
	rev := w.revision()
	before := w.served()
	for i := range 5 {
		w.add(h, request(fmt.Sprint("c", i)))
	}
	if n := w.served() - before; n != 5 {
		t.Errorf("5 ADDs were %d requests to etcd, want 5", n)
	}
	if now := w.revision(); now != rev+5 {
		t.Errorf("5 ADDs made %d revisions, want 5", now-rev)
	}
	before = w.served()
	for i := range 5 {
		w.del(h, request(fmt.Sprint("c", i)))
	}
	if n := w.served() - before; n != 5 {
		t.Errorf("5 DELs were %d requests to etcd, want 5", n)
	}
	w.consistent()
}

func TestDelFreesWhatIsNotAsItWasWritten(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *world, before map[string]string, key string) // of the handle
	}{
		{"handle written again", func(w *world, before map[string]string, key string) { w.putRaw(key, before[key]) }},
		{"handle gone", func(w *world, _ map[string]string, key string) { w.delete(key) }},
		{"endpoint written again", func(w *world, before map[string]string, _ string) {
			for _, e := range w.endpoints() {
				w.putRaw(e.Key, before[e.Key])
			}
		}},
		{"endpoint gone", func(w *world, _ map[string]string, _ string) {
			for _, e := range w.endpoints() {
				w.delete(e.Key)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.node("node-1", nil)
			w.pool("pool", "10.0.0.0/24", 26)
			f := w.follow()
			h := register.New(register.Config{Client: w.c, Source: register.FromFeed(f), Node: "node-1", Committed: f.Commit})
			w.add(h, request("c"))
			c.change(w, w.dump(), api.HandleKey(api.PodHandle(request("c").Network, "c")))
			w.del(h, request("c"))
			for key := range w.dump() {
				if strings.HasPrefix(key, api.HandlesRoot) {
					t.Errorf("%s is left", key)
				}
			}
			if n := len(w.endpoints()); n != 0 {
				t.Errorf("%d endpoints are left", n)
			}
		})
	}
}

// served returns how many reads and transactions etcd has been asked for in this process, as its metrics say.
func (w *world) served() (n int) {
	w.t.Helper()
	res, err := http.Get(w.etcd.Endpoint() + "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	s := bufio.NewScanner(res.Body)
	for s.Scan() {
		if !strings.HasPrefix(s.Text(), "grpc_server_started_total{") || !strings.Contains(s.Text(), `grpc_service="etcdserverpb.KV"`) {
			continue
		}
		count, err := strconv.Atoi(s.Text()[strings.LastIndex(s.Text(), " ")+1:])
		if err != nil {
			w.t.Fatal(err)
		}
		n += count
	}
	if n == 0 {
		w.t.Fatal("etcd's metrics are not there")
	}
	return n
}

func TestManyAtOnceShareTransactions(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 28)
	f := w.follow()
	h := register.New(register.Config{Client: w.c, Source: register.FromFeed(f), Node: "node-1", Committed: f.Commit})
	const n = 40
	rev := w.revision()
	parallel(t, n, func(i int) error {
		_, err := h.Add(w.ctx(), request(fmt.Sprint("c", i)))
		return err
	})
	if got := w.revision() - rev; got >= n {
		t.Errorf("%d transactions for %d containers, want fewer", got, n)
	}
	if got := w.consistent(); got != n {
		t.Errorf("%d addresses for %d containers", got, n)
	}
	if got := len(listOf[api.Block](w, api.BlocksPrefix(false))); got != 3 {
		t.Errorf("%d blocks of 16 for %d containers, want 3", got, n)
	}
	parallel(t, n, func(i int) error {
		err := h.Del(w.ctx(), request(fmt.Sprint("c", i)))
		return err
	})
	if got := w.consistent(); got != 0 || len(w.endpoints()) != 0 {
		t.Errorf("%d addresses, %d endpoints left", got, len(w.endpoints()))
	}
}

func parallel(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(i); err != nil {
				t.Errorf("number %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func TestSeparateProcessesOnOneNodeNeverShareAnAddress(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	parallel(t, 16, func(i int) error {
		_, err := w.handler("node-1").Add(w.ctx(), request(fmt.Sprint("c", i)))
		return err
	})
	if got := w.consistent(); got != 16 {
		t.Errorf("%d addresses for 16 containers", got)
	}
}

func TestNodesShareAPoolOfFewBlocks(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", "10.0.0.0/26", 28) // four blocks of 16
	handlers := make([]*register.Handler, 3)
	for i := range handlers {
		w.node(fmt.Sprint("node-", i), nil)
		handlers[i] = w.handler(fmt.Sprint("node-", i))
	}
	parallel(t, 48, func(i int) error {
		_, err := handlers[i%3].Add(w.ctx(), request(fmt.Sprint("c", i)))
		return err
	})
	if got := w.consistent(); got != 48 {
		t.Errorf("%d addresses for 48 containers", got)
	}
	// 16 on each node fill its first block; the one block left goes to one of them, and the others borrow of it.
	parallel(t, 16, func(i int) error {
		_, err := handlers[i%3].Add(w.ctx(), request(fmt.Sprint("more", i)))
		return err
	})
	if got := w.consistent(); got != 64 {
		t.Errorf("%d addresses for 64 containers", got)
	}
	_, err := handlers[0].Add(w.ctx(), request("last"))
	if !errors.Is(err, ipam.ErrNoAddress) || !strings.Contains(err.Error(), "No IPs available in pools: [10.0.0.0/26] (4 blocks in") {
		t.Errorf("ADD in a full pool: %v", err)
	}
	parallel(t, 16, func(i int) error { return handlers[i%3].Del(w.ctx(), request(fmt.Sprint("more", i))) })
	if got := w.consistent(); got != 48 {
		t.Errorf("%d addresses for 48 containers", got)
	}
}

func TestSameContainerAtOnceGetsOneAddress(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	shared := w.handler("node-1")
	var mu sync.Mutex
	got := map[netip.Addr]bool{}
	parallel(t, 8, func(i int) error {
		h := shared
		if i%2 == 0 {
			h = w.handler("node-1")
		}
		reply, err := h.Add(w.ctx(), request("c"))
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		got[reply.Addrs[0]] = true
		return nil
	})
	if len(got) != 1 || w.consistent() != 1 {
		t.Errorf("one container was given %v", got)
	}
}

// TestCallersThatLeaveLeaveNothingBehind has callers give up at any point, and the runtime call DEL for them.
func TestCallersThatLeaveLeaveNothingBehind(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	parallel(t, 60, func(i int) error {
		ctx, cancel := context.WithTimeout(w.ctx(), rand.N(20*time.Millisecond))
		defer cancel()
		_, err := h.Add(ctx, request(fmt.Sprint("c", i)))
		var cni *attach.Error
		if err != nil && !errors.As(err, &cni) {
			return err
		}
		err = h.Del(w.ctx(), request(fmt.Sprint("c", i)))
		return err
	})
	if got := w.consistent(); got != 0 || len(w.endpoints()) != 0 || len(listOf[api.Handle](w, api.HandlesRoot)) != 0 {
		t.Errorf("%d addresses, %d endpoints left", got, len(w.endpoints()))
	}
}

// meddling lets somebody else write between what is read first and the commit.
type meddling struct {
	register.Source
	once sync.Once
	do   func()
}

func (m *meddling) Facts(ctx context.Context, node string) (ipam.Facts, error) {
	defer m.once.Do(m.do)
	return m.Source.Facts(ctx, node)
}

func TestConflictsAreSeenAndPlannedAgain(t *testing.T) {
	const blockKey = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30"
	const affinityKey = "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.0-30"
	touch := func(key string) func(*world) {
		return func(w *world) { w.putRaw(key, w.dump()[key]) }
	}
	for _, c := range []struct {
		name string
		do   func(*world)
		want error
	}{
		{"block touched", touch(blockKey), nil},
		{"affinity touched", touch(affinityKey), nil},
		{"pool touched", touch("/calico/resources/v3/projectcalico.org/ippools/pool"), nil},
		{"cluster touched", touch("/calico/resources/v3/projectcalico.org/clusterinformations/default"), nil},
		{"profile deleted is created again by the next", func(w *world) { w.delete("/calico/resources/v3/projectcalico.org/profiles/net") }, nil},
		{"config created", func(w *world) { w.putRaw(api.IPAMConfigKey, `{"auto_allocate_blocks":true}`) }, nil},
		{"address taken by another process", func(w *world) { w.add(w.handler("node-1"), request("other")) }, nil},
		{"same container by another process", func(w *world) { w.add(w.handler("node-1"), request("c")) }, nil},
		{"affinity pending", func(w *world) { w.putRaw(affinityKey, `{"state":"pendingDeletion","deleted":false}`) }, nil},
		{"block released", func(w *world) {
			w.del(w.handler("node-1"), request("first"))
			w.delete(blockKey)
			w.delete(affinityKey)
		}, nil},
		{"pool disabled", func(w *world) { w.pool("pool", "10.0.0.0/30", 30, disabled) }, ipam.ErrNoPool},
		{"pool deleted", func(w *world) { w.delete("/calico/resources/v3/projectcalico.org/ippools/pool") }, ipam.ErrNoPool},
		{"cluster locked", func(w *world) { w.lock(true) }, ipam.ErrNotReady},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.node("node-1", nil)
			w.pool("pool", "10.0.0.0/30", 30)
			w.add(w.handler("node-1"), request("first"))
			src := &meddling{Source: w.picture(), do: func() { c.do(w) }}
			h := register.New(register.Config{Client: w.c, Source: always(src), Node: "node-1"})
			if _, err := h.Add(w.ctx(), request("c")); !errors.Is(err, c.want) {
				t.Errorf("ADD: %v, want %v", err, c.want)
			}
			w.consistent()
		})
	}
}

func TestStalePictureNeverDecides(t *testing.T) {
	w := newWorld(t)
	early := w.picture() // knows neither node nor pool
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := register.New(register.Config{Client: w.c, Source: always(early), Node: "node-1"})
	w.add(h, request("a"))
	for i := range 3 {
		w.add(h, request(fmt.Sprint("b", i)))
	}
	w.del(h, request("a")) // the picture has no block to free it from
	if got := w.consistent(); got != 3 {
		t.Errorf("%d addresses, want 3", got)
	}
}

func TestEtcdAwayIsSaidAndRepaired(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	w.add(h, request("a"))
	w.etcd.Stop()
	_, err := h.Add(w.ctx(), request("b"))
	var cni *attach.Error
	if !errors.Is(err, store.ErrUnavailable) || !errors.As(err, &cni) || cni.Code != attach.CodeDatastore {
		t.Errorf("ADD without etcd: %v", err)
	}
	if err := h.Del(w.ctx(), request("a")); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("DEL without etcd: %v", err)
	}
	w.etcd.Start()
	w.add(h, request("b"))
	w.del(h, request("a"))
	if got := w.consistent(); got != 1 {
		t.Errorf("%d addresses, want 1", got)
	}
}

func TestAddCompletesWhatWasOnlyAllocated(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := register.New(register.Config{Client: w.c, Source: always(w.picture()), Node: "node-1"})
	held, err := h.Allocate(w.ctx(), request("c"))
	if err != nil {
		t.Fatal(err)
	}
	reply := w.add(h, request("c"))
	if len(reply.Addrs) != 1 || reply.Addrs[0] != held[0].Addr() || len(w.endpoints()) != 1 {
		t.Errorf("ADD gave %v, and %v was allocated; %d endpoints", reply.Addrs, held, len(w.endpoints()))
	}
	w.consistent()
}

func TestDamagedBlockInThePictureIsPassedOver(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/30", 30)
	w.add(w.handler("node-1"), request("first"))
	w.putRaw("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30", `{"cidr":7}`)
	w.pool("pool2", "10.1.0.0/30", 30)
	h := register.New(register.Config{Client: w.c, Source: always(w.picture()), Node: "node-1"})
	rev := w.revision()
	if got := w.add(h, request("next")).Addrs[0]; got.String() != "10.1.0.0" {
		t.Errorf("address %v", got)
	}
	if now := w.revision(); now != rev+1 {
		t.Errorf("%d transactions, want 1", now-rev)
	}
	var cni *attach.Error
	if err := h.Del(w.ctx(), request("first")); !errors.As(err, &cni) || !strings.Contains(cni.Msg, "10.0.0.0-30") {
		t.Errorf("DEL from the damaged block: %v", err)
	}
}

// TestUnknownOutcomeIsSaidAndFinished cuts the way back while an ADD's transaction is on its way.
func TestUnknownOutcomeIsSaidAndFinished(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	cut := newCutter(t, strings.TrimPrefix(w.etcd.Endpoint(), "http://"))
	c, err := store.New(store.Config{Endpoints: []string{"http://" + cut.addr}, Timeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Revision(w.ctx()); err != nil { // connects
		t.Fatal(err)
	}
	h := register.New(register.Config{Client: c, Source: always(w.picture()), Node: "node-1"})
	rev := w.revision()
	cut.back.Store(true)
	_, err = h.Add(w.ctx(), request("c"))
	var cni *attach.Error
	if !errors.Is(err, store.ErrUnknown) || !errors.As(err, &cni) || !strings.Contains(cni.Details, "it may have been done") {
		t.Fatalf("ADD whose answer is lost: %v", err)
	}
	if now := w.revision(); now != rev+1 {
		t.Fatalf("the transaction was not carried out: revision %d, was %d", now, rev)
	}
	direct := w.handler("node-1")
	reply := w.add(direct, request("c"))
	if now := w.revision(); now != rev+1 || len(reply.Addrs) != 1 || w.consistent() != 1 {
		t.Errorf("repeated ADD: %v, and revision %d, was %d", reply, now, rev+1)
	}
	w.del(direct, request("c"))
	if w.consistent() != 0 || len(w.endpoints()) != 0 {
		t.Error("DEL left something behind")
	}
}

// cutter passes bytes on between clients and a server, until it drops those on the way back.
type cutter struct {
	addr string
	back atomic.Bool
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			wg.Go(func() { pass(server, client, nil) })
			wg.Go(func() { pass(client, server, &c.back) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return c
}

// pass copies until either end closes, then closes both.
func pass(to, from net.Conn, drop *atomic.Bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if drop != nil && drop.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// stuck is a source that never answers in time, and does not say that this is why.
type stuck struct{ register.Source }

func (stuck) Facts(ctx context.Context, _ string) (ipam.Facts, error) {
	<-ctx.Done()
	return ipam.Facts{}, errors.New("no answer")
}

func TestBatchThatFailsIsGivenUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := register.New(register.Config{Node: "node-1", Source: func() register.Source { return stuck{} }})
		began := time.Now()
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				if err := h.Del(t.Context(), attach.Request{Network: "net", ContainerID: fmt.Sprint("c", i), IfName: "eth0"}); err == nil {
					t.Error("no error")
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took > 25*time.Second { // one that came first, and then the others together
			t.Errorf("all that waited have an answer after %v", took)
		}
	})
}

// TestDelOfAnotherInterfaceKeepsTheContainersAddress: handles are of containers, and an interface that never was may be deleted too.
func TestDelOfAnotherInterfaceKeepsTheContainersAddress(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	for _, req := range []attach.Request{podRequest("a", "web-1"), request("b")} {
		h := w.handler("node-1")
		w.add(h, req)
		other := req
		other.IfName = "eth1"
		w.del(h, other)
		if n := w.consistent(); n != 1 || len(w.endpoints()) != 1 {
			t.Errorf("container %s: %d addresses and %d endpoints after the DEL of another interface, want one of each", req.ContainerID, n, len(w.endpoints()))
		}
		w.del(h, req)
		if n := w.consistent(); n != 0 {
			t.Errorf("container %s: %d addresses after its DEL", req.ContainerID, n)
		}
	}
}

// TestWhoHasWaitedBehindASilentEtcdDoesNotWaitAgain holds two commands against an etcd that takes connections and says nothing.
func TestWhoHasWaitedBehindASilentEtcdDoesNotWaitAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := store.New(store.Config{Endpoints: []string{"http://" + l.Addr().String()}, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	h := register.New(register.Config{Client: client, Node: "node-1"})
	first := make(chan error, 1)
	go func() { first <- h.Del(t.Context(), request("first")) }()
	conn, err := l.Accept() // so the first command is under way
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := h.Del(t.Context(), request("second")); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "the command before this one") {
		t.Errorf("the second: %v", err)
	}
	if err := <-first; !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("the first: %v", err)
	}
	if err := h.Del(t.Context(), request("third")); !errors.Is(err, store.ErrUnavailable) || strings.Contains(err.Error(), "the command before this one") {
		t.Errorf("a third, which has not waited: %v", err)
	}
}
