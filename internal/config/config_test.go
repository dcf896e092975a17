package config

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/pkg/api"
)

func env(pairs ...string) Env {
	return func(name string) string {
		for _, p := range pairs {
			if k, v, _ := strings.Cut(p, "="); k == name {
				return v
			}
		}
		return ""
	}
}

func TestEnvironmentBeatsNodeBeatsDefault(t *testing.T) {
	n, g := 4790, 4791
	node := &api.FelixConfiguration{Spec: api.FelixConfigurationSpec{VXLANPort: &n}}
	global := &api.FelixConfiguration{Spec: api.FelixConfigurationSpec{VXLANPort: &g, VXLANVNI: &g}}
	for _, c := range []struct {
		name      string
		env       Env
		port, vni int
	}{
		{"environment", env("FELIX_VXLANPORT=4800"), 4800, 4791},
		{"node", env(), 4790, 4791},
		{"bad environment falls through", env("FELIX_VXLANPORT=many"), 4790, 4791},
	} {
		d, problems := Effective(c.env, global, node)
		if d.VXLANPort != c.port || d.VXLANVNI != c.vni {
			t.Errorf("%s: port %d vni %d, want %d %d", c.name, d.VXLANPort, d.VXLANVNI, c.port, c.vni)
		}
		if bad := strings.HasPrefix(c.name, "bad"); bad != (len(problems) == 1) {
			t.Errorf("%s: problems %q", c.name, problems)
		}
	}
	if d, _ := Effective(env(), nil, nil); d.VXLANPort != 4789 || d.VXLANVNI != 4096 || d.VXLANEnabled != nil || !d.IPv6Support {
		t.Errorf("defaults: %+v", d)
	}
}

func TestBadSettingsNameTheVariable(t *testing.T) {
	for _, c := range []struct{ set, want string }{
		{"CALICO_IPV4POOL_CIDR=10.0.0.0", "CALICO_IPV4POOL_CIDR"},
		{"CALICO_IPV4POOL_CIDR=fd00::/48", "CALICO_IPV4POOL_CIDR"},
		{"CALICO_IPV4POOL_BLOCK_SIZE=33", "CALICO_IPV4POOL_BLOCK_SIZE"},
		{"CALICO_IPV4POOL_VXLAN=Sometimes", "CALICO_IPV4POOL_VXLAN"},
		{"CALICO_IPV6POOL_CIDR=10.0.0.0/16", "CALICO_IPV6POOL_CIDR"},
		{"CALICO_IPV6POOL_BLOCK_SIZE=26", "CALICO_IPV6POOL_BLOCK_SIZE"},
		{"CALICO_IPV6POOL_VXLAN=Sometimes", "CALICO_IPV6POOL_VXLAN"},
	} {
		_, err := FromEnv(env(c.set))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want it to name %s", c.set, err, c.want)
		}
	}
	if _, err := FromEnv(env("CALICO_IPV4POOL_VXLAN=Always", "CALICO_IPV4POOL_IPIP=always")); err == nil {
		t.Error("IPIP and VXLAN together are accepted")
	}
	if _, err := FromEnv(env("NO_DEFAULT_POOLS=true", "CALICO_IPV4POOL_CIDR=10.0.0.0/16")); err == nil {
		t.Error("NO_DEFAULT_POOLS with a pool CIDR is accepted")
	}
}

func TestIPv6IsOffUntilItIsAskedFor(t *testing.T) {
	n, err := FromEnv(env())
	if err != nil {
		t.Fatal(err)
	}
	want := Pool{BlockSize: 122, IPIP: api.Never, VXLAN: api.Never, NodeSelector: "all()"}
	if d := cmp.Diff(want, n.Pool6, cmpopts.EquateComparable(netip.Prefix{})); d != "" || n.IP6.Want != "none" {
		t.Errorf("IP6 %q, pool (-want +got):\n%s", n.IP6.Want, d)
	}
	n, err = FromEnv(env("IP6=autodetect", "IP6_AUTODETECTION_METHOD=interface=eth1", "CALICO_IPV6POOL_CIDR=fd00:244::/48", "CALICO_IPV6POOL_BLOCK_SIZE=120",
		"CALICO_IPV6POOL_VXLAN=CrossSubnet", "CALICO_IPV6POOL_NAT_OUTGOING=true", "CALICO_IPV6POOL_NODE_SELECTOR=has(six)", "CALICO_IPV6POOL_DISABLE_BGP_EXPORT=true"))
	if err != nil {
		t.Fatal(err)
	}
	want = Pool{
		CIDR: netip.MustParsePrefix("fd00:244::/48"), BlockSize: 120, IPIP: api.Never, VXLAN: api.CrossSubnet, NATOutgoing: true,
		NodeSelector: "has(six)", DisableBGPExport: true,
	}
	if d := cmp.Diff(want, n.Pool6, cmpopts.EquateComparable(netip.Prefix{})); d != "" || n.IP6 != (Address{"autodetect", "interface=eth1"}) {
		t.Errorf("IP6 %v, pool (-want +got):\n%s", n.IP6, d)
	}
	if n, err = FromEnv(env("IP6=autodetect", "FELIX_IPV6SUPPORT=false")); err != nil || !n.Pool6.None {
		t.Errorf("a pool is made though the dataplane has no IPv6: %+v, %v", n.Pool6, err)
	}
	if _, err := FromEnv(env("NO_DEFAULT_POOLS=true", "CALICO_IPV6POOL_CIDR=fd00::/48")); err == nil {
		t.Error("NO_DEFAULT_POOLS with a pool CIDR is accepted")
	}
}

func TestModeWordsOfOldManifestsAreUnderstood(t *testing.T) {
	for word, want := range map[string]api.EncapMode{"off": "Never", "": "Never", "Always": "Always", "cross-subnet": "CrossSubnet", "CrossSubnet": "CrossSubnet"} {
		n, err := FromEnv(env("CALICO_IPV4POOL_VXLAN=" + word))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, n.Pool.VXLAN); d != "" {
			t.Errorf("%q: %s", word, d)
		}
	}
}

func TestMTUThatNoLinkCanHaveIsNamed(t *testing.T) {
	d, problems := Effective(func(name string) string { return map[string]string{"FELIX_VXLANMTU": "10"}[name] }, nil, nil)
	if d.VXLANMTU != 0 || len(problems) != 1 {
		t.Errorf("MTU %d, problems %v", d.VXLANMTU, problems)
	}
}
