package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	retryInterval = 5 * time.Second  // until an address that could not be had is tried again
	closeTimeout  = time.Second      // for answers that are under way
	headerTimeout = 5 * time.Second  // for a client to say what it wants
	totalTimeout  = 30 * time.Second // for a question and its answer
)

// What a stranger may take of us. Few ask, and pods may reach the port.
const (
	mostConnections = 64 // at a time
	mostHeader      = 16 << 10
)

// Port serves a handler by HTTP at an address that may change, or be none, while it runs.
type Port struct {
	what    string // for the log
	handler http.Handler
	log     *slog.Logger
	want    chan string // holds the last address that was asked for, until Run takes it
}

// NewPort returns a port that serves nothing yet. what names it in the log: "health".
func NewPort(what string, h http.Handler, log *slog.Logger) *Port {
	return &Port{what: what, handler: h, log: log, want: make(chan string, 1)}
}

// Set asks for an address such as localhost:9099; "" is none. It does not wait. One caller at a time.
func (p *Port) Set(addr string) {
	select {
	case <-p.want:
	default:
	}
	p.want <- addr
}

// Run serves until ctx ends, and then returns nil. An address that cannot be had is said once and tried again until it can, or until
// another is asked for.
func (p *Port) Run(ctx context.Context) error {
	s := serving{Port: p}
	defer s.stop()
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case addr := <-p.want:
			if addr != s.addr {
				s.stop()
				s.addr, s.failed = addr, false
				s.start(ctx)
			}
		case <-s.ended:
			s.stop()
			s.start(ctx)
		case <-retry.C:
			s.start(ctx)
		}
	}
}

// serving is what a port does now. It is owned by Run.
type serving struct {
	*Port
	addr   string       // as asked for
	server *http.Server // nil: none
	ended  chan struct{}
	failed bool // as said
}

// start listens, unless it does already or there is nothing to listen on.
func (s *serving) start(ctx context.Context) {
	if s.addr == "" || s.server != nil {
		return
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr)
	if err != nil {
		s.fail(ctx, err)
		return
	}
	s.log.Info("port opened", "serves", s.what, "address", l.Addr().String())
	s.failed = false
	server := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: totalTimeout, WriteTimeout: totalTimeout,
		MaxHeaderBytes: mostHeader, ConnState: atMost(mostConnections),
	}
	ended := make(chan struct{})
	s.server, s.ended = server, ended
	go func() {
		defer close(ended)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Warn("port closed by an error", "serves", s.what, "error", err)
		}
	}()
}

// atMost closes connections that come while there are as many as may be.
func atMost(most int32) func(net.Conn, http.ConnState) {
	var open atomic.Int32
	return func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > most {
				_ = c.Close() // whose reader ends, and counts it out
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
}

// fail says once why there is no port.
func (s *serving) fail(ctx context.Context, err error) {
	if s.failed || ctx.Err() != nil {
		return
	}
	s.failed = true
	s.log.Error("port not opened; it is tried again", "serves", s.what, "error", fmt.Errorf("listen on %s: %w", s.addr, err))
}

// stop closes the port and waits for who serves it.
func (s *serving) stop() {
	if s.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		_ = s.server.Close() // its answers have had their time
	}
	<-s.ended
	s.server, s.ended = nil, nil
}
