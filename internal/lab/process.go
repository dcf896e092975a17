package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	idVar   = "MUSLIN_LAB"      // the lab's id, in the environment of every process that it starts
	roleVar = "MUSLIN_LAB_ROLE" // holder, etcd, agent, router

	roleHolder = "holder"
	roleEtcd   = "etcd"
	roleAgent  = "agent"
	roleRouter = "router"

	pollEvery = 10 * time.Millisecond
	readyFile = 3 // the descriptor on which a daemon of ours says that it is ready
)

// process is one that the lab started. The start time tells it from a later one with the same number.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, proc(5)
}

// findProcess completes pid's identity.
func findProcess(pid int) (process, error) {
	s, err := readStat(pid)
	return process{PID: pid, Start: s.start}, err
}

// procStat is what the kernel says of a process.
type procStat struct {
	start   uint64
	state   string // a letter
	threads int
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, fmt.Errorf("read process: %w", err)
	}
	const threadsField, startField = 20 - 3, 22 - 3 // proc(5) counts from 1, and the name in parentheses is the second
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) <= startField {
		return procStat{}, fmt.Errorf("read process %d: short stat line", pid)
	}
	start, err := strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	threads, err := strconv.Atoi(fields[threadsField])
	return procStat{start, fields[0], threads}, err
}

// alive reports whether the process still runs. A zombie does not.
func (p process) alive() bool {
	s, ok := p.stat()
	return ok && s.state != "Z" && s.state != "X"
}

// gone reports whether nothing of the process is left but perhaps a zombie. One that was killed is not while a thread of it ends: until then its files are
// open, and their locks held.
func (p process) gone() bool {
	s, ok := p.stat()
	return !ok || s.state == "X" || s.state == "Z" && s.threads <= 1
}

// stat is what the kernel says of the process; ok is false if it knows no such process.
func (p process) stat() (s procStat, ok bool) {
	s, err := readStat(p.PID)
	return s, p.PID != 0 && err == nil && s.start == p.Start
}

// signal reaches the process or nobody. One that is gone is no error.
func (p process) signal(sig unix.Signal) error {
	if p.PID == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// end sends sig and waits until the process is gone or ctx ends.
func (p process) end(ctx context.Context, sig unix.Signal) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	return poll(ctx, p.gone)
}

// endWithin is end with a limit, after which the process is killed; late says that it had to be. The process is gone unless err is set.
func (p process) endWithin(ctx context.Context, limit time.Duration, sig unix.Signal) (late, err error) {
	polite, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = p.end(polite, sig)
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return nil, err
	}
	killed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return fmt.Errorf("it was still there after %s and was killed", limit), p.end(killed, unix.SIGKILL)
}

// poll returns nil once done holds, or ctx's error.
func poll(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// marked lists the processes that carry the lab's id and started no earlier than since, this one excepted.
func marked(id string, since uint64) (holders, others []process) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !hasVar(env, idVar, id) { // gone, a zombie, a kernel thread, or a stranger
			continue
		}
		p, err := findProcess(pid)
		switch {
		case err != nil || p.Start < since || !p.alive():
		case hasVar(env, roleVar, roleHolder):
			holders = append(holders, p)
		default:
			others = append(others, p)
		}
	}
	return holders, others
}

func hasVar(environ []byte, name, value string) bool {
	for _, v := range bytes.Split(environ, []byte{0}) {
		if string(v) == name+"="+value {
			return true
		}
	}
	return false
}

// ticksNow is the present in the unit of process.Start.
func ticksNow() (uint64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	const hz = 100 // USER_HZ, the same on every architecture that Go runs on
	return uint64(now.Nano()) / uint64(time.Second/hz), nil
}

// daemon says how to start a process that outlives its parent.
type daemon struct {
	args  []string
	env   []string // whole
	log   string   // file for stdout and stderr, appended to
	in    *place   // nil: where we are
	flags uintptr  // CLONE_NEW… to start it in new namespaces
	ready bool     // it tells on readyFile that it is ready, and start waits for that
}

// child is a started daemon; exited is closed when it has ended, as long as its parent lives.
type child struct {
	process
	exited <-chan struct{}
}

// start returns once the daemon runs, or is ready if it tells so. On failure nothing of it is left.
func (d daemon) start(ctx context.Context) (child, error) {
	out, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return child{}, fmt.Errorf("open log: %w", err)
	}
	defer out.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return child{}, fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	cmd := d.command(out, w)
	err = d.place().run(cmd.Start)
	_ = w.Close() // ours; the daemon has its own
	if err != nil {
		return child{}, fmt.Errorf("start %s: %w", d.args[0], err)
	}
	c, err := adopt(cmd)
	if err != nil {
		return child{}, err
	}
	if d.ready {
		err = c.waitReady(ctx, r)
	}
	if err != nil {
		return child{}, fmt.Errorf("start %s: %w%s", strings.Join(d.args, " "), err, tail(d.log))
	}
	return c, nil
}

func (d daemon) place() *place {
	if d.in == nil {
		return &place{}
	}
	return d.in
}

func (d daemon) command(out, ready *os.File) *exec.Cmd {
	cmd := exec.Command(d.args[0], d.args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = d.env, out, out, "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: d.flags}
	if d.ready {
		cmd.ExtraFiles = []*os.File{ready}
	}
	return cmd
}

// adopt records who was started. Its goroutine reaps the process, however long that lives: it ends with it or with us.
func adopt(cmd *exec.Cmd) (child, error) {
	p, err := findProcess(cmd.Process.Pid) // even of one that has ended: it is not reaped yet
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its log says why it ended
		close(exited)
	}()
	return child{p, exited}, err
}

// waitReady waits for the line on the other end of r, and ends the process if it does not come.
func (c child) waitReady(ctx context.Context, r *os.File) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := r.SetReadDeadline(deadline); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line := make([]byte, 16)
	n, err := r.Read(line)
	if err == nil && string(line[:n]) == "ready\n" {
		return nil
	}
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("it is not ready: %w", ctx.Err())
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errors.New("it does not become ready")
	default:
		err = errors.New("it ended before it was ready")
	}
	return errors.Join(err, c.signal(unix.SIGKILL))
}

// sayReady is the daemon's side of waitReady.
func sayReady() error {
	f := os.NewFile(readyFile, "ready")
	_, err := f.WriteString("ready\n")
	return errors.Join(err, f.Close())
}

// tail is the end of a log as an error message shows it.
func tail(path string) string {
	const lines = 15
	b, err := os.ReadFile(path)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "\nthe end of its log:\n  " + strings.Join(all, "\n  ")
}
