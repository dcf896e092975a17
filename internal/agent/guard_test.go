package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// fakeTable is a kernel's table that fails, or holds something else, when told to.
type fakeTable struct {
	fails   error
	foreign nftable.Delta // that others have done since the last look
	doubted bool
	kept    bool // as the last Apply was told
	applied int
}

func (f *fakeTable) Apply(_ context.Context, _ *nftable.Table, d nftable.Delta, keep bool) (nft.Done, error) {
	f.applied++
	f.kept = keep
	if f.fails != nil {
		return nft.Done{}, f.fails
	}
	if !f.doubted {
		return nft.Done{Changed: d}, nil
	}
	f.doubted = false
	return f.Check(context.Background(), nil)
}

func (f *fakeTable) Check(context.Context, *nftable.Table) (nft.Done, error) {
	done := nft.Done{Listed: true, Changed: f.foreign}
	f.foreign = nftable.Delta{}
	return done, f.fails
}

func (f *fakeTable) Doubt() { f.doubted = true }

// guarded is a guard of node-1 with a feed of its own.
type guarded struct {
	*guard
	t        *testing.T
	table    *fakeTable
	feed     *feed.Feed
	rev      int64
	freed    []netip.Addr
	settings ruleset.Settings
}

func newGuarded(t *testing.T) *guarded {
	log := slog.New(slog.DiscardHandler)
	g := &guarded{t: t, guard: newGuard("node-1", log), table: &fakeTable{}, feed: feed.New(nil, log),
		settings: ruleset.Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000, VXLANPort: 4789}}
	g.open = func() (policyKeeper, error) { return g.table, nil }
	g.noteMask = func(uint32) error { return nil }
	g.released = func(addrs []netip.Addr) { g.freed = append(g.freed, addrs...) }
	return g
}

// workload stores an endpoint, or deletes it if it has no container.
func (g *guarded) workload(name, container, addr string) {
	g.rev++
	spec := api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: "node-1", Pod: name, Endpoint: "eth0"}
	key := (&api.WorkloadEndpoint{}).KindOf().Key("default", api.WorkloadEndpointName(spec))
	kv := store.KV{Key: key, Rev: g.rev}
	if container != "" {
		kv.Value = fmt.Appendf(nil, `{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":"default"},"spec":{"orchestrator":"k8s",
			"node":"node-1","pod":%q,"endpoint":"eth0","containerID":%q,"interfaceName":"cali%s","ipNetworks":["%s/32"],"profiles":["missing"]}}`,
			api.WorkloadEndpointName(spec), name, container, name, addr)
	}
	g.feed.Commit([]store.KV{kv})
}

func (g *guarded) round() (repaired int, err error) {
	g.t.Helper()
	snap, _ := g.feed.Snapshot()
	res, err := g.enforce(g.t.Context(), snap, g.settings, kernel.Host{}, 1)
	return res.Repaired, err
}

