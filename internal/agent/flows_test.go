package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// forgotten is what was forgotten together, and when.
type forgotten struct {
	Addrs string
	After time.Duration
}

// startFlows runs flows that note what they do, until the returned function is called.
func startFlows(t *testing.T, err error) (f *flows, did *[]forgotten, stop func()) {
	began := time.Now()
	did = &[]forgotten{}
	forget := func(addrs map[netip.Addr]struct{}) (int, error) {
		text := ""
		for _, a := range slices.SortedFunc(maps.Keys(addrs), netip.Addr.Compare) {
			text += a.String() + " "
		}
		*did = append(*did, forgotten{text, time.Since(began)})
		return 0, err
	}
	f = newFlows(forget, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.run(ctx) }()
	return f, did, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestConnectionsOfManyPodsAreForgottenAtOnce(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::3")
	synctest.Test(t, func(t *testing.T) {
		f, did, stop := startFlows(t, nil)
		f.released([]netip.Addr{a})
		time.Sleep(gatherFlows / 2)
		f.released([]netip.Addr{b, c})
		time.Sleep(gatherFlows)
		if f.remembered(a) || f.remembered(c) {
			t.Error("connections are remembered that were forgotten")
		}
		f.released([]netip.Addr{c})
		synctest.Wait()
		stop()
		want := []forgotten{{"10.0.0.1 10.0.0.2 fd00::3 ", gatherFlows}, {"fd00::3 ", gatherFlows * 3 / 2}}
		if diff := cmp.Diff(want, *did); diff != "" {
			t.Errorf("forgotten, the last at the end (-want +got):\n%s", diff)
		}
	})
}

func TestWhoGetsAnAddressAnewWaitsForNobodyElse(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	synctest.Test(t, func(t *testing.T) {
		f, did, stop := startFlows(t, errors.New("refused"))
		defer stop()
		f.released([]netip.Addr{a})
		synctest.Wait()
		if f.remembered(b) {
			t.Error("an address that nobody had is remembered")
		}
		synctest.Wait()
		if len(*did) != 0 {
			t.Errorf("forgotten for nobody: %v", *did)
		}
		if !f.remembered(a) {
			t.Error("an address that was just released is not remembered")
		}
		<-f.changed()
		if f.remembered(a) {
			t.Error("what could not be forgotten keeps its next owner waiting")
		}
		if diff := cmp.Diff([]forgotten{{"10.0.0.1 ", 0}}, *did); diff != "" {
			t.Errorf("forgotten (-want +got):\n%s", diff)
		}
	})
}
