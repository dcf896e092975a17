package nft

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// packetsPerTurn is how many packets one case carries before it is the next one's turn.
const packetsPerTurn = 5000

// BenchmarkPackets sends packets from pod to pod, all of one flow that is never answered: each is a first packet, and asks all of policy. Besides the floor,
// where the host has no table, each case has so many policies of five rules that apply and match nothing before the profile that lets the packet through, and so
// many endpoints, and policies with a list of their own, that have nothing to do with it. The sender's processor does the forwarding too, so that the time is of one
// packet's whole way. One operation is a turn of each case, so that what else the machine does meets all alike; what is reported is the median of the turns' own
// ratios, by the time of the floor.
func BenchmarkPackets(b *testing.B) {
	cases := []*course{{name: "floor", others: -1}}
	for _, n := range []int{0, 1, 100, 10_000} {
		cases = append(cases, &course{name: fmt.Sprintf("%d-others", n), others: n})
	}
	for _, n := range []int{1, 10, 100} {
		cases = append(cases, &course{name: fmt.Sprintf("%d-that-apply", n), applying: n})
	}
	for _, c := range cases {
		c.prepare(b)
	}
	for b.Loop() {
		for _, c := range cases {
			c.took = append(c.took, c.carry(b).Seconds())
		}
	}
	floor := cases[0].took
	b.ReportMetric(packetsPerTurn/median(floor), "floor-packets/s")
	for _, c := range cases[1:] {
		ratios := make([]float64, len(floor))
		for i, t := range c.took {
			ratios[i] = t / floor[i]
		}
		b.ReportMetric(median(ratios), "x-"+c.name)
	}
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

// course is a world of its own for one case, with a socket at each end of the packets' way.
type course struct {
	name             string
	applying, others int // less than no others: no table either
	in, out          net.PacketConn
	took             []float64 // seconds of each turn
}

func (c *course) prepare(b *testing.B) {
	b.Helper()
	w := newWorld(b, settings())
	if c.others >= 0 {
		w.apply(ruleset.Whole(crowdOf(c.applying, c.others)))
	}
	var err error
	w.b.Do(func() { c.in, err = net.ListenPacket("udp4", addrB+":7000") })
	if err != nil {
		b.Fatal(err)
	}
	w.a.Do(func() { c.out, err = net.ListenPacket("udp4", addrA+":0") })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _, _ = c.in.Close(), c.out.Close() })
	if err := c.in.SetReadDeadline(time.Now().Add(10 * time.Minute)); err != nil {
		b.Fatal(err)
	}
}

// carry is one turn.
func (c *course) carry(b *testing.B) time.Duration {
	b.Helper()
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addrB + ":7000"))
	data := make([]byte, 64)
	began := time.Now()
	for sent := 0; sent < packetsPerTurn; {
		burst := min(32, packetsPerTurn-sent) // no more than the kernel's queues hold
		for range burst {
			if _, err := c.out.WriteTo(data, to); err != nil {
				b.Fatal(err)
			}
		}
		for range burst {
			if _, _, err := c.in.ReadFrom(data); err != nil {
				b.Fatal(err)
			}
		}
		sent += burst
	}
	return time.Since(began)
}

// crowdOf is the two pods of the world and so many others.
func crowdOf(applying, others int) policy.Model {
	m := big(others, others)
	all := policyOf("all", api.Egress, policy.Rule{Action: api.Allow})
	in := policyOf("in", api.Ingress, policy.Rule{Action: api.Allow})
	out, back := listOf("out", api.Egress), listOf("back", api.Ingress)
	out.Profiles, back.Profiles = []policy.PolicyID{all.ID}, []policy.PolicyID{in.ID}
	m.Policies[all.ID], m.Policies[in.ID] = all, in
	if applying > 0 {
		part := tier("default", api.Pass)
		for i := range applying {
			p := version(1_000_000+i, 0)
			m.Policies[p.ID] = p
			part.Policies = append(part.Policies, p.ID)
		}
		back.Tiers = append(back.Tiers, part)
	}
	m.Lists[out.ID], m.Lists[back.ID] = out, back
	for _, e := range []*policy.Endpoint{pod("a", "cali1", addrA, "back", "out"), pod("b", "cali2", addrB, "back", "out")} {
		m.Endpoints[e.Key] = e
	}
	return m
}
