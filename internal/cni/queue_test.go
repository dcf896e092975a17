package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// elsewhere holds the turn of a queue, as another process does.
func elsewhere(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestQueueHasOneAtATime(t *testing.T) {
	q := kernelQueue{path: filepath.Join(t.TempDir(), "rtnl.lock"), patience: time.Minute}
	other := elsewhere(t, q.path)
	var released atomic.Bool
	done := make(chan bool)
	go func() { q.do(func() { done <- released.Load() }) }()
	nettest.Eventually(t, func() error { return waitsFor(q.path) })
	released.Store(true)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if inTurn := <-done; !inTurn {
		t.Error("two had the turn at the same time")
	}
}

// waitsFor is nil once somebody waits for the flock of a file: the kernel lists him (proc(5), /proc/locks) behind an arrow.
func waitsFor(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return err
	}
	return waitsIn(string(locks), info)
}

func TestWhoHasNoTurnGoesOnAfterItsPatience(t *testing.T) {
	q := kernelQueue{path: filepath.Join(t.TempDir(), "rtnl.lock"), patience: 10 * time.Millisecond}
	other := elsewhere(t, q.path)
	ran := false
	q.do(func() { ran = true })
	if !ran {
		t.Error("it did not go on")
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	patient := kernelQueue{path: q.path, patience: time.Minute}
	patient.do(func() { ran = false }) // the one that had lost its patience does not keep the turn that it got after all
	if ran {
		t.Error("the turn was never free again")
	}
}

func TestQueueThatCannotBeHoldsNobodyUp(t *testing.T) {
	ran := false
	kernelQueue{path: filepath.Join(t.TempDir(), "no", "folder"), patience: time.Minute}.do(func() { ran = true })
	if !ran {
		t.Error("it did not go on")
	}
}

// TestPairIsMadeInOneMessage watches the devices of both namespaces: what the kernel tells first of either side is whole, so nothing was renamed,
// moved or given its MAC afterwards. (The pod's side cannot be up yet: the kernel makes it first, and it has no other end then.)
func TestPairIsMadeInOneMessage(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	(&fakeAgent{}).start(n)
	n.write("/var/lib/calico/mtu", "1390\n")
	host, pod := watchLinks(t, n.NS), watchLinks(t, p.NS)
	n.mustAdd(conf{}, p)
	first := map[string]*netlink.LinkAttrs{}
	for _, told := range host.untilMarker() {
		if first[told.Name] == nil {
			first[told.Name] = told
		}
	}
	if cali := first["calic1"]; len(first) != 1 || cali == nil || cali.MTU != 1390 || cali.HardwareAddr.String() != hostside.MAC || cali.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("on the host the kernel told of %+v, want calic1 alone: up, with MTU and MAC", first)
	}
	inside := pod.untilMarker()
	if len(inside) == 0 {
		t.Fatal("in the pod the kernel told of nothing")
	}
	for _, told := range inside {
		if told.Name != "eth0" || told.MTU != 1390 || told.HardwareAddr.String() != inside[0].HardwareAddr.String() {
			t.Errorf("in the pod the kernel told of %+v, want eth0 with its MTU and one MAC", told)
		}
	}
}

// linkWatch is what the kernel tells of the devices of a namespace.
type linkWatch struct {
	t    *testing.T
	ns   *nettest.NS
	told chan netlink.LinkUpdate
}

func watchLinks(t *testing.T, ns *nettest.NS) *linkWatch {
	t.Helper()
	w := &linkWatch{t: t, ns: ns, told: make(chan netlink.LinkUpdate, 1000)}
	done := make(chan struct{})
	h := ns.Handle()
	if err := netlink.LinkSubscribeWithOptions(w.told, done, netlink.LinkSubscribeOptions{Namespace: &h}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(done) })
	return w
}

// marker is an MTU that nothing else gives to lo.
const marker = 12345

// untilMarker is what was told so far of devices but lo: it changes that one, and waits until the kernel says so.
func (w *linkWatch) untilMarker() (out []*netlink.LinkAttrs) {
	w.t.Helper()
	w.ns.Exec("ip", "link", "set", "lo", "mtu", fmt.Sprint(marker))
	deadline := time.After(nettest.Patience(10 * time.Second))
	for {
		select {
		case u := <-w.told:
			switch at := u.Attrs(); {
			case at.Name != "lo":
				out = append(out, at)
			case at.MTU == marker:
				return out
			}
		case <-deadline:
			w.t.Fatal("the kernel does not tell of the marker")
		}
	}
}

// TestPluginsStandInLine holds the turn while a plugin runs: it makes no device before it is its turn.
func TestPluginsStandInLine(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "")
	(&fakeAgent{}).start(n)
	n.mustAdd(conf{}, newPod(t, "c0", "")) // makes the folder
	var other *os.File
	n.do(func() { other = elsewhere(t, attach.QueueLock) })
	host := watchLinks(t, n.NS)
	added := make(chan error, 1)
	go func() {
		_, err := n.add(conf{plugin: hurried}, p)
		added <- err
	}()
	nettest.Eventually(t, func() (err error) {
		n.do(func() { err = waitsFor(attach.QueueLock) })
		return err
	})
	of0 := func(a *netlink.LinkAttrs) bool { return a.Name == "calic0" } // of whose carrier the kernel may tell late
	if told := slices.DeleteFunc(host.untilMarker(), of0); len(told) != 0 {
		t.Errorf("while it waited in line the kernel told of %+v", told[0])
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-added; err != nil {
		t.Errorf("ADD: %v", err)
	}
}

// waitsIn is nil if a line of /proc/locks is of somebody who waits for that file.
func waitsIn(locks string, file os.FileInfo) error {
	inode := fmt.Sprintf(":%d ", file.Sys().(*syscall.Stat_t).Ino)
	for line := range strings.Lines(locks) {
		if strings.Contains(line, "-> FLOCK") && strings.Contains(line, inode) {
			return nil
		}
	}
	return errors.New("nobody waits for the turn")
}
