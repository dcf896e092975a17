package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// big returns a model of endpoints, in groups that are governed alike, and of policies of five rules, fifty to a group.
func big(locals, count int) policy.Model {
	m := policy.Model{
		Endpoints: map[policy.EndpointKey]*policy.Endpoint{}, Lists: map[policy.ListID]*policy.List{},
		Policies: map[policy.PolicyID]*policy.Policy{}, Sets: map[policy.SetID]*policy.Set{},
	}
	groups := max(1, count/50)
	for g := range groups {
		list := listOf(fmt.Sprintf("%016x", g), api.Ingress)
		for p := g; p < count; p += groups {
			in := version(p, 0)
			m.Policies[in.ID] = in
			if len(list.Tiers) == 0 {
				list.Tiers = []policy.TierPart{tier("default", api.Deny)}
			}
			list.Tiers[0].Policies = append(list.Tiers[0].Policies, in.ID)
		}
		m.Lists[list.ID] = list
	}
	out := listOf("ffffffffffffffff", api.Egress)
	m.Lists[out.ID] = out
	for i := range locals {
		e := pod(fmt.Sprint(i), fmt.Sprintf("cali%011x", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String(),
			fmt.Sprintf("%016x", i%groups), string(out.ID))
		m.Endpoints[e.Key] = e
	}
	for s := range 100 {
		id := policy.SetID(fmt.Sprintf("%016x", s))
		set := &policy.Set{ID: id}
		for a := range 10 {
			set.Addrs = append(set.Addrs, netip.AddrFrom4([4]byte{10, 200, byte(s), byte(a)}))
		}
		m.Sets[id] = set
	}
	return m
}

// version returns one of the versions of a policy.
func version(p, v int) *policy.Policy {
	in := policyOf(fmt.Sprintf("%08x%08x", p, v), api.Ingress)
	for r := range 5 {
		in.Rules = append(in.Rules, policy.Rule{
			ID: policy.RuleID(fmt.Sprintf("%07x%08x%1x", p, v, r)), Index: r, Action: api.Allow, Protocol: 6, IPVersion: 4,
			Source: policy.Match{Sets: []policy.SetID{policy.SetID(fmt.Sprintf("%016x", p%100))}}, Destination: ports(uint16(80+r), uint16(80+r)),
		})
	}
	return in
}

// cpu reports the time that processors spent per operation, the kernel's work for us included: the clock says little on a busy machine.
func cpu(b *testing.B) func() {
	spent := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := spent()
	return func() { b.ReportMetric(float64(spent()-before)/float64(b.N), "cpu-ns/op") }
}

type bench struct {
	c      *Conn
	k      *Keeper
	layout *ruleset.Layout
	m      policy.Model
}

func load(b *testing.B, locals, policies int) *bench {
	b.Helper()
	nettest.Need(b, "root")
	c, _ := open(b)
	w := &bench{c: c, k: NewKeeper(c, ruleset.Table), layout: ruleset.New(settings()), m: big(locals, policies)}
	w.layout.Update(ruleset.Whole(w.m))
	w.apply(b)
	return w
}

func (w *bench) apply(b *testing.B) {
	b.Helper()
	d := w.layout.Take()
	if _, err := w.k.Apply(b.Context(), w.layout.Table(), d, false); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkFullLoad(b *testing.B) {
	for _, size := range []struct{ locals, policies int }{{200, 1000}, {1000, 1000}, {10_000, 1000}, {200, 10_000}} {
		b.Run(fmt.Sprintf("%d-endpoints-%d-policies", size.locals, size.policies), func(b *testing.B) {
			w := load(b, size.locals, size.policies)
			b.ReportAllocs()
			defer cpu(b)()
			for b.Loop() {
				if err := w.c.Commit(b.Context(), ruleset.Table, nftable.Build(w.layout.Table()), 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLayout(b *testing.B) {
	m := big(200, 10_000)
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		ruleset.Of(settings(), nil, m)
	}
}

func BenchmarkEncode(b *testing.B) {
	d := nftable.Build(ruleset.Of(settings(), nil, big(200, 10_000)))
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		batch := newBatch(ruleset.Table, 0, 0)
		if err := batch.delta(d, 0); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(batch.b)), "B/batch")
	}
}

func BenchmarkPolicyChange(b *testing.B) {
	for _, policies := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("at-%d", policies), func(b *testing.B) {
			w := load(b, 200, policies)
			list := w.m.Lists["0000000000000000"]
			v := 0
			b.ReportAllocs()
			defer cpu(b)()
			for b.Loop() {
				v++
				old, fresh := version(0, v-1), version(0, v)
				next := *list
				next.ID = policy.ListID(fmt.Sprintf("c%015x", v))
				next.Tiers = []policy.TierPart{tier("default", api.Deny, append([]policy.PolicyID{fresh.ID}, list.Tiers[0].Policies[1:]...)...)}
				u := policy.Update{
					Policies:  map[policy.PolicyID]*policy.Policy{old.ID: nil, fresh.ID: fresh},
					Lists:     map[policy.ListID]*policy.List{list.ID: nil, next.ID: &next},
					Endpoints: map[policy.EndpointKey]*policy.Endpoint{},
				}
				for key, e := range w.m.Endpoints {
					if e.Ingress == list.ID {
						moved := *e
						moved.Ingress = next.ID
						u.Endpoints[key], w.m.Endpoints[key] = &moved, &moved
					}
				}
				w.layout.Update(u)
				w.apply(b)
				list = &next
			}
		})
	}
}

func BenchmarkMember(b *testing.B) {
	for _, policies := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("at-%d", policies), func(b *testing.B) {
			w := load(b, 200, policies)
			one := policy.Members{Addrs: []netip.Addr{netip.MustParseAddr("10.250.0.1")}}
			in := false
			defer cpu(b)()
			for b.Loop() {
				c := policy.SetChange{Added: one}
				if in {
					c = policy.SetChange{Removed: one}
				}
				in = !in
				w.layout.Update(policy.Update{Sets: map[policy.SetID]policy.SetChange{"0000000000000000": c}})
				w.apply(b)
			}
		})
	}
}

func BenchmarkEndpoint(b *testing.B) {
	for _, locals := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("at-%d", locals), func(b *testing.B) {
			w := load(b, locals, 1000)
			e := pod("new", "cali-new", "10.251.0.1", "0000000000000000", "ffffffffffffffff")
			in := false
			defer cpu(b)()
			for b.Loop() {
				next := e
				if in {
					next = nil
				}
				in = !in
				w.layout.Update(policy.Update{Endpoints: map[policy.EndpointKey]*policy.Endpoint{e.Key: next}})
				w.apply(b)
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	w := load(b, 200, 10_000)
	defer cpu(b)()
	for b.Loop() {
		l, _, err := w.c.List(b.Context(), ruleset.Table)
		if err != nil {
			b.Fatal(err)
		}
		if d := nftable.Diff(l, w.layout.Table()); !d.Empty() {
			b.Fatal("the kernel holds something else")
		}
	}
}
