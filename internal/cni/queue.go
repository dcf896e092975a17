package cni

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// kernelQueue is the line in which plugins stand that are about to change network devices. The kernel does one such change at a time, under a mutex on
// which who waits spins as long as its holder runs: many plugins at once take the processors from each other and from the agent. In the line they
// sleep. It is for speed alone. Who is stopped while it is his turn holds the others up for their patience, and then they go on without; whoever
// dies leaves the line.
type kernelQueue struct {
	path     string        // of the file whose flock is the turn
	patience time.Duration // after which it is nobody's turn any more
}

// do calls f when it is this process's turn.
func (q kernelQueue) do(f func()) {
	leave := q.enter()
	defer leave()
	f()
}

// enter returns when it is this process's turn, or it has waited long enough, or there can be no line.
func (q kernelQueue) enter() (leave func()) {
	file, err := unix.Open(q.path, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o600) // os.OpenFile offers each file to the poller
	if err != nil {
		return func() {} // what is wrong with the folder has been said where the attach lock is in it
	}
	closed := func() { _ = unix.Close(file) }
	if err := unix.Flock(file, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return closed
	}
	done := make(chan struct{})
	go func() { // the kernel gives a flock no deadline; it ends with the turn, or with the process
		for errors.Is(unix.Flock(file, unix.LOCK_EX), unix.EINTR) {
		}
		close(done)
	}()
	late := time.NewTimer(q.patience)
	defer late.Stop()
	select {
	case <-done:
		return closed
	case <-late.C:
		go func() { <-done; closed() }()
		return func() {}
	}
}
