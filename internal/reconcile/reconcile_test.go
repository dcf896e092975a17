package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// fake is a kernel table in memory that notes what is asked of it and fails where told to.
type fake[K, V comparable] struct {
	name    string
	have    map[K]V
	journal *[]string
	listErr error
	broken  map[K]error
	err     error // of an Apply as a whole
}

func newFake[K, V comparable](name string, journal *[]string) *fake[K, V] {
	return &fake[K, V]{name: name, have: map[K]V{}, journal: journal, broken: map[K]error{}}
}

func (f *fake[K, V]) List(context.Context) (map[K]V, error) {
	*f.journal = append(*f.journal, "list "+f.name)
	return maps.Clone(f.have), f.listErr
}

func (f *fake[K, V]) Apply(_ context.Context, changes []kernel.Change[K, V]) error {
	if f.err != nil {
		return f.err
	}
	return kernel.Each(changes, func(c kernel.Change[K, V]) error {
		verb := "put"
		if c.New == nil {
			verb = "remove"
		}
		*f.journal = append(*f.journal, fmt.Sprintf("%s %s %v", verb, f.name, c.Key))
		if f.broken[c.Key] != nil {
			return f.broken[c.Key]
		}
		kernel.Patch(f.have, []kernel.Change[K, V]{c})
		return nil
	})
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

func dst(s string) kernel.RouteKey { return kernel.RouteKey{Dst: netip.MustParsePrefix(s)} }

var blackhole = kernel.Route{Type: kernel.Blackhole, Protocol: 80}

// routing is a reconciler with a routes table alone.
func routing() (*Reconciler, *fake[kernel.RouteKey, kernel.Route], *[]string) {
	journal := &[]string{}
	f := newFake[kernel.RouteKey, kernel.Route]("route", journal)
	return New(Tables{Routes: f}, silent()), f, journal
}

func routes(keys ...kernel.RouteKey) kernel.State {
	s := kernel.NewState()
	for _, k := range keys {
		s.Routes[k] = blackhole
	}
	return s
}

func mustRefresh(t *testing.T, r *Reconciler) bool {
	t.Helper()
	listed, err := r.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return listed
}

func mustApply(t *testing.T, r *Reconciler, s kernel.State) Result {
	t.Helper()
	res, err := r.Apply(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestRefreshListsOnlyWhatIsDirty(t *testing.T) {
	r, _, journal := routing()
	if !mustRefresh(t, r) || mustRefresh(t, r) {
		t.Error("want one list at the start and none after")
	}
	r.MarkDirty(Links)
	if mustRefresh(t, r) {
		t.Error("a table that is left out was listed")
	}
	for _, mark := range []func(){func() { r.MarkDirty() }, func() { r.MarkDirty(Routes) }, func() { r.Observe(kernel.Events{Lost: true}) }, func() { r.Observe(kernel.Events{RoutesLost: true}) }} {
		mark()
		if !mustRefresh(t, r) {
			t.Error("a dirty table was not listed")
		}
	}
	if len(*journal) != 5 {
		t.Errorf("journal %v", *journal)
	}
}

func TestNothingIsRemovedFromATableThatWasNeverListed(t *testing.T) {
	r, f, _ := routing()
	f.have[dst("10.9.0.0/24")] = blackhole
	f.listErr = errors.New("no memory")
	if listed, err := r.Refresh(t.Context()); listed || !errors.Is(err, f.listErr) {
		t.Fatalf("listed %v, err %v", listed, err)
	}
	mustApply(t, r, routes(dst("10.1.0.0/24"), dst("10.2.0.0/24")))
	mustApply(t, r, routes(dst("10.1.0.0/24")))
	if len(f.have) != 3 {
		t.Errorf("have %v", f.have)
	}
	f.listErr = nil
	mustRefresh(t, r)
	mustApply(t, r, routes(dst("10.1.0.0/24")))
	if diff := cmp.Diff(routes(dst("10.1.0.0/24")).Routes, f.have, cmp.Comparer(func(a, b kernel.Route) bool { return a == b }), cmp.Comparer(func(a, b kernel.RouteKey) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestSecondApplyWritesNothing(t *testing.T) {
	r, _, journal := routing()
	mustRefresh(t, r)
	want := routes(dst("10.1.0.0/24"), dst("10.2.0.0/24"))
	if res := mustApply(t, r, want); res.Changed != 2 || res.Tables[Routes] != 2 {
		t.Errorf("got %+v", res)
	}
	before := len(*journal)
	if res := mustApply(t, r, want); res.Changed != 0 || len(res.Tables) != 0 || len(*journal) != before {
		t.Errorf("got %+v, journal %v", res, *journal)
	}
}

func TestFailureStopsNothingElseAndIsRetried(t *testing.T) {
	r, f, _ := routing()
	mustRefresh(t, r)
	bad := dst("10.1.0.0/24")
	f.broken[bad] = errors.New("in the way")
	res, err := r.Apply(t.Context(), routes(bad, dst("10.2.0.0/24")))
	if !errors.Is(err, f.broken[bad]) || res.Changed != 1 || len(f.have) != 1 {
		t.Errorf("%+v, %v, have %v", res, err, f.have)
	}
	delete(f.broken, bad)
	if !mustRefresh(t, r) {
		t.Error("a table with a failure is trusted")
	}
	if res := mustApply(t, r, routes(bad, dst("10.2.0.0/24"))); res.Changed != 1 || len(f.have) != 2 {
		t.Errorf("%+v, have %v", res, f.have)
	}
}

func TestErrorThatNamesNoObjectConfirmsNone(t *testing.T) {
	r, f, _ := routing()
	mustRefresh(t, r)
	f.err = errors.New("socket closed")
	if res, err := r.Apply(t.Context(), routes(dst("10.1.0.0/24"))); err == nil || res.Changed != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	f.err = nil
	if res := mustApply(t, r, routes(dst("10.1.0.0/24"))); res.Changed != 1 {
		t.Errorf("%+v", res)
	}
}

func TestRouteStaysUntilItsSuccessorIsIn(t *testing.T) {
	r, f, _ := routing()
	pod := netip.MustParsePrefix("10.0.0.1/32")
	old, next := kernel.RouteKey{Dst: pod}, kernel.RouteKey{Dst: pod, Metric: 1024}
	f.have[old] = kernel.Route{Protocol: 3}
	f.have[dst("10.9.0.0/24")] = blackhole
	f.broken[next] = errors.New("not now")
	mustRefresh(t, r)
	if _, err := r.Apply(t.Context(), routes(next)); err == nil {
		t.Fatal("no error")
	}
	if _, ok := f.have[old]; !ok || len(f.have) != 1 {
		t.Errorf("have %v", f.have)
	}
	delete(f.broken, next)
	mustRefresh(t, r)
	mustApply(t, r, routes(next))
	if _, ok := f.have[next]; !ok || len(f.have) != 1 {
		t.Errorf("have %v", f.have)
	}
}

func TestRouteStaysUntilItsSuccessorCanBeWritten(t *testing.T) {
	r, f, _ := routing()
	k := dst("10.1.0.0/24")
	f.have[k], f.have[dst("10.2.0.0/24")] = blackhole, blackhole
	mustRefresh(t, r)
	waiting := kernel.NewState()
	waiting.Held[k] = kernel.Route{}
	for range 2 {
		mustApply(t, r, waiting)
		if _, there := f.have[k]; !there || len(f.have) != 1 {
			t.Fatalf("have %v, want the route that is held", f.have)
		}
	}
	mustApply(t, r, kernel.NewState())
	if len(f.have) != 0 {
		t.Errorf("have %v after the hold", f.have)
	}
}

// A place that waits for its route is filled only where it is empty, which nobody knows before the first list.
func TestRouteForTheMeantimeIsWrittenOnlyWhereNoneStands(t *testing.T) {
	r, f, journal := routing()
	taken, empty := dst("10.1.0.0/24"), dst("10.2.0.0/24")
	old, meantime := kernel.Route{Type: kernel.Blackhole, Protocol: 12}, blackhole
	f.have[taken] = old
	s := kernel.NewState()
	s.Held[taken], s.Held[empty] = meantime, meantime
	if mustApply(t, r, s); len(*journal) > 0 {
		t.Errorf("before the first list: %v", *journal)
	}
	mustRefresh(t, r)
	for range 2 {
		mustApply(t, r, s)
		if want := []string{"list route", "put route main " + empty.Dst.String() + " 0"}; !slices.Equal(want, *journal) || f.have[taken] != old || f.have[empty] != meantime {
			t.Errorf("journal %v, have %v", *journal, f.have)
		}
	}
	if mustApply(t, r, routes(taken)); len(f.have) != 1 || f.have[taken] != meantime {
		t.Errorf("when the time is over: %v", f.have)
	}
}

func TestChangesFollowDependency(t *testing.T) {
	var journal []string
	tables := Tables{
		Sysctls: newFake[kernel.SysctlKey, string]("sysctl", &journal),
		Links:   newFake[string, kernel.Link]("link", &journal),
		Addrs:   newFake[kernel.AddrKey, struct{}]("addr", &journal),
		Neighs:  newFake[kernel.NeighKey, kernel.MAC]("neigh", &journal),
		FDB:     newFake[kernel.FDBKey, netip.Addr]("fdb", &journal),
		Sets:    newFake[kernel.SetKey, kernel.Set]("set", &journal),
		Routes:  newFake[kernel.RouteKey, kernel.Route]("route", &journal),
		Rules:   newFake[kernel.Rule, struct{}]("rule", &journal),
		Chains:  newFake[kernel.ChainKey, kernel.Chain]("chain", &journal),
		Chains6: newFake[kernel.ChainKey, kernel.Chain]("chain6", &journal),
	}
	r := New(tables, silent())
	mustRefresh(t, r)
	s := kernel.NewState()
	s.Sysctls[kernel.SysctlKey{Path: "x"}] = "1"
	s.Links["vx"] = kernel.Link{}
	s.Addrs[kernel.AddrKey{Link: "vx"}] = struct{}{}
	s.Neighs[kernel.NeighKey{}] = kernel.MAC{}
	s.FDB[kernel.FDBKey{}] = netip.Addr{}
	s.Sets["b"], s.Sets["a"] = kernel.Set{}, kernel.Set{}
	s.Routes[kernel.RouteKey{}] = kernel.Route{}
	s.Rules[kernel.Rule{}] = struct{}{}
	s.Chains[kernel.ChainKey{}] = kernel.Chain{}
	s.Chains6[kernel.ChainKey{}] = kernel.Chain{}
	order := func() (kinds []string) {
		for _, line := range journal {
			var verb, kind string
			if _, err := fmt.Sscan(line, &verb, &kind); err != nil {
				t.Fatal(err)
			}
			kinds = append(kinds, verb+" "+kind)
		}
		return slices.Compact(kinds)
	}
	journal = nil
	mustApply(t, r, s)
	up := []string{"put sysctl", "put link", "put addr", "put neigh", "put fdb", "put set", "put chain", "put chain6", "put rule", "put route"}
	if diff := cmp.Diff(up, order()); diff != "" {
		t.Error(diff)
	}
	if !slices.Contains(journal, "put set a") || slices.Index(journal, "put set a") > slices.Index(journal, "put set b") {
		t.Errorf("changes of one table are in no order: %v", journal)
	}
	journal = nil
	next := kernel.NewState()
	next.Routes[dst("10.1.0.0/24")] = blackhole
	mustApply(t, r, next)
	down := []string{"put route", "remove route", "remove rule", "remove chain6", "remove chain", "remove set", "remove fdb", "remove neigh", "remove addr", "remove link", "remove sysctl"}
	if diff := cmp.Diff(down, order()); diff != "" {
		t.Error(diff)
	}
}

func TestGlanceFindsWhatOthersDoToPeersAndListsNothingElse(t *testing.T) {
	var journal []string
	peers, wgs := newFake[kernel.PeerKey, kernel.Peer]("peer", &journal), newFake[kernel.Dev, kernel.WireGuard]("wg", &journal)
	r := New(Tables{Peers: peers, WGs: wgs, Routes: newFake[kernel.RouteKey, kernel.Route]("route", &journal)}, silent())
	r.Glance(t.Context())
	if len(journal) > 0 {
		t.Errorf("before the first list: %v", journal)
	}
	mustRefresh(t, r)
	k, other := kernel.PeerKey{Key: kernel.PublicKey{1}}, kernel.PeerKey{Key: kernel.PublicKey{2}}
	s := kernel.NewState()
	s.WireGuard[kernel.Dev{Name: "wg"}] = kernel.WireGuard{Port: 1}
	s.Peers[k], s.Peers[other] = kernel.Peer{Allowed: "10.0.0.0/26"}, kernel.Peer{}
	mustApply(t, r, s)
	glance := func(what string, want Result) {
		journal = nil
		if r.Glance(t.Context()); r.Settled() == (want.Repaired > 0) {
			t.Errorf("%s: settled %t", what, r.Settled())
		}
		if mustRefresh(t, r); slices.Contains(journal, "list route") {
			t.Errorf("%s: %v", what, journal)
		}
		if got := mustApply(t, r, s); got.Repaired != want.Repaired {
			t.Errorf("%s: %+v", what, got)
		}
	}
	glance("nothing has changed", Result{})
	peers.have[k] = kernel.Peer{Allowed: "10.0.0.0/26", Endpoint: netip.MustParseAddrPort("192.0.2.1:7")}
	glance("a peer sends from elsewhere", Result{})
	delete(peers.have, other)
	glance("a peer is gone", Result{Repaired: 2}) // and where the first is sent to is put right by the way
	wgs.have[kernel.Dev{Name: "wg"}] = kernel.WireGuard{Port: 2}
	glance("a device has another port", Result{Repaired: 1})
	peers.listErr = errors.New("no")
	if r.Glance(t.Context()); r.Settled() {
		t.Error("settled though the peers cannot be read")
	}
}

// What a table of its own is to carry never goes by the main one: not before the rule stands, nor while the kernel refuses it, nor when its range goes.
func TestMainRoutesComeAfterTheRuleThatLeadsPastThem(t *testing.T) {
	var journal []string
	routes, rules := newFake[kernel.RouteKey, kernel.Route]("route", &journal), newFake[kernel.Rule, struct{}]("rule", &journal)
	r := New(Tables{Routes: routes, Rules: rules}, silent())
	mustRefresh(t, r)
	journal = nil
	main4, own4, main6 := dst("10.1.0.0/24"), dst("10.1.0.0/24"), dst("fd00:1::/64")
	own4.Table = 1
	rule := kernel.Rule{Priority: 99, Table: 1}
	s := kernel.NewState()
	s.Rules[rule] = struct{}{}
	s.Routes[main4], s.Routes[own4], s.Routes[main6] = blackhole, blackhole, blackhole
	rules.broken[rule] = errors.New("no")
	for range 2 {
		if _, err := r.Apply(t.Context(), s); !errors.Is(err, rules.broken[rule]) || r.Settled() {
			t.Errorf("err %v, settled %v", err, r.Settled())
		}
	}
	if _, there := routes.have[main4]; there || len(routes.have) != 2 {
		t.Errorf("without the rule there are %v", routes.have)
	}
	clear(rules.broken)
	journal = nil
	mustRefresh(t, r)
	mustApply(t, r, s)
	if want := []string{"list rule", "put rule " + rule.String(), "put route " + main4.String()}; !slices.Equal(want, journal) {
		t.Errorf("journal %v, want %v", journal, want)
	}
	journal = nil
	delete(s.Routes, main4)
	delete(s.Routes, own4)
	mustApply(t, r, s)
	if want := []string{"remove route " + main4.String(), "remove route " + own4.String()}; !slices.Equal(want, journal) {
		t.Errorf("journal %v, want %v", journal, want)
	}
}

// unmarked is a fake whose objects a list does not find.
type unmarked struct {
	*fake[kernel.SysctlKey, string]
}

func (u unmarked) List(context.Context) (map[kernel.SysctlKey]string, error) { return nil, nil }

func (u unmarked) Read(_ context.Context, keys []kernel.SysctlKey) (map[kernel.SysctlKey]string, error) {
	out := map[kernel.SysctlKey]string{}
	for _, k := range keys {
		if v, ok := u.have[k]; ok {
			out[k] = v
		}
	}
	return out, u.listErr
}

func TestObjectsWithoutMarkAreReadAfterAListBeforeTheyAreWritten(t *testing.T) {
	var journal []string
	f := unmarked{newFake[kernel.SysctlKey, string]("sysctl", &journal)}
	f.have[kernel.SysctlKey{Path: "right"}], f.have[kernel.SysctlKey{Path: "wrong"}] = "1", "0"
	r := New(Tables{Sysctls: f}, silent())
	mustRefresh(t, r)
	s := kernel.NewState()
	for _, p := range []string{"right", "wrong", "new"} {
		s.Sysctls[kernel.SysctlKey{Path: p}] = "1"
	}
	if res := mustApply(t, r, s); res.Changed != 2 || len(journal) != 2 {
		t.Errorf("%+v, journal %v", res, journal)
	}
	if res := mustApply(t, r, kernel.NewState()); res.Changed != 0 || len(f.have) != 3 {
		t.Errorf("a setting was removed: %+v, have %v", res, f.have)
	}
	f.listErr, journal = errors.New("unreadable"), nil
	s.Sysctls[kernel.SysctlKey{Path: "later"}] = "1"
	if res := mustApply(t, r, s); res.Changed != 4 || len(journal) != 4 {
		t.Errorf("what is wanted later is not just written: %+v, journal %v", res, journal)
	}
	r.MarkDirty(Sysctls)
	mustRefresh(t, r)
	if _, err := r.Apply(t.Context(), s); !errors.Is(err, f.listErr) {
		t.Errorf("got %v", err)
	}
}

// A device that leaves the namespace and comes back keeps its index, and has its settings reset.
func TestSettingsAreReadAgainWhenEventsWereLost(t *testing.T) {
	var journal []string
	f := unmarked{newFake[kernel.SysctlKey, string]("sysctl", &journal)}
	r := New(Tables{Sysctls: f}, silent())
	mustRefresh(t, r)
	key := kernel.SysctlKey{Path: "net/ipv4/conf/cali0/proxy_arp", Index: 7}
	s := kernel.NewState()
	s.Sysctls[key] = "1"
	mustApply(t, r, s)
	f.have[key] = "0"
	r.Observe(kernel.Events{Lost: true})
	mustRefresh(t, r)
	if mustApply(t, r, s); f.have[key] != "1" {
		t.Errorf("the setting is %s", f.have[key])
	}
}

// inWords is a fake that gives sets back in other words.
type inWords struct {
	*fake[kernel.SetKey, kernel.Set]
}

func (inWords) Same(_ kernel.SetKey, have, want kernel.Set) bool {
	return len(have.Members) == len(want.Members)
}

func TestSameDecidesWhatDiffers(t *testing.T) {
	var journal []string
	f := inWords{newFake[kernel.SetKey, kernel.Set]("set", &journal)}
	f.have["x"] = kernel.Set{Members: "b,a"}
	r := New(Tables{Sets: f}, silent())
	mustRefresh(t, r)
	s := kernel.NewState()
	s.Sets["x"] = kernel.Set{Members: "a,b"}
	if res := mustApply(t, r, s); res.Changed != 0 {
		t.Errorf("%+v", res)
	}
}

func TestOnlyContradictingEventsMakeATableDirty(t *testing.T) {
	r, _, _ := routing()
	mustRefresh(t, r)
	k, other := dst("10.1.0.0/24"), dst("10.2.0.0/24")
	mustApply(t, r, routes(k))
	same, changed := blackhole, kernel.Route{Protocol: 80}
	for name, c := range map[string]struct {
		events map[kernel.RouteKey]*kernel.Route
		want   bool
	}{
		"our write":                   {map[kernel.RouteKey]*kernel.Route{k: &same}, false},
		"removal of what is not ours": {map[kernel.RouteKey]*kernel.Route{other: nil}, false},
		"a change":                    {map[kernel.RouteKey]*kernel.Route{k: &changed}, true},
		"a removal":                   {map[kernel.RouteKey]*kernel.Route{k: nil}, true},
		"an unknown object":           {map[kernel.RouteKey]*kernel.Route{other: &same}, true},
	} {
		if got := r.Observe(kernel.Events{Routes: c.events}); got != c.want {
			t.Errorf("%s: dirty %v, want %v", name, got, c.want)
		}
		r.routes.dirty = false
	}
}

func TestWhatADeviceTookWithItIsWrittenAgainWithoutAList(t *testing.T) {
	r, f, journal := routing()
	mustRefresh(t, r)
	dev := kernel.Dev{Name: "cali0", Index: 7}
	s := kernel.NewState()
	s.Routes[dst("10.0.0.1/32")] = kernel.Route{Dev: dev, Protocol: 80}
	s.Routes[dst("10.1.0.0/24")] = blackhole
	mustApply(t, r, s)
	*journal = nil
	for _, e := range []kernel.Events{{Down: []kernel.Dev{dev}}, {Gone: []kernel.Dev{dev}}} {
		delete(f.have, dst("10.0.0.1/32"))
		if r.Observe(e) || mustRefresh(t, r) {
			t.Errorf("%+v makes a table dirty", e)
		}
		if res := mustApply(t, r, s); res.Changed != 1 || len(f.have) != 2 {
			t.Errorf("%+v, have %v", res, f.have)
		}
	}
}

func TestAnyHistoryEndsInTheLastState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r, f, _ := routing()
		key := rapid.Custom(func(t *rapid.T) kernel.RouteKey {
			return dst(fmt.Sprintf("10.%d.0.0/16", rapid.IntRange(0, 5).Draw(t, "net")))
		})
		var want kernel.State
		for range rapid.IntRange(1, 8).Draw(rt, "rounds") {
			want = routes(rapid.SliceOf(key).Draw(rt, "want")...)
			f.broken = map[kernel.RouteKey]error{}
			for _, k := range rapid.SliceOf(key).Draw(rt, "broken") {
				f.broken[k] = errors.New("broken")
			}
			f.listErr = nil
			if rapid.Bool().Draw(rt, "list fails") {
				f.listErr = errors.New("no list")
			}
			_, _ = r.Refresh(context.Background())
			_, _ = r.Apply(context.Background(), want) // failures are part of the history
			for _, k := range rapid.SliceOf(key).Draw(rt, "removed by others") {
				delete(f.have, k)
				r.Observe(kernel.Events{Routes: map[kernel.RouteKey]*kernel.Route{k: nil}})
			}
		}
		f.broken, f.listErr = nil, nil
		if _, err := r.Refresh(context.Background()); err != nil {
			rt.Fatal(err)
		}
		if _, err := r.Apply(context.Background(), want); err != nil {
			rt.Fatal(err)
		}
		if !maps.Equal(f.have, want.Routes) {
			rt.Fatalf("have %v, want %v", f.have, want.Routes)
		}
	})
}

func TestRepairPutsBackAndRemovesNothing(t *testing.T) {
	r, f, _ := routing()
	stays, missing := dst("10.0.0.0/26"), dst("10.0.0.64/26")
	f.have[stays] = blackhole
	if _, err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Repair(t.Context(), routes(missing)); err != nil {
		t.Fatal(err)
	}
	if want := map[kernel.RouteKey]kernel.Route{stays: blackhole, missing: blackhole}; !maps.Equal(f.have, want) {
		t.Errorf("after Repair: %v, want %v", f.have, want)
	}
	if _, err := r.Apply(t.Context(), routes(missing)); err != nil {
		t.Fatal(err)
	}
	if _, still := f.have[stays]; still {
		t.Error("Apply did not remove what Repair had left")
	}
}
