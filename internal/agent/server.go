package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/attach"
)

// Limits of one connection.
const (
	turnTimeout    = 30 * time.Second // for the plugin to say its next line
	programTimeout = 20 * time.Second // until an endpoint must be in the kernel
)

// handler allocates and releases: register.Handler, or a test's.
type handler interface {
	Add(context.Context, attach.Request) (attach.Reply, error)
	Del(context.Context, attach.Request) error
}

// server answers the plugins on the unix socket.
type server struct {
	handler    handler
	programmed func(ctx context.Context, dev string, index int) error // waits until that device's endpoint is in the kernel
	log        *slog.Logger
}

// listen opens the socket at path, in the place of one that a killed agent left behind.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open the plugins' socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the plugins' socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the plugins' socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open the plugins' socket: %w", err), l.Close())
	}
	return l, nil
}

// serve answers connections until ctx ends, then waits for those that are being answered.
func (s *server) serve(ctx context.Context, l net.Listener) error {
	var g errgroup.Group
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return g.Wait()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("accept a plugin's connection: %w", err), g.Wait())
		}
		g.Go(func() error {
			s.answer(ctx, c)
			return nil
		})
	}
}

// answer holds one conversation. Its outcome is told to the plugin; here it is only logged.
func (s *server) answer(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 2*turnTimeout+attach.ReadinessTimeout)
	defer cancel()
	conn := attach.NewConn(c)
	var req attach.Request
	_ = c.SetDeadline(time.Now().Add(turnTimeout))
	if err := conn.Receive(&req); err != nil {
		if !errors.Is(err, io.EOF) { // a bare connect is how others see that we are ready
			s.log.Warn("read a plugin's request", "error", err)
		}
		return
	}
	start := time.Now()
	err := s.verb(ctx, c, conn, req)
	log := s.log.With("verb", req.Verb, "container", req.ContainerID, "namespace", req.Pod.Namespace, "pod", req.Pod.Name, "took", time.Since(start).Round(time.Microsecond))
	if err != nil {
		log.Warn("attach failed", "error", err)
		return
	}
	log.Debug("attach done")
}

func (s *server) verb(ctx context.Context, c net.Conn, conn *attach.Conn, req attach.Request) error {
	if req.Version != attach.Version {
		return refuse(conn, &attach.Error{Code: attach.CodeBadConfig,
			Msg:     fmt.Sprintf("attach: the plugin speaks protocol version %d and the agent %d", req.Version, attach.Version),
			Details: "install plugin and agent of the same release"})
	}
	switch req.Verb {
	case attach.Add:
		return s.add(ctx, c, conn, req)
	case attach.Del:
		return s.del(ctx, conn, req)
	}
	return refuse(conn, &attach.Error{Code: attach.CodeBadConfig, Msg: fmt.Sprintf("attach: unknown verb %q", req.Verb)})
}

func (s *server) add(ctx context.Context, c net.Conn, conn *attach.Conn, req attach.Request) error {
	reply, err := s.handler.Add(ctx, req)
	if err != nil {
		return refuse(conn, err)
	}
	_ = c.SetDeadline(time.Now().Add(turnTimeout))
	if err := conn.Send(reply); err != nil {
		return err
	}
	var linked attach.Linked
	if err := conn.Receive(&linked); err != nil {
		return fmt.Errorf("wait for the plugin to make %s: %w", req.HostIf, err)
	}
	limit := programTimeout
	if linked.Wait > 0 {
		limit = time.Duration(linked.Wait) * time.Second
	}
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := s.programmed(wait, linked.HostIf, linked.Index); err != nil {
		return refuse(conn, err)
	}
	return conn.Send(attach.Reply{})
}

func (s *server) del(ctx context.Context, conn *attach.Conn, req attach.Request) error {
	if err := s.handler.Del(ctx, req); err != nil {
		return refuse(conn, err)
	}
	return conn.Send(attach.Reply{})
}

// refuse tells the plugin why, and returns the reason.
func refuse(conn *attach.Conn, err error) error {
	var e *attach.Error
	if !errors.As(err, &e) {
		e = &attach.Error{Code: attach.CodeInternal, Msg: err.Error()}
	}
	return errors.Join(err, conn.Send(attach.Reply{Error: e}))
}
