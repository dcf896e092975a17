package xtables

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

type chainMap = map[kernel.ChainKey]kernel.Chain

// rules is a host's chains as the plan makes them, with a set that the test has to make.
func rules() chainMap {
	chain := func(rules ...string) kernel.Chain { return kernel.Chain{Rules: strings.Join(rules, "\n")} }
	return chainMap{
		{Table: "filter", Chain: "FORWARD"}:       chain("-j cali-FORWARD"),
		{Table: "filter", Chain: "cali-FORWARD"}:  chain("-i cali+ -j ACCEPT", "-o cali+ -j ACCEPT"),
		{Table: "nat", Chain: "POSTROUTING"}:      chain("-j cali-POSTROUTING"),
		{Table: "nat", Chain: "cali-POSTROUTING"}: chain("-j cali-nat-outgoing", "-o vxlan.calico -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL -j MASQUERADE --random-fully"),
		{Table: "nat", Chain: "cali-nat-outgoing"}: chain(
			"-m set --match-set cali40masq-ipam-pools src -m set ! --match-set cali40network-ip-pools dst -j MASQUERADE --random-fully"),
		{Table: "raw", Chain: "PREROUTING"}:      chain("-j cali-PREROUTING"),
		{Table: "raw", Chain: "cali-PREROUTING"}: chain("-p udp -m udp --dport 4789 -j NOTRACK"),
	}
}

// firewall is a namespace with the sets that rules needs, and the table under test.
type firewall struct {
	*nettest.NS
	t *testing.T
	*Chains
}

func newFirewall(t *testing.T, b Backend) firewall {
	t.Helper()
	nettest.Need(t, "iptables-nft", "iptables-legacy", "ipset")
	f := firewall{NS: nettest.New(t), t: t}
	f.Exec("ipset", "create", "cali40masq-ipam-pools", "hash:net")
	f.Exec("ipset", "create", "cali40network-ip-pools", "hash:net")
	f.open(b)
	return f
}

// open starts with a fresh table, as a restarted agent does.
func (f *firewall) open(b Backend) {
	f.t.Helper()
	f.Do(func() {
		c, err := OpenChains(f.t.Context(), b)
		if err != nil {
			f.t.Fatal(err)
		}
		f.Chains = c
	})
}

func (f firewall) list() chainMap {
	f.t.Helper()
	var got chainMap
	var err error
	f.Do(func() { got, err = f.Chains.List(f.t.Context()) })
	if err != nil {
		f.t.Fatal(err)
	}
	return got
}

func (f firewall) apply(changes []kernel.Change[kernel.ChainKey, kernel.Chain]) (err error) {
	f.Do(func() { err = f.Chains.Apply(f.t.Context(), changes) })
	return err
}

// become applies the difference to want and checks that there is none then.
func (f firewall) become(want chainMap) {
	f.t.Helper()
	if err := f.apply(kernel.DiffFunc(f.list(), want, f.Same)); err != nil {
		f.t.Fatal(err)
	}
	if left := kernel.DiffFunc(f.list(), want, f.Same); len(left) > 0 {
		f.t.Fatalf("still to change: %v\n%s", left, f.saved())
	}
}

func (f firewall) saved() string { return f.Exec(f.Backend() + "-save") }

// text is the rules of a chain as iptables -S prints them, without marks.
func (f firewall) text(table, chain string) []string {
	f.t.Helper()
	var out []string
	for line := range strings.Lines(f.Exec(f.Backend(), "-t", table, "-S", chain)) {
		line = strings.TrimSpace(line)
		if i := strings.Index(line, `-m comment --comment "cali:`); i >= 0 {
			line = line[:i] + line[i+len(`-m comment --comment "cali:" `)+markLength:]
		}
		if rule, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			out = append(out, rule)
		}
	}
	return out
}

func TestChainsRoundTrip(t *testing.T) {
	for _, b := range []Backend{NFT, Legacy} {
		t.Run(string(b), func(t *testing.T) {
			f := newFirewall(t, b)
			want := rules()
			f.become(want)
			for k, c := range want {
				got := strings.Join(f.text(k.Table, k.Chain), "\n")
				if got = strings.ReplaceAll(got, "-j CT --notrack", "-j NOTRACK"); got != c.Rules {
					t.Errorf("%v: iptables shows\n%s\nwant\n%s", k, got, c.Rules)
				}
			}
			f.become(chainMap{})
			if out := f.saved(); strings.Contains(out, "cali") {
				t.Errorf("left:\n%s", out)
			}
		})
	}
}

