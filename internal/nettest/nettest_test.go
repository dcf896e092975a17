package nettest

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNamespaceIsPrivate(t *testing.T) {
	ns := New(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	ns.Do(func() { inside, err = os.Readlink("/proc/thread-self/ns/net") })
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if inside == before || before != after {
		t.Fatalf("before %s, inside %s, after %s", before, inside, after)
	}
	var st unix.Stat_t
	if err := unix.Stat(ns.Path(), &st); err != nil {
		t.Fatal(err)
	}
}

func TestPairCarriesPackets(t *testing.T) {
	a, b := New(t), New(t)
	Pair(a, "left", b, "right")
	a.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "left")
	b.Exec("ip", "addr", "add", "192.0.2.2/24", "dev", "right")
	Eventually(t, func() error {
		out, err := a.Try("ip", "-br", "link", "show", "left")
		if err == nil && !strings.Contains(out, "LOWER_UP") {
			return errors.New(out)
		}
		return err
	})
	if a.Index("left") == 0 || b.Index("right") == 0 {
		t.Fatal("a device has index 0")
	}
}

func TestTryReportsWhatTheProgramSaid(t *testing.T) {
	ns := New(t)
	_, err := ns.Try("ip", "link", "show", "nosuch")
	if err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Fatalf("got %v", err)
	}
}

func TestNeedSkipsOrFails(t *testing.T) {
	t.Setenv("NETTEST", "")
	skipped := false
	t.Run("skips", func(t *testing.T) {
		t.Cleanup(func() { skipped = t.Skipped() })
		Need(t, "no-such-program")
	})
	if !skipped {
		t.Fatal("a missing program did not skip the test")
	}
	if err := lacking("sh"); err != nil {
		t.Fatal(err)
	}
}

// tester is a test under a name of our choice that keeps what Need does with it.
type tester struct {
	testing.TB
	name string
	did  string
}

func (r *tester) Helper()      {}
func (r *tester) Name() string { return r.name }
func (r *tester) Fatalf(string, ...any) {
	r.did = "failed"
	runtime.Goexit()
}
func (r *tester) Skipf(string, ...any) {
	r.did = "skipped"
	runtime.Goexit()
}

func TestNeedSkipsNothingEverywhere(t *testing.T) {
	for _, tc := range []struct{ nettest, test, name, want string }{
		{"", "TestA", "no-such-program", "skipped"},
		{"require", "TestA", "no-such-program", "failed"},
		{"vm", "TestVMA", "no-such-program", "failed"},
		{"", "TestVMA", "vm", "skipped"},
		{"require", "TestVMA", "vm", "skipped"},
		{"vm", "TestVMA", "vm", "goes on"},
		{"vm", "TestVMA/part", "vm", "goes on"},
		{"", "TestA", "vm", "failed"}, // test/vm would not find it
		{"require", "TestA", "dummy", "failed"},
	} {
		t.Setenv("NETTEST", tc.nettest)
		r := &tester{name: tc.test, did: "goes on"}
		done := make(chan struct{})
		go func() {
			defer close(done)
			Need(r, tc.name)
		}()
		<-done
		if r.did != tc.want {
			t.Errorf("NETTEST=%s: %s, which needs %s: %s, want %s", tc.nettest, tc.test, tc.name, r.did, tc.want)
		}
	}
}

func TestPatienceStretchesDeadlines(t *testing.T) {
	for value, want := range map[string]time.Duration{"": 1, "10": 10, "0": 1, "x": 1} {
		t.Setenv("MUSLIN_PATIENCE", value)
		if got := Patience(1); got != want {
			t.Errorf("MUSLIN_PATIENCE=%q: %d, want %d", value, got, want)
		}
	}
}
