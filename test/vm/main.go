// Command vm runs a program as root under Debian's stock kernel, in a virtual machine that lasts as long as the program does.
// It exists for what the kernel of a machine for development may lack: kinds of tunnel and link, loadable modules.
//
//	go run ./test/vm ip link add name t0 type dummy
//	go test -exec 'go run github.com/muslin-cni/muslin/test/vm -timeout 120s' -run '^TestVM' ./internal/rtnl
//
// Goals, and how they are met:
//
//  1. The program finds what it would find here: the guest's root is this machine's, shared file by file, with its folder, arguments and
//     environment. (By virtiofs, for Debian's cloud kernel has no other file system that a host can share.)
//  2. Nothing that it does reaches this machine: the share is read-only at its source, and a tmpfs above it takes what the guest writes.
//     The guest has no network device but those that it makes.
//  3. Nothing is left behind, even if this process is killed: its children die with it, and all that they share with it are memory and sockets
//     without a name. The one thing that stays is the kernel, in the user's cache folder.
//  4. It ends: booting and running have a deadline each. A failure names its stage, shows what the guest last said, and how to go on.
//
// The status is the program's own; 124 if it ran out of time, 125 if there was no machine to run it in, as for timeout(1). Standard output and
// standard error are the program's own; its standard input is empty.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Statuses that are not the program's own, as timeout(1) has them; 2 is how package flag leaves.
const (
	statusUsage   = 2
	statusTimeout = 124
	statusFailed  = 125
)

func main() {
	runtime.LockOSThread() // the kernel ends our children with the thread that started them, so that must not end before us
	switch os.Args[0] {
	case guestInit:
		guest()
	case shareName:
		fmt.Fprintln(os.Stderr, share())
		os.Exit(statusFailed)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	status, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
	os.Exit(status)
}

// run does what the command line says and returns the status to leave with.
func run(ctx context.Context, args []string) (int, error) {
	m := machine{stdout: os.Stdout, stderr: os.Stderr}
	flags := flag.NewFlagSet("vm", flag.ExitOnError)
	flags.DurationVar(&m.runLimit, "timeout", 5*time.Minute, "how long the program may run")
	flags.DurationVar(&m.bootLimit, "boot", 2*time.Minute, "how long the machine may take to boot: 5s, if this one has nothing else to do")
	flags.IntVar(&m.cpus, "cpus", 2, "processors of the machine")
	flags.IntVar(&m.memory, "memory", 1024, "its memory in MiB, half of which may hold files that it writes")
	accel := flags.String("accel", "auto", "kvm, tcg (emulation), or auto: kvm where that boots the kernel")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: vm [flags] [--] program [arguments]")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return statusUsage, err
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return statusUsage, nil
	}
	if err := m.prepare(ctx, *accel); err != nil {
		return statusFailed, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return statusFailed, fmt.Errorf("find the folder to run in: %w", err)
	}
	// NETTEST tells tests where they are, see internal/nettest.
	status, err := m.run(ctx, job{Args: flags.Args(), Env: append(os.Environ(), "NETTEST=vm"), Dir: dir})
	switch {
	case errors.Is(err, errRunLimit):
		return statusTimeout, err
	case err != nil:
		return statusFailed, err
	}
	return status, nil
}

// prepare finds or fetches what the machine is made of.
func (m *machine) prepare(ctx context.Context, accel string) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("this machine is %s: programs of it do not run in a machine of Debian's amd64 kernel", runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		return errors.New("run this as root: it shares the machine's files with the guest")
	}
	if _, err := exec.LookPath(qemu); err != nil {
		return fmt.Errorf("%w: sudo make deps installs it", err)
	}
	caches, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find a folder for the kernel: %w", err)
	}
	cache := filepath.Join(caches, "muslin-vm")
	unlock, err := lockFolder(cache)
	if err != nil {
		return err
	}
	defer unlock()
	if m.kernel, err = fetchKernel(ctx, cache); err != nil {
		return err
	}
	m.accel = accel
	if accel == "auto" {
		m.accel, err = m.bestAccel(ctx, cache)
	}
	return err
}
