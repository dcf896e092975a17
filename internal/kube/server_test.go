package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/muslin-cni/muslin/internal/kube"
)

// requests notes what is asked of an API server that knows one pod.
type requests struct {
	mu   sync.Mutex
	seen []string
}

func (q *requests) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	query := r.URL.Query()
	q.mu.Lock()
	q.seen = append(q.seen, fmt.Sprintf("%s %s fields=%s watch=%s accept=%s %s", r.Method, r.URL.Path, query.Get("fieldSelector"), query.Get("watch"), r.Header.Get("Accept"), body))
	q.mu.Unlock()
	pod := corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "u", ResourceVersion: "7"}}
	var answer any
	switch {
	case query.Get("watch") == "true":
		answer = map[string]any{"type": "ADDED", "object": pod}
	case r.URL.Path == "/api/v1/pods":
		answer = corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []corev1.Pod{pod}}
	case r.URL.Path == "/apis/discovery.k8s.io/v1/endpointslices":
		answer = map[string]any{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": map[string]any{"resourceVersion": "7"}}
	case r.URL.Path == "/api/v1/namespaces/shop/pods/web":
		answer = pod
	case r.Method == http.MethodPatch:
		answer = corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}}
	default:
		w.WriteHeader(http.StatusNotFound)
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound}
	}
	w.Header().Set("Content-Type", "application/json") // as a server without protobuf may
	_ = json.NewEncoder(w).Encode(answer)
}

func TestServerAsksForWhatANodeNeeds(t *testing.T) {
	q := &requests{}
	s := httptest.NewServer(q)
	t.Cleanup(s.Close)
	server, err := kube.Open(kube.Access{Config: &rest.Config{Host: s.URL}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := server.Get(t.Context(), kube.Pods, "shop", "web")
	if p, ok := got.(*corev1.Pod); err != nil || !ok || p.UID != "u" {
		t.Errorf("pod %v, %v", got, err)
	}
	if _, err := server.Get(t.Context(), kube.Namespaces, "", "shop"); !apierrors.IsNotFound(err) {
		t.Errorf("a namespace that is not there: %v", err)
	}
	pods := cache.ToListerWatcherWithContext(server.Lists(kube.Pods, kube.Only{Fields: "spec.nodeName=n"}))
	list, err := pods.ListWithContext(t.Context(), metav1.ListOptions{})
	if l, ok := list.(*corev1.PodList); err != nil || !ok || len(l.Items) != 1 {
		t.Errorf("pods %v, %v", list, err)
	}
	w, err := pods.WatchWithContext(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e := <-w.ResultChan(); e.Type != watch.Added || e.Object.(*corev1.Pod).Name != "web" {
		t.Errorf("event %+v", e)
	}
	w.Stop()
	if _, err := cache.ToListerWatcherWithContext(server.Lists(kube.EndpointSlices, kube.Only{})).ListWithContext(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if err := kube.SayNetwork(t.Context(), server, "n", true); err != nil {
		t.Error(err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, want := range []string{
		"GET /api/v1/namespaces/shop/pods/web fields= watch= accept=application/vnd.kubernetes.protobuf,application/json",
		"GET /api/v1/pods fields=spec.nodeName=n watch= ",
		"GET /api/v1/pods fields=spec.nodeName=n watch=true ",
		"GET /apis/discovery.k8s.io/v1/endpointslices ",
		"PATCH /api/v1/nodes/n/status ",
	} {
		if !slices.ContainsFunc(q.seen, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("nobody asked %q; asked was\n%s", want, strings.Join(q.seen, "\n"))
		}
	}
}

func TestAccessIsByKubeconfigOrServiceAccount(t *testing.T) {
	none := func(string) string { return "" }
	if _, err := kube.AccessFrom("", none); !errors.Is(err, kube.ErrNotConfigured) {
		t.Errorf("nothing is configured: %v", err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if _, err := kube.AccessFrom(path, none); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("no such file: %v", err)
	}
	for namespace, want := range map[string]string{"": "kube-system", "net": "net"} {
		text := fmt.Sprintf(`{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","namespace":%q}}],"clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1"}}]}`, namespace)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := kube.AccessFrom(path, none)
		if err != nil || got.Namespace != want || got.Config.Host != "https://192.0.2.1" {
			t.Errorf("namespace %q: %+v, %v", namespace, got, err)
		}
	}
}
