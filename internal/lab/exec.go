package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Command is what Exec and PodExec run.
type Command struct {
	Args   []string // the program is looked up in the lab's search path
	Env    []string // added to the caller's environment
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Exec runs a command on a node, a router, on "fabric" or on "outside", and waits for it. PATH has the lab's programs, ETCD_ENDPOINTS,
// with TLS the names of its files, and NODENAME are set. When ctx ends the command gets SIGTERM, and SIGKILL five seconds later. A command that fails is an
// *exec.ExitError.
func (l *Lab) Exec(ctx context.Context, where string, c Command) error {
	return l.visit(where, func(s *state, pl *place) error { return c.run(ctx, s, pl, "NODENAME="+where) })
}

// PodExec runs a command in a pod's network namespace, with its node's files; otherwise as Exec.
func (l *Lab) PodExec(ctx context.Context, name string, c Command) error {
	return l.visitPod(name, func(s *state, pod *Pod, pl *place) error { return c.run(ctx, s, pl, "NODENAME="+pod.Node) })
}

// Within calls fn on a thread in the namespaces of a node, a router, of "fabric" or of "outside", and waits for it. Sockets that fn opens
// belong there for good; goroutines that it starts run where the caller is. fn must not keep the thread: it ends with fn.
func (l *Lab) Within(where string, fn func() error) error {
	return l.visit(where, func(_ *state, pl *place) error { return pl.run(fn) })
}

// WithinPod is Within for a pod.
func (l *Lab) WithinPod(name string, fn func() error) error {
	return l.visitPod(name, func(_ *state, _ *Pod, pl *place) error { return pl.run(fn) })
}

// visit opens a place for as long as fn runs.
func (l *Lab) visit(where string, fn func(*state, *place) error) error {
	s, err := l.load()
	if err != nil {
		return err
	}
	pl, err := placeOf(s, where)
	if err != nil {
		return err
	}
	defer pl.close()
	return fn(s, pl)
}

// visitPod opens a pod's place for as long as fn runs.
func (l *Lab) visitPod(name string, fn func(*state, *Pod, *place) error) error {
	s, err := l.load()
	if err != nil {
		return err
	}
	pod, err := s.pod(name)
	if err != nil {
		return err
	}
	pl, err := pod.place(s)
	if err != nil {
		return err
	}
	defer pl.close()
	return fn(s, pod, pl)
}

// placeOf opens a node, a router, the fabric or the outside host.
func placeOf(s *state, where string) (*place, error) {
	var holder process
	switch where {
	case "fabric":
		holder = s.Fabric
	case "outside":
		holder = s.Outside
	default:
		r, err := s.router(where)
		if err != nil {
			return placeOfNode(s, where)
		}
		holder = r.Holder
	}
	pl, err := openPlace(holder)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w: run `muslin-lab down` and `muslin-lab up`", where, err)
	}
	return pl, nil
}

func (c Command) run(ctx context.Context, s *state, pl *place, nodename string) error {
	if len(c.Args) == 0 {
		return errors.New("no command given")
	}
	wd, err := os.Getwd()
	if err != nil {
		wd = "/"
	}
	path := searchPath(s.Bin)
	var cmd *exec.Cmd
	err = pl.run(func() error {
		program, err := findProgram(c.Args[0], path)
		if err != nil {
			return err
		}
		cmd = exec.CommandContext(ctx, program, c.Args[1:]...)
		cmd.Args[0] = c.Args[0]
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
		cmd.Env = append(os.Environ(), "PATH="+path, idVar+"="+s.ID, nodename)
		cmd.Env = slices.Concat(cmd.Env, s.Options.etcdEnv(), c.Env)
		cmd.Dir = "/"
		if info, err := os.Stat(wd); err == nil && info.IsDir() { // not where the node has a /run of its own
			cmd.Dir = wd
		}
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		cmd.WaitDelay = 5 * time.Second
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Args[0], err)
	}
	return cmd.Wait()
}

// findProgram looks a name up as a shell does, but in the calling thread's mounts and the given path.
func findProgram(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if info, err := os.Stat(full); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, path)
}

// Log writes the log of a node's agent, of a router, or of "etcd", to w.
func (l *Lab) Log(name string, w io.Writer) error {
	s, err := l.load()
	if err != nil {
		return err
	}
	if _, err := s.router(name); err != nil && name != "etcd" {
		if _, err := s.node(name); err != nil {
			return err
		}
	}
	f, err := os.Open(l.logPath(name))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s has no log: nothing was started there", name)
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}
