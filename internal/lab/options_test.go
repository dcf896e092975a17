package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestOptionsThatCannotWorkAreNamed(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Options)
		want   string // "": valid
	}{
		{"defaults", func(*Options) {}, ""},
		{"whole pool in a block", func(o *Options) { o.Pool, o.BlockSize = netip.MustParsePrefix("10.0.0.0/24"), 24 }, ""},
		{"no nodes", func(o *Options) { o.Nodes = 0 }, "nodes 0: want 1 to 100"},
		{"too many nodes", func(o *Options) { o.Nodes = 101 }, "nodes 101"},
		{"empty subnets", func(o *Options) { o.Subnets = 4 }, "subnets 4: there are only 3 nodes"},
		{"unknown mode", func(o *Options) { o.Mode = "bgp" }, `mode "bgp": want direct, ipip, ipip-crosssubnet, vxlan or vxlan-crosssubnet`},
		{"IPv6 pool", func(o *Options) { o.Pool = netip.MustParsePrefix("fd00::/48") }, "want an IPv4 CIDR"},
		{"no pool", func(o *Options) { o.Pool = netip.Prefix{} }, "want an IPv4 CIDR"},
		{"host bits", func(o *Options) { o.Pool = netip.MustParsePrefix("10.0.0.1/16") }, "did you mean 10.0.0.0/16?"},
		{"pool of the underlay", func(o *Options) { o.Pool = netip.MustParsePrefix("172.16.0.0/12") }, "overlaps 172.30.0.0/16"},
		{"block too small", func(o *Options) { o.BlockSize = 33 }, "block size 33"},
		{"block too large", func(o *Options) { o.BlockSize = 19 }, "block size 19"},
		{"block larger than the pool", func(o *Options) { o.Pool = netip.MustParsePrefix("10.0.0.0/28") }, "block size /26 is larger than the pool"},
		{"IP-in-IP", func(o *Options) { o.Mode = IPIPCrossSubnet }, ""},
		{"IP-in-IP beside IPv6", func(o *Options) { o.Mode, o.DualStack = IPIP, true }, ""},
		{"IP-in-IP for IPv6", func(o *Options) { o.Mode6 = IPIP }, `mode6 "ipip": want direct, vxlan or vxlan-crosssubnet; there is no IP-in-IP`},
		{"dual-stack", func(o *Options) { o.DualStack = true }, ""},
		{"IPv6 that is not used", func(o *Options) { o.Pool6, o.BlockSize6 = netip.Prefix{}, 0 }, ""},
		{"IPv4 pool for IPv6", func(o *Options) { o.DualStack, o.Pool6 = true, o.Pool }, `pool6 "192.168.0.0/16": want an IPv6 CIDR`},
		{"IPv6 host bits", func(o *Options) { o.DualStack, o.Pool6 = true, netip.MustParsePrefix("fd00::1/64") }, "did you mean fd00::/64?"},
		{"IPv6 pool of the underlay", func(o *Options) { o.DualStack, o.Pool6 = true, netip.MustParsePrefix("fd00::/16") }, "overlaps fd00:172:30::/48"},
		{"IPv6 block too large", func(o *Options) { o.DualStack, o.BlockSize6 = true, 64 }, "block size 64: want a prefix length of 116 to 128"},
		{"IPv6 block larger than the pool", func(o *Options) { o.DualStack, o.Pool6 = true, netip.MustParsePrefix("fd00:9::/126") }, "larger than the pool6"},
		{"etcd without a port", func(o *Options) { o.Etcd = "http://127.0.0.1" }, "want http://host:port"},
		{"another etcd and TLS", func(o *Options) { o.Etcd, o.TLS = "http://127.0.0.1:2379", true }, "leave out one of the two"},
		{"another etcd and members", func(o *Options) { o.Etcd, o.Members = "http://127.0.0.1:2379", 3 }, "leave out one of the two"},
		{"too many members", func(o *Options) { o.Members = 8 }, "members 8: want 1 to 7"},
		{"etcd with TLS", func(o *Options) { o.Etcd = "https://127.0.0.1:2379" }, "want http://host:port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := Defaults()
			tc.change(&o)
			err := o.Validate()
			if tc.want == "" {
				if err != nil {
					t.Errorf("error = %v, want none", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one that says %q", err, tc.want)
			}
		})
	}
}

