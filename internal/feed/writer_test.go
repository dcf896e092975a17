package feed

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// seen is a snapshot's contents as plain data: what stands under each key, by every way that leads to it.
func seen(s Snapshot) map[string]string {
	out := map[string]string{}
	add(out, s.Pools(), "")
	add(out, s.Nodes(), "")
	add(out, s.Endpoints(), "")
	add(out, s.Blocks(), "")
	add(out, s.Profiles(), "")
	add(out, s.Tiers(), "")
	for key, o := range s.Objects(ForPolicy &^ (Endpoints | Profiles | Tiers)) {
		out[key] = api.KeyOf(o)
		if s.Object(key) != o {
			out[key] = "cannot be looked up"
		}
	}
	for _, node := range []string{"n1", "n10"} {
		add(out, s.EndpointsOn(node), "on "+node+" ")
		add(out, s.Affinities(node), "")
		if e := s.FelixConfig("node." + node); e.Exists() {
			out[e.Key] = text(e)
		}
	}
	if e := s.Cluster(); e.Exists() {
		out[e.Key] = text(e)
	}
	if e := s.IPAMConfig(); e.Exists() {
		out[e.Key] = text(e)
	}
	for _, b := range s.Bad() {
		out["bad "+b.Key] = fmt.Sprint(b.Rev, b.Err)
	}
	return out
}

func add[T api.Value](out map[string]string, entries func(func(string, store.Entry[T]) bool), how string) {
	for key, e := range entries {
		out[how+key] = text(e)
	}
}

func text[T api.Value](e store.Entry[T]) string {
	raw := e.Raw()
	if raw == nil && e.Value != nil {
		raw, _ = api.Encode(e.Value, nil) // of what was decoded
	}
	return fmt.Sprint(e.Key, "@", e.Rev, " ", string(raw), e.Value == nil)
}

func snapshotOf(s *state) Snapshot { return Snapshot{Rev: s.rev, s: s} }

// candidates are the values that a history writes: two good ones and two bad ones for each key.
func candidates() map[string][]string {
	res := func(kind, plural, ns, name, spec string) (string, string) {
		meta := fmt.Sprintf(`{"name":%q}`, name)
		path := plural + "/" + name
		if ns != "" {
			meta = fmt.Sprintf(`{"name":%q,"namespace":%q}`, name, ns)
			path = plural + "/" + ns + "/" + name
		}
		return api.ResourcesRoot + path, fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":%s,"spec":%s}`, kind, meta, spec)
	}
	out := map[string][]string{
		api.BlocksRoot + "ipv4/block/10.0.0.0-26": {
			`{"cidr":"10.0.0.0/26","affinity":"host:n1"}`, `{"cidr":"10.0.0.0/26","affinity":null}`, `{"cidr":"10.0.0.64/26"}`,
		},
		api.HostsRoot + "n1/ipv4/block/10.0.0.0-26":  {`{"state":"confirmed"}`, ``, `[`},
		api.HostsRoot + "n10/ipv4/block/10.0.1.0-26": {`{"state":"pending"}`, `{}`, `7`},
		api.HostsRoot + "n1/ipv4/block/ten":          {`{}`},
		api.HostsRoot + "n1":                         {`{}`}, // a host's marker: not followed
		api.HandlesRoot + "h":                        {`{"block":{}}`},
		api.IPAMConfigKey:                            {`{"strict_affinity":true}`, `{}`, `{`},
		api.ResourcesRoot + "bgppeers/tor":           {`{}`},
	}
	for _, k := range [][5]string{
		{"IPPool", "ippools", "", "p", `{"cidr":"10.0.0.0/16"}`},
		{"Node", "nodes", "", "n1", `{}`},
		{"WorkloadEndpoint", "workloadendpoints", "ns", "w", `{"node":"n1"}`},
		{"ClusterInformation", "clusterinformations", "", "default", `{}`},
		{"FelixConfiguration", "felixconfigurations", "", "node.n1", `{}`},
		{"Profile", "profiles", "", "kns.a", `{}`},
		{"Tier", "tiers", "", "default", `{}`},
		{"NetworkPolicy", "networkpolicies", "ns", "p", `{}`},
		{"GlobalNetworkPolicy", "globalnetworkpolicies", "", "p", `{}`},
		{"NetworkSet", "networksets", "ns", "s", `{}`},
	} {
		key, good := res(k[0], k[1], k[2], k[3], k[4])
		_, other := res(k[0], k[1], k[2], k[3], `{"node":"n10"}`)
		_, misnamed := res(k[0], k[1], k[2], k[3]+"x", k[4])
		out[key] = []string{good, other, misnamed, `{"kind":"Novel"}`}
	}
	return out
}

