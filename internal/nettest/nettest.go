// Package nettest gives tests private network namespaces on the real kernel.
//
// Nothing here changes the namespace that the test was started in: every function that enters another one does so on a thread
// of its own, which the runtime throws away afterwards.
package nettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Deadlines of this package. They are generous, since they only bound what goes wrong.
const (
	execTimeout = 30 * time.Second
	waitTimeout = 10 * time.Second
	pollPause   = 2 * time.Millisecond
)

// NS is a private network namespace. It lives until the test ends. All methods may be called concurrently.
type NS struct {
	t testing.TB
	h netns.NsHandle
}

// New makes a namespace with the loopback device up, and removes it when the test ends. Without root the test is skipped,
// see Need.
func New(t testing.TB) *NS {
	t.Helper()
	Need(t, "root")
	ns := &NS{t: t}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		h, err := netns.Get()
		ns.h = h
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.h.Close() })
	ns.Exec("ip", "link", "set", "lo", "up")
	return ns
}

// onThread runs f on a thread of its own and waits for it. The thread is never given back.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errLeft
		defer func() { done <- err }()
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err = f()
	}()
	return <-done
}

// errLeft says that a function ended its goroutine instead of returning, as testing's FailNow does.
var errLeft = errors.New("function did not return")

// Do runs f inside the namespace and waits for it. Goroutines that f starts are outside. If f calls t.FailNow or t.SkipNow,
// the test ends as usual.
func (ns *NS) Do(f func()) {
	ns.t.Helper()
	err := onThread(func() error {
		if err := netns.Set(ns.h); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		f()
		return nil
	})
	switch {
	case err == nil:
	case errors.Is(err, errLeft) && ns.t.Skipped():
		ns.t.SkipNow()
	case errors.Is(err, errLeft):
		ns.t.FailNow()
	default:
		ns.t.Fatal(err)
	}
}

// Handle returns the namespace as netns knows it. It is closed when the test ends.
func (ns *NS) Handle() netns.NsHandle { return ns.h }

// Path returns a file that stands for the namespace, for other processes too, as long as the test runs.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.h)) }

// Netlink returns a netlink handle on the namespace, which is closed when the test ends.
func (ns *NS) Netlink() *netlink.Handle {
	ns.t.Helper()
	h, err := netlink.NewHandleAt(ns.h, unix.NETLINK_ROUTE)
	if err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(h.Close)
	return h
}

// Try runs a program inside the namespace and returns its standard output. The error holds what it wrote to standard error.
func (ns *NS) Try(args ...string) (string, error) {
	ns.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience(execTimeout))
	defer cancel()
	var stdout, stderr bytes.Buffer
	var err error
	ns.Do(func() {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err = cmd.Run()
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// Exec is Try for programs that must succeed: it ends the test otherwise.
func (ns *NS) Exec(args ...string) string {
	ns.t.Helper()
	out, err := ns.Try(args...)
	if err != nil {
		ns.t.Fatal(err)
	}
	return out
}

// Index returns the index of a device of the namespace, and ends the test if there is none.
func (ns *NS) Index(dev string) int {
	ns.t.Helper()
	l, err := ns.Netlink().LinkByName(dev)
	if err != nil {
		ns.t.Fatalf("find device %s: %v", dev, err)
	}
	return l.Attrs().Index
}

// Pair joins two namespaces with a veth pair and sets both ends up. The namespaces may be the same.
func Pair(a *NS, nameA string, b *NS, nameB string) {
	a.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	h := a.Netlink()
	err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b.h)})
	if err != nil {
		a.t.Fatalf("make veth pair %s %s: %v", nameA, nameB, err)
	}
	a.Exec("ip", "link", "set", nameA, "up")
	b.Exec("ip", "link", "set", nameB, "up")
}

// Eventually calls f until it returns nil, and ends the test with its last error when ten seconds have passed (see Patience). Between two calls it pauses
// as long as the last one took, or a moment: what is waited for needs the processor too, above all where that is emulated.
func Eventually(t testing.TB, f func() error) {
	t.Helper()
	wait := Patience(waitTimeout)
	deadline := time.Now().Add(wait)
	for {
		began := time.Now()
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %v", wait, err)
		}
		<-time.After(max(pollPause, time.Since(began)))
	}
}
