// Package etcdtest gives a test an etcd of its own, which it may take away and bring back.
package etcdtest

import (
	"testing"

	"go.uber.org/zap"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/embedetcd"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Server is an etcd on a free port of 127.0.0.1, in the network namespace of the thread that called New. One caller at a time.
type Server struct {
	t   testing.TB
	cfg embedetcd.Config
	run *embedetcd.Server // nil: stopped
}

// New starts an empty etcd, which ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, cfg: embedetcd.Config{Dir: t.TempDir(), UnsafeNoFsync: true}}
	s.Start()
	t.Cleanup(s.Stop)
	return s
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

// Store is a new client of the server, which is closed with the test.
func (s *Server) Store() *store.Client {
	s.t.Helper()
	c, err := store.New(store.Config{Endpoints: []string{s.Endpoint()}})
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
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
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
