package attachlock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func acquire(t *testing.T, dir string) *Lock {
	t.Helper()
	l, err := Acquire(t.Context(), dir, "cali1")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func held(t *testing.T, dir string) bool {
	t.Helper()
	h, err := Held(dir, "cali1")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestAcquireMakesAPrivateFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "attach")
	l := acquire(t, dir)
	defer l.Release()
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v; want mode 0700", info, err)
	}
}

func TestAcquireGivesUpWhenTheContextEnds(t *testing.T) {
	dir := t.TempDir()
	l := acquire(t, dir)
	defer l.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Acquire(ctx, dir, "cali1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	other, err := Acquire(t.Context(), dir, "cali2")
	if err != nil {
		t.Fatalf("another interface's lock: %v", err)
	}
	other.Release()
}

func TestHeldFollowsTheLock(t *testing.T) {
	dir := t.TempDir()
	if held(t, dir) {
		t.Error("held before it was made")
	}
	l := acquire(t, dir)
	if !held(t, dir) {
		t.Error("not held while it is")
	}
	l.Release()
	if held(t, dir) {
		t.Error("held after its release")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestAFileThatACrashLeftIsNoLock(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cali1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if held(t, dir) {
		t.Error("held by nobody")
	}
	acquire(t, dir).Release()
}

func TestOneOwnerAtATimeThoughTheFileComesAndGoes(t *testing.T) {
	const owners, rounds = 8, 20
	dir := t.TempDir()
	var inside atomic.Int32
	var wg sync.WaitGroup
	for range owners {
		wg.Go(func() {
			for range rounds {
				l, err := Acquire(t.Context(), dir, "cali1")
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d owners at once", n)
				}
				inside.Add(-1)
				l.Release()
			}
		})
	}
	wg.Wait()
}

func TestNamesThatAreNoInterfaceAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../cali1", "a/b"} {
		if l, err := Acquire(t.Context(), t.TempDir(), name); err == nil {
			t.Errorf("%q was accepted", name)
			l.Release()
		}
		if _, err := Held(t.TempDir(), name); err == nil {
			t.Errorf("%q was looked for", name)
		}
	}
}

func TestSweepRemovesWhatACrashLeftAndNoLock(t *testing.T) {
	dir := t.TempDir()
	l := acquire(t, dir)
	defer l.Release()
	crashed := filepath.Join(dir, "cali2")
	if err := os.WriteFile(crashed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(crashed); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of the crash: %v", err)
	}
	if !held(t, dir) {
		t.Error("the lock is lost")
	}
	if err := Sweep(filepath.Join(dir, "none")); err != nil {
		t.Errorf("a folder that does not exist: %v", err)
	}
}
