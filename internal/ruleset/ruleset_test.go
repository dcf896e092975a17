package ruleset

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

var update = flag.Bool("update", false, "rewrite golden files")

// scenario is what a golden file's model.json holds.
type scenario struct {
	Settings  Settings
	Devices   map[string][]netip.Addr
	Endpoints []policy.Endpoint
	Lists     []policy.List
	Policies  []policy.Policy
	Sets      []policy.Set
}

func (s scenario) model() policy.Model {
	m := policy.Model{
		Endpoints: map[policy.EndpointKey]*policy.Endpoint{}, Lists: map[policy.ListID]*policy.List{},
		Policies: map[policy.PolicyID]*policy.Policy{}, Sets: map[policy.SetID]*policy.Set{},
	}
	for _, e := range s.Endpoints {
		m.Endpoints[e.Key] = &e
	}
	for _, l := range s.Lists {
		m.Lists[l.ID] = &l
	}
	for _, p := range s.Policies {
		m.Policies[p.ID] = &p
	}
	for _, set := range s.Sets {
		m.Sets[set.ID] = &set
	}
	return m
}

func TestGoldenTables(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if a.Files[0].Name != "model.json" {
		t.Fatalf("%s does not begin with model.json", file)
	}
	var s scenario
	d := json.NewDecoder(bytes.NewReader(a.Files[0].Data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		t.Fatal(err)
	}
	got := Of(s.Settings, s.Devices, s.model()).Text()
	if *update {
		a.Files = append(a.Files[:1], txtar.File{Name: "table.nft", Data: []byte(got)})
		if err := os.WriteFile(file, txtar.Format(a), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.Files) < 2 {
		t.Fatal("no table.nft: run with -update")
	}
	if diff := cmp.Diff(strings.Split(string(a.Files[1].Data), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if os.Geteuid() != 0 {
		return
	}
	nettest.Need(t, "nft")
	text := filepath.Join(t.TempDir(), "table.nft")
	if err := os.WriteFile(text, []byte(got), 0o600); err != nil {
		t.Fatal(err)
	}
	nettest.New(t).Exec("nft", "-c", "-f", text)
}

func addrs(ss ...string) (out []netip.Addr) {
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// drawn is a random model over few names, so that things are shared, changed and dropped often. Content follows from names where the
// model promises it.
func drawn(t *rapid.T) (Settings, map[string][]netip.Addr, policy.Model) {
	s := scenario{Settings: Settings{
		Prefixes: []string{"cali"}, MarkMask: rapid.SampledFrom([]uint32{0xffff0000, 0xf0}).Draw(t, "mask"),
		Reject: rapid.Bool().Draw(t, "reject"), VXLAN: rapid.Bool().Draw(t, "vxlan"), VXLANPort: 4789,
		LogRate: rapid.SampledFrom([]uint32{0, 10}).Draw(t, "rate"), ToHost: ToHost(rapid.IntRange(0, 2).Draw(t, "tohost")),
		VXLANPeers: drawNets(t, "peers"), Spoofing: rapid.Bool().Draw(t, "spoofing"), Pools: drawNets(t, "pools"),
		PodConnections: rapid.SampledFrom([]uint32{0, 0, 100, 10_000}).Draw(t, "connections"), Uncounted: rapid.Bool().Draw(t, "uncounted"),
	}}
	s.Devices = map[string][]netip.Addr{"eth0": addrs("192.0.2.1"), "eth1": addrs("192.0.2.2")}
	if rapid.Bool().Draw(t, "devices") {
		s.Devices["eth2"] = addrs("192.0.2.1")
	}
	for i := range 4 {
		set := policy.Set{ID: policy.SetID(fmt.Sprint("s", i)), Kind: policy.SetKind(i / 3)}
		if set.Kind == policy.Ports {
			set.Ports = []policy.PortMember{{Addr: addrs("10.0.0.1")[0], Protocol: 6, Port: uint16(rapid.IntRange(1, 3).Draw(t, "port"))}}
		} else {
			set.Nets = drawNets(t, "members")
			for _, n := range rapid.SliceOfDistinct(rapid.IntRange(1, 9), rapid.ID).Draw(t, "addrs") {
				set.Addrs = append(set.Addrs, netip.AddrFrom4([4]byte{10, 1, 1, byte(n)}))
			}
		}
		s.Sets = append(s.Sets, set)
	}
	for i := range 6 {
		s.Policies = append(s.Policies, fixedPolicy(i))
	}
	lists := rapid.SliceOfNDistinct(rapid.IntRange(2, 7), 0, 4, rapid.ID).Draw(t, "lists")
	for _, i := range append(lists, 0, 1) {
		s.Lists = append(s.Lists, fixedList(i))
	}
	list := func(direction api.PolicyType) policy.ListID {
		return rapid.SampledFrom(slices.DeleteFunc(slices.Clone(s.Lists), func(l policy.List) bool { return l.Direction != direction })).
			Draw(t, string(direction)).ID
	}
	maybe := func(direction api.PolicyType) policy.ListID {
		if rapid.Bool().Draw(t, "none") {
			return ""
		}
		return list(direction)
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "endpoints") {
		e := policy.Endpoint{Key: policy.EndpointKey{Name: fmt.Sprint("e", i)}, Ingress: list(api.Ingress), Egress: list(api.Egress)}
		e.Interface = fmt.Sprint("cali", rapid.IntRange(0, 3).Draw(t, "iface"))
		e.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 5).Draw(t, "addr"))})}
		e.Spoofable, e.Limits = drawNets(t, "spoofable"), drawLimits(t)
		if rapid.Bool().Draw(t, "host") {
			e.Key.Kind, e.Interface, e.Addrs, e.Spoofable, e.Limits = policy.Host, rapid.SampledFrom([]string{"*", "", "eth0", "eth1"}).Draw(t, "dev"), addrs("192.0.2.1"), nil, policy.Limits{}
			e.ForwardIngress, e.ForwardEgress, e.UntrackedIngress = maybe(api.Ingress), maybe(api.Egress), maybe(api.Ingress)
			e.UntrackedEgress, e.PreDNAT = maybe(api.Egress), maybe(api.Ingress)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s.Settings, s.Devices, prune(s.model())
}

func drawLimits(t *rapid.T) policy.Limits {
	rate := policy.Rate{PerSecond: 100, Burst: 5}
	return rapid.SampledFrom([]policy.Limits{
		{}, {}, {Marked: true, DSCP: 46}, {Egress: policy.Limit{Connections: 10}},
		{Ingress: policy.Limit{Connections: 10_000}, Egress: policy.Limit{Connections: 10_000}},
		{Ingress: policy.Limit{Connections: 10, Packets: rate}, Egress: policy.Limit{Bytes: rate, Peak: rate}, Marked: true},
	}).Draw(t, "limits")
}

func drawNets(t *rapid.T, label string) (nets []netip.Prefix) {
	for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 0, 3, rapid.ID).Draw(t, label) {
		nets = append(nets, []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("11.0.0.0/8"),
			netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("255.255.255.0/24"),
		}[n])
	}
	return nets
}

