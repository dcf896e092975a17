package plan

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden computes the plan of node-1 in every scenario and compares it with what stands in the scenario's file.
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
			got := computed(t, ar)
			want := part(ar, "want")
			if *update {
				setPart(ar, "want", got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("plan differs (-want +got):\n%s", d)
			}
		})
	}
}

func computed(t *testing.T, ar *txtar.Archive) string {
	t.Helper()
	m, h := model(t, part(ar, "resources")+blocksYAML(part(ar, "blocks"))), host(t, part(ar, "host"))
	s := changed(t, settings(), part(ar, "settings"))
	if slices.ContainsFunc(ar.Files, func(f txtar.File) bool { return f.Name == "learned" }) {
		m.Learned = learned(t, part(ar, "learned"), h)
	}
	r := Compute(m, s, h)
	if again := Compute(m, s, h); again.State.Text() != r.State.Text() {
		t.Error("the same inputs gave another state")
	}
	var b strings.Builder
	b.WriteString(r.State.Text())
	fmt.Fprintf(&b, "## pod mtu\n%d\n", r.PodMTU)
	if r.Modes != (Modes{}) {
		fmt.Fprintf(&b, "## modes\n%+v\n", r.Modes)
	}
	if t := r.Tunnels; t.IPIP || t.VXLAN || t.VXLAN6 || t.WireGuard || t.WireGuard6 {
		fmt.Fprintf(&b, "## tunnels\n%+v\n", t)
	}
	for i, p := range r.Problems {
		if i == 0 {
			b.WriteString("## problems\n")
		}
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

func settings() Settings {
	return Settings{
		Node: "node-1", IPv6: true, AcceptMark: 0x10000, VXLANPort: 4789, VXLANVNI: 4096, MTUIface: regexp.MustCompile("^eth"),
		WireGuard: WireGuard{Device: "wireguard.cali", Device6: "wg-v6.cali", Port: 51820, Port6: 51821, Table: 1, Priority: 99, Mark: 0x80000000},
	}
}

// changed reads lines of "name: value" into settings.
func changed(t *testing.T, s Settings, text string) Settings {
	t.Helper()
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		var err error
		switch name {
		case "no-ipv6":
			s.NoIPv6 = value
		case "no-ipip":
			s.NoIPIP = value
		case "keep":
			s.Keep = Modes{IPIP: strings.Contains(value, "ipip"), VXLAN: strings.Contains(value, "vxlan4"), VXLAN6: strings.Contains(value, "vxlan6")}
			s.Keep.WireGuard, s.Keep.WireGuard6 = strings.Contains(value, "wireguard4"), strings.Contains(value, "wireguard6")
		case "wireguard":
			s.WireGuard.Enabled, s.WireGuard.Enabled6 = strings.Contains(value, "4"), strings.Contains(value, "6")
			s.WireGuard.Hosts, s.WireGuard.Plain = strings.Contains(value, "hosts"), strings.Contains(value, "plain")
		case "wireguard-onset":
			s.WireGuard.Onset = map[string]Onset{"partial": Partial, "silent": Silent}[value]
		case "wireguard-lacking":
			s.WireGuard.Lacking = value
		case "wireguard-table, priority, mtu, keepalive":
			_, err = fmt.Sscan(value, &s.WireGuard.Table, &s.WireGuard.Priority, &s.WireGuard.MTU, &s.WireGuard.KeepAlive)
		case "wireguard-exempt":
			s.WireGuard.Own = []uint16{9099}
			for _, a := range strings.Fields(value) {
				s.WireGuard.Exempt = append(s.WireGuard.Exempt, netip.MustParseAddrPort(a))
			}
		case "floating":
			s.FloatingIPs = value == "true"
		case "spoofing":
			s.Spoofing = value == "true"
		case "ipip-begun":
			s.IPIPBegun = value == "true"
		case "ipip":
			s.IPIPEnabled = ptr(value == "true")
		case "vxlan":
			s.VXLANEnabled = ptr(value == "true")
		case "ipip-mtu":
			s.IPIPMTU, err = strconv.Atoi(value)
		case "vxlan-port, vni":
			_, err = fmt.Sscan(value, &s.VXLANPort, &s.VXLANVNI)
		default:
			err = fmt.Errorf("unknown setting")
		}
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return s
}

func ptr[T any](v T) *T { return &v }

// model reads YAML documents of stored resources.
func model(t *testing.T, docs string) Model {
	t.Helper()
	var m Model
	for _, doc := range strings.Split(docs, "\n---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
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
		case "":
			m.Blocks = append(m.Blocks, decode[api.Block](t, raw))
		default:
			t.Fatalf("unexpected kind %q", kind.Kind)
		}
	}
	return m
}

func decode[T api.Value](t *testing.T, raw []byte) *T {
	t.Helper()
	v, err := api.Decode[T](raw)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// blocksYAML reads lines of "cidr owner [ordinal=node]…"; owner "-" is nobody.
func blocksYAML(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n---\ncidr: %s\n", f[0])
		if f[1] != "-" {
			fmt.Fprintf(&b, "affinity: host:%s\n", f[1])
		}
		var at, attrs []string
		for _, a := range f[2:] {
			var ordinal int
			var node string
			if _, err := fmt.Sscanf(a, "%d=%s", &ordinal, &node); err != nil {
				panic(err)
			}
			for len(at) <= ordinal {
				at = append(at, "null")
			}
			at[ordinal] = fmt.Sprint(len(attrs))
			attrs = append(attrs, fmt.Sprintf("{secondary: {node: %s}}", node))
		}
		fmt.Fprintf(&b, "allocations: [%s]\nattributes: [%s]\n", strings.Join(at, ", "), strings.Join(attrs, ", "))
	}
	return b.String()
}

// host reads lines of "name index mtu up|nocarrier|down [address]…".
func host(t *testing.T, text string) kernel.Host {
	t.Helper()
	h := kernel.Host{Links: map[string]kernel.HostLink{}}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var l kernel.HostLink
		if _, err := fmt.Sscan(f[1]+" "+f[2], &l.Index, &l.MTU); err != nil {
			t.Fatal(err)
		}
		l.Up, l.Live = f[3] != "down", f[3] == "up"
		if strings.HasPrefix(f[0], "wireguard") || strings.HasPrefix(f[0], "wg") {
			l.Kind = "wireguard"
		}
		h.Links[f[0]] = l
		for _, a := range f[4:] {
			h.Addrs = append(h.Addrs, kernel.HostAddr{Dev: f[0], Addr: netip.MustParsePrefix(a)})
		}
	}
	return h
}

