package store_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/pkg/store"
)

func TestFromEnv(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		want store.Config
		err  string
	}{
		{
			name: "everything",
			env: map[string]string{
				"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": "https://a:1, https://b:2", "ETCD_USERNAME": "u", "ETCD_PASSWORD": "p",
				"ETCD_KEY_FILE": "/k", "ETCD_CERT_FILE": "/c", "ETCD_CA_CERT_FILE": "/ca",
			},
			want: store.Config{
				Endpoints: []string{"https://a:1", "https://b:2"}, Username: "u", Password: "p",
				TLS: store.TLS{KeyFile: "/k", CertFile: "/c", CAFile: "/ca"},
			},
		},
		{
			name: "the prefix wins",
			env: map[string]string{
				"ETCD_ENDPOINTS": "http://a:1", "CALICO_ETCD_ENDPOINTS": "http://b:2", "ETCD_KEY_FILE": "/k", "CALICO_ETCD_KEY_FILE": "/k2",
			},
			want: store.Config{Endpoints: []string{"http://b:2"}, TLS: store.TLS{KeyFile: "/k2"}},
		},
		{name: "SRV", env: map[string]string{"ETCD_DISCOVERY_SRV": "example.org"}, want: store.Config{DiscoverySRV: "example.org"}},
		{name: "authority", env: map[string]string{"ETCD_AUTHORITY": "a:1"}, want: store.Config{Endpoints: []string{"http://a:1"}}},
		{
			name: "authority with scheme",
			env:  map[string]string{"ETCD_AUTHORITY": "a:1", "ETCD_SCHEME": "https"}, want: store.Config{Endpoints: []string{"https://a:1"}},
		},
		{
			name: "endpoints beat the authority",
			env:  map[string]string{"ETCD_AUTHORITY": "a:1", "ETCD_ENDPOINTS": "http://b:2"}, want: store.Config{Endpoints: []string{"http://b:2"}},
		},
		{name: "nothing", err: "no etcd endpoints specified"},
		{name: "Kubernetes", env: map[string]string{"DATASTORE_TYPE": "kubernetes", "ETCD_ENDPOINTS": "http://a:1"}, err: "DATASTORE_TYPE"},
	} {
		got, err := store.FromEnv(func(name string) string { return tc.env[name] })
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: error = %v, want %q", tc.name, err, tc.err)
			}
			continue
		}
		if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreUnexported(store.Config{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tc.name, err, diff)
		}
	}
}

func TestSettingsThatContradictEachOtherAreRefused(t *testing.T) {
	endpoints := []string{"https://127.0.0.1:1"}
	for want, cfg := range map[string]store.Config{
		"no etcd endpoints specified":                  {},
		"ETCD_ENDPOINTS or ETCD_DISCOVERY_SRV":         {Endpoints: endpoints, DiscoverySRV: "example.org"},
		"all of them to be http or all https":          {Endpoints: []string{"http://a:1", "https://b:2"}},
		"set both ETCD_CERT_FILE and ETCD_KEY_FILE":    {Endpoints: endpoints, TLS: store.TLS{CertFile: "/c"}},
		"set both ETCD_KEY_FILE and ETCD_CERT_FILE":    {Endpoints: endpoints, TLS: store.TLS{Key: "secret"}},
		"Cannot mix inline certificate-key and certif": {Endpoints: endpoints, TLS: store.TLS{CAFile: "/ca", Cert: "c", Key: "k"}},
	} {
		if _, err := store.New(cfg); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
	if _, err := store.ParseEndpoints("http://u:secret@a:1"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error = %v, want one that does not show the password", err)
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	const password, key = "hunter2", "PRIVATE"
	cfg := store.Config{
		Endpoints: []string{"https://a:1"}, Username: "calico", Password: password,
		TLS: store.TLS{Key: key, Cert: "CERT", CA: "CA"},
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+"\n", cfg, &cfg, cfg.TLS)
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("start", "etcd", cfg, "tls", cfg.TLS, "password", cfg.Password)
	}
	for _, secret := range []string{password, key, fmt.Sprintf("%x", password), fmt.Sprintf("%x", key)} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is in what was printed:\n%s", secret, out.String())
		}
	}
	if text := cfg.String(); text != "https://a:1, user calico, certificate inline, CA inline" {
		t.Errorf("printed as %q", text)
	}
}

// FuzzParseEndpoints feeds any text to the parser of etcd's endpoints: what it takes, a client can be made of.
func FuzzParseEndpoints(f *testing.F) {
	for _, s := range []string{"http://10.0.0.1:2379", " https://a:1,, https://[fd00::1]:2379 ", "http://u:p@h:1", "http://[fe80::1%25eth0]:1", "http://h:99999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, list string) {
		endpoints, err := store.ParseEndpoints(list)
		if err != nil {
			return
		}
		again, err := store.ParseEndpoints(strings.Join(endpoints, ","))
		if diff := cmp.Diff(endpoints, again); err != nil || diff != "" {
			t.Errorf("%q: %v (-first +again):\n%s", list, err, diff)
		}
		for _, e := range endpoints {
			c, err := store.New(store.Config{Endpoints: []string{e}})
			if err != nil {
				t.Fatalf("%q is taken, and then: %v", e, err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
