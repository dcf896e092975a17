package store_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/store"
)

// moment is a deadline that a refusal comes well before.
const moment = time.Second

func open(t *testing.T, cfg store.Config) *store.Client {
	t.Helper()
	c, err := store.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// inline is the same as texts.
func inline(t *testing.T, files store.TLS) store.TLS {
	t.Helper()
	return store.TLS{Key: store.Secret(read(t, files.KeyFile)), Cert: read(t, files.CertFile), CA: read(t, files.CAFile)}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryCallWorksOverTLS(t *testing.T) {
	s := etcdtest.NewTLS(t)
	for name, with := range map[string]store.TLS{"files": s.Client(), "inline": inline(t, s.Client())} {
		for call, do := range calls(open(t, store.Config{Endpoints: []string{s.Endpoint()}, TLS: with})) {
			if err := do(t.Context()); err != nil && !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %s: %v", name, call, err)
			}
		}
	}
}

func TestWhyEtcdCannotBeReachedIsSaid(t *testing.T) {
	s := etcdtest.NewTLS(t)
	stranger := etcdtest.NewTLS(t)
	plain := etcdtest.New(t)
	good, otherCA := s.Client(), stranger.Client().CAFile
	onlyHTTP := strings.Replace(plain.Endpoint(), "http:", "https:", 1)
	var waiting sync.WaitGroup // all at the same time: each takes its whole deadline
	defer waiting.Wait()
	port := s.Endpoint()[strings.LastIndex(s.Endpoint(), ":"):]
	for name, tc := range map[string]struct {
		endpoint string
		tls      store.TLS
		want     []string
	}{
		"CA of another":              {s.Endpoint(), foreign(t, s, otherCA), []string{"unknown authority", otherCA, "ETCD_CA_CERT_FILE"}},
		"no CA":                      {s.Endpoint(), store.TLS{KeyFile: good.KeyFile, CertFile: good.CertFile}, []string{"unknown authority", "the system's CAs"}},
		"no certificate":             {s.Endpoint(), store.TLS{CAFile: good.CAFile}, []string{"certificate required", "ETCD_CERT_FILE"}},
		"certificate of another CA":  {s.Endpoint(), foreign(t, stranger, good.CAFile), []string{"refused our certificate"}},
		"name not in certificate":    {"https://localhost" + port, good, []string{"wanted to match localhost"}},
		"etcd's certificate expired": {expired(t, s), good, []string{"check etcd's certificate", "expired", "renew it"}},
		"TLS where there is none":    {onlyHTTP, good, []string{"use http://"}},
		"no TLS where it is wanted":  {strings.Replace(s.Endpoint(), "https:", "http:", 1), store.TLS{}, []string{"use https://"}},
		"TLS 1.1 at most":            {old(t, s), good, []string{"protocol version"}},
		"nobody there":               {refuser(t), store.TLS{}, []string{"connection refused"}},
	} {
		for call, do := range calls(open(t, store.Config{Endpoints: []string{tc.endpoint}, TLS: tc.tls, Timeout: moment})) {
			waiting.Go(func() {
				err := do(t.Context())
				if !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("%s: %s: error = %v, want ErrUnavailable", name, call, err)
					return
				}
				certificates := tc.endpoint != onlyHTTP && strings.HasPrefix(tc.endpoint, "https:")
				if errors.Is(err, store.ErrHandshake) != certificates {
					t.Errorf("%s: %s: error %v is an ErrHandshake: %t", name, call, err, !certificates)
				}
				for _, text := range append([]string{tc.endpoint}, tc.want...) {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%s: %s: error %q does not say %q", name, call, err, text)
					}
				}
			})
		}
	}
}

// foreign is a client's certificate that another server's CA signed, with this CA.
func foreign(t *testing.T, other *etcdtest.Server, ca string) store.TLS {
	t.Helper()
	files := other.Client()
	files.CAFile = ca
	return files
}

