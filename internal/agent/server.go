package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/bgp"
	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Limits of one connection.
const (
	turnTimeout    = 30 * time.Second // for the plugin to say its next line
	programTimeout = 20 * time.Second // until an endpoint must be in the kernel
	confirmTimeout = 2 * time.Second  // for what should be there already
)

const roomPause = 100 * time.Millisecond // until a connection is accepted again that there was no room for

// The stages of an ADD that come after the handler's.
const (
	stageLink   = "link"   // until the plugin has finished the interface, which it began to make at the same time as the handler began
	stageKernel = "kernel" // until policy and routes are in the kernel
)

// handler works in etcd: register.Handler, or a test's.
type handler interface {
	Add(context.Context, attach.Request) (attach.Reply, error)
	Del(context.Context, attach.Request) error
	Check(context.Context, attach.Request) (attach.Reply, error)
	Stale(context.Context, attach.Request) ([]attach.Stale, error)
	Free(context.Context, attach.Request) error
	Serves(context.Context) error
}

// server answers the plugins on the unix socket.
type server struct {
	handler    handler
	programmed *programmed
	told       func(verb string, took time.Duration, err error) // nil, or who counts what was answered
	took       func(stage string, took time.Duration)           // nil, or who measures the stages of ADDs; see register.Config
	ranges     func(context.Context) ([]netip.Prefix, error)    // of the node's pods in Kubernetes; nil: it is in no Kubernetes
	sessions   func() ([]bgp.Status, error)                     // of BGP; nil: the node speaks none
	self       func() attach.Agent                              // how the agent is doing
	paths      func() []api.Path                                // to other nodes; nil: none are tested
	log        *slog.Logger
	turns      turns
	crowd      *crowd
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
		if outOfRoom(err) {
			s.log.Warn("accept a plugin's connection; it is tried again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(roomPause):
			}
			continue
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

// outOfRoom tells whether an error of accept(2) passes by itself: there are too many open files, in this process or on the host, or too little memory; or
// the other side went away.
func outOfRoom(err error) bool {
	for _, passing := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
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
	if s.told != nil {
		s.told(verbName(req.Verb), time.Since(start), err)
	}
	s.tell(ctx, req, time.Since(start), err)
}

// tell logs how a conversation ended.
func (s *server) tell(ctx context.Context, req attach.Request, took time.Duration, err error) {
	level, what := slog.LevelWarn, "attach failed"
	switch {
	case err == nil:
		level, what = slog.LevelDebug, "attach done"
	case req.Verb == attach.Status, req.Verb == attach.BGP, req.Verb == attach.Report: // asked all the time; what is wrong has been said
		level, what = slog.LevelDebug, "not available"
	}
	attrs := []slog.Attr{
		slog.Any("verb", req.Verb), slog.String("container", req.ContainerID), slog.String("namespace", req.Pod.Namespace), slog.String("pod", req.Pod.Name),
		slog.Duration("took", took.Round(time.Microsecond)),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	s.log.LogAttrs(ctx, level, what, attrs...)
}

func (s *server) verb(ctx context.Context, c net.Conn, conn *attach.Conn, req attach.Request) error {
	if req.Version != attach.Version {
		return refuse(conn, &attach.Error{Code: attach.CodeBadConfig,
			Msg:     fmt.Sprintf("attach: the plugin speaks protocol version %d and the agent %d", req.Version, attach.Version),
			Details: "install plugin and agent of the same release"})
	}
	switch req.Verb {
	case attach.Add:
		defer s.crowd.enter()()
		return s.add(ctx, c, conn, req)
	case attach.Check:
		return s.check(ctx, c, conn, req)
	case attach.Del:
		defer s.crowd.enter()()
		return respond(conn, attach.Reply{}, s.del(ctx, req))
	case attach.GC:
		stale, err := s.handler.Stale(ctx, req)
		return respond(conn, attach.Reply{Stale: stale}, err)
	case attach.Status:
		return respond(conn, attach.Reply{}, s.handler.Serves(ctx))
	case attach.Free:
		return respond(conn, attach.Reply{}, s.handler.Free(ctx, req))
	case attach.Ranges:
		ranges, err := s.podRanges(ctx)
		return respond(conn, attach.Reply{Ranges: ranges}, err)
	case attach.BGP:
		peers, err := s.peers()
		return respond(conn, attach.Reply{Peers: peers}, err)
	case attach.Report:
		self := s.self()
		return respond(conn, attach.Reply{Agent: &self}, nil)
	case attach.Paths:
		paths, err := s.probed()
		return respond(conn, attach.Reply{Paths: paths}, err)
	}
	return refuse(conn, &attach.Error{Code: attach.CodeBadConfig, Msg: fmt.Sprintf("attach: unknown verb %q", req.Verb)})
}

// verbName names a verb in numbers. What a stranger may ask for has one name.
func verbName(v attach.Verb) string {
	switch v {
	case attach.Add, attach.Del, attach.Check, attach.GC, attach.Free, attach.Status, attach.Ranges, attach.BGP, attach.Report, attach.Paths:
		return string(v)
	}
	return "other"
}

// add allocates, and then waits until what the plugin has made is in the kernel.
func (s *server) add(ctx context.Context, c net.Conn, conn *attach.Conn, req attach.Request) error {
	reply, err := s.allocate(ctx, req)
	if err != nil {
		return refuse(conn, err)
	}
	allocated := time.Now()
	linked, err := s.linked(c, conn, req, reply)
	s.stage(stageLink, allocated)
	if err != nil {
		return err
	}
	if err := fault.At(fault.AgentAddLinked); err != nil {
		return refuse(conn, err)
	}
	limit := programTimeout
	if linked.Wait > 0 {
		limit = time.Duration(linked.Wait) * time.Second
	}
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	from := time.Now()
	waited := s.crowd.wait()
	err = s.programmed.wait(wait, deviceOf(linked), reply.Addrs, attach.CodeTryAgain)
	waited()
	s.stage(stageKernel, from)
	if err == nil {
		err = fault.At(fault.AgentAddProgrammed)
	}
	return respond(conn, attach.Reply{}, err)
}

// stage tells how long a stage took that began then.
func (s *server) stage(name string, began time.Time) {
	if s.took != nil {
		s.took(name, time.Since(began))
	}
}

func deviceOf(l attach.Linked) kernel.Dev { return kernel.Dev{Name: l.HostIf, Index: l.Index} }

// allocate is the first half of an ADD.
func (s *server) allocate(ctx context.Context, req attach.Request) (attach.Reply, error) {
	done, err := s.turn(ctx, req)
	if err != nil {
		return attach.Reply{}, err
	}
	defer done()
	defer s.crowd.wait()()
	return s.handler.Add(ctx, req)
}

func (s *server) del(ctx context.Context, req attach.Request) error {
	done, err := s.turn(ctx, req)
	if err != nil {
		return err
	}
	defer done()
	defer s.crowd.wait()()
	if err := s.handler.Del(ctx, req); err != nil {
		return err
	}
	return fault.At(fault.AgentDelDone)
}

// turn waits until earlier commands of the container are done.
func (s *server) turn(ctx context.Context, req attach.Request) (done func(), err error) {
	done, err = s.turns.take(ctx, req.ContainerID)
	if err != nil {
		return nil, &attach.Error{Code: attach.CodeTryAgain,
			Msg:     fmt.Sprintf("attach: an earlier command of container %s does not end: %v", req.ContainerID, err),
			Details: "try again; look at the agent's log on this node"}
	}
	return done, nil
}

// check compares etcd, and then the host's side of what the plugin has found.
func (s *server) check(ctx context.Context, c net.Conn, conn *attach.Conn, req attach.Request) error {
	reply, err := s.handler.Check(ctx, req)
	if err != nil {
		return refuse(conn, err)
	}
	linked, err := s.linked(c, conn, req, reply)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	return respond(conn, attach.Reply{}, s.programmed.wait(wait, deviceOf(linked), reply.Addrs, attach.CodeMissing))
}

// linked sends the first reply and waits for the plugin's second line.
func (s *server) linked(c net.Conn, conn *attach.Conn, req attach.Request, reply attach.Reply) (linked attach.Linked, err error) {
	_ = c.SetDeadline(time.Now().Add(turnTimeout))
	if err := conn.Send(&reply); err != nil {
		return linked, err
	}
	if err := fault.At(fault.AgentReplied); err != nil {
		return linked, err
	}
	if err := conn.Receive(&linked); err != nil {
		return linked, fmt.Errorf("wait for the plugin's word of %s: %w", req.HostIf, err)
	}
	return linked, nil
}

// podRanges are the ranges that Kubernetes has given to the node.
func (s *server) podRanges(ctx context.Context) ([]netip.Prefix, error) {
	if s.ranges == nil {
		return nil, &attach.Error{Code: attach.CodeBadConfig, Msg: "read the node's pod CIDR: this node has no access to Kubernetes",
			Details: "give its agent a kubeconfig, or write the subnet itself in the place of usePodCidr"}
	}
	got, err := s.ranges(ctx)
	if err != nil {
		return nil, &attach.Error{Code: attach.CodeTryAgain, Msg: fmt.Sprintf("read the node's pod CIDR: %v", err), Details: "try again"}
	}
	return got, nil
}

// peers lists the node's BGP sessions as the operator sees them.
func (s *server) peers() ([]attach.Peer, error) {
	if s.sessions == nil {
		return nil, &attach.Error{Code: attach.CodeNoBGP, Msg: "BGP is off on this node",
			Details: "CALICO_NETWORKING_BACKEND is not bird: routes between nodes come from etcd"}
	}
	all, err := s.sessions()
	if err != nil {
		return nil, fmt.Errorf("ask BGP for its sessions: %w", err)
	}
	out := make([]attach.Peer, len(all))
	for i, p := range all {
		out[i] = attach.Peer{Addr: p.Peer, Type: string(p.Kind), State: p.State, Since: p.Since, Info: p.LastError}
	}
	return out, nil
}

// probed lists the paths to other nodes, as the operator's command reads them.
func (s *server) probed() ([]byte, error) {
	if s.paths == nil {
		return nil, &attach.Error{Code: attach.CodeNoProbes, Msg: "this node tests no paths", Details: "MUSLIN_PATH_PROBES is false for its agent"}
	}
	return json.Marshal(s.paths())
}

// respond sends the reply, or why there is none.
func respond(conn *attach.Conn, reply attach.Reply, err error) error {
	if err != nil {
		return refuse(conn, err)
	}
	return conn.Send(&reply)
}

// refuse tells the plugin why, and returns the reason.
func refuse(conn *attach.Conn, err error) error {
	var e *attach.Error
	if !errors.As(err, &e) {
		e = &attach.Error{Code: attach.CodeInternal, Msg: err.Error()}
	}
	return errors.Join(err, conn.Send(&attach.Reply{Error: e}))
}