// revision is one transaction of a history.
type revision struct {
	rev  int64
	kvs  []store.KV
	ours bool
}

// contents is what etcd holds after the transactions.
func contents(history []revision) []store.KV {
	now := map[string]store.KV{}
	for _, r := range history {
		for _, kv := range r.kvs {
			if now[kv.Key] = kv; kv.Value == nil {
				delete(now, kv.Key)
			}
		}
	}
	return slices.Collect(maps.Values(now))
}

// expected is what a snapshot must hold: the history that was told, and on it the commits that are newer.
func expected(told, early []revision) []store.KV {
	all := slices.Clone(told)
	for _, r := range early {
		if len(told) == 0 || r.rev > told[len(told)-1].rev {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b revision) int { return int(a.rev - b.rev) })
	return contents(all)
}

func drawHistory(t *rapid.T) []revision {
	values := candidates()
	keys := slices.Sorted(maps.Keys(values))
	history := make([]revision, rapid.IntRange(1, 20).Draw(t, "revisions"))
	rev := int64(1)
	for i := range history {
		rev += rapid.Int64Range(1, 2).Draw(t, "step")
		r := revision{rev: rev, ours: rapid.Bool().Draw(t, "ours")}
		for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, 4, rapid.ID[string]).Draw(t, "keys") {
			kv := store.KV{Key: key, Rev: rev}
			if !rapid.Bool().Draw(t, "delete") {
				kv.Value = []byte(rapid.SampledFrom(values[key]).Draw(t, "value"))
			}
			r.kvs = append(r.kvs, kv)
		}
		history[i] = r
	}
	return history
}

// TestSnapshotIsTheSameForAnyOrderAndBatching lets watch, lists and our own commits tell of one history in any order.
func TestSnapshotIsTheSameForAnyOrderAndBatching(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := drawHistory(t)
		route := prefixes()
		var ours []revision
		for _, r := range history {
			if r.ours {
				ours = append(ours, r)
			}
		}
		// A commit may show up before the watch brings it or any time after.
		ours = rapid.Permutation(ours).Draw(t, "commits")
		s, told := newState(rapid.SampledFrom([]string{"", "n1"}).Draw(t, "local")), 0
		var early []revision // commits that were shown
		for told < len(history) || len(ours) > 0 {
			before := snapshotOf(s)
			w := edit(s, route)
			choices := []string{}
			if told < len(history) {
				choices = append(choices, "watch", "watch", "list")
			}
			if len(ours) > 0 {
				choices = append(choices, "commit")
			}
			switch rapid.SampledFrom(choices).Draw(t, "next") {
			case "watch":
				to := rapid.IntRange(told+1, len(history)).Draw(t, "to")
				var batch []store.KV
				for _, r := range history[told:to] {
					batch = append(batch, r.kvs...)
				}
				w.watched(history[to-1].rev, batch)
				told = to
			case "list":
				to := rapid.IntRange(told, len(history)).Draw(t, "to")
				if to > 0 {
					w.listed(history[to-1].rev, contents(history[:to]))
					told = to
				}
			case "commit":
				w.committed(ours[0].kvs)
				early, ours = append(early, ours[0]), ours[1:]
			}
			s = w.next
			checkStep(t, before, snapshotOf(s))
			want := edit(newState(""), route)
			want.listed(1<<62, expected(history[:told], early))
			if diff := cmp.Diff(seen(snapshotOf(want.next)), seen(snapshotOf(s))); diff != "" {
				t.Fatalf("differs from a fresh list of the same (-want +got):\n%s", diff)
			}
		}
		last := history[len(history)-1].rev
		if s.rev != last || s.graves.Len() != 0 {
			t.Fatalf("revision %d with %d graves, want %d with none", s.rev, s.graves.Len(), last)
		}
	})
}

