package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kube"
)

// conditions is an API server that notes what is said of Nodes, and fails as often as it is told to.
type conditions struct {
	kube.API
	fails int
	said  []string
}

func (c *conditions) PatchNode(_ context.Context, name string, conditions ...corev1.NodeCondition) error {
	if c.fails > 0 {
		c.fails--
		return errors.New("away")
	}
	for _, x := range conditions {
		c.said = append(c.said, fmt.Sprint(name, " ", x.Type, " ", x.Status))
	}
	return nil
}

// Lists is of nothing: what follows it is never run.
func (c *conditions) Lists(kube.Resource, kube.Only) cache.ListerWatcher { return &cache.ListWatch{} }

func TestKubernetesIsToldOnceTheNodeIsUp(t *testing.T) {
	for backend, want := range map[config.Backend]string{config.BGP: "[kube-1 NetworkUnavailable False]", config.None: "[]"} {
		server := &conditions{fails: 2}
		var log bytes.Buffer
		a := &Agent{isUp: make(chan struct{}), log: slog.New(slog.NewTextHandler(&log, nil)), cfg: config.Node{Backend: backend, K8sNodeRef: "kube-1"}, node: "node-1"}
		a.cluster = kube.New(kube.Config{API: server, Name: kubeName(a.cfg, a.node), Log: a.log})
		ctx, cancel := context.WithCancel(t.Context())
		if backend == config.BGP {
			cancelled, stop := context.WithCancel(t.Context())
			stop()
			if err := a.sayNetwork(cancelled); err != nil || len(server.said) > 0 {
				t.Errorf("said before the node was up: %v, %v", server.said, err)
			}
		}
		close(a.isUp)
		if err := a.sayNetwork(ctx); err != nil || fmt.Sprint(server.said) != want {
			t.Errorf("%s: said %v, %v; want %s", backend, server.said, err, want)
		}
		cancel()
		if n := strings.Count(log.String(), "tried again"); backend == config.BGP && n != 1 {
			t.Errorf("said %d times that it failed:\n%s", n, log.String())
		}
	}
}

func TestShutdownTellsKubernetes(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprint(r.Method, " ", r.URL.Path, " ", string(body)))
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"Node","apiVersion":"v1"}`)
	}))
	t.Cleanup(s.Close)
	dir := t.TempDir()
	kubeconfig, stamp := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "shutdownTS")
	text := fmt.Sprintf(`{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, s.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"CALICO_SHUTDOWN_TIMESTAMP_FILE=" + stamp, "NODENAME=node-1", "CALICO_NODENAME_FILE=" + filepath.Join(dir, "nodename")}
	for _, with := range [][]string{nil, {"KUBECONFIG=" + kubeconfig, "CALICO_NETWORKING_BACKEND=none"}} {
		if err := shutdown(t.Context(), append(env, with...)); err != nil || len(seen) > 0 {
			t.Errorf("%v: asked %v, %v", with, seen, err)
		}
	}
	if err := shutdown(t.Context(), append(env, "KUBECONFIG="+kubeconfig)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(stamp); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 1 || !strings.HasPrefix(seen[0], "PATCH /api/v1/nodes/node-1/status ") || !strings.Contains(seen[0], `"CalicoIsDown"`) {
		t.Errorf("asked %v", seen)
	}
}

func TestWithoutKubernetesNothingIsFollowed(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler), env: func(string) string { return "" }, guard: newGuard("node-1", slog.New(slog.DiscardHandler))}
	if facts := a.openCluster(); facts != nil || a.cluster != nil || a.guard.services.from != nil || a.membersChanged() != nil {
		t.Error("something is followed")
	}
	a.cfg.Kubeconfig = filepath.Join(t.TempDir(), "missing")
	facts := a.openCluster()
	if facts == nil || a.cluster != nil {
		t.Fatal("an access that cannot be used is not told to whom it concerns")
	}
	if _, err := facts(t.Context(), attach.Pod{}); err == nil || !strings.Contains(err.Error(), a.cfg.Kubeconfig) {
		t.Errorf("error %v", err)
	}
}
