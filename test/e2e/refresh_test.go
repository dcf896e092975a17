package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// everySecond are the settings by which everything is looked for anew each second.
const everySecond = toHost + `, "routeRefreshInterval": "1s", "interfaceRefreshInterval": "1s", "ipsetsRefreshInterval": "1s", "iptablesRefreshInterval": "1s"`

// damage is what others do to an object of ours on node-1, and what the log says was found.
type damage struct{ command, object, found string }

// repairs does damage, and waits until it was found, repaired and told.
func repairs(t *testing.T, l *lab.Lab, all []damage) {
	t.Helper()
	for _, d := range all {
		before := kernelState(t, l, "node-1")
		run(t, l, "node-1", "sh", "-ec", d.command)
		nettest.Eventually(t, func() error {
			text := agentLog(t, l, "node-1")
			for line := range strings.Lines(text) {
				if strings.Contains(line, "repaired what others changed") && strings.Contains(line, "object="+d.object+" ") &&
					strings.Contains(strings.ReplaceAll(line, "found=\"", "found="), "found="+d.found) && strings.Contains(line, " done=") {
					return nil
				}
			}
			return fmt.Errorf("%s: no repair of %s is told with %q:\n%s", d.command, d.object, d.found, text)
		})
		nettest.Eventually(t, func() error {
			if now := kernelState(t, l, "node-1"); now != before {
				return fmt.Errorf("%s: the kernel is not as before:\n%s", d.command, now)
			}
			return nil
		})
	}
}

func TestRefreshRepairsWhatNoEventTells(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	dev := hostSideOnNode1(t, l)
	setFelix(t, l, everySecond)
	localnet := "net/ipv4/conf/" + dev + "/route_localnet"
	repairs(t, l, []damage{
		{"ipset add cali40masq-ipam-pools 203.0.113.0/24", "cali40masq-ipam-pools", "1 member too many"},
		{"ipset flush cali40network-ip-pools", "cali40network-ip-pools", "1 of 1 member missing"},
		{"ipset create cali40stray hash:net", "cali40stray", "added by others: 0 members"},
		{"echo 0 >/proc/sys/" + localnet, localnet, "changed to 0"},
	})
	allWell(t, l)
}

// TestVMChangeOfIptables changes the setting over a restart, there and back: what is ours goes from the tables of before, and others' stays. The
// legacy ones send no events.
func TestVMChangeOfIptables(t *testing.T) {
	nettest.Need(t, "vm", "iptables-nft", "iptables-legacy")
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	use := func(now, before string) {
		t.Helper()
		run(t, l, "node-1", before, "-A", "FORWARD", "-s", "203.0.113.1", "-j", "DROP")
		backend := map[string]string{"iptables-nft": "NFT", "iptables-legacy": "Legacy"}[now]
		setFelix(t, l, everySecond+`, "iptablesBackend": "`+backend+`"`)
		if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
			t.Fatal(err)
		}
		eventually(t, l, has("-j cali-nat-outgoing"), now+"-save")
		eventually(t, l, hasNot("cali"), before+"-save")
		eventually(t, l, has("203.0.113.1"), before+"-save")
	}
	use("iptables-legacy", "iptables-nft")
	repairs(t, l, []damage{
		{"iptables-legacy -t nat -F cali-nat-outgoing", `"cali-nat-outgoing of table nat"`, "1 of 1 rule missing"},
		{"iptables-legacy -t nat -F POSTROUTING", `"POSTROUTING of table nat"`, "gone"},
	})
	use("iptables-nft", "iptables-legacy")
	allWell(t, l)
}
