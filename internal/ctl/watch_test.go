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
		code <- ctl.Run(ctx, set, []string{"get", "tiers", "-w"})
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
	want := []string{"EVENT NAME ORDER", "ADDED first 5", "ADDED kube-admin 1000", "ADDED default 1000000", "ADDED kube-baseline 10000000"}
	if diff := cmp.Diff(want, next(5)); diff != "" {
		t.Error(diff)
	}
	do(object("second"), "create", "-f", "-")
	do("", "patch", "tier", "first", "-p", `{"spec":{"order":6}}`)
	do("", "delete", "tier", "second")
	if diff := cmp.Diff([]string{"ADDED second 5", "MODIFIED first 6", "DELETED second 5"}, next(3)); diff != "" {
		t.Error(diff)
	}
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("exit %d: %s", got, &stderr)
	}
}
