// Package clitest runs scripts of operator's commands, each on a real etcd of its own.
//
// Scripts are testscript archives below testdata/script. Beside testscript's own commands they have:
//
//	etcdput FILE...      write keys: each line of a file is a key, a blank and a value
//	etcddump [PREFIX]    print keys and values, in that form, to stdout
//	case NAME PROGRAM ARG...
//	                     run a command that testdata/calicoctl.md has under NAME, with the standard input that stands there between
//	                     <<EOF and EOF, and hold output and exit code against it; newlines at the output's end do not count
//
// testdata/calicoctl.md holds what calicoctl prints. What differs on purpose is named in testdata/differences.md, with its reason, as
// "- NAME: reason". A case that is named there must differ, one that is not must not, and every case must be run by a script. Without
// these files there are no cases.
package clitest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/store"
)

// endpoint is the variable in which a script's programs find their etcd.
const endpoint = "ETCD_ENDPOINTS"

// Main runs the tests of a package whose scripts use the commands, under the programs muslinctl and calicoctl. It does not return.
func Main(m *testing.M, commands ...func(cli.Env) *cobra.Command) {
	run := func() { os.Exit(program(commands)) }
	testscript.Main(m, map[string]func(){"muslinctl": run, "calicoctl": run})
}

// program is the main of the programs, with its exit code.
func program(commands []func(cli.Env) *cobra.Command) int {
	env := cli.Env{Program: filepath.Base(os.Args[0]), In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now, Connect: connect}
	root := &cobra.Command{Use: env.Program, SilenceErrors: true, SilenceUsage: true}
	for _, c := range commands {
		root.AddCommand(c(env))
	}
	err := root.ExecuteContext(context.Background())
	switch {
	case err == nil:
		return 0
	case !errors.Is(err, cli.ErrReported):
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

func connect(context.Context) (*store.Client, error) {
	cfg, err := store.FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	return store.New(cfg)
}

// Run runs every script of testdata/script. update rewrites what they compare with cmp. extra are more script commands; it may be nil.
func Run(t *testing.T, update bool, extra map[string]func(*testscript.TestScript, bool, []string)) {
	t.Helper()
	known := readCases(t)
	cmds := map[string]func(*testscript.TestScript, bool, []string){"etcdput": put, "etcddump": dump, "case": known.run}
	maps.Copy(cmds, extra)
	t.Run("script", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir:             filepath.Join("testdata", "script"),
			ContinueOnError: true,
			Setup: func(e *testscript.Env) error {
				s := etcdtest.New(e.T().(testing.TB))
				e.Setenv(endpoint, s.Endpoint())
				return nil
			},
			Cmds:          cmds,
			UpdateScripts: update,
		})
	})
	if !t.Failed() && allScripts() {
		known.complete(t)
	}
}

// allScripts reports whether all scripts are run: only then can a case be missing.
func allScripts() bool {
	chosen := flag.Lookup("test.run")
	return chosen == nil || chosen.Value.String() == ""
}

// Client is a client of the script's etcd. The caller closes it.
func Client(ts *testscript.TestScript) *store.Client {
	c, err := store.New(store.Config{Endpoints: []string{ts.Getenv(endpoint)}})
	ts.Check(err)
	return c
}

// put writes keys, whatever they hold.
func put(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: etcdput FILE...")
	}
	c := Client(ts)
	defer func() { ts.Check(c.Close()) }()
	for _, file := range args {
		for line := range strings.Lines(ts.ReadFile(file)) {
			key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if !ok {
				continue
			}
			got, _, err := c.Read(context.Background(), store.Range{Key: key})
			ts.Check(err)
			var txn store.Txn
			var rev int64
			if len(got[0]) > 0 {
				rev = got[0][0].Rev
			}
			txn.PutRaw(key, []byte(value), rev)
			_, err = c.Commit(context.Background(), &txn)
			ts.Check(err)
		}
	}
}

