package authority_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/authority"
)

func TestAuthorityReadBackSignsWhatTheFirstOneVouchesFor(t *testing.T) {
	ca, err := authority.New("test")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "ca")
	if err := ca.Write(dir, ca.Pair()); err != nil {
		t.Fatal(err)
	}
	again, err := authority.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca.Pair().Cert)
	server, err := again.Server("127.0.0.1", "etcd.example.org")
	verify(t, server, err, x509.VerifyOptions{Roots: trusted, DNSName: "etcd.example.org"})
	verify(t, server, err, x509.VerifyOptions{Roots: trusted, DNSName: "127.0.0.1"})
	client, err := again.Client("node-1", authority.Forever())
	leaf := verify(t, client, err, x509.VerifyOptions{Roots: trusted, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if leaf.Subject.CommonName != "node-1" {
		t.Errorf("the client is called %q", leaf.Subject.CommonName)
	}
	late, err := again.Client("node-1", time.Now().Add(-time.Minute))
	verify(t, late, err, x509.VerifyOptions{Roots: trusted, CurrentTime: time.Now().Add(-2 * time.Minute), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
}

func verify(t *testing.T, pair authority.Pair, err error, o x509.VerifyOptions) *x509.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loaded.Leaf.Verify(o); err != nil {
		t.Error(err)
	}
	return loaded.Leaf
}

func TestOnlyTheOwnerReadsKeys(t *testing.T) {
	ca, err := authority.New("test")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "ca")
	if err := ca.Write(dir, ca.Pair()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, authority.KeyFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, want)
		}
	}
}
