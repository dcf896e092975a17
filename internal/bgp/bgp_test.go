package bgp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/muslin-cni/muslin/internal/bgptest"
	"github.com/muslin-cni/muslin/internal/peering"
)

func TestSpeakerWithoutConfigurationAnswers(t *testing.T) {
	s := New(newFuzzed(t).s.log, Options{})
	if err := s.Announce([]peering.Route{{Prefix: netip.MustParsePrefix("10.0.0.0/26")}}); err != nil {
		t.Error(err)
	}
	if err := s.Apply(context.Background(), peering.Speaker{}); err != nil {
		t.Error(err)
	}
	paths, err := s.Learned()
	status, err2 := s.Status()
	if len(paths)+len(status) != 0 || err != nil || err2 != nil {
		t.Error(paths, status, err, err2)
	}
}

func TestNewASNumberEndsSessionsAndKeepsRoutes(t *testing.T) {
	f := newFuzzed(t)
	if err := f.s.Announce([]peering.Route{{Prefix: netip.MustParsePrefix("10.0.0.0/26"), LocalPref: 1}}); err != nil {
		t.Fatal(err)
	}
	p := session(f.good)
	f.apply(p)
	w := f.connect(f.good)
	f.cfg.AS, p.LocalAS = 64513, 64513
	f.apply(p)
	for { // updates, then the end
		if _, err := w.Receive(); err != nil {
			break
		}
	}
	w = f.connect(f.good)
	for {
		kind, err := w.Receive()
		if err != nil {
			t.Fatalf("no route was sent: %v", err)
		}
		if kind == bgptest.Update {
			return
		}
	}
}

func TestNothingRunsAfterClose(t *testing.T) {
	before := goleak.IgnoreCurrent()
	f := newFuzzed(t)
	f.apply(session(f.good))
	w := f.connect(f.good)
	if err := f.s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if kind, err := w.Receive(); err == nil && kind == 3 {
		t.Error("the peer was sent a notification") // it would drop the routes
	}
	if err := f.s.Apply(context.Background(), f.cfg); !errors.Is(err, errClosed) {
		t.Errorf("Apply after Close: %v", err)
	}
	if err := f.s.Announce(nil); !errors.Is(err, errClosed) {
		t.Errorf("Announce after Close: %v", err)
	}
	// GoBGP now and then leaves the outgoing queue of a session behind that was just coming up: it holds nothing, and the process ends next.
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/eapache/channels.(*InfiniteChannel).infiniteBuffer"))
}

func TestLogHasWhatIsSevereEnough(t *testing.T) {
	for severity, want := range map[string]string{"": "warn error", "Info": "warn error", "Debug": "debug info warn error", "Fatal": "error"} {
		var out bytes.Buffer
		least := new(slog.LevelVar)
		least.Set(leastOf(severity))
		log := slog.New(&listener{notes: newNotes(0), next: slog.NewTextHandler(&out, nil), least: least}).With("Key", "10.0.0.2")
		log.Debug("debug")
		log.Info("info")
		log.Warn("warn")
		log.Error("error")
		var got []string
		for line := range strings.Lines(out.String()) {
			_, text, _ := strings.Cut(line, "msg=")
			got = append(got, strings.Fields(text)[0])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("severity %q logs %v, want %s", severity, got, want)
		}
	}
}

func TestChangedSaysThatARouteCame(t *testing.T) {
	f := newFuzzed(t)
	f.apply(session(f.good))
	w := f.connect(f.good)
	if err := w.Send(bgptest.Update, route(f.good)); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		<-f.s.Changed() // the test's own deadline ends a wait for nothing
		paths, err := f.s.Learned()
		if err != nil {
			t.Fatal(err)
		}
		if len(paths) == 1 {
			return
		}
	}
	t.Error("no route after a thousand changes")
}
