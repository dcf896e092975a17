package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nftable"
)

const table = "muslin-test"

// open opens a connection to a new namespace.
func open(t testing.TB) (*Conn, *nettest.NS) {
	t.Helper()
	ns := nettest.New(t)
	return openIn(t, ns), ns
}

func openIn(t testing.TB, ns *nettest.NS) *Conn {
	t.Helper()
	var c *Conn
	ns.Do(func() {
		var err error
		if c, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func rule(note string, stmts ...nftable.Stmt) nftable.Rule {
	return nftable.Rule{Note: note, Stmts: stmts}
}

func add(tab *nftable.Table, sets ...*nftable.Set) {
	for _, s := range sets {
		tab.Sets[s.Name] = s
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// everything returns a table with each statement and each kind of set.
func everything() *nftable.Table {
	tab := nftable.NewTable(table)
	tab.Counters["r-one"] = struct{}{}
	add(tab,
		nftable.NewMap("from", nftable.Ifaces, nftable.Elem{Key: nftable.IfaceKey("cali1a2b3c4d5e6"), To: "target"}),
		nftable.NewSet("src4", nftable.IfaceAddr4, nftable.Elem{Key: nftable.IfaceAddrKey("cali1", addr("10.65.0.1"))}),
		nftable.NewSet("src6", nftable.IfaceAddr6, nftable.Elem{Key: nftable.IfaceAddrKey("cali1", addr("fd00::1"))}),
		nftable.NewSet("safe", nftable.ProtoPorts, nftable.Elem{Key: nftable.ProtoPortKey(6, 22)}),
		nftable.NewSet("a4", nftable.Addr4, nftable.Elem{Key: nftable.AddrKey(addr("10.0.0.1"))}),
		nftable.NewSet("a6", nftable.Addr6, nftable.Elem{Key: nftable.AddrKey(addr("fd00::2"))}),
		nftable.NewIntervals("n4", nftable.Addr4, nftable.Ranges([]netip.Prefix{
			prefix("10.0.0.0/8"), prefix("10.1.0.0/16"), prefix("255.0.0.0/8"), prefix("11.0.0.0/8"), prefix("192.0.2.1/32")})...),
		nftable.NewIntervals("n6", nftable.Addr6, nftable.Ranges([]netip.Prefix{prefix("fd00::/8"), prefix("ffff::/16"), prefix("::/64")})...),
		nftable.NewIntervals("all4", nftable.Addr4, nftable.Ranges([]netip.Prefix{prefix("0.0.0.0/0")})...),
		nftable.NewIntervals("ports", nftable.Ports, nftable.PortRange(80, 80), nftable.PortRange(8000, 8099), nftable.PortRange(65000, 65535)),
		nftable.NewSet("p4", nftable.AddrPort4, nftable.Elem{Key: nftable.AddrPortKey(addr("10.0.0.1"), 6, 80)}),
		nftable.NewDynamic("crowds", nftable.IfaceParts, 1000, false),
		nftable.NewDynamic("shunned", nftable.Ifaces, 100, true),
		nftable.NewSet("p6", nftable.AddrPort6, nftable.Elem{Key: nftable.AddrPortKey(addr("fd00::1"), 17, 53)}),
	)
	tcp, drop := nftable.Proto{Number: 6}, nftable.Verdict{Kind: nftable.Drop}
	target := nftable.Verdict{Kind: nftable.Goto, Chain: "target"}
	for _, c := range []*nftable.Chain{
		nftable.NewChain("raw-prerouting", nftable.Base{Hook: nftable.Prerouting, Priority: -300},
			rule("clear", nftable.SetMark{Clear: 0x30000}),
			rule("", nftable.Proto{Number: 17}, nftable.Port{Dst: true, First: 4789, Last: 4789}, nftable.Local{}, nftable.NoTrack{}),
			rule("", nftable.Iface{Name: "cali*"}, nftable.Family{}, nftable.IfaceAddrIn{Set: "src4"}, nftable.Verdict{Kind: nftable.Return}),
			rule("", nftable.IfaceAddrIn{V6: true, Set: "src6"}, nftable.Verdict{Kind: nftable.Return}),
			rule("", nftable.Iface{Out: true, Name: "eth0"}, drop),
		),
		nftable.NewChain("forward", nftable.Base{Hook: nftable.Forward, Priority: -10},
			rule("", nftable.Established|nftable.Related, target),
			rule("", nftable.Invalid, drop),
			rule("", nftable.Dispatch{Map: "from"}),
			rule("", nftable.Dispatch{Out: true, Map: "from"}),
			rule("", nftable.Mark{Mask: 0x10000, Value: 0x10000}, nftable.Verdict{Kind: nftable.Accept}),
			rule("", nftable.Mark{Mask: 0x30000, Not: true}, nftable.Verdict{Kind: nftable.Jump, Chain: "target"}),
		),
		nftable.NewChain("input", nftable.Base{Hook: nftable.Input, Priority: -10}, rule("", nftable.ProtoPortIn{Dst: true, Set: "safe"}, drop)),
		nftable.NewChain("output", nftable.Base{Hook: nftable.Output, Priority: -150}, rule("", nftable.ProtoPortIn{Set: "safe"}, drop)),
		nftable.NewChain("target", nftable.Base{},
			rule("a", nftable.Addr{Prefix: prefix("10.9.0.0/16")}, nftable.Count{Name: "r-one"}, nftable.SetMark{Set: 0x10000}, drop),
			rule("b", nftable.Addr{Dst: true, Prefix: prefix("fd00::/9"), Not: true}, nftable.Count{}, nftable.SetMark{Clear: 0x30000, Set: 0x20000}),
			rule("c", nftable.Addr{Dst: true, Prefix: prefix("10.0.0.1/32"), Not: true}, drop),
			rule("d", nftable.AddrIn{Set: "a4"}, nftable.AddrIn{Dst: true, Set: "n4", Not: true}, drop),
			rule("e", nftable.AddrIn{V6: true, Set: "a6", Not: true}, nftable.AddrIn{V6: true, Dst: true, Set: "n6"}, drop),
			rule("f", tcp, nftable.Port{Dst: true, First: 80, Last: 90}, nftable.Port{First: 1, Last: 1024, Not: true}, drop),
			rule("g", tcp, nftable.Port{Dst: true, First: 80, Last: 80, Not: true}, nftable.PortIn{Set: "ports"}, drop),
			rule("h", tcp, nftable.PortIn{Dst: true, Set: "ports", Not: true}, drop),
			rule("i", nftable.AddrPortIn{Dst: true, Set: "p4"}, drop),
			rule("j", nftable.AddrPortIn{V6: true, Set: "p6", Not: true}, drop),
			rule("k", nftable.Proto{Number: 1}, nftable.ICMP{Type: 8}, drop),
			rule("l", nftable.Proto{Number: 58}, nftable.ICMP{V6: true, Type: 128, Not: true}, drop),
			rule("m", nftable.Proto{Number: 1}, nftable.ICMP{Type: 3, Code: 4, HasCode: true}, drop),
			rule("n", nftable.Proto{Number: 132, Not: true}, nftable.MidStream{}, nftable.Limit{Rate: 10, Burst: 5}, nftable.Limit{Rate: 3, Burst: 5, Unit: nftable.Minute},
				nftable.Log{Prefix: "D:x", Group: 9, Snaplen: 128}, nftable.Reject{}),
			rule("o", nftable.Local{}, nftable.Untracked, drop),
			rule("p", nftable.First{}, nftable.IfaceIn{Set: "shunned"}, tcp, nftable.Reset{}),
			rule("q", nftable.IfaceIn{Out: true, Set: "shunned"}, nftable.Crowd{Limit: 10}, nftable.Remember{Set: "shunned", Millis: 100}, drop),
			rule("r", nftable.CrowdOf{Set: "crowds", Parts: 64, Limit: 20}, nftable.Remember{Out: true, Set: "shunned", Millis: 1500}, drop),
			rule("s", nftable.CrowdOf{Out: true, Set: "crowds", Parts: 1, Limit: 2000}, drop),
			rule("t", nftable.Above{Rate: 100, Burst: 5}, nftable.Above{Rate: 5_000_000_000, Burst: 1 << 20, Bytes: true}, nftable.Above{Rate: 1000, Bytes: true}, drop),
			rule("u", nftable.Addr{Dst: true, Prefix: prefix("10.0.0.0/8"), Not: true}, nftable.SetDSCP{Value: 46}),
			rule("v", nftable.SetDSCP{V6: true, Value: 10}),
			rule(strings.Repeat("long", 40), nftable.Log{Prefix: strings.Repeat("p", 200), Group: 9, Snaplen: 64}, drop),
		),
	} {
		tab.Chains[c.Name] = c
	}
	return tab
}

// shown returns what nft says of the table, without the flags and the comment on its owner.
func shown(ns *nettest.NS) string {
	var out []string
	for _, line := range strings.Split(ns.Exec("nft", "list", "table", "inet", table), "\n") {
		line, _, _ = strings.Cut(line, " # progname")
		if trimmed := strings.TrimSpace(line); !strings.HasPrefix(trimmed, "flags owner") && trimmed != "flags" && trimmed != "" {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

func commit(t testing.TB, c *Conn, d nftable.Delta) {
	t.Helper()
	if err := c.Commit(t.Context(), table, d, 0); err != nil {
		t.Fatal(err)
	}
}

func list(t testing.TB, c *Conn) nftable.Listing {
	t.Helper()
	l, _, err := c.List(t.Context(), table)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestKernelHoldsWhatNftMakesOfTheText(t *testing.T) {
	nettest.Need(t, "nft")
	c, ns := open(t)
	want := everything()
	commit(t, c, nftable.Build(want))

	other := nettest.New(t)
	file := filepath.Join(t.TempDir(), "table.nft")
	if err := os.WriteFile(file, []byte(want.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	other.Exec("nft", "-f", file)
	if diff := cmp.Diff(strings.Split(shown(other), "\n"), strings.Split(shown(ns), "\n")); diff != "" {
		t.Errorf("by nft (-), by netlink (+):\n%s", diff)
	}
	if diff := cmp.Diff(strings.Split(bytecode(other), "\n"), strings.Split(bytecode(ns), "\n")); diff != "" {
		t.Errorf("expressions by nft (-), by netlink (+):\n%s", diff)
	}
}

// bytecode returns the expressions of the table's rules, as the kernel tells them.
func bytecode(ns *nettest.NS) string {
	var out []string
	for _, line := range strings.Split(ns.Exec("nft", "--debug=netlink", "list", "table", "inet", table), "\n") {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "[ ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

func TestWhatIsReadBackIsWhatWasWritten(t *testing.T) {
	c, _ := open(t)
	want := everything()
	commit(t, c, nftable.Build(want))
	have := list(t, c)
	if diff := cmp.Diff(want.Listing(), have); diff != "" {
		t.Fatalf("want (-), got (+):\n%s", diff)
	}
	if d := nftable.Diff(have, want); !d.Empty() {
		t.Fatalf("differs from itself: %+v", d)
	}
}

func TestAbsentTableIsAnEmptyListing(t *testing.T) {
	c, _ := open(t)
	if have := list(t, c); have.Exists || len(have.Chains) > 0 {
		t.Fatalf("got %+v", have)
	}
	if err := c.Delete(t.Context(), table); err != nil {
		t.Fatal(err)
	}
}

// TestOtherTablesOfTheFamilyAreNotListed has tables of other programs, as firewalld's, that hold objects of all kinds, of our names too.
func TestOtherTablesOfTheFamilyAreNotListed(t *testing.T) {
	nettest.Need(t, "nft")
	c, ns := open(t)
	want := everything()
	k := NewKeeper(c, table)
	for _, family := range []string{"inet", "ip", "ip6"} {
		for _, other := range []string{"a-filter", "z-filter"} { // before and behind ours
			ns.Exec("nft", `add table `+family+` `+other+` {
				counter r-one { }; counter foreign { }
				set a4 { type mark; }; set foreign { type mark; elements = { 1 }; }
				map from { type ifname : verdict; elements = { "x" : accept }; }
				chain target { counter drop; }
				chain foreign { type filter hook forward priority 0; policy accept; counter; }
			}`)
		}
	}
	if _, err := k.Sync(t.Context(), want, false); err != nil {
		t.Fatal(err)
	}
	if d := nftable.Diff(list(t, c), want); !d.Empty() {
		t.Fatalf("what others have is taken for ours: %+v", d)
	}
	if done, err := k.Sync(t.Context(), want, false); err != nil || !done.Changed.Empty() {
		t.Fatalf("the second time %+v was changed: %v", done.Changed, err)
	}
}

func TestLargeSetsArriveWhole(t *testing.T) {
	c, _ := open(t)
	want := nftable.NewTable(table)
	var addrs, ranges, ifaces []nftable.Elem
	for i := range 20_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		b := netip.AddrFrom4([4]byte{20, byte(i >> 12), byte(i >> 4), byte(i << 4)})
		addrs = append(addrs, nftable.Elem{Key: nftable.AddrKey(a)})
		ranges = append(ranges, nftable.Ranges([]netip.Prefix{netip.PrefixFrom(b, 30)})...)
		ifaces = append(ifaces, nftable.Elem{Key: nftable.IfaceKey(fmt.Sprintf("cali%d", i)), To: "a-chain-whose-name-is-rather-long-as-names-go"})
	}
	add(want, nftable.NewSet("hash", nftable.Addr4, addrs...), nftable.NewIntervals("ranges", nftable.Addr4, ranges...),
		nftable.NewMap("map", nftable.Ifaces, ifaces...))
	want.Chains[ifaces[0].To] = nftable.NewChain(ifaces[0].To, nftable.Base{})
	commit(t, c, nftable.Build(want))
	if d := nftable.Diff(list(t, c), want); !d.Empty() {
		t.Fatalf("%d sets differ", len(d.Elems))
	}
}

func TestFailedBatchChangesNothingAndNamesWhatFailed(t *testing.T) {
	c, _ := open(t)
	want := everything()
	commit(t, c, nftable.Build(want))
	var e nftable.Delta
	e.AddCounters = []string{"r-two"}
	e.Elems = []nftable.ElemDelta{{Set: want.Sets["a4"], Del: []nftable.Elem{{Key: nftable.AddrKey(addr("10.0.0.99"))}}}}
	err := c.Commit(t.Context(), table, e, 0)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "a4") {
		t.Fatalf("got %v", err)
	}
	err = c.Commit(t.Context(), table, nftable.Delta{DelChains: []string{"target"}}, 0)
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "delete chain target") {
		t.Fatalf("got %v", err)
	}
	if d := nftable.Diff(list(t, c), want); !d.Empty() {
		t.Fatalf("something was changed: %+v", d)
	}
}

func TestCommitForAnotherGenerationIsRefused(t *testing.T) {
	c, _ := open(t)
	want := everything()
	commit(t, c, nftable.Build(want))
	_, gen, err := c.List(t.Context(), table)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(t.Context(), table, nftable.Delta{AddCounters: []string{"x"}}, gen); err != nil {
		t.Fatal(err)
	}
	err = c.Commit(t.Context(), table, nftable.Delta{AddCounters: []string{"y"}}, gen)
	if !errors.Is(err, unix.ERESTART) {
		t.Fatalf("got %v", err)
	}
	if err := c.Commit(t.Context(), table, nftable.Delta{AddCounters: []string{"y"}}, 0); err != nil {
		t.Fatal("the connection is unusable afterwards:", err)
	}
}

func TestOwnedTableIsSafeFromOthersAndOutlivesItsOwner(t *testing.T) {
	nettest.Need(t, "nft")
	c, ns := open(t)
	if !c.Owns() {
		t.Skip("this kernel has no tables that are owned and persist")
	}
	want := everything()
	k := NewKeeper(c, table)
	if _, err := k.Sync(t.Context(), want, false); err != nil {
		t.Fatal(err)
	}
	ns.Exec("nft", "flush", "ruleset")
	if have := list(t, c); !have.Exists {
		t.Fatal("flush ruleset has deleted an owned table")
	}
	next := openIn(t, ns)
	second := NewKeeper(next, table)
	if _, err := second.Sync(t.Context(), want, false); !errors.Is(err, unix.EPERM) {
		t.Fatalf("a second owner got %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := second.Sync(t.Context(), want, false)
	if err != nil {
		t.Fatal(err)
	}
	if !done.Changed.Empty() {
		t.Fatalf("the next owner has changed what was right: %+v", done.Changed)
	}
	ns.Exec("nft", "flush", "ruleset")
	if have := list(t, next); !have.Exists {
		t.Fatal("the adopted table is not owned")
	}
}

// TestKeeperRepairsWhatOthersDid is without ownership, as on kernels that lack it: there others can do all this.
func TestKeeperRepairsWhatOthersDid(t *testing.T) {
	nettest.Need(t, "nft")
	c, ns := open(t)
	c.flags = 0
	want := everything()
	k := NewKeeper(c, table)
	if _, err := k.Apply(t.Context(), want, nftable.Delta{}, false); err != nil {
		t.Fatal(err)
	}
	if done, err := k.Check(t.Context(), want); err != nil || done.Listed {
		t.Fatalf("looked again though nobody did anything: %+v, %v", done, err)
	}
	for _, damage := range []string{
		"flush ruleset",
		"delete table inet " + table,
		"flush chain inet " + table + " target",
		"insert rule inet " + table + " target accept",
		"add rule inet " + table + " target tcp dport { 1, 2 } accept",
		"delete element inet " + table + " a4 { 10.0.0.1 }",
		"add element inet " + table + " n4 { 172.16.0.0/12 }",
		"delete element inet " + table + ` from { "cali1a2b3c4d5e6" }`,
		"add set inet " + table + " foreign { type mark; }",
		"add chain inet " + table + " foreign { type filter hook forward priority -400; policy drop; }",
		"add chain inet " + table + " target { policy drop; }; delete element inet " + table + " p6 { fd00::1 . udp . 53 }",
		"add counter inet " + table + " foreign",
		"add quota inet " + table + " foreign { 10 mbytes; }",
	} {
		if _, err := ns.Try("nft", damage); err != nil {
			if strings.Contains(damage, "policy drop; }; delete") {
				continue // older nft does not take both at once
			}
			t.Fatal(err)
		}
		done, err := k.Check(t.Context(), want)
		if err != nil {
			t.Fatalf("after %q: %v", damage, err)
		}
		if !done.Listed || done.Changed.Empty() {
			t.Errorf("after %q nothing was done", damage)
		}
		if d := nftable.Diff(list(t, c), want); !d.Empty() {
			t.Errorf("after %q there remains %+v", damage, d)
		}
	}
}

func TestKeeperListsOnlyInDoubt(t *testing.T) {
	c, ns := open(t)
	c.flags = 0
	e := nftable.NewEditor(table)
	k := NewKeeper(c, table)
	apply := func() Done {
		t.Helper()
		done, err := k.Apply(t.Context(), e.Table(), e.Take(), false)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	e.PutSet(nftable.NewSet("a4", nftable.Addr4))
	if !apply().Listed {
		t.Fatal("the first time nothing was listed")
	}
	e.PutElem("a4", nftable.Elem{Key: nftable.AddrKey(addr("10.0.0.1"))})
	if done := apply(); done.Listed || len(done.Changed.Elems) != 1 {
		t.Fatalf("got %+v", done)
	}
	if done := apply(); done.Listed || !done.Changed.Empty() {
		t.Fatalf("got %+v", done)
	}
	k.Doubt()
	if done := apply(); !done.Listed || !done.Changed.Empty() {
		t.Fatalf("got %+v", done)
	}
	ns.Exec("nft", "delete", "element", "inet", table, "a4", "{ 10.0.0.1 }")
	e.DropElem("a4", nftable.Elem{Key: nftable.AddrKey(addr("10.0.0.1"))})
	e.PutElem("a4", nftable.Elem{Key: nftable.AddrKey(addr("10.0.0.2"))})
	if done := apply(); !done.Listed { // the delta deletes what is not there
		t.Fatalf("got %+v", done)
	}
	if d := nftable.Diff(list(t, c), e.Table()); !d.Empty() {
		t.Fatalf("there remains %+v", d)
	}
}

func TestKeeperTakesNothingAwayWhileTold(t *testing.T) {
	c, _ := open(t)
	old, fresh := nftable.NewTable(table), nftable.NewTable(table)
	old.Chains["a"], old.Chains["b"] = nftable.NewChain("a", nftable.Base{}), nftable.NewChain("b", nftable.Base{})
	fresh.Chains["b"], fresh.Chains["c"] = old.Chains["b"], nftable.NewChain("c", nftable.Base{})
	one, two := nftable.Elem{Key: nftable.AddrKey(addr("10.0.0.1"))}, nftable.Elem{Key: nftable.AddrKey(addr("10.0.0.2"))}
	add(old, nftable.NewSet("s", nftable.Addr4, one), nftable.NewMap("m", nftable.Ifaces, nftable.Elem{Key: nftable.IfaceKey("x"), To: "a"}))
	add(fresh, nftable.NewSet("s", nftable.Addr4, two), nftable.NewMap("m", nftable.Ifaces, nftable.Elem{Key: nftable.IfaceKey("x"), To: "b"}))
	commit(t, c, nftable.Build(old))
	k := NewKeeper(c, table)
	if _, err := k.Apply(t.Context(), fresh, nftable.Delta{}, true); err != nil {
		t.Fatal(err)
	}
	have := list(t, c)
	if len(have.Chains) != 3 || len(have.Sets["s"].Elems) != 2 {
		t.Fatalf("got %+v", have)
	}
	if diff := cmp.Diff(fresh.Sets["m"], have.Sets["m"]); diff != "" {
		t.Fatal(diff)
	}
	if _, err := k.Apply(t.Context(), fresh, nftable.Delta{}, false); err != nil {
		t.Fatal(err)
	}
	if d := nftable.Diff(list(t, c), fresh); !d.Empty() {
		t.Fatalf("there remains %+v", d)
	}
}

func TestMonitorHearsOthersAndNotOurselves(t *testing.T) {
	nettest.Need(t, "nft")
	c, ns := open(t)
	c.flags = 0
	var m *Monitor
	ns.Do(func() {
		var err error
		if m, err = NewMonitor(c, table); err != nil {
			t.Fatal(err)
		}
	})
	heard := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, func() { heard <- struct{}{} }) }()
	commit(t, c, nftable.Build(everything()))
	ns.Exec("nft", "add", "table", "inet", "other")
	ns.Exec("nft", "add", "chain", "inet", "other", "x")
	ns.Exec("nft", "flush", "ruleset")
	<-heard
	commit(t, c, nftable.Build(everything()))
	ns.Exec("nft", "add", "counter", "inet", table, "foreign")
	<-heard
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := len(heard); n != 0 {
		t.Fatalf("heard of %d changes that were not others' or not of our table", n)
	}
}

func TestEndedContextEndsTheWait(t *testing.T) {
	c, _ := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.List(ctx, table); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if have := list(t, c); have.Exists {
		t.Fatalf("got %+v", have)
	}
}

func TestLogWithoutABackendNamesTheChain(t *testing.T) {
	c, _ := open(t)
	want := nftable.NewTable(table)
	want.Chains["c"] = nftable.NewChain("c", nftable.Base{Hook: nftable.Input}, rule("", nftable.Syslog{Prefix: "calico-packet: ", Level: 5}))
	switch err := c.Commit(t.Context(), table, nftable.Build(want), 0); {
	case err == nil:
		if d := nftable.Diff(list(t, c), want); !d.Empty() {
			t.Fatalf("differs: %+v", d)
		}
	case !strings.Contains(err.Error(), "fill chain c"): // kernels without a backend for nf_log refuse the rule
		t.Fatal(err)
	default:
		t.Log(err)
	}
}

// TestLostAnswersAreNoAnswer makes the kernel say more than the socket holds.
func TestLostAnswersAreNoAnswer(t *testing.T) {
	c, _ := open(t)
	c.flags = 0
	want := everything()
	k := NewKeeper(c, table)
	if _, err := k.Sync(t.Context(), want, false); err != nil {
		t.Fatal(err)
	}
	raw, err := c.s.f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	}); err != nil {
		t.Fatal(err)
	}
	var d nftable.Delta
	for i := range 2000 {
		d.DelChains = append(d.DelChains, fmt.Sprint("absent", i))
	}
	if err := c.Commit(t.Context(), table, d, 0); !errors.Is(err, ErrUnknown) {
		t.Fatalf("got %v", err)
	}
	if done, err := k.Sync(t.Context(), want, false); err != nil || !done.Changed.Empty() {
		t.Fatalf("afterwards: %+v, %v", done, err)
	}
}
