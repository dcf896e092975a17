package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// counting hands out addresses in order and remembers what was asked.
type counting struct {
	mu      sync.Mutex
	next    netip.Addr
	deleted []string
	fail    error
}

func (h *counting) Add(_ context.Context, r attach.Request) (attach.Reply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return attach.Reply{}, h.fail
	}
	h.next = h.next.Next()
	return attach.Reply{Addrs: []netip.Addr{h.next}, MAC: r.MAC}, nil
}

func (h *counting) Del(_ context.Context, r attach.Request) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deleted = append(h.deleted, r.ContainerID)
	return h.fail
}

func (h *counting) Check(_ context.Context, r attach.Request) (attach.Reply, error) {
	return attach.Reply{Addrs: r.Addrs}, h.fail
}

func (h *counting) Stale(context.Context, attach.Request) ([]attach.Stale, error) {
	return []attach.Stale{{ContainerID: "old", HandleRev: 7}}, h.fail
}

func (h *counting) Free(_ context.Context, r attach.Request) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range r.Stale {
		h.deleted = append(h.deleted, s.ContainerID)
	}
	return h.fail
}

type rig struct {
	handler    *counting
	programmed *programmed
	path       string
}

func serveTest(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		handler: &counting{next: netip.MustParseAddr("10.0.0.0")}, programmed: newProgrammed(),
		path: filepath.Join(t.TempDir(), "run", "agent.sock"),
	}
	l, err := listen(r.path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{handler: r.handler, programmed: r.programmed, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return r
}

func (r *rig) dial(t *testing.T) *attach.Conn {
	t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return attach.NewConn(c)
}

// turn sends one line and returns the answer.
func turn(t *testing.T, c *attach.Conn, line any) attach.Reply {
	t.Helper()
	if err := c.Send(line); err != nil {
		t.Fatal(err)
	}
	var reply attach.Reply
	if err := c.Receive(&reply); err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestAddReturnsOnlyOnceTheRouteIsInTheKernel(t *testing.T) {
	r := serveTest(t)
	c := r.dial(t)
	reply := turn(t, c, attach.Request{Version: attach.Version, Verb: attach.Add, HostIf: "cali1", MAC: "0a:00:00:00:00:01"})
	want := attach.Reply{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, MAC: "0a:00:00:00:00:01"}
	if d := cmp.Diff(want, reply, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Fatalf("first reply: %s", d)
	}
	if err := c.Send(attach.Linked{HostIf: "cali1", Index: 12}); err != nil {
		t.Fatal(err)
	}
	second := make(chan attach.Reply)
	go func() {
		var reply attach.Reply
		if err := c.Receive(&reply); err != nil {
			reply.Error = &attach.Error{Msg: err.Error()}
		}
		second <- reply
	}()
	route := func(index int) map[kernel.RouteKey]kernel.Route {
		return map[kernel.RouteKey]kernel.Route{
			{Dst: netip.MustParsePrefix("10.0.0.1/32"), Metric: 1024}: {Dev: kernel.Dev{Name: "cali1", Index: index}, Protocol: kernel.RouteProtocol},
		}
	}
	r.programmed.publish(route(11)) // a device of the same name that is gone
	select {
	case got := <-second:
		t.Fatalf("answered before the route was there: %+v", got)
	default:
	}
	r.programmed.publish(route(12))
	if got := <-second; got.Error != nil {
		t.Fatalf("second reply: %v", got.Error)
	}
}

func TestFailureReachesThePluginWithItsCode(t *testing.T) {
	r := serveTest(t)
	r.handler.fail = &attach.Error{Code: attach.CodeNoAddress, Msg: "no address", Details: "add a pool"}
	reply := turn(t, r.dial(t), attach.Request{Version: attach.Version, Verb: attach.Add})
	if reply.Error == nil || reply.Error.Code != attach.CodeNoAddress || reply.Error.Details != "add a pool" {
		t.Errorf("reply: %+v", reply)
	}
	r.handler.fail = errors.New("boom")
	reply = turn(t, r.dial(t), attach.Request{Version: attach.Version, Verb: attach.Del, ContainerID: "c"})
	if reply.Error == nil || reply.Error.Code != attach.CodeInternal || reply.Error.Msg != "boom" {
		t.Errorf("reply: %+v", reply)
	}
}

func TestNonsenseIsRefusedAndServingGoesOn(t *testing.T) {
	r := serveTest(t)
	for _, req := range []attach.Request{{Version: 99, Verb: attach.Add}, {Version: attach.Version, Verb: "dance"}} {
		if reply := turn(t, r.dial(t), req); reply.Error == nil || reply.Error.Code != attach.CodeBadConfig {
			t.Errorf("%+v: reply %+v", req, reply)
		}
	}
	if err := r.dial(t).Send("not a request"); err != nil {
		t.Fatal(err)
	}
	if reply := turn(t, r.dial(t), attach.Request{Version: attach.Version, Verb: attach.Del, ContainerID: "c"}); reply.Error != nil {
		t.Errorf("reply: %+v", reply)
	}
}

func TestWaitingEndsWithTryAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var e *attach.Error
	if err := newProgrammed().wait(ctx, "cali1", 3); !errors.As(err, &e) || e.Code != attach.CodeTryAgain {
		t.Errorf("error: %v", err)
	}
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	for range 2 {
		l, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as after a kill
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
