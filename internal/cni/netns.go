package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// netns is a pod's network namespace, held open so that it cannot become another one under the same path.
type netns struct{ file *os.File }

// errNoNetns says that a path names no network namespace: the pod is gone.
var errNoNetns = errors.New("not a network namespace")

// openNetns opens a namespace by its path. It refuses the one that this process is in, where an interface of ours would be the
// machine's own.
func openNetns(path string) (*netns, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("open network namespace %q: %w", path, errNoNetns)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ns := &netns{file: f}
	if err := ns.check(); err != nil {
		ns.close()
		return nil, fmt.Errorf("open network namespace %q: %w", path, err)
	}
	return ns, nil
}

func (n *netns) check() error {
	var fsInfo unix.Statfs_t
	if err := unix.Fstatfs(n.fd(), &fsInfo); err != nil {
		return err
	}
	if fsInfo.Type != unix.NSFS_MAGIC {
		return errNoNetns // an empty file: what is left of a mount point
	}
	kind, err := unix.IoctlRetInt(n.fd(), unix.NS_GET_NSTYPE)
	if err != nil {
		return err
	}
	if kind != unix.CLONE_NEWNET {
		return errNoNetns
	}
	theirs, err := n.file.Stat()
	if err != nil {
		return err
	}
	ours, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if os.SameFile(theirs, ours) {
		return errors.New("it is the host's own")
	}
	return nil
}

func (n *netns) fd() int { return int(n.file.Fd()) }

func (n *netns) close() { _ = n.file.Close() } // it was only held open

// run calls f on a thread inside the namespace. The thread never returns to another one: it ends with f.
func (n *netns) run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", n.file.Name(), err)
			return
		}
		done <- f()
	}()
	return <-done
}
