package install

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/apiserver"
)

// The kubeconfig that is written opens the API server that the token came from.
func TestKubeconfigHoldsATokenOfTheAccount(t *testing.T) {
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/namespaces/ns/serviceaccounts/plugin/token", func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Spec struct{ ExpirationSeconds int }
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Spec.ExpirationSeconds != int(tokenLife.Seconds()) {
			t.Errorf("asked for %+v, %v", asked, err)
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(map[string]any{"status": map[string]any{"token": "t0ken", "expirationTimestamp": until}})
	})
	mux.HandleFunc("GET /api/v1/nodes/n", func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "Bearer t0ken" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = w.Write([]byte("{}"))
	})
	server := httptest.NewTLSServer(mux)
	defer server.Close()
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, text := range map[string][]byte{"namespace": []byte("ns\n"), "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	own, err := kubeconfigOf("https://"+at.Host, ca, "agent's")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, own, 0o600); err != nil {
		t.Fatal(err)
	}
	api, err := apiserver.New(file, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	text, good, err := podAccount{api: api, name: "plugin", folder: dir, server: "https://" + at.Host}.kubeconfig(t.Context())
	if err != nil || !good.Equal(until) {
		t.Fatalf("good until %v, %v", good, err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	plugin, err := apiserver.New(file, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer plugin.Close()
	var node map[string]any
	if err := plugin.Get(t.Context(), "/api/v1/nodes/n", &node); err != nil {
		t.Error(err)
	}
}
