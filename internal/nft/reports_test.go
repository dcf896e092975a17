package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// reportsIn opens a reader in a namespace.
func reportsIn(ns *nettest.NS, group uint16) (r *Reports, err error) {
	ns.Do(func() { r, err = OpenReports(group) })
	return r, err
}

func TestReportsTellWhichRuleDroppedWhichPacket(t *testing.T) {
	w := newWorld(t, settings())
	r, err := reportsIn(w.host, settings().LogGroup)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.apply(twoPods(policyOf("p", api.Ingress, policy.Rule{Action: api.Log, Destination: ports(81, 81)}, policy.Rule{Action: api.Deny, Destination: ports(81, 81)})))
	if got := w.sends(w.a, "", w.b, addrB+":81"); got != "r-deny-p-1" {
		t.Fatalf("the packet's fate is %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), nettest.Patience(10*time.Second))
	defer cancel()
	for _, prefix := range []string{"L:log-p-0", "D:deny-p-1"} {
		got, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got.Prefix != prefix || got.Hook != nftable.Forward || got.In != w.host.Index("cali1") || got.Out != w.host.Index("cali2") {
			t.Errorf("got %+v, want prefix %s, in forward, from cali1 to cali2", got, prefix)
		}
		if len(got.Packet) < 28 || got.Packet[0] != 0x45 || binary.BigEndian.Uint16(got.Packet[22:]) != 81 {
			t.Errorf("the packet is % x, want one of UDP to port 81", got.Packet)
		}
	}
}

func TestReportsAreOneReadersAtATime(t *testing.T) {
	ns := nettest.New(t)
	first, err := reportsIn(ns, 9)
	if err != nil {
		t.Fatal(err)
	}
	_, err = reportsIn(ns, 9)
	taken, ok := errors.AsType[*TakenError](err)
	if !ok || taken.Group != 9 || taken.Reader == 0 {
		t.Errorf("a second reader got %v", err)
	}
	if os.Getpid() != taken.Reader {
		t.Logf("the reader's address is %d, his process %d: no rule, as the error says", taken.Reader, os.Getpid())
	}
	other, err := reportsIn(ns, 10)
	if err != nil {
		t.Fatalf("another group is not to be had: %v", err)
	}
	if err := errors.Join(other.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	again, err := reportsIn(ns, 9)
	if err != nil {
		t.Fatalf("the group was not given back: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReportsEndWithTheirContext(t *testing.T) {
	r, err := reportsIn(nettest.New(t), 9)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// FuzzReports reads bytes as what comes for a reader of reports.
func FuzzReports(f *testing.F) {
	var b buffer
	b.raw(unix.NFNL_SUBSYS_ULOG<<8|logPacket, 0, unix.AF_INET, 9, func() {
		b.attr(logHeader, []byte{8, 0, unix.NF_INET_FORWARD, 0})
		b.attrString(logPrefix, "D:0123456789abcdef")
		b.attr32(logIn, 4)
		b.attr32(logOut, 5)
		b.attr(logPayload, []byte{0x45, 0})
	})
	f.Add(b.b)
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Reports
		_, _ = each(data, func(h header, body []byte) (bool, error) { return false, r.take(h, body) })
		if len(r.pending) > len(data)/(unix.SizeofNlMsghdr+nfgenLen) {
			t.Errorf("%d bytes hold %d reports", len(data), len(r.pending))
		}
	})
}
