// Package authority makes a certificate authority and signs certificates with it, for the lab's etcd and for tests.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// lifetime is long enough for any lab, and any test.
const lifetime = 365 * 24 * time.Hour

// Pair is a certificate and its private key in PEM form (RFC 7468).
type Pair struct{ Cert, Key []byte }

// The files that Write makes, named as the secrets of Calico's manifest.
const (
	CAFile   = "etcd-ca"
	CertFile = "etcd-cert"
	KeyFile  = "etcd-key"
)

// CA is a certificate authority. It may be used concurrently.
type CA struct {
	pair Pair
	cert *x509.Certificate
	key  any
}

// New makes an authority of that name, which is valid from now on.
func New(name string) (*CA, error) {
	template := blank(name)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	pair, err := sign(template, nil)
	if err != nil {
		return nil, err
	}
	return load(pair)
}

func load(pair Pair) (*CA, error) {
	loaded, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return &CA{pair: pair, cert: loaded.Leaf, key: loaded.PrivateKey}, nil
}

// Open is the authority whose own pair Write has put into the folder.
func Open(dir string) (*CA, error) {
	cert, err := os.ReadFile(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	key, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	return load(Pair{Cert: cert, Key: key})
}

// Pair is the authority's own certificate, which clients and servers trust, and its key.
func (c *CA) Pair() Pair { return c.pair }

// Server signs a certificate for a server that is reached at these host names and addresses.
func (c *CA) Server(hosts ...string) (Pair, error) {
	template := blank("server")
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} // etcd calls itself
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return sign(template, c)
}

// Client signs a certificate for a client of that name; one that ends in the past can be had for tests.
func (c *CA) Client(name string, end time.Time) (Pair, error) {
	return c.Between(name, blank(name).NotBefore, end)
}

// Between is Client with a beginning, which may be in the future.
func (c *CA) Between(name string, begin, end time.Time) (Pair, error) {
	template := blank(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	template.NotBefore, template.NotAfter = begin, end
	return sign(template, c)
}

// Member signs a certificate for a client of that name that is in a group, as Kubernetes reads certificates; "" is no group.
func (c *CA) Member(name, group string) (Pair, error) {
	template := blank(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if group != "" {
		template.Subject.Organization = []string{group}
	}
	return sign(template, c)
}

// Forever is an end for Client that no lab and no test lives to see.
func Forever() time.Time { return time.Now().Add(lifetime) }

// Write puts a pair and the authority's certificate into a folder, which it makes, for its owner only. Each file is replaced as a
// whole, so that a reader sees the old one or the new one.
func (c *CA) Write(dir string, pair Pair) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder for certificates: %w", err)
	}
	return errors.Join(
		replace(filepath.Join(dir, CAFile), c.pair.Cert),
		replace(filepath.Join(dir, CertFile), pair.Cert),
		replace(filepath.Join(dir, KeyFile), pair.Key),
	)
}

func replace(path string, content []byte) error {
	if err := os.WriteFile(path+".next", content, 0o600); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		return fmt.Errorf("replace certificate: %w", err)
	}
	return nil
}

// blank begins a certificate that was valid an hour ago, for clocks that differ.
func blank(name string) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails, crypto/rand
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     Forever(),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

// sign makes a key and a certificate for it, which signs itself if there is no authority.
func sign(template *x509.Certificate, by *CA) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make key of %s: %w", template.Subject.CommonName, err)
	}
	parent, signer := template, any(key)
	if by != nil {
		parent, signer = by.cert, by.key
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("encode key of %s: %w", template.Subject.CommonName, err)
	}
	return Pair{Cert: encode("CERTIFICATE", cert), Key: encode("PRIVATE KEY", der)}, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