// fixedPolicy returns one of six policies, which share rules and constant sets.
func fixedPolicy(i int) policy.Policy {
	p := policy.Policy{ID: policy.PolicyID(fmt.Sprint("p", i)), Kind: "NetworkPolicy", Name: fmt.Sprint(i), Direction: api.Ingress, Staged: i == 4}
	nets := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12")}
	for j, r := range []policy.Rule{
		{Action: api.Allow, Protocol: 6, Destination: policy.Match{Ports: []policy.PortRange{{Min: 80, Max: 80}, {Min: 443, Max: 443}}}},
		{Action: api.Deny, Source: policy.Match{Sets: []policy.SetID{"s0"}, NotSets: []policy.SetID{"s1"}}},
		{Action: api.Pass, Source: policy.Match{Nets: nets}, Destination: policy.Match{Sets: []policy.SetID{"s2", "s1"}}},
		{Action: api.Allow, Destination: policy.Match{PortSets: []policy.SetID{"s3"}}},
		{Action: api.Log, Source: policy.Match{NotNets: nets}},
		{Action: api.Deny},
	} {
		if (i+j)%3 != 0 {
			r.ID, r.Index = policy.RuleID(fmt.Sprint("r", j)), j
			p.Rules = append(p.Rules, r)
		}
	}
	return p
}

