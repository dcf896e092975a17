package embedetcd_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/embedetcd"
)

func start(t *testing.T, cfg embedetcd.Config) *embedetcd.Server {
	t.Helper()
	s, err := embedetcd.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func dial(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestRestartOnTheSameDirectoryKeepsDataAndEndpoint(t *testing.T) {
	for _, unsafe := range []bool{false, true} {
		cfg := embedetcd.Config{Dir: t.TempDir(), UnsafeNoFsync: unsafe}
		first := start(t, cfg)
		if _, err := dial(t, first.Endpoint()).Put(t.Context(), "/a", "1"); err != nil {
			t.Fatal(err)
		}
		first.Close()
		cfg.ClientURL = first.Endpoint()
		second := start(t, cfg)
		if second.Endpoint() != first.Endpoint() {
			t.Errorf("endpoint = %s, want %s as before", second.Endpoint(), first.Endpoint())
		}
		got, err := dial(t, second.Endpoint()).Get(t.Context(), "/a")
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "1" {
			t.Errorf("after the restart /a holds %v, want 1", got.Kvs)
		}
	}
}

func TestCloseEndsAnOpenWatch(t *testing.T) {
	s := start(t, embedetcd.Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := dial(t, s.Endpoint()).Watch(ctx, "/a", clientv3.WithCreatedNotify())
	if res := <-w; res.Err() != nil || !res.Created {
		t.Fatalf("watch was not created: %v", res.Err())
	}
	s.Close()
	s.Close()
	select {
	case <-s.Done():
	default:
		t.Error("the server is not done after Close")
	}
}

func TestStartRefusesWhatItCannotServe(t *testing.T) {
	busy := t.TempDir()
	running := start(t, embedetcd.Config{Dir: busy, UnsafeNoFsync: true})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		cfg  embedetcd.Config
		want string
	}{
		{"directory in use", t.Context(), embedetcd.Config{Dir: busy}, "another etcd uses it"},
		{"port in use", t.Context(), embedetcd.Config{Dir: t.TempDir(), ClientURL: running.Endpoint()}, "address already in use"},
		{"no port", t.Context(), embedetcd.Config{Dir: t.TempDir(), ClientURL: "http://127.0.0.1"}, "want http://address:port"},
		{"ended context", ended, embedetcd.Config{Dir: t.TempDir()}, context.Canceled.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := embedetcd.Start(tc.ctx, tc.cfg)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one that says %q", err, tc.want)
			}
		})
	}
}

// buffer may be read while etcd's last goroutines still write to it.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestLogCarriesWarningsAndNothingLess(t *testing.T) {
	var out buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	s := start(t, embedetcd.Config{Dir: t.TempDir(), UnsafeNoFsync: true, Log: log})
	s.Close()
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, "level=WARN") && !strings.Contains(line, "level=ERROR") {
			t.Errorf("logged %q", line)
		}
	}
	if !strings.Contains(out.String(), "level=WARN") {
		t.Error("nothing was logged, though running without fsync earns a warning")
	}
}
