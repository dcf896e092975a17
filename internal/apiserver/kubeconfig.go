package apiserver

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// kubeconfig is the part of a kubeconfig file that says how to reach one server as one user. []byte is base64 in the file.
type kubeconfig struct {
	CurrentContext string `json:"current-context"`
	Contexts       []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
	Clusters []struct {
		Name    string  `json:"name"`
		Cluster cluster `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		Name string `json:"name"`
		User user   `json:"user"`
	} `json:"users"`
}

type cluster struct {
	Server     string `json:"server"`
	ServerName string `json:"tls-server-name"`
	Insecure   bool   `json:"insecure-skip-tls-verify"`
	CAFile     string `json:"certificate-authority"`
	CA         []byte `json:"certificate-authority-data"`
}

type user struct {
	CertFile  string `json:"client-certificate"`
	Cert      []byte `json:"client-certificate-data"`
	KeyFile   string `json:"client-key"`
	Key       []byte `json:"client-key-data"`
	Token     string `json:"token"`
	TokenFile string `json:"tokenFile"`
	Exec      any    `json:"exec"`
}

func fromKubeconfig(path string) (credentials, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return credentials{}, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(b, &k); err != nil {
		return credentials{}, err
	}
	at, as, err := k.current()
	if err != nil {
		return credentials{}, err
	}
	if as.Exec != nil && as.Token == "" && as.TokenFile == "" {
		return credentials{}, errors.New("its user gets credentials from a program, which a node cannot run: give it a token or a certificate")
	}
	f := files{dir: filepath.Dir(path)}
	c := credentials{
		server: at.Server, serverName: at.ServerName, insecure: at.Insecure, ca: f.read(at.CA, at.CAFile),
		cert: f.read(as.Cert, as.CertFile), key: f.read(as.Key, as.KeyFile), token: as.Token, tokenFile: f.path(as.TokenFile),
	}
	return c, f.err
}

// current is the cluster and the user of the current context. A user that is not there has no credentials.
func (k kubeconfig) current() (at cluster, as user, err error) {
	for _, x := range k.Contexts {
		if x.Name != k.CurrentContext {
			continue
		}
		for _, u := range k.Users {
			if u.Name == x.Context.User {
				as = u.User
			}
		}
		for _, c := range k.Clusters {
			if c.Name == x.Context.Cluster {
				return c.Cluster, as, nil
			}
		}
		return at, as, fmt.Errorf("context %s: there is no cluster %q", x.Name, x.Context.Cluster)
	}
	return at, as, fmt.Errorf("there is no context %q, which current-context names", k.CurrentContext)
}

// files reads what a kubeconfig names, relative to its own folder, and keeps the first error.
type files struct {
	dir string
	err error
}

func (f *files) path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(f.dir, name)
}

// read returns data that stands in the kubeconfig itself, else the file's.
func (f *files) read(data []byte, name string) []byte {
	if len(data) > 0 || name == "" {
		return data
	}
	b, err := os.ReadFile(f.path(name))
	f.err = cmp.Or(f.err, err)
	return b
}

func pool(pem []byte) (*x509.CertPool, error) {
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		return nil, errors.New("the API server's CA holds no certificate in PEM form")
	}
	return p, nil
}
