package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// A pod is reached at its floating addresses by pods of its node, by its node itself, by others that have a route to the node, and by itself, in both families,
// for as long as the setting says so. Policy knows nothing of them: it decides by the pod's own address.
func TestFloatingAddressesLeadToTheirPod(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	listenTCP(t, l, "web", 80)
	web := pod(t, l, "web")
	floating := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	var nats []any
	for i, a := range web.Addrs() {
		nats = append(nats, map[string]any{"internalIP": a.String(), "externalIP": floating[i].String()})
	}
	amend(t, l, api.ResourcesRoot+"workloadendpoints/default/node--1-k8s-web-eth0", "WorkloadEndpoint", map[string]any{"ipNATs": nats})
	all := func(what string, open bool, from ...string) {
		t.Helper()
		nettest.Eventually(t, func() error {
			for _, who := range from {
				for _, a := range floating {
					if err := connects(l, who, a, 80); (err == nil) != open {
						return fmt.Errorf("%s: %s at %v: want open %t, got %w", what, who, a, open, err)
					}
				}
			}
			return nil
		})
	}
	set := func(word string) {
		resource(t, l, "FelixConfiguration", "felixconfigurations/default", `"floatingIPs": "`+word+`"`)
	}

	all("before it is switched on", false, "a1")
	set("Enabled")
	all("switched on", true, "a1", "web")
	for i, a := range floating { // from the host, and what others see of whom they talk to
		run(t, l, "node-1", "bash", "-c", "exec 3<>/dev/tcp/"+a.String()+"/80")
		run(t, l, "node-2", "ip", "route", "add", api.HostPrefix(a).String(), "via", nodeAddr(t, l, "node-1", i == 1).String())
	}
	all("from another node", true, "b1")
	policy(t, l, "web", `"selector": "app == 'web'", "types": ["Ingress"]`)
	all("isolated", false, "a1", "b1")
	remove(t, l, "networkpolicies/default/default.web")
	all("isolated no more", true, "a1", "b1")
	set("Disabled")
	all("switched off", false, "a1", "web")
}

// nodeAddr is a node's address of a family, as its Node says.
func nodeAddr(t *testing.T, l *lab.Lab, name string, v6 bool) netip.Addr {
	t.Helper()
	key := api.ResourcesRoot + "nodes/" + name
	var n api.Node
	decode(t, key, values(t, l, key)[key], &n)
	a, ok := n.Address(v6)
	if !ok {
		t.Fatalf("%s has no such address", name)
	}
	return a.Addr()
}
