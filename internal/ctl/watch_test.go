package ctl_test

import (
	"bufio"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/ctl"
	"github.com/muslin-cni/muslin/internal/etcdtest"
)

// TestWatchTellsWhatChangesUntilItIsEnded starts a watch and changes the watched kind by other commands.
func TestWatchTellsWhatChangesUntilItIsEnded(t *testing.T) {
	for _, c := range []struct {
		what, names  string
		begin, after []string
	}{
		{"all", "", []string{"EVENT NAME ORDER", "ADDED first 5", "ADDED kube-admin 1000", "ADDED default 1000000", "ADDED kube-baseline 10000000"},
			[]string{"ADDED second 5", "MODIFIED first 6", "DELETED second 5"}},
		{"of names", "first", []string{"EVENT NAME ORDER", "ADDED first 5"}, []string{"MODIFIED first 6"}},
		{"of one that does not exist yet", "first second", []string{"EVENT NAME ORDER", "ADDED first 5"}, []string{"ADDED second 5", "MODIFIED first 6", "DELETED second 5"}},
	} {
		t.Run(c.what, func(t *testing.T) { watch(t, strings.Fields(c.names), c.begin, c.after) })
	}
}

// watch starts a watch and wants it to print begin, and after some changes what comes after.
func watch(t *testing.T, names, begin, after []string) {
	t.Helper()
	etcd := etcdtest.New(t)
	env := func(name string) string { return map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}[name] }
	do := func(stdin string, args ...string) {
		t.Helper()
		set := settings()
		var stderr strings.Builder
		set.Env, set.In, set.Out, set.Err = env, strings.NewReader(stdin), io.Discard, &stderr
		if code := ctl.Run(t.Context(), set, args); code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, &stderr)
		}
	}
	object := func(name string) string {
		return `{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"` + name + `"},"spec":{"order":5}}`
	}
	do(object("first"), "create", "-f", "-")

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, w := io.Pipe()
	set := settings()
	var stderr strings.Builder
	set.Env, set.Out, set.Err = env, w, &stderr
	code := make(chan int, 1)
	go func() {
		code <- ctl.Run(ctx, set, append([]string{"get", "tiers", "-w"}, names...))
		_ = w.Close() // nobody writes any more
	}()
	lines := bufio.NewScanner(r)
	next := func(n int) (out []string) {
		t.Helper()
		for range n {
			if !lines.Scan() {
				t.Fatalf("the watch ended: %s", &stderr)
			}
			out = append(out, strings.Join(strings.Fields(lines.Text()), " "))
		}
		return out
	}
	if diff := cmp.Diff(begin, next(len(begin))); diff != "" {
		t.Error(diff)
	}
	do(object("second"), "create", "-f", "-")
	do("", "patch", "tier", "first", "-p", `{"spec":{"order":6}}`)
	do("", "delete", "tier", "second")
	if diff := cmp.Diff(after, next(len(after))); diff != "" {
		t.Error(diff)
	}
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("exit %d: %s", got, &stderr)
	}
}