func dump(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: etcddump [PREFIX]")
	}
	prefix := "/"
	if len(args) == 1 {
		prefix = args[0]
	}
	c := Client(ts)
	defer func() { ts.Check(c.Close()) }()
	kvs, _, err := c.ReadAll(context.Background(), 500, store.Range{Key: prefix, Prefix: true})
	ts.Check(err)
	for _, kv := range kvs {
		_, err := fmt.Fprintf(ts.Stdout(), "%s %s\n", kv.Key, kv.Value)
		ts.Check(err)
	}
}

// outcome is what a command prints on stdout, and its exit code.
type outcome struct {
	Stdout string // without newlines at its end
	Exit   int
}

// cases are what calicoctl does, and where we differ.
type cases struct {
	want   map[string]outcome
	stdin  map[string]string
	differ map[string]bool

	mu  sync.Mutex
	ran map[string]bool // guarded by mu: scripts run in parallel
}

// run is the script command "case".
func (c *cases) run(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: case NAME PROGRAM ARG...")
	}
	name := args[0]
	want, ok := c.want[name]
	if !ok {
		ts.Fatalf("testdata/calicoctl.md has no case %q", name)
	}
	got := execute(ts, c.stdin[name], args[1:])
	c.mu.Lock()
	c.ran[name] = true
	c.mu.Unlock()
	diff := cmp.Diff(want, got)
	switch {
	case diff != "" && !c.differ[name]:
		ts.Fatalf("%s differs from calicoctl (-calicoctl +ours):\n%s", name, diff)
	case diff == "" && c.differ[name]:
		ts.Fatalf("%s does not differ from calicoctl, but testdata/differences.md says so", name)
	}
}

// execute runs a program; what it prints is the script's stdout and stderr too.
func execute(ts *testscript.TestScript, stdin string, args []string) outcome {
	path, err := exec.LookPath(args[0])
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), endpoint+"="+ts.Getenv(endpoint))
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, ts.Stdout()), ts.Stderr()
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Check(err)
	}
	return outcome{strings.TrimRight(stdout.String(), "\n"), cmd.ProcessState.ExitCode()}
}

// complete fails the test for every case that no script has run, and every difference without a case.
func (c *cases) complete(t *testing.T) {
	t.Helper()
	for name := range c.want {
		if !c.ran[name] {
			t.Errorf("no script runs case %q of testdata/calicoctl.md", name)
		}
	}
	for name := range c.differ {
		if _, ok := c.want[name]; !ok {
			t.Errorf("testdata/differences.md names %q, which testdata/calicoctl.md does not have", name)
		}
	}
}

var (
	caseText   = regexp.MustCompile("(?ms)^## ([^\n]+)\n```\n\\$ [^\n]*\n(.*?)\\[exit (\\d+)\\]\n```$")
	stdinText  = regexp.MustCompile(`(?ms)^<<EOF\n(.*?)^EOF\n`)
	stdoutText = regexp.MustCompile(`(?ms)^\[stdout\]\n(.*?)(\[stderr\]|\z)`)
	difference = regexp.MustCompile(`(?m)^- ([^:\n]+): \S`)
)

func readCases(t *testing.T) *cases {
	t.Helper()
	c := &cases{want: map[string]outcome{}, stdin: map[string]string{}, differ: map[string]bool{}, ran: map[string]bool{}}
	for _, m := range caseText.FindAllStringSubmatch(read(t, "calicoctl.md"), -1) {
		exit, err := strconv.Atoi(m[3])
		if err != nil {
			t.Fatal(err)
		}
		o := outcome{Exit: exit}
		if out := stdoutText.FindStringSubmatch(m[2]); out != nil {
			o.Stdout = strings.TrimRight(out[1], "\n")
		}
		if in := stdinText.FindStringSubmatch(m[2]); in != nil {
			c.stdin[m[1]] = in[1]
		}
		c.want[m[1]] = o
	}
	for _, m := range difference.FindAllStringSubmatch(read(t, "differences.md"), -1) {
		c.differ[m[1]] = true
	}
	return c
}

// read returns what a file holds; "" if there is none.
func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(raw)
}
