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

func TestRoutesOfBGPPeersAreANumber(t *testing.T) {
	for text, want := range map[string]int{"": 100_000, "0": 0, "1": 1, "2147483647": 2_147_483_647, "-1": -1, "2147483648": -1, "many": -1, "10%": -1} {
		n, err := FromEnv(func(name string) string {
			if name == "MUSLIN_BGP_MAX_ROUTES" {
				return text
			}
			return ""
		})
		switch {
		case want < 0 && (err == nil || !strings.Contains(err.Error(), "MUSLIN_BGP_MAX_ROUTES="+text+": want a number between 0 and 2147483647")):
			t.Errorf("%q: %v, want that it is refused", text, err)
		case want >= 0 && (err != nil || n.BGPMaxRoutes != want):
			t.Errorf("%q: %d, %v", text, n.BGPMaxRoutes, err)
		}
	}
}

func TestConnectionsOfPodsAreANumberOrAShare(t *testing.T) {
	for text, want := range map[string]struct {
		share Share
		of    uint32 // 262144
	}{
		"":           {Share{Percent: 75}, 196_608},
		"0":          {Share{}, 0},
		"50000":      {Share{Number: 50_000}, 50_000},
		"25%":        {Share{Percent: 25}, 65_536},
		"0%":         {Share{}, 0},
		"100%":       {},
		"-1":         {},
		"many":       {},
		"9e9":        {},
		"12.5%":      {},
		"%":          {},
		"2000000000": {},
	} {
		n, err := FromEnv(func(name string) string {
			if name == "MUSLIN_POD_MAX_CONNECTIONS" {
				return text
			}
			return ""
		})
		readable := want.share != Share{} || text == "0" || text == "0%"
		switch {
		case !readable && (err == nil || !strings.Contains(err.Error(), "MUSLIN_POD_MAX_CONNECTIONS="+text)):
			t.Errorf("%q: %v, want that it is refused", text, err)
		case readable && (err != nil || n.PodFlows != want.share || n.PodFlows.Of(1<<18) != want.of):
			t.Errorf("%q: %+v, of 262144 %d, %v", text, n.PodFlows, n.PodFlows.Of(1<<18), err)
		}
	}
}
