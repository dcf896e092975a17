package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// server answers for one Node, to whoever has the token.
func server(t *testing.T) (s *httptest.Server, ca []byte) {
	t.Helper()
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer sesame":
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprint(w, `{"kind":"Status","message":"who are you?"}`)
		case r.URL.Path == "/api/v1/nodes/kube-1":
			_, _ = fmt.Fprint(w, `{"metadata":{"name":"kube-1"}}`)
		case r.URL.Path == "/api/v1/nodes/slow":
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return s, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const shape = `
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "%s", %s}}]
users: [{name: u, user: {%s}}]
`

func noEnv(string) string { return "" }

func TestNodeIsReadByKubeconfigOrServiceAccount(t *testing.T) {
	s, ca := server(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.crt"), string(ca))
	write(t, filepath.Join(dir, "token"), "sesame\n")
	inside := "certificate-authority-data: " + base64.StdEncoding.EncodeToString(ca)
	at, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	pod := func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": at.Hostname(), "KUBERNETES_SERVICE_PORT": at.Port()}[name]
	}
	for _, c := range []struct {
		name, kubeconfig, err string
		env                   func(string) string
	}{
		{name: "data inside", kubeconfig: fmt.Sprintf(shape, s.URL, inside, "token: sesame")},
		{name: "files beside", kubeconfig: fmt.Sprintf(shape, s.URL, "certificate-authority: ca.crt", "tokenFile: token")},
		{name: "no look at the certificate", kubeconfig: fmt.Sprintf(shape, s.URL, "insecure-skip-tls-verify: true", "token: sesame")},
		{name: "service account", env: pod},
		{name: "wrong token", kubeconfig: fmt.Sprintf(shape, s.URL, inside, "token: open"), err: "401 Unauthorized: who are you?"},
		{name: "unknown CA", kubeconfig: fmt.Sprintf(shape, s.URL, "tls-server-name: x", "token: sesame"), err: "certificate"},
		{name: "file missing", kubeconfig: fmt.Sprintf(shape, s.URL, "certificate-authority: no.crt", "token: sesame"), err: "no.crt"},
		{name: "program", kubeconfig: fmt.Sprintf(shape, s.URL, inside, "exec: {command: aws}"), err: "credentials from a program"},
		{name: "no server", kubeconfig: fmt.Sprintf(shape, "", inside, ""), err: "want https://host:port"},
		{name: "no context", kubeconfig: "current-context: there", err: `no context "there"`},
		{name: "no YAML", kubeconfig: "{", err: "read KUBECONFIG"},
		{name: "nothing", err: ErrNotConfigured.Error()},
	} {
		path, env := "", c.env
		if c.kubeconfig != "" {
			path = write(t, filepath.Join(dir, "kubeconfig"), c.kubeconfig)
		}
		if env == nil {
			env = noEnv
		}
		got, err := node(t.Context(), path, env, dir, "kube-1")
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want %q in it", c.name, err, c.err)
			}
			continue
		}
		if err != nil || got != "kube-1" {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func node(ctx context.Context, path string, env func(string) string, account, name string) (string, error) {
	c, err := open(path, env, account)
	if err != nil {
		return "", err
	}
	defer c.Close()
	var n struct{ Metadata struct{ Name string } }
	err = c.Get(ctx, "/api/v1/nodes/"+name, &n)
	return n.Metadata.Name, err
}

func TestServerOfAnOldTLSIsRefused(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11} //nolint:gosec // this is what is to be refused
	s.Config.ErrorLog = log.New(io.Discard, "", 0)                                  // it says that it has refused us
	s.StartTLS()
	t.Cleanup(s.Close)
	path := write(t, filepath.Join(t.TempDir(), "kubeconfig"), fmt.Sprintf(shape, s.URL, "insecure-skip-tls-verify: true", "token: sesame"))
	if _, err := node(t.Context(), path, noEnv, "", "kube-1"); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("error %v, want one that names the protocol version", err)
	}
}

func TestMissingAndSlowAnswersAreSaid(t *testing.T) {
	s, _ := server(t)
	path := write(t, filepath.Join(t.TempDir(), "kubeconfig"), fmt.Sprintf(shape, s.URL, "insecure-skip-tls-verify: true", "token: sesame"))
	if _, err := node(t.Context(), path, noEnv, "", "kube-2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a node that is not there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := node(ctx, path, noEnv, "", "slow"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that does not answer: %v", err)
	}
}
