package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

const felixKey = api.ResourcesRoot + "felixconfigurations/default"

// amend sets fields of a stored resource's spec, and makes the resource if there is none.
func amend(t *testing.T, l *lab.Lab, key, kind string, spec map[string]any) {
	t.Helper()
	doc := map[string]any{"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": map[string]any{"name": "default"}}
	if old := values(t, l, key)[key]; old != "" {
		if err := json.Unmarshal([]byte(old), &doc); err != nil {
			t.Fatal(err)
		}
	}
	fields, _ := doc["spec"].(map[string]any)
	if fields == nil {
		fields = map[string]any{}
	}
	maps.Copy(fields, spec)
	doc["spec"] = fields
	out, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	put(t, l, key, string(out))
}

// flip changes the IPv4 pool's mode.
func flip(t *testing.T, l *lab.Lab, ipip, vxlan api.EncapMode) {
	t.Helper()
	amend(t, l, poolKey, "IPPool", map[string]any{"ipipMode": ipip, "vxlanMode": vxlan})
}

// leads waits until a node's way to a pod is through a device.
func leads(t *testing.T, l *lab.Lab, node, to, dev string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		if out := run(t, l, node, "ip", "route", "get", pod(t, l, to).Addr.String()); !strings.Contains(out, " dev "+dev+" ") {
			return fmt.Errorf("the way from %s to %s: %s, want it through %s", node, to, out, dev)
		}
		return nil
	})
}

// TestLateNodesPacketsStillArrive changes a pool while one node's agent is away: that node goes on by the old mode, and the others take its
// packets in, also those whose agent was started anew meanwhile.
func TestLateNodesPacketsStillArrive(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.AgentEnv = 2, lab.VXLAN, []string{"MUSLIN_LINGER=1h"} })
	allWell(t, l)
	if err := l.KillAgent(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	flip(t, l, api.Never, api.Never)
	leads(t, l, "node-1", "a2", "eth0")
	allWell(t, l)
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	allWell(t, l)
	leads(t, l, "node-2", "a1", kernel.VXLANDevice)
	if addr := run(t, l, "node-1", "ip", "-o", "-4", "addr", "show", kernel.VXLANDevice); !strings.Contains(addr, "/32") {
		t.Errorf("the tunnel address is gone: %q", addr)
	}
}

// untouched is a kernel state in which a device that was never up looks like one that is down again.
func untouched(state string) string {
	return strings.NewReplacer("qdisc noop ", "qdisc noqueue ", "addrgenmode eui64 ", "").Replace(state)
}

// TestVXLANMovesLive changes port and VNI in the datastore, and then the devices by hand.
func TestVXLANMovesLive(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	allWell(t, l)
	run(t, l, "node-1", "ip", "link", "add", "vx99", "type", "vxlan", "id", "99", "dstport", "4789", "dev", "eth0")
	run(t, l, "node-1", "ip", "link", "set", "vx99", "up")
	amend(t, l, felixKey, "FelixConfiguration", map[string]any{"vxlanPort": 8472, "vxlanVNI": 77})
	devices := []string{kernel.VXLANDevice, kernel.VXLAN6Device}
	nettest.Eventually(t, func() error {
		for _, node := range []string{"node-1", "node-2"} {
			for _, dev := range devices {
				if out, err := try(t, l, node, "ip", "-d", "link", "show", dev); err != nil || !strings.Contains(out, "vxlan id 77 ") || !strings.Contains(out, "dstport 8472") {
					return fmt.Errorf("%s of %s: %s, %w", dev, node, out, err)
				}
			}
			if out := run(t, l, node, "nft", "list", "table", "inet", "muslin"); strings.Contains(out, "4789") || !strings.Contains(out, "dport 8472") {
				return fmt.Errorf("rules of %s: %s", node, out)
			}
		}
		return nil
	})
	allWell(t, l)
	want := unnumbered(kernelState(t, l, "node-1"))
	for _, dev := range devices {
		for _, spoil := range []string{
			"ip link set " + dev + " address 66:00:00:00:00:99", "ip link set " + dev + " type vxlan learning", "ip link set " + dev + " mtu 1300",
			"ip link del " + dev, "bridge fdb flush dev " + dev,
		} {
			run(t, l, "node-1", strings.Fields(spoil)...)
			nettest.Eventually(t, func() error {
				if d := cmp.Diff(want, unnumbered(kernelState(t, l, "node-1"))); d != "" {
					return fmt.Errorf("%s: the kernel differs (-want +got): %s", spoil, d)
				}
				return nil
			})
		}
	}
	allWell(t, l)
}
