package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// TLS names a client's key and certificate and the CA that vouches for etcd, as files or as PEM texts, not mixed. Files are read anew for
// every connection, so that renewed ones are used without a restart. Without a CA the system's are trusted.
type TLS struct {
	KeyFile, CertFile, CAFile string
	Key                       Secret
	Cert, CA                  string
}

// mixed is Calico's own text, which its users look for.
const mixed = "Cannot mix inline certificate-key and certificate / key files"

// pemText is one of the three, wherever it comes from.
type pemText struct{ what, file, inline, setting string }

func (t TLS) key() pemText  { return pemText{"key", t.KeyFile, string(t.Key), "ETCD_KEY_FILE"} }
func (t TLS) cert() pemText { return pemText{"certificate", t.CertFile, t.Cert, "ETCD_CERT_FILE"} }
func (t TLS) ca() pemText   { return pemText{"CA certificate", t.CAFile, t.CA, "ETCD_CA_CERT_FILE"} }

func (p pemText) given() bool { return p.file != "" || p.inline != "" }

// from is where the text comes from, for people.
func (p pemText) from() string {
	if p.file != "" {
		return p.file
	}
	return "inline"
}

func (p pemText) read() ([]byte, error) {
	if p.file == "" {
		return []byte(p.inline), nil
	}
	b, err := os.ReadFile(p.file)
	if err != nil {
		return nil, fmt.Errorf("read etcd client's %s: %w: correct %s", p.what, err, p.setting)
	}
	return b, nil
}

// given reports whether anything is set.
func (t TLS) given() bool { return t.key().given() || t.cert().given() || t.ca().given() }

func (t TLS) check() error {
	files := t.KeyFile + t.CertFile + t.CAFile
	if files != "" && string(t.Key)+t.Cert+t.CA != "" {
		return errors.New("etcd settings: " + mixed)
	}
	for _, half := range [][2]pemText{{t.cert(), t.key()}, {t.key(), t.cert()}} {
		if half[0].given() && !half[1].given() {
			return fmt.Errorf("etcd client has a %s (%s) and no %s: set both %s and %s, or neither",
				half[0].what, half[0].from(), half[1].what, half[0].setting, half[1].setting)
		}
	}
	return nil
}

// load reads everything. The error names the file, what is wrong, and the setting.
func (t TLS) load() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca := t.ca(); ca.given() {
		text, err := ca.read()
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read etcd client's CA certificate: %s holds no certificate in PEM form: correct %s", ca.from(), ca.setting)
		}
	}
	if !t.cert().given() {
		return cfg, nil
	}
	pair, err := t.pair()
	if err != nil {
		return nil, err
	}
	if end := pair.Leaf.NotAfter; time.Now().After(end) {
		return nil, fmt.Errorf("etcd client's certificate (%s) expired at %s: renew it", t.cert().from(), end.Format(time.RFC3339))
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}

func (t TLS) pair() (tls.Certificate, error) {
	cert, err := t.cert().read()
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := t.key().read()
	if err != nil {
		return tls.Certificate{}, err
	}
	if encrypted(key) {
		return tls.Certificate{}, fmt.Errorf("load etcd client's key (%s): it is encrypted, and nobody is here to ask for the passphrase: decrypt it (openssl pkey), or correct %s",
			t.key().from(), t.key().setting)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load etcd client's certificate (%s) with its key (%s): %w: correct ETCD_CERT_FILE and ETCD_KEY_FILE",
			t.cert().from(), t.key().from(), err)
	}
	return pair, nil
}

// encrypted reports whether PEM blocks hold a key under a passphrase: as PKCS #8 (RFC 7468, 11) or in the older form (RFC 1421, 4.6.1.1).
func encrypted(key []byte) bool {
	for block, rest := pem.Decode(key); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return true
		}
	}
	return false
}

// Expires is when the client's certificate ends to be valid; zero if there is none. It reads the files.
func (t TLS) Expires() (time.Time, error) {
	if !t.cert().given() {
		return time.Time{}, nil
	}
	pair, err := t.pair()
	if err != nil {
		return time.Time{}, err
	}
	return pair.Leaf.NotAfter, nil
}