// learned reads lines of
//
//	route DST METRIC plain|tunnel GATEWAY…
//	reach PEER GATEWAY
//	way GATEWAY DEVICE [NEXT]
//	held DST METRIC
//	settling
//	local
func learned(t *testing.T, text string, h kernel.Host) *Learned {
	t.Helper()
	l := &Learned{Ways: map[netip.Addr]kernel.Hop{}}
	for line := range strings.Lines(text) {
		f := append(strings.Fields(line), "", "", "", "")
		switch f[0] {
		case "route":
			r := peering.KernelRoute{Dst: netip.MustParsePrefix(f[1]), Metric: atoi(t, f[2]), Tunnel: f[3] == "tunnel"}
			for _, gw := range strings.Fields(line)[4:] {
				r.Gateways = append(r.Gateways, netip.MustParseAddr(gw))
			}
			l.Routes = append(l.Routes, r)
		case "reach":
			l.Reach = append(l.Reach, peering.Via{Peer: netip.MustParseAddr(f[1]), Gateway: netip.MustParseAddr(f[2])})
		case "way":
			hop := kernel.Hop{Gateway: netip.MustParseAddr(f[1]), Dev: kernel.Dev{Name: f[2], Index: h.Links[f[2]].Index}, Onlink: f[3] == ""}
			if f[3] != "" {
				hop.Gateway = netip.MustParseAddr(f[3])
			}
			l.Ways[netip.MustParseAddr(f[1])] = hop
		case "held":
			l.Held = append(l.Held, kernel.RouteKey{Dst: netip.MustParsePrefix(f[1]), Metric: atoi(t, f[2])})
		case "settling":
			l.Settling = true
		case "local":
			l.Local = true
		default:
			t.Fatalf("%q: not known", line)
		}
	}
	return l
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func part(ar *txtar.Archive, name string) string {
	for _, f := range ar.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func setPart(ar *txtar.Archive, name, data string) {
	for i := range ar.Files {
		if ar.Files[i].Name == name {
			ar.Files[i].Data = []byte(data)
			return
		}
	}
	ar.Files = append(ar.Files, txtar.File{Name: name, Data: []byte(data)})
}

func TestNthCountsAcrossBytes(t *testing.T) {
	for _, c := range []struct {
		from, want string
		n          int
	}{
		{"10.0.0.0", "10.0.0.0", 0},
		{"10.0.0.250", "10.0.1.4", 10},
		{"10.0.255.255", "10.1.0.0", 1},
		{"fd00::ff", "fd00::1ff", 256},
	} {
		if got := nth(netip.MustParseAddr(c.from), c.n); got != netip.MustParseAddr(c.want) {
			t.Errorf("nth(%s, %d) = %v, want %s", c.from, c.n, got, c.want)
		}
	}
}

func TestTunnelMTUIsLimitedByTheDeviceBelow(t *testing.T) {
	m := model(t, `kind: IPPool
metadata: {name: p}
spec: {cidr: 10.244.0.0/16, vxlanMode: Always}
---
kind: Node
metadata: {name: node-1}
spec: {bgp: {ipv4Address: 172.30.1.1/24}}`)
	s := settings()
	s.VXLANMTU = 9000
	r := Compute(m, s, host(t, "eth0 2 1500 up 172.30.1.1/24"))
	if got := r.State.Links[kernel.VXLANDevice].MTU; got != 1450 || r.PodMTU != 1450 {
		t.Errorf("device MTU %d, pod MTU %d, want 1450", got, r.PodMTU)
	}
	if !strings.Contains(fmt.Sprint(r.Problems), "9000") {
		t.Errorf("the MTU is not named: %v", r.Problems)
	}
}