// expired is an endpoint with a certificate of the server's CA that has ended.
func expired(t *testing.T, s *etcdtest.Server) string {
	t.Helper()
	pair, err := s.CA().Client("late", time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return shakes(t, pair, &tls.Config{})
}

// old is an endpoint that speaks TLS as it was before 2008, with a good certificate.
func old(t *testing.T, s *etcdtest.Server) string {
	t.Helper()
	pair, err := s.CA().Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return shakes(t, pair, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}) //nolint:gosec // this is what is to be refused
}

// shakes is an endpoint that does no more than a handshake.
func shakes(t *testing.T, pair authority.Pair, conf *tls.Config) string {
	t.Helper()
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates, conf.NextProtos = []tls.Certificate{cert}, []string{"h2"}
	l := tls.NewListener(listen(t), conf)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).HandshakeContext(t.Context()) // the client ends it
			_ = conn.Close()
		}
	}()
	return "https://" + l.Addr().String()
}

func TestFilesThatCannotBeUsedAreNamedAtOnce(t *testing.T) {
	s := etcdtest.NewTLS(t)
	good, other := s.Client(), s.Client()
	dir := t.TempDir()
	late := filepath.Join(dir, "late")
	pair, err := s.CA().Client("late", time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	junk, none := filepath.Join(dir, "junk"), filepath.Join(dir, "none")
	if err := errors.Join(s.CA().Write(late, pair), os.WriteFile(junk, []byte("junk"), 0o600)); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked")
	if err := os.WriteFile(locked, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		tls  store.TLS
		want []string
	}{
		"CA is a folder":   {store.TLS{CAFile: dir}, []string{dir, "is a directory", "ETCD_CA_CERT_FILE"}},
		"key is encrypted": {store.TLS{CertFile: good.CertFile, KeyFile: locked}, []string{locked, "encrypted", "ETCD_KEY_FILE"}},
		"no CA file":       {store.TLS{CAFile: none}, []string{none, "no such file", "ETCD_CA_CERT_FILE"}},
		"CA not PEM":       {store.TLS{CAFile: junk}, []string{junk, "no certificate in PEM form", "ETCD_CA_CERT_FILE"}},
		"no key file":      {store.TLS{CertFile: good.CertFile, KeyFile: none}, []string{none, "no such file", "ETCD_KEY_FILE"}},
		"no cert file":     {store.TLS{CertFile: none, KeyFile: good.KeyFile}, []string{none, "no such file", "ETCD_CERT_FILE"}},
		"cert not PEM":     {store.TLS{CertFile: junk, KeyFile: good.KeyFile}, []string{junk, "PEM"}},
		"key of another":   {store.TLS{CertFile: good.CertFile, KeyFile: other.KeyFile}, []string{good.CertFile, other.KeyFile, "does not match"}},
		"expired":          {store.TLS{CertFile: filepath.Join(late, authority.CertFile), KeyFile: filepath.Join(late, authority.KeyFile)}, []string{late, "expired", "renew"}},
		"inline, not PEM":  {store.TLS{Cert: "junk", Key: "jewels"}, []string{"inline", "PEM"}},
		"inline CA, empty": {store.TLS{CA: "\n"}, []string{"inline", "PEM"}},
	} {
		_, err := store.New(store.Config{Endpoints: []string{s.Endpoint()}, TLS: tc.tls})
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, text := range tc.want {
			if !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "jewels") {
				t.Errorf("%s: error %q, want %q in it", name, err, text)
			}
		}
		if _, err := store.New(store.Config{Endpoints: []string{"http://127.0.0.1:1"}, TLS: tc.tls}); err != nil {
			t.Errorf("%s: error %v though nothing of it is needed without TLS", name, err)
		}
	}
}