func fixedList(i int) policy.List {
	l := policy.List{ID: policy.ListID(fmt.Sprint("l", i)), Direction: api.Egress, End: api.Deny, EndID: "end"}
	if i%2 == 0 {
		l.Direction = api.Ingress
	}
	for j := range i % 3 {
		tier := policy.TierPart{Tier: fmt.Sprint(j), End: api.Deny, EndID: policy.RuleID(fmt.Sprint("t", j))}
		if (i+j)%2 == 0 {
			tier.End, tier.EndID = api.Pass, ""
		}
		tier.Policies = []policy.PolicyID{policy.PolicyID(fmt.Sprint("p", (i+j)%6)), policy.PolicyID(fmt.Sprint("p", (i+j+1)%6))}
		l.Tiers = append(l.Tiers, tier)
	}
	l.Profiles = []policy.PolicyID{policy.PolicyID(fmt.Sprint("p", i%6))}
	return l
}

// prune leaves what is referred to, as a model does.
func prune(m policy.Model) policy.Model {
	policies, sets := map[policy.PolicyID]bool{}, map[policy.SetID]bool{}
	for _, l := range m.Lists {
		for _, id := range l.Profiles {
			policies[id] = true
		}
		for _, t := range l.Tiers {
			for _, id := range t.Policies {
				policies[id] = true
			}
		}
	}
	maps.DeleteFunc(m.Policies, func(id policy.PolicyID, _ *policy.Policy) bool { return !policies[id] })
	for _, p := range m.Policies {
		for _, r := range p.Rules {
			for _, id := range r.Sets() {
				sets[id] = true
			}
		}
	}
	maps.DeleteFunc(m.Sets, func(id policy.SetID, _ *policy.Set) bool { return !sets[id] })
	return m
}

// between returns the update that leads from one model to another.
func between(a, b policy.Model) policy.Update {
	u := policy.Update{
		Endpoints: changed(a.Endpoints, b.Endpoints), Lists: changed(a.Lists, b.Lists),
		Policies: changed(a.Policies, b.Policies), Sets: map[policy.SetID]policy.SetChange{},
	}
	for id := range a.Sets {
		if b.Sets[id] == nil {
			u.Sets[id] = policy.SetChange{Gone: true}
		}
	}
	for id, s := range b.Sets {
		old := a.Sets[id]
		c := policy.SetChange{}
		if old == nil {
			old = &policy.Set{}
			c.Set = &policy.Set{ID: id, Kind: s.Kind}
		}
		c.Added, c.Removed = without(s.Members, old.Members), without(old.Members, s.Members)
		u.Sets[id] = c
	}
	return u
}

func changed[K comparable, V any](a, b map[K]*V) map[K]*V {
	out := map[K]*V{}
	for k := range a {
		out[k] = nil
	}
	maps.Copy(out, b)
	return out
}

func without(a, b policy.Members) policy.Members {
	return policy.Members{Addrs: lacking(a.Addrs, b.Addrs), Nets: lacking(a.Nets, b.Nets), Ports: lacking(a.Ports, b.Ports)}
}

func lacking[T comparable](a, b []T) (out []T) {
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}

func TestTableDependsOnTheModelAloneAndNotOnTheWay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l *Layout
		var last policy.Model
		kernel := nftable.NewTable(Table)
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			settings, devices, m := drawn(t)
			if l == nil {
				l = New(settings)
			} else {
				l.SetSettings(settings)
			}
			l.Update(between(last, m))
			l.SetDevices(devices)
			apply(t, kernel, l.Take())
			want := Of(settings, devices, m).Text()
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(l.Table().Text(), "\n")); diff != "" {
				t.Fatalf("whole (-), by changes (+):\n%s", diff)
			}
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(kernel.Text(), "\n")); diff != "" {
				t.Fatalf("whole (-), by the deltas (+):\n%s", diff)
			}
			complete(t, kernel)
			if d := nftable.Diff(kernel.Listing(), l.Table()); !d.Empty() {
				t.Fatalf("differs from itself: %+v", d)
			}
			last = m
		}
	})
}

