package xtables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	killPause = 50 * time.Millisecond
	// startHz is the unit of a process's start in proc_pid_stat(5): USER_HZ, which is 100 on all that Go runs on.
	startHz = 100
	// stopRounds bounds the search for what a hanging program has started, which ends when a round finds nothing new.
	stopRounds = 20
)

// bounded calls go-iptables, which neither takes a context nor hands out its processes, so that the call returns soon after ctx is done or
// execTimeout is over: the processes that it has started are killed then, and the error says so. do runs on the calling thread, whose
// namespace counts. What others in this process start at such a moment is taken for the call's and killed too; an agent starts nothing else.
func bounded(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	since, err := startNow()
	if err != nil {
		return err
	}
	done, watched := make(chan struct{}), make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { watched <- killUntil(done, since) })
	err = do()
	close(done)
	if stop() {
		return err
	}
	errKill := <-watched // or it would meet the next call's processes
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("the program hangs and was killed: %w: %w", ctx.Err(), err), errKill)
}

// killUntil kills the processes that we have started, again and again: the call may be about to start its own only now.
func killUntil(done <-chan struct{}, since uint64) (err error) {
	for {
		if e := killChildren(since); e != nil {
			err = e
		}
		select {
		case <-done:
			return err
		case <-time.After(killPause):
		}
	}
}

// startNow is the start that a process would have that is started now.
func startNow() (uint64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return uint64(t.Nano()) / uint64(time.Second/startHz), nil
}

// killChildren kills our child processes that began at since or later, with all that these have started: what is left of them
// would hold the pipe on which the call waits. They are stopped first, and looked for again until there are no more: what a process
// starts just before it is killed could not be told from others' any more. (A process with a signal pending starts nothing: fork begins anew.)
func killChildren(since uint64) error {
	var doomed []int
	var errs []error
	for range stopRounds {
		all, err := descendants(since)
		if err != nil {
			return err
		}
		more := slices.DeleteFunc(all, func(pid int) bool { return slices.Contains(doomed, pid) })
		if len(more) == 0 {
			break
		}
		errs = append(errs, signal(more, unix.SIGSTOP))
		doomed = append(doomed, more...)
	}
	return errors.Join(append(errs, signal(doomed, unix.SIGKILL))...)
}

func signal(pids []int, s unix.Signal) error {
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("send %v to process %d: %w", s, pid, err))
		}
	}
	return errors.Join(errs...)
}

// descendants are our child processes that began at since or later, and theirs.
func descendants(since uint64) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	children := map[int][]int{}
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if p, ok := parseProcess(string(raw)); ok && p.start >= since {
			children[p.parent] = append(children[p.parent], p.id)
		}
	}
	out := slices.Clone(children[os.Getpid()])
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out, nil
}

// process is what /proc tells of one.
type process struct {
	id, parent int
	start      uint64 // since boot, in 1/startHz s
}

// parseProcess reads proc_pid_stat(5). The second field is a name in parentheses that may hold anything, also these.
func parseProcess(stat string) (p process, ok bool) {
	const parent, start = 4 - 3, 22 - 3 // numbers of the fields, counted from the first behind the name
	id, rest, opened := strings.Cut(stat, " (")
	end := strings.LastIndexByte(rest, ')')
	if !opened || end < 0 {
		return process{}, false
	}
	fields := strings.Fields(rest[end+1:])
	if len(fields) <= start {
		return process{}, false
	}
	var errs [3]error
	p.id, errs[0] = strconv.Atoi(id)
	p.parent, errs[1] = strconv.Atoi(fields[parent])
	p.start, errs[2] = strconv.ParseUint(fields[start], 10, 64)
	return p, errors.Join(errs[:]...) == nil
}
