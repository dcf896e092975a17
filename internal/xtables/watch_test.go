package xtables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// watched is a firewall with a watch over it.
type watched struct {
	firewall
	w     *Watch
	peeks int
}

func newWatched(t *testing.T, b Backend) *watched {
	t.Helper()
	f := &watched{firewall: newFirewall(t, b)}
	f.Do(func() {
		var err error
		if f.w, err = f.Watch(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return f
}

// spoiled tells what the watch has seen of IPv4 until now. It makes a change of IPv6 itself, which comes after all others.
func (f *watched) spoiled() bool {
	f.t.Helper()
	f.peeks++
	f.Exec("ip6tables-nft", "-t", "mangle", "-N", fmt.Sprintf("cali-peek%d", f.peeks))
	var seen bool
	nettest.Eventually(f.t, func() error {
		v4, v6 := f.w.Spoiled()
		if seen = seen || v4; !v6 {
			return errors.New("the watch lags")
		}
		return nil
	})
	return seen
}

func TestOwnWritesAreNotReported(t *testing.T) {
	f := newWatched(t, NFT)
	f.become(rules())
	changed := rules()
	changed[kernel.ChainKey{Table: "filter", Chain: "cali-FORWARD"}] = kernel.Chain{Rules: "-o cali+ -j ACCEPT"}
	delete(changed, kernel.ChainKey{Table: "raw", Chain: "PREROUTING"})
	delete(changed, kernel.ChainKey{Table: "raw", Chain: "cali-PREROUTING"})
	f.become(changed)
	if f.spoiled() {
		t.Error("own writes are reported as others'")
	}
}

func TestWhatOthersDoToOurRulesIsReported(t *testing.T) {
	for _, spoil := range []string{
		"iptables-nft -F cali-FORWARD",
		"iptables-nft -D FORWARD 1",
		"iptables-nft -I FORWARD -j ACCEPT", // ours is not the first any more
		"iptables-nft -A cali-FORWARD -j DROP",
		"iptables-nft -N cali-stray",
		"iptables-nft -t nat -F",
		"nft flush ruleset",
		"nft delete table ip nat",
		"iptables-nft-restore empty",
	} {
		t.Run(spoil, func(t *testing.T) {
			f := newWatched(t, NFT)
			f.become(rules())
			if f.spoiled() {
				t.Fatal("reported before anything was done")
			}
			args := strings.Fields(spoil)
			if args[0] == "iptables-nft-restore" {
				args[1] = filepath.Join(t.TempDir(), "empty")
				if err := os.WriteFile(args[1], []byte("*filter\n:FORWARD ACCEPT\nCOMMIT\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			f.Exec(args...)
			if !f.spoiled() {
				t.Error("not reported")
			}
			f.become(rules())
			if f.spoiled() {
				t.Error("the repair is reported")
			}
		})
	}
}

func TestWhatOthersDoToTheirOwnRulesIsNotReported(t *testing.T) {
	f := newWatched(t, NFT)
	want := rules()
	delete(want, kernel.ChainKey{Table: "nat", Chain: "POSTROUTING"})
	f.become(want)
	for _, other := range []string{
		"iptables-nft -t nat -N KUBE-SERVICES",
		"iptables-nft -t nat -A KUBE-SERVICES -j RETURN",
		"iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES",
		"iptables-nft -t nat -A POSTROUTING -j KUBE-SERVICES", // we have no rule there
		"iptables-nft -t nat -P POSTROUTING ACCEPT",
		"iptables-nft -A INPUT -j ACCEPT",
		"nft add table inet firewalld",
		"nft add chain inet firewalld FORWARD",
		"nft add rule inet firewalld FORWARD accept",
		"nft flush table inet firewalld",
		"nft delete table inet firewalld",
	} {
		f.Exec(strings.Fields(other)...)
		if f.spoiled() {
			t.Errorf("%s is reported", other)
		}
	}
}

func TestSpoiledFamiliesAreToldOnce(t *testing.T) {
	f := newWatched(t, NFT)
	f.w.spoiled(true, true)
	if v4, v6 := f.w.Spoiled(); !v4 || !v6 {
		t.Errorf("got %v, %v", v4, v6)
	}
	if v4, v6 := f.w.Spoiled(); v4 || v6 {
		t.Error("told twice")
	}
}

// Others' event of the like of ours may use up what we expect: then it is ours that finds nothing.
func TestOthersAreNoticedBesideOwnWritesOfTheSameKind(t *testing.T) {
	f := newWatched(t, NFT)
	want := rules()
	f.become(want)
	k := kernel.ChainKey{Table: "filter", Chain: "cali-FORWARD"}
	want[k] = kernel.Chain{Rules: want[k].Rules + "\n-s 192.0.2.1/32 -j DROP"}
	f.Exec("iptables-nft", "-A", "cali-FORWARD", "-s", "192.0.2.2/32", "-j", "DROP")
	f.become(want)
	if !f.spoiled() {
		t.Error("the foreign rule is not noticed")
	}
}

// What failed has sent no event, and must not hide one of others.
func TestFailedWritesHideNothing(t *testing.T) {
	f := newWatched(t, NFT)
	want := rules()
	f.become(want)
	k := kernel.ChainKey{Table: "filter", Chain: "cali-FORWARD"}
	bad := kernel.Chain{Rules: want[k].Rules + "\n-m no-such-match -j DROP"}
	if err := f.apply([]kernel.Change[kernel.ChainKey, kernel.Chain]{{Key: k, New: &bad}}); err == nil {
		t.Fatal("the kernel took a rule with an unknown match")
	}
	if f.spoiled() {
		t.Fatal("the failure is reported")
	}
	f.Exec("iptables-nft", "-A", "cali-FORWARD", "-j", "DROP")
	if !f.spoiled() {
		t.Error("the foreign rule is not noticed")
	}
}

func TestExpectationsDoNotOutliveTheirUse(t *testing.T) {
	added := change{kind: msgNewRule, table: "nat", chain: "cali-A"}
	h := newHands()
	h.expect(added)
	if !h.spoils(added) {
		t.Error("without a watch, an event of ours was waited for")
	}
	h.watch(true)
	h.expect(added)
	h.expect(added)
	h.takeBack(added)
	if h.spoils(added) || !h.spoils(added) {
		t.Error("one write stands for none or for two events")
	}
	h.expect(added)
	if other := (change{kind: msgNewRule, v6: true, table: "nat", chain: "cali-A"}); !h.spoils(other) {
		t.Error("an event of the other family was taken for ours")
	}
	h.expected[added][0] = time.Now().Add(-2 * patience)
	if !h.spoils(added) {
		t.Error("an old expectation hides an event")
	}
	h.expect(added)
	h.expected[added][0] = time.Now().Add(-2 * patience)
	h.expect(change{kind: msgDelRule, table: "nat", chain: "cali-A"})
	if len(h.expected) != 1 {
		t.Errorf("old expectations are kept: %v", h.expected)
	}
}

func TestLegacyWritesAreNotExpected(t *testing.T) {
	f := newWatched(t, Legacy)
	f.become(rules())
	f.hands.mu.Lock()
	defer f.hands.mu.Unlock()
	if len(f.hands.expected) > 0 {
		t.Errorf("events that never come are expected: %v", f.hands.expected)
	}
}

func FuzzDecodeChange(f *testing.F) {
	f.Add(uint16(msgNewRule), []byte{2, 0, 0, 0, 8, 0, 1, 0, 'n', 'a', 't', 0, 8, 0, 2, 0, 'F', 'O', 'O', 0})
	f.Add(uint16(msgDelChain), []byte{10, 0, 0, 0, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		m := syscall.NetlinkMessage{Data: data}
		m.Header.Type = 10<<8 | kind&0xff
		if c, ok := decodeChange(m); ok && (c.table == "" || c.chain == "") {
			t.Errorf("%+v", c)
		}
	})
}
