package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
)

// netns is a pod's network namespace, held open so that it cannot become another one under the same path; and the host's, to return to.
type netns struct{ file, host *os.File }

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
	host, err := currentNetns()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace %q: find the network namespace of the host: %w", path, err), f.Close())
	}
	ns := &netns{file: f, host: host}
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
	ours, err := n.host.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(theirs, ours) {
		return errors.New("it is the host's own")
	}
	return nil
}

// currentNetns opens the calling thread's network namespace, by way of a socket in it (ioctl SIOCGSKNS, socket(7)). /proc would do as well, but costs
// whoever waits for a plugin: when a process ends of which a thread had an entry looked up below /proc, the entry is cleared away twice, for the thread
// and for the process, and the second spins until the first is done. On busy processors that was seen to take 3 ms of each ADD.
func currentNetns() (*os.File, error) {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	return netnsOf(socket)
}

// netnsOf opens the network namespace that a socket is in.
func netnsOf(socket int) (*os.File, error) {
	fd, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("ask for a socket's namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), "network namespace"), nil
}

func (n *netns) fd() int { return int(n.file.Fd()) }

func (n *netns) close() { // they were only held open
	_ = n.file.Close()
	_ = n.host.Close()
}

// socket opens a socket for rtnetlink(7) inside the namespace.
func (n *netns) socket() (int, error) {
	fd, failed, lost := socketIn(uintptr(n.fd()), n.host.Fd())
	if lost != 0 {
		n.stranded(lost)
	}
	if failed != 0 {
		return -1, fmt.Errorf("open netlink socket in network namespace %s: %w", n.file.Name(), failed)
	}
	return int(fd), nil
}

// socketIn opens a socket for rtnetlink(7) in one network namespace and goes back to the other. lost is the error if there is no way back.
//
// What is done in another namespace must be done on one thread, and runtime.LockOSThread starts a second one each time that it is used first: a tenth of what a plugin does
// by itself. Here nothing can take the thread away in between. The runtime does that where a function looks whether its stack is large enough, and this one does not; where a system call
// tells it that it may take long, and raw ones do not; and by a signal, of which none gets through. A process is forked by the same means (forkAndExecInChild in package syscall).
//
//go:nosplit
//go:norace
func socketIn(there, back uintptr) (fd uintptr, failed, lost syscall.Errno) {
	all, before := ^uint64(0), uint64(0) // sets of signals, as the kernel has them
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&before)), unsafe.Sizeof(all), 0, 0)
	if _, _, failed = syscall.RawSyscall(unix.SYS_SETNS, there, unix.CLONE_NEWNET, 0); failed == 0 {
		fd, _, failed = syscall.RawSyscall(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		_, _, lost = syscall.RawSyscall(unix.SYS_SETNS, back, unix.CLONE_NEWNET, 0)
	}
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&before)), 0, unsafe.Sizeof(before), 0, 0)
	return fd, failed, lost
}

// visit calls f inside the namespace, on the calling thread. What f opens there stays open; f must not wait for other goroutines. (A goroutine with a thread of its own, which is never
// used again, would do without the way back. It costs the process two threads more, and a process that lives for milliseconds feels them.)
func (n *netns) visit(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.file.Name(), err)
	}
	err := f()
	if back := unix.Setns(int(n.host.Fd()), unix.CLONE_NEWNET); back != nil {
		n.stranded(back)
	}
	return err
}

// stranded ends the process: what this thread would do for the host from now on, it would do in the pod. The runtime's DEL takes back what there is.
func (n *netns) stranded(err error) {
	told := fmt.Sprintf("return from network namespace %s to the host's: %v", n.file.Name(), err)
	_ = types.NewError(attach.CodeKernel, told, "the pod is tried again by itself").Print() // if that fails, the runtime has the exit code
	os.Exit(1)
}
