package apiconfig_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/internal/ctl/apiconfig"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestEverySettingOfTheFileIsRead(t *testing.T) {
	const head = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n"
	for _, c := range []struct {
		name, spec string
		want       store.Config
	}{
		{"files", `  datastoreType: etcdv3
  etcdEndpoints: https://10.0.0.1:2379,https://10.0.0.2:2379
  etcdUsername: u
  etcdPassword: p
  etcdKeyFile: /key
  etcdCertFile: /cert
  etcdCACertFile: /ca
`, store.Config{
			Endpoints: []string{"https://10.0.0.1:2379", "https://10.0.0.2:2379"}, Username: "u", Password: "p",
			TLS: store.TLS{KeyFile: "/key", CertFile: "/cert", CAFile: "/ca"},
		}},
		{"inline", `  etcdEndpoints: https://10.0.0.1:2379
  etcdKey: |
    KEY
  etcdCert: CERT
  etcdCACert: CA
`, store.Config{Endpoints: []string{"https://10.0.0.1:2379"}, TLS: store.TLS{Key: "KEY\n", Cert: "CERT", CA: "CA"}}},
		{"discovery", "  etcdDiscoverySrv: example.com\n", store.Config{DiscoverySRV: "example.com"}},
		{"settings of Kubernetes are not used", "  etcdEndpoints: http://10.0.0.1:2379\n  k8sInsecureSkipTLSVerify: true\n", store.Config{Endpoints: []string{"http://10.0.0.1:2379"}}},
	} {
		got, err := apiconfig.Parse([]byte(head + c.spec))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got, cmpopts.IgnoreUnexported(store.Config{})); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if got.Password != c.want.Password || got.TLS.Key != c.want.TLS.Key { // which print alike
			t.Errorf("%s: secrets differ", c.name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec: {etcdEndpoints: \"http://a:1\"}\n"))
	f.Add([]byte("apiVersion: v1\nkind: calicoApiConfig\nspec: {etcdAuthority: a}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := apiconfig.Parse(text)
		if err == nil && len(cfg.Endpoints) == 0 && cfg.DiscoverySRV == "" {
			t.Error("taken, and names no etcd")
		}
	})
}
