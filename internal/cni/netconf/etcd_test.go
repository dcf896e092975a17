package netconf

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/pkg/store"
)

func TestConfigurationBeatsTheEnvironment(t *testing.T) {
	env := map[string]string{
		"ETCD_DISCOVERY_SRV": "example.org", "ETCD_USERNAME": "u", "ETCD_PASSWORD": "p", "ETCD_KEY_FILE": "/env/key", "CALICO_ETCD_KEY_FILE": "/env/key2",
		"ETCD_CERT_FILE": "/env/cert", "ETCD_CA_CERT_FILE": "/env/ca",
	}
	for name, tc := range map[string]struct {
		conf string
		want store.Config
	}{
		"keys": {
			`"etcd_endpoints":"https://a:1","etcd_key_file":"/k","etcd_cert_file":"/c","etcd_ca_cert_file":"/ca"`,
			store.Config{Endpoints: []string{"https://a:1"}, Username: "u", Password: "p", TLS: store.TLS{KeyFile: "/k", CertFile: "/c", CAFile: "/ca"}},
		},
		"some keys": {
			`"etcd_authority":"a:1","etcd_scheme":"https","etcd_ca_cert_file":"/ca"`,
			store.Config{Endpoints: []string{"https://a:1"}, Username: "u", Password: "p", TLS: store.TLS{KeyFile: "/env/key2", CertFile: "/env/cert", CAFile: "/ca"}},
		},
		"SRV": {
			`"etcd_discovery_srv":"example.com","etcd_endpoints":""`,
			store.Config{DiscoverySRV: "example.com", Username: "u", Password: "p", TLS: store.TLS{KeyFile: "/env/key2", CertFile: "/env/cert", CAFile: "/env/ca"}},
		},
		"no keys": {
			`"etcd_endpoints":""`,
			store.Config{DiscoverySRV: "example.org", Username: "u", Password: "p", TLS: store.TLS{KeyFile: "/env/key2", CertFile: "/env/cert", CAFile: "/env/ca"}},
		},
	} {
		conf, err := ParseModule([]byte(`{"name":"n","ipam":{"type":"muslin-ipam"},` + tc.conf + `}`))
		if err != nil {
			t.Fatal(err)
		}
		got, err := store.FromEnv(conf.Over(func(name string) string { return env[name] }))
		if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreUnexported(store.Config{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}
