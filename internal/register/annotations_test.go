package register_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
)

const ours = "cni.projectcalico.org/"

// annotated is a request of a pod with these annotations.
func annotated(container string, annotations map[string]string) attach.Request {
	req := podRequest(container, "web")
	req.Annotations = attach.Strings{}
	for k, v := range annotations {
		req.Annotations[ours+k] = v
	}
	return req
}

func TestAnnotationsThatCannotBeHeededAreRefused(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	before := w.dump()
	floats := func(r *attach.Request) { r.Features.FloatingIPs = true }
	for _, c := range []struct {
		annotations map[string]string
		change      func(*attach.Request)
		says        string
	}{
		{map[string]string{"ipAddrs": `["10.0.0.1"]`, "ipAddrsNoIpam": `["10.0.0.1"]`}, nil, "can't have both annotations: 'ipAddrs' and 'ipAddrsNoIpam' in use at the same time"},
		{map[string]string{"ipAddrs": `["10.0.0.1"]`}, func(r *attach.Request) { r.ForeignIPAM = "host-local" }, "ipAddrs is not compatible with configured IPAM: host-local"},
		{map[string]string{"ipAddrs": `["10.0.0.1","10.0.0.2"]`}, nil, "more than one address of a family"},
		{map[string]string{"ipAddrs": `["10.0.0.1","fd00::1","fd00::2"]`}, nil, "more than one address of a family"},
		{map[string]string{"ipAddrs": `["10.0.0.1/32"]`}, nil, `"10.0.0.1/32" is no address`},
		{map[string]string{"ipAddrs": `10.0.0.1`}, nil, "is not a list"},
		{map[string]string{"ipAddrs": `[]`}, nil, "is not a list"},
		{map[string]string{"ipAddrsNoIpam": `["10.0.0.1"]`}, nil, "requested feature is not enabled: ip_addrs_no_ipam"},
		{map[string]string{"floatingIPs": `["10.0.0.1"]`}, nil, "requested feature is not enabled: floating_ips"},
		{map[string]string{"floatingIPs": `["192.0.2.300"]`}, floats, `"192.0.2.300" is no address`},
		{map[string]string{"floatingIPs": `["127.0.0.1"]`}, floats, `"127.0.0.1" is no address`},
		{map[string]string{"floatingIPs": `["2001:db8::1"]`}, floats, "the pod has no address of the family of 2001:db8::1"},
		{map[string]string{"ipFamilies": `["IPv5"]`}, nil, `"IPv5" is no family`},
		{map[string]string{"allowedSourcePrefixes": `["10.0.0.1"]`}, nil, `"10.0.0.1" is no CIDR`},
		{map[string]string{"hwAddr": "01:00:5e:00:00:01"}, nil, "is no station's MAC"},
	} {
		req := annotated("c", c.annotations)
		if c.change != nil {
			c.change(&req)
		}
		_, err := h.Add(w.ctx(), req)
		var told *attach.Error
		if !errors.As(err, &told) || told.Code != attach.CodeBadConfig || !strings.Contains(told.Msg, c.says) || told.Details == "" {
			t.Errorf("%v: got %v, want code 7 with %q and a remedy", c.annotations, err, c.says)
		}
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Errorf("refused pods left in etcd:\n%s", diff)
	}
}