func TestExpiresReadsTheCertificate(t *testing.T) {
	s := etcdtest.NewTLS(t)
	end, err := s.Client().Expires()
	if err != nil || time.Until(end) < 24*time.Hour {
		t.Errorf("expires %v, %v", end, err)
	}
	if end, err := (store.TLS{}).Expires(); err != nil || !end.IsZero() {
		t.Errorf("without certificate: %v, %v", end, err)
	}
}

func TestRenewedFilesAreUsedWithoutARestart(t *testing.T) {
	s := etcdtest.NewTLS(t)
	files := s.Client()
	c := open(t, store.Config{Endpoints: []string{s.Endpoint()}, TLS: files, Timeout: moment})
	if _, err := c.Revision(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir, other := filepath.Dir(files.CertFile), etcdtest.NewTLS(t)
	pair, err := other.CA().Client("stranger", authority.Forever())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		ca   *authority.CA // whose certificate replaces the CA's
		want string
	}{
		{"the CA is replaced", other.CA(), "unknown authority"},
		{"only the certificate is replaced", s.CA(), "refused our certificate"},
	} {
		if err := step.ca.Write(dir, pair); err != nil {
			t.Fatal(err)
		}
		s.Stop() // the next connection is a new one
		s.Start()
		etcdtest.Until(t, step.name, func() bool {
			_, err := c.Revision(t.Context())
			return errors.Is(err, store.ErrUnavailable) && strings.Contains(err.Error(), step.want)
		})
	}
	if pair, err = s.CA().Client("renewed", authority.Forever()); err == nil {
		err = s.CA().Write(dir, pair)
	}
	if err != nil {
		t.Fatal(err)
	}
	etcdtest.Until(t, "the renewed certificate is used", func() bool { _, err := c.Revision(t.Context()); return err == nil })
}

func TestUserAndPassword(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *etcdtest.Server{"plain": etcdtest.New, "TLS": etcdtest.NewTLS} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			s.EnableAuth("calico", "secret", "/a")
			cfg := s.Config()
			cfg.Username, cfg.Password = "calico", "secret"
			for call, do := range map[string]func(context.Context, *store.Client) error{"read": get("/a"), "commit": put("/a"), "watch": follow("/a")} {
				if err := do(t.Context(), open(t, cfg)); err != nil {
					t.Errorf("%s: %v", call, err)
				}
			}
			for call, do := range map[string]func(context.Context, *store.Client) error{"read": get("/b"), "commit": put("/b"), "watch": follow("/b")} {
				err := do(t.Context(), open(t, cfg))
				if !errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), "/calico/ and /muslin/") {
					t.Errorf("%s of what is forbidden: %v", call, err)
				}
			}
			wrong := cfg
			wrong.Password = "guess"
			for call, do := range calls(open(t, wrong)) {
				err := do(t.Context())
				if !errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), "check ETCD_USERNAME and ETCD_PASSWORD") || strings.Contains(err.Error(), "guess") {
					t.Errorf("%s with a wrong password: %v", call, err)
				}
			}
			half := cfg
			half.Password = ""
			if err := get("/a")(t.Context(), open(t, half)); !errors.Is(err, store.ErrUnauthorized) {
				t.Errorf("without a password: %v", err)
			}
		})
	}
}

func get(key string) func(context.Context, *store.Client) error {
	return func(ctx context.Context, c *store.Client) error {
		_, _, err := c.Read(ctx, store.Range{Key: key})
		return err
	}
}

func put(key string) func(context.Context, *store.Client) error {
	return func(ctx context.Context, c *store.Client) error {
		var txn store.Txn
		txn.PutRaw(key, nil, 0)
		_, err := c.Commit(ctx, &txn)
		return err
	}
}

func follow(key string) func(context.Context, *store.Client) error {
	return func(ctx context.Context, c *store.Client) error {
		w, err := c.Watch(ctx, key, key+"0", 1)
		if err == nil {
			w.Close()
		}
		return err
	}
}

