package lab

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/embedetcd"
)

// CertificateDir is where nodes, the fabric and the outside host have their certificates, under package authority's names: where
// Calico's installer puts a host's.
const CertificateDir = cniConfDir + "/calico-tls"

// endpoint is etcd's URL inside the lab's nodes and its fabric; with commas between them those of all members.
func (o Options) endpoint() string {
	scheme := "http://"
	if o.TLS {
		scheme = "https://"
	}
	var urls []string
	for _, addr := range o.etcdAddrs() {
		urls = append(urls, scheme+net.JoinHostPort(addr, etcdPort))
	}
	return strings.Join(urls, ",")
}

// etcdAddrs are the addresses of etcd's members, which are one after the other.
func (o Options) etcdAddrs() (out []string) {
	addr := netip.MustParseAddr(etcdAddr)
	for range max(1, o.Members) {
		out = append(out, addr.String())
		addr = addr.Next()
	}
	return out
}

// etcdSettings is how to reach etcd from inside the lab, by the names that the environment has for it. The keys of a CNI
// configuration are the same in lower case.
func (o Options) etcdSettings() map[string]string {
	set := map[string]string{"ETCD_ENDPOINTS": o.endpoint()}
	if o.TLS {
		set["ETCD_CA_CERT_FILE"] = filepath.Join(CertificateDir, authority.CAFile)
		set["ETCD_CERT_FILE"] = filepath.Join(CertificateDir, authority.CertFile)
		set["ETCD_KEY_FILE"] = filepath.Join(CertificateDir, authority.KeyFile)
	}
	return set
}

func (o Options) etcdEnv() []string {
	var env []string
	for name, value := range o.etcdSettings() {
		env = append(env, name+"="+value)
	}
	return env
}

// The folders of the lab's authority and of its etcd, where only root looks.
func (l *Lab) caDir() string     { return filepath.Join(l.dir, "tls", "ca") }
func (l *Lab) serverDir() string { return filepath.Join(l.dir, "tls", "etcd") }

// makeCertificates makes the authority, etcd's certificate, and one for every place that may have clients.
func (l *Lab) makeCertificates(s *state) error {
	if !s.Options.TLS {
		return nil
	}
	ca, err := authority.New("muslin-lab " + s.ID)
	if err != nil {
		return err
	}
	server, err := ca.Server(s.Options.etcdAddrs()...)
	if err != nil {
		return err
	}
	if err := ca.Write(l.caDir(), ca.Pair()); err != nil {
		return err
	}
	if err := ca.Write(l.serverDir(), server); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := writeClient(ca, n.Name, n.Holder); err != nil {
			return err
		}
	}
	for name, holder := range map[string]process{"fabric": s.Fabric, "outside": s.Outside} {
		if err := writeClient(ca, name, holder); err != nil {
			return err
		}
	}
	return nil
}

// RenewCertificate gives a node, "fabric" or "outside" a new certificate of the lab's authority, and that authority's own again.
func (l *Lab) RenewCertificate(where string) error {
	return l.visit(where, func(s *state, pl *place) error {
		ca, err := authority.Open(l.caDir())
		if err != nil {
			return fmt.Errorf("renew certificate of %s: %w", where, err)
		}
		pair, err := ca.Client(where, authority.Forever())
		if err != nil {
			return err
		}
		return pl.run(func() error { return ca.Write(CertificateDir, pair) })
	})
}

// certify gives a place that came after the lab's first certificates one of its own.
func (l *Lab) certify(name string, holder process) error {
	ca, err := authority.Open(l.caDir())
	if err != nil {
		return err
	}
	return writeClient(ca, name, holder)
}

func writeClient(ca *authority.CA, name string, holder process) error {
	pair, err := ca.Client(name, authority.Forever())
	if err != nil {
		return err
	}
	pl, err := openPlace(holder)
	if err != nil {
		return fmt.Errorf("enter %s: %w", name, err)
	}
	defer pl.close()
	return pl.run(func() error { return ca.Write(CertificateDir, pair) })
}

// serverTLS is what etcd finds in the folder; "": it serves without TLS.
func serverTLS(dir string) (out embedetcd.TLS, scheme string) {
	if dir == "" {
		return out, "http://"
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	return embedetcd.TLS{CertFile: in(authority.CertFile), KeyFile: in(authority.KeyFile), CAFile: in(authority.CAFile)}, "https://"
}
