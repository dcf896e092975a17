package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/members"
)

// counting hands out addresses in order and remembers what was asked.
type counting struct {
	mu      sync.Mutex
	next    netip.Addr
	deleted []string
	fail    error
	adding  chan struct{} // gets a value from every Add, which then waits for another one
}

func (h *counting) Add(_ context.Context, r attach.Request) (attach.Reply, error) {
	if h.adding != nil {
		h.adding <- struct{}{}
		h.adding <- struct{}{}
	}
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

func (h *counting) Serves(context.Context) error { return h.fail }

type rig struct {
	handler    *counting
	programmed *programmed
	path       string
	stages     chan string // of ADDs, as they are done
	agent      Agent       // that is asked how it is doing
}

func (r *rig) self() attach.Agent { return r.agent.self() }

func serveTest(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		handler: &counting{next: netip.MustParseAddr("10.0.0.0")}, programmed: newProgrammed(),
		path: filepath.Join(t.TempDir(), "run", "agent.sock"), stages: make(chan string, 100),
	}
	l, err := listen(r.path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{handler: r.handler, programmed: r.programmed, crowd: newCrowd(), took: func(stage string, _ time.Duration) { r.stages <- stage }, log: slog.New(slog.DiscardHandler), self: r.self}
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

// exchange sends one line and returns the answer.
func exchange(t *testing.T, c *attach.Conn, line members.Object) attach.Reply {
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

// cramped is a listener that has no room for some connections first.
type cramped struct {
	net.Listener
	errs []error
}

func (l *cramped) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return l.Listener.Accept()
}

func TestSocketOutlivesTheWantOfRoom(t *testing.T) {
	r := &rig{path: filepath.Join(t.TempDir(), "agent.sock")}
	l, err := listen(r.path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{handler: &counting{}, crowd: newCrowd(), log: slog.New(slog.DiscardHandler), self: r.self}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- s.serve(ctx, &cramped{l, []error{unix.EMFILE, os.NewSyscallError("accept4", unix.ENFILE), unix.ECONNABORTED}})
	}()
	exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.Status})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
	if l, err = net.Listen("unix", filepath.Join(t.TempDir(), "other")); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := s.serve(t.Context(), &cramped{l, []error{unix.EBADF}}); !errors.Is(err, unix.EBADF) {
		t.Errorf("an error that lasts: %v", err)
	}
}

func TestAddReturnsOnlyOnceTheRouteIsInTheKernel(t *testing.T) {
	r := serveTest(t)
	c := r.dial(t)
	reply := exchange(t, c, &attach.Request{Version: attach.Version, Verb: attach.Add, HostIf: "cali1", MAC: "0a:00:00:00:00:01"})
	want := attach.Reply{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, MAC: "0a:00:00:00:00:01"}
	if d := cmp.Diff(want, reply, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Fatalf("first reply: %s", d)
	}
	if err := c.Send(&attach.Linked{HostIf: "cali1", Index: 12}); err != nil {
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
	r.programmed.publish(route(11), kernel.Ownership{}, nil) // a device of the same name that is gone
	select {
	case got := <-second:
		t.Fatalf("answered before the route was there: %+v", got)
	default:
	}
	r.programmed.publish(route(12), kernel.Ownership{}, nil)
	if got := <-second; got.Error != nil {
		t.Fatalf("second reply: %v", got.Error)
	}
	if first, then := <-r.stages, <-r.stages; first != stageLink || then != stageKernel {
		t.Errorf("stages %s, %s", first, then)
	}
}

func TestFailureReachesThePluginWithItsCode(t *testing.T) {
	r := serveTest(t)
	r.handler.fail = &attach.Error{Code: attach.CodeNoAddress, Msg: "no address", Details: "add a pool"}
	reply := exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.Add})
	if reply.Error == nil || reply.Error.Code != attach.CodeNoAddress || reply.Error.Details != "add a pool" {
		t.Errorf("reply: %+v", reply)
	}
	r.handler.fail = errors.New("boom")
	reply = exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.Del, ContainerID: "c"})
	if reply.Error == nil || reply.Error.Code != attach.CodeInternal || reply.Error.Msg != "boom" {
		t.Errorf("reply: %+v", reply)
	}
}

func (h *counting) del(container string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.deleted, container)
}

func TestDelNeverOvertakesTheAddOfAPluginThatWasKilled(t *testing.T) {
	r := serveTest(t)
	r.handler.adding = make(chan struct{})
	add, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := attach.NewConn(add).Send(&attach.Request{Version: attach.Version, Verb: attach.Add, ContainerID: "c1"}); err != nil {
		t.Fatal(err)
	}
	<-r.handler.adding
	_ = add.Close()
	del := r.dial(t)
	if err := del.Send(&attach.Request{Version: attach.Version, Verb: attach.Del, ContainerID: "c1"}); err != nil {
		t.Fatal(err)
	}
	if reply := exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.Del, ContainerID: "c2"}); reply.Error != nil {
		t.Errorf("DEL of another container: %v", reply.Error)
	}
	if r.handler.del("c1") {
		t.Error("the DEL overtook the ADD")
	}
	<-r.handler.adding
	var reply attach.Reply
	if err := del.Receive(&reply); err != nil || reply.Error != nil || !r.handler.del("c1") {
		t.Errorf("DEL: %v, %+v", err, reply)
	}
}

