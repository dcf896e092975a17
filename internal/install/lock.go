package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockTimeout bounds the wait for another installer: one goes through its files in a second or two.
const lockTimeout = time.Minute

// alone does something while no other installer works on this host, in whatever container: what one has begun to write, another would sweep. The
// folder of the network configuration is the lock, so that none is left behind.
func (i *Installer) alone(ctx context.Context, do func() error) (err error) {
	if err := os.MkdirAll(i.s.NetDir, 0o755); err != nil {
		return fmt.Errorf("make the folder of network configurations: %w", err)
	}
	dir, err := os.Open(i.s.NetDir)
	if err != nil {
		return fmt.Errorf("lock the host's files: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }() // which ends the lock
	for give := time.Now().Add(lockTimeout); ; {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return do()
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR), time.Now().After(give):
			return fmt.Errorf("lock the host's files, which another installer may be at work on: %s: %w", filepath.Clean(i.s.NetDir), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
