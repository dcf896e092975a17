// Package reports hands what the kernel reports of packets on to everybody who wants to hear of it.
//
// The kernel gives a group of reports to one reader at a time. The agent is that reader, for as long as somebody listens, and serves any number of
// listeners on a socket: each line is a message, a JSON document. Where no agent runs, a listener reads the group himself.
package reports

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/internal/nft"
)

// Socket is where the agent serves reports, on every host.
const Socket = "/run/muslin/reports.sock"

const (
	// backlog is how many messages wait for a listener that is slow. What comes when it is full, he misses.
	backlog = 512
	// writeTimeout is how long a listener may take for one message before he is given up.
	writeTimeout = 5 * time.Second
)

// message is what a listener is told: one of these.
type message struct {
	Report *nft.Report `json:"report,omitempty"`
	Missed bool        `json:"missed,omitempty"` // some reports are missing here
	Error  string      `json:"error,omitempty"`  // nothing comes any more
}

// Source is where reports come from: nft.Reports, or a test's.
type Source interface {
	Next(ctx context.Context) (nft.Report, error)
	Close() error
}

// Server reads reports while somebody listens, and tells all listeners of them.
type Server struct {
	open func() (Source, error)
	log  *slog.Logger

	mu        sync.Mutex
	listeners map[*listener]struct{}
	idle      context.CancelFunc // ends the reading; nil: nobody reads
	reading   sync.WaitGroup
}

// listener is one who is told.
type listener struct {
	messages chan message
	missed   bool // since the last message that had room
}

// NewServer returns a server. open is called when the first listener comes, and again when one comes after all had gone.
func NewServer(open func() (Source, error), log *slog.Logger) *Server {
	return &Server{open: open, log: log, listeners: map[*listener]struct{}{}}
}

// Serve serves whoever connects until ctx ends, closes l, and waits for those that are being served.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer s.reading.Wait()
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept a listener to reports: %w", err)
		}
		conns.Go(func() { s.serve(ctx, c) })
	}
}

// serve tells one listener until he goes, or ctx ends.
func (s *Server) serve(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	ctx, gone := context.WithCancel(ctx)
	defer gone()
	me := &listener{messages: make(chan message, backlog)}
	s.enter(ctx, me)
	defer s.leave(me)
	go func() { // ends with the connection
		_, _ = c.Read(make([]byte, 1)) // listeners say nothing, they only go
		gone()
	}()
	out := json.NewEncoder(c)
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-me.messages:
			_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
			if err := out.Encode(m); err != nil || m.Error != "" {
				return
			}
		}
	}
}

// enter adds a listener, and begins to read for the first. What is read is for all, so no single one's end ends it.
func (s *Server) enter(ctx context.Context, l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[l] = struct{}{}
	if s.idle != nil {
		return
	}
	reading, idle := context.WithCancel(context.WithoutCancel(ctx))
	s.idle = idle
	s.reading.Go(func() { s.read(reading) })
}

// leave forgets a listener, and ends the reading with the last.
func (s *Server) leave(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	if len(s.listeners) == 0 && s.idle != nil {
		s.idle()
	}
}

// read reads until nobody listens.
func (s *Server) read(ctx context.Context) {
	err := s.readFrom(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = nil
	if len(s.listeners) > 0 && ctx.Err() != nil { // who came while the last one went
		reading, idle := context.WithCancel(context.WithoutCancel(ctx))
		s.idle = idle
		s.reading.Go(func() { s.read(reading) })
		return
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	s.log.Warn("read the kernel's reports of packets", "error", err)
	for l := range s.listeners {
		l.tell(message{Error: err.Error()})
	}
}

func (s *Server) readFrom(ctx context.Context) (err error) {
	from, err := s.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	for {
		r, err := from.Next(ctx)
		switch {
		case errors.Is(err, nft.ErrMissed):
			s.tell(message{Missed: true})
		case err != nil:
			return err
		default:
			s.tell(message{Report: &r})
		}
	}
}

func (s *Server) tell(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		l.tell(m)
	}
}

// tell puts a message into the listener's queue if there is room, behind word of what there was no room for.
func (l *listener) tell(m message) {
	if l.missed && m.Error == "" {
		select {
		case l.messages <- message{Missed: true}:
			l.missed = false
		default:
			return
		}
	}
	select {
	case l.messages <- m:
	default:
		l.missed = true
	}
}
