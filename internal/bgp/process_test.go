package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/peering"
)

// asSpeaker in the environment makes the test program a speaker: a process of its own in a namespace, which a test can kill.
const asSpeaker = "MUSLIN_TEST_SPEAKER"

func TestMain(m *testing.M) {
	if mode := os.Getenv(asSpeaker); mode != "" {
		opts := Options{Restarting: mode == "restarting"}
		if mode == "limited" {
			opts = Options{MaxRoutes: limitOfTest, Rest: time.Second}
		}
		if err := speak(os.Stdin, os.Stdout, opts); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// request is what a test asks a speaker process to do, in this order.
type request struct {
	Announce []peering.Route  `json:",omitempty"`
	Apply    *peering.Speaker `json:",omitempty"`
	Close    bool             `json:",omitempty"`
	Tend     bool             `json:",omitempty"`
}

// reply is how a speaker stands after a request.
type reply struct {
	Err     string
	Learned []peering.Path
	Status  []Status
	Tended  []string
}

func speak(in io.Reader, out io.Writer, opts Options) error {
	s := New(slog.New(slog.NewTextHandler(os.Stderr, nil)), opts)
	from, to := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		if err := from.Decode(&r); err != nil {
			return nil // the test has gone
		}
		if err := to.Encode(serve(s, r)); err != nil {
			return err
		}
	}
}

func serve(s *Server, r request) (out reply) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var errs [6]error
	if r.Announce != nil {
		errs[0] = s.Announce(r.Announce)
	}
	if r.Apply != nil {
		errs[1] = s.Apply(ctx, *r.Apply)
	}
	if r.Close {
		errs[2] = s.Close(ctx)
	}
	if r.Tend {
		out.Tended, errs[5] = s.Tend(ctx)
	}
	out.Learned, errs[3] = s.Learned()
	out.Status, errs[4] = s.Status()
	if err := errors.Join(errs[:]...); err != nil {
		out.Err = err.Error()
	}
	return out
}

// process is a program that runs in a namespace and ends with the test at the latest, or with the test program.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}
}

// start runs a program in a namespace. The kernel kills it when the thread that started it ends, and that is locked to a goroutine which
// waits for the program.
func start(t *testing.T, ns *nettest.NS, cmd *exec.Cmd) *process {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{t: t, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(ns.Handle()); err != nil {
			started <- err
			return
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // a killed program's error is no news
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %v: %v", cmd.Args, err)
	}
	t.Cleanup(p.kill)
	return p
}

// kill ends the program without notice, and waits for that.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.t.Errorf("%v outlives SIGKILL", p.cmd.Args)
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// speaker is a Server in a process of its own.
type speaker struct {
	*process
	to   *json.Encoder
	from *json.Decoder
}

func startSpeaker(t *testing.T, ns *nettest.NS, mode string) *speaker {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asSpeaker+"="+mode)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return &speaker{process: start(t, ns, cmd), to: json.NewEncoder(in), from: json.NewDecoder(out)}
}

// do carries a request out; without a request it asks how things are.
func (s *speaker) do(r request) reply {
	s.t.Helper()
	if err := s.to.Encode(r); err != nil {
		s.t.Fatalf("ask speaker: %v", err)
	}
	var out reply
	if err := s.from.Decode(&out); err != nil {
		s.t.Fatalf("hear from speaker: %v", err)
	}
	if out.Err != "" {
		s.t.Fatalf("speaker: %s", out.Err)
	}
	return out
}

// eventually waits until f accepts how the speaker stands.
func (s *speaker) eventually(f func(reply) error) reply {
	s.t.Helper()
	var last reply
	within(s.t, time.Minute, func() error {
		last = s.do(request{Tend: true})
		return f(last)
	})
	return last
}

// within calls f until it returns nil, and ends the test with its last error when the time is over. BGP's own timers are seconds.
func within(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %v", limit, err)
		}
		<-time.After(100 * time.Millisecond)
	}
}
