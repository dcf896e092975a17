package cni

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
)

// loseWay visits a network namespace and returns to none.
func loseWay(path string) error {
	ns, err := openNetns(path)
	if err != nil {
		return err
	}
	defer ns.close()
	_ = ns.host.Close()
	if ns.host, err = os.Open(os.DevNull); err != nil {
		return err
	}
	return ns.visit(func() error { return nil })
}

// TestWhoCannotReturnFromThePodEnds has a process fail to come back from a pod's network namespace: it does nothing more, and says why.
func TestWhoCannotReturnFromThePodEnds(t *testing.T) {
	p := newPod(t, "c1", "")
	out, err := exec.Command(filepath.Join(os.Getenv(binEnv), lost), p.Path()).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("it ended with %v, want exit code 1", err)
	}
	var told types.Error
	if err := json.Unmarshal(out, &told); err != nil || told.Code != attach.CodeKernel || !strings.Contains(told.Msg, "return from network namespace "+p.Path()) {
		t.Errorf("it said %s", out)
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