// apply does to a table what the kernel would, and fails where the kernel would.
func apply(t *rapid.T, tab *nftable.Table, d nftable.Delta) {
	if d.Whole {
		t.Fatal("a change is not to build the table anew")
	}
	must := func(ok bool, what, name string) {
		if !ok {
			t.Fatalf("%s %s", what, name)
		}
	}
	for _, c := range append(d.AddChains, d.SetChains...) {
		tab.Chains[c.Name] = c
	}
	for _, s := range d.AddSets {
		must(tab.Sets[s.Name] == nil, "added though there: set", s.Name)
		own := *s
		own.Elems = maps.Clone(s.Elems)
		tab.Sets[s.Name] = &own
	}
	for _, e := range d.Elems {
		s := tab.Sets[e.Set.Name]
		must(s != nil, "elements of no set", e.Set.Name)
		for _, el := range e.Del {
			_, ok := s.Elems[el]
			must(ok, "deleted though not there: element of", s.Name)
			delete(s.Elems, el)
		}
		for _, el := range e.Add {
			_, ok := s.Elems[el]
			must(!ok, "added though there: element of", s.Name)
			s.Elems[el] = struct{}{}
		}
	}
	for _, name := range d.DelChains {
		must(tab.Chains[name] != nil, "deleted though not there: chain", name)
		delete(tab.Chains, name)
	}
	for _, name := range d.DelSets {
		must(tab.Sets[name] != nil, "deleted though not there: set", name)
		delete(tab.Sets, name)
	}
	for _, name := range d.AddCounters {
		tab.Counters[name] = struct{}{}
	}
	for _, name := range d.DelCounters {
		_, ok := tab.Counters[name]
		must(ok, "deleted though not there: counter", name)
		delete(tab.Counters, name)
	}
}

// complete fails if something in a table refers to what is not in it, or a chain is left that nothing leads to.
func complete(t *rapid.T, tab *nftable.Table) {
	reached := map[string]bool{}
	for _, s := range tab.Sets {
		for e := range s.Elems {
			if s.Map {
				reached[e.To] = true
			}
		}
	}
	for _, c := range tab.Chains {
		reached[c.Name] = reached[c.Name] || c.Base.Hook != ""
		for _, r := range c.Rules {
			for _, s := range r.Stmts {
				if v, ok := s.(nftable.Verdict); ok && v.Chain != "" {
					reached[v.Chain] = true
				}
				set := ""
				switch s := s.(type) {
				case nftable.AddrIn:
					set = s.Set
				case nftable.AddrPortIn:
					set = s.Set
				case nftable.PortIn:
					set = s.Set
				case nftable.Count:
					if _, ok := tab.Counters[s.Name]; !ok && s.Name != "" {
						t.Fatalf("chain %s counts in %s, which is not there", c.Name, s.Name)
					}
				}
				if set != "" && tab.Sets[set] == nil {
					t.Fatalf("chain %s looks in %s, which is not there", c.Name, set)
				}
			}
		}
	}
	for name := range reached {
		if tab.Chains[name] == nil {
			t.Fatalf("something leads to chain %s, which is not there", name)
		}
	}
}

func TestNamesThatNoDeviceHasAreLeftOut(t *testing.T) {
	m := policy.Model{Endpoints: map[policy.EndpointKey]*policy.Endpoint{}}
	for i, kind := range []policy.EndpointKind{policy.Workload, policy.Workload, policy.Host, policy.Host} {
		e := &policy.Endpoint{Key: policy.EndpointKey{Kind: kind, Name: fmt.Sprint(i)}, Interface: fmt.Sprint("cali0123456789ab", i)}
		e.Ingress, e.Egress, e.Limits.Egress.Connections = policy.ListID(fmt.Sprint(i)), policy.ListID(fmt.Sprint(i)), uint32(i+1)
		m.Endpoints[e.Key] = e
	}
	for name, set := range Of(Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000}, nil, m).Sets {
		if len(set.Elems) > 0 {
			t.Errorf("%s has %v: cut off they would be one key, which no map has twice", name, set.Sorted())
		}
	}
}
