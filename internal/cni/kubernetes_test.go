package cni

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// kubernetes is an API server with one pod, and the kubeconfig of a user who may read it.
func kubernetes(n *node) (kubeconfig string) {
	n.t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := map[string]string{
			"/api/v1/namespaces/default": `{"metadata":{"name":"default","annotations":{"cni.projectcalico.org/ipv4pools":"[\"red\"]"}}}`,
			"/api/v1/namespaces/default/pods/web": `{"metadata":{"name":"web","namespace":"default","uid":"u-c1","labels":{"app":"web"}},
				"spec":{"serviceAccountName":"clerk","containers":[{"ports":[{"name":"http","containerPort":8080,"protocol":"TCP"}]}]},"status":{"startTime":"2026-01-01T00:00:00Z"}}`,
		}[r.URL.Path]
		if r.Header.Get("Authorization") != "Bearer sesame" {
			w.WriteHeader(http.StatusForbidden)
		} else if text == "" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = fmt.Fprint(w, text)
	}))
	n.t.Cleanup(s.Close)
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	text := fmt.Sprintf(`{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"https://%s","certificate-authority-data":%q}}],"users":[{"name":"u","user":{"token":"sesame"}}]}`,
		forward(n, strings.TrimPrefix(s.URL, "https://")), ca)
	path := filepath.Join(n.t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}

func TestModuleReadsPodsFactsByTheNetconfsKubeconfig(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "web")
	d := newDatastore(n)
	d.put("/calico/resources/v3/projectcalico.org/ippools/red", `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"red","uid":"9"},"spec":{"cidr":"10.99.0.0/16"}}`)
	policy := fmt.Sprintf(`,"policy":{"type":"k8s"},"kubernetes":{"kubeconfig":%q}`, kubernetes(n))
	res := n.mustAdd(d.conf(noWait+policy), p)
	if got := res.IPs[0].Address.String(); !strings.HasPrefix(got, "10.99.") {
		t.Errorf("address %s, want one of the namespace's pool", got)
	}
	e, err := store.Get[api.WorkloadEndpoint](t.Context(), d.Store(), "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-web-eth0")
	if err != nil {
		t.Fatal(err)
	}
	if s := e.Value.Spec; e.Value.Metadata.Labels["app"] != "web" || fmt.Sprint(s.Profiles) != "[kns.default ksa.default.clerk]" || len(s.Ports) != 1 || s.ServiceAccountName != "clerk" {
		t.Errorf("endpoint %+v", e.Value)
	}
	n.mustDel(d.conf(policy), p)
	for name, c := range map[string]struct {
		pod  *pod
		conf string
		code uint
		says string
	}{
		"another UID":      {newPod(t, "c2", "web"), policy, attach.CodeTryAgain, "another pod of that name"},
		"an unknown pod":   {newPod(t, "c3", "nobody"), policy, attach.CodeTryAgain, "it was deleted, or is not there yet"},
		"no credentials":   {newPod(t, "c4", "web"), strings.ReplaceAll(policy, `"type":"k8s"`, `"type":"k8s","k8s_auth_token":"guess"`), attach.CodeTryAgain, "403 Forbidden"},
		"no file":          {newPod(t, "c5", "web"), `,"policy":{"type":"k8s"},"kubernetes":{"kubeconfig":"/nowhere"}`, attach.CodeTryAgain, "read kubeconfig /nowhere"},
		"nothing is known": {newPod(t, "c6", "web"), `,"policy":{"type":"k8s"}`, attach.CodeBadConfig, "no access to Kubernetes"},
	} {
		if _, err := n.add(d.conf(noWait+c.conf), c.pod); codeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %d %v", name, codeOf(err), err)
		}
		n.mustDel(d.conf(c.conf), c.pod)
	}
	d.put("/calico/resources/v3/projectcalico.org/ippools/red", "")
	d.wantNothing()
}
