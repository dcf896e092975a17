// Package embedetcd runs an etcd server inside this process, for the lab and for tests.
//
// One that is alone has no peer listener, so that it takes exactly one port, and it elects itself within a few ticks. One of several members is
// ready when it knows of a leader, so they are started at the same time.
package embedetcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

// readyTimeout bounds how long a server may take from its start until it serves.
const readyTimeout = 30 * time.Second

// anyPort is where a server listens that was not told where.
const anyPort = "127.0.0.1:0"

// Config says where a server keeps its data and where it listens.
type Config struct {
	Dir       string // holds the data; made if absent. Data of an earlier server in it is kept and served
	ClientURL string // http://address:port, or https:// with TLS; port 0 picks a free one. "": a free port on 127.0.0.1
	// TLS has the server take only clients with a certificate of its CA. Zero: plain connections.
	TLS     TLS
	Members []Member // of its cluster, itself at the place Self; none: it is alone, and has no peer listener
	Self    int
	Quota   int64 // bytes that the data may have before etcd raises its alarm NOSPACE; 0: etcd's own default
	// UnsafeNoFsync trades the last writes before a power loss for speed.
	UnsafeNoFsync bool
	Log           *slog.Logger // etcd's warnings and errors; nil: none
}

// Member is a server of a cluster, as the others know it.
type Member struct {
	Name    string
	PeerURL string // http://address:port, where it listens for the others
}

// TLS names files in PEM form. The server's certificate and key are read anew for each connection.
type TLS struct{ CertFile, KeyFile, CAFile string }

// Server is a running etcd. Its methods may be called concurrently.
type Server struct {
	etcd *embed.Etcd
	grpc *grpc.Server // nil if it never came to serve
	lock *os.File
	url  string
	once sync.Once
}

// Start returns when the server serves clients, or with an error after at most 30 seconds or when ctx ends; then nothing of it
// is left running. The listener is opened by the calling thread, so that it belongs to that thread's network namespace.
// Two servers cannot share a directory: the second Start fails at once.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", cfg.Dir, err)
	}
	ec, err := settings(cfg)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{lock: lock}
	serving := make(chan *grpc.Server, 1)
	ec.ServiceRegister = func(g *grpc.Server) { serving <- g } // etcd calls it once, when it is ready
	s.etcd, err = embed.StartEtcd(ec)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd in %s: %w", cfg.Dir, err), lock.Close())
	}
	s.url = cfg.scheme() + s.etcd.Clients[0].Addr().String()
	s.grpc, err = s.waitReady(ctx, serving)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("start etcd in %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func (c Config) scheme() string {
	if c.TLS != (TLS{}) {
		return "https://"
	}
	return "http://"
}

func settings(cfg Config) (*embed.Config, error) {
	if cfg.ClientURL == "" {
		cfg.ClientURL = cfg.scheme() + anyPort
	}
	listen, err := url.Parse(cfg.ClientURL)
	if err != nil {
		return nil, fmt.Errorf("parse client URL: %w", err)
	}
	if listen.Scheme+"://" != cfg.scheme() || listen.Port() == "" {
		return nil, fmt.Errorf("client URL %q: want %saddress:port", cfg.ClientURL, cfg.scheme())
	}
	ec := embed.NewConfig()
	ec.Dir = cfg.Dir
	ec.ListenClientUrls = []url.URL{*listen}
	ec.AdvertiseClientUrls = []url.URL{*listen}
	if err := join(ec, cfg); err != nil {
		return nil, err
	}
	ec.EnableGRPCGateway = false
	ec.QuotaBackendBytes = cfg.Quota
	if cfg.TLS != (TLS{}) {
		ec.ClientTLSInfo.CertFile, ec.ClientTLSInfo.KeyFile = cfg.TLS.CertFile, cfg.TLS.KeyFile
		ec.ClientTLSInfo.TrustedCAFile, ec.ClientTLSInfo.ClientCertAuth = cfg.TLS.CAFile, true
	}
	ec.BcryptCost = 4 // the least: no password of a lab or a test is worth the tenth of a second that a login would take
	ec.UnsafeNoFsync = cfg.UnsafeNoFsync
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(cfg.Log))
	return ec, nil
}

// join makes the server a member of its cluster.
func join(ec *embed.Config, cfg Config) error {
	if len(cfg.Members) == 0 {
		peer := url.URL{Scheme: "http", Host: "127.0.0.1:2380"} // only a name: nobody listens there
		ec.ListenPeerUrls, ec.AdvertisePeerUrls = nil, []url.URL{peer}
		ec.InitialCluster = ec.Name + "=" + peer.String()
		ec.TickMs, ec.ElectionMs = 10, 100 // there is no other member that could be slow
		return nil
	}
	if cfg.Self < 0 || cfg.Self >= len(cfg.Members) {
		return fmt.Errorf("member %d: there are %d", cfg.Self, len(cfg.Members))
	}
	self := cfg.Members[cfg.Self]
	peer, err := url.Parse(self.PeerURL)
	if err != nil {
		return fmt.Errorf("parse peer URL: %w", err)
	}
	var all []string
	for _, m := range cfg.Members {
		all = append(all, m.Name+"="+m.PeerURL)
	}
	ec.Name, ec.InitialCluster = self.Name, strings.Join(all, ",")
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	return nil
}

// lockDir takes a lock that ends with the file's closing; etcd itself would wait for another user of the directory for ever.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make etcd's directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open etcd's lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: another etcd uses it: %w", f.Name(), err), f.Close())
	}
	return f, nil
}

func (s *Server) waitReady(ctx context.Context, serving <-chan *grpc.Server) (*grpc.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	select {
	case g := <-serving:
		return g, nil
	case <-s.etcd.Server.StopNotify():
		return nil, errors.New("it stopped before it was ready")
	case err := <-s.etcd.Err():
		return nil, err
	case <-ctx.Done():
		return nil, fmt.Errorf("not ready: %w", ctx.Err())
	}
}

// Endpoint is the URL for clients: http://127.0.0.1:34567, or https:// with TLS. It holds after Close too, so that a server can be started again there.
func (s *Server) Endpoint() string { return s.url }

// Done is closed when the server has stopped, whether by Close or by its own failure, which Config.Log then tells.
func (s *Server) Done() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Close stops the server and cuts its connections, watches included; the data stays in the directory. It returns within a few
// seconds. Calls after the first do nothing.
func (s *Server) Close() {
	s.once.Do(func() {
		if s.grpc == nil {
			s.etcd.Server.HardStop() // etcd's own Close would wait for it to become ready
		} else {
			s.grpc.Stop() // etcd's own Close would first give open watches seven seconds
		}
		s.etcd.Close()
		_ = s.lock.Close() // only ever read: nothing to lose
	})
}
