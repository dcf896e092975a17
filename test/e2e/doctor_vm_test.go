package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// TestVMDoctorFindsWhatAilsTheKernel has what other machines may lack: IP-in-IP, WireGuard, and a table of connections whose limit is nobody else's.
func TestVMDoctorFindsWhatAilsTheKernel(t *testing.T) {
	nettest.Need(t, "vm", "ipip", "wireguard")
	p := patient{bin: programs(t)}
	p.l = up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.AgentEnv = 2, lab.IPIP, []string{"MUSLIN_LINGER=1s"} })
	p.suffersAll(t, p.ofConnections(t))
	felix, pools := p.keeps(api.ResourcesRoot+"felixconfigurations/"), p.keeps(api.ResourcesRoot+"ippools/")
	p.suffersAll(t, []illness{{"pods are older than WireGuard", func(t *testing.T) {
		felix(t)
		amend(t, p.l, felixDefault, "FelixConfiguration", map[string]any{"wireguardEnabled": true})
		eventually(t, p.l, has("wireguard.cali"), "ip", "-o", "link", "show", "up")
	}, []string{"error mtu: cali", "pods' devices have a larger MTU than 1440 (1500 of eth0 less 60 for encapsulation)"}, func(t *testing.T) {
		must(t, p.l.StopAgent(t.Context(), "node-1"))
		felix(t)
	}}})
	agent := func(t *testing.T) { must(t, p.l.StartAgent(t.Context(), "node-1")) }
	p.suffersAll(t, []illness{
		{"an agent that was gone before encryption was", func(*testing.T) {}, []string{"warning leftovers: wireguard.cali: is up, and no pool and no setting asks for it"}, agent},
		{"a tunnel of a mode that no pool has", func(t *testing.T) {
			must(t, p.l.StopAgent(t.Context(), "node-1"))
			pools(t)
			flip(t, p.l, api.Never, api.Never)
		}, []string{"warning leftovers: tunl0: is up, and no pool and no setting asks for it"}, pools},
		{"a tunnel whose packets do not fit", func(t *testing.T) { p.sh(t, "ip link set tunl0 mtu 1490") }, []string{"error mtu: tunl0: its MTU is 1490, and packets of it need 20 bytes more than the 1500 of eth0"}, agent},
	})
}

// ofConnections are tables of connections that are nearly full, and full.
func (p patient) ofConnections(t *testing.T) []illness {
	const limit = "/proc/sys/net/netfilter/nf_conntrack_max"
	was, err := os.ReadFile(limit)
	must(t, err)
	restore := func(t *testing.T) { must(t, os.WriteFile(limit, was, 0)) }
	limited := func(share func(now int) int) func(t *testing.T) {
		return func(t *testing.T) {
			floodFrom(t, p.l, "a1", 2000)
			now, err := strconv.Atoi(strings.TrimSpace(run(t, p.l, "node-1", "cat", "/proc/sys/net/netfilter/nf_conntrack_count")))
			must(t, err)
			must(t, os.WriteFile(limit, fmt.Append(nil, share(now)), 0))
		}
	}
	return []illness{
		{"a table of connections that is nearly full", limited(func(now int) int { return now + now/50 }), []string{"warning kernel: net.netfilter.nf_conntrack_max: "}, restore},
		{"a table of connections that is full", limited(func(now int) int { return now / 2 }), []string{"error kernel: net.netfilter.nf_conntrack_max: "}, restore},
	}
}