func TestUserLogsInAgainWhenEtcdHasForgottenTheToken(t *testing.T) {
	s := etcdtest.New(t)
	s.EnableAuth("calico", "secret", "/a")
	cfg := s.Config()
	cfg.Username, cfg.Password = "calico", "secret"
	c := open(t, cfg)
	if err := put("/a1")(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s.Start()
	etcdtest.Until(t, "the client is connected again", c.Connected)
	for name, do := range map[string]func(context.Context, *store.Client) error{"read": get("/a1"), "commit": put("/a2"), "watch": follow("/a")} {
		if err := do(t.Context(), c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoginWaitsForEtcdOnlyWithinTheCall(t *testing.T) {
	s := etcdtest.New(t)
	s.EnableAuth("calico", "secret", "/a", "/calico/")
	cfg := s.Config()
	cfg.Username, cfg.Password, cfg.Timeout = "calico", "secret", short
	s.Stop()
	c := open(t, cfg)
	for name, call := range calls(c) {
		if err := call(t.Context()); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: error = %v, want ErrUnavailable and why", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := get("/a")(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want the cancelled context's", err)
	}
	s.Start()
	etcdtest.Until(t, "the user is logged in", func() bool { return get("/a")(t.Context(), c) == nil })
	for name, call := range calls(c) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(c.Close(), open(t, cfg).Close()); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestOneDeadEndpointDoesNotHurt(t *testing.T) {
	for name, dead := range map[string]string{"refuses": refuser(t), "loses everything": blackHole(t), "accepts and says nothing": "http://" + mute(t)} {
		for _, first := range []bool{true, false} {
			t.Run(name+", first is "+strconv.FormatBool(first), func(t *testing.T) {
				s := etcdtest.New(t)
				endpoints := []string{s.Endpoint(), dead}
				if first {
					endpoints = []string{dead, s.Endpoint()}
				}
				for call, do := range calls(open(t, store.Config{Endpoints: endpoints, Timeout: moment})) {
					if err := do(t.Context()); err != nil {
						t.Errorf("%s: %v", call, err)
					}
				}
			})
		}
	}
}

func TestDiscoveryBySRV(t *testing.T) {
	secure, plain := etcdtest.NewTLS(t), etcdtest.New(t)
	all := map[string][]*net.SRV{"etcd-client-ssl": {record(t, secure.Endpoint())}, "etcd-client": {record(t, plain.Endpoint())}}
	onlyPlain := map[string][]*net.SRV{"etcd-client": all["etcd-client"]}
	cfg := store.Config{DiscoverySRV: "example.org", Timeout: moment}
	if err := put("/a")(t.Context(), open(t, store.WithSRV(cfg, onlyPlain))); err != nil {
		t.Error(err)
	}
	if err := get("/a")(t.Context(), open(t, store.WithSRV(cfg, all))); err == nil || !strings.Contains(err.Error(), secure.Endpoint()) {
		t.Errorf("error = %v, want one of the endpoint with TLS, which comes first", err)
	}
	cfg.TLS = secure.Client()
	if err := get("/a")(t.Context(), open(t, store.WithSRV(cfg, all))); err != nil {
		t.Error(err)
	}
	err := get("/a")(t.Context(), open(t, store.WithSRV(cfg, onlyPlain)))
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "ETCD_DISCOVERY_SRV") {
		t.Errorf("error = %v, want no records, rather than a connection without TLS", err)
	}
}

func record(t *testing.T, endpoint string) *net.SRV {
	t.Helper()
	_, hostport, _ := strings.Cut(endpoint, "://")
	addr := netip.MustParseAddrPort(hostport)
	return &net.SRV{Target: addr.Addr().String() + ".", Port: addr.Port()}
}

// blackHole is an endpoint whose SYNs get no answer: its queue is full, and nobody empties it.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port))
	for range 8 {
		conn, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return "http://" + addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("the queue takes everything")
	return ""
}