func TestCheckNamesTheRoutesThatAreMissing(t *testing.T) {
	r := serveTest(t)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	r.programmed.publish(map[kernel.RouteKey]kernel.Route{
		{Dst: netip.MustParsePrefix("10.0.0.1/32"), Metric: 1024}: {Dev: kernel.Dev{Name: "cali1", Index: 12}, Protocol: kernel.RouteProtocol},
	}, kernel.Ownership{}, nil)
	ask := func(addrs ...netip.Addr) attach.Reply {
		c := r.dial(t)
		exchange(t, c, &attach.Request{Version: attach.Version, Verb: attach.Check, Addrs: addrs})
		return exchange(t, c, &attach.Linked{HostIf: "cali1", Index: 12})
	}
	if reply := ask(a); reply.Error != nil {
		t.Errorf("routes that are there: %v", reply.Error)
	}
	if reply := ask(a, b); reply.Error == nil || reply.Error.Code != attach.CodeMissing || !strings.Contains(reply.Error.Msg, "[10.0.0.2]") {
		t.Errorf("a route that is missing: %+v", reply.Error)
	}
}

func TestGCListsAndFreesInTwoCommands(t *testing.T) {
	r := serveTest(t)
	listed := exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.GC})
	if len(listed.Stale) != 1 || listed.Error != nil {
		t.Fatalf("GC: %+v", listed)
	}
	if r.handler.del("old") {
		t.Error("GC alone has freed something")
	}
	if reply := exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.Free, Stale: listed.Stale}); reply.Error != nil || !r.handler.del("old") {
		t.Errorf("Free: %+v", reply)
	}
}

// nonsense is an object, and no request.
type nonsense struct{}

func (nonsense) Members() []members.Member {
	version := "first"
	return []members.Member{{Name: "version", Value: &version}}
}

func TestNonsenseIsRefusedAndServingGoesOn(t *testing.T) {
	r := serveTest(t)
	for _, req := range []attach.Request{{Version: 99, Verb: attach.Add}, {Version: attach.Version, Verb: "dance"}} {
		if reply := exchange(t, r.dial(t), &req); reply.Error == nil || reply.Error.Code != attach.CodeBadConfig {
			t.Errorf("%+v: reply %+v", req, reply)
		}
	}
	if err := r.dial(t).Send(nonsense{}); err != nil {
		t.Fatal(err)
	}
	if reply := exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.Del, ContainerID: "c"}); reply.Error != nil {
		t.Errorf("reply: %+v", reply)
	}
}

func TestWaitingEndsWithTryAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var e *attach.Error
	if err := newProgrammed().wait(ctx, kernel.Dev{Name: "cali1", Index: 3}, []netip.Addr{netip.MustParseAddr("10.0.0.1")}, attach.CodeTryAgain); !errors.As(err, &e) || e.Code != attach.CodeTryAgain {
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

func TestPluginMayBoundTheWaitForTheKernel(t *testing.T) {
	r := serveTest(t)
	c := r.dial(t)
	if reply := exchange(t, c, &attach.Request{Version: attach.Version, Verb: attach.Add, ContainerID: "c"}); reply.Error != nil {
		t.Fatal(reply.Error)
	}
	began := time.Now()
	reply := exchange(t, c, &attach.Linked{HostIf: "cali1", Index: 7, Wait: 1}) // which nobody programs
	if reply.Error == nil || reply.Error.Code != attach.CodeTryAgain || time.Since(began) > programTimeout/2 {
		t.Errorf("after %v: %+v, want code 11 after a second", time.Since(began), reply.Error)
	}
}

func TestAgentSaysItsProblemsAsLongAsTheyAreThere(t *testing.T) {
	r := serveTest(t)
	r.agent.version, r.agent.node, r.agent.log = "v1", "node-1", slog.New(slog.DiscardHandler)
	ask := func() attach.Agent {
		reply := exchange(t, r.dial(t), &attach.Request{Version: attach.Version, Verb: attach.Report})
		if reply.Error != nil || reply.Agent == nil {
			t.Fatalf("answer %+v", reply)
		}
		return *reply.Agent
	}
	for _, problems := range [][]string{nil, {"b is wrong", "a is wrong"}, {"b is wrong"}} {
		r.agent.say(problems, nil, nil)
		slices.Sort(problems)
		want := attach.Agent{Version: "v1", Node: "node-1", Problems: problems}
		if d := cmp.Diff(want, ask()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}
