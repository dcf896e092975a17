package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// probes are flows that policy allows and denies, in both directions and by both families, each datagram a flow of its own, and flows that are established. They
// go between pods of two nodes: web, web2 and client.
type probes struct {
	t               *testing.T
	allowed, denied map[string]*knocker
	streams         map[string]*stream
}

// probed stores the policy by which client alone reaches web and web alone is reached from there, adds the pods, and begins to knock.
func probed(t *testing.T, l *lab.Lab) *probes {
	t.Helper()
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "web2", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "client", Node: "node-2", Labels: map[string]string{"role": "client"}})
	listenTCP(t, l, "web", 80)
	listenTCP(t, l, "a2", 80)
	policy(t, l, "web", bothWays(5, ""))
	ways(t, l, "at first", reach{"client", "web", 80, true}, reach{"b1", "web", 80, false}, reach{"a2", "web", 80, false}, reach{"web", "a2", 80, false})
	web, web2, client, other := pod(t, l, "web"), pod(t, l, "web2"), pod(t, l, "client"), pod(t, l, "a2")
	p := &probes{t: t}
	p.allowed = map[string]*knocker{
		"in": knock(t, l, "client", "web", web.Addr), "in by IPv6": knock(t, l, "client", "web", web.Addr6),
		"out": knock(t, l, "web", "client", client.Addr), "out by IPv6": knock(t, l, "web", "client", client.Addr6),
	}
	p.denied = map[string]*knocker{
		"in": knock(t, l, "b1", "web2", web2.Addr), "in by IPv6": knock(t, l, "a2", "web2", web2.Addr6),
		"out": knock(t, l, "web", "a2", other.Addr), "out by IPv6": knock(t, l, "web", "a2", other.Addr6),
	}
	p.streams = map[string]*stream{"established": startStream(t, l, "client", "web"), "established by IPv6": startStream6(t, l, "client", "web2")}
	return p
}

// bothWays lets web and client speak with each other and nobody else with web. What is extra stands in front of the rules of both directions.
func bothWays(order int, extra string) string {
	return fmt.Sprintf(`"selector": "app == 'web'", "order": %d, "types": ["Ingress", "Egress"], "ingress": [%s{"action": "Allow", "source": {"selector": "role == 'client'"}}],
		"egress": [%[2]s{"action": "Allow", "destination": {"selector": "role == 'client'"}}]`, order, extra)
}

// end holds that nothing was lost that is allowed, and nothing came that is not.
func (p *probes) end() {
	p.t.Helper()
	for name, k := range p.denied {
		if sent, seen := k.stop(p.t); seen != 0 || sent < 100 {
			p.t.Errorf("denied, %s: %d of %d datagrams got through", name, seen, sent)
		}
	}
	for name, k := range p.allowed {
		if sent, seen := k.stop(p.t); seen != sent || sent < 100 {
			p.t.Errorf("allowed, %s: %d of %d datagrams were lost", name, sent-seen, sent)
		}
	}
	for name, got := range stopAll(p.t, p.streams) {
		if got.lost != 0 {
			p.t.Errorf("%s: %d of %d packets were lost", name, got.lost, got.sent)
		}
	}
}

// tableOf is node-1's table of policy as text, without what was counted, and sorted: what was made first is listed first.
func tableOf(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	return linesOf(run(t, l, "node-1", "nft", "--stateless", "list", "table", "inet", "muslin"))
}

func linesOf(text string) []string {
	return slices.DeleteFunc(slices.Sorted(strings.SplitSeq(text, "\n")), packetsOwn.MatchString)
}

// TestRestartsAndUpgradesOpenAndCloseNothing kills the agent with -9, and stops it, changes policy while it is down, and leaves it a table such as another release would
// have: with rules of another wording, chains, sets and counters that nobody needs any more, and without some that are. Each next agent has to make of it what the
// first had, and what has changed, at once.
func TestRestartsAndUpgradesOpenAndCloseNothing(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	p := probed(t, l)
	listenTCP(t, l, "a1", 80)
	before := tableOf(t, l)
	for i, otherRelease := range []string{
		"",
		"insert rule inet muslin forward counter; insert rule inet muslin accepted counter; add chain inet muslin old; add rule inet muslin old drop; add counter inet muslin r-old",
		"insert rule inet muslin wl-to-dispatch ct mark 0x77 counter; add set inet muslin a4-old { type ipv4_addr; elements = { 10.0.0.1 }; }",
		"add chain inet muslin forward-old { type filter hook forward priority -8; policy accept; }; add map inet muslin wl-old { type ifname : verdict; }",
	} {
		stop := l.KillAgent
		if i%2 == 1 {
			stop = l.StopAgent
		}
		if err := stop(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		if otherRelease != "" {
			run(t, l, "node-1", "nft", otherRelease)
		}
		closed := i%2 == 0
		if closed {
			policy(t, l, "a1", `"selector": "projectcalico.org/namespace == 'default' && !has(app) && !has(role)", "types": ["Ingress"]`)
		} else {
			remove(t, l, "networkpolicies/default/default.a1")
		}
		policy(t, l, "web", bothWays(5+i, fmt.Sprintf(`{"action": "Deny", "source": {"nets": ["198.51.%d.0/24"]}},`, i)))
		ways(t, l, "while nobody has told the kernel", reach{"client", "a1", 80, closed})
		if err := l.StartAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		ways(t, l, "as was changed while the agent was down", reach{"client", "a1", 80, !closed})
	}
	policy(t, l, "web", bothWays(5, ""))
	nettest.Eventually(t, func() error {
		if d := cmp.Diff(before, tableOf(t, l)); d != "" {
			return errors.New("the table differs from the first agent's (-first +last):\n" + d)
		}
		return nil
	})
	for range 5 { // as often as can be, with changes under way
		policy(t, l, "web", bothWays(7, `{"action": "Log", "source": {"nets": ["203.0.113.0/24"]}},`))
		if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
			t.Fatal(err)
		}
	}
	p.end()
}
