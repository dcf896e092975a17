package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// hostAt has one address on each device.
func hostAt(addrs map[string]string) kernel.Host {
	h := kernel.Host{Links: map[string]kernel.HostLink{}}
	for dev, addr := range addrs {
		h.Links[dev] = kernel.HostLink{Index: 2, Live: true}
		h.Addrs = append(h.Addrs, kernel.HostAddr{Dev: dev, Addr: netip.MustParsePrefix(addr)})
	}
	return h
}

func TestAddressesAreLookedAtWhenTheHostsChangeAndNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks []time.Duration
		var lost []string
		begin := time.Now()
		a := newAddresses(time.Minute, func(context.Context) ([]string, error) {
			looks = append(looks, time.Since(begin))
			if len(looks) == 3 {
				return nil, errors.New("etcd is away")
			}
			return nil, nil
		}, func(gone func(netip.Addr) bool) {
			for _, addr := range []string{"10.0.0.1", "10.0.0.2", "10.9.0.1"} {
				if gone(netip.MustParseAddr(addr)) {
					lost = append(lost, addr)
				}
			}
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- a.run(ctx) }()
		facts := uint64(0)
		at := func(when time.Duration, addrs map[string]string) {
			<-time.After(when - time.Since(begin))
			facts++
			a.consider(hostAt(addrs), facts)
		}
		at(0, map[string]string{"eth0": "10.0.0.1/24"})
		at(10*time.Second, map[string]string{"eth0": "10.0.0.1/24", "cali123": "10.9.0.1/32"}) // a pod's: no reason
		at(20*time.Second, nil)                                                                // taken away,
		at(20500*time.Millisecond, map[string]string{"eth0": "10.0.0.2/24"})                   // and another one there at once
		<-time.After(61*time.Second - time.Since(begin))
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if !slices.Equal(lost, []string{"10.0.0.1"}) {
			t.Errorf("told that %v are gone", lost)
		}
		want := []time.Duration{time.Second, 21 * time.Second, 22 * time.Second, 22*time.Second + firstRetry, time.Minute}
		// The second event came while the first was waited out; it asks once more.
		if len(looks) != len(want) {
			t.Fatalf("looked at %v, want %v", looks, want)
		}
		for i := range want {
			if looks[i] != want[i] {
				t.Errorf("look %d at %v, want %v", i, looks[i], want[i])
			}
		}
	})
}

func TestProblemOfAnAddressIsSaidOnceWhenItComesAndWhenItGoes(t *testing.T) {
	var out bytes.Buffer
	problems := [][]string{{"taken"}, {"taken"}, {"taken", "kept"}, {"kept"}, nil, nil}
	a := newAddresses(time.Minute, func(context.Context) ([]string, error) {
		now := problems[0]
		problems = problems[1:]
		return now, nil
	}, func(func(netip.Addr) bool) {}, slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, x slog.Attr) slog.Attr {
		if x.Key == slog.TimeKey || x.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return x
	}})))
	a.say([]string{"taken"}) // by the start
	for range len(problems) {
		a.once(t.Context())
	}
	want := []string{"msg=problem what=taken", "msg=problem what=kept", `msg="problem gone" what=taken`, `msg="problem gone" what=kept`, ""}
	if got := strings.Split(out.String(), "\n"); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("said %q, want %q", got, want)
	}
}