// explain says of a failed handshake what a person can do about it; then it is an ErrHandshake.
func (t TLS) explain(err error) error {
	if why := t.reason(err); why != nil {
		return fmt.Errorf("%w: %w", ErrHandshake, why)
	}
	if errors.Is(err, io.EOF) {
		return errors.New("TLS handshake: it closes the connection: use http:// if it is meant not to speak TLS")
	}
	return fmt.Errorf("TLS handshake: %w", err)
}

// reason is nil if neither certificates nor settings are the reason.
func (t TLS) reason(err error) error {
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	var remote *net.OpError
	refused := errors.As(err, &remote) && remote.Op == "remote error" // what crypto/tls makes of an alert
	switch {
	case errors.As(err, &authority):
		trusted := "the system's CAs"
		if t.ca().given() {
			trusted = "CA " + t.ca().from()
		}
		return fmt.Errorf("check etcd's certificate against %s: %w: set ETCD_CA_CERT_FILE to the CA that signed it", trusted, err)
	case errors.As(err, &host):
		return fmt.Errorf("check etcd's certificate: %w: use an endpoint that it names, or add this one to it", err)
	case errors.As(err, &invalid):
		return fmt.Errorf("check etcd's certificate: %w: renew it", err)
	case errors.As(err, &record):
		return errors.New("it does not speak TLS: use http:// if it is meant not to")
	case refused && !t.cert().given():
		return fmt.Errorf("etcd ended the handshake: %w: it may want a client certificate: set ETCD_CERT_FILE and ETCD_KEY_FILE", err)
	case refused:
		return fmt.Errorf("etcd refused our certificate (%s): %w: use one that etcd's CA signed and that is valid now", t.cert().from(), err)
	}
	return nil
}

// transport makes connections secure, or leaves them plain, and notes which endpoints make trouble.
type transport struct {
	credentials.TransportCredentials // for all but ClientHandshake
	tls                              *TLS
	scheme                           string
	trouble                          *trouble
}

func newTransport(c Config, tr *trouble) *transport {
	if isTLS(c.Endpoints[0]) {
		return &transport{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), &c.TLS, "https://", tr}
	}
	return &transport{insecure.NewCredentials(), nil, "http://", tr}
}

// Clone returns the same: nothing in it changes.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// ClientHandshake reads the files anew. The endpoint's host must be in etcd's certificate.
func (t *transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.handshake(ctx, authority, raw)
	if err != nil {
		t.trouble.note(t.scheme+authority, err)
		return nil, nil, err
	}
	return &probed{Conn: conn, first: func(b []byte, err error) { t.settle(authority, b, err) }}, info, nil
}

func (t *transport) handshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if t.tls == nil {
		return t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	}
	cfg, err := t.tls.load()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	conn, info, err := credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, t.tls.explain(err)
	}
	return conn, info, nil
}

// settle judges a connection by what etcd says first: with TLS 1.3 it refuses a client's certificate only after the handshake.
func (t *transport) settle(authority string, first []byte, err error) {
	const alert = 21 // the type of a record, RFC 8446, section 5.1
	speaksTLS := t.tls == nil && len(first) > 0 && first[0] == alert
	switch {
	case errors.Is(err, net.ErrClosed):
	case speaksTLS || t.tls == nil && err != nil:
		t.trouble.note(t.scheme+authority, errors.New("it closes the connection: use https:// if it wants TLS"))
	case err != nil:
		t.trouble.note(t.scheme+authority, t.tls.explain(err))
	default:
		t.trouble.clear(t.scheme + authority)
	}
}

// probed is a connection whose first read is told. It has one reader, as HTTP/2 has.
type probed struct {
	net.Conn
	first func([]byte, error) // nil once told
}

// Read reads.
func (c *probed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.first != nil {
		c.first(b[:n], err)
		c.first = nil
	}
	return n, err
}