// checkStep checks what must hold from one state to the next.
func checkStep(t *rapid.T, before, after Snapshot) {
	old, now := seen(before), seen(after)
	d := after.Since(before)
	named := map[string]bool{}
	for _, key := range d.Keys {
		if named[key] {
			t.Fatalf("%s is named twice", key)
		}
		named[key] = true
	}
	for key := range allKeys(candidates()) {
		same := old[key] == now[key] && old["bad "+key] == now["bad "+key]
		if !same && !d.All && !named[key] {
			t.Fatalf("%s changed from %q to %q, but only %v is named", key, old[key], now[key], d.Keys)
		}
		if !same && !d.Kinds.Has(prefixes().kind(key)) {
			t.Fatalf("%s changed, but its kind is not among %b", key, d.Kinds)
		}
	}
}

func allKeys(m map[string][]string) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

func TestSnapshotNeverChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newState("")
		var kept []Snapshot
		var was []map[string]string
		for _, r := range drawHistory(t) {
			w := edit(s, prefixes())
			w.watched(r.rev, r.kvs)
			s = w.next
			kept, was = append(kept, snapshotOf(s)), append(was, seen(snapshotOf(s)))
		}
		for i := range kept {
			if diff := cmp.Diff(was[i], seen(kept[i])); diff != "" {
				t.Fatalf("snapshot at %d changed (-then +now):\n%s", kept[i].Rev, diff)
			}
		}
	})
}

func TestSinceNamesEverythingWhenTooMuchChanged(t *testing.T) {
	w := edit(newState(""), prefixes())
	w.watched(1, nil)
	first := snapshotOf(w.next)
	for i := range historyLength + 1 {
		w = edit(w.next, prefixes())
		w.watched(int64(i+2), []store.KV{{Key: api.IPAMConfigKey, Value: []byte("{}"), Rev: int64(i + 2)}})
	}
	now := snapshotOf(w.next)
	if d := now.Since(first); !d.All || d.Kinds != all {
		t.Errorf("after %d changes: %+v, want all", historyLength+1, d)
	}
	if d := now.Since(now); !d.Empty() || d.All || d.Keys != nil {
		t.Errorf("since itself: %+v, want nothing", d)
	}
	if d := now.Since(Snapshot{}); !d.All {
		t.Errorf("since nothing: %+v, want all", d)
	}
	w = edit(w.next, prefixes())
	w.watched(now.Rev+1, []store.KV{{Key: api.IPAMConfigKey, Rev: now.Rev + 1}})
	want := Delta{Kinds: IPAMConfig, Keys: []string{api.IPAMConfigKey}}
	if diff := cmp.Diff(want, snapshotOf(w.next).Since(now)); diff != "" {
		t.Errorf("one change later (-want +got):\n%s", diff)
	}
}

func TestZeroSnapshotIsEmpty(t *testing.T) {
	var s Snapshot
	if got := seen(s); len(got) != 0 {
		t.Errorf("holds %v", got)
	}
	if _, bad := s.BadAt("/a"); bad || s.Node("n").Exists() || s.Endpoint("/a").Exists() || !s.Since(s).Empty() {
		t.Error("the zero snapshot knows something")
	}
}
