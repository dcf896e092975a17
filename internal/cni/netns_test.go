package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// loseWay visits a network namespace in one of the ways that there are, and returns to none.
func loseWay(path, way string) error {
	ns, err := openNetns(path)
	if err != nil {
		return err
	}
	defer ns.close()
	_ = ns.host.Close()
	if ns.host, err = os.Open(os.DevNull); err != nil {
		return err
	}
	if way == "socket" {
		_, err = ns.socket()
		return err
	}
	return ns.visit(func() error { return nil })
}

// TestWhoCannotReturnFromThePodEnds has a process fail to come back from a pod's network namespace: it does nothing more, and says why.
func TestWhoCannotReturnFromThePodEnds(t *testing.T) {
	p := newPod(t, "c1", "")
	for _, way := range []string{"visit", "socket"} {
		out, err := exec.Command(filepath.Join(os.Getenv(binEnv), lost), p.Path(), way).Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%s: it ended with %v, want exit code 1", way, err)
		}
		var told types.Error
		if err := json.Unmarshal(out, &told); err != nil || told.Code != attach.CodeKernel || !strings.Contains(told.Msg, "return from network namespace "+p.Path()) {
			t.Errorf("%s: it said %s", way, out)
		}
	}
}

// TestSocketIsOpenedInsideAndNoThreadStaysThere opens sockets from many goroutines, while the runtime has every reason to take threads away from them.
func TestSocketIsOpenedInsideAndNoThreadStaysThere(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	p := newPod(t, "c1", "")
	ns, err := openNetns(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	nettest.Eventually(t, func() error {
		if n := threadsIn(t, ns); n > 0 {
			return fmt.Errorf("%d threads that made the pod's namespace have not ended", n)
		}
		return nil
	})
	var g errgroup.Group
	ctx, stop := context.WithCancel(t.Context())
	disturbers := disturb(ctx)
	for range 8 {
		g.Go(func() error {
			for range 1000 {
				if err := socketOf(ns); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if n := threadsIn(t, ns); n > 0 {
		t.Errorf("%d threads of this process are in the pod's namespace", n)
	}
	stop()
	disturbers.Wait()
}

// disturb collects garbage and keeps processors busy until ctx ends.
func disturb(ctx context.Context) *sync.WaitGroup {
	var g sync.WaitGroup
	g.Go(func() {
		for ctx.Err() == nil {
			runtime.GC()
		}
	})
	for range 8 {
		g.Go(func() {
			for ctx.Err() == nil {
				runtime.Gosched()
			}
		})
	}
	return &g
}

// socketOf opens a socket in a namespace and looks where it is.
func socketOf(ns *netns) error {
	fd, err := ns.socket()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	there, err := netnsOf(fd)
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }()
	have, err := there.Stat()
	if err != nil {
		return err
	}
	want, err := ns.file.Stat()
	if err == nil && !os.SameFile(have, want) {
		err = errors.New("a socket is in another namespace")
	}
	return err
}

// threadsIn counts this process's threads that are in a namespace. The first one does not count: it cannot end, and stays where the test that used it for a namespace left it.
func threadsIn(t *testing.T, ns *netns) (n int) {
	t.Helper()
	want, err := ns.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	first := fmt.Sprintf("/proc/self/task/%d/ns/net", os.Getpid())
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatalf("list threads: %v, %v", threads, err)
	}
	for _, path := range threads {
		have, err := os.Stat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
		if err == nil && path != first && os.SameFile(have, want) {
			n++
		}
	}
	return n
}

func TestSocketInWhatIsNoNamespaceIsRefused(t *testing.T) {
	here, err := currentNetns()
	if err != nil {
		t.Fatal(err)
	}
	none, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	ns := &netns{file: none, host: here}
	defer ns.close()
	if _, err := ns.socket(); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), os.DevNull) {
		t.Errorf("got %v", err)
	}
}

func TestVisitorReturns(t *testing.T) {
	runtime.LockOSThread() // so that both looks are at one thread
	defer runtime.UnlockOSThread()
	p := newPod(t, "c1", "")
	before := current(t)
	ns, err := openNetns(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	inside := ""
	wrong := errors.New("something is wrong")
	err = ns.visit(func() error {
		inside = current(t)
		return wrong
	})
	if !errors.Is(err, wrong) {
		t.Errorf("it returned %v", err)
	}
	if after := current(t); inside == before || after != before {
		t.Errorf("before, inside and after it was in %s, %s and %s", before, inside, after)
	}
}

// current names the network namespace of the calling thread.
func current(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}