// admitted are the destinations whose routes are written, and those that are left as they are, of three workloads.
func (g *guarded) admitted() string {
	s := kernel.NewState()
	for i, name := range []string{"a", "b", "c"} {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 32)
		s.Routes[kernel.RouteKey{Dst: dst, Metric: 1024}] = kernel.Route{Dev: kernel.Dev{Name: "cali" + name, Index: i}}
	}
	got := g.admit(s)
	var out []string
	for k := range got.Routes {
		out = append(out, k.Dst.Addr().String())
	}
	for k := range got.Held {
		out = append(out, "held "+k.Dst.Addr().String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestPodGetsNoRouteWhileItsAddressHasConnectionsOfAnother(t *testing.T) {
	g := newGuarded(t)
	var still []netip.Addr
	g.inherits = func(a netip.Addr) bool { return slices.Contains(still, a) }
	g.workload("a", "c1", "10.0.0.1")
	g.workload("b", "c2", "10.0.0.2")
	g.believe()
	if _, err := g.round(); err != nil {
		t.Fatal(err)
	}
	still = []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.9")}
	if got, want := g.admitted(), "10.0.0.1, 10.0.0.3, held 10.0.0.2"; got != want || g.owes() {
		t.Errorf("while connections are remembered: %s, want %s; routes are to follow: %t", got, want, g.owes())
	}
	still = nil
	if !g.owes() {
		t.Error("no route is to follow once they are forgotten")
	}
	if got, want := g.admitted(), "10.0.0.1, 10.0.0.2, 10.0.0.3"; got != want {
		t.Errorf("then: %s, want %s", got, want)
	}
}

func TestWorkloadsWhosePolicyIsNotInForceWait(t *testing.T) {
	g := newGuarded(t)
	g.workload("a", "c1", "10.0.0.1")
	g.believe()
	if _, err := g.round(); err != nil || !g.holds() {
		t.Fatal(err)
	}
	g.table.fails = errors.New("refused")
	g.workload("b", "c2", "10.0.0.2")
	if _, err := g.round(); !errors.Is(err, g.table.fails) || g.holds() {
		t.Errorf("error %v", err)
	}
	if got, want := g.admitted(), "10.0.0.1, 10.0.0.3, held 10.0.0.2"; got != want {
		t.Errorf("while commits fail: %s, want %s", got, want)
	}
	g.workload("a", "c3", "10.0.0.1") // the same name and address, and another container
	_, _ = g.round()
	if got, want := g.admitted(), "10.0.0.3, held 10.0.0.1, held 10.0.0.2"; got != want {
		t.Errorf("a pod made anew meanwhile: %s, want %s", got, want)
	}
	g.table.fails = nil
	if _, err := g.round(); err != nil || !g.owes() {
		t.Errorf("error %v, routes are to follow: %t", err, g.owes())
	}
	if got, want := g.admitted(), "10.0.0.1, 10.0.0.2, 10.0.0.3"; got != want {
		t.Errorf("once it is in force: %s, want %s", got, want)
	}
	if g.owes() {
		t.Error("routes are to follow still")
	}
	g.workload("b", "", "")
	if _, err := g.round(); err != nil || fmt.Sprint(g.freed) != "[10.0.0.1 10.0.0.2]" {
		t.Errorf("released %v, error %v; want the container's that was replaced, and the one's that is gone", g.freed, err)
	}
	if got := strings.Join(g.troubles(), "; "); !strings.Contains(got, "missing") {
		t.Errorf("nobody says that a profile is missing: %q", got)
	}
}

func TestNothingIsTakenFromTheTableBeforeTheFeedHasCaughtUp(t *testing.T) {
	g := newGuarded(t)
	if _, err := g.round(); err != nil || !g.table.kept || g.holds() {
		t.Errorf("at first: kept %t, holds %t, error %v", g.table.kept, g.holds(), err)
	}
	g.believe()
	if _, err := g.round(); err != nil || g.table.kept || !g.holds() {
		t.Errorf("later: kept %t, holds %t, error %v", g.table.kept, g.holds(), err)
	}
}

func TestHostWithoutNftablesSaysSoAndTriesAgain(t *testing.T) {
	g := newGuarded(t)
	works := g.open
	g.open = func() (policyKeeper, error) { return nil, errors.New("protocol not supported") }
	g.workload("a", "c1", "10.0.0.1")
	g.believe()
	if _, err := g.round(); err == nil || g.holds() || !strings.Contains(strings.Join(g.troubles(), "\n"), "cannot enforce policy, so no pod is added to it: protocol not supported") {
		t.Errorf("error %v, troubles %q", err, g.troubles())
	}
	if got, want := g.admitted(), "10.0.0.2, 10.0.0.3, held 10.0.0.1"; got != want {
		t.Errorf("routes %s, want %s", got, want)
	}
	g.open = works
	if _, err := g.round(); err != nil || !g.holds() || strings.Contains(strings.Join(g.troubles(), "\n"), "cannot enforce") {
		t.Errorf("error %v, troubles %q", err, g.troubles())
	}
}

func TestWhatOthersDidToTheTableIsToldAndWhatWasAskedForIsNot(t *testing.T) {
	g := newGuarded(t)
	g.believe()
	if n, err := g.round(); n != 0 || err != nil {
		t.Errorf("the first round repaired %d: %v", n, err)
	}
	g.table.foreign = nftable.Delta{DelChains: []string{"stray"}, SetChains: []*nftable.Chain{nftable.NewChain("input", nftable.Base{})}}
	g.doubt()
	if n, err := g.round(); n != 2 || err != nil {
		t.Errorf("repaired %d: %v, want 2", n, err)
	}
	g.table.foreign = nftable.Delta{DelChains: []string{"stray"}}
	if n, err := g.round(); n != 0 || err != nil {
		t.Errorf("repaired %d before it was time to look: %v", n, err)
	}
	g.check(true)
	if n, err := g.round(); n != 1 || err != nil {
		t.Errorf("repaired %d when it was time to look: %v", n, err)
	}
}

// store puts the value of a key, or deletes it if it is "".
func (g *guarded) store(key, value string) {
	g.rev++
	kv := store.KV{Key: key, Rev: g.rev}
	if value != "" {
		kv.Value = []byte(value)
	}
	g.feed.Commit([]store.KV{kv})
}

func TestPolicyThatCannotBeReadAnyMoreStaysInForce(t *testing.T) {
	const (
		key  = api.ResourcesRoot + "networkpolicies/default/default.a"
		good = `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.a","namespace":"default"},"spec":{"types":["Ingress"]}}`
		bad  = `{"kind":"NetworkPolicy","spec":{"ingress":"all"}}`
	)
	g := newGuarded(t)
	g.workload("a", "c1", "10.0.0.1")
	g.believe()
	for _, step := range []struct {
		value, trouble string
		policies       int
	}{
		{bad, "no earlier version is known: IT IS NOT ENFORCED", 0},
		{good, "", 1},
		{bad, "the version before it stays in force", 1},
		{bad + " ", "the version before it stays in force", 1},
		{"", "", 0},
		{bad, "no earlier version is known", 0},
		{"", "", 0},
	} {
		g.store(key, step.value)
		if _, err := g.round(); err != nil {
			t.Fatal(err)
		}
		said := strings.Join(g.kept.troubles(), "; ")
		if got := g.numbers().policies; got != step.policies || !strings.Contains(said, step.trouble) || step.trouble == "" && said != "" {
			t.Errorf("with %q: %d policies, want %d; said %q, want %q", step.value, got, step.policies, said, step.trouble)
		}
	}
}

// TestKeptPolicyGoesWithTheDatastoresListing has so much change that the feed names no keys.
func TestKeptPolicyGoesWhereKeysAreNotNamedToo(t *testing.T) {
	const key = api.ResourcesRoot + "tiers/first"
	g := newGuarded(t)
	g.believe()
	flood := func() {
		for i := range 20_000 {
			g.store(fmt.Sprintf("%sippools/p%d", api.ResourcesRoot, i%7), "x")
		}
	}
	for _, step := range []struct {
		value string
		kept  kept
	}{
		{`{"kind":"Tier","metadata":{"name":"first"},"spec":{"order":1}}`, kept{}},
		{`x`, kept{key: true}},
		{``, kept{}},
		{`x`, kept{key: false}},
	} {
		g.store(key, step.value)
		flood()
		snap, _ := g.feed.Snapshot()
		if !snap.Since(g.snap).All {
			t.Fatal("the feed names keys")
		}
		if _, err := g.round(); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(g.kept, step.kept) {
			t.Errorf("with %q: kept %v, want %v", step.value, g.kept, step.kept)
		}
	}
}

// TestMarkChangesInTheTableAndInIptablesByTurns holds that at no moment a packet bears a mark that iptables does not go by.
func TestMarkChangesInTheTableAndInIptablesByTurns(t *testing.T) {
	g := newGuarded(t)
	g.believe()
	round := func(mask uint32) ruleset.Settings {
		g.settings.MarkMask = mask
		if _, err := g.round(); err != nil {
			t.Fatal(err)
		}
		return g.guard.settings
	}
	if s := round(0xf0000); s.MarkMask != 0xf0000 || s.AlsoAccept != 0 || g.heed(0xf0000) {
		t.Errorf("at first %+v", s)
	}
	for range 2 { // for as long as iptables cannot be changed
		if s := round(0xe0000); s.MarkMask != 0xf0000 || s.AlsoAccept != 0x20000 {
			t.Errorf("before iptables has changed: mask %#x, also %#x", s.MarkMask, s.AlsoAccept)
		}
	}
	if !g.heed(0xe0000) {
		t.Error("iptables has changed, and the table need not")
	}
	if s := round(0xe0000); s.MarkMask != 0xe0000 || s.AlsoAccept != 0 || g.heed(0xe0000) {
		t.Errorf("at last %+v", s)
	}
}
