package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Args[0] == keeperName {
		keep()
	}
	os.Exit(m.Run())
}

// world is a cluster with Muslin on it, for one test.
type world struct {
	*testing.T
	*cluster
	diary *diary
	about string // what runs here, in words: asked for while an agent runs
}

// within is the same world for a subtest.
func (w world) within(t *testing.T) world {
	w.T = t
	return w
}

// needKubernetes skips a test that `make test` is not meant to run.
func needKubernetes(t *testing.T) {
	t.Helper()
	if os.Getenv("MUSLIN_K8S") == "" {
		t.Skip("this needs a Kubernetes, which takes minutes and gigabytes: make test-k8s runs it")
	}
}

// clusterName is one for the clusters of this run of tests.
func clusterName() string { return fmt.Sprintf("test-%d", os.Getpid()) }

// newWorld brings up a cluster that ends with the test.
func newWorld(t *testing.T, o options, m muslin) world {
	t.Helper()
	needKubernetes(t)
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	m.Dist = filepath.Join(root, "dist")
	o.Held = true
	began := time.Now()
	c, err := up(t.Context(), clusterName(), o)
	if err != nil {
		t.Fatal(err)
	}
	w := world{T: t, cluster: c, diary: new(diary)}
	t.Cleanup(w.end)
	if err := c.install(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	w.diary.note("cluster and manifest are up", true, time.Since(began))
	if w.about, err = c.circumstances(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// keep writes what the walk has shown into RESULTS.md, if that is wanted.
func (w world) keep(name string) {
	if os.Getenv("MUSLIN_K8S") != "record" {
		return
	}
	file, err := resultsFile()
	if err != nil {
		w.Fatal(err)
	}
	if err := record(file, name, w.diary.section(w.about)); err != nil {
		w.Error(err)
	}
}

// end shows what may explain a failure, takes the cluster down, and holds that nothing of it is left.
func (w world) end() {
	if w.Failed() {
		w.explain()
	}
	if err := down(context.Background(), w.Name); err != nil {
		w.Error(err)
	}
	w.nothingLeft()
}

// explain logs the ends of what the agents and Kubernetes said.
func (w world) explain() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"}} {
		out, err := output(w.cluster.kubectl(ctx, args...))
		w.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, tail(out, 40))
	}
	logs, err := filepath.Glob(filepath.Join(w.Dir, "node*/var/log/pods", system+"_muslin*/*/*.log"))
	if err != nil {
		w.Error(err)
	}
	for _, file := range logs {
		log, err := os.ReadFile(file)
		w.Logf("%s: %v\n%s", file, err, tail(string(log), 30))
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// nothingLeft looks for processes, control groups, mounts and files of the cluster.
func (w world) nothingLeft() {
	w.Helper()
	if err := w.gone(); err != nil {
		w.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), w.Dir) {
		w.Errorf("left: mounts below %s (%v)", w.Dir, err)
	}
	if _, err := os.Stat(w.Dir); !errors.Is(err, os.ErrNotExist) {
		w.Errorf("left: %s", w.Dir)
	}
}

// kubectl returns what kubectl prints, and ends the test if it fails.
func (w world) kubectl(args ...string) string {
	w.Helper()
	out, err := output(w.cluster.kubectl(w.Context(), args...))
	if err != nil {
		w.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// muslinctl is the same for muslinctl. The pod that has it may be on a node that is just coming back, hence the patience.
func (w world) muslinctl(args ...string) string {
	w.Helper()
	var out string
	w.eventually("muslinctl "+strings.Join(args, " "), func() (err error) {
		out, err = output(w.cluster.muslinctl(w.Context(), args...))
		return err
	})
	return strings.TrimSpace(out)
}

// apply hands objects to Kubernetes.
func (w world) apply(objects string) {
	w.Helper()
	if err := w.cluster.apply(w.Context(), objects); err != nil {
		w.Fatal(err)
	}
}

// eventually tries until it works, as patient as a machine with other work needs.
func (w world) eventually(what string, try func() error) {
	w.Helper()
	if err := waitFor(w.Context(), 5*time.Minute, what, try); err != nil {
		w.Fatal(err)
	}
}

// in runs a command in a pod, and returns what it printed.
func (w world) in(pod string, args ...string) (string, error) {
	out, err := output(w.cluster.kubectl(w.Context(), append([]string{"exec", pod, "--"}, args...)...))
	return strings.TrimSpace(out), err
}

// reaches holds that the pod gets an answer from the URL.
func (w world) reaches(pod, url string) {
	w.Helper()
	w.eventually(fmt.Sprintf("%s to reach %s", pod, url), func() error {
		_, err := w.in(pod, "curl", "-gsS", "--max-time", "5", url)
		return err
	})
}
