package register

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
)

var errNotYet = errors.New("not yet")

func TestGatesAreAskedEveryFiveSecondsForThirty(t *testing.T) {
	for _, c := range []struct {
		name      string
		readyAt   time.Duration
		want      []time.Duration // when it is asked
		fails     bool
		hangs     bool // it never answers before it is ready
		giveUpAt  time.Duration
		cancelled time.Duration // 0: never
	}{
		{name: "ready", want: []time.Duration{0}},
		{name: "ready later", readyAt: 7 * time.Second, want: []time.Duration{0, 5 * time.Second, 10 * time.Second}, giveUpAt: 10 * time.Second},
		{name: "never", readyAt: time.Hour, fails: true, giveUpAt: attach.ReadinessTimeout, want: []time.Duration{
			0, 5 * time.Second, 10 * time.Second, 15 * time.Second, 20 * time.Second, 25 * time.Second,
		}},
		{name: "caller leaves", readyAt: time.Hour, fails: true, cancelled: 6 * time.Second, giveUpAt: 6 * time.Second, want: []time.Duration{0, 5 * time.Second}},
		{name: "no answer", hangs: true, readyAt: 4 * time.Second, want: []time.Duration{0, 5 * time.Second}, giveUpAt: 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				var asked []time.Duration
				g := gates{func(ctx context.Context, _ string) error {
					at := time.Since(begin)
					asked = append(asked, at)
					switch {
					case at >= c.readyAt:
						return nil
					case c.hangs:
						<-ctx.Done()
					}
					return errNotYet
				}}
				ctx := t.Context()
				if c.cancelled > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.cancelled)
					defer cancel()
				}
				err := g.wait(ctx, []string{"http://a"})
				if c.fails != errors.Is(err, errNotYet) || time.Since(begin) != c.giveUpAt {
					t.Errorf("error %v after %v, want one after %v: %v", err, time.Since(begin), c.giveUpAt, c.fails)
				}
				if diff := cmp.Diff(c.want, asked[:min(len(asked), len(c.want))]); diff != "" {
					t.Errorf("asked at (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestGateIsReadyWithASuccessfulStatus(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readiness" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer s.Close()
	if err := askHTTP(t.Context(), s.URL+"/readiness"); err != nil {
		t.Error(err)
	}
	if err := askHTTP(t.Context(), s.URL+"/other"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v, want the status", err)
	}
	if err := askHTTP(t.Context(), "http://127.0.0.1:1/"); err == nil {
		t.Error("nobody listens, and it is ready")
	}
}

func TestUnreadyGateFailsTheAddBeforeAnythingIsRead(t *testing.T) {
	h := New(Config{Node: "node-1"})
	h.gates.ask = func(context.Context, string) error { return errNotYet }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.Add(ctx, attach.Request{Network: "net", ContainerID: "c", IfName: "eth0", ReadinessGates: []string{"http://a"}})
	var told *attach.Error
	if !errors.As(err, &told) || told.Code != attach.CodeTryAgain || !strings.Contains(told.Msg, "readiness gates of network net: http://a is not ready: not yet") {
		t.Errorf("got %v", err)
	}
}
