package peering

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/muslin-cni/muslin/pkg/api"
)

// A floating address in one of the node's blocks is announced too: the block may be another node's tomorrow, the pod is not.
func TestFloatingAddressesAreAnnouncedWhereTheyAreTranslated(t *testing.T) {
	node := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: netip.MustParsePrefix("172.30.1.1/24")}}}}
	node.Metadata.Name = "node-1"
	web := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
		Node: "node-1", InterfaceName: "cali1", IPNetworks: []api.Prefix{api.HostPrefix(netip.MustParseAddr("10.0.0.1"))},
		IPNATs: []api.IPNAT{{InternalIP: "10.0.0.1", ExternalIP: "192.0.2.1"}, {InternalIP: "10.0.0.1", ExternalIP: "nonsense"}},
	}}
	m := Model{Nodes: []*api.Node{node}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/26")}}
	m.Endpoints = m.Relevant([]*api.WorkloadEndpoint{web})
	for _, c := range []struct {
		on   bool
		want string
	}{{false, "10.0.0.0/26 "}, {true, "10.0.0.0/26 192.0.2.1/32 "}} {
		was := m
		m.FloatingIPs = c.on
		if m.Equal(was) == (was.FloatingIPs != c.on) {
			t.Errorf("Equal does not see the setting")
		}
		got := ""
		for _, r := range Compute("node-1", m).Routes {
			got += fmt.Sprint(r.Prefix, " ")
		}
		if got != c.want {
			t.Errorf("floating addresses %t: announced %q, want %q", c.on, got, c.want)
		}
	}
}
