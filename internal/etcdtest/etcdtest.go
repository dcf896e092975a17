// Package etcdtest gives a test an etcd of its own, which it may take away and bring back.
package etcdtest

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/embedetcd"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Root is the user that EnableAuth makes for the test itself, and its password.
const Root = "root"

// Server is an etcd on a free port of 127.0.0.1, in the network namespace of the thread that called New. One caller at a time.
type Server struct {
	t    testing.TB
	cfg  embedetcd.Config
	run  *embedetcd.Server // nil: stopped
	ca   *authority.CA     // nil: without TLS
	auth bool              // Root has to log in
}

// New starts an empty etcd, which ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	return start(&Server{t: t, cfg: embedetcd.Config{Dir: t.TempDir(), UnsafeNoFsync: true}})
}

// NewTLS is New, but the server wants TLS, and from its clients a certificate that CA has signed. Its own is for 127.0.0.1 only.
func NewTLS(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, cfg: embedetcd.Config{Dir: t.TempDir(), UnsafeNoFsync: true}}
	dir := t.TempDir()
	var err error
	if s.ca, err = authority.New("etcdtest"); err != nil {
		t.Fatal(err)
	}
	pair, err := s.ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ca.Write(dir, pair); err != nil {
		t.Fatal(err)
	}
	f := filesIn(dir)
	s.cfg.TLS = embedetcd.TLS{CertFile: f.CertFile, KeyFile: f.KeyFile, CAFile: f.CAFile}
	return start(s)
}

func start(s *Server) *Server {
	s.t.Helper()
	s.Start()
	s.t.Cleanup(s.Stop)
	return s
}

// CA signs the certificates of this server's clients. It is nil without TLS.
func (s *Server) CA() *authority.CA { return s.ca }

// Client is a new client's certificate in a folder of its own, with the CA's.
func (s *Server) Client() store.TLS {
	s.t.Helper()
	dir := s.t.TempDir()
	pair, err := s.ca.Client("client", authority.Forever())
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.ca.Write(dir, pair); err != nil {
		s.t.Fatal(err)
	}
	return filesIn(dir)
}

// filesIn names what authority.CA.Write has written.
func filesIn(dir string) store.TLS {
	in := func(name string) string { return filepath.Join(dir, name) }
	return store.TLS{CertFile: in(authority.CertFile), KeyFile: in(authority.KeyFile), CAFile: in(authority.CAFile)}
}

// EnableAuth makes the server refuse whoever does not log in, and makes a user that may read and write what is below the prefixes. It
// takes the test's own clients, if made later, for Root.
func (s *Server) EnableAuth(user, password string, prefixes ...string) {
	s.t.Helper()
	c, ctx := s.Etcd(), s.t.Context()
	do := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatalf("enable auth: %v", err)
		}
	}
	for _, u := range [][2]string{{Root, Root}, {user, password}} {
		_, err := c.RoleAdd(ctx, u[0])
		do(err)
		_, err = c.UserAdd(ctx, u[0], u[1])
		do(err)
		_, err = c.UserGrantRole(ctx, u[0], u[0])
		do(err)
	}
	for _, p := range prefixes {
		_, err := c.RoleGrantPermission(ctx, user, p, clientv3.GetPrefixRangeEnd(p), clientv3.PermissionType(clientv3.PermReadWrite))
		do(err)
	}
	_, err := c.AuthEnable(ctx)
	do(err)
	s.auth = true
}

// Endpoint is the URL for clients. It stays the same when the server is stopped and started.
func (s *Server) Endpoint() string { return s.cfg.ClientURL }

// Stop takes etcd away: connections are cut, and new ones refused. The data stays. It does nothing to a stopped server.
func (s *Server) Stop() {
	if s.run == nil {
		return
	}
	s.run.Close()
	s.run = nil
}

// Start brings a stopped etcd back at the same endpoint with the data it had. It returns when clients are served.
func (s *Server) Start() {
	s.t.Helper()
	if s.run != nil {
		return
	}
	run, err := embedetcd.Start(s.t.Context(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.run = run
	s.cfg.ClientURL = run.Endpoint()
}

// Config is how a client that the server welcomes reaches it.
func (s *Server) Config() store.Config {
	s.t.Helper()
	cfg := store.Config{Endpoints: []string{s.Endpoint()}}
	if s.ca != nil {
		cfg.TLS = s.Client()
	}
	if s.auth {
		cfg.Username, cfg.Password = Root, Root
	}
	return cfg
}

// Store is a new client of the server, which is closed with the test.
func (s *Server) Store() *store.Client {
	s.t.Helper()
	c, err := store.New(s.Config())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			s.t.Errorf("close the etcd client: %v", err)
		}
	})
	return c
}

// Etcd is a new plain etcd client of the server, for what store does not do: compaction, writes of another program.
// It is closed with the test.
func (s *Server) Etcd() *clientv3.Client {
	s.t.Helper()
	cfg := clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()}
	if s.ca != nil {
		cfg.TLS = s.clientTLS()
	}
	if s.auth {
		cfg.Username, cfg.Password = Root, Root
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			s.t.Errorf("close the etcd client: %v", err)
		}
	})
	return c
}

func (s *Server) clientTLS() *tls.Config {
	s.t.Helper()
	pair, err := s.ca.Client("etcdtest", authority.Forever())
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(s.ca.Pair().Cert)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted, Certificates: []tls.Certificate{cert}}
}
