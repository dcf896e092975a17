package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// wireGuardPoints are those that the suite leaves to the kernel that has WireGuard.
func wireGuardPoints() []fault.Point {
	return slices.DeleteFunc(fault.Points(), func(p fault.Point) bool { return !strings.HasPrefix(fault.Name(p), wireGuardPrefix) })
}

// faults has each write to the devices of node-1 fail, then its agent killed behind each. Others have damaged them meanwhile: whatever was cut off, in the end they
// are what they were, with the key that the others know.
func (e *encrypted) faults() {
	e.onNode("node-1", map[string]any{"interfaceRefreshInterval": "1s"})
	defer e.onNode("node-1", map[string]any{"interfaceRefreshInterval": "90s"})
	want := e.devices()
	for _, p := range wireGuardPoints() {
		for _, what := range []string{"error:EBUSY", "kill"} {
			e.Run(fault.Name(p)+"="+what, func(t *testing.T) {
				e := &encrypted{T: t, lab: e.lab}
				e.breaks(p, what)
				nettest.Eventually(t, func() error {
					if d := cmp.Diff(want, e.devices()); d != "" {
						return fmt.Errorf("the devices of node-1 differ (-before +now):\n%s", d)
					}
					return nil
				})
			})
		}
	}
	e.all()
}

// breaks damages node-1's devices and waits for what becomes of its agent when it passes a point on the way to mend them. Then nothing is broken any more.
func (e *encrypted) breaks(p fault.Point, what string) {
	e.Helper()
	mark := len(agentLog(e.T, e.lab, "node-1"))
	order(e.T, e.lab, "node-1", fault.Name(p)+"="+what)
	e.damage()
	nettest.Eventually(e.T, func() error {
		if what == "kill" && isDead(e.T, e.lab, "node-1") || what != "kill" && strings.Contains(agentLog(e.T, e.lab, "node-1")[mark:], fault.Name(p)+": "+unix.EBUSY.Error()) {
			return nil
		}
		return fmt.Errorf("the agent did not pass %s", fault.Name(p))
	})
	order(e.T, e.lab, "node-1", "")
	if what != "kill" {
		if isDead(e.T, e.lab, "node-1") {
			e.Error("the agent died of an error of the kernel")
		}
		return
	}
	if err := e.lab.StartAgent(e.Context(), "node-1"); err != nil {
		e.Fatal(err)
	}
}

// withWireGuard calls fn with a client inside node-1.
func (e *encrypted) withWireGuard(fn func(*wgctrl.Client) error) {
	e.Helper()
	err := e.lab.Within("node-1", func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return fn(c)
	})
	if err != nil {
		e.Fatal(err)
	}
}

// damage gives each device of node-1 another port and a stranger as a peer, and takes one from it.
func (e *encrypted) damage() {
	e.Helper()
	e.withWireGuard(func(c *wgctrl.Client) error {
		for i, name := range []string{"wireguard.cali", "wg-v6.cali"} {
			d, err := c.Device(name)
			if err != nil {
				return err
			}
			port := 51990 + i
			peers := []wgtypes.PeerConfig{{PublicKey: wgtypes.Key{9, 9, byte(i)}, AllowedIPs: []net.IPNet{{IP: net.IPv4(198, 51, 100, 0), Mask: net.CIDRMask(24, 32)}}}}
			if len(d.Peers) > 0 {
				peers = append(peers, wgtypes.PeerConfig{PublicKey: d.Peers[0].PublicKey, Remove: true})
			}
			if err := c.ConfigureDevice(name, wgtypes.Config{ListenPort: &port, Peers: peers}); err != nil {
				return err
			}
		}
		return nil
	})
}

// devices is what node-1's devices have, as text: key, port, mark, peers.
func (e *encrypted) devices() map[string][]string {
	e.Helper()
	out := map[string][]string{}
	e.withWireGuard(func(c *wgctrl.Client) error {
		for _, name := range []string{"wireguard.cali", "wg-v6.cali"} {
			d, err := c.Device(name)
			if err != nil {
				return err
			}
			for _, p := range d.Peers {
				var allowed []string
				for _, a := range p.AllowedIPs {
					allowed = append(allowed, a.String())
				}
				slices.Sort(allowed)
				out[name] = append(out[name], fmt.Sprintf("%v at %v: %v", p.PublicKey, p.Endpoint, allowed))
			}
			slices.Sort(out[name])
			out[name] = append(out[name], fmt.Sprintf("%v, port %d, mark %#x", d.PublicKey, d.ListenPort, d.FirewallMark))
		}
		return nil
	})
	return out
}
