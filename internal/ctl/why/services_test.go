package why

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// shop is a pod that may send to the service web, and nowhere else.
func shop() *facts {
	pod := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: "n", Pod: "client", Endpoint: "eth0", InterfaceName: "cali1", IPNetworks: []api.Prefix{api.HostPrefix(netip.MustParseAddr("10.0.0.1"))},
	}}
	pod.Metadata = api.ObjectMeta{Namespace: "shop", Name: api.WorkloadEndpointName(pod.Spec), Labels: map[string]string{api.LabelNamespace: "shop"}}
	out := &api.NetworkPolicy{Spec: api.NetworkPolicySpec{
		Types: []api.PolicyType{api.Egress}, Egress: []api.Rule{{Action: api.Allow, Destination: api.EntityRule{Services: &api.ServiceMatch{Name: "web"}}}},
	}}
	out.Metadata.Namespace, out.Metadata.Name = "shop", "default.out"
	return &facts{workloads: []*api.WorkloadEndpoint{pod}, all: policy.Delta{Objects: []policy.Change{{Key: api.KeyOf(pod), Object: pod}, {Key: api.KeyOf(out), Object: out}}}}
}

func (f *facts) decide(t *testing.T) string {
	t.Helper()
	a, err := f.explain(question{from: "shop/client", to: "192.0.2.1", protocol: "TCP", port: 8080, portGiven: true})
	if err != nil {
		t.Fatal(err)
	}
	return a.verdict
}

func TestServicesAreWhereKubernetesSays(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices" || r.URL.Query().Get("labelSelector") != "kubernetes.io/service-name=web" {
			t.Errorf("asked %v", r.URL)
		}
		_, _ = io.WriteString(w, `{"items":[{"endpoints":[{"addresses":["192.0.2.1"]}],"ports":[{"port":8080,"protocol":"TCP"}]}]}`)
	}))
	t.Cleanup(s.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, s.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f := shop()
	if err := f.locate(t.Context(), kubeconfig); err != nil {
		t.Fatal(err)
	}
	if got := f.decide(t); got != "Allow" {
		t.Errorf("verdict %s", got)
	}
	s.Close()
	if err := shop().locate(t.Context(), kubeconfig); err == nil {
		t.Error("an API server that is away is no failure")
	}
}

func TestServicesAreSaidToBeUnknownWithoutKubeconfig(t *testing.T) {
	f := shop()
	if err := f.locate(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := f.decide(t); got != "Deny" {
		t.Errorf("verdict %s", got)
	}
	var said bytes.Buffer
	f.warn(cli.Env{Err: &said})
	if !strings.Contains(said.String(), "not known: where the service shop/web is") {
		t.Errorf("said %q", said.String())
	}
	if err := (&facts{}).locate(t.Context(), "/nowhere"); err != nil {
		t.Errorf("Kubernetes is asked where no policy names a service: %v", err)
	}
}