func TestFreshTableFindsNoDifference(t *testing.T) {
	f := newFirewall(t, NFT)
	f.become(rules())
	before := f.saved()
	f.open(NFT)
	if diff := kernel.DiffFunc(f.list(), rules(), f.Same); len(diff) > 0 {
		t.Errorf("a restart would change %v", diff)
	}
	// Even if asked to, it changes nothing that is right.
	if err := f.apply(kernel.Diff(nil, rules())); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(stripComments(before), stripComments(f.saved())); diff != "" {
		t.Error(diff)
	}
}

func TestChainsOfIPv6AreApart(t *testing.T) {
	for _, b := range []Backend{NFT, Legacy} {
		t.Run(string(b), func(t *testing.T) {
			f := newFirewall(t, b)
			f.Exec("ipset", "create", "cali60masq-ipam-pools", "hash:net", "family", "inet6")
			f.Exec("ipset", "create", "cali60network-ip-pools", "hash:net", "family", "inet6")
			f.become(rules())
			before := stripComments(f.saved())
			six, want := f, chainMap{}
			f.Do(func() {
				var err error
				if six.Chains, err = f.IPv6(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			for k, c := range rules() {
				want[k] = kernel.Chain{Rules: strings.NewReplacer("cali40", "cali60", "vxlan.", "vxlan-v6.").Replace(c.Rules)}
			}
			six.become(want)
			k := kernel.ChainKey{Table: "nat", Chain: "cali-nat-outgoing"}
			if got := strings.Join(six.text(k.Table, k.Chain), "\n"); got != want[k].Rules {
				t.Errorf("%s shows\n%s\nwant\n%s", six.Backend(), got, want[k].Rules)
			}
			six.Exec(six.Backend(), "-F", "cali-FORWARD")
			six.become(want)
			six.become(chainMap{})
			if diff := cmp.Diff(before, stripComments(f.saved())); diff != "" {
				t.Errorf("the chains of IPv4 differ:\n%s", diff)
			}
		})
	}
}

func TestHostWithoutIP6tablesIsNamed(t *testing.T) {
	f := newFirewall(t, NFT)
	t.Setenv("PATH", t.TempDir())
	_, err := f.IPv6(t.Context())
	if err == nil || !strings.Contains(err.Error(), "ip6tables-nft is not installed") {
		t.Errorf("got %v", err)
	}
}

// stripComments removes the lines with time stamps.
func stripComments(saved string) []string {
	return slices.DeleteFunc(strings.Split(saved, "\n"), func(l string) bool { return strings.HasPrefix(l, "#") })
}

func TestForeignRulesStay(t *testing.T) {
	f := newFirewall(t, NFT)
	f.Exec("iptables-nft", "-A", "FORWARD", "-s", "192.0.2.1", "-m", "comment", "--comment", `say "hi" \ there`, "-j", "DROP")
	f.Exec("iptables-nft", "-N", "KUBE-FORWARD")
	f.Exec("iptables-nft", "-A", "FORWARD", "-j", "KUBE-FORWARD")
	foreign := f.text("filter", "FORWARD")
	f.become(rules())
	if diff := cmp.Diff(append([]string{"-j cali-FORWARD"}, foreign...), f.text("filter", "FORWARD")); diff != "" {
		t.Error(diff)
	}
	f.become(chainMap{})
	if diff := cmp.Diff(foreign, f.text("filter", "FORWARD")); diff != "" {
		t.Error(diff)
	}
}

func TestOurRulesReturnToTheTop(t *testing.T) {
	f := newFirewall(t, NFT)
	want := rules()
	k := kernel.ChainKey{Table: "filter", Chain: "FORWARD"}
	want[k] = kernel.Chain{Rules: want[k].Rules + "\n-s 198.51.100.0/24 -j ACCEPT"}
	f.become(want)
	f.Exec("iptables-nft", "-I", "FORWARD", "1", "-s", "192.0.2.1/32", "-j", "DROP")
	f.become(want)
	f.Exec("iptables-nft", "-I", "FORWARD", "2", "-s", "192.0.2.2/32", "-j", "DROP")
	f.become(want)
	wantText := []string{"-j cali-FORWARD", "-s 198.51.100.0/24 -j ACCEPT", "-s 192.0.2.2/32 -j DROP", "-s 192.0.2.1/32 -j DROP"}
	if diff := cmp.Diff(wantText, f.text("filter", "FORWARD")); diff != "" {
		t.Error(diff)
	}
}

func TestOurRulesStandLastIfAsked(t *testing.T) {
	for _, b := range []Backend{NFT, Legacy} {
		t.Run(string(b), func(t *testing.T) {
			f := newFirewall(t, b)
			program := "iptables-" + string(b)
			want := rules()
			k := kernel.ChainKey{Table: "filter", Chain: "FORWARD"}
			f.Exec(program, "-A", "FORWARD", "-s", "192.0.2.1/32", "-j", "DROP")
			f.become(want) // first, and so in the wrong place from here on
			f.Append(true)
			want[k] = kernel.Chain{Rules: want[k].Rules + "\n-s 198.51.100.0/24 -j ACCEPT"}
			f.become(want)
			last := []string{"-s 192.0.2.1/32 -j DROP", "-j cali-FORWARD", "-s 198.51.100.0/24 -j ACCEPT"}
			if diff := cmp.Diff(last, f.text("filter", "FORWARD")); diff != "" {
				t.Errorf("after the change (-want +got):\n%s", diff)
			}
			f.Exec(program, "-A", "FORWARD", "-s", "192.0.2.2/32", "-j", "DROP")
			f.become(want)
			last = append([]string{last[0], "-s 192.0.2.2/32 -j DROP"}, last[1:]...)
			if diff := cmp.Diff(last, f.text("filter", "FORWARD")); diff != "" {
				t.Errorf("after a foreign rule (-want +got):\n%s", diff)
			}
			f.become(chainMap{})
			if diff := cmp.Diff(last[:2], f.text("filter", "FORWARD")); diff != "" {
				t.Errorf("without our rules (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSpoiledChainsAreRepaired(t *testing.T) {
	for _, b := range []Backend{NFT, Legacy} {
		t.Run(string(b), func(t *testing.T) {
			f := newFirewall(t, b)
			f.become(rules())
			for _, spoil := range [][]string{
				{"-D", "FORWARD", "1"},
				{"-F", "cali-FORWARD"},
				{"-D", "cali-FORWARD", "1"},
				{"-A", "cali-FORWARD", "-j", "DROP"},
				{"-I", "cali-FORWARD", "-j", "DROP"},
				{"-N", "cali-old"},
				{"-t", "nat", "-F"},
				{"-t", "raw", "-D", "PREROUTING", "1"},
			} {
				f.Exec(append([]string{f.Backend()}, spoil...)...)
				if len(kernel.DiffFunc(f.list(), rules(), f.Same)) == 0 {
					t.Errorf("%v: the list does not show it", spoil)
				}
				f.become(rules())
			}
		})
	}
}

func TestChangedChainKeepsWhatStays(t *testing.T) {
	f := newFirewall(t, NFT)
	want := rules()
	k := kernel.ChainKey{Table: "filter", Chain: "cali-FORWARD"}
	for _, change := range []string{"-i cali+ -j ACCEPT\n-s 192.0.2.0/24 -j ACCEPT\n-o cali+ -j ACCEPT", "-o cali+ -j ACCEPT\n-i cali+ -j ACCEPT", "-o cali+ -j ACCEPT", ""} {
		want[k] = kernel.Chain{Rules: change}
		f.become(want)
		if got := strings.Join(f.text(k.Table, k.Chain), "\n"); got != change {
			t.Errorf("got\n%s\nwant\n%s", got, change)
		}
	}
}

func TestBadRuleKeepsTheOldOnesAndStopsNothingElse(t *testing.T) {
	f := newFirewall(t, NFT)
	f.become(rules())
	want := rules()
	bad := kernel.ChainKey{Table: "filter", Chain: "cali-FORWARD"}
	good := kernel.ChainKey{Table: "raw", Chain: "cali-PREROUTING"}
	want[bad] = kernel.Chain{Rules: "-m set --match-set cali40missing src -j ACCEPT"}
	want[good] = kernel.Chain{Rules: "-p udp -m udp --dport 8472 -j CT --notrack"}
	err := f.apply(kernel.DiffFunc(f.list(), want, f.Same))
	keys, all := kernel.Failed[kernel.ChainKey](err)
	if !all || !slices.Equal(keys, []kernel.ChainKey{bad}) || !strings.Contains(err.Error(), "cali40missing") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"-i cali+ -j ACCEPT", "-o cali+ -j ACCEPT"}, f.text("filter", "cali-FORWARD")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"-p udp -m udp --dport 8472 -j CT --notrack"}, f.text("raw", "cali-PREROUTING")); diff != "" {
		t.Error(diff)
	}
	f.Exec("ipset", "create", "cali40missing", "hash:net")
	f.become(want)
}

func TestBackendFollowsKubernetes(t *testing.T) {
	f := newFirewall(t, Auto)
	if f.Backend() != "iptables-nft" {
		t.Errorf("without Kubernetes: %s", f.Backend())
	}
	f.Exec("iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
	if f.open(Auto); f.Backend() != "iptables-legacy" {
		t.Errorf("with the kubelet on legacy: %s", f.Backend())
	}
	f.Exec("iptables-nft", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
	if f.open(Auto); f.Backend() != "iptables-nft" {
		t.Errorf("with the kubelet on both: %s", f.Backend())
	}
	if f.open(Legacy); f.Backend() != "iptables-legacy" {
		t.Errorf("asked for legacy: %s", f.Backend())
	}
}

func TestMissingProgramsAreExplained(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := OpenChains(context.Background(), Auto)
	if err == nil || !strings.Contains(err.Error(), "apt-get install iptables") {
		t.Errorf("got %v", err)
	}
	if _, err := OpenChains(context.Background(), "ipfw"); err == nil || !strings.Contains(err.Error(), "ipfw") {
		t.Errorf("got %v", err)
	}
}

func TestPlainProgramIsEnough(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-save"} {
		script := "#!/bin/sh\necho 'iptables v1.8.9 (nf_tables)'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	c, err := OpenChains(t.Context(), Auto)
	if err != nil {
		t.Fatal(err)
	}
	if c.Backend() != "iptables" {
		t.Errorf("chose %s", c.Backend())
	}
}

func TestMarksDependOnPlaceAndText(t *testing.T) {
	k := kernel.ChainKey{Table: "nat", Chain: "cali-x"}
	a := Marks(k, kernel.Chain{Rules: "-j A\n-j B\n-j B"})
	if len(a) != 3 || a[1] == a[2] || len(a[0]) != len(kernel.CommentPrefix)+markLength {
		t.Errorf("got %v", a)
	}
	if b := Marks(k, kernel.Chain{Rules: "-j A\n-j C"}); b[0] != a[0] || b[1] == a[1] {
		t.Errorf("got %v, %v", a, b)
	}
	if b := Marks(kernel.ChainKey{Table: "nat", Chain: "cali-y"}, kernel.Chain{Rules: "-j A"}); b[0] == a[0] {
		t.Error("the chain makes no difference")
	}
	if got := Marks(k, kernel.Chain{Rules: strings.Join(a, "\n")}); !slices.Equal(got, a) {
		t.Errorf("marks of marks: %v", got)
	}
	if got := Marks(k, kernel.Chain{}); len(got) != 0 {
		t.Errorf("marks of nothing: %v", got)
	}
}

func TestAdditionsComeBeforeWhatUsesThem(t *testing.T) {
	key := func(name string) kernel.ChainKey { return kernel.ChainKey{Table: "filter", Chain: name} }
	want := chainMap{
		key("FORWARD"): {Rules: "-j cali-a"}, key("cali-a"): {Rules: "-i x -g cali-b"}, key("cali-b"): {Rules: "-j cali-a"}, key("cali-c"): {},
	}
	for _, changes := range [][]kernel.Change[kernel.ChainKey, kernel.Chain]{kernel.Diff(nil, want), kernel.Diff(want, nil)} {
		puts, removals := sortChanges(changes)
		slices.Reverse(removals)
		all := slices.Concat(puts, removals)
		if len(all) != len(want) || all[len(all)-1].Key != key("FORWARD") {
			t.Errorf("order %v", all)
		}
	}
	puts, _ := sortChanges([]kernel.Change[kernel.ChainKey, kernel.Chain]{
		{Key: key("cali-1"), New: &kernel.Chain{Rules: "-j cali-2"}}, {Key: key("cali-2"), New: &kernel.Chain{Rules: "-j ACCEPT"}},
	})
	if puts[0].Key != key("cali-2") {
		t.Errorf("the caller is filled first: %v", puts)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("*nat\n:cali-x - [0:0]\n-A cali-x -m comment --comment \"cali:abc\" -j ACCEPT\nCOMMIT\n")
	f.Add("-A")
	f.Add("-A x \"")
	f.Fuzz(func(t *testing.T, text string) {
		for k, list := range parse(text) {
			for _, r := range list {
				if r.mark != "" && !slices.Contains(r.spec, r.mark) {
					t.Errorf("%v: mark %q is not in %q", k, r.mark, r.spec)
				}
			}
		}
	})
}