func TestFloatingAddressesStandForThePodsOwnOfTheirFamily(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("four", "10.0.0.0/24", 26)
	w.pool("six", "fd00::/64", 122)
	req := annotated("c", map[string]string{"floatingIPs": `["192.0.2.1", "2001:db8::1", "192.0.2.2"]`})
	req.AssignIPv4, req.AssignIPv6, req.Features.FloatingIPs = true, true, true
	h := w.handler("node-1")
	got := w.add(h, req).Addrs
	want := []api.IPNAT{
		{InternalIP: got[0].String(), ExternalIP: "192.0.2.1"}, {InternalIP: got[1].String(), ExternalIP: "2001:db8::1"}, {InternalIP: got[0].String(), ExternalIP: "192.0.2.2"},
	}
	if diff := cmp.Diff(want, w.endpoints()[0].Value.Spec.IPNATs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	before := w.revision()
	w.add(h, req)
	if w.revision() != before {
		t.Error("the same ADD has written the endpoint anew")
	}
}

func TestPodGoesBeforeItsNamespace(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	for i, name := range []string{"netconf", "namespace", "pod"} {
		w.pool(name, fmt.Sprintf("10.%d.0.0/24", i), 26)
		w.pool(name+"-6", fmt.Sprintf("fd0%d::/64", i), 122)
	}
	facts := register.Pod{
		Annotations:          map[string]string{ours + "ipv4pools": `["pod"]`, ours + "hwAddr": "02:00:00:00:00:AA", ours + "allowedSourcePrefixes": `["10.9.0.1/16","fd09::/64"]`},
		NamespaceAnnotations: map[string]string{ours + "ipv4pools": `["namespace"]`, ours + "ipv6pools": `["namespace-6"]`, ours + "ipFamilies": `["IPv4","IPv6"]`, ours + "ipAddrs": `["10.0.0.9"]`},
	}
	h := register.New(register.Config{Client: w.c, Node: "node-1", PodFacts: func(context.Context, attach.Pod) (register.Pod, error) { return facts, nil }})
	req := podRequest("c", "web")
	req.PolicyType, req.AssignIPv4 = "k8s", true
	req.IPv4Pools, req.IPv6Pools = []string{"netconf"}, []string{"netconf-6"}
	reply := w.add(h, req)
	if len(reply.Addrs) != 2 || !netip.MustParsePrefix("10.2.0.0/24").Contains(reply.Addrs[0]) || !netip.MustParsePrefix("fd01::/64").Contains(reply.Addrs[1]) {
		t.Errorf("addresses %v, want one of the pod's pool and one of the namespace's", reply.Addrs)
	}
	e := w.endpoints()[0].Value.Spec
	if reply.MAC != "02:00:00:00:00:aa" || e.MAC != reply.MAC || fmt.Sprint(e.AllowSpoofed) != "[10.9.0.0/16 fd09::/64]" {
		t.Errorf("reply %+v, endpoint %+v", reply, e)
	}
}

func TestNamespaceSelectsPools(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("a", "10.0.0.0/24", 26, func(s *api.IPPoolSpec) { s.NamespaceSelector = "team == 'a'" })
	w.pool("b", "10.1.0.0/24", 26, func(s *api.IPPoolSpec) { s.NamespaceSelector = "team == 'b'" })
	h := register.New(register.Config{Client: w.c, Node: "node-1", PodFacts: func(context.Context, attach.Pod) (register.Pod, error) {
		return register.Pod{NamespaceLabels: map[string]string{"team": "b"}}, nil
	}})
	req := podRequest("c", "web")
	req.PolicyType = "k8s"
	if got := w.add(h, req).Addrs; !netip.MustParsePrefix("10.1.0.0/24").Contains(got[0]) {
		t.Errorf("addresses %v, want one of pool b", got)
	}
}

func TestAnnotatedFamiliesGoBeforeTheNetconf(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("four", "10.0.0.0/24", 26)
	w.pool("six", "fd00::/64", 122)
	h := w.handler("node-1")
	for annotation, want := range map[string]string{`["IPv6"]`: "6", `["IPv4"]`: "4", `["IPv6","IPv4"]`: "46"} {
		req := annotated("c"+want, map[string]string{"ipFamilies": annotation})
		req.AssignIPv4, req.AssignIPv6 = want == "6", want == "4"
		got := ""
		for _, a := range w.add(h, req).Addrs {
			got += map[bool]string{true: "6", false: "4"}[a.Is6()]
		}
		if got != want {
			t.Errorf("%s: families %s", annotation, got)
		}
	}
}

func TestBroughtAddressesAreOnTheEndpointAndNowhereElse(t *testing.T) {
	for name, req := range map[string]attach.Request{
		"foreign IPAM": func() attach.Request {
			r := podRequest("c", "web")
			r.ForeignIPAM, r.Addrs = "host-local", []netip.Addr{netip.MustParseAddr("10.7.0.5"), netip.MustParseAddr("fd07::5")}
			return r
		}(),
		"annotation": func() attach.Request {
			r := annotated("c", map[string]string{"ipAddrsNoIpam": `["10.7.0.5","fd07::5"]`})
			r.Features.AddrsNoIPAM = true
			return r
		}(),
		"annotation beside a foreign IPAM": func() attach.Request {
			r := annotated("c", map[string]string{"ipAddrsNoIpam": `["10.7.0.5","fd07::5"]`})
			r.Features.AddrsNoIPAM, r.ForeignIPAM, r.Addrs = true, "host-local", []netip.Addr{netip.MustParseAddr("10.8.0.1")}
			return r
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.node("node-1", nil)
			before := w.dump()
			h := w.handler("node-1")
			reply := w.add(h, req)
			if fmt.Sprint(reply.Addrs) != "[10.7.0.5 fd07::5]" {
				t.Errorf("addresses %v", reply.Addrs)
			}
			e := w.endpoints()
			if len(e) != 1 || fmt.Sprint(e[0].Value.Spec.IPNetworks) != "[10.7.0.5/32 fd07::5/128]" || len(w.dump()) != len(before)+2 { // and the network's profile
				t.Errorf("endpoints %+v, %d keys", e, len(w.dump()))
			}
			if got, err := h.Check(w.ctx(), withoutAddrs(req)); err != nil || fmt.Sprint(got) != fmt.Sprint(reply) {
				t.Errorf("CHECK: %+v, %v; want %+v", got, err, reply)
			}
			rev := w.revision()
			if again := w.add(h, req); fmt.Sprint(again) != fmt.Sprint(reply) || w.revision() != rev {
				t.Errorf("second ADD: %v, %d revisions", again, w.revision()-rev)
			}
			w.del(h, req)
			w.del(h, req)
			if len(w.endpoints()) > 0 || len(w.dump()) != len(before)+1 {
				t.Errorf("after DEL: %v", w.dump())
			}
			w.lock(true)
			var told *attach.Error
			if _, err := h.Add(w.ctx(), req); !errors.As(err, &told) || told.Code != attach.CodeTryAgain {
				t.Errorf("locked datastore: %v", err)
			}
			w.lock(false)
			w.delete("/calico/resources/v3/projectcalico.org/nodes/node-1")
			if _, err := h.Add(w.ctx(), req); !errors.As(err, &told) || told.Code != attach.CodeTryAgain {
				t.Errorf("node missing: %v", err)
			}
		})
	}
}

