// Package attachlock holds the lock of a host interface while its pod is attached or detached.
//
// The lock is an flock on a file that is named after the interface and exists while it is held. Whoever makes or removes the
// interface holds it, and the agent does not judge an interface whose lock is held. The kernel drops an flock with its process, so
// that a crash leaves a file behind but no lock.
package attachlock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The pauses between attempts grow from the first to the second: a flock that waits in the kernel cannot be given a deadline.
const (
	firstPause = 500 * time.Microsecond
	lastPause  = 20 * time.Millisecond
)

// Lock is a held lock. One owner at a time.
type Lock struct{ file *os.File }

// Acquire waits until the interface's lock is ours or ctx ends. It makes the folder (mode 0700) where it is missing.
func Acquire(ctx context.Context, dir, ifName string) (*Lock, error) {
	path, err := pathOf(dir, ifName)
	if err != nil {
		return nil, err
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		lock, err := try(path)
		if errors.Is(err, fs.ErrNotExist) {
			if err = makeDir(dir); err == nil {
				lock, err = try(path)
			}
		}
		if lock != nil || err != nil {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: another process holds it: %w", path, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// Held reports whether a process holds the interface's lock now.
func Held(dir, ifName string) (bool, error) {
	path, err := pathOf(dir, ifName)
	if err != nil {
		return false, err
	}
	for {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("open lock: %w", err)
		}
		err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
		named := current(f, path)
		_ = f.Close() // and with it goes our own lock
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("try lock %s: %w", path, err)
		case named:
			return false, nil
		}
	}
}

// File is the open lock. A process that inherits it holds the lock too, until it ends.
func (l *Lock) File() *os.File { return l.file }

// Release lets go of the lock and removes its file. (One that cannot be removed does no harm: it is no lock.)
func (l *Lock) Release() {
	// The file goes first: who waits on it notices that it has no name any more, and makes the next one.
	_ = os.Remove(l.file.Name())
	_ = l.file.Close()
}

// Sweep removes the files of locks that nobody holds: processes that were killed left them. It goes on past what fails.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep locks: %w", err)
	}
	var errs []error
	for _, e := range entries {
		lock, err := try(filepath.Join(dir, e.Name()))
		if lock != nil {
			lock.Release()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// try returns the lock, or nil when another process holds it.
func try(path string) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if current(f, path) {
			return &Lock{file: f}, nil
		}
		_ = f.Close() // removed by its last owner between our open and our lock
	}
}

// current reports whether path still names the file.
func current(f *os.File, path string) bool {
	have, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(have, named)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make lock folder: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make lock folder: %w", err)
	}
	return nil
}

func pathOf(dir, ifName string) (string, error) {
	if ifName == "" || ifName == "." || ifName == ".." || strings.Contains(ifName, "/") {
		return "", fmt.Errorf("lock interface %q: not an interface name", ifName)
	}
	return filepath.Join(dir, ifName), nil
}
