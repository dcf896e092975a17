package ctl_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/tools/txtar"

	"github.com/muslin-cni/muslin/internal/etcdtest"
)

// TestDeletionThatIsKilledAfterAnyWriteIsFinishedByTheNext kills the program itself, with SIGKILL, as soon as its first write is seen, its
// second, and so on, and runs the command again each time.
func TestDeletionThatIsKilledAfterAnyWriteIsFinishedByTheNext(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/script/procedures.txtar")
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for line := range strings.Lines(string(archive.Files[0].Data)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		keys[key] = value
	}
	for _, args := range [][]string{{"delete", "ippool", "small"}, {"delete", "node", "n1"}} {
		t.Run(args[1], func(t *testing.T) {
			k := killer{t: t, etcd: etcdtest.New(t), keys: keys, args: args}
			want, writes := k.run(never)
			if writes < 3 {
				t.Fatalf("it takes %d writes; want more to interrupt", writes)
			}
			for n := int64(1); n <= writes; n++ {
				got, _ := k.run(n)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("after a kill behind write %d (-not killed +killed):\n%s", n, diff)
				}
			}
		})
	}
}

// killer runs one command again and again on the same keys.
type killer struct {
	t    *testing.T
	etcd *etcdtest.Server
	keys map[string]string
	args []string
}

// never is more writes than any command does.
const never = 1 << 20

// run puts the keys, runs the command, kills it after n writes and, if that came in time, runs it again. It returns what etcd holds then,
// and how many writes it took.
func (k killer) run(n int64) (left map[string]string, writes int64) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	c := k.etcd.Etcd()
	if _, err := c.Delete(ctx, "/", clientv3.WithPrefix()); err != nil {
		k.t.Fatal(err)
	}
	var rev int64
	for key, value := range k.keys {
		put, err := c.Put(ctx, key, value)
		if err != nil {
			k.t.Fatal(err)
		}
		rev = put.Header.Revision
	}
	if killed, err := k.start(ctx, c, rev, n); killed {
		// Where only the report of success was missing, there is nothing left to delete.
		if _, err := k.start(ctx, c, rev, never); err != nil && !strings.Contains(err.Error(), "resource does not exist") {
			k.t.Fatalf("the second time: %v", err)
		}
	} else if err != nil {
		k.t.Fatal(err)
	}
	got, err := c.Get(ctx, "/", clientv3.WithPrefix())
	if err != nil {
		k.t.Fatal(err)
	}
	left = map[string]string{}
	for _, kv := range got.Kvs {
		left[string(kv.Key)] = string(kv.Value)
	}
	return left, got.Header.Revision - rev
}

// start runs the command until it ends or there were n writes since a revision, and reports whether it was killed; the error is the
// command's.
func (k killer) start(ctx context.Context, c *clientv3.Client, rev, n int64) (killed bool, err error) {
	k.t.Helper()
	path, err := exec.LookPath("muslinctl")
	if err != nil {
		k.t.Fatal(err)
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	writes := c.Watch(watching, "/", clientv3.WithPrefix(), clientv3.WithRev(rev+1))
	cmd := exec.CommandContext(ctx, path, k.args...)
	cmd.Env = append(os.Environ(), "ETCD_ENDPOINTS="+k.etcd.Endpoint())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	revisions := map[int64]bool{} // a transaction is one write
	for {
		select {
		case err := <-ended:
			if err != nil {
				err = fmt.Errorf("%v: %w: %s", k.args, err, &out)
			}
			return false, err
		case w := <-writes:
			for _, e := range w.Events {
				revisions[e.Kv.ModRevision] = true
			}
			if int64(len(revisions)) < n {
				continue
			}
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				k.t.Fatal(err)
			}
			return (<-ended) != nil, nil
		}
	}
}