// withoutAddrs is what a CHECK of our own IPAM asks: it does not know that the pod brought its addresses along.
func withoutAddrs(req attach.Request) attach.Request {
	req.Verb, req.Addrs = attach.Check, nil
	return req
}

func TestPodThatTurnsToOurIPAMForgetsThatItBroughtAddresses(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	brings := annotated("old", map[string]string{"ipAddrsNoIpam": `["10.7.0.5"]`})
	brings.Features.AddrsNoIPAM = true
	w.add(h, brings)
	young := annotated("young", nil) // the pod again
	w.add(h, young)
	w.delete(api.HandleKey("net.young"))
	if _, err := h.Check(w.ctx(), withoutAddrs(young)); err == nil || !strings.Contains(err.Error(), "its allocation is missing") {
		t.Errorf("CHECK of a container that lost its handle: %v", err)
	}
}

func TestCertainAddressesAreAllocated(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	w.pool("six", "fd00::/64", 122)
	h := w.handler("node-1")
	byArgs := podRequest("a", "args")
	byArgs.Wanted = []netip.Addr{netip.MustParseAddr("10.0.0.77")}
	if got := w.add(h, byArgs).Addrs; fmt.Sprint(got) != "[10.0.0.77]" {
		t.Errorf("CNI_ARGS: %v", got)
	}
	both := annotated("b", map[string]string{"ipAddrs": `["10.0.0.130","fd00::1"]`})
	both.Wanted = byArgs.Wanted // the annotation goes before
	if got := w.add(h, both).Addrs; fmt.Sprint(got) != "[10.0.0.130 fd00::1]" {
		t.Errorf("annotation: %v", got)
	}
	if n := w.consistent(); n != 3 {
		t.Errorf("%d addresses are held", n)
	}
	taken := podRequest("c", "other")
	taken.Wanted = byArgs.Wanted
	if reply, err := h.Add(w.ctx(), taken); err == nil {
		t.Errorf("an address was given twice: %v", reply)
	}
	w.del(h, byArgs)
	w.del(h, both)
	if n := w.consistent(); n != 0 {
		t.Errorf("%d addresses are held after DEL", n)
	}
}

func TestNewContainerTakesOverThePodsCertainAddress(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	h := w.handler("node-1")
	fixed := map[string]string{"ipAddrs": `["10.0.0.9"]`}
	old, young := annotated("old", fixed), annotated("young", fixed)
	w.add(h, old)
	if got := w.add(h, young).Addrs; fmt.Sprint(got) != "[10.0.0.9]" {
		t.Errorf("new container: %v", got)
	}
	w.del(h, old) // late
	if n := w.consistent(); n != 1 || w.endpoints()[0].Value.Spec.ContainerID != "young" {
		t.Errorf("%d addresses, endpoint %+v", n, w.endpoints())
	}
	w.del(h, young)
	if n := w.consistent(); n != 0 {
		t.Errorf("%d addresses are held after DEL", n)
	}
}
