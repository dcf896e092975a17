package nft

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// BenchmarkPackets sends packets from pod to pod, all of one flow that is never answered: each is a first packet, and asks all of policy. Besides the floor,
// where the host has no table, each case has so many policies of five rules that apply and match nothing before the profile that lets the packet through, and so
// many endpoints, and policies with a list of their own, that have nothing to do with it. The sender's processor does the forwarding too, so
// that the time is of one packet's whole way.
func BenchmarkPackets(b *testing.B) {
	run := func(name string, applying, others int) {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, settings())
			if others >= 0 {
				w.apply(ruleset.Whole(crowdOf(applying, others)))
			}
			w.send(b)
		})
	}
	run("no-table", 0, -1)
	for _, n := range []int{0, 1, 100, 10_000} {
		run(fmt.Sprintf("%d-other-endpoints-and-policies", n), 0, n)
	}
	for _, n := range []int{1, 10, 100} {
		run(fmt.Sprintf("%d-policies-that-apply", n), n, 0)
	}
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

// send measures one packet's way from socket to socket.
func (w *world) send(b *testing.B) {
	b.Helper()
	var out, in net.PacketConn
	var err error
	w.b.Do(func() { in, err = net.ListenPacket("udp4", addrB+":7000") })
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	w.a.Do(func() { out, err = net.ListenPacket("udp4", addrA+":0") })
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addrB + ":7000"))
	data := make([]byte, 64)
	if err := in.SetReadDeadline(time.Now().Add(10 * time.Minute)); err != nil {
		b.Fatal(err)
	}
	defer cpu(b)()
	b.ResetTimer()
	for sent := 0; sent < b.N; {
		burst := min(32, b.N-sent) // no more than the kernel's queues hold
		for range burst {
			if _, err := out.WriteTo(data, to); err != nil {
				b.Fatal(err)
			}
		}
		for range burst {
			if _, _, err := in.ReadFrom(data); err != nil {
				b.Fatal(err)
			}
		}
		sent += burst
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}
