package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestClusterEndsWithItsHolder lets go of a cluster as the kernel does when its holder is killed.
func TestClusterEndsWithItsHolder(t *testing.T) {
	w := bareWorld(t)
	if err := w.leash.Close(); err != nil {
		t.Fatal(err)
	}
	w.eventually("processes and control groups to go", w.gone)
}

// TestKilledClusterLeavesNothingToRun kills the keeper, which then can remove nothing itself.
func TestKilledClusterLeavesNothingToRun(t *testing.T) {
	w := bareWorld(t)
	pid, err := w.keeperPID()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.eventually("processes to go", func() error { return errors.Join(w.processes()...) })
}

// bareWorld is a cluster of one node without Muslin; after the test nothing of it may be left.
func bareWorld(t *testing.T) world {
	t.Helper()
	needKubernetes(t)
	c, err := up(t.Context(), clusterName(), options{Nodes: 1, ProxyMode: "iptables", Held: true})
	if err != nil {
		t.Fatal(err)
	}
	w := world{T: t, cluster: c, diary: new(diary)}
	t.Cleanup(w.end)
	if err := waitFor(t.Context(), time.Minute, "a kubelet", func() error {
		if len(w.processes()) == 0 {
			return errors.New("no process bears the mark")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

// gone says what is left that costs a machine something.
func (w world) gone() error {
	errs := w.processes()
	for _, g := range w.Groups {
		if _, err := os.Stat(w.groupRoot(g)); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, errors.New("left: control group "+w.groupRoot(g)))
		}
	}
	return errors.Join(errs...)
}

// processes has an error for each process of the cluster.
func (w world) processes() []error {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	var errs []error
	if err != nil {
		errs = append(errs, err)
	}
	for _, file := range files {
		if env, err := os.ReadFile(file); err == nil && strings.Contains(string(env), markVar+"="+w.Name+"\x00") {
			errs = append(errs, errors.New("left: process "+filepath.Dir(file)))
		}
	}
	return errs
}
