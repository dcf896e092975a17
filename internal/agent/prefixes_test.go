package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

func TestPrefixOfTheHostsOwnDeviceIsNoWorkloads(t *testing.T) {
	node, err := api.Decode[api.Node]([]byte(`{"spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	held := kernel.Host{
		Links: map[string]kernel.HostLink{"eth0": {Index: 2, Up: true}},
		Addrs: []kernel.HostAddr{{Dev: "eth0", Addr: netip.MustParsePrefix("192.0.2.1/24")}},
	}
	p := &prefixes{}
	for _, c := range []struct {
		asked []string
		host  kernel.Host
		want  []string
		says  int
	}{
		{[]string{"cali"}, held, []string{"cali"}, 0},
		{[]string{"tap"}, held, []string{"tap", "cali"}, 0},
		{[]string{"eth", "tap"}, held, []string{"tap", "cali"}, 1},
		{[]string{"eth", "tap"}, kernel.Host{}, []string{"tap", "cali"}, 1}, // the address is away for a moment
		{[]string{"e", "eth0"}, held, []string{"cali"}, 2},
		{[]string{"tap"}, held, []string{"tap", "cali"}, 0},
	} {
		if d := cmp.Diff(c.want, p.heed(c.asked, node, c.host)); d != "" {
			t.Errorf("%q (-want +got): %s", c.asked, d)
		}
		if got := p.problems(); len(got) != c.says || c.says > 0 && !strings.Contains(got[0], "eth0") {
			t.Errorf("%q: problems %q, want %d", c.asked, got, c.says)
		}
	}
	if got := p.heed([]string{"eth"}, nil, held); len(got) != 2 {
		t.Errorf("without a Node: %q", got)
	}
}
