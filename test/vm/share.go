package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

const (
	virtiofsd   = "/usr/lib/qemu/virtiofsd" // of Debian's qemu-system-common; not in any PATH
	shareName   = "muslin-vm-share"         // argument zero of this program when it is share
	shareSocket = 3                         // descriptor on which share listens
)

// startShare starts a process that shares this machine's files, until ctx ends or the one user of the returned socket closes it.
func startShare(ctx context.Context) (*exec.Cmd, *os.File, error) {
	if _, err := os.Stat(virtiofsd); err != nil {
		return nil, nil, fmt.Errorf("share files: %w: sudo make deps installs it", err)
	}
	listener, socket, err := listenAndDial()
	if err != nil {
		return nil, nil, fmt.Errorf("share files: make socket: %w", err)
	}
	defer listener.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{shareName}
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Pdeathsig:    unix.SIGKILL,
		Unshareflags: unix.CLONE_NEWNS, // and no mount in there spreads
	}
	if err := cmd.Start(); err != nil {
		_ = socket.Close()
		return nil, nil, fmt.Errorf("share files: %w", err)
	}
	return cmd, socket, nil
}

// share becomes virtiofsd in mounts of its own, every one of which is read-only: whatever the guest asks for, nothing here changes.
func share() error {
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &readOnly); err != nil {
		return fmt.Errorf("make mounts read-only: %w", err)
	}
	// cache=always: what the guest has read it does not ask for again; files that change here meanwhile look as they were.
	// sandbox=chroot: the mounts are a sandbox already.
	args := []string{"virtiofsd", "-f", fmt.Sprintf("--fd=%d", shareSocket), "-o", "source=/,cache=always,sandbox=chroot", "-o", "log_level=err"}
	return fmt.Errorf("start virtiofsd: %w", unix.Exec(virtiofsd, args, os.Environ()))
}

// listenAndDial returns a listening socket and one that is connected to it. virtiofsd wants to accept, so a pair of sockets will not do; the name,
// in the abstract namespace, goes with the listener.
func listenAndDial() (listener, dialled *os.File, err error) {
	listener, err = unixSocket()
	if err != nil {
		return nil, nil, err
	}
	dialled, err = unixSocket()
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	addr := &unix.SockaddrUnix{Name: "@muslin-vm-" + rand.Text()}
	err = unix.Bind(int(listener.Fd()), addr)
	if err == nil {
		err = unix.Listen(int(listener.Fd()), 1)
	}
	if err == nil {
		err = unix.Connect(int(dialled.Fd()), addr)
	}
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close(), dialled.Close())
	}
	return listener, dialled, nil
}

func unixSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}
