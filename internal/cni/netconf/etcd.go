package netconf

import (
	"path/filepath"
	"strings"
)

// check refuses relative file names: a plugin's working folder is the runtime's business.
func (e *Etcd) check() error {
	for _, f := range []struct{ key, path string }{
		{"etcd_key_file", e.EtcdKeyFile}, {"etcd_cert_file", e.EtcdCertFile}, {"etcd_ca_cert_file", e.EtcdCACertFile},
	} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			return badKey(f.key, "is %q, want an absolute path", f.path)
		}
	}
	return nil
}

// Over is an environment in which the configuration's keys stand before the process's variables, with and without the prefix CALICO_. Where
// it says by any of its keys where etcd is, variables that say so otherwise are hidden.
func (m *Module) Over(getenv func(string) string) func(string) string {
	e := m.Etcd
	set := map[string]string{
		"DATASTORE_TYPE":    m.Datastore,
		"ETCD_KEY_FILE":     e.EtcdKeyFile,
		"ETCD_CERT_FILE":    e.EtcdCertFile,
		"ETCD_CA_CERT_FILE": e.EtcdCACertFile,
	}
	where := map[string]string{
		"ETCD_ENDPOINTS":     e.EtcdEndpoints,
		"ETCD_DISCOVERY_SRV": e.EtcdDiscoverySRV,
		"ETCD_AUTHORITY":     e.EtcdAuthority,
		"ETCD_SCHEME":        e.EtcdScheme,
	}
	says := e.EtcdEndpoints != "" || e.EtcdDiscoverySRV != "" || e.EtcdAuthority != ""
	return func(name string) string {
		plain := strings.TrimPrefix(name, "CALICO_")
		if v, ok := where[plain]; ok && (says || v != "") {
			return v
		}
		if v := set[plain]; v != "" {
			return v
		}
		return getenv(name)
	}
}
