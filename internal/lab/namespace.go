package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// place is a set of namespaces that a thread can enter. A nil file means that the caller's own is kept.
type place struct {
	net, mnt, uts *os.File
	hostname      string // not "": in a new UTS namespace with this name
}

// openPlace opens the namespaces of a process of ours.
func openPlace(p process) (*place, error) {
	pl := &place{}
	for _, ns := range []struct {
		name string
		file **os.File
	}{{"net", &pl.net}, {"mnt", &pl.mnt}, {"uts", &pl.uts}} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", p.PID, ns.name))
		if err != nil {
			pl.close()
			return nil, fmt.Errorf("open namespace: %w", err)
		}
		*ns.file = f
	}
	if !p.alive() { // only now is it sure that the files are not those of another process with its number
		pl.close()
		return nil, fmt.Errorf("process %d is gone", p.PID)
	}
	return pl, nil
}

// close lets go of the namespaces, which end if nobody else holds them.
func (p *place) close() {
	for _, f := range []*os.File{p.net, p.mnt, p.uts} {
		if f != nil {
			_ = f.Close() // only ever a handle: nothing to lose
		}
	}
}

// run calls fn on a thread that is in the place and waits for it. The thread ends with fn, since one that changed namespaces
// must not serve another goroutine. Processes and sockets that fn makes belong to the place; goroutines that it starts do not.
func (p *place) run(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := p.enter(); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func (p *place) enter() error {
	if p.uts != nil {
		if err := unix.Setns(int(p.uts.Fd()), unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("enter UTS namespace: %w", err)
		}
	}
	if p.hostname != "" {
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWUTS), unix.Sethostname([]byte(p.hostname))); err != nil {
			return fmt.Errorf("set host name %s: %w", p.hostname, err)
		}
	}
	if p.net != nil {
		if err := unix.Setns(int(p.net.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if p.mnt == nil {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2): a thread that shares root and cwd cannot change mounts
		return fmt.Errorf("part from the process's working directory: %w", err)
	}
	if err := unix.Setns(int(p.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	return nil
}

// netlink returns a handle that stays bound to the place's network namespace. The caller closes it.
func (p *place) netlink() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := p.run(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return h, nil
}

// sysctls writes settings below /proc/sys in the place's network namespace.
func (p *place) sysctls(settings map[string]string) error {
	return p.run(func() error {
		var errs []error
		for key, value := range settings {
			err := os.WriteFile("/proc/sys/"+key, []byte(value), 0)
			if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(key, "net/ipv6") {
				continue // a kernel without IPv6
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}
