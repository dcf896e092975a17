package nft

import (
	"cmp"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/nftable"
)

func TestChainsOfEverybodyAreListed(t *testing.T) {
	c, ns := open(t)
	if got, err := c.Chains(t.Context()); err != nil || len(got) != 0 {
		t.Fatalf("an empty namespace has %v, %v", got, err)
	}
	for _, line := range []string{
		"add table inet fw", "add chain inet fw pass { type filter hook forward priority 0; policy drop; }", "add rule inet fw pass accept", "add rule inet fw pass drop",
		"add chain inet fw plain", "add table ip filter", "add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }",
		"add table ip6 filter", "add chain ip6 filter INPUT { type filter hook input priority 0; policy drop; }",
	} {
		ns.Exec("nft", line)
	}
	got, err := c.Chains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b Chain) int { return cmp.Compare(a.Family+a.Table+a.Name, b.Family+b.Table+b.Name) })
	want := []Chain{
		{Family: "inet", Table: "fw", Name: "pass", Hook: nftable.Forward, Drop: true, Rules: 2}, {Family: "inet", Table: "fw", Name: "plain"},
		{Family: "ip6", Table: "filter", Name: "INPUT", Hook: nftable.Input, Drop: true}, {Family: "ip", Table: "filter", Name: "FORWARD", Hook: nftable.Forward},
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
