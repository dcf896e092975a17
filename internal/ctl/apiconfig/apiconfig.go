// Package apiconfig reads the operator's configuration file: where etcd is.
//
// The file is a CalicoAPIConfig, as calicoctl reads it. A file wins entirely: the environment is not mixed into it.
package apiconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/ctl/legacy"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// DefaultPath is where the file is looked for if nobody says where it is.
const DefaultPath = "/etc/calico/calicoctl.cfg"

// file is the CalicoAPIConfig.
type file struct {
	Kind       string         `json:"kind"`
	APIVersion string         `json:"apiVersion"`
	Metadata   map[string]any `json:"metadata"`
	Spec       spec           `json:"spec"`
}

// spec holds the settings of etcd, and those of a Kubernetes datastore, which may stand there and are not used.
type spec struct {
	DatastoreType    string `json:"datastoreType"`
	EtcdEndpoints    string `json:"etcdEndpoints"`
	EtcdDiscoverySrv string `json:"etcdDiscoverySrv"`
	EtcdUsername     string `json:"etcdUsername"`
	EtcdPassword     string `json:"etcdPassword"`
	EtcdKeyFile      string `json:"etcdKeyFile"`
	EtcdCertFile     string `json:"etcdCertFile"`
	EtcdCACertFile   string `json:"etcdCACertFile"`
	EtcdKey          string `json:"etcdKey"`
	EtcdCert         string `json:"etcdCert"`
	EtcdCACert       string `json:"etcdCACert"`

	Kubeconfig               any `json:"kubeconfig"`
	KubeconfigInline         any `json:"kubeconfigInline"`
	K8sAPIEndpoint           any `json:"k8sAPIEndpoint"`
	K8sKeyFile               any `json:"k8sKeyFile"`
	K8sCertFile              any `json:"k8sCertFile"`
	K8sCAFile                any `json:"k8sCAFile"`
	K8sAPIToken              any `json:"k8sAPIToken"`
	K8sInsecureSkipTLSVerify any `json:"k8sInsecureSkipTLSVerify"`
	K8sDisableNodePoll       any `json:"k8sDisableNodePoll"`
	K8sUsePodCIDR            any `json:"k8sUsePodCIDR"`
	K8sClientQPS             any `json:"k8sClientQPS"`
	K8sCurrentContext        any `json:"k8sCurrentContext"`
}

// Read returns the settings of the file at path, or, where path is "", of the file at usual if there is one, else of the environment.
// The error names file and setting; one of Calico's first format is a *legacy.Error.
func Read(path, usual string, env func(string) string) (store.Config, error) {
	name := path
	if name == "" {
		name = usual
	}
	text, err := os.ReadFile(name)
	switch {
	case path == "" && errors.Is(err, fs.ErrNotExist):
		return store.FromEnv(env)
	case err != nil:
		return store.Config{}, &unreadable{name, reason(err)}
	}
	cfg, err := Parse(text)
	if err != nil {
		return store.Config{}, fmt.Errorf("read config file %s: %w", name, err)
	}
	return cfg, nil
}

// unreadable says, in the words that calicoctl's users know, that there is no such file.
type unreadable struct {
	name string
	err  error
}

func (e *unreadable) Error() string {
	return fmt.Sprintf("Error reading config file: %s: %v", e.name, e.err)
}
func (e *unreadable) Unwrap() error { return e.err }

func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// Parse reads the content of a file. Unknown settings are an error.
func Parse(text []byte) (store.Config, error) {
	raw, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return store.Config{}, err
	}
	var probe map[string]any
	if json.Unmarshal(raw, &probe) == nil {
		if err := legacy.Check(probe); err != nil {
			return store.Config{}, err
		}
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var f file
	if err := d.Decode(&f); err != nil {
		return store.Config{}, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if f.Kind != "CalicoAPIConfig" || f.APIVersion != api.Version {
		return store.Config{}, fmt.Errorf("it is a %q with apiVersion %q: want kind CalicoAPIConfig and apiVersion %s", f.Kind, f.APIVersion, api.Version)
	}
	return f.Spec.store()
}

func (s spec) store() (store.Config, error) {
	if s.DatastoreType != "" && s.DatastoreType != "etcdv3" {
		return store.Config{}, fmt.Errorf("datastoreType is %q: etcd is the one datastore: set it to etcdv3, or leave it out", s.DatastoreType)
	}
	cfg := store.Config{
		DiscoverySRV: s.EtcdDiscoverySrv,
		Username:     s.EtcdUsername,
		Password:     store.Secret(s.EtcdPassword),
		TLS: store.TLS{
			KeyFile: s.EtcdKeyFile, CertFile: s.EtcdCertFile, CAFile: s.EtcdCACertFile,
			Key: store.Secret(s.EtcdKey), Cert: s.EtcdCert, CA: s.EtcdCACert,
		},
	}
	if s.EtcdEndpoints == "" && s.EtcdDiscoverySrv != "" {
		return cfg, nil
	}
	var err error
	cfg.Endpoints, err = store.ParseEndpoints(s.EtcdEndpoints)
	return cfg, err
}
