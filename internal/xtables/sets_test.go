package xtables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func openSets(t *testing.T, ns *nettest.NS) *Sets {
	t.Helper()
	nettest.Need(t, "set", "ipset")
	var s *Sets
	var err error
	ns.Do(func() { s, err = OpenSets() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func listSets(t *testing.T, s *Sets) map[kernel.SetKey]kernel.Set {
	t.Helper()
	got, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func becomeSets(t *testing.T, s *Sets, want map[kernel.SetKey]kernel.Set) {
	t.Helper()
	if err := s.Apply(t.Context(), kernel.DiffFunc(listSets(t, s), want, s.Same)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, listSets(t, s)); diff != "" {
		t.Fatalf("want (-) and listed (+) differ:\n%s", diff)
	}
}

func TestSetsRoundTrip(t *testing.T) {
	ns := nettest.New(t)
	s := openSets(t, ns)
	ns.Exec("ipset", "create", "foreign", "hash:net")
	ns.Exec("ipset", "create", "cali4t7", "hash:net")
	for _, members := range []string{"10.244.0.0/16", "10.244.0.0/16,172.30.0.1/32,172.30.0.2/32", "10.0.0.0/9,172.30.0.2/32", "", "0.0.0.0/1"} {
		becomeSets(t, s, map[kernel.SetKey]kernel.Set{"cali40masq-ipam-pools": {Members: members}, "cali40empty": {}})
	}
	out := ns.Exec("ipset", "list", "cali40masq-ipam-pools")
	for _, want := range []string{"Type: hash:net", "family inet hashsize 1024 maxelem 1048576", "0.0.0.0/1"} {
		if !strings.Contains(out, want) {
			t.Errorf("ipset list lacks %q:\n%s", want, out)
		}
	}
	becomeSets(t, s, map[kernel.SetKey]kernel.Set{})
	if out := ns.Exec("ipset", "list", "-n"); out != "foreign\n" {
		t.Errorf("left: %q", out)
	}
}

func TestSetsOfBothFamiliesStandSideBySide(t *testing.T) {
	ns := nettest.New(t)
	s := openSets(t, ns)
	for _, members := range []string{"fd00:10:244::/48", "fd00:10:244::/48,fd00:172:30::1/128", "::/1,8000::/1", ""} {
		becomeSets(t, s, map[kernel.SetKey]kernel.Set{"cali60masq-ipam-pools": {Members: members}, "cali40masq-ipam-pools": {Members: "10.244.0.0/16"}})
	}
	if out := ns.Exec("ipset", "list", "cali60masq-ipam-pools"); !strings.Contains(out, "family inet6 hashsize 1024 maxelem 1048576") {
		t.Errorf("ipset list:\n%s", out)
	}
	ns.Exec("ipset", "destroy", "cali60masq-ipam-pools")
	ns.Exec("ipset", "create", "cali60masq-ipam-pools", "hash:net") // of the wrong family
	becomeSets(t, s, map[kernel.SetKey]kernel.Set{"cali60masq-ipam-pools": {Members: "fd00::/8"}})
	m := kernel.Set{Members: "10.0.0.0/8"}
	if err := s.Apply(t.Context(), []kernel.Change[kernel.SetKey, kernel.Set]{{Key: "cali60masq-ipam-pools", New: &m}}); err == nil || !strings.Contains(err.Error(), "10.0.0.0/8") {
		t.Errorf("a prefix of the other family: %v", err)
	}
	becomeSets(t, s, map[kernel.SetKey]kernel.Set{})
}

func TestSetsThatSomebodyHasSpoiledAreRepaired(t *testing.T) {
	ns := nettest.New(t)
	s := openSets(t, ns)
	want := map[kernel.SetKey]kernel.Set{"cali40x": {Members: "10.0.0.0/8,192.0.2.1/32"}}
	becomeSets(t, s, want)
	for _, spoil := range [][]string{
		{"ipset", "add", "cali40x", "10.9.0.0/16"},
		{"ipset", "del", "cali40x", "192.0.2.1"},
		{"ipset", "flush", "cali40x"},
		{"ipset", "destroy", "cali40x"},
		{"sh", "-c", "ipset destroy cali40x && ipset create cali40x hash:ip"},
	} {
		ns.Exec(spoil...)
		becomeSets(t, s, want)
	}
	m := kernel.Set{Members: "10.0.0.0/8"}
	if err := s.Apply(t.Context(), []kernel.Change[kernel.SetKey, kernel.Set]{{Key: "cali40x", New: &m}, {Key: "cali40gone", Old: &m}}); err != nil {
		t.Errorf("what exists already, or is gone already, is an error: %v", err)
	}
}

func TestLargeSetsRoundTrip(t *testing.T) {
	ns := nettest.New(t)
	s := openSets(t, ns)
	members := map[netip.Prefix]bool{}
	for i := range 3000 { // more than one message holds
		members[netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250))] = true
	}
	becomeSets(t, s, map[kernel.SetKey]kernel.Set{"cali40big": {Members: join(members)}})
}

func TestSetInUseIsReportedAndTheRestIsDone(t *testing.T) {
	nettest.Need(t, "iptables-nft")
	ns := nettest.New(t)
	s := openSets(t, ns)
	becomeSets(t, s, map[kernel.SetKey]kernel.Set{"cali40used": {}, "cali40free": {}})
	rule := []string{"FORWARD", "-m", "set", "--match-set", "cali40used", "src", "-j", "ACCEPT"}
	ns.Exec(append([]string{"iptables-nft", "-A"}, rule...)...)
	err := s.Apply(t.Context(), kernel.Diff(listSets(t, s), nil))
	if err == nil || !strings.Contains(err.Error(), "cali40used") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(map[kernel.SetKey]kernel.Set{"cali40used": {}}, listSets(t, s)); diff != "" {
		t.Error(diff)
	}
	ns.Exec(append([]string{"iptables-nft", "-D"}, rule...)...)
	becomeSets(t, s, map[kernel.SetKey]kernel.Set{})
}

func TestSetsCompareByContent(t *testing.T) {
	s := &Sets{}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"10.0.0.0/8,9.0.0.0/8", "9.0.0.0/8,10.0.0.0/8", true},
		{"10.1.0.0/8", "10.0.0.0/8", true},
		{"10.0.0.0/8", "", false},
		{"type hash:ip", "10.0.0.0/8", false},
	} {
		if got := s.Same("x", kernel.Set{Members: c.a}, kernel.Set{Members: c.b}); got != c.want {
			t.Errorf("Same(%q, %q) = %v", c.a, c.b, got)
		}
	}
}
