package reports

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nft"
)

// kernel is a source that reports what a test puts in.
type kernel struct {
	in     chan nft.Report
	opened chan struct{}
	closed chan struct{}
	fails  error
}

func (k *kernel) open() (Source, error) {
	k.opened <- struct{}{}
	return k, k.fails
}

func (k *kernel) Close() error {
	k.closed <- struct{}{}
	return nil
}

func (k *kernel) Next(ctx context.Context) (nft.Report, error) {
	select {
	case <-ctx.Done():
		return nft.Report{}, ctx.Err()
	case r := <-k.in:
		if r.Prefix == "" {
			return r, nft.ErrMissed
		}
		return r, nil
	}
}

// serve starts a server and returns its socket.
func serve(t *testing.T, k *kernel) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- NewServer(k.open, slog.New(slog.DiscardHandler)).Serve(ctx, l) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return path, stop
}

func newKernel() *kernel {
	return &kernel{in: make(chan nft.Report), opened: make(chan struct{}, 9), closed: make(chan struct{}, 9)}
}

func listen(t *testing.T, path string) Source {
	t.Helper()
	s, err := Listen(t.Context(), path, 9)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func next(t *testing.T, s Source) (nft.Report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return s.Next(ctx)
}

func TestAllListenersHearTheSameAndTheGroupIsFreeWhenNobodyListens(t *testing.T) {
	k := newKernel()
	path, _ := serve(t, k)
	for range 2 {
		a := listen(t, path)
		<-k.opened
		b := listen(t, path)
		k.in <- nft.Report{Prefix: "first"} // b may be too late for it
		want := nft.Report{Prefix: "D:x", Hook: "forward", In: 3, Out: 4, Packet: []byte{0x45, 0}}
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case k.in <- want:
				case <-stop:
					return
				}
			}
		}()
		for _, s := range []Source{a, b} {
			nettest.Eventually(t, func() error {
				r, err := next(t, s)
				if err == nil && (r.Prefix != want.Prefix || r.Hook != want.Hook || r.In != 3 || r.Out != 4 || string(r.Packet) != string(want.Packet)) {
					return errors.New("heard " + r.Prefix)
				}
				return err
			})
		}
		close(stop)
		_, _ = a.Close(), b.Close()
		<-k.closed
	}
}

func TestWhatGoesWrongIsToldToListeners(t *testing.T) {
	k := newKernel()
	path, stop := serve(t, k)
	s := listen(t, path)
	<-k.opened
	k.in <- nft.Report{}
	if _, err := next(t, s); !errors.Is(err, nft.ErrMissed) {
		t.Errorf("after a loss: %v", err)
	}
	stop()
	if _, err := next(t, s); !errors.Is(err, ErrAgentGone) {
		t.Errorf("after the agent's end: %v", err)
	}

	k = newKernel()
	k.fails = errors.New("group 9 is taken")
	path, _ = serve(t, k)
	if _, err := next(t, listen(t, path)); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Errorf("where the group cannot be read: %v", err)
	}
}

func TestSlowListenerMissesSomeAndHoldsUpNobody(t *testing.T) {
	l := &listener{messages: make(chan message, 2)}
	one := message{Report: &nft.Report{Prefix: "D:x"}}
	for range 5 {
		l.tell(one)
	}
	<-l.messages
	<-l.messages
	l.tell(one)
	if m := <-l.messages; !m.Missed {
		t.Errorf("got %+v, want word of what was missed", m)
	}
	if m := <-l.messages; m.Report == nil {
		t.Errorf("got %+v, want the next report", m)
	}
}
