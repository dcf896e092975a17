package peering

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/pkg/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden computes, for the node that a scenario names, sessions, routes and filters, and which learned routes go into the kernel.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			for i, f := range ar.Files {
				if !strings.HasPrefix(f.Name, "want") {
					continue
				}
				got := computed(t, ar, strings.TrimSpace(strings.TrimPrefix(f.Name, "want")))
				want = string(f.Data)
				if *update {
					ar.Files[i].Data = []byte(got)
				} else if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s differs (-want +got):\n%s", f.Name, d)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func part(ar *txtar.Archive, name string) string {
	for _, f := range ar.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func computed(t *testing.T, ar *txtar.Archive, node string) string {
	t.Helper()
	m := model(t, part(ar, "resources"))
	for _, line := range strings.Split(strings.TrimSpace(part(ar, "facts")), "\n") {
		fact(t, &m, node, strings.Fields(line))
	}
	m.Endpoints = slices.DeleteFunc(m.Endpoints, func(e *api.WorkloadEndpoint) bool { return e.Spec.Node != node })
	r := Compute(node, m)
	if d := cmp.Diff(r, Compute(node, m), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("the same inputs gave another result:\n%s", d)
	}
	return text(r) + learned(t, m, r, node, part(ar, "learned"))
}

// fact reads what is no resource: "node-1 block 10.0.0.0/26", "node-1 service 10.96.0.0/16", "- password name key value", "- router-id hash".
func fact(t *testing.T, m *Model, node string, f []string) {
	t.Helper()
	if len(f) < 3 || f[0] != "-" && f[0] != node {
		return
	}
	switch f[1] {
	case "block":
		m.Blocks = append(m.Blocks, netip.MustParsePrefix(f[2]))
	case "service":
		m.Services = append(m.Services, netip.MustParsePrefix(f[2]))
	case "router-id":
		m.RouterID = f[2]
	case "password":
		if m.Passwords == nil {
			m.Passwords = map[Secret]string{}
		}
		m.Passwords[Secret{f[2], f[3]}] = f[4]
	default:
		t.Fatalf("unknown fact %q", f)
	}
}

func text(r Result) string {
	var b strings.Builder
	s := r.Speaker
	fmt.Fprintf(&b, "as %d router id %v listen %v port %d\n", s.AS, s.RouterID, s.Listen, s.Port)
	filters := map[string]string{}
	for _, p := range s.Sessions {
		fmt.Fprintf(&b, "%s (%s): %v:%d as %d", p.Name, p.Kind, p.Peer, p.Port, p.PeerAS)
		for _, o := range []struct {
			set  bool
			text string
		}{
			{p.LocalAS != s.AS, fmt.Sprint("local as ", p.LocalAS)}, {p.Source.IsValid(), fmt.Sprint("from ", p.Source)}, {p.Passive, "passive"},
			{p.Password != "", "password " + p.Password}, {p.ClusterID.IsValid(), fmt.Sprint("client, cluster ", p.ClusterID)},
			{p.Restart != defaultRestart, fmt.Sprint("restart ", p.Restart)}, {p.Keepalive != 0, fmt.Sprint("keepalive ", p.Keepalive)},
			{p.AllowOwnAS > 0, fmt.Sprint("allow own as ", p.AllowOwnAS)}, {p.Hop6.IsValid(), fmt.Sprint("IPv6 too by ", p.Hop6)}, {p.TTLHops > 0, fmt.Sprint("ttl security ", p.TTLHops)},
		} {
			if o.set {
				b.WriteString(", " + o.text)
			}
		}
		for _, f := range []struct {
			name  string
			terms []Term
		}{{"import", p.Import}, {"export", p.Export}} {
			lines := ""
			for _, t := range f.terms {
				lines += fmt.Sprintf("    %v\n", t)
			}
			if filters[lines] == "" {
				filters[lines] = p.Name + "'s " + f.name
				fmt.Fprintf(&b, "\n  %s\n%s", f.name, strings.TrimSuffix(lines, "\n"))
			} else {
				fmt.Fprintf(&b, "\n  %s as %s", f.name, filters[lines])
			}
		}
		b.WriteString("\n")
	}
	for _, r := range r.Routes {
		fmt.Fprintf(&b, "announce %v local-pref %d %s\n", r.Prefix, r.LocalPref, r.Dev)
	}
	for _, v := range r.Reach {
		fmt.Fprintf(&b, "reach %v via %v\n", v.Peer, v.Gateway)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem %v\n", p)
	}
	return b.String()
}

// learned says what the kernel gets of paths, a line "prefix via next hop local-pref [stale]" each.
func learned(t *testing.T, m Model, r Result, node, lines string) string {
	t.Helper()
	var paths []Path
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		p := Path{Prefix: netip.MustParsePrefix(f[0]), NextHop: netip.MustParseAddr(f[2]), Stale: f[len(f)-1] == "stale"}
		if _, err := fmt.Sscan(f[3], &p.LocalPref); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	rules := Rules{Pools: m.Pools, Own: r.Routes}
	for _, n := range m.Nodes {
		for _, v6 := range []bool{false, true} {
			if a, ok := n.Address(v6); ok && n.Metadata.Name == node {
				rules.Subnets = append(rules.Subnets, a)
			}
		}
	}
	for _, c := range m.Configs {
		rules.Services = append(rules.Services, ServiceRanges(c)...)
		rules.Local = rules.Local || c.Spec.ProgramClusterRoutes == "Disabled"
	}
	out := ""
	for _, k := range Kernel(paths, rules) {
		way := "plain"
		if k.Tunnel {
			way = "tunl0 onlink"
		}
		out += fmt.Sprintf("kernel %v via %v metric %d %s\n", k.Dst, k.Gateways, k.Metric, way)
	}
	return out
}

func model(t *testing.T, docs string) Model {
	t.Helper()
	var m Model
	for _, doc := range strings.Split(docs, "\n---\n") {
		raw, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		var kind api.TypeMeta
		if err := json.Unmarshal(raw, &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "IPPool":
			m.Pools = append(m.Pools, decode[api.IPPool](t, raw))
		case "Node":
			m.Nodes = append(m.Nodes, decode[api.Node](t, raw))
		case "WorkloadEndpoint":
			m.Endpoints = append(m.Endpoints, decode[api.WorkloadEndpoint](t, raw))
		case "BGPConfiguration":
			m.Configs = append(m.Configs, decode[api.BGPConfiguration](t, raw))
		case "BGPPeer":
			m.Peers = append(m.Peers, decode[api.BGPPeer](t, raw))
		case "BGPFilter":
			m.Filters = append(m.Filters, decode[api.BGPFilter](t, raw))
		default:
			t.Fatalf("unexpected kind %q", kind.Kind)
		}
	}
	return m
}

func decode[T any](t *testing.T, raw []byte) *T {
	t.Helper()
	v := new(T)
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestPairsOfNodesAgree holds the two ends of every session of a mesh against each other: one of them dials, and both know the AS numbers.
func TestPairsOfNodesAgree(t *testing.T) {
	var m Model
	for i, addr := range []string{"10.0.0.9/24", "10.0.0.10/24", "10.0.0.100/24", "192.168.0.1/16"} {
		as := api.ASN(64512 + i%2)
		n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: netip.MustParsePrefix(addr)}, ASNumber: &as}}}
		n.Metadata.Name = fmt.Sprint("node-", i)
		m.Nodes = append(m.Nodes, n)
	}
	type ends struct{ own, peer netip.Addr }
	all := map[ends]Session{}
	for _, n := range m.Nodes {
		for _, s := range Compute(n.Metadata.Name, m).Speaker.Sessions {
			all[ends{s.Source, s.Peer}] = s
		}
	}
	if len(all) != 12 {
		t.Fatalf("%d sessions of 12", len(all))
	}
	for e, s := range all {
		other := all[ends{e.peer, e.own}]
		if s.Passive == other.Passive || s.LocalAS != other.PeerAS {
			t.Errorf("%v and %v do not agree", s, other)
		}
	}
}

func TestMetricUndoesPreference(t *testing.T) {
	for _, m := range []int{1, 512, 1024, 2147483646} {
		if got := Metric(Preference(m)); got != m {
			t.Errorf("metric %d became %d", m, got)
		}
	}
	if got := Metric(4294967295); got != 1 {
		t.Errorf("metric of the largest preference: %d", got)
	}
}