func TestIPv6GoesByTheModeThatComesNearest(t *testing.T) {
	for _, c := range []struct{ mode, mode6, want Mode }{
		{Direct, "", Direct}, {VXLAN, "", VXLAN}, {CrossSubnet, "", CrossSubnet}, {IPIP, "", VXLAN}, {IPIPCrossSubnet, "", CrossSubnet}, {IPIP, Direct, Direct},
	} {
		o := Options{Mode: c.mode, Mode6: c.mode6}
		if got := o.mode(true); got != c.want || o.mode(false) != c.mode {
			t.Errorf("%s and %q: %s for IPv6 and %s for IPv4, want %s and %s", c.mode, c.mode6, got, o.mode(false), c.want, c.mode)
		}
	}
}

func TestNodesTakeTurnsOnSubnets(t *testing.T) {
	o := Defaults()
	o.Nodes, o.Subnets = 3, 2
	var got []string
	o.DualStack = true
	for _, n := range plannedNodes(o) {
		got = append(got, fmt.Sprint(n.Name, " ", n.Addr, " ", n.Addr6))
	}
	want := []string{"node-1 172.30.1.1 fd00:172:30:1::1", "node-2 172.30.2.2 fd00:172:30:2::2", "node-3 172.30.1.3 fd00:172:30:1::3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// sample is a report of the demo's size with one failure of each sort.
func sample() Report {
	r := Report{Mode: Direct}
	for i, name := range []string{"pod-1a", "pod-1b", "pod-2a", "pod-2b", "pod-3a", "pod-3b"} {
		r.Peers = append(r.Peers, Peer{Name: name, Kind: string(kindPod), Node: plannedNodes(Defaults())[i/2].Name, Subnet: 1, Addr: netip.MustParseAddr("192.168.123.123")})
	}
	for _, n := range plannedNodes(Defaults()) {
		r.Peers = append(r.Peers, Peer{Name: n.Name, Kind: string(kindNode), Node: n.Name, Subnet: 1, Addr: n.Addr})
	}
	r.Peers = append(r.Peers, Peer{Name: "outside", Kind: string(kindOutside), Addr: underlay(outsideSubnet, 1)})
	for _, from := range r.Peers[:9] {
		for _, to := range r.Peers {
			if from != to {
				r.Pairs = append(r.Pairs, Pair{From: from.Name, To: to.Name, OK: true, Reached: true})
			}
		}
	}
	r.Pairs[0] = Pair{From: "pod-1a", To: "pod-1b", Problem: "TCP: no answer; UDP: ok"}
	r.Pairs[1] = Pair{From: "pod-1a", To: "pod-2a", Problem: "mode direct has no tunnel", Expected: true}
	r.Pairs[2] = Pair{From: "pod-1a", To: "pod-2b", Reached: true, MTU: 1450, Problem: "small messages pass"}
	r.Pairs[8] = Pair{From: "pod-1a", To: "outside", Reached: true, Problem: "its source is seen as 192.168.0.1"}
	return r
}

func TestReportFitsEightyColumnsAndExplainsFailures(t *testing.T) {
	var b bytes.Buffer
	sample().WriteText(&b)
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, want := range []string{
		"   .  NO  -- mtu",
		"src\n",
		"4 of 81 ways fail",
		"expected: mode direct has no tunnel:\n    pod-1a -> pod-2a\n",
		"small messages pass:\n    pod-1a -> pod-2b\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, &b)
		}
	}
}

func TestReportOfBothFamiliesHasTwoMatrices(t *testing.T) {
	r := sample()
	for i := range r.Peers {
		r.Peers[i].Addr6 = netip.MustParseAddr("fd00:192:168:8b78:7710:d725:d19f:fe01")
	}
	for _, p := range r.Pairs[:5] {
		p.IPv6 = true
		r.Pairs = append(r.Pairs, p)
	}
	var b bytes.Buffer
	r.WriteText(&b)
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, want := range []string{"IPv4:\n", "IPv6:\n", "  1 pod-1a node-1    .  NO  -- mtu  ok  ok", "7 of 86 ways fail", "pod-1a -> pod-1b, pod-1a -> pod-1b (IPv6)\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, &b)
		}
	}
}

func TestWrapLosesNothingAndStaysBelowEightyColumns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,40}`), 1, 30).Draw(t, "words")
		text := wrap(strings.Join(words, ", "), ", ", "    ")
		for line := range strings.Lines(text) {
			if len(strings.TrimSuffix(line, "\n")) > 80 {
				t.Fatalf("too long: %q", line)
			}
		}
		if got := strings.Join(strings.Fields(text), " "); got != strings.Join(words, ", ") {
			t.Fatalf("got %q", got)
		}
	})
}
